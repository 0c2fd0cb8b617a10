"""What an error of the database, of its driver or of Tortoise says.

Asked by `Database`, and where a connection is opened. PostgreSQL's conditions are known by their SQLSTATE
(PostgreSQL documentation, appendix A).
"""

import sqlite3
from enum import Enum

import asyncpg
from tortoise.exceptions import BaseORMException, ConfigurationError, DBConnectionError

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
_LOCK_NOT_AVAILABLE = "55P03"
# The last is unique_violation: another transaction has written the same meanwhile, and now it can be seen.
_CONFLICTS = frozenset({"40001", "40P01", "23505"})
_REFUSALS = frozenset(
    {
        "25006",  # read_only_sql_transaction: a standby, or a disk that is nearly full
        "42501",  # insufficient_privilege
        _LOCK_NOT_AVAILABLE,
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


class ErrorKind(Enum):
    """What an error of the database says."""

    AWAY = "the database is away"
    # It answers, and can't do this now: it is read-only, a right is missing, a lock wasn't free in time.
    REFUSED = "the database refuses"
    # Two transactions were in each other's way: trying again works.
    CONFLICT = "the database has a conflict"
    # The statement is wrong: a mistake of ours, whatever the state of the database.
    WRONG = "a statement failed"


def kind_of(error: Exception) -> ErrorKind | None:
    """What an error says; None for one that isn't the database's."""
    cause = _unwrapped(error)
    if isinstance(cause, sqlite3.Error):
        return _of_sqlite(cause)
    if isinstance(cause, asyncpg.PostgresError):
        return _of_postgres(cause.sqlstate or "")
    if isinstance(cause, ConfigurationError):
        return None
    if isinstance(cause, AWAY):
        # asyncpg's own word for a value of the wrong type.
        return ErrorKind.WRONG if isinstance(cause, ValueError) else ErrorKind.AWAY
    return ErrorKind.WRONG if isinstance(cause, BaseORMException) else None


def sqlstate(error: Exception) -> str:
    """PostgreSQL's code of an error, wrapped by Tortoise or not; empty where it isn't PostgreSQL's."""
    cause = _unwrapped(error)
    return (cause.sqlstate or "") if isinstance(cause, asyncpg.PostgresError) else ""


def is_lock(error: Exception) -> bool:
    """Whether what a statement needed was another transaction's for too long."""
    cause = _unwrapped(error)
    if isinstance(cause, sqlite3.Error):
        return _sqlite_kind(cause) == sqlite3.SQLITE_BUSY
    return sqlstate(error) == _LOCK_NOT_AVAILABLE


def _unwrapped(error: Exception) -> Exception:
    """The driver's error, which Tortoise may have wrapped."""
    cause = error.args[0] if isinstance(error, BaseORMException) and error.args else error
    return cause if isinstance(cause, Exception) else error


def _sqlite_kind(error: sqlite3.Error) -> int:
    # The low byte is the kind, the rest says more about it.
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _of_postgres(state: str) -> ErrorKind:
    if state in _CONFLICTS:
        return ErrorKind.CONFLICT
    if state in _REFUSALS:
        return ErrorKind.REFUSED
    return ErrorKind.AWAY if state.startswith(_AWAY_CLASSES) else ErrorKind.WRONG


def _of_sqlite(error: sqlite3.Error) -> ErrorKind:
    code = _sqlite_kind(error)
    if code in _SQLITE_REFUSALS:
        return ErrorKind.REFUSED
    if isinstance(error, sqlite3.OperationalError):
        unspecific = code == sqlite3.SQLITE_ERROR
        return ErrorKind.WRONG if unspecific and "no such table" not in str(error) else ErrorKind.AWAY
    return ErrorKind.WRONG
