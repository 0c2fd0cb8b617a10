"""One connection for the length of a block, and the SQL on it. `database` hands it out to the stores."""

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec
from tortoise.backends.base.client import NestedTransactionContext, TransactionContext
from tortoise.backends.sqlite.client import SqliteTransactionWrapper

Value = str | int | float | bool | None | list[str]
Row = TypeVar("Row")

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
