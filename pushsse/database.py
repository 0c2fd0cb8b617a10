"""The database: connections, time limits, migrations. Used by the stores of preferences and questions.

`session` and `transaction` hand out one connection; Tortoise's models use it by themselves inside the block,
and `rows` runs a statement directly. Whatever says that the database is away is DatabaseUnavailable here.
Deliberate: Tortoise's own `in_transaction` isn't used, since it keeps the connection (or the lock) for ever
when its BEGIN is cancelled. Blocks don't nest: SQLite has one connection.
"""

import asyncio
import re
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Self, TypeVar

import asyncpg
import msgspec
from tortoise.backends.asyncpg.client import AsyncpgDBClient
from tortoise.backends.asyncpg.client import TransactionWrapper as PostgresWrapper
from tortoise.backends.base.client import NestedTransactionContext, TransactionContext
from tortoise.backends.base.config_generator import expand_db_url
from tortoise.backends.sqlite.client import SqliteClient
from tortoise.backends.sqlite.client import SqliteTransactionWrapper as SqliteWrapper
from tortoise.context import TortoiseContext, _current_context
from tortoise.exceptions import ConfigurationError, DBConnectionError, OperationalError
from tortoise.migrations.executor import MigrationExecutor

from pushsse.breaker import Breaker
from pushsse.errors import DatabaseUnavailable, SettingsError

Value = str | int | float | bool | None | list[str]
Row = TypeVar("Row")

_APP = "pushsse"
# "pushsse" and a digit in ASCII, so that no other user of the same PostgreSQL server takes this lock.
_MIGRATION_LOCK = 0x7075736873736531
_MIGRATE_S = 120.0
_RELEASE_S = 0.3
_CLOSE_S = 2.0
_json = msgspec.json.Encoder()
_AWAY: tuple[type[Exception], ...] = (
    OSError,
    TimeoutError,
    DBConnectionError,
    sqlite3.OperationalError,
    asyncpg.InterfaceError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.UndefinedTableError,
    asyncpg.DeadlockDetectedError,
)
# Tortoise's says what it wraps: a database that is away, or a statement that is wrong.
_MAYBE_AWAY: tuple[type[Exception], ...] = (*_AWAY, OperationalError)


class _SqliteWrapper(SqliteWrapper):
    """As Tortoise's, but a script stays inside the transaction: sqlite3's `executescript` commits first."""

    # Tortoise's migrations tell the database by the name of the connection's module.
    __module__ = SqliteWrapper.__module__

    async def execute_script(self, query: str) -> None:
        for statement in query.split(";"):
            if statement.strip():
                await self.execute_query(statement)

    def _in_transaction(self) -> TransactionContext:
        return NestedTransactionContext(_SqliteWrapper(self))


async def _keep(_connection: object) -> None:
    """Nothing to put back: no session leaves settings behind, and asyncpg's reset is a round trip."""


def configuration(url: str, *, pool_size: int = 8, timeout_s: float = 1.5) -> dict[str, Any]:
    """Tortoise's configuration for a URL. Raises SettingsError."""
    try:
        connection = expand_db_url(url)
    except (ConfigurationError, ValueError) as error:
        raise SettingsError(f"PUSHSSE_DATABASE_URL: {error}") from None
    credentials = connection["credentials"]
    # Tortoise keeps prepared SQL per name of a connection, so each kind of database has a name of its own.
    name = connection["engine"].rpartition(".")[2]
    if name == "sqlite":
        # Less than a query's limit, so that a locked file is an error and not a thread that is stuck.
        credentials.setdefault("busy_timeout", int(timeout_s * 600))
    else:
        # No connection until the first query: a node starts while its database is away.
        defaults = {"minsize": 0, "maxsize": pool_size, "timeout": timeout_s, "application_name": _APP}
        connection["credentials"] = defaults | credentials | {"reset": _keep}
    models = ["pushsse.preferences.models", "pushsse.questions.models"]
    app = {"models": models, "default_connection": name, "migrations": "pushsse.migrations"}
    return {"connections": {name: connection}, "apps": {_APP: app}}


# For Tortoise's command line: `tortoise -c pushsse.database.TORTOISE makemigrations`.
TORTOISE = configuration("sqlite://:memory:")


class Statement:
    """One SQL text for both databases: `$1` is a parameter, `= ANY($1)` membership in a list of text."""

    __slots__ = ("postgres", "sqlite")

    def __init__(self, text: str) -> None:
        self.postgres = text
        self.sqlite = re.sub(r"= ANY\((\$\d+)\)", r"IN (SELECT value FROM json_each(\1))", text).replace(
            "$", "?"
        )


_ONE = Statement("SELECT 1")
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
            given = [_json.encode(value).decode() if isinstance(value, list) else value for value in values]
            found = await self._raw.execute_fetchall(statement.sqlite, given)
        else:
            found = await self._raw.fetch(statement.postgres, *values)
        return [make(*row) for row in found]

    async def lock(self, number: int) -> None:
        """Waits until no other transaction of any process holds this number; on SQLite none does anyway."""
        if not self._sqlite:
            await self.rows(str, _LOCK, number)


