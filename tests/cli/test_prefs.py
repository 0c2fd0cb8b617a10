"""`pushsse prefs` and `pushsse types`: what they print, and files that go in and come out."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.cli.running import Served, served
from tests.waiting import until

pytestmark = pytest.mark.real

GOOD = """\
user,type,category,enabled
ann,news,,off
bo,,marketing,FALSE

"c,y ",news,,1
"""
BAD = """\
user,type,enabled
ann,news,off
b o,news,off
bo,nope,off
bo,law,off
bo,news,perhaps
bo,news
bo,,on
"cy"x,news,off
dee,news,off
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("node")
    (folder / "pushsse.toml").write_text(
        '[[types]]\nname = "law"\nmandatory = true\ntitle = { en = "Law", zh = "法律" }\norder = 9\n'
        '[[types]]\nname = "promo"\ncategory = "marketing"\n[[types]]\nname = "news"\n'
    )
    with served(folder) as running:
        until(lambda: "promo" in running.run("prefs", "--user", "x").stdout, "the types of the file")
        yield running


def test_types_are_listed_set_and_deleted(node: Served) -> None:
    assert node.run("types").stdout.splitlines() == [
        "TYPE   CATEGORY   BY DEFAULT  ORDER           TITLE",
        "promo  marketing  on          0      in_file",
        "news              on          0      in_file",
        "law               always on   9      in_file  en: Law | zh: 法律",
    ]
    said = node.run("types", "set", "alarm", "--title", "en=Alarms", "--title", "zh=警报", "--default", "off")
    assert said.stdout == "alarm: added; all nodes act on it within seconds\n", said.stderr
    said = node.run("types", "set", "alarm", "--urgent", "--order", "-1", "--description", "They are loud")
    assert said.stdout.startswith("alarm: changed")
    [alarm, *_] = node.run("types", "list", "--json").stdout.splitlines()
    assert json.loads(alarm) == {
        "title": {"en": "Alarms", "zh": "警报"},
        "description": "They are loud",
        "category": "",
        "default": False,
        "mandatory": False,
        "order": -1,
        "urgent": True,
        "hidden": False,
        "name": "alarm",
        "in_file": False,
    }
    assert "off        alarm  Alarms" in node.run("prefs", "--user", "ann").stdout
    said = node.run("types", "set", "alarm", "--hidden", "--json")
    assert json.loads(said.stdout)["hidden"] is True
    assert node.run("types", "delete", "alarm").stdout == "alarm: deleted\n"
    assert "type_unknown" in node.run("types", "delete", "alarm").stderr
    assert "type_in_file" in node.run("types", "set", "law", "--title", "x").stderr
    assert "LANGUAGE=TEXT" in node.run("types", "set", "x", "--title", "en=A", "--title", "B").stderr


def test_somebody_s_categories_are_switched(node: Served) -> None:
    said = node.run("prefs", "off", "marketing", "--category", "--of", "d/ee", "--user", "root")
    assert "off        category marketing" in said.stdout, said.stderr
    schedule = {
        "quiet": [{"days": ["sat", "sun"], "from": "22:00", "to": "09:00"}, {"from": "23:00", "to": "24:00"}],
        "zone": "Asia/Shanghai",
        "paused_until": "2099-01-01T00:00:00Z",
    }
    path = f"{node.url}/v1/users/d%2Fee/preferences?user=root"
    assert httpx.post(path, json=schedule, trust_env=False).status_code == 200
    shown = node.run("prefs", "--of", "d/ee").stdout
    assert "off        promo" in shown
    assert shown.endswith(
        "quiet      sat,sun 22:00–09:00 Asia/Shanghai\nquiet      23:00–24:00 Asia/Shanghai\n"
        "paused     until 2099-01-01T00:00:00Z\n"
    )
    assert "on         promo" in node.run("prefs", "--user", "root").stdout


