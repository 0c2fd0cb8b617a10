"""Statements for both databases, the connections that they run on, and what their errors say.

Used by `Database`, which hands sessions to the stores. The one home of Tortoise's private parts, of aiosqlite
and of asyncpg. PostgreSQL's conditions are known by their SQLSTATE (PostgreSQL documentation, appendix A).
"""

import asyncio
import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, contextmanager, suppress
from datetime import UTC, datetime
from enum import Enum
from operator import itemgetter
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import asyncpg
import msgspec
from tortoise.backends.asyncpg.client import AsyncpgDBClient
from tortoise.backends.asyncpg.client import TransactionWrapper as PostgresConnection
from tortoise.backends.base.client import BaseDBAsyncClient, NestedTransactionContext, TransactionContext
from tortoise.backends.sqlite.client import SqliteClient, SqliteTransactionWrapper
from tortoise.context import TortoiseContext, _current_context
from tortoise.exceptions import BaseORMException, ConfigurationError, DBConnectionError
from tortoise.migrations.executor import MigrationExecutor
from tortoise.migrations.schema_editor import AsyncpgSchemaEditor, BaseSchemaEditor, SqliteSchemaEditor

from pushsse.errors import DatabaseUnavailable

Value = str | int | float | bool | None | list[str]
Row = TypeVar("Row")

logger = logging.getLogger(__name__)

_json = msgspec.json.Encoder()
_RELEASE_S = 0.3
_CLOSE_S = 2.0
# How long a locked file is tried for before it is an error.
_OPEN_S = 5.0
_OPEN_PAUSE_S = 0.05


# A statement with more list items than this may take long.
_MOST_SMALL = 64
_MOST_VALUES = 19


class Statement:
    """One SQL text for both databases: `{value[1]}` is a parameter, `{among[1]}` membership in a list.

    As in `"user" {among[1]} AND version <= {value[2]}`. `{time[1]}` is a time, as `instant` writes it, and
    `{json[1]}` is JSON; both are given as text. Deliberate: not pypika, which writes a list out item by item,
    so that neither database could keep the statement prepared, and dispatch, the opening of streams and
    each question would build it each time. Where each list has one item, as in most calls, a text that
    compares is used: to unpack a list costs either database more than all the rest.
    """

    __slots__ = ("_of_lists", "_of_ones", "_placed")

    def __init__(self, text: str) -> None:
        postgres = _each("${}")
        typed = {"time": _each("CAST(${}::text AS timestamptz)"), "json": _each("CAST(${}::text AS jsonb)")}
        # By their places: to bind a value by a name takes half a microsecond more. Not by their numbers, as
        # ?1: Python 3.12 up to 3.12.3 takes those for names.
        order: list[int] = []
        mark = _Mark("?", order)
        # Not `= ANY($1)`: where PostgreSQL takes that for a filter, it compares each row with each element.
        self._of_lists = (
            text.format(value=postgres, among=_each("IN (SELECT unnest(${}::text[]))"), **typed),
            text.format(
                value=mark, among=_Mark("IN (SELECT value FROM json_each(?))", order), time=mark, json=mark
            ),
        )
        self._placed = _picker(tuple(order))
        self._of_ones = (
            text.format(value=postgres, among=_each("= ${}"), **typed),
            text.format(value=mark, among=_Mark("= ?", order), time=mark, json=mark),
        )

    def for_postgres(self, values: Sequence[Value]) -> tuple[str, Sequence[Value]]:
        """The text and its parameters."""
        if (ones := _ones(values)) is not None:
            return self._of_ones[0], ones
        return self._of_lists[0], values

    def for_sqlite(self, values: Sequence[Value]) -> tuple[str, Sequence[Value]]:
        """The text and its parameters."""
        if (ones := _ones(values)) is not None:
            return self._of_ones[1], self._placed(ones)
        packed = [_json.encode(value).decode() if isinstance(value, list) else value for value in values]
        return self._of_lists[1], self._placed(packed)

    def of_singles_for_sqlite(self, values: Sequence[Value]) -> tuple[str, Sequence[Value]]:
        """The same, of values of which none is a list."""
        return self._of_ones[1], self._placed(values)

    def small_for_sqlite(self, values: Sequence[Value]) -> tuple[str, Sequence[Value]] | None:
        """The same; None where it is about too many people and types to be run without waiting."""
        if (ones := _ones(values)) is not None:
            return self._of_ones[1], self._placed(ones)
        items = sum(len(value) for value in values if isinstance(value, list))
        return self.for_sqlite(values) if items <= _MOST_SMALL else None


