"""The table of kicks, and what a node reads of it, on both databases."""

import time

import pytest

from pushsse.backplane.memory import MemoryBackplane
from pushsse.database import Database
from pushsse.kicks import MOST_KICKED, Kicked, KickedRow, Kicks, KickTable, TooManyKicks, digest
from pushsse.metrics import Metrics
from pushsse.stream.subscriber import Subscriber

pytestmark = pytest.mark.anyio
DAY_S = 86_400


class NoStreams:
    def subscribers_of(self, user: str) -> tuple[Subscriber, ...]:
        return ()

    def users(self) -> tuple[str, ...]:
        return ()


def kicks_of(database: Database, kicked: Kicked) -> Kicks:
    backplane = MemoryBackplane(shards=4, keep_s=60, keep_bytes=65_536, metrics=Metrics())
    return Kicks(KickTable(database), backplane, kicked=kicked, streams=NoStreams(), keep_s=DAY_S)


async def everything(table: KickTable) -> list[KickedRow]:
    return await table.after(KickedRow("", 0), limit=100)


async def test_a_person_has_one_row_with_the_newest_kick(database: Database) -> None:
    table = KickTable(database)
    assert await table.add("ann", 100) == 100
    assert await table.add("ann", 90) == 100
    assert await table.add("ann", 120) == 120
    assert await everything(table) == [KickedRow("ann", 120)]


async def test_rows_are_read_in_pages_by_time_and_name(database: Database) -> None:
    table = KickTable(database)
    for user, at in (("c", 7), ("a", 7), ("b", 5), ("d", 9), ("änn", 7)):
        await table.add(user, at)
    rows: list[KickedRow] = []
    after = KickedRow("", 4)
    while page := await table.after(after, limit=2):
        rows += page
        after = page[-1]
    assert sorted(rows) == sorted(await everything(table))
    assert [row.at for row in rows] == [5, 7, 7, 7, 9]
    await table.forget(7)
    assert len(await everything(table)) == 4


async def test_a_node_reads_all_kicks_that_concern_tokens_and_then_the_newest(database: Database) -> None:
    table, kicked, now = KickTable(database), Kicked(), int(time.time())
    for user, age_s in (("ann", 5), ("bo", DAY_S - 60), ("old", DAY_S + 600)):
        await table.add(user, now - age_s)
    kicks = kicks_of(database, kicked)
    assert not kicked.loaded
    await kicks.load()
    assert kicked.loaded
    assert [kicked.refuses(user, None) for user in ("ann", "bo", "old")] == [True, True, False]
    # Another node's, whose clock is behind by a minute.
    await table.add("cleo", now - 60)
    await kicks.load()
    assert kicked.refuses("cleo", now - 61)
    # The row was taken away, as by hand: what a node knows stays.
    await table.forget(now + 1)
    await kicks.load()
    assert kicked.refuses("ann", now - 6)


async def test_the_kick_of_somebody_who_was_forgotten_stays_under_a_digest(database: Database) -> None:
    table, kicked = KickTable(database), Kicked()
    kicks = kicks_of(database, kicked)
    at = (await kicks.kick("ann")).at
    assert await kicks.forget("ann") == {"kicks": 1}
    [row] = await everything(table)
    assert (row.user, row.at) == (digest("ann"), at)
    # Another node, which missed the notice or starts after that.
    later = Kicked()
    await kicks_of(database, later).load()
    for node in (kicked, later):
        assert node.refuses("ann", at)
        assert not node.refuses("ann", at + 1)
        assert not node.refuses("bo", None)
    # A newer one replaces it, and is forgotten in the same way.
    await table.add("ann", at + 10)
    assert await kicks.forget("ann") == {"kicks": 1}
    assert await everything(table) == [KickedRow(digest("ann"), at + 10)]


async def test_more_people_than_a_node_remembers_are_not_kicked(database: Database) -> None:
    kicked = Kicked()
    kicks = kicks_of(database, kicked)
    for number in range(MOST_KICKED):
        kicked.learn(f"somebody-{number}", 1)
    with pytest.raises(TooManyKicks):
        await kicks.kick("ann")
    assert await everything(KickTable(database)) == []
