"""One connection for the length of a block, and the SQL on it. `database` hands it out to the stores."""

import re
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from tortoise.backends.base.client import NestedTransactionContext, TransactionContext
from tortoise.backends.sqlite.client import SqliteTransactionWrapper

Value = str | int | float | bool | None | list[str]
Row = TypeVar("Row")

_json = msgspec.json.Encoder()


class Statement:
    """One SQL text for both databases: `$1` is a parameter, `IN ($1)` membership in a list of text."""

    __slots__ = ("postgres", "sqlite")

    def __init__(self, text: str) -> None:
        # Not `= ANY($1)`: where PostgreSQL takes that for a filter, it compares each row with each element.
        self.postgres = re.sub(r"IN \((\$\d+)\)", r"IN (SELECT unnest(\1::text[]))", text)
        # By name: from Python 3.12 on, numbered parameters don't go with a sequence.
        named = text.replace("$", ":p")
        self.sqlite = re.sub(r"IN \((:p\d+)\)", r"IN (SELECT value FROM json_each(\1))", named)


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
            given = {
                f"p{at}": _json.encode(value).decode() if isinstance(value, list) else value
                for at, value in enumerate(values, 1)
            }
            found = await self._raw.execute_fetchall(statement.sqlite, given)
        else:
            found = await self._raw.fetch(statement.postgres, *values)
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