def instant(at: datetime) -> str:
    """A time as a parameter, in the form that SQLite's files have it in."""
    return (at if at.tzinfo is UTC else at.astimezone(UTC)).isoformat(" ")


def time_of(found: datetime | str) -> datetime:
    """A time that a statement has returned, which is text in SQLite."""
    return found if isinstance(found, datetime) else datetime.fromisoformat(found)


class _Mark:
    """SQLite's mark of a parameter, and the number of each in the order in which they come in a text."""

    __slots__ = ("_form", "_order")

    def __init__(self, form: str, order: list[int]) -> None:
        self._form = form
        self._order = order

    def __getitem__(self, number: int) -> str:
        self._order.append(number - 1)
        return self._form


def _each(form: str) -> dict[int, str]:
    """A parameter's text by its number."""
    return {number: form.format(number) for number in range(1, _MOST_VALUES + 1)}


def _picker(order: Sequence[int]) -> Callable[[Sequence[Value]], Sequence[Value]]:
    """Puts each value into its place, or places, in a text."""
    if len(order) < 2:
        # `itemgetter` would return the value itself.
        return lambda values: [values[at] for at in order]
    return itemgetter(*order)


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


_LOCK = Statement("SELECT pg_advisory_xact_lock({value[1]})")


class Session:
    """One connection, for the length of a block."""

    __slots__ = ("_raw", "_sqlite")

    def __init__(self, raw: Any, *, sqlite: bool) -> None:
        self._raw = raw
        self._sqlite = sqlite

    async def rows(self, make: Callable[..., Row], statement: Statement, *values: Value) -> list[Row]:
        """Runs a statement; `make` gets the columns of each row (SQLite's booleans are 0 and 1)."""
        if self._sqlite:
            text, given = statement.for_sqlite(values)
            found = await self._raw.execute_fetchall(text, given)
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


# A statement that takes longer is given up: it holds the event loop.
MOST_S = 0.003
# Steps of SQLite's virtual machine: some 50 µs. A small statement takes about 100.
_LOOK_EVERY_STEPS = 1_000


class Reader:
    """Reads SQLite's file on the event loop's own thread, without waiting; one for the whole process."""

    __slots__ = ("_connection", "_cursor", "_until")

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        # One for all statements, each of which is read to its end: a cursor of its own costs 0.7 us more.
        self._cursor = connection.cursor()
        self._until = 0.0
        connection.set_progress_handler(self._is_late, _LOOK_EVERY_STEPS)

    @classmethod
    def open(cls, filename: str) -> Self | None:
        """None where the file can't be read this way, or is in memory; it has to be there."""
        if filename == ":memory:" or filename.startswith("file:"):
            return None
        try:
            # No timeout: while the file is locked, `rows` returns None, and aiosqlite's thread waits instead.
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
        """The rows of a statement; None where they would take long."""
        small = statement.small_for_sqlite(values)
        if small is None:
            return None
        self._until = time.monotonic() + MOST_S
        try:
            found = self._cursor.execute(*small).fetchall()
        except sqlite3.Error:
            return None
        # Most people have no row of their own.
        return [make(*row) for row in found] if found else []

    def has_row(self, statement: Statement, values: tuple[Value, ...]) -> bool | None:
        """Whether a statement about single values has a row; None where that would take long."""
        self._until = time.monotonic() + MOST_S
        try:
            # To its end: a statement that stands at a row keeps its view of the file.
            return bool(self._cursor.execute(*statement.of_singles_for_sqlite(values)).fetchall())
        except sqlite3.Error:
            return None

    def _is_late(self) -> bool:
        return time.monotonic() > self._until


_PREPARED_STATEMENTS = 100
_CACHE_SIZE = "statement_cache_size"


