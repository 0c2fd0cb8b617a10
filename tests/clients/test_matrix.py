"""The fast half of the matrix: every client of it, with its lines, has everything once over each fault."""

import pytest

from deploy.parts import PartMissing, Redis
from tests.clients.known import FAST
from tests.clients.matrix import KILLED, QUIET, TERMINATED, TOKEN, Matrix, Way, ways_of
from tests.clients.verdict import Verdict
from tests.clients.world import World
from tests.parts import missing

pytestmark = pytest.mark.real
FAULTS = (QUIET, TERMINATED, KILLED, TOKEN)


@pytest.fixture(scope="module")
def verdicts(redis_part: Redis, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[Way, str], Verdict]:
    """All of them at the same time: the matrix waits much and works little."""
    try:
        ways = [way for way in ways_of([make() for make in FAST]) if way.right]
    except PartMissing as error:
        missing(error)
    world = World(tmp_path_factory.mktemp("clients"), redis_part, heartbeat_s=1.0, quick=True)
    matrix = Matrix(world, ways, limit_s=30)
    with world.running(), matrix.clients():
        matrix.quiet(4.0)
        matrix.terminate()
        matrix.kill()
        matrix.expire()
    return matrix.verdicts


@pytest.mark.parametrize("fault", FAULTS)
def test_a_client_with_its_lines_has_everything_once(
    verdicts: dict[tuple[Way, str], Verdict], fault: str
) -> None:
    found = {way.name: verdict for (way, over), verdict in verdicts.items() if over == fault}
    assert len(found) >= len(FAST)
    assert {name: str(each) for name, each in found.items() if not each.whole} == {}
    # The fault reached them, and silence didn't.
    assert {each.connections > 0 for each in found.values()} == {fault != QUIET}
