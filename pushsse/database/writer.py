"""Writes to SQLite that wait together: one trip to its thread, one transaction, one wait for the disk.

`Database` supervises `run` and hands writes over, from `write` and `together`. Each is undone by itself if it
fails, and nobody is told before the commit.

Deliberate: all of a write runs in the thread of the connection. A statement a trip costs more than the
statement, and while the event loop is busy each trip waits for the interpreter's lock.
"""

import asyncio
import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple, TypeVar, cast

from pushsse.database.connection import Statement, Value
from pushsse.errors import DatabaseUnavailable

Row = TypeVar("Row")
Result = TypeVar("Result")
# Of one transaction: other transactions wait meanwhile.
MOST_TOGETHER = 64
# Each has a caller, who waits for as long as a statement may take.
MOST_WAITING = 1_000


class ThreadSession:
    """The connection, in its own thread, for the length of a write."""

    __slots__ = ("_raw",)

    def __init__(self, raw: sqlite3.Connection) -> None:
        self._raw = raw

    def rows(self, make: Callable[..., Row], statement: Statement, *values: Value) -> list[Row]:
        """Runs a statement, as `Session.rows` does."""
        return [make(*row) for row in self._raw.execute(*statement.for_sqlite(values)).fetchall()]


# Runs in SQLite's thread, and touches nothing else. What it raises undoes it.
Work = Callable[[ThreadSession], Result]


class _Write(NamedTuple):
    work: Work[object]
    # Needs no savepoint: a statement that fails changes nothing.
    is_one_statement: bool
    done: "asyncio.Future[object]"


class _Failed(NamedTuple):
    error: Exception


class Writer:
    """The writes of one connection, which `connected` gives to one block at a time."""

    def __init__(self, connected: Callable[[], AbstractAsyncContextManager[Any]]) -> None:
        self._connected = connected
        self._waiting: deque[_Write] = deque()
        self._some = asyncio.Event()

    async def write(self, work: Work[Result], *, is_one_statement: bool = False) -> Result:
        """Runs a write, and returns what it returns when it is committed.

        Raises what it raises, what SQLite raises for its transaction, DatabaseUnavailable. Whoever is
        cancelled doesn't know whether it was written.
        """
        if len(self._waiting) >= MOST_WAITING:
            raise DatabaseUnavailable(f"{MOST_WAITING} writes wait already")
        done: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Write(work, is_one_statement, done))
        self._some.set()
        return cast(Result, await done)

    async def run(self) -> None:
        """Writes, for ever. At the end what still waits fails."""
        try:
            while True:
                await self._some.wait()
                self._some.clear()
                while self._waiting:
                    try:
                        async with self._connected() as raw:
                            # Only now: what came while another block had the connection is written, too.
                            await self._commit(raw, self._taken())
                    except Exception as error:  # noqa: BLE001 # as below; the next may have a connection
                        _tell_all(self._waiting, error)
                        self._waiting.clear()
        finally:
            _tell_all(self._waiting, DatabaseUnavailable("the database is closed"))
            self._waiting.clear()

    def _taken(self) -> Sequence[_Write]:
        count = min(len(self._waiting), MOST_TOGETHER)
        taken = [self._waiting.popleft() for _ in range(count)]
        # Who has been cancelled wants nothing written any more.
        return [write for write in taken if not write.done.done()]

    async def _commit(self, raw: Any, writes: Sequence[_Write]) -> None:
        if not writes:
            return
        try:
            outcomes = await raw._execute(_committed, raw._conn, writes)
        except Exception as error:  # noqa: BLE001 # whatever it is, those who wait for it raise it
            _tell_all(writes, error)
            return
        except BaseException:
            # The thread may come to it all the same.
            _tell_all(writes, DatabaseUnavailable("the database is closed"))
            raise
        for write, outcome in zip(writes, outcomes, strict=True):
            if write.done.done():
                continue
            if isinstance(outcome, _Failed):
                write.done.set_exception(outcome.error)
            else:
                write.done.set_result(outcome)


def _tell_all(writes: "Sequence[_Write] | deque[_Write]", error: Exception) -> None:
    for write in writes:
        if not write.done.done():
            write.done.set_exception(error)


def _committed(raw: sqlite3.Connection, writes: Sequence[_Write]) -> list[object]:
    """What becomes of each, in one transaction. In SQLite's thread."""
    session = ThreadSession(raw)
    if len(writes) == 1 and writes[0].is_one_statement:
        # By itself it is a transaction.
        return [writes[0].work(session)]
    raw.execute("BEGIN IMMEDIATE")
    try:
        outcomes = [_outcome(raw, session, write) for write in writes]
        raw.execute("COMMIT")
    except BaseException:
        if raw.in_transaction:
            raw.execute("ROLLBACK")
        raise
    return outcomes


def _outcome(raw: sqlite3.Connection, session: ThreadSession, write: _Write) -> object:
    if not write.is_one_statement:
        raw.execute("SAVEPOINT one")
    try:
        outcome = write.work(session)
    except Exception as error:
        if not raw.in_transaction:
            # SQLite has undone all of it (a full disk, an error of the disk), and so nothing may be told.
            raise
        if not write.is_one_statement:
            raw.execute("ROLLBACK TO one")
        outcome = _Failed(error)
    if not write.is_one_statement:
        raw.execute("RELEASE one")
    return outcome
