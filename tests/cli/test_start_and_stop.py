"""`pushsse serve`: what it takes from its surroundings, and how it ends when it is told to."""

import os
import pty
import re
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from deploy.parts.ports import answers, free_port
from tests.backplane.redis_server import RedisServer
from tests.cli.running import LIMIT_S, PROGRAM, Served, environment, process, pushsse, served
from tests.waiting import until

pytestmark = pytest.mark.real

SLOW_DRAIN = {"PUSHSSE_DRAIN_DELAY_S": "60", "PUSHSSE_DRAIN_WINDOW_S": "60"}


def open_streams(node: Served, count: int) -> list["subprocess.Popen[bytes]"]:
    """Streams by curl, open and with their `ready` in NAME.out."""
    found = []
    for number in range(count):
        with (node.folder / f"{number}.out").open("wb") as out:
            address = f"{node.url}/v1/stream?user=u{number}"
            found.append(subprocess.Popen(["curl", "-sN", address], stdout=out))
    outs = [node.folder / f"{number}.out" for number in range(count)]
    until(lambda: all(b"event: ready" in out.read_bytes() for out in outs), "ready")
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_streams_in_band_within_two_seconds_in_development(
    tmp_path: Path, number: signal.Signals
) -> None:
    # As `make run` has it: nothing about the drain is set.
    with served(tmp_path, PUSHSSE_DRAIN_DELAY_S="", PUSHSSE_DRAIN_WINDOW_S="") as node:
        streams = open_streams(node, 3)
        node.process.send_signal(number)
        assert node.process.wait(4) == 0
        for at, stream in enumerate(streams):
            assert stream.wait(LIMIT_S) == 0
            assert b'"code":"shutdown"' in (tmp_path / f"{at}.out").read_bytes()
        said = node.logged[node.logged.index("stopping") :]
        assert len(said.splitlines()) == 1, said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_at_once_and_in_band(tmp_path: Path, number: signal.Signals) -> None:
    with served(tmp_path, **SLOW_DRAIN) as node:
        streams = open_streams(node, 3)
        node.process.send_signal(number)
        until(lambda: "stopping" in node.logged, "word")
        assert node.process.poll() is None
        node.process.send_signal(number)
        assert node.process.wait(5) == 128 + number
        for at, stream in enumerate(streams):
            stream.wait(LIMIT_S)
            assert b'"code":"shutdown"' in (tmp_path / f"{at}.out").read_bytes()
        assert "Traceback" not in node.logged
        assert "ERROR" not in node.logged


def test_a_second_signal_ends_a_request_that_is_half_sent(tmp_path: Path) -> None:
    with served(tmp_path, **SLOW_DRAIN) as node:
        address = node.url.removeprefix("http://").split(":")
        with socket.create_connection((address[0], int(address[1]))) as half:
            half.sendall(
                b"POST /v1/questions?user=ann HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{"
            )
            node.process.send_signal(signal.SIGTERM)
            until(lambda: "stopping" in node.logged, "word")
            node.process.send_signal(signal.SIGTERM)
            assert node.process.wait(5) == 128 + signal.SIGTERM
        assert "Traceback" not in node.logged


CLOSING = """
import sys
from pushsse.database import Database
close = Database.__aexit__
async def closing(self, *error):
    await close(self, *error)
    print("closed in order", file=sys.stderr, flush=True)
Database.__aexit__ = closing
from pushsse.cli import main
main()
"""


@pytest.mark.parametrize("signals", [1, 2])
def test_a_stream_that_was_cut_and_is_not_read_holds_nothing_up(tmp_path: Path, signals: int) -> None:
    (tmp_path / "closing.py").write_text(CLOSING)
    program = (sys.executable, str(tmp_path / "closing.py"))
    with served(tmp_path, program=program, PUSHSSE_SEND_TIMEOUT_S="1") as node:
        with socket.socket() as unread:
            unread.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            unread.connect(("127.0.0.1", int(node.url.rpartition(":")[2])))
            unread.sendall(b"GET /v1/stream?user=ann HTTP/1.1\r\nHost: localhost\r\n\r\n")
            event = {"type": "news", "to": "all", "message": "x" * 40_000}

            def is_cut() -> bool:
                for _ in range(10):
                    reply = httpx.post(f"{node.url}/v1/events", json=event, trust_env=False)
                    assert reply.status_code == 202, reply.text
                metrics = httpx.get(f"{node.url}/metrics", trust_env=False).text
                return 'pushsse_endings_total{reason="slow"} 1.0' in metrics

            until(is_cut, "cut")
            for _ in range(signals):
                node.process.send_signal(signal.SIGTERM)
                until(lambda: "stopping" in node.logged, "word")
            assert node.process.wait(LIMIT_S) == (0 if signals == 1 else 128 + signal.SIGTERM)
        assert "closed in order" in node.logged
        # uvicorn's, when its grace is over.
        assert "ERROR" not in node.logged, node.logged


