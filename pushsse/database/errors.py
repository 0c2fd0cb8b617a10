"""What a database's error means (`verdict`), and when the database isn't asked at all (`Breaker`).

Used by `Database` and its connections. PostgreSQL's conditions are known by their SQLSTATE (PostgreSQL
documentation, appendix A).
"""

import sqlite3
import time
from dataclasses import dataclass, field
from enum import Enum

import asyncpg
from tortoise.exceptions import BaseORMException, ConfigurationError, DBConnectionError


class Verdict(Enum):
    """What an error of the database says."""

    AWAY = "the database is away"
    # It answers, and can't do this now: it is read-only, a right is missing, a lock wasn't free in time.
    REFUSED = "the database refuses"
    # Two transactions were in each other's way: trying again works.
    CONFLICT = "the database has a conflict"
    # The statement is wrong: a mistake of ours, whatever the state of the database.
    WRONG = "a statement failed"


AWAY: tuple[type[Exception], ...] = (
    OSError,
    TimeoutError,
    DBConnectionError,
    asyncpg.InterfaceError,
    # The server is closing the connection: its last message has arrived, the end of the connection hasn't.
    asyncpg.InternalClientError,
)
OPENING: tuple[type[Exception], ...] = (*AWAY, sqlite3.Error)
# Everything that a database, its driver or Tortoise may raise.
ERRORS: tuple[type[Exception], ...] = (*AWAY, asyncpg.PostgresError, sqlite3.Error, BaseORMException)

_CONFLICTS = frozenset({"40001", "40P01"})
_REFUSALS = frozenset(
    {
        "25006",  # read_only_sql_transaction: a standby, or a disk that is nearly full
        "42501",  # insufficient_privilege
        "55P03",  # lock_not_available
        "57014",  # query_canceled: statement_timeout
        "25P03",  # idle_in_transaction_session_timeout
        "22021",  # character_not_in_repertoire
        "22P05",  # untranslatable_character: the database isn't in UTF8
    }
)
# Whole classes, and single conditions: connection, resources, operator, system, authorization, catalogue.
_AWAY_CLASSES = ("08", "53", "57P", "58", "28", "3D", "F0", "55006", "42P01", "25P02")
_SQLITE_REFUSALS = frozenset(
    {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
)


def sqlstate(error: Exception) -> str:
    """PostgreSQL's code of an error, wrapped by Tortoise or not; empty where it isn't PostgreSQL's."""
    cause = error.args[0] if isinstance(error, BaseORMException) and error.args else error
    return (cause.sqlstate or "") if isinstance(cause, asyncpg.PostgresError) else ""


def verdict(error: Exception) -> Verdict | None:
    """What an error says; None for one that isn't the database's."""
    cause = error.args[0] if isinstance(error, BaseORMException) and error.args else error
    if not isinstance(cause, Exception):
        cause = error
    if isinstance(cause, sqlite3.Error):
        return _of_sqlite(cause)
    if isinstance(cause, asyncpg.PostgresError):
        return _of_postgres(cause.sqlstate or "")
    if isinstance(cause, ConfigurationError):
        return None
    if isinstance(cause, AWAY):
        # asyncpg's own word for a value of the wrong type.
        return Verdict.WRONG if isinstance(cause, ValueError) else Verdict.AWAY
    return Verdict.WRONG if isinstance(cause, BaseORMException) else None


def _of_postgres(state: str) -> Verdict:
    if state in _CONFLICTS:
        return Verdict.CONFLICT
    if state in _REFUSALS:
        return Verdict.REFUSED
    return Verdict.AWAY if state.startswith(_AWAY_CLASSES) else Verdict.WRONG


def _of_sqlite(error: sqlite3.Error) -> Verdict:
    # The low byte is the kind, the rest says more about it.
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in _SQLITE_REFUSALS:
        return Verdict.REFUSED
    if isinstance(error, sqlite3.OperationalError):
        unspecific = code == sqlite3.SQLITE_ERROR
        return Verdict.WRONG if unspecific and "no such table" not in str(error) else Verdict.AWAY
    return Verdict.WRONG


@dataclass(slots=True)
class Breaker:
    """Refuses for `cool_s` after a failure, then lets one try through at a time until one succeeds.

    A plain object on the event loop: nothing here awaits, so no lock is needed.
    """

    cool_s: float
    failed: bool = False
    reason: str = ""
    _probing: bool = False
    _refuse_until: float = 0.0
    _last_success: float = field(default_factory=time.monotonic)

    def enter(self) -> float | None:
        """The time at which this try began, or None: it is refused."""
        now = time.monotonic()
        if self.failed:
            if self._probing or now < self._refuse_until:
                return None
            self._probing = True
        return now

    def success(self) -> None:
        """The dependency answered."""
        self.failed = self._probing = False
        self._last_success = time.monotonic()

    def undecided(self, began: float) -> None:
        """A try ended and says nothing about the dependency (cancelled, or wrong by itself)."""
        if began >= self._refuse_until:
            self._probing = False

    def failure(self, began: float, reason: str) -> bool:
        """A try failed. True if the dependency is away: nothing at all has worked since `began`.

        `reason` is what those who are refused are told.
        """
        self._probing = False
        if self._last_success > began:
            return False
        self.failed, self.reason = True, reason
        self._refuse_until = time.monotonic() + self.cool_s
        return True
