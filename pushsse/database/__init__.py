"""The database: SQLite or PostgreSQL, behind one interface for whoever owns tables in it.

Called by whoever owns tables, by `people`, and by the command line.
`session` and `transaction` give a block one connection, which Tortoise's models use by themselves; `rows`,
`read` and `write` run one statement. Every error that means that the database is away is raised as
DatabaseUnavailable. Deliberate: blocks don't nest, since SQLite has one connection.

`listen` hears PostgreSQL's notifications (LISTEN, NOTIFY) over a connection of its own, for the outbox. A
notification may get lost, and a pooler such as pgbouncer in transaction mode passes none on, so whoever
listens looks by himself from time to time.

Writes to SQLite wait together: one trip to its thread, one transaction, one wait for the disk. Each is undone
by itself if it fails, and nobody is told before the commit. Deliberate: all of a write runs in the thread of
the connection. A statement a trip costs more than the statement, and while the event loop is busy each trip
waits for the interpreter's lock.
"""

import asyncio
import logging
import random
import sqlite3
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar, cast

import asyncpg

from pushsse.database.connection import (
    AWAY,
    ERRORS,
    Connections,
    ErrorKind,
    Reader,
    Session,
    Statement,
    Value,
    instant,
    is_lock,
    kind_of,
    sqlstate,
    time_of,
)
from pushsse.database.url import APP, TORTOISE, configuration, credentials
from pushsse.errors import DatabaseConflict, DatabaseUnavailable, StatementFailed

__all__ = [
    "TORTOISE", "Database", "Session", "Statement", "ThreadSession", "Value", "instant", "repeated",
    "time_of",
]  # fmt: skip

logger = logging.getLogger(__name__)
Row = TypeVar("Row")
Result = TypeVar("Result")

# How long a node waits for an answer.
TIMEOUT_S = 1.5
# "pushsse" and a digit in ASCII, so that no other program on the same PostgreSQL server takes this lock.
_MIGRATION_LOCK = 0x7075736873736531
_MIGRATE_S = 120.0
_MIGRATE_TRIES = 30
# Whoever reads or writes a table queues behind a migration that waits for it: less than nodes wait (1.5 s).
_SHORT_LOCKS = Statement("SELECT set_config('lock_timeout', '1s', true)")
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
# How long it may take to open and to close a connection that listens.
_LISTEN_OPEN_S, _LISTEN_CLOSE_S = 5.0, 1.0
# What the pool's keywords have, and a single connection's haven't.
_POOL_ALONE = ("minsize", "maxsize", "min_size", "max_size", "max_inactive_connection_lifetime", "schema")
# Writes to SQLite in one transaction: other transactions wait meanwhile.
MOST_TOGETHER = 64
# Writes that wait. Each has a caller, who waits for as long as a statement may take.
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
WriterWork = Callable[[ThreadSession], Result]


class _TakenBackError(Exception):
    """Rolls a transaction back."""


