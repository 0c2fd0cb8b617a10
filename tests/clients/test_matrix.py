"""Clients with their lines have everything once over each fault: a few in `make test`, all in `make long`."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from deploy.parts import PartMissing, Redis
from deploy.parts.part import descendants, is_alive
from tests.clients.known import ALL, FAST, Make
from tests.clients.matrix import QUIET, Matrix, ways_of
from tests.clients.world import World
from tests.parts import missing
from tests.waiting import until

# It waits for a minute, and longer beside others.
pytestmark = [pytest.mark.real, pytest.mark.timeout(480)]

_REST = [make for make in ALL if make not in FAST]
# A few at a time, each with one browser: one by one they would take a minute each, of waiting.
_GROUPS = 4
OTHERS = [_REST[first::_GROUPS] for first in range(_GROUPS)]


def tried(
    makes: Sequence[Make], folder: pytest.TempPathFactory, redis: Redis, *, token_s: float = 20
) -> None:
    """All at the same time: the matrix waits much and works little. Says at the end who was missing.

    Under load a start may take long, and has to be over before the first tokens end, after `token_s`.
    """
    clients, absent = [], []
    for make in makes:
        try:
            clients.append(make())
        except PartMissing as error:
            absent.append(str(error))
    if not clients:
        missing("; ".join(absent))
    ways = [way for way in ways_of(clients) if way.right]
    world = World(folder.mktemp("clients"), redis, heartbeat_s=2.0, quick=True)
    matrix = Matrix(world, ways, limit_s=30, token_s=token_s)
    with world.running(), matrix.clients():
        # Longer than three heartbeats, after which a client takes a silent connection for dead.
        matrix.quiet(7.0)
        matrix.terminate()
        matrix.kill()
        matrix.expire()
    wrong = {
        f"{way.name}, {fault}": str(each) for (way, fault), each in matrix.verdicts.items() if not each.whole
    }
    assert wrong == {}
    # Each noticed each fault that it can notice, and nobody silence.
    odd = {
        f"{way.name}, {fault}": str(each)
        for (way, fault), each in matrix.verdicts.items()
        if fault not in way.client.unnoticed and (each.connections > 0) == (fault == QUIET)
    }
    assert odd == {}
    if absent:
        missing("; ".join(absent))


def test_clients_with_their_lines_have_everything_once(
    redis_part: Redis, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tried(FAST, tmp_path_factory, redis_part)


@pytest.mark.long
@pytest.mark.parametrize("makes", OTHERS, ids=lambda makes: " ".join(make.__name__ for make in makes))
def test_the_others_with_their_lines_have_everything_once(
    redis_part: Redis, tmp_path_factory: pytest.TempPathFactory, makes: Sequence[Make]
) -> None:
    # Firefox takes longest.
    tried(makes, tmp_path_factory, redis_part, token_s=45)


@pytest.mark.long
def test_the_command_that_is_ended_in_the_middle_leaves_no_process(redis_part: Redis) -> None:
    command = [sys.executable, "-m", "tests.clients", "--quick", "curl"]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.DEVNULL) as process:
        try:
            # The client is the last that starts, after Redis, a node and nginx.
            until(lambda: any("listen.sh" in _line(pid) for pid in descendants(process.pid)), within_s=60)
        finally:
            started = descendants(process.pid)
            process.terminate()
    assert not [_line(pid) for pid in started if is_alive(pid)]


def _line(pid: int) -> str:
    """The command line of a process; empty where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""
