"""Writes to SQLite that wait together."""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiosqlite
import pytest

from pushsse.database import MOST_TOGETHER, MOST_WAITING, Database, Statement, ThreadSession, Writer
from pushsse.errors import DatabaseUnavailable
from tests.migrated import migrated

pytestmark = pytest.mark.anyio
INSERT = Statement("""INSERT INTO pushsse_person ("user", version) VALUES ({value[1]}, 1) RETURNING 1""")
USERS = Statement("""SELECT "user" FROM pushsse_person ORDER BY "user" """)


@pytest.fixture
async def sqlite(tmp_path: Path, anyio_backend: str) -> AsyncIterator[Database]:
    async with Database(migrated(tmp_path / "writer.db"), timeout_s=10) as opened:
        yield opened


async def until_waiting() -> None:
    """What has been started stands at its first wait."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_what_one_write_raises_undoes_that_one_alone(sqlite: Database) -> None:
    def of(*users: str, fails: bool = False) -> Coroutine[Any, Any, object]:
        def work(session: ThreadSession) -> int:
            for user in users:
                session.rows(int, INSERT, user)
            if fails:
                raise ZeroDivisionError
            return len(users)

        return sqlite.together(work)

    writes: list[Coroutine[Any, Any, object]] = [of("ann", "bo"), of("cy", fails=True), of("dee", "ann")]
    writes += [of("eve"), sqlite.write(int, INSERT, "ann"), sqlite.write(int, INSERT, "flo")]
    async with sqlite.session():
        tasks = [asyncio.create_task(write) for write in writes]
        await until_waiting()
    two, failed, twice, one, repeated, alone = await asyncio.gather(*tasks, return_exceptions=True)
    assert (two, one, alone) == (2, 1, [1])
    assert isinstance(failed, ZeroDivisionError)
    # ann is there already, so dee's write as a whole isn't.
    assert isinstance(twice, DatabaseUnavailable)
    assert isinstance(repeated, DatabaseUnavailable)
    assert await sqlite.rows(str, USERS) == ["ann", "bo", "eve", "flo"]


async def test_more_than_one_transaction_holds_are_written_in_their_order(sqlite: Database) -> None:
    users = [f"user{number:04}" for number in range(3 * MOST_TOGETHER)]
    order: list[str] = []

    async def one(user: str) -> None:
        await sqlite.write(int, INSERT, user)
        order.append(user)

    await asyncio.gather(*map(one, users))
    assert order == users
    assert await sqlite.rows(str, USERS) == users


async def test_a_write_whose_caller_has_left_while_it_waited_isnt_written(sqlite: Database) -> None:
    async with sqlite.session():
        left, stays = (asyncio.create_task(sqlite.write(int, INSERT, user)) for user in ("ann", "bo"))
        await until_waiting()
        left.cancel()
        await asyncio.gather(left, return_exceptions=True)
    assert await stays == [1]
    assert await sqlite.rows(str, USERS) == ["bo"]


async def test_one_write_too_many_is_refused_and_those_before_it_are_written(sqlite: Database) -> None:
    async with sqlite.session():
        waiting = [
            asyncio.create_task(sqlite.write(int, INSERT, f"u{number}")) for number in range(MOST_WAITING)
        ]
        await until_waiting()
        with pytest.raises(DatabaseUnavailable, match="wait already"):
            await sqlite.write(int, INSERT, "one too many")
    assert await asyncio.gather(*waiting) == [[1]] * MOST_WAITING


async def test_what_waits_while_the_database_is_closed_fails(tmp_path: Path, anyio_backend: str) -> None:
    sqlite = Database(migrated(tmp_path / "closing.db"), timeout_s=10)
    await sqlite.open()
    begun, go_on = threading.Event(), threading.Event()

    def slow(session: ThreadSession) -> None:
        begun.set()
        go_on.wait(10)

    writing = asyncio.create_task(sqlite.together(slow))
    assert await asyncio.to_thread(begun.wait, 10)
    waiting = asyncio.create_task(sqlite.write(int, INSERT, "ann"))
    closing = asyncio.create_task(sqlite.close())
    await until_waiting()
    go_on.set()
    for write in (writing, waiting):
        with pytest.raises(DatabaseUnavailable, match="closed"):
            await write
    await closing


async def test_a_connection_that_cant_be_had_fails_those_who_wait_and_nobody_after_them(
    anyio_backend: str,
) -> None:
    faults = [sqlite3.OperationalError("unable to open database file")]
    async with aiosqlite.connect(":memory:", isolation_level=None) as raw:

        @asynccontextmanager
        async def connected() -> AsyncIterator[aiosqlite.Connection]:
            if faults:
                raise faults.pop()
            yield raw

        def one(session: ThreadSession) -> list[int]:
            return session.rows(int, Statement("SELECT 1"))

        writer = Writer(connected)
        running = asyncio.create_task(writer.run())
        with pytest.raises(sqlite3.OperationalError):
            await writer.write(one)
        assert await writer.write(one) == [1]
        running.cancel()
        await asyncio.wait([running])
