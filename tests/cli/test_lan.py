"""`pushsse serve --lan`: a key of this run, a code for a phone, and never the development identity."""

import re
import subprocess
import time
from pathlib import Path

import httpx
import jwt
import pytest
import segno

from pushsse.cli.running import qr_code
from pushsse.errors import SettingsError
from pushsse.settings import load
from tests.cli.running import PROGRAM, pushsse, served

pytestmark = pytest.mark.real
ROOT = Path(__file__).parents[2]
HALVES = {"█": (1, 1), "▀": (1, 0), "▄": (0, 1), " ": (0, 0)}


def code(lines: list[str]) -> list[list[int]]:
    """The light and dark of a printed code, without its margin."""
    pairs = [[HALVES[each] for each in line[2:]] for line in lines]
    rows = [[pair[half] for pair in line] for line in pairs for half in (0, 1)]
    return [row[2:-2] for row in rows[2 : len(rows[0]) - 2]]


def test_a_code_is_printed_dot_by_dot(tmp_path: Path) -> None:
    text = "http://192.0.2.7:8000/#token=" + "x" * 150
    lines = qr_code(text, colours=False)
    made = segno.make(text, error="l", micro=False, boost_error=False)
    assert code(lines) == [[0 if dark else 1 for dark in row] for row in made.matrix]
    # A terminal of 80 columns shows it.
    assert {len(line) for line in lines} == {len(made.matrix) + 6}
    assert len(lines[0]) <= 80
    coloured = qr_code(text, colours=True)
    assert [line.replace("\033[97;40m", "").replace("\033[0m", "") for line in coloured] == lines


def test_it_prints_a_way_in_and_the_line_that_publishes(tmp_path: Path) -> None:
    with served(tmp_path, "--lan") as node:
        printed = node.printed
        [token] = re.findall(r"TOKEN=(\S+)", printed)
        bearer = {"authorization": f"Bearer {token}"}
        body = httpx.post(f"{node.url}/v1/events?type=news&to=all", content="hello", headers=bearer)
        assert body.status_code == 202, body.text
        claims = jwt.decode(token, options={"verify_signature": False})
        assert 3500 < claims["exp"] - time.time() <= 3600
        # It isn't that of development: whoever has no token is nobody.
        assert httpx.get(f"{node.url}/v1/me?user=ann").status_code == 401
        assert "█" in printed
        assert token not in node.logged
        assert httpx.get(node.url).text.count('name="lan"') == 1
    # Each run has a key of its own.
    with served(tmp_path, PUSHSSE_LAN="on") as node:
        assert httpx.get(f"{node.url}/v1/me", headers=bearer).status_code == 401
        ended = node.run("token", "--user", "ann", PUSHSSE_LAN="on")
        assert (ended.returncode, "prints tokens when it starts" in ended.stderr) == (1, True)


def test_its_tokens_are_valid_for_no_longer_than_a_token_may_be(tmp_path: Path) -> None:
    with served(tmp_path, "--lan", PUSHSSE_TOKEN_MAX_S="600") as node:
        assert "for 10 minutes" in node.printed
        [token] = re.findall(r"TOKEN=(\S+)", node.printed)
        bearer = {"authorization": f"Bearer {token}"}
        assert httpx.get(f"{node.url}/v1/me", headers=bearer).json()["user"] == "me"


def test_a_terminal_without_blocks_gets_the_link(tmp_path: Path) -> None:
    with served(tmp_path, "--lan", program=PROGRAM, PYTHONIOENCODING="gbk") as node:
        [link] = re.findall(r"^  (http://\S+/)#token=\S+$", node.printed, re.MULTILINE)
        assert httpx.get(link).status_code == 200


def test_make_run_passes_it_on() -> None:
    for given, option in (("LAN=1", "serve --lan"), ("LAN=", "serve")):
        command = ["make", "-n", "run", given, "ARGS=--port 9000"]
        printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert f"pushsse {option} --port 9000" in " ".join(printed.split())


def test_without_it_no_link_signs_anybody_in(tmp_path: Path) -> None:
    with served(tmp_path) as node:
        assert 'name="lan"' not in httpx.get(node.url).text


@pytest.mark.parametrize(
    "given",
    [
        {"PUSHSSE_JWT_SECRET": "x" * 32},
        {"PUSHSSE_JWT_SECRET_OLD": "x" * 32},
        {"PUSHSSE_AUTH_URL": "https://app.example.com/session"},
        {"PUSHSSE_AUTH": "none"},
        {"PUSHSSE_AUTH": "none", "PUSHSSE_JWT_SECRET": "x" * 32},
    ],
)
def test_it_takes_the_place_of_no_other_key(given: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="PUSHSSE_LAN: makes a key"):
        load({"PUSHSSE_LAN": "on", **given})


def test_it_listens_on_all_addresses_unless_one_is_named() -> None:
    assert load({}, {"lan": "on"}).host == "0.0.0.0"
    assert load({"PUSHSSE_HOST": "192.0.2.7"}, {"lan": "on"}).host == "192.0.2.7"
    assert load({}, {"lan": "on", "host": "127.0.0.1"}).host == "127.0.0.1"
    both = [load({}, {"lan": "on"}) for _ in range(2)]
    assert both[0].jwt_secret != both[1].jwt_secret
    assert not any(each.development for each in both)
    # Without it the rule stands.
    with pytest.raises(SettingsError, match="PUSHSSE_HOST"):
        load({"PUSHSSE_HOST": "0.0.0.0", "PUSHSSE_LAN": "off"})


def test_an_option_of_a_switch_needs_no_word(tmp_path: Path) -> None:
    for given in (["--lan"], ["--lan", "on"]):
        ended = pushsse(tmp_path, "serve", *given, PUSHSSE_JWT_SECRET="x" * 32)
        assert (ended.returncode, "PUSHSSE_LAN" in ended.stderr) == (2, True)