BLOCKING = """
import asyncio, time
from pathlib import Path
async def answer(question):
    yield "One moment"
    await asyncio.to_thread(block)
def block():
    Path("blocked").touch()
    time.sleep(300)
"""


@pytest.mark.parametrize("signals", [1, 2])
def test_a_thread_that_does_not_end_holds_the_end_up_for_a_moment_only(tmp_path: Path, signals: int) -> None:
    (tmp_path / "blocking.py").write_text(BLOCKING)
    with served(tmp_path, PUSHSSE_ANSWERER="python:blocking:answer") as node:
        reply = httpx.post(f"{node.url}/v1/questions?user=ann", json={"text": "Why?"}, trust_env=False)
        assert reply.status_code == 202, reply.text
        until((tmp_path / "blocked").exists, "thread")
        for _ in range(signals):
            node.process.send_signal(signal.SIGTERM)
            until(lambda: "stopping" in node.logged, "word")
        assert node.process.wait(LIMIT_S) == (0 if signals == 1 else 128 + signal.SIGTERM)
    if signals == 1:
        assert "is not waited for the threads" in node.logged
    assert "Traceback" not in node.logged


STUBBORN = """
import asyncio
from pathlib import Path
async def answer(question):
    yield "One moment"
    Path("asked").touch()
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass
"""
HOLDING = """
import time
from pathlib import Path
async def answer(question):
    yield "One moment"
    Path("asked").touch()
    time.sleep(300)
"""
HASTY = """
import sys
from pushsse import server
server.GRACE_S, server.LAST_S = 1, 2.5
from pushsse.cli import main
main()
"""


@pytest.mark.parametrize("code", [STUBBORN, HOLDING])
def test_an_answerer_that_ignores_its_end_does_not_keep_the_process(tmp_path: Path, code: str) -> None:
    (tmp_path / "stubborn.py").write_text(code)
    (tmp_path / "hasty.py").write_text(HASTY)
    program = (sys.executable, str(tmp_path / "hasty.py"))
    with served(tmp_path, program=program, PUSHSSE_ANSWERER="python:stubborn:answer") as node:
        reply = httpx.post(f"{node.url}/v1/questions?user=ann", json={"text": "Why?"}, trust_env=False)
        assert reply.status_code == 202, reply.text
        until((tmp_path / "asked").exists, "question")
        node.process.send_signal(signal.SIGTERM)
        assert node.process.wait(LIMIT_S) == 1
    assert re.search("told to end [0-9.]+ s ago, and its node hasn't ended", node.logged)
    assert "Traceback" not in node.logged


def test_ctrl_c_at_a_terminal_prints_one_line(tmp_path: Path) -> None:
    main, other = pty.openpty()
    started = subprocess.Popen(
        [*PROGRAM, "serve", "--port", "0"],
        cwd=tmp_path,
        env=environment({"PUSHSSE_DRAIN_DELAY_S": "", "PUSHSSE_DRAIN_WINDOW_S": ""}),
        stdin=other,
        stdout=other,
        stderr=other,
        start_new_session=True,
    )
    os.close(other)
    seen = b""
    while b"publish:" not in seen or not seen.endswith(b"\n"):
        seen += os.read(main, 4096)
    started.send_signal(signal.SIGINT)
    assert started.wait(4) == 0
    after = os.read(main, 4096)
    os.close(main)
    assert after.count(b"\n") == 1, after