class Database:
    """The database of one process, between `open` and `close`."""

    def __init__(
        self, url: str, *, timeout_s: float = TIMEOUT_S, pool_size: int = 8, cool_s: float = 1.0
    ) -> None:
        self._connections = Connections(configuration(url, pool_size=pool_size, timeout_s=timeout_s))
        self._timeout_s = timeout_s
        self._breaker = Breaker(cool_s)
        self._reader: Reader | None = None
        self._writer: Writer | None = None
        self._writing: asyncio.Task[None] | None = None
        self.failures = 0

    async def open(self) -> None:
        """Opens SQLite's file; PostgreSQL is called by the first query. Raises DatabaseUnavailable."""
        await self._connections.open()
        if self._connections.sqlite:
            self._reader = Reader.open(self._connections.filename)
            self._writer = Writer(self._connections.connected)
            # Ours, and not of a group of services: the database is written until it is closed.
            self._writing = asyncio.create_task(self._writer.run(), name="writer")

    async def close(self) -> None:
        """Closes the connections; those that don't within 2 s are cut."""
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.wait([self._writing])
            self._writer = self._writing = None
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        await self._connections.close()

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
        route = self._connections.route
        return route is not None and route.pooled

    def read_nowait(self, make: Callable[..., Row], statement: Statement, *values: Value) -> list[Row] | None:
        """The rows of a small statement, without waiting; None where that can't be: then call `read`."""
        if self._reader is None or self._breaker.failed:
            return None
        found = self._reader.rows(make, statement, values)
        if found is not None:
            self._breaker.success()
        return found

    def has_row_nowait(self, statement: Statement, *values: str) -> bool | None:
        """Whether a small statement about single values has a row; None where that can't be, as above."""
        if self._reader is None or self._breaker.failed:
            return None
        found = self._reader.has_row(statement, values)
        if found is not None:
            self._breaker.success()
        return found

    async def read(self, make: Callable[..., Row], statement: Statement, *values: Value) -> list[Row]:
        """As `rows`, for a statement that changes nothing. Raises DatabaseUnavailable."""
        found = self.read_nowait(make, statement, *values)
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
        async with self._guard(self._timeout_s), self._connections.connected() as raw:
            return await Session(raw, sqlite=self._connections.sqlite).rows(make, statement, *values)

    @property
    def writes_together(self) -> bool:
        """Whether this is SQLite, open: then `together` can be called."""
        return self._writer is not None

    async def write(self, make: Callable[..., Row], statement: Statement, *values: Value) -> list[Row]:
        """As `rows`, for a statement that changes something: on SQLite it shares its commit with others."""
        if self._writer is None:
            return await self.rows(make, statement, *values)

        def work(session: ThreadSession) -> list[Row]:
            return session.rows(make, statement, *values)

        async with self._guard(self._timeout_s):
            return await self._writer.write(work, is_one_statement=True)

    async def together(self, work: WriterWork[Result]) -> Result:
        """Runs a write of several statements in SQLite's thread, in a transaction that it shares with others.

        What it raises undoes it alone. Raises DatabaseUnavailable; RuntimeError where this isn't SQLite.
        """
        if self._writer is None:
            raise RuntimeError("only SQLite has a thread")
        async with self._guard(self._timeout_s):
            return await self._writer.write(work)

    async def check(self) -> None:
        """Asks the database something. Raises DatabaseUnavailable."""
        await self.rows(int, _ONE)

    async def encoding(self) -> str:
        """The encoding of the database's text; only UTF8 holds every name. Raises DatabaseUnavailable."""
        return "UTF8" if self._connections.sqlite else (await self.rows(str, _ENCODING))[0]

    async def faults(self) -> list[str]:
        """What keeps a node from working with this database, and what to do. Raises DatabaseUnavailable.

        Writes a row, and takes it back. The tables have to be there.
        """
        found = []
        if (encoding := await self.encoding()) != "UTF8":
            found.append(f"is encoded in {encoding}: make a database with ENCODING 'UTF8' TEMPLATE template0")
        if not self._connections.sqlite:
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
        async with self._guard(timeout_s or self._timeout_s), self._connections.connected() as raw:
            with self._connections.current(raw):
                yield Session(raw, sqlite=self._connections.sqlite)

    @asynccontextmanager
    async def transaction(self, *, timeout_s: float | None = None) -> AsyncIterator[Session]:
        """As `session`, in one transaction, which on SQLite has the write lock from the start."""
        async with (
            self._guard(timeout_s or self._timeout_s),
            self._connections.connected() as raw,
            self._connections.begun(raw),
        ):
            with self._connections.current(raw):
                yield Session(raw, sqlite=self._connections.sqlite)

    async def pending_migrations(self) -> tuple[str, ...]:
        """The migrations that this version has and the database hasn't. Raises DatabaseUnavailable."""
        async with self.session() as session:
            # Tortoise takes any error for an empty database: what is away has to be noticed before.
            await session.rows(int, _ONE)
            return tuple(step.migration.name for step in await self._connections.migrations().plan())

    async def migrate(self) -> tuple[str, ...]:
        """Applies what is pending, all or nothing, and says what; several processes may do so together.

        A table, or a file of SQLite's, that isn't free within 1 s is let go, and the migration tried again,
        for half a minute at least: nodes write on meanwhile, and another process may migrate.
        """
        for _ in range(_MIGRATE_TRIES - 1):
            try:
                return await self._migrate()
            except DatabaseUnavailable as error:
                if not isinstance(error.__cause__, Exception) or not is_lock(error.__cause__):
                    raise
                logger.warning(
                    "a migration waits for somebody else's transaction, and this node's start for it: %s. In"
                    " PostgreSQL, pg_stat_activity shows whose it is",
                    error,
                )
                # After a locked file the breaker refuses for a while.
                await asyncio.sleep(self._breaker.cool_s + random.uniform(0.2, 1.0))
        return await self._migrate()

    async def _migrate(self) -> tuple[str, ...]:
        async with self.transaction(timeout_s=_MIGRATE_S) as session:
            await session.lock(_MIGRATION_LOCK)
            if not self._connections.sqlite:
                # After the lock of migrations, which another process may hold for as long as it migrates.
                await session.rows(str, _SHORT_LOCKS)
            executor = self._connections.migrations()
            # First, since a query for a table that isn't there ends a transaction of PostgreSQL's.
            await executor.recorder.ensure_schema(self._connections.schema_editor())
            pending = tuple(step.migration.name for step in await executor.plan())
            if pending:
                await executor.migrate(direction="forward")
            return pending

    def _guard(self, timeout_s: float) -> "_Guard":
        return _Guard(self, self._breaker, timeout_s)

    async def failure(
        self, error: Exception, found: ErrorKind, began: float, timeout_s: float
    ) -> DatabaseUnavailable:
        """What callers are told of an error: each can go on, whatever a single statement came to.

        `began` is when the try began that ended with it.
        """
        self.failures += 1
        if sqlstate(error) in _POOLED and self._connections.route is not None:
            # A pooler stands in between since the last look: the next connection is looked at again.
            await self._connections.renew()
            return DatabaseConflict(f"{ErrorKind.CONFLICT.value}: {_line(error)}")
        reason = f"{found.value}: {_line(error) or f'no answer within {timeout_s} s'}"
        if found is ErrorKind.AWAY:
            if self._breaker.failure(began, reason):
                await self._connections.renew()
            return DatabaseUnavailable(reason)
        # It answers: the next caller needn't be refused.
        if found is ErrorKind.CONFLICT:
            return DatabaseConflict(reason)
        if found is ErrorKind.WRONG:
            logger.error("%s", reason, exc_info=error)
            return StatementFailed(reason)
        return DatabaseUnavailable(reason)


