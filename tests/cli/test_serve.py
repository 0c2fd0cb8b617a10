"""`pushsse serve` from outside: what it prints, what it refuses, how it ends."""

import re
import signal
import socket
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.cli.running import LIMIT_S, environment, process, pushsse, served
from tests.waiting import until

pytestmark = pytest.mark.real

SECRET = "0123456789abcdef0123456789abcdef"

BAD = [
    ("PUSHSSE_PORT", "high"),
    ("PUSHSSE_PORT", "70000"),
    ("PUSHSSE_WORKERS", "0"),
    ("PUSHSSE_WORKERS", "2"),
    ("PUSHSSE_LOG_LEVEL", "loud"),
    ("PUSHSSE_AUTH", "maybe"),
    ("PUSHSSE_HOST", "0.0.0.0"),
    ("PUSHSSE_DATABASE_URL", "mysql://localhost/x"),
    ("PUSHSSE_REDIS_URL", "http://localhost"),
    ("PUSHSSE_REDIS_URL", "redis+cluster://localhost"),
    ("PUSHSSE_KAFKA_START", "yesterday"),
    ("PUSHSSE_KAFKA_SECURITY_PROTOCOL", "TLS"),
    ("PUSHSSE_SHARDS", "0"),
    ("PUSHSSE_LOG_KEEP_S", "1"),
    ("PUSHSSE_LOG_KEEP_BYTES", "4 MB"),
    ("PUSHSSE_HEARTBEAT_S", "soon"),
    ("PUSHSSE_ANSWERER", "oracle:"),
    ("PUSHSSE_ANSWERER", "kafka:"),
    ("PUSHSSE_ANSWERER", "faq:nowhere.toml"),
    ("PUSHSSE_NEW_TYPES", "ask"),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_bad_setting_is_one_line_that_names_it(tmp_path: Path, name: str, value: str) -> None:
    ended = pushsse(tmp_path, "serve", "--port" if name != "PUSHSSE_PORT" else "--node", "0", **{name: value})
    lines = ended.stderr.strip().splitlines()
    assert ended.returncode == 2
    assert len(lines) == 1, ended.stderr
    assert lines[0].startswith("pushsse: ")
    assert name in lines[0]


def test_bad_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "pushsse.toml").write_text("colour = 1\n")
    ended = pushsse(tmp_path, "serve")
    assert ended.returncode == 2
    assert "pushsse.toml" in ended.stderr
    assert "colour" in ended.stderr
    assert pushsse(tmp_path, "serve", "--config", "other.toml").returncode == 2


def test_help_lists_every_setting_with_its_default(tmp_path: Path) -> None:
    text = " ".join(pushsse(tmp_path, "serve", "--help").stdout.split())
    assert "PUSHSSE_REDIS_URL" in text
    assert "[default: 86400]" in text


def test_printed_curl_lines_work_when_pasted(tmp_path: Path) -> None:
    with served(tmp_path) as node:
        _paste(node.printed, tmp_path, {})


def test_printed_curl_lines_carry_a_token_where_one_is_needed(tmp_path: Path) -> None:
    with served(tmp_path, PUSHSSE_JWT_SECRET=SECRET) as node:
        assert httpx.get(f"{node.url}/v1/preferences?user=ann", trust_env=False).status_code == 401
        _paste(node.printed, tmp_path, {"PUSHSSE_JWT_SECRET": SECRET})


def _paste(printed: str, folder: Path, settings: dict[str, str]) -> None:
    listen = re.search(r"listen: +(.*)", printed)
    publish = re.search(r"publish: +(.*)", printed)
    assert listen is not None
    assert publish is not None
    heard = folder / "heard"
    with heard.open("w") as out:
        listening = subprocess.Popen(
            ["bash", "-c", f"exec {listen[1]}"],
            stdout=out,
            stderr=subprocess.DEVNULL,
            env=environment(settings),
        )
    try:
        until(lambda: "event: ready" in heard.read_text(), "ready")
        subprocess.run(["bash", "-c", publish[1]], check=True, env=environment(settings), timeout=LIMIT_S)
        until(lambda: '"message":"hello"' in heard.read_text(), "event")
    finally:
        listening.kill()
        listening.wait()


def test_taken_port_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ended = pushsse(tmp_path, "serve", "--port", str(taken.getsockname()[1]))
    assert ended.returncode == 1
    assert re.fullmatch(
        r"pushsse: can't listen on 127\.0\.0\.1 port \d+: Address already in use; stop [^\n]+\n", ended.stderr
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_it_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    with served(tmp_path) as node:
        node.process.send_signal(number)
        assert node.process.wait(LIMIT_S) == 0
        assert "Traceback" not in node.logged


@pytest.mark.parametrize(
    ("name", "url", "word"),
    [
        ("PUSHSSE_DATABASE_URL", "postgres://pushsse:hidden@127.0.0.1:1/pushsse", "the database at"),
        ("PUSHSSE_REDIS_URL", "redis://:hidden@127.0.0.1:1", "Redis at"),
    ],
)
def test_missing_dependency_is_waited_for_with_a_word(tmp_path: Path, name: str, url: str, word: str) -> None:
    with process(tmp_path, "serve", "--port", "0", **{name: url}) as waiting:
        until(lambda: f"waiting for {word}" in (tmp_path / "err.log").read_text(), "word")
        assert waiting.poll() is None
        assert "hidden" not in (tmp_path / "err.log").read_text()