class Route:
    """Finds out whether a pooler such as pgbouncer stands before PostgreSQL, and sets the pool up for it.

    Nothing uses the client's pool before `recognise` has returned.
    """

    def __init__(self, client: AsyncpgDBClient) -> None:
        self._client = client
        self._given: int | None = client.extra.get(_CACHE_SIZE)
        self._lock = asyncio.Lock()
        self._said = False
        self.pooled = self._given == 0
        self.known = self.pooled
        self.forget()

    def forget(self) -> None:
        """The next server may be behind a pooler, or not: the next pool works with both."""
        self.known = self._given == 0
        self._client.extra[_CACHE_SIZE] = 0
        self._client.server_settings.pop("default_transaction_isolation", None)

    async def recognise(self) -> None:
        """Asks the server, and makes the pool for what it finds. Raises what connecting raises."""
        async with self._lock:
            if self.known:
                return
            pool = self._client._pool
            if pool is None:
                raise ConnectionError("the database is closed")
            async with pool.acquire() as connection:
                try:
                    process = await connection.fetchval("SELECT pg_backend_pid()")
                except AttributeError as error:
                    if not _is_cut(connection):
                        raise
                    raise _cut() from error
                # A pooler makes up the number that cancels, since its connections to the server change.
                self.pooled = process != connection.get_server_pid()
            if not self.pooled:
                # Asked for in the greeting, of which a pooler refuses most. A statement by itself is a
                # transaction, too: with a stricter level than the one it is written for it may fail.
                self._client.server_settings["default_transaction_isolation"] = "read committed"
            elif not self._said:
                self._said = True
                logger.info(
                    "a pooler stands between this node and the database: no statement is kept prepared"
                )
            self._client.extra[_CACHE_SIZE] = self._given or (0 if self.pooled else _PREPARED_STATEMENTS)
            await self._client.create_connection(with_db=True)
            pool.terminate()
            self.known = True


class Connections:
    """The connections to one database, and all that pushsse uses of Tortoise beyond its public interface.

    Deliberate: Tortoise's own `in_transaction` isn't used, since it keeps the connection (or the lock) for
    ever when its BEGIN is cancelled. `Tortoise.init` neither, since its state is the process's: here each
    database has a context, entered for the length of a block. A context's own `with` keeps its token on the
    context, so two tasks can't be in it together. tests/preferences/test_tortoise.py checks the private
    parts: `_current_context`, `_pool`, `_connection`.
    """

    def __init__(self, configuration: dict[str, Any]) -> None:
        self._configuration = configuration
        self._context = TortoiseContext()
        self._client: Any = None
        self.sqlite = False
        self.route: Route | None = None

    @property
    def filename(self) -> str:
        """SQLite's file."""
        return str(self._client.filename)

    async def open(self) -> None:
        """Opens SQLite's file; PostgreSQL is called by the first query. Raises DatabaseUnavailable."""
        with self._context:
            await self._context.init(config=self._configuration)
        self._client = self._context.db()
        self.sqlite = isinstance(self._client, SqliteClient)
        if not self.sqlite:
            self.route = Route(self._client)
        try:
            if self.sqlite:
                await asyncio.to_thread(_try_file, self.filename, self._client.pragmas["journal_mode"])
            await self._client.create_connection(with_db=True)
        except OPENING as error:
            where = f" {self.filename}" if self.sqlite else ""
            raise DatabaseUnavailable(f"the database{where} can't be opened: {error}") from error

    async def close(self) -> None:
        """Closes the connections; those that don't within 2 s are cut."""
        if isinstance(self._client, AsyncpgDBClient) and (pool := self._client._pool) is not None:
            try:
                async with asyncio.timeout(_CLOSE_S):
                    await pool.close()
            except AWAY:
                pool.terminate()
            self._client._pool = None
        await self._context.close_connections()

    def connected(self) -> AbstractAsyncContextManager[Any]:
        """A driver's connection (aiosqlite's or asyncpg's) for the length of a block."""
        if self.sqlite:
            found: AbstractAsyncContextManager[Any] = self._client.acquire_connection()
            return found
        return _Pooled(self._client, self.route)

    @asynccontextmanager
    async def begun(self, raw: Any) -> AsyncIterator[None]:
        """A transaction on a connection; on SQLite it has the write lock from the start."""
        if not self.sqlite:
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
    def current(self, raw: Any) -> Iterator[None]:
        """Makes a connection the one that Tortoise's models use, in this task."""
        wrapper = (SqliteConnection if self.sqlite else PostgresConnection)(self._client)
        wrapper._connection = raw
        entered = _current_context.set(self._context)
        token = self._context.connections.set(self._client.connection_name, wrapper)
        try:
            yield
        finally:
            self._context.connections.reset(token)
            _current_context.reset(entered)

    async def renew(self) -> None:
        """Cuts all of the pool's connections: those to a server that vanished would fail one by one."""
        if not self.sqlite and self._client._pool is not None:
            self._client._pool.terminate()
            if self.route is not None:
                self.route.forget()
            await self._client.create_connection(with_db=True)

    def migrations(self) -> MigrationExecutor:
        """What plans and applies migrations on the `current` connection."""
        return MigrationExecutor(self._migrated, self._configuration["apps"])

    def schema_editor(self) -> BaseSchemaEditor:
        """Makes the table of applied migrations on the `current` connection."""
        return (SqliteSchemaEditor if self.sqlite else AsyncpgSchemaEditor)(self._migrated, atomic=False)

    @property
    def _migrated(self) -> BaseDBAsyncClient:
        return self._context.connections.get(self._client.connection_name)