def test_a_service_that_dies_ends_streams_in_band(tmp_path: Path) -> None:
    dying = tmp_path / "dying.py"
    dying.write_text(
        "import asyncio, sys\n"
        "from pushsse import node\n"
        "async def die():\n"
        "    while not (__import__('pathlib').Path('die')).exists():\n"
        "        await asyncio.sleep(0.02)\n"
        "    raise RuntimeError('broken')\n"
        "node.trim_memory = die\n"
        "from pushsse.cli import main\n"
        "main()\n"
    )
    with served(tmp_path, program=(sys.executable, str(dying))) as node:
        streams = open_streams(node, 2)
        (tmp_path / "die").touch()
        assert node.process.wait(LIMIT_S) == 1
        assert "service memory died" in node.logged
        for at, stream in enumerate(streams):
            stream.wait(LIMIT_S)
            assert b'"code":"shutdown"' in (tmp_path / f"{at}.out").read_bytes()


@pytest.mark.parametrize("host", ["127.0.0.2", "[::1]", "::1", "localhost"])
def test_every_loopback_address_will_do_in_development(tmp_path: Path, host: str) -> None:
    with process(tmp_path, "serve", "--port", "0", "--host", host):
        out = tmp_path / "out.log"
        until(lambda: "publish:" in out.read_text(), "banner")
        port = int(out.read_text().split("/  (stream")[0].rpartition(":")[2])
        with socket.create_connection((host.strip("[]"), port)) as client:
            name = f"[{host}]" if host == "::1" else host
            client.sendall(f"GET /v1/preferences?user=ann HTTP/1.0\r\nHost: {name}:{port}\r\n\r\n".encode())
            assert b" 200 " in client.recv(100)


def test_the_start_says_what_is_on_in_one_block(tmp_path: Path) -> None:
    with served(tmp_path) as node:
        for part in ("listening", "database", "backplane", "intake", "answerer", "identity"):
            assert any(f" {part} " in line for line in node.logged.splitlines()), part
        assert len(node.logged.splitlines()) < 12


def test_a_taken_port_is_said_before_anything_else_is_loaded(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ended = subprocess.run(
            [
                sys.executable,
                "-X",
                "importtime",
                "-m",
                "pushsse",
                "serve",
                "--port",
                str(taken.getsockname()[1]),
            ],
            cwd=tmp_path,
            env=environment({}),
            capture_output=True,
            text=True,
            check=False,
            timeout=LIMIT_S,
        )
    assert ended.returncode == 1
    assert "can't listen on 127.0.0.1 port" in ended.stderr
    for heavy in ("tortoise", "aiokafka", "starlette", "uvicorn", "redis"):
        assert f" {heavy}\n" not in ended.stderr


ENDING = """
import atexit, gc
atexit.register(lambda: print("left to collect:", len(gc.get_objects())))
from pushsse.cli import main
main()
"""


def test_the_end_of_a_process_walks_nothing(tmp_path: Path) -> None:
    ending = tmp_path / "ending.py"
    ending.write_text(ENDING)
    with served(tmp_path, program=(sys.executable, str(ending))) as node:
        node.process.terminate()
        assert node.process.wait(LIMIT_S) == 0
        found = re.search(r"left to collect: (\d+)", node.printed)
    assert found is not None
    # What is made after that, of 100,000.
    assert int(found[1]) < 1_000


HANGING = """
import asyncio, sys
from pushsse.database import Database
async def hang(*_):
    print("hangs", file=sys.stderr, flush=True)
    await asyncio.sleep(60)
Database.{method} = hang
from pushsse.cli import main
main()
"""


@pytest.mark.parametrize("method", ["__aenter__", "__aexit__"])
def test_a_second_signal_ends_what_hangs_at_start_or_end(tmp_path: Path, method: str) -> None:
    hanging = tmp_path / "hanging.py"
    hanging.write_text(HANGING.format(method=method))
    program = (sys.executable, str(hanging))
    with process(tmp_path, "serve", "--port", "0", program=program) as started:
        err = tmp_path / "err.log"
        if method == "__aexit__":
            until(lambda: "publish:" in (tmp_path / "out.log").read_text(), "banner")
            started.send_signal(signal.SIGTERM)
        until(lambda: "hangs" in err.read_text(), "hanging part")
        if method == "__aenter__":
            started.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            started.wait(0.3)
        started.send_signal(signal.SIGTERM)
        assert started.wait(8) == 128 + signal.SIGTERM
        assert "Traceback" not in err.read_text()


def test_a_port_that_is_taken_while_it_waits_is_one_line(tmp_path: Path) -> None:
    redis = RedisServer(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    with process(tmp_path, "serve", "--port", "0", PUSHSSE_REDIS_URL=redis.url) as waiting:
        err = tmp_path / "err.log"
        until(lambda: "waiting for Redis" in err.read_text(), "word")
        found = re.search(r"listening +http://127\.0\.0\.1:(\d+)", err.read_text())
        assert found is not None
        with process(other, "serve", "--port", found[1]):
            until(lambda: "publish:" in (other / "out.log").read_text(), "banner")
            redis.start()
            try:
                assert waiting.wait(LIMIT_S) == 1
            finally:
                redis.close()
    assert f"can't listen on port {found[1]}: " in err.read_text()
    assert "Traceback" not in err.read_text()


WITHOUT_UVLOOP = "import sys; sys.modules['uvloop'] = None; from pushsse.cli import main; main()"


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(("-m", "pushsse"), id="uvloop"),
        pytest.param(("-c", WITHOUT_UVLOOP), marks=pytest.mark.long, id="asyncio"),
    ],
)
def test_out_of_open_files_is_said_once_with_what_to_do(tmp_path: Path, options: tuple[str, str]) -> None:
    program = ("bash", "-c", f'ulimit -n 48; exec "$0" {options[0]} "{options[1]}" "$@"', sys.executable)
    with ExitStack() as stack:
        node = stack.enter_context(served(tmp_path, program=program))
        port = int(node.url.rpartition(":")[2])
        for _ in range(60):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        until(lambda: "out of open files" in node.logged, "word")
        # asyncio tries again each second.
        with pytest.raises(subprocess.TimeoutExpired):
            node.process.wait(2.5)
        assert node.logged.count("out of open files") == 1
        assert "ulimit -n" in node.logged
        assert "may have 48" in node.logged
        assert "Traceback" not in node.logged
    assert node.process.returncode == 0


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize(
    ("host", "port", "why"),
    [
        ("203.0.113.9", "8123", "no interface of this machine has that address"),
        ("no-such-host.invalid", "8123", "choose another address with --host"),
        ("a..b", "8123", "choose another address with --host"),
        ("127.0.0.1", "70000", "PUSHSSE_PORT|--port"),
    ],
)
def test_an_impossible_address_is_one_line_with_what_to_do(
    tmp_path: Path, host: str, port: str, why: str, workers: str
) -> None:
    settings = {"PUSHSSE_JWT_SECRET": "x" * 40, "PUSHSSE_REDIS_URL": "redis://127.0.0.1:1"}
    arguments = ("serve", "--host", host, "--port", port, "--workers", workers)
    ended = pushsse(tmp_path, *arguments, **settings)
    assert ended.returncode in (1, 2)
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    assert port in ended.stderr
    assert re.search(why, ended.stderr)


