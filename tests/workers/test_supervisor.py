"""`pushsse serve --workers`: one port, one scrape, a worker that dies is replaced."""

import json
import os
import re
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from tests.backplane.redis_server import RedisServer
from tests.cli.running import LIMIT_S, Served, process, pushsse, served
from tests.starting import Started
from tests.waiting import until

pytestmark = pytest.mark.real

SERVED = re.compile(r"worker \d+ is process (\d+)")


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server.url
    server.close()


@contextmanager
def two_workers(folder: Path, redis_url: str) -> Iterator[Served]:
    settings = {"PUSHSSE_REDIS_URL": redis_url, "PUSHSSE_REDIS_PREFIX": f"{folder.name}:"}
    with served(folder, "--workers", "2", **settings) as running:
        yield running


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[Served]:
    """A service of two workers, for the tests that leave it with two."""
    with two_workers(tmp_path_factory.mktemp("shared"), redis_url) as running:
        yield running


def _a_worker(node: Served) -> int:
    """The process of the one that was started last."""
    return int(SERVED.findall(node.logged)[-1])


def _kill_a_worker(node: Served) -> None:
    """Returns when it has ended, so that no request comes to its socket any more, and would be cut."""
    ended = node.logged.count("ended with exit status")
    os.kill(_a_worker(node), signal.SIGKILL)
    until(lambda: node.logged.count("ended with exit status") > ended, "end of the worker")


def _scrape(node: Served, *, within_s: float = LIMIT_S) -> dict[str, float]:
    """One scrape; empty where it is refused, since the supervisor didn't answer in time."""
    reply = httpx.get(f"{node.url}/metrics", trust_env=False, timeout=within_s)
    lines = [line.rpartition(" ") for line in reply.text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines} if reply.status_code == 200 else {}


def _scraped(node: Served) -> dict[str, float]:
    """A scrape that all workers have answered: on a busy machine one may be too late for it."""
    found: dict[str, float] = {}

    def is_whole() -> bool:
        found.clear()
        found.update(_scrape(node))
        return found.get("pushsse_workers_unanswered") == 0

    until(is_whole, "scrape of all workers")
    return found


def _publish(node: Served, times: int) -> None:
    for number in range(times):
        # A connection each, so that both workers get some.
        event = {"type": "news", "to": "all", "message": number}
        reply = httpx.post(f"{node.url}/v1/events", json=event, trust_env=False, timeout=LIMIT_S)
        assert reply.status_code == 202, reply.text


def _nodes(node: Served, wanted: int) -> set[str]:
    """The names of the workers that answer streams on the one port."""
    found: set[str] = set()

    def more() -> bool:
        with httpx.stream("GET", f"{node.url}/v1/stream", trust_env=False, timeout=LIMIT_S) as response:
            data = next(line for line in response.iter_lines() if line.startswith("data: "))
            found.add(str(json.loads(data[6:])["node"]))
        return len(found) == wanted

    until(more, "all workers")
    return found


def test_workers_share_the_port_and_hear_each_other(shared: Served) -> None:
    assert "2 workers" in shared.logged
    assert len(_nodes(shared, 2)) == 2
    streams = [
        httpx.stream("GET", f"{shared.url}/v1/stream?user=u{n}", trust_env=False, timeout=LIMIT_S)
        for n in range(8)
    ]
    opened = [stream.__enter__() for stream in streams]
    try:
        lines = [response.iter_lines() for response in opened]
        for each in lines:
            assert any("event: ready" in line for line in each)
        until(lambda: _scraped(shared)["pushsse_connections"] == len(opened), "end of the streams before")
        _publish(shared, 1)
        for each in lines:
            assert any(line == "event: news" for line in each)
    finally:
        for stream in streams:
            stream.__exit__(None, None, None)