def test_a_file_goes_in_and_comes_out(node: Served, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text(GOOD.replace('"c,y "', '"c,y"'))
    said = node.run("prefs", "import", str(tmp_path / "in.csv"))
    assert said.stdout == "3 rows imported; something changed for 2 people\n", said.stderr
    assert "off        news" in node.run("prefs", "--of", "ann").stdout
    out = tmp_path / "out.csv"
    assert node.run("prefs", "export", str(out)).returncode == 0
    rows = out.read_text().splitlines()
    assert rows[0] == "user,type,category,enabled"
    assert {"ann,news,,false", "bo,,marketing,false", '"c,y",news,,true'} <= set(rows)
    assert node.run("prefs", "export").stdout == out.read_text()
    exported = [json.loads(line) for line in node.run("prefs", "export", "--json").stdout.splitlines()]
    assert {"user": "ann", "type": "news", "enabled": False} in exported
    assert len(exported) == len(rows) - 1
    said = json.loads(node.run("prefs", "import", str(out), "--json").stdout)
    assert said == {"imported": len(rows) - 1, "left_out": 0, "changed": 0}
    again = node.run("prefs", "import", str(out))
    assert again.stdout == f"{len(rows) - 1} rows imported; something changed for 0 people\n"


def test_every_bad_row_is_named_and_nothing_is_imported_unless_they_are_skipped(
    node: Served, tmp_path: Path
) -> None:
    (tmp_path / "bad.csv").write_text(BAD)
    said = node.run("prefs", "import", str(tmp_path / "bad.csv"))
    assert said.returncode == 1
    assert [line.partition(":")[0] for line in said.stderr.splitlines()] == [
        *(f"line {number}" for number in range(3, 10)),
        "pushsse",
    ]
    for words in ("'b o'", "'nope'", "'law' is mandatory", "enabled is none of", "has 2 cells", "isn't CSV"):
        assert words in said.stderr
    assert "7 rows can't be used, and nothing was imported" in said.stderr
    assert "on         news" in node.run("prefs", "--of", "dee").stdout
    skipped = node.run("prefs", "import", str(tmp_path / "bad.csv"), "--skip-bad")
    assert skipped.stdout.startswith("2 rows imported, 7 left out; ")
    assert "off        news" in node.run("prefs", "--of", "dee").stdout


@pytest.mark.parametrize(
    ("head", "word"),
    [
        ("", "columns"),
        ("user,kind,enabled", "kind"),
        ("user,enabled", "columns"),
        ("user,type,type,enabled", "columns"),
    ],
)
def test_a_file_whose_columns_are_others_is_refused(
    node: Served, tmp_path: Path, head: str, word: str
) -> None:
    (tmp_path / "odd.csv").write_text(f"{head}\nann,news,off\n")
    said = node.run("prefs", "import", str(tmp_path / "odd.csv"))
    assert said.returncode == 1
    assert said.stderr.startswith("pushsse: line 1: ")
    assert word in said.stderr
    assert "there is no such file" in node.run("prefs", "import", "no.csv").stderr.lower() or (
        "No such file" in node.run("prefs", "import", "no.csv").stderr
    )


def test_a_step_in_a_path_leads_to_no_other_call(node: Served) -> None:
    before = node.run("prefs", "--user", "eve").stdout
    for name, *command in (
        ("..", "prefs", "off", "news", "--of", ".."),
        (".", "types", "set", "."),
        ("..", "types", "delete", ".."),
        ("..", "kick", ".."),
        ("..", "explain", "ann", ".."),
        (".", "desk", "release", "."),
        ("..", "desk", "write", "..", "a text"),
    ):
        ended = node.run(*command, "--user", "eve")
        assert (ended.returncode, ended.stdout) == (1, "")
        assert ended.stderr == f"pushsse: {name!r} is no name: it is a step in a path\n"
    assert node.run("prefs", "--user", "eve").stdout == before
