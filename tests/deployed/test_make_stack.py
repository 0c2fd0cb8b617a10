"""The command behind `make stack`, as in a terminal. One stack for all tests, in their order."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from deploy.parts import Nginx, Part, PartMissing, Postgres, Redis
from deploy.parts.java import java, kafka_jars
from deploy.parts.part import is_alive
from deploy.parts.ports import free_port
from tests.parts import missing
from tests.waiting import until

# A start of everything, and the tests around may have the machine busy.
pytestmark = [pytest.mark.real, pytest.mark.timeout(240)]
REPOSITORY = Path(__file__).resolve().parents[2]
START_LIMIT_S = 120.0
LIMIT_S = 60.0
NAMES = {"kafka", "redis", "postgres", "nginx", "node1", "node2"}


@dataclass(frozen=True, slots=True)
class Command:
    """It runs; `output` is what it printed. `left` are the parts of one before it that was killed."""

    process: "subprocess.Popen[bytes]"
    folder: Path
    output: Path
    left: Sequence[Part]

    def said(self, words: str) -> bool:
        return words in self.output.read_text()

    def pids(self) -> dict[str, int]:
        files = (self.folder / "pids").glob("*")
        return {file.name: int(text) for file in files if (text := file.read_text().strip())}


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    """It runs where another one was killed, which has left a Redis and a PostgreSQL."""
    folder = tmp_path_factory.mktemp("make-stack")
    parts_are_there(folder / "tried")
    ports = {"STACK_PORT": str(free_port()), "STACK_TLS_PORT": str(free_port())}
    place = folder / "a b é's stack"
    (place / "pids").mkdir(parents=True)
    left: list[Part] = [Redis(place / "redis"), Postgres(place / "postgres")]
    for part in left:
        part.start()
        (place / "pids" / part.name).write_text(f"{part.pid}\n")
    started = begin(folder / "log", {**os.environ, **ports, "STACK_DIR": str(place)}, left)
    try:
        until(lambda: started.said("Ctrl-C stops everything") or ended(started), within_s=START_LIMIT_S)
        assert not ended(started), started.output.read_text()
        yield started
    finally:
        started.process.terminate()
        started.process.wait(LIMIT_S)
        for part in left:
            part.remove()


@pytest.mark.long
def test_one_that_is_killed_in_the_middle_of_its_start_is_ended_by_the_next(tmp_path: Path) -> None:
    parts_are_there(tmp_path / "tried")
    ports = {"STACK_PORT": str(free_port()), "STACK_TLS_PORT": str(free_port())}
    environment = {**os.environ, **ports, "STACK_DIR": str(tmp_path / "stack")}
    first = begin(tmp_path / "first.log", environment)
    try:
        # Kafka takes longest: while it begins, the others are up and the nodes aren't.
        until(lambda: {"kafka", "redis", "nginx"} <= set(first.pids()), within_s=START_LIMIT_S)
    finally:
        left = first.pids().values()
        first.process.kill()
        first.process.wait(LIMIT_S)
    second = begin(tmp_path / "second.log", environment)
    try:
        until(lambda: second.said("Ctrl-C stops everything") or ended(second), within_s=START_LIMIT_S)
        assert not [pid for pid in left if is_alive(pid)]
        assert all(is_alive(pid) for pid in second.pids().values())
    finally:
        second.process.terminate()
        second.process.wait(LIMIT_S)


def parts_are_there(folder: Path) -> None:
    """The command itself would only fail where a part can't be had."""
    try:
        java()
        kafka_jars()
        for part in (Redis(folder), Postgres(folder), Nginx(folder, ["127.0.0.1:1"])):
            part.folder.mkdir(parents=True, exist_ok=True)
            part.prepare()
            part.command()
            part.remove()
    except PartMissing as error:
        missing(error)


def begin(output: Path, environment: dict[str, str], left: Sequence[Part] = ()) -> Command:
    with output.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "deploy.stack"],
            cwd=REPOSITORY,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    return Command(process, Path(environment["STACK_DIR"]), output, left)


def ended(command: Command) -> bool:
    return command.process.poll() is not None


def test_what_a_stack_that_was_killed_has_left_is_ended_by_the_next(command: Command) -> None:
    assert command.left
    assert not [part.name for part in command.left if part.running]
    pids = command.pids()
    assert set(pids) == NAMES
    assert all(is_alive(pid) for pid in pids.values())


def test_shells_can_read_where_everything_is(command: Command) -> None:
    if shutil.which("curl") is None:
        missing("curl isn't installed")
    script = '. "$0/env"; curl -fsS "$PUSHSSE_URL/livez" "$NODE1_URL/readyz" "$NODE2_URL/readyz"'
    script += ' && curl -fsS --cacert "$0/ca.pem" "$TLS_URL/livez"'
    script += (
        ' && echo " $PUSHSSE_KAFKA_BOOTSTRAP $PUSHSSE_KAFKA_TOPIC $PUSHSSE_REDIS_URL $PUSHSSE_DATABASE_URL"'
    )
    done = subprocess.run(
        ["sh", "-euc", script, str(command.folder)],
        check=True,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert (done.stdout.count("alive"), done.stdout.count("ready")) == (2, 2)
    assert "push.events" in done.stdout


def test_a_part_that_dies_is_shown_and_comes_back_when_asked_for(command: Command) -> None:
    before = command.pids()["redis"]
    os.kill(before, signal.SIGKILL)
    until(lambda: command.said("redis died"))
    assert not ended(command)
    command.process.send_signal(signal.SIGUSR1)
    until(lambda: command.said("redis runs again") and command.pids()["redis"] != before)
    assert is_alive(command.pids()["redis"])


def test_ctrl_c_leaves_nothing_running(command: Command) -> None:
    pids = command.pids()
    command.process.send_signal(signal.SIGINT)
    assert command.process.wait(LIMIT_S) == 0
    assert command.output.read_text().endswith("everything is stopped\n")
    assert not {name for name, pid in pids.items() if is_alive(pid)}
    assert not (command.folder / "pids").exists()
