"""What means that the database is away: the one list of the drivers' errors. Used by `database`."""

import sqlite3

import asyncpg
from tortoise.exceptions import DBConnectionError, OperationalError

AWAY: tuple[type[Exception], ...] = (
    OSError,
    TimeoutError,
    DBConnectionError,
    sqlite3.OperationalError,
    asyncpg.InterfaceError,
    # A connection is used while the server is ending it: its last words are there, its end is not.
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.UndefinedTableError,
    asyncpg.DeadlockDetectedError,
)
# Tortoise's says what it wraps: a database that is away, or a statement that is wrong.
MAYBE_AWAY: tuple[type[Exception], ...] = (*AWAY, OperationalError)


def says_away(error: Exception) -> bool:
    """Whether an error is the database's, and not that of a statement or its values."""
    cause = error.args[0] if isinstance(error, OperationalError) else error
    if isinstance(cause, sqlite3.OperationalError):
        unspecific = getattr(cause, "sqlite_errorcode", 0) == sqlite3.SQLITE_ERROR
        return not unspecific or "no such table" in str(cause)
    return isinstance(cause, AWAY) and not isinstance(cause, ValueError)