def test_counters_of_a_dead_worker_are_kept(shared: Served) -> None:
    _publish(shared, 20)
    before = _scraped(shared)
    assert before["pushsse_workers"] == 2
    assert before["pushsse_appended_total"] >= 20
    _kill_a_worker(shared)
    restarts = before["pushsse_worker_restarts_total"] + 1
    until(lambda: _scraped(shared)["pushsse_worker_restarts_total"] == restarts, "restart")
    until(lambda: _scraped(shared)["pushsse_workers"] == 2, "second worker")
    after = _scraped(shared)
    assert all(after[name] >= value for name, value in before.items() if name.endswith("_total"))
    assert len(_nodes(shared, 2)) == 2


@pytest.mark.long
def test_worker_that_does_not_answer_is_left_out_and_counted(tmp_path: Path, redis_url: str) -> None:
    with two_workers(tmp_path, redis_url) as node:
        _publish(node, 10)
        before = _scraped(node)
        stopped = int(SERVED.findall(node.logged)[0])
        os.kill(stopped, signal.SIGSTOP)
        try:
            # The port's connections go to both: those of the stopped one wait in vain.
            found: dict[str, float] = {}

            def answered() -> bool:
                try:
                    found.update(_scrape(node, within_s=5))
                except httpx.TimeoutException:
                    return False
                return found.get("pushsse_workers_unanswered") == 1

            until(answered, "scrape", within_s=60)
            assert found["pushsse_appended_total"] >= before["pushsse_appended_total"]
        finally:
            os.kill(stopped, signal.SIGCONT)


def test_a_scrape_that_the_supervisor_does_not_answer_is_refused(shared: Served) -> None:
    _publish(shared, 10)
    shared.process.send_signal(signal.SIGSTOP)
    try:
        reply = httpx.get(f"{shared.url}/metrics", trust_env=False, timeout=LIMIT_S)
    finally:
        shared.process.send_signal(signal.SIGCONT)
    # One worker's own counts would look like a restart of all of them.
    assert (reply.status_code, reply.json()["code"]) == (503, "unavailable")
    assert int(reply.headers["retry-after"]) > 0
    assert _scraped(shared)["pushsse_appended_total"] >= 10


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        pytest.param(signal.SIGHUP, marks=pytest.mark.long),
        pytest.param(signal.SIGINT, marks=pytest.mark.long),
    ],
)
def test_a_signal_ends_all_of_them_cleanly(tmp_path: Path, redis_url: str, number: signal.Signals) -> None:
    with two_workers(tmp_path, redis_url) as node:
        workers = [int(found) for found in SERVED.findall(node.logged)]
        node.process.send_signal(number)
        assert node.process.wait(LIMIT_S) == 0
        said = node.logged[node.logged.index("stopping") :]
        assert len(said.splitlines()) == 1, said
        for worker in workers:
            with pytest.raises(ProcessLookupError):
                os.kill(worker, 0)


def test_a_second_signal_ends_all_of_them_at_once(tmp_path: Path, redis_url: str) -> None:
    settings = {"PUSHSSE_REDIS_URL": redis_url, "PUSHSSE_DRAIN_DELAY_S": "60"}
    with served(tmp_path, "--workers", "2", **settings) as node:
        with httpx.stream(
            "GET", f"{node.url}/v1/stream?user=ann", trust_env=False, timeout=LIMIT_S
        ) as stream:
            lines = stream.iter_lines()
            assert any(line == "event: ready" for line in lines)
            node.process.send_signal(signal.SIGTERM)
            until(lambda: "stopping" in node.logged, "word")
            node.process.send_signal(signal.SIGTERM)
            assert any('"code":"shutdown"' in line for line in lines)
        assert node.process.wait(5) == 128 + signal.SIGTERM
        assert "Traceback" not in node.logged
        assert "killed" not in node.logged