class Database:
    """The database of one process, between `open` and `close`."""

    def __init__(self, url: str, *, timeout_s: float = 1.5, pool_size: int = 8, cool_s: float = 1.0) -> None:
        self._configuration = configuration(url, pool_size=pool_size, timeout_s=timeout_s)
        self._timeout_s = timeout_s
        self._breaker = Breaker(cool_s)
        self._context = TortoiseContext()
        self._client: Any = None
        self._sqlite = False

    async def open(self) -> None:
        """Opens SQLite's file; PostgreSQL is called by the first query. Raises DatabaseUnavailable."""
        entered = _current_context.set(self._context)
        try:
            await self._context.init(config=self._configuration)
        finally:
            _current_context.reset(entered)
        self._client = self._context.db()
        self._sqlite = isinstance(self._client, SqliteClient)
        try:
            await self._client.create_connection(with_db=True)
        except _AWAY as error:
            raise DatabaseUnavailable(f"the database can't be opened: {error}") from error

    async def close(self) -> None:
        """Closes the connections; those that don't within 2 s are cut."""
        if isinstance(self._client, AsyncpgDBClient) and (pool := self._client._pool) is not None:
            try:
                await asyncio.wait_for(pool.close(), _CLOSE_S)
            except _AWAY:
                pool.terminate()
            self._client._pool = None
        await self._context.close_connections()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def available(self) -> bool:
        """Whether the database answered a moment ago; never a promise."""
        return not self._breaker.failed

    async def rows(self, make: Callable[..., Row], statement: Statement, *values: Value) -> list[Row]:
        """Runs one statement by itself, in autocommit. Raises DatabaseUnavailable."""
        async with self._guard(self._timeout_s), self._connected() as raw:
            return await Session(raw, sqlite=self._sqlite).rows(make, statement, *values)

    async def check(self) -> None:
        """Asks the database something. Raises DatabaseUnavailable."""
        await self.rows(int, _ONE)

    @asynccontextmanager
    async def session(self, *, timeout_s: float | None = None) -> AsyncIterator[Session]:
        """One connection, in autocommit, for models and rows. Raises DatabaseUnavailable."""
        async with self._guard(timeout_s or self._timeout_s), self._connected() as raw:
            with self._current(raw):
                yield Session(raw, sqlite=self._sqlite)

    @asynccontextmanager
    async def transaction(self, *, timeout_s: float | None = None) -> AsyncIterator[Session]:
        """As `session`, in one transaction, which on SQLite has the write lock from the start."""
        async with self._guard(timeout_s or self._timeout_s), self._connected() as raw, self._begun(raw):
            with self._current(raw):
                yield Session(raw, sqlite=self._sqlite)

    async def pending_migrations(self) -> tuple[str, ...]:
        """The migrations that this version has and the database hasn't. Raises DatabaseUnavailable."""
        async with self.session() as session:
            # Tortoise takes any error for an empty database: what is away has to be noticed before.
            await session.rows(int, _ONE)
            return tuple(step.migration.name for step in await self._executor().plan())

    async def migrate(self) -> tuple[str, ...]:
        """Applies what is pending, all or nothing, and says what; several processes may do so at once."""
        async with self.transaction(timeout_s=_MIGRATE_S) as session:
            await session.lock(_MIGRATION_LOCK)
            executor = self._executor()
            # First, since a query for a table that isn't there ends a transaction of PostgreSQL's.
            await executor.recorder.ensure_schema(executor._schema_editor(atomic=False))
            pending = tuple(step.migration.name for step in await executor.plan())
            await executor.migrate(direction="forward")
            return pending

    def _executor(self) -> MigrationExecutor:
        return MigrationExecutor(
            self._context.connections.get(self._client.connection_name), self._configuration["apps"]
        )

    @asynccontextmanager
    async def _guard(self, timeout_s: float) -> AsyncIterator[None]:
        began = self._breaker.enter()
        if began is None:
            raise DatabaseUnavailable("the database didn't answer a moment ago")
        try:
            async with asyncio.timeout(timeout_s):
                yield
        except _MAYBE_AWAY as error:
            cause = error.args[0] if isinstance(error, OperationalError) else error
            if not isinstance(cause, _AWAY) or isinstance(cause, ValueError):
                raise
            if self._breaker.failure(began):
                await self._renew()
            reason = str(cause) or f"no answer within {timeout_s} s"
            raise DatabaseUnavailable(f"the database is away: {reason}") from error
        else:
            self._breaker.success()
        finally:
            self._breaker.undecided(began)

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Any]:
        if self._sqlite:
            async with self._client.acquire_connection() as raw:
                yield raw
            return
        pool = self._client._pool
        raw = await pool.acquire()
        try:
            yield raw
        finally:
            # After a cancelled query asyncpg waits here for the server to confirm; without a limit, for ever.
            await pool.release(raw, timeout=_RELEASE_S)

    @asynccontextmanager
    async def _begun(self, raw: Any) -> AsyncIterator[None]:
        if not self._sqlite:
            async with raw.transaction():
                yield
            return
        try:
            await raw.execute("BEGIN IMMEDIATE")
            yield
        except BaseException:
            # Also when BEGIN itself was cancelled: SQLite's thread may have come to it all the same.
            await raw.rollback()
            raise
        else:
            await raw.commit()

    @contextmanager
    def _current(self, raw: Any) -> Iterator[None]:
        """Makes the connection the one that Tortoise's models use, in this task."""
        wrapper = (_SqliteWrapper if self._sqlite else PostgresWrapper)(self._client)
        wrapper._connection = raw
        entered = _current_context.set(self._context)
        token = self._context.connections.set(self._client.connection_name, wrapper)
        try:
            yield
        finally:
            self._context.connections.reset(token)
            _current_context.reset(entered)

    async def _renew(self) -> None:
        """Cuts all of the pool's connections: those to a server that vanished would each fail anew."""
        if not self._sqlite and self._client._pool is not None:
            self._client._pool.terminate()
            await self._client.create_connection(with_db=True)
