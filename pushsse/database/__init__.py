"""The database. Used by the stores of preferences and questions, and by nobody else.

A Database's `session` and `transaction` hand out one connection; Tortoise's models use it by themselves
inside the block, and `rows` runs a statement directly. Whatever means that the database is away becomes
DatabaseUnavailable here. Blocks don't nest: SQLite has one connection.

Deliberate: Tortoise's own `in_transaction` isn't used, since it keeps the connection (or the lock) for ever
when its BEGIN is cancelled. `Tortoise.init` neither, since its state is the process's: each Database has its
context, which is entered for the length of a block.
"""

import asyncio
import logging
import random
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from typing import Any, Self, TypeVar

import asyncpg
from tortoise.backends.asyncpg.client import AsyncpgDBClient
from tortoise.backends.asyncpg.client import TransactionWrapper as PostgresConnection
from tortoise.backends.sqlite.client import SqliteClient
from tortoise.context import TortoiseContext, _current_context
from tortoise.migrations.executor import MigrationExecutor

from pushsse.database.connection import Reader, Route, Session, SqliteConnection, Statement, Value
from pushsse.database.errors import AWAY, ERRORS, OPENING, Breaker, Verdict, sqlstate, verdict
from pushsse.database.url import TORTOISE, configuration
from pushsse.errors import DatabaseConflict, DatabaseUnavailable, StatementFailed

__all__ = ["TORTOISE", "Database", "Session", "Statement"]

log = logging.getLogger(__name__)
Row = TypeVar("Row")

# "pushsse" and a digit in ASCII, so that no other user of the same PostgreSQL server takes this lock.
_MIGRATION_LOCK = 0x7075736873736531
_MIGRATE_S = 120.0
_RELEASE_S = 0.3
_CLOSE_S = 2.0
_TRIES = 4
# invalid_sql_statement_name, duplicate_prepared_statement
_POOLED = frozenset({"26000", "42P05"})
_ONE = Statement("SELECT 1")
_ENCODING = Statement("SHOW server_encoding")
_READ_ONLY = Statement("SHOW transaction_read_only")
_MISSING_RIGHTS = Statement("""
    SELECT c.relname, r.name FROM pg_class c, (VALUES ('SELECT'), ('INSERT'), ('UPDATE'), ('DELETE')) r (name)
     WHERE c.relname LIKE 'pushsse%' AND c.relkind = 'r' AND pg_table_is_visible(c.oid)
       AND NOT has_table_privilege(c.oid, r.name) ORDER BY 1, 2""")
_TRY_TO_WRITE = Statement("""INSERT INTO pushsse_person ("user") VALUES ('pushsse doctor')
    ON CONFLICT ("user") DO UPDATE SET version = pushsse_person.version""")


class _TakenBackError(Exception):
    """Rolls a transaction back."""


