"""When a node takes itself for the only one that has lost Redis."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from deploy.parts import Postgres
from pushsse.build import build
from pushsse.database import Database
from pushsse.errors import DatabaseUnavailable
from pushsse.node import Interruptible
from pushsse.questions.service import Asking
from pushsse.settings import load
from pushsse.witness import AFTER_S, Isolation, Witness, WitnessTable
from tests.migrated import migrated_in
from tests.waiting import eventually

pytestmark = pytest.mark.anyio
NOBODY_KNOWS = None


def changes(looks: Sequence[tuple[float, bool, int | None]], *, isolated: bool = False) -> list[float]:
    """When it changed; a look is a time, whether it hears Redis, and how many others do."""
    isolation = Isolation(isolated)
    return [now for now, hears, others in looks if isolation.look(now, hears=hears, others=others)]


def every_2_s(until: float, hears: bool, others: int | None) -> list[tuple[float, bool, int | None]]:
    return [(now, hears, others) for now in range(0, int(until), 2)]


@pytest.mark.parametrize(
    ("looks", "isolated"),
    [
        (every_2_s(100, True, None), False),
        (every_2_s(100, False, 0), False),
        (every_2_s(100, False, NOBODY_KNOWS), False),
        ([*every_2_s(8, False, 2), (9, True, None)], False),
        # Redis goes away for all: what the others said a moment ago grows old.
        ([*every_2_s(8, False, 2), *((now, False, 0) for now in range(8, 100, 2))], False),
        (every_2_s(100, False, 0), True),
        (every_2_s(100, False, NOBODY_KNOWS), True),
        ([*every_2_s(8, True, None), (9, False, 2), (10, True, None), (12, True, None)], True),
    ],
)
def test_it_stays_as_it_is(looks: list[tuple[float, bool, int | None]], isolated: bool) -> None:
    assert changes(looks, isolated=isolated) == []


def test_ten_seconds_alone_isolate_it_and_ten_of_hearing_end_that() -> None:
    for _ in range(20):
        looks = [*every_2_s(30, False, 1), *((now, True, None) for now in range(30, 60, 2))]
        left, back = changes(looks)
        assert AFTER_S <= left <= AFTER_S * 1.2 + 2
        assert AFTER_S <= back - 30 <= AFTER_S * 1.2 + 2


def test_a_node_that_hears_now_and_then_is_never_isolated() -> None:
    assert changes([(now, now % 8 == 0, 2) for now in range(0, 200, 2)]) == []


class Reports:
    """Reports of others; `away` while the database is."""

    def __init__(self) -> None:
        self.heard = 1
        self.away = False
        self.said = 0

    async def report(self) -> None:
        self.said += 1

    async def others(self, *, within_s: float) -> int:
        if self.away:
            raise DatabaseUnavailable("away")
        return self.heard

    async def forget(self) -> None:
        pass


class Work:
    """What a node does for others, and whether it was given back."""

    def __init__(self) -> None:
        self.hears = False
        self.given_back, self.taken_back = asyncio.Event(), asyncio.Event()

    async def give_back(self) -> None:
        self.given_back.set()

    def take_back(self) -> None:
        self.taken_back.set()


async def test_the_service_leaves_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pushsse.witness.AFTER_S", 0.1)
    reports, work = Reports(), Work()
    witness = Witness(reports, work, look_s=0.02)
    reports.away = True
    task = asyncio.create_task(witness.run())
    await asyncio.sleep(0.5)
    assert not witness.isolated
    reports.away = False
    await asyncio.wait_for(work.given_back.wait(), 10)
    assert witness.isolated
    assert not reports.said
    work.hears = True
    await asyncio.wait_for(work.taken_back.wait(), 10)
    assert not witness.isolated
    assert reports.said
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_nodes_hear_of_each_other_by_the_databases_clock(
    postgres_part: Postgres, anyio_backend: str
) -> None:
    url = await asyncio.to_thread(migrated_in, postgres_part)
    async with Database(url, timeout_s=10) as database:
        one, other = WitnessTable(database, node="one"), WitnessTable(database, node="other")
        await one.report()
        await one.report()
        assert await one.others(within_s=60) == 0
        assert await other.others(within_s=60) == 1
        await asyncio.sleep(0.3)
        assert await other.others(within_s=0.2) == 0
        await one.forget()
        assert await other.others(within_s=60) == 1


@dataclass
class Rounds:
    """A service that says when its rounds begin and end; a cancelled one ends when it may."""

    said: list[str] = field(default_factory=list)
    may_end: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        self.said.append("begins")
        try:
            await asyncio.Event().wait()
        finally:
            await self.may_end.wait()
            self.said.append("ends")


async def test_a_service_that_is_released_ends_and_begins_again_when_it_is_resumed() -> None:
    rounds = Rounds()
    rounds.may_end.set()
    service = Interruptible(rounds.run)
    running = asyncio.create_task(service.run())
    await eventually(lambda: rounds.said == ["begins"])
    service.release()
    await eventually(lambda: rounds.said == ["begins", "ends"])
    assert not running.done()
    # Nothing runs that could be cancelled.
    service.release()
    service.resume()
    await eventually(lambda: rounds.said == ["begins", "ends", "begins"])
    running.cancel()
    await asyncio.wait([running])
    assert running.cancelled()
    assert rounds.said == ["begins", "ends", "begins", "ends"]


async def test_a_service_that_is_resumed_before_it_has_ended_ends_and_begins_again() -> None:
    rounds = Rounds()
    service = Interruptible(rounds.run)
    running = asyncio.create_task(service.run())
    await eventually(lambda: rounds.said == ["begins"])
    service.release()
    service.resume()
    service.release()
    service.resume()
    rounds.may_end.set()
    await eventually(lambda: rounds.said == ["begins", "ends", "begins"])
    running.cancel()
    await asyncio.wait([running])
    assert running.cancelled()


async def test_a_service_that_is_released_before_its_first_round_begins_when_it_is_resumed() -> None:
    rounds = Rounds()
    rounds.may_end.set()
    service = Interruptible(rounds.run)
    service.release()
    running = asyncio.create_task(service.run())
    await asyncio.sleep(0)
    assert rounds.said == []
    service.resume()
    await eventually(lambda: rounds.said == ["begins"])
    running.cancel()
    await asyncio.wait([running])


async def test_an_error_of_an_interruptible_service_is_its_supervisors() -> None:
    async def fails() -> None:
        raise TimeoutError("of its own")

    with pytest.raises(TimeoutError, match="of its own"):
        await Interruptible(fails).run()


async def test_a_node_that_gives_its_work_back_answers_nothing_until_it_takes_it_again(
    tmp_path: Path,
) -> None:
    node = build(load({}, {"database_url": f"sqlite://{tmp_path}/x.db"}))
    failed: list[str] = []

    async def answered(number: int) -> bool:
        found = await node.questions.page("ann", limit=10)
        return [question.status for question in found] == ["answered"] * number

    async with node.running(lambda: failed.append("a service has ended")):
        await node.questions.ask("ann", Asking("How do I switch events off?"))
        await eventually(lambda: answered(1))
        await node.work.give_back()
        await eventually(lambda: node.questions.answering.resting)
        await node.questions.ask("ann", Asking("How do I switch events off?"))
        assert not node.questions.answering.leased
        node.work.take_back()
        await eventually(lambda: answered(2))
    assert failed == []