class _Pooled:
    """A connection of asyncpg's pool. A class, since each statement takes one: see `database._Guard`."""

    __slots__ = ("_client", "_pool", "_raw", "_route")

    def __init__(self, client: Any, route: Route | None) -> None:
        self._client = client
        self._route = route
        self._pool: Any = None
        self._raw: Any = None

    async def __aenter__(self) -> Any:
        if self._route is not None and not self._route.known:
            await self._route.recognise()
        self._pool = self._client._pool
        self._raw = await self._pool.acquire()
        return self._raw

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        is_cut = isinstance(error, AttributeError) and _is_cut(self._raw)
        # After a cancelled query asyncpg waits here for the server to confirm; without a limit, for ever.
        with suppress(asyncpg.InternalClientError):  # raised when `renew` cut it in the meantime
            if error is None:
                await self._pool.release(self._raw, timeout=_RELEASE_S)
            else:
                # An error of this would take the place of the block's, also of a cancellation: whoever tries
                # again when the database is away would then go on for ever.
                with suppress(*AWAY):
                    await self._released()
        if is_cut:
            raise _cut() from error

    async def _released(self) -> None:
        # asyncpg goes on with it in a task of its own, at whose error nobody looks if we are cancelled here.
        # So the whole of it runs in one of ours.
        releasing = asyncio.ensure_future(self._pool.release(self._raw, timeout=_RELEASE_S))
        releasing.add_done_callback(_look_at)
        await asyncio.shield(releasing)


def _look_at(task: "asyncio.Future[None]") -> None:
    # asyncio reports an exception that nobody has looked at.
    if not task.cancelled():
        task.exception()


def _is_cut(raw: Any) -> bool:
    """Whether `renew` has cut a connection. Then asyncpg's next step may be an AttributeError.

    It goes on with a protocol that isn't there, since it looks for that at the beginning of a call alone.
    """
    try:
        return bool(raw.is_closed())
    except asyncpg.InterfaceError:
        # The pool has taken it back.
        return True


def _cut() -> asyncpg.InterfaceError:
    return asyncpg.InterfaceError("the connection was cut, since others had failed")


def _try_file(name: str, journal_mode: str) -> None:
    """Opens the file before aiosqlite does. Where aiosqlite fails, its thread outlives the event loop.

    Waits for another process that is making the file: to change the journal takes all of it, and SQLite
    doesn't wait for that by itself.
    """
    end = time.monotonic() + _OPEN_S
    with closing(sqlite3.connect(name, timeout=_OPEN_S)) as connection:
        while True:
            try:
                connection.execute("PRAGMA schema_version")
                connection.execute(f"PRAGMA journal_mode = {journal_mode}")
                return
            except sqlite3.OperationalError as error:
                if not is_lock(error) or time.monotonic() >= end:
                    raise
            time.sleep(_OPEN_PAUSE_S)


@asynccontextmanager
async def _postgres_transaction(raw: Any) -> AsyncIterator[None]:
    # The statements are written for this level: under a stricter one of the server they would fail at times.
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
