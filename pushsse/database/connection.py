"""Connections, and the SQL on them: sessions, the reader of SQLite's file, and poolers before PostgreSQL."""

import asyncio
import logging
import re
import sqlite3
import time
from collections.abc import Callable, Sequence
from typing import Any, Self, TypeVar
from urllib.parse import quote

import msgspec
from tortoise.backends.asyncpg.client import AsyncpgDBClient
from tortoise.backends.base.client import NestedTransactionContext, TransactionContext
from tortoise.backends.sqlite.client import SqliteTransactionWrapper

Value = str | int | float | bool | None | list[str]
Row = TypeVar("Row")

log = logging.getLogger(__name__)

_json = msgspec.json.Encoder()


# Items of lists: more may take long.
_MOST_SMALL = 64
_NAMES = tuple(f"p{at}" for at in range(1, 10))
_LISTED = re.compile(r"IN \((\$\d+|:p\d+)\)")


def is_small(values: Sequence[Value]) -> bool:
    """Whether a statement is about few."""
    return sum(len(value) for value in values if isinstance(value, list)) <= _MOST_SMALL


class Statement:
    """One SQL text for both databases: `$1` is a parameter, `IN ($1)` membership in a list of text.

    Where each list has one item, which is so for most questions, a text that compares is used: to take a list
    apart costs either database more than all the rest.
    """

    __slots__ = ("_of_lists", "_of_ones")

    def __init__(self, text: str) -> None:
        # By name: from Python 3.12 on, numbered parameters don't go with a sequence.
        named = text.replace("$", ":p")
        # Not `= ANY($1)`: where PostgreSQL takes that for a filter, it compares each row with each element.
        self._of_lists = (
            _LISTED.sub(r"IN (SELECT unnest(\1::text[]))", text),
            _LISTED.sub(r"IN (SELECT value FROM json_each(\1))", named),
        )
        self._of_ones = (_LISTED.sub(r"= \1", text), _LISTED.sub(r"= \1", named))

    def for_postgres(self, values: Sequence[Value]) -> tuple[str, Sequence[Value]]:
        """The text and its parameters."""
        if (ones := _ones(values)) is not None:
            return self._of_ones[0], ones
        return self._of_lists[0], values

    def for_sqlite(self, values: Sequence[Value]) -> tuple[str, dict[str, Value]]:
        """The text and its parameters by name."""
        if (ones := _ones(values)) is not None:
            return self._of_ones[1], dict(zip(_NAMES, ones, strict=False))
        packed = [_json.encode(value).decode() if isinstance(value, list) else value for value in values]
        return self._of_lists[1], dict(zip(_NAMES, packed, strict=False))


def _ones(values: Sequence[Value]) -> list[Value] | None:
    """The values with the one item of each list in its place; None where a list has more, or fewer."""
    ones: list[Value] = []
    for value in values:
        if isinstance(value, list):
            if len(value) != 1:
                return None
            ones.append(value[0])
        else:
            ones.append(value)
    return ones


_LOCK = Statement("SELECT pg_advisory_xact_lock($1)")


class Session:
    """One connection, for the length of a block."""

    __slots__ = ("_raw", "_sqlite")

    def __init__(self, raw: Any, *, sqlite: bool) -> None:
        self._raw = raw
        self._sqlite = sqlite

    async def rows(self, make: Callable[..., Row], statement: Statement, *values: Value) -> list[Row]:
        """Runs a statement; `make` gets the columns of each row (SQLite's booleans are 0 and 1)."""
        if self._sqlite:
            text, named = statement.for_sqlite(values)
            found = await self._raw.execute_fetchall(text, named)
        else:
            text, given = statement.for_postgres(values)
            found = await self._raw.fetch(text, *given)
        return [make(*row) for row in found]

    async def lock(self, number: int) -> None:
        """Waits until no other transaction of any process holds this number; on SQLite none does anyway."""
        if not self._sqlite:
            await self.rows(str, _LOCK, number)


class SqliteConnection(SqliteTransactionWrapper):
    """As Tortoise's, but a script stays inside the transaction: sqlite3's `executescript` commits first."""

    # Tortoise's migrations tell the database by the name of the connection's module.
    __module__ = SqliteTransactionWrapper.__module__

    async def execute_script(self, query: str) -> None:
        for statement in query.split(";"):
            if statement.strip():
                await self.execute_query(statement)

    def _in_transaction(self) -> TransactionContext:
        return NestedTransactionContext(SqliteConnection(self))


MOST_S = 0.003
# Of SQLite's virtual machine: some 50 µs. A small question has about 100.
_LOOK_EVERY_STEPS = 1_000


class Reader:
    """A connection for the length of a process, used by one thread."""

    __slots__ = ("_connection", "_until")

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._until = 0.0
        connection.set_progress_handler(self._is_late, _LOOK_EVERY_STEPS)

    @classmethod
    def open(cls, filename: str) -> Self | None:
        """None where the file can't be read this way, or is in memory; it has to be there."""
        if filename == ":memory:" or filename.startswith("file:"):
            return None
        try:
            # Never waits: while the file is locked, that is the thread's business.
            connection = sqlite3.connect(
                f"file:{quote(filename)}?mode=ro",
                uri=True,
                timeout=0,
                isolation_level=None,
                check_same_thread=False,
            )
            connection.execute("PRAGMA query_only = 1")
            connection.execute("PRAGMA schema_version").fetchall()
        except sqlite3.Error:
            return None
        return cls(connection)

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()

    def rows(
        self, make: Callable[..., Row], statement: Statement, values: tuple[Value, ...]
    ) -> list[Row] | None:
        """The rows of a statement; None where they can't be had at once."""
        if not is_small(values):
            return None
        text, given = statement.for_sqlite(values)
        self._until = time.monotonic() + MOST_S
        try:
            return [make(*row) for row in self._connection.execute(text, given)]
        except sqlite3.Error:
            return None

    def _is_late(self) -> bool:
        return time.monotonic() > self._until


_KEPT = 100
_SIZE = "statement_cache_size"


class Route:
    """Sets a client up for what it finds. The client's pool has no user before `recognise` has returned."""

    def __init__(self, client: AsyncpgDBClient) -> None:
        self._client = client
        self._given: int | None = client.extra.get(_SIZE)
        self._lock = asyncio.Lock()
        self._said = False
        self.pooled = self._given == 0
        self.known = self.pooled
        self.forget()

    def forget(self) -> None:
        """What answers next may be another: the next pool works with either."""
        self.known = self._given == 0
        self._client.extra[_SIZE] = 0
        self._client.server_settings.pop("default_transaction_isolation", None)

    async def recognise(self) -> None:
        """Looks, and makes the pool for it. Raises what connecting raises."""
        async with self._lock:
            if self.known:
                return
            pool = self._client._pool
            if pool is None:
                raise ConnectionError("the database is closed")
            async with pool.acquire() as connection:
                process = await connection.fetchval("SELECT pg_backend_pid()")
                # A pooler makes up the number that cancels, since its connections to the server change.
                self.pooled = process != connection.get_server_pid()
            if not self.pooled:
                # Asked for in the greeting, of which a pooler refuses most. A statement by itself is a
                # transaction, too: with a stricter level than the one it is written for it may fail.
                self._client.server_settings["default_transaction_isolation"] = "read committed"
            elif not self._said:
                self._said = True
                log.info("a pooler stands between this node and the database: no statement is kept prepared")
            self._client.extra[_SIZE] = self._given or (0 if self.pooled else _KEPT)
            await self._client.create_connection(with_db=True)
            pool.terminate()
            self.known = True
