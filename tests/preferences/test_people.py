"""Streams that open together have their people read together, and each gets its own answer."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from pushsse.backplane.memory import MemoryBackplane
from pushsse.database import Database
from pushsse.errors import DatabaseUnavailable
from pushsse.hub.people import OPENED_AT_ONCE, PersonState
from pushsse.metrics import Metrics
from pushsse.people import StoredPeople
from pushsse.preferences import Preferences
from pushsse.preferences.store import PreferenceStore
from pushsse.questions.answerers import faq
from pushsse.questions.service import assemble_questions
from pushsse.questions.store import QuestionStore

pytestmark = pytest.mark.anyio


class Table:
    """What is read from; each reading lasts until `goes_on` is set."""

    def __init__(self) -> None:
        self.readings: list[Sequence[str]] = []
        self.goes_on = asyncio.Event()
        self.away = False

    def read_nowait(self, user: str) -> None:
        """Never."""

    async def read(self, users: Sequence[str]) -> dict[str, PersonState]:
        self.readings.append(users)
        await self.goes_on.wait()
        if self.away:
            raise DatabaseUnavailable("away")
        return {user: PersonState(len(user), frozenset({user}), False, None, False) for user in users}


@asynccontextmanager
async def reading(table: Table) -> AsyncIterator[StoredPeople]:
    database, metrics = Database("sqlite://:memory:"), Metrics()
    backplane = MemoryBackplane(shards=4, keep_s=60, keep_bytes=1 << 20, metrics=metrics)
    asked = assemble_questions(
        QuestionStore(database),
        backplane,
        faq.answerer("", "PUSHSSE_ANSWERER"),
        node="n",
        timeout_s=60,
        metrics=metrics,
    )
    made = StoredPeople(table, Preferences(PreferenceStore(database), backplane), asked)
    running = asyncio.create_task(made.run())
    async with asyncio.timeout(5):
        yield made
    running.cancel()


async def asked_by(reading: StoredPeople, users: Sequence[str]) -> "list[asyncio.Task[PersonState]]":
    tasks = [asyncio.create_task(reading.state(user)) for user in users]
    for _ in range(3):
        await asyncio.sleep(0)
    return tasks


async def test_who_asks_while_others_are_answered_is_in_the_next_reading_never_in_that_one() -> None:
    table = Table()
    async with reading(table) as one:
        (first,) = await asked_by(one, ["ann"])
        others = await asked_by(one, ["ann", "bo", "bo", "cy"])
        assert table.readings == [["ann"]]
        table.goes_on.set()
        assert (await first).off == {"ann"}
        assert [(await other).off for other in others] == [{"ann"}, {"bo"}, {"bo"}, {"cy"}]
        assert table.readings == [["ann"], ["ann", "bo", "cy"]]


async def test_a_storm_is_read_a_hundred_at_a_time_and_nobody_is_left_out() -> None:
    table = Table()
    table.goes_on.set()
    users = [f"user{number}" for number in range(3 * OPENED_AT_ONCE - 1)]
    async with reading(table) as one:
        tasks = await asked_by(one, users)
        assert [(await task).off for task in tasks] == [{user} for user in users]
    assert [len(users) for users in table.readings] == [OPENED_AT_ONCE, OPENED_AT_ONCE, OPENED_AT_ONCE - 1]


async def test_who_leaves_takes_nobody_s_answer_along() -> None:
    table = Table()
    async with reading(table) as one:
        await asked_by(one, ["first"])
        leaves, stays = await asked_by(one, ["ann", "ann"])
        leaves.cancel()
        table.goes_on.set()
        assert (await stays).off == {"ann"}


async def test_everybody_learns_that_the_database_is_away_and_the_next_one_is_answered() -> None:
    table = Table()
    table.away = True
    table.goes_on.set()
    async with reading(table) as one:
        for task in await asked_by(one, ["ann", "ann", "bo"]):
            with pytest.raises(DatabaseUnavailable):
                await task
        table.away = False
        assert (await one.state("ann")).off == {"ann"}
