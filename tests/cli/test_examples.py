"""The examples for Python and a shell, and the commands of their pages, against a real service."""

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from deploy.parts.ports import take_port
from tests.cli.running import LIMIT_S, Served, environment, served
from tests.waiting import until

pytestmark = pytest.mark.real

ROOT = Path(__file__).parents[2]
PYTHON = [sys.executable, str(ROOT / "examples/python/listen.py")]
CURL = ["bash", str(ROOT / "examples/curl/listen.sh")]


@contextmanager
def following(folder: Path, command: Sequence[str], url: str) -> "Iterator[subprocess.Popen[bytes]]":
    """An example that listens, its output in example.out and example.err."""
    with (folder / "example.out").open("wb") as out, (folder / "example.err").open("wb") as err:
        # A group of its own, since a shell has children.
        process = subprocess.Popen(
            [*command, f"{url}/v1/stream?user=ann&since=1h"],
            stdout=out,
            stderr=err,
            env=environment({}),
            start_new_session=True,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            try:
                process.wait(LIMIT_S)
            finally:
                subprocess.run(["kill", "-9", "--", f"-{process.pid}"], check=False, capture_output=True)


def shown(folder: Path) -> str:
    return (folder / "example.out").read_text()


def told(folder: Path) -> str:
    return (folder / "example.err").read_text()


def numbers(folder: Path) -> list[int]:
    return [int(found) for found in re.findall(r"number (\d+)", shown(folder))]


@pytest.mark.parametrize("command", [PYTHON, CURL], ids=["python", "curl"])
def test_an_example_goes_on_over_the_ends_of_streams(tmp_path: Path, command: list[str]) -> None:
    with served(tmp_path, PUSHSSE_STREAM_LIFETIME_S="1") as node, following(tmp_path, command, node.url):
        for number in range(8):
            node.run("publish", "news", f"number {number}", "--to", "ann")
        until(lambda: 7 in numbers(tmp_path), "last event")
        assert numbers(tmp_path) == list(range(8))


@pytest.mark.parametrize("command", [PYTHON, CURL], ids=["python", "curl"])
def test_an_example_tells_a_gap(tmp_path: Path, command: list[str]) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    holder = _Holder()
    port = str(take_port(holder))
    with served(first, "--port", port) as node, following(tmp_path, command, node.url):
        node.run("publish", "news", "number 1", "--to", "ann")
        until(lambda: numbers(tmp_path) == [1], "event")
        node.process.terminate()
        node.process.wait(LIMIT_S)
        # Another database, so another log: the place that the example has is none of this one's.
        with served(second, "--port", port):
            until(lambda: "some events were missed" in told(tmp_path), "word about the gap")


def test_an_example_comes_back_when_a_node_has_frozen(tmp_path: Path) -> None:
    with (
        # What `ready` says of the heartbeat holds from the next stream on.
        served(tmp_path, PUSHSSE_HEARTBEAT_S="0.5", PUSHSSE_STREAM_LIFETIME_S="2") as node,
        following(tmp_path, PYTHON, node.url),
    ):
        node.run("publish", "news", "number 1", "--to", "ann")
        until(lambda: numbers(tmp_path) == [1], "event")
        until(lambda: "pushsse_streams_opened_total 2" in _metrics(node), "second stream")
        node.process.send_signal(signal.SIGSTOP)
        try:
            until(lambda: "reconnecting" in told(tmp_path), "end of the silent stream")
        finally:
            node.process.send_signal(signal.SIGCONT)
        node.run("publish", "news", "number 2", "--to", "ann")
        until(lambda: numbers(tmp_path) == [1, 2], "second event")


def _metrics(node: Served) -> str:
    return httpx.get(f"{node.url}/metrics", trust_env=False, timeout=LIMIT_S).text


@pytest.mark.parametrize("command", [PYTHON, CURL], ids=["python", "curl"])
def test_an_example_that_is_refused_ends(tmp_path: Path, command: list[str]) -> None:
    with (
        served(tmp_path, PUSHSSE_JWT_SECRET="0123456789abcdef0123456789abcdef") as node,
        following(tmp_path, command, node.url) as process,
    ):
        assert process.wait(LIMIT_S) == 1
        assert "401" in told(tmp_path)


class _Holder:
    """Keeps a port over a restart."""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("node")) as running:
        yield running


def _commands(page: str, url: str) -> list[str]:
    """The curl calls of a page's shell blocks, to this service, each ended where it would go on for ever."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("curl")]
    calls = [line.replace("$U", url).replace("http://127.0.0.1:8000", url) for line in lines]
    return [re.sub(r"^curl -N", "curl -N --max-time 1", call) for call in calls]


@pytest.mark.parametrize("page", ["README.md", "README.zh-CN.md", "examples/curl/README.md"])
def test_the_curl_calls_of_a_page_are_answered(node: Served, page: str) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl isn't installed")
    calls = _commands(page, node.url)
    assert len(calls) >= 2
    for call in calls:
        done = subprocess.run(
            f"{call} --silent --show-error --fail-with-body",
            shell=True,
            cwd=node.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=LIMIT_S,
        )
        # 28: ended by --max-time, having had its first events.
        assert done.returncode in ((0, 28) if "-N" in call else (0,)), (call, done)
        assert done.stdout, call
        if done.returncode == 28:
            assert "event: ready" in done.stdout, call
