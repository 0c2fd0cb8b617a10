"""Clients with their lines have everything once over each fault: a few in `make test`, all in `make long`."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from deploy.parts import PartMissing, Redis
from deploy.parts.part import descendants, is_alive
from tests.clients.known import ALL, FAST, Make
from tests.clients.matrix import QUIET, Matrix, Way, ways_of
from tests.clients.world import World
from tests.parts import missing
from tests.waiting import until

# It waits for a minute, and longer beside others.
pytestmark = [pytest.mark.real, pytest.mark.timeout(480)]


def tried(makes: Sequence[Make], folder: pytest.TempPathFactory, redis: Redis) -> None:
    """All at the same time: the matrix waits much and works little. Says at the end who was missing."""
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
    # Under load a start may take long, and has to be over before the first tokens end.
    matrix = Matrix(world, ways, limit_s=30, token_s=20)
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
    # The faults reached each that has a stream, and silence nobody.
    odd = {
        f"{way.name}, {fault}": str(each)
        for (way, fault), each in matrix.verdicts.items()
        if (fault == QUIET or _streams(way)) and (each.connections > 0) == (fault == QUIET)
    }
    assert odd == {}
    if absent:
        missing("; ".join(absent))


def _streams(way: Way) -> bool:
    """A node that stops answers a poll, and one that has died nginx asks another node: nobody notices."""
    return way.client.name != "wechat"


def test_clients_with_their_lines_have_everything_once(
    redis_part: Redis, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tried(FAST, tmp_path_factory, redis_part)


@pytest.mark.long
@pytest.mark.parametrize(
    "make", [make for make in ALL if make not in FAST], ids=lambda make: str(make.__name__)
)
def test_a_client_with_its_lines_has_everything_once(
    redis_part: Redis, tmp_path_factory: pytest.TempPathFactory, make: Make
) -> None:
    tried([make], tmp_path_factory, redis_part)


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