ELSEWHERE = """
import asyncio, pathlib, sys, uvicorn
from pushsse import node
from pushsse.app import create_app
from pushsse.settings import load
async def die():
    while not pathlib.Path("die").exists():
        await asyncio.sleep(0.02)
    raise RuntimeError("broken")
node.trim_memory = die
uvicorn.run(create_app(load({})), port=int(sys.argv[1]), log_level="warning", lifespan="on")
"""


def test_a_service_that_dies_ends_streams_in_band_under_another_server_too(tmp_path: Path) -> None:
    (tmp_path / "elsewhere.py").write_text(ELSEWHERE)
    port = free_port()
    out = tmp_path / "stream"
    with process(tmp_path, str(port), program=(sys.executable, "elsewhere.py")) as serving:
        until(lambda: answers(port, b"GET /livez HTTP/1.0\r\nHost: localhost\r\n\r\n"), "answer")
        with out.open("wb") as body:
            stream = subprocess.Popen(["curl", "-sN", f"http://127.0.0.1:{port}/v1/stream"], stdout=body)
        until(lambda: b"event: ready" in out.read_bytes(), "ready")
        (tmp_path / "die").touch()
        assert stream.wait(LIMIT_S) == 0
        serving.wait(LIMIT_S)
    assert b'"code":"shutdown"' in out.read_bytes()


def test_a_part_that_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    ended = pushsse(tmp_path, "serve", "--port", "0", PUSHSSE_DATABASE_URL=f"sqlite://{tmp_path}/no/node.db")
    assert ended.returncode == 1
    *block, last = ended.stderr.splitlines()
    assert "CRITICAL" in last
    assert "can't start: the database" in last
    assert all(" INFO " in line for line in block), ended.stderr
