"""The command behind `make stack`, as in a terminal. One stack for all tests, in their order."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from deploy.parts import Kafka, Nginx, PartMissing, Postgres, Redis
from deploy.parts.part import is_alive
from deploy.parts.ports import free_port
from tests.parts import missing
from tests.waiting import until

# Two starts of everything, and the tests around may have the machine busy.
pytestmark = [pytest.mark.real, pytest.mark.timeout(240)]
REPOSITORY = Path(__file__).resolve().parents[2]
START_LIMIT_S = 120.0
LIMIT_S = 60.0
NAMES = {"kafka", "redis", "postgres", "nginx", "node1", "node2"}


@dataclass(frozen=True, slots=True)
class Command:
    """It runs; `output` is what it printed. `left` are the processes of one before it that was killed."""

    process: "subprocess.Popen[bytes]"
    folder: Path
    output: Path
    left: list[int]

    def said(self, words: str) -> bool:
        return words in self.output.read_text()

    def pids(self) -> dict[str, int]:
        files = (self.folder / "pids").glob("*")
        return {file.name: int(text) for file in files if (text := file.read_text().strip())}


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    """The second of two: the first was killed in the middle of its start, with the same ports and folder."""
    folder = tmp_path_factory.mktemp("make-stack")
    parts_are_there(folder / "tried")
    ports = {"STACK_PORT": str(free_port()), "STACK_TLS_PORT": str(free_port())}
    environment = {**os.environ, **ports, "STACK_DIR": str(folder / "a b é's stack")}
    first = begin(folder / "first.log", environment, [])
    try:
        # Kafka takes longest: while it begins, the others are up and the nodes aren't.
        until(lambda: {"kafka", "redis", "nginx"} <= set(first.pids()), within_s=START_LIMIT_S)
    finally:
        left = list(first.pids().values())
        first.process.kill()
        first.process.wait(LIMIT_S)
    second = begin(folder / "second.log", environment, left)
    try:
        until(lambda: second.said("Ctrl-C stops everything") or ended(second), within_s=START_LIMIT_S)
        assert not ended(second), second.output.read_text()
        yield second
    finally:
        second.process.terminate()
        second.process.wait(LIMIT_S)


def parts_are_there(folder: Path) -> None:
    """The command itself would only fail where a part can't be had."""
    try:
        for part in (
            Kafka(folder / "kafka"),
            Redis(folder),
            Postgres(folder),
            Nginx(folder, ["127.0.0.1:1"]),
        ):
            part.folder.mkdir(parents=True, exist_ok=True)
            part.prepare()
            part.command()
            part.remove()
    except PartMissing as error:
        missing(error)


def begin(output: Path, environment: dict[str, str], left: list[int]) -> Command:
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
    assert not [pid for pid in command.left if is_alive(pid)]
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