class _Guard:
    """The time limit of a block, and what its errors mean. Raises DatabaseUnavailable.

    A class, since each statement takes it: a generator as a context costs a third more.
    """

    __slots__ = ("_began", "_breaker", "_database", "_limit", "_timeout_s")

    def __init__(self, database: Database, breaker: "Breaker", timeout_s: float) -> None:
        self._database = database
        self._breaker = breaker
        self._timeout_s = timeout_s
        self._began = 0.0
        self._limit = asyncio.timeout(timeout_s)

    async def __aenter__(self) -> None:
        began = self._breaker.enter()
        if began is None:
            raise DatabaseUnavailable(self._breaker.reason)
        self._began = began
        await self._limit.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._limit.__aexit__(kind, error, trace)
        except TimeoutError as late:
            error = late
        try:
            if error is None:
                self._breaker.success()
            elif isinstance(error, ERRORS) and (found := kind_of(error)) is not None:
                raise await self._database.failure(error, found, self._began, self._timeout_s) from error
        finally:
            self._breaker.undecided(self._began)


async def repeated(transact: Callable[[], Awaitable[Row]]) -> Row:
    """What a transaction comes to, tried again where another was in its way. Raises DatabaseUnavailable."""
    for _ in range(_TRIES - 1):
        try:
            return await transact()
        except DatabaseConflict:
            await asyncio.sleep(random.uniform(0.005, 0.05))
    return await transact()


def _line(error: Exception) -> str:
    """An error's words, whose hints are lines of their own, in one line."""
    return " ".join(str(error).split())


def _pair(one: str, other: str) -> tuple[str, str]:
    return one, other


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


class Listening:
    """One connection that listens, as `listen` yields it."""

    def __init__(self, ended: asyncio.Event) -> None:
        self._ended = ended

    async def until_ended(self) -> None:
        """Returns when the server has closed the connection. One that vanished may be noticed much later."""
        await self._ended.wait()


@asynccontextmanager
async def listen(url: str, channel: str, heard: Callable[[str], None]) -> AsyncIterator[Listening]:
    """Calls `heard` with the text of each notification of a channel, while the context lasts.

    `heard` must not wait. Raises DatabaseUnavailable where there is no connection.
    """
    given = {name: value for name, value in credentials(url).items() if name not in _POOL_ALONE}
    given = {"timeout": _LISTEN_OPEN_S, "server_settings": {"application_name": APP}, **given}
    given.pop("application_name", None)
    ended = asyncio.Event()

    def received(_connection: object, _process: int, _channel: str, text: object) -> None:
        heard(str(text))

    try:
        # No statement is kept prepared: a pooler would take its next run elsewhere.
        connection = await asyncpg.connect(**{**given, "statement_cache_size": 0})
    except (*AWAY, asyncpg.PostgresError) as error:
        raise DatabaseUnavailable(f"no connection to listen over: {error}") from error
    try:
        connection.add_termination_listener(lambda _connection: ended.set())
        try:
            async with asyncio.timeout(_LISTEN_OPEN_S):
                await connection.add_listener(channel, received)
        except (*AWAY, asyncpg.PostgresError) as error:
            raise DatabaseUnavailable(f"LISTEN failed: {error}") from error
        yield Listening(ended)
    finally:
        try:
            await connection.close(timeout=_LISTEN_CLOSE_S)
        except (*AWAY, asyncpg.PostgresError):
            connection.terminate()


class _Write(NamedTuple):
    work: WriterWork[object]
    # Needs no savepoint: a statement that fails changes nothing.
    is_one_statement: bool
    done: "asyncio.Future[object]"


class _Failed(NamedTuple):
    error: Exception


class Writer:
    """The writes to SQLite, of one connection, which `connected` gives to one block at a time."""

    def __init__(self, connected: Callable[[], AbstractAsyncContextManager[Any]]) -> None:
        self._connected = connected
        self._waiting: deque[_Write] = deque()
        self._some = asyncio.Event()

    async def write(self, work: WriterWork[Result], *, is_one_statement: bool = False) -> Result:
        """Runs a write, and returns what it returns when it is committed.

        Raises what it raises, what SQLite raises for its transaction, DatabaseUnavailable. Whoever is
        cancelled doesn't know whether it was written.
        """
        if len(self._waiting) >= MOST_WAITING:
            raise DatabaseUnavailable(f"SQLite is too slow, {MOST_WAITING} writes wait already")
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
