"""Small questions to SQLite's file, asked on the event loop itself, by a connection that only reads.

Used by `database`. aiosqlite hands each statement to a thread and back, which costs ten times what a small
question does. The file is asked each time: nothing is kept. Whatever can't be answered within MOST_S (a
locked file, a long question, an error of any kind) isn't: the thread is asked then, which has the time
limits and knows what errors mean.
"""

import sqlite3
import time
from collections.abc import Callable
from typing import Self, TypeVar
from urllib.parse import quote

from pushsse.database.session import Statement, Value, is_small

Row = TypeVar("Row")

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