def test_workers_do_not_outlive_their_supervisor_and_end_their_streams_in_band(
    tmp_path: Path, redis_url: str
) -> None:
    with (
        two_workers(tmp_path, redis_url) as node,
        httpx.stream("GET", f"{node.url}/v1/stream?user=ann", trust_env=False, timeout=LIMIT_S) as stream,
    ):
        workers = [int(found) for found in SERVED.findall(node.logged)]
        lines = stream.iter_lines()
        assert any(line == "event: ready" for line in lines)
        node.process.kill()
        node.process.wait()
        assert any('"code":"shutdown"' in line for line in lines)
        until(lambda: not any(map(_runs, workers)), "end of the workers")


def _runs(pid: int) -> bool:
    try:
        # Of a process that has ended and that nobody has waited for, it is empty (proc(5)).
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("folder", ["x" * 120, pytest.param("missing", marks=pytest.mark.long)])
def test_workers_start_where_tmpdir_cannot_hold_a_socket(tmp_path: Path, redis_url: str, folder: str) -> None:
    place = tmp_path / folder
    if folder != "missing":
        place.mkdir()
    settings = {"PUSHSSE_REDIS_URL": redis_url, "TMPDIR": str(place)}
    with served(tmp_path, "--workers", "2", **settings) as node:
        assert httpx.get(f"{node.url}/readyz", trust_env=False).status_code == 200


def test_worker_that_cannot_start_ends_the_service(tmp_path: Path, redis_url: str) -> None:
    settings = {"PUSHSSE_REDIS_URL": redis_url, "PUSHSSE_ANSWERER": "faq:nowhere.toml"}
    ended = pushsse(tmp_path, "serve", "--port", "0", "--workers", "2", **settings)
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    assert "nowhere.toml" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


@contextmanager
def no_more_files(process: Started) -> Iterator[None]:
    """While it lasts, a process can open nothing: not a socket, and not the pipe that a fork needs."""
    soft, hard = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (soft, hard))


def test_a_dead_worker_is_replaced_as_soon_as_the_system_has_room(shared: Served) -> None:
    restarts = _scraped(shared)["pushsse_worker_restarts_total"] + 1
    with no_more_files(shared.process):
        os.kill(_a_worker(shared), signal.SIGKILL)
        until(lambda: "couldn't be started" in shared.logged, "failed start")
    until(lambda: _scraped(shared)["pushsse_workers"] == 2, "second worker")
    assert _scraped(shared)["pushsse_worker_restarts_total"] == restarts
    assert "Traceback" not in shared.logged
    [line, *_] = [line for line in shared.logged.splitlines() if "couldn't be started" in line]
    assert "Too many open files" in line


def test_a_worker_that_can_not_be_started_for_long_ends_the_service_in_order(
    tmp_path: Path, redis_url: str
) -> None:
    with (
        two_workers(tmp_path, redis_url) as node,
        httpx.stream("GET", f"{node.url}/v1/stream?user=ann", trust_env=False, timeout=LIMIT_S) as stream,
    ):
        lines = stream.iter_lines()
        serving = next(line for line in lines if line.startswith("data: "))
        other = 1 - int(str(json.loads(serving[6:])["node"])[-1])
        # It may have been replaced since it started.
        dying = int(re.findall(rf"worker {other} is process (\d+)", node.logged)[-1])
        with no_more_files(node.process):
            os.kill(dying, signal.SIGKILL)
            assert any('"code":"shutdown"' in line for line in lines)
            assert node.process.wait(LIMIT_S) == 1
        assert "so the service ends" in node.logged
        assert "Traceback" not in node.logged


def test_port_of_another_service_is_not_shared(shared: Served, tmp_path: Path, redis_url: str) -> None:
    port = shared.url.rpartition(":")[2]
    with process(tmp_path, "serve", "--port", port, "--workers", "2", PUSHSSE_REDIS_URL=redis_url) as second:
        assert second.wait(LIMIT_S) == 1
    assert "Address already in use" in (tmp_path / "err.log").read_text()