class Database:
    """The database of one process, between `open` and `close`."""

    def __init__(self, url: str, *, timeout_s: float = 1.5, pool_size: int = 8, cool_s: float = 1.0) -> None:
        self._configuration = configuration(url, pool_size=pool_size, timeout_s=timeout_s)
        self._timeout_s = timeout_s
        self._breaker = Breaker(cool_s)
        self._context = TortoiseContext()
        self._client: Any = None
        self._sqlite = False
        self._reader: Reader | None = None
        self._route: Route | None = None
        self.failures = 0

    async def open(self) -> None:
        """Opens SQLite's file; PostgreSQL is called by the first query. Raises DatabaseUnavailable."""
        entered = _current_context.set(self._context)
        try:
            await self._context.init(config=self._configuration)
        finally:
            _current_context.reset(entered)
        self._client = self._context.db()
        self._sqlite = isinstance(self._client, SqliteClient)
        if not self._sqlite:
            self._route = Route(self._client)
        try:
            if self._sqlite:
                await asyncio.to_thread(_try_file, self._client.filename)
            await self._client.create_connection(with_db=True)
        except OPENING as error:
            where = f" {self._client.filename}" if self._sqlite else ""
            raise DatabaseUnavailable(f"the database{where} can't be opened: {error}") from error
        if self._sqlite:
            self._reader = Reader.open(self._client.filename)

    async def close(self) -> None:
        """Closes the connections; those that don't within 2 s are cut."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        if isinstance(self._client, AsyncpgDBClient) and (pool := self._client._pool) is not None:
            try:
                await asyncio.wait_for(pool.close(), _CLOSE_S)
            except AWAY:
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

    @property
    def pooled(self) -> bool:
        """Whether a pooler such as pgbouncer stands between; known once the database has answered."""
        return self._route is not None and self._route.pooled

    def read_now(self, make: Callable[..., Row], statement: Statement, *values: Value) -> list[Row] | None:
        """What a small question finds, without waiting; None where that can't be: then ask `read`."""
        if self._reader is None or self._breaker.failed:
            return None
        found = self._reader.rows(make, statement, values)
        if found is not None:
            self._breaker.success()
        return found

    async def read(self, make: Callable[..., Row], statement: Statement, *values: Value) -> list[Row]:
        """As `rows`, for a statement that changes nothing. Raises DatabaseUnavailable."""
        found = self.read_now(make, statement, *values)
        return await self.rows(make, statement, *values) if found is None else found

    async def rows(self, make: Callable[..., Row], statement: Statement, *values: Value) -> list[Row]:
        """Runs one statement by itself, in autocommit. Raises DatabaseUnavailable."""
        for _ in range(_TRIES - 1):
            try:
                return await self._rows(make, statement, *values)
            except DatabaseConflict:
                await asyncio.sleep(random.uniform(0.005, 0.05))
        return await self._rows(make, statement, *values)

    async def _rows(self, make: Callable[..., Row], statement: Statement, *values: Value) -> list[Row]:
        async with self._guard(self._timeout_s), self._connected() as raw:
            return await Session(raw, sqlite=self._sqlite).rows(make, statement, *values)

    async def check(self) -> None:
        """Asks the database something. Raises DatabaseUnavailable."""
        await self.rows(int, _ONE)

    async def encoding(self) -> str:
        """In what the database keeps text; only UTF8 holds every name. Raises DatabaseUnavailable."""
        return "UTF8" if self._sqlite else (await self.rows(str, _ENCODING))[0]

    async def faults(self) -> list[str]:
        """What keeps a node from working with this database, and what to do. Raises DatabaseUnavailable.

        Writes a row, and takes it back. The tables have to be there.
        """
        found = []
        if (encoding := await self.encoding()) != "UTF8":
            found.append(f"is encoded in {encoding}: make a database with ENCODING 'UTF8' TEMPLATE template0")
        if not self._sqlite:
            if (await self.rows(str, _READ_ONLY))[0] == "on":
                found.append("is read-only: use the address of the primary, or look whether its disk is full")
            for table, right in await self.rows(_pair, _MISSING_RIGHTS):
                found.append(f"doesn't let this user {right} {table}: GRANT {right} ON {table} TO …")
        if not found:
            try:
                await self._try_to_write()
            except DatabaseUnavailable as error:
                found.append(f"can't be written: {error}")
        return found

    async def _try_to_write(self) -> None:
        try:
            async with self.transaction() as session:
                await session.rows(str, _TRY_TO_WRITE)
                raise _TakenBackError
        except _TakenBackError:
            pass

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
        except ERRORS as error:
            found = verdict(error)
            if found is None:
                raise
            raise await self._failure(error, found, began, timeout_s) from error
        else:
            self._breaker.success()
        finally:
            self._breaker.undecided(began)

    async def _failure(
        self, error: Exception, found: Verdict, began: float, timeout_s: float
    ) -> DatabaseUnavailable:
        """What callers are told of an error: each can go on, whatever a single statement came to."""
        self.failures += 1
        if sqlstate(error) in _POOLED and self._route is not None:
            # A pooler has come between meanwhile: the next connections are looked at anew.
            await self._renew()
            return DatabaseConflict(f"{Verdict.CONFLICT.value}: {_line(error)}")
        reason = f"{found.value}: {_line(error) or f'no answer within {timeout_s} s'}"
        if found is Verdict.AWAY:
            if self._breaker.failure(began):
                await self._renew()
            return DatabaseUnavailable(reason)
        # It answers: the next caller needn't be refused.
        if found is Verdict.CONFLICT:
            return DatabaseConflict(reason)
        if found is Verdict.WRONG:
            log.error("%s", reason, exc_info=error)
            return StatementFailed(reason)
        return DatabaseUnavailable(reason)

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Any]:
        if self._sqlite:
            async with self._client.acquire_connection() as raw:
                yield raw
            return
        if self._route is not None and not self._route.known:
            await self._route.recognise()
        pool = self._client._pool
        raw = await pool.acquire()
        try:
            yield raw
        finally:
            # After a cancelled query asyncpg waits here for the server to confirm; without a limit, for ever.
            with suppress(asyncpg.InternalClientError):  # raised when `_renew` cut it in the meantime
                await pool.release(raw, timeout=_RELEASE_S)

    @asynccontextmanager
    async def _begun(self, raw: Any) -> AsyncIterator[None]:
        if not self._sqlite:
            async with _postgres_transaction(raw):
                yield
            return
        try:
            await raw.execute("BEGIN IMMEDIATE")
            yield
            await raw.commit()
        except BaseException:
            # Also when BEGIN itself was cancelled: SQLite's thread may come to it all the same.
            await raw.rollback()
            raise

    @contextmanager
    def _current(self, raw: Any) -> Iterator[None]:
        """Makes the connection the one that Tortoise's models use, in this task."""
        wrapper = (SqliteConnection if self._sqlite else PostgresConnection)(self._client)
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
            if self._route is not None:
                self._route.forget()
            await self._client.create_connection(with_db=True)


def _line(error: Exception) -> str:
    """An error's words, whose hints are lines of their own, in one line."""
    return " ".join(str(error).split())


def _pair(one: str, other: str) -> tuple[str, str]:
    return one, other


def _try_file(name: str) -> None:
    """Before aiosqlite does: where that fails, its thread outlives the error, and the event loop."""
    with closing(sqlite3.connect(name)) as connection:
        connection.execute("PRAGMA schema_version")


@asynccontextmanager
async def _postgres_transaction(raw: Any) -> AsyncIterator[None]:
    # What we wrote is right for this level: with a stricter one from the server it would fail now and then.
    transaction = raw.transaction(isolation="read_committed")
    # Where BEGIN is cancelled, the pool rolls back when it gets the connection again.
    await transaction.__aenter__()
    try:
        yield
    except BaseException as error:
        undone = False
        try:
            with suppress(*AWAY):
                async with asyncio.timeout(_RELEASE_S):
                    await transaction.__aexit__(type(error), error, error.__traceback__)
                    undone = True
        finally:
            # asyncpg would wait for the server; without the connection the server rolls back by itself.
            if not undone:
                raw.terminate()
        raise
    else:
        await transaction.__aexit__(None, None, None)
