"""What the embedded backplane keeps on disk, so that a restart goes on where it stopped.

Used by `memory` alone. An SQLite file beside the database, written behind by one thread, some 50 ms late:
entries, fences and remembered ids of one call in one transaction. Beside it lies a table of each log's last
number, mapped into memory, which outlives a process that is killed, so the next one knows whether something
was never written. Both carry the word of the latest start, so that an older file isn't taken for the newest.
A log that lost something, or may have (a power cut), goes on in another epoch, and its clients are told a
gap. Deliberate: a file of its own; in the database's each would wait for the other.
"""

import asyncio
import fcntl
import gc
import logging
import mmap
import os
import secrets
import sqlite3
import string
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

import msgspec

from pushsse.backoff import Backoff
from pushsse.backplane import BROADCAST, REMEMBER_MOST, REMEMBER_MS, Entry, codec
from pushsse.errors import SettingsError

log = logging.getLogger(__name__)
VERSION = 1
WRITE_EVERY_S = 0.05
RETRY_S = 5.0
_RETRY_MOST_S = 60.0
MOST_PENDING = 200_000
MOST_PENDING_BYTES = 64 * 1024**2
_CLOSE_S = 10.0
_FORGET_EVERY_S = 60.0
_WORD = string.ascii_lowercase + string.digits
_NUMBER = struct.Struct("<Q")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_SCHEMA = """
    CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS log (name TEXT PRIMARY KEY, epoch TEXT NOT NULL, number INTEGER NOT NULL,
        trimmed_ms INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS entry (log TEXT NOT NULL, number INTEGER NOT NULL, place INTEGER NOT NULL,
        at_ms INTEGER NOT NULL, body BLOB NOT NULL, PRIMARY KEY (log, number));
    CREATE TABLE IF NOT EXISTS fence (log TEXT NOT NULL, topic TEXT NOT NULL, partition INTEGER NOT NULL,
        position INTEGER NOT NULL, at_ms INTEGER NOT NULL, PRIMARY KEY (log, topic, partition)) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS owner (topic TEXT NOT NULL, partition INTEGER NOT NULL, owner TEXT NOT NULL,
        PRIMARY KEY (topic, partition)) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS start (topic TEXT PRIMARY KEY, offsets TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS seen (name BLOB PRIMARY KEY, at_ms INTEGER NOT NULL) WITHOUT ROWID;
"""
# What each column holds; anything else is damage, which SQLite itself doesn't notice.
_TYPES = {
    "log": {"name": "text", "epoch": "text", "number": "integer", "trimmed_ms": "integer"},
    "entry": {"log": "text", "number": "integer", "place": "integer", "at_ms": "integer", "body": "blob"},
    "fence": {
        "log": "text",
        "topic": "text",
        "partition": "integer",
        "position": "integer",
        "at_ms": "integer",
    },
    "owner": {"topic": "text", "partition": "integer", "owner": "text"},
    "start": {"topic": "text", "offsets": "text"},
    "seen": {"name": "blob", "at_ms": "integer"},
}
# With other shards people hash to other logs; what Kafka's partitions need isn't bound to a log.
_BY_LOG = ("log", "entry", "fence", "seen")
# Another time, or with more room, the same file may be written.
_AWAY = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_AUTH,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_INTERRUPT,
    }
)
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR})
_SET = "INSERT OR REPLACE INTO meta VALUES (?, ?)"
_LOG = "INSERT OR REPLACE INTO log VALUES (?, ?, ?, ?)"
_ENTRY = "INSERT OR REPLACE INTO entry VALUES (?, ?, ?, ?, ?)"
_TRIM = "DELETE FROM entry WHERE log = ? AND number < ?"
_FENCE = "INSERT OR REPLACE INTO fence VALUES (?, ?, ?, ?, ?)"
_SEEN = "INSERT OR REPLACE INTO seen VALUES (?, ?)"
_OWNER = "INSERT OR REPLACE INTO owner VALUES (?, ?, ?)"
_START = "INSERT OR REPLACE INTO start VALUES (?, ?)"
_UNFENCE = "DELETE FROM fence WHERE topic = ? AND partition = ?"
# As in memory: for ten minutes, and at most so many.
_REMEMBERED = """SELECT name, at_ms FROM
    (SELECT name, at_ms FROM seen WHERE at_ms >= ? ORDER BY at_ms DESC LIMIT ?) ORDER BY at_ms"""
_FORGET = """DELETE FROM seen WHERE at_ms < max(?, coalesce(
    (SELECT at_ms FROM seen ORDER BY at_ms DESC LIMIT 1 OFFSET ?), 0))"""


@dataclass(slots=True)
class LogState:
    """One log: its entries, and its last number even where it holds none."""

    epoch: str
    number: int = 0
    trimmed_ms: int = 0
    entries: list[Entry] = field(default_factory=list)


@dataclass(slots=True)
class State:
    """All that the embedded backplane knows."""

    # How epochs of logs begin that have never held anything.
    word: str = field(default_factory=lambda: fresh_word())
    logs: dict[str, LogState] = field(default_factory=dict)
    fences: dict[tuple[str, str, int], tuple[int, int]] = field(default_factory=dict)
    owners: dict[tuple[str, int], str] = field(default_factory=dict)
    starts: dict[str, dict[int, int]] = field(default_factory=dict)
    names: dict[bytes, int] = field(default_factory=dict)
    identity: str = ""

    @property
    def order(self) -> int:
        """The highest order of any entry."""
        return max((log.entries[-1].order for log in self.logs.values() if log.entries), default=0)


class Appended(NamedTuple):
    """What one call did to its log."""

    log: str
    epoch: str
    number: int
    first: int
    trimmed_ms: int
    entries: Sequence[Entry]
    fences: Sequence[tuple[str, int, int, int]]
    names: Sequence[tuple[bytes, int]]


# A statement, and its rows.
Change = tuple[str, Sequence[tuple[object, ...]]]


class LogFile:
    """The file, between `open` and `close`. `kept` says whether what happens is written."""

    def __init__(self, path: Path, *, shards: int) -> None:
        self.kept = False
        self._path = path
        self._shards = shards
        self._numbers: _Numbers | None = None
        # In the file's meta and in the table of numbers.
        self._session = secrets.randbits(63) or 1
        self._pending: list[Appended | Change] = []
        self._pending_bytes = 0
        # The disk stood still for too long: only a snapshot can say what there is. The loop's own.
        self._dropped = False
        self._waiting: list[asyncio.Future[None]] = []
        # Something is pending; somebody waits for it; it is the end.
        self._wake, self._urgent, self._ending = threading.Event(), threading.Event(), threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._snapshot: Callable[[], State] | None = None
        self._thread: threading.Thread | None = None
        self._forgotten_at = time.monotonic()

    async def open(self, snapshot: Callable[[], State]) -> State:
        """What was kept, empty where nothing was. `snapshot` says all there is, to write the file again.

        Raises SettingsError where another process has the file. One that is damaged is put aside; while it
        can't be written, the log is in memory alone: both are logged.
        """
        self._loop = asyncio.get_running_loop()
        self._snapshot = snapshot
        collecting = gc.isenabled()
        # It would walk all that is read again and again, and the event loop waits for each walk.
        gc.disable()
        try:
            state = await asyncio.to_thread(self._load)
        finally:
            # Nor does it walk it as soon as it is on again; `memory.give_back` takes that back.
            gc.freeze()
            if collecting:
                gc.enable()
        if self._numbers is not None:
            self._thread = threading.Thread(target=self._run, name="log file", daemon=True)
            self._thread.start()
        return state

    async def close(self) -> None:
        """Writes what is left, and marks the file as whole."""
        for event in (self._ending, self._urgent, self._wake):
            event.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, _CLOSE_S)
            if self._thread.is_alive():
                # It keeps the lock: what it still writes mustn't meet another process.
                log.warning(
                    "%s wasn't written within %.0f s: what isn't on disk is lost, and clients are told a gap",
                    self._path,
                    _CLOSE_S,
                )
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)

    # On the event loop

    def appended(self, done: Appended) -> None:
        """Takes down what a call did."""
        if self._numbers is not None and not self._ending.is_set():
            if done.entries:
                self._numbers.set(done.log, done.number)
            self._add(done, size=_size(done))

    def change(self, statement: str, *rows: tuple[object, ...]) -> None:
        """Takes down anything else."""
        if self._numbers is not None and not self._ending.is_set():
            self._add((statement, rows))

    def claimed(self, topic: str, partition: int, owner: str) -> None:
        """Takes down a claim."""
        self.change(_OWNER, (topic, partition, owner))

    def started(self, topic: str, offsets: dict[int, int]) -> None:
        """Takes down where a topic was begun."""
        self.change(_START, (topic, msgspec.json.encode(offsets).decode()))

    def unfenced(self, topic: str, partition: int) -> None:
        """Takes down that a fence was reset."""
        self.change(_UNFENCE, (topic, partition))

    def known_as(self, identity: str) -> None:
        """Takes down the backplane's identity."""
        self.change(_SET, ("identity", identity))

    async def written(self) -> None:
        """Returns when everything so far is on disk, or can't be kept at all just now."""
        if self.kept and (self._pending or self._dropped) and not self._ending.is_set():
            waiting = asyncio.get_running_loop().create_future()
            self._waiting.append(waiting)
            self._urgent.set()
            self._wake.set()
            await waiting

    def _add(self, change: Appended | Change, *, size: int = 0) -> None:
        if self._dropped:
            return
        if not self._pending:
            self._wake.set()
        if len(self._pending) < MOST_PENDING and self._pending_bytes < MOST_PENDING_BYTES:
            self._pending.append(change)
            self._pending_bytes += size
        else:
            # Not `kept`: the thread sets that when what it writes now is written, and this isn't among it.
            self._pending, self._pending_bytes, self._dropped = [], 0, True

    def _taken(self) -> tuple[list[Appended | Change], list[asyncio.Future[None]], State | None]:
        """For the thread: what is to be written; after a failure all there is."""
        pending, self._pending, self._pending_bytes = self._pending, [], 0
        waiting, self._waiting = self._waiting, []
        dropped, self._dropped = self._dropped, False
        whole = self._snapshot() if (dropped or not self.kept) and self._snapshot is not None else None
        return pending, waiting, whole

    # In the thread

    def _run(self) -> None:
        connection: sqlite3.Connection | None = None
        failed = not self.kept
        backoff = Backoff(RETRY_S, _RETRY_MOST_S)
        while True:
            if failed:
                self._ending.wait(backoff.next_s())
            else:
                self._wake.wait()
                # What comes meanwhile is written with it; somebody may wait for it, though.
                self._urgent.wait(WRITE_EVERY_S)
            self._wake.clear()
            self._urgent.clear()
            last = self._ending.is_set()
            pending, waiting, whole = self._taken() if last else self._ask()
            try:
                connection = connection or self._connect()
                self._write(connection, pending, whole, last=last)
            except Exception as error:  # noqa: BLE001  without the thread whoever waits for the disk would hang
                _close(connection)
                connection = None
                self._failed(error, first=not failed)
                failed = True
            else:
                if failed:
                    log.info("%s is written again", self._path)
                    backoff.reset()
                self.kept, failed = True, False
            self._answer(waiting)
            if last:
                _close(connection)
                if self._numbers is not None:
                    self._numbers.close()
                return

    def _failed(self, error: Exception, *, first: bool) -> None:
        self.kept = False
        if isinstance(error, sqlite3.Error) and _code(error) in _DAMAGED:
            # The next try begins it anew, with all there is.
            with suppress(OSError):
                self._put_aside()
        if first:
            log.warning(
                "%s can't be written: %s. The log goes on in memory; what isn't on disk at a restart is lost,"
                " and clients are told a gap",
                self._path,
                error,
                exc_info=not isinstance(error, (sqlite3.Error, OSError)),
            )

    def _ask(self) -> tuple[list[Appended | Change], list[asyncio.Future[None]], State | None]:
        """What there is to write, taken on the loop; directly at the end, when nothing is appended."""
        result: list[tuple[list[Appended | Change], list[asyncio.Future[None]], State | None]] = []
        done = threading.Event()

        def take() -> None:
            if not self._ending.is_set():
                result.append(self._taken())
            done.set()

        if self._loop is not None:
            with suppress(RuntimeError):  # closed
                self._loop.call_soon_threadsafe(take)
                while not done.wait(0.1) and not self._ending.is_set():
                    pass
        return result[0] if result else self._taken()

    def _answer(self, waiting: Sequence[asyncio.Future[None]]) -> None:
        def answer() -> None:
            for each in waiting:
                if not each.done():
                    each.set_result(None)

        if waiting and self._loop is not None:
            with suppress(RuntimeError):  # the loop is gone, and whoever waited with it
                self._loop.call_soon_threadsafe(answer)

    def _write(
        self,
        connection: sqlite3.Connection,
        pending: Sequence[Appended | Change],
        whole: State | None,
        *,
        last: bool,
    ) -> None:
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            if whole is not None:
                _rewrite(connection, whole)
                connection.executemany(_SET, self._meta(whole))
            else:
                for change in pending:
                    _apply(connection, change)
            if time.monotonic() - self._forgotten_at > _FORGET_EVERY_S:
                self._forgotten_at = time.monotonic()
                connection.execute(_FORGET, (_now_ms() - REMEMBER_MS, REMEMBER_MOST))
            if last:
                connection.execute(_SET, ("clean", "1"))
        if last:
            # On the disk itself, so that a clean end is one after a power cut, too.
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=2.0, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.executescript(_SCHEMA)
        return connection

    def _meta(self, state: State) -> list[tuple[str, str]]:
        return [
            ("version", str(VERSION)),
            ("shards", str(self._shards)),
            ("boot", _boot_id()),
            ("session", str(self._session)),
            ("word", state.word),
            ("identity", state.identity),
            ("clean", "0"),
        ]

    # At the start

    def _load(self) -> State:
        try:
            self._numbers = _Numbers(self._path.with_name(self._path.name + ".numbers"), self._shards)
        except BlockingIOError:
            raise SettingsError(
                f"PUSHSSE_DATABASE_URL: another process uses {self._path.name.removesuffix('-log')}. Without"
                " Redis two processes would share no events: stop it, give this one a database of its own,"
                " or set PUSHSSE_REDIS_URL for both"
            ) from None
        except OSError as error:
            log.warning("%s can't be kept: %s. The log is in memory alone", self._path, error.strerror)
            # What is in the file is out of date from now on, and a later start mustn't take it up.
            with suppress(OSError):
                self._put_aside()
            return State()
        try:
            return self._read()
        except (sqlite3.Error, ValueError, TypeError, KeyError, msgspec.MsgspecError) as error:
            if isinstance(error, sqlite3.OperationalError) and _code(error) in _AWAY:
                return self._without(error)
            return self._begin_anew(error)

    def _without(self, error: Exception) -> State:
        """Begins with nothing; the thread writes the file as soon as that can be."""
        assert self._numbers is not None
        log.warning("%s can't be kept: %s. Until it can, the log is in memory alone", self._path, error)
        # With this start's word, which the file hasn't: if it is never written, it is out of date.
        self._numbers.begin(self._session, {})
        return State()

    def _begin_anew(self, error: Exception) -> State:
        try:
            aside = self._put_aside()
            state = self._read()
        except (sqlite3.Error, OSError) as failed:
            return self._without(failed)
        log.warning(
            "%s is damaged: %s. It is put aside as %s, the logs begin again, and clients are told a gap",
            self._path,
            error,
            aside,
        )
        return state

    def _put_aside(self) -> str:
        """Makes room for a new file; the old one's new name. Raises OSError."""
        aside = self._path.with_name(f"{self._path.name}.damaged")
        os.replace(self._path, aside)
        for left in ("-wal", "-shm"):
            self._path.with_name(self._path.name + left).unlink(missing_ok=True)
        return aside.name

    def _read(self) -> State:
        assert self._numbers is not None
        with closing(self._connect()) as connection:
            meta = dict(connection.execute("SELECT name, value FROM meta"))
            if meta.get("version", str(VERSION)) != str(VERSION):
                raise ValueError(f"its version is {meta['version']}, and this release reads {VERSION}")
            _check_types(connection)
            same_shards = meta.get("shards", str(self._shards)) == str(self._shards)
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                # A clock that went back would otherwise make ids last longer than ten minutes.
                connection.execute("UPDATE seen SET at_ms = ?1 WHERE at_ms > ?1", (_now_ms(),))
                for table in () if same_shards else _BY_LOG:
                    connection.execute(f"DELETE FROM {table}")
                state = _read_state(connection)
                state.identity = meta.get("identity", "")
                if same_shards and meta:
                    state.word = meta.get("word", state.word)
                    self._distrust(state, meta)
                _rewrite_logs(connection, state)
                connection.executemany(_SET, self._meta(state))
            self._numbers.begin(self._session, {name: kept.number for name, kept in state.logs.items()})
        self.kept = True
        return state

    def _distrust(self, state: State, meta: Mapping[str, str]) -> None:
        """Logs that lost something get another epoch; all of them where that can't be known."""
        assert self._numbers is not None
        # Not the file that the latest start used; or a power cut, which took of both what it liked.
        unknown = meta.get("session") != str(self._numbers.session) or (
            meta.get("clean") != "1" and meta.get("boot") != _boot_id()
        )
        if unknown:
            state.word = fresh_word()
        lost = []
        for name, number in self._numbers.all().items():
            kept = state.logs.get(name)
            if kept is None and number and not unknown:
                kept = state.logs[name] = LogState("")
            if kept is not None and (unknown or number != kept.number):
                kept.epoch = fresh_word() + name
                # Whoever asks for the past is told that it has a hole.
                kept.trimmed_ms = _now_ms()
                lost.append(name)
        if lost:
            log.warning(
                "%s may lack what was published last (a kill, a power cut, or an older file was put back):"
                " clients of %s are told a gap",
                self._path,
                "all logs" if unknown else f"log {', '.join(lost)}",
            )


def fresh_word() -> str:
    """How the epochs of a log that begins, begin; its name follows."""
    return "".join(secrets.choice(_WORD) for _ in range(8))


class _Numbers:
    """The last number of each log, in a file that is mapped into memory; it is also what a process locks."""

    def __init__(self, path: Path, shards: int) -> None:
        """Raises BlockingIOError where another process has it, OSError."""
        self._shards = shards
        self._file: BinaryIO = path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            size = (shards + 2) * _NUMBER.size
            if os.fstat(self._file.fileno()).st_size != size:
                self._file.truncate(0)
                self._file.write(bytes(size))
                self._file.flush()
            self._map = mmap.mmap(self._file.fileno(), size)
        except BaseException:
            self._file.close()
            raise

    def set(self, name: str, number: int) -> None:
        """Takes a log's last number down, for whoever comes after us."""
        _NUMBER.pack_into(self._map, self._at(name), number)

    def all(self) -> dict[str, int]:
        """The numbers by log."""
        names = (BROADCAST, *map(str, range(self._shards)))
        return {name: _NUMBER.unpack_from(self._map, self._at(name))[0] for name in names}

    @property
    def session(self) -> int:
        """The word of the start that set them; 0 for none."""
        return int(_NUMBER.unpack_from(self._map, 0)[0])

    def begin(self, session: int, numbers: Mapping[str, int]) -> None:
        """Sets all of them."""
        _NUMBER.pack_into(self._map, 0, session)
        for name in self.all():
            self.set(name, numbers.get(name, 0))

    def close(self) -> None:
        """Lets go of the file; what it says is on the disk, as far as that takes it."""
        with suppress(OSError):
            self._map.flush()
            os.fsync(self._file.fileno())
        self._map.close()
        self._file.close()

    def _at(self, name: str) -> int:
        return _NUMBER.size * (1 if name == BROADCAST else int(name) + 2)


def _apply(connection: sqlite3.Connection, change: Appended | Change) -> None:
    if not isinstance(change, Appended):
        statement, rows = change
        connection.executemany(statement, rows)
        return
    connection.executemany(_ENTRY, map(_row, change.entries))
    connection.execute(_LOG, (change.log, change.epoch, change.number, change.trimmed_ms))
    connection.execute(_TRIM, (change.log, change.first))
    if change.fences:
        connection.executemany(_FENCE, [(change.log, *fence) for fence in change.fences])
    if change.names:
        connection.executemany(_SEEN, change.names)


def _row(entry: Entry) -> tuple[object, ...]:
    return entry.log, entry.number, entry.order, entry.at_ms, codec.encode(entry.publication)


def _rewrite(connection: sqlite3.Connection, state: State) -> None:
    """Everything, in place of what is there."""
    for table in _TYPES:
        connection.execute(f"DELETE FROM {table}")
    _rewrite_logs(connection, state)
    for kept in state.logs.values():
        connection.executemany(_ENTRY, map(_row, kept.entries))
    connection.executemany(_FENCE, [(*place, *fence) for place, fence in state.fences.items()])
    connection.executemany(_OWNER, [(*place, owner) for place, owner in state.owners.items()])
    starts = [(topic, msgspec.json.encode(offsets).decode()) for topic, offsets in state.starts.items()]
    connection.executemany(_START, starts)
    connection.executemany(_SEEN, state.names.items())


def _rewrite_logs(connection: sqlite3.Connection, state: State) -> None:
    connection.execute("DELETE FROM log")
    rows = [(name, kept.epoch, kept.number, kept.trimmed_ms) for name, kept in state.logs.items()]
    connection.executemany(_LOG, rows)


def _check_types(connection: sqlite3.Connection) -> None:
    """Raises ValueError where a table holds what was never written to it."""
    for table, columns in _TYPES.items():
        wrong = " OR ".join(f"typeof({column}) <> '{kind}'" for column, kind in columns.items())
        if connection.execute(f"SELECT 1 FROM {table} WHERE {wrong} LIMIT 1").fetchone():
            raise ValueError(f"table {table} holds a value of another type")


def _read_state(connection: sqlite3.Connection) -> State:
    state = State()
    for name, epoch, number, trimmed_ms in connection.execute("SELECT * FROM log"):
        state.logs[name] = LogState(epoch, number, trimmed_ms)
    rows = connection.execute("SELECT log, number, place, at_ms, body FROM entry ORDER BY log, number")
    for name, number, order, at_ms, body in rows:
        entries = state.logs[name].entries
        if entries and entries[-1].number + 1 != number:
            raise ValueError(f"log {name} has no entry {entries[-1].number + 1}")
        publication = codec.decode(body)
        if publication is codec.UNREADABLE:
            # Passing over it would be a gap that nobody is told.
            raise ValueError(f"entry {number} of log {name} can't be read")
        entries.append(Entry(name, number, order, at_ms, publication))
    for name, kept in state.logs.items():
        if kept.entries and kept.entries[-1].number != kept.number:
            raise ValueError(f"log {name} ends at {kept.entries[-1].number}, not at {kept.number}")
    for name, topic, partition, position, at_ms in connection.execute("SELECT * FROM fence"):
        state.fences[name, topic, partition] = position, at_ms
    for topic, partition, owner in connection.execute("SELECT * FROM owner"):
        state.owners[topic, partition] = owner
    for topic, offsets in connection.execute("SELECT * FROM start"):
        state.starts[topic] = msgspec.json.decode(offsets, type=dict[int, int])
    rows = connection.execute(_REMEMBERED, (_now_ms() - REMEMBER_MS, REMEMBER_MOST))
    # One by one: made in one call, a million would hold the event loop for longer than it may be.
    for name, at_ms in rows:
        state.names[name] = at_ms
    return state


def _boot_id() -> str:
    """Which start of the machine this is; where that can't be known, none that is known again."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return secrets.token_hex(16)


def _size(done: Appended) -> int:
    """About what it takes in memory beside its entries, which the log holds, too, until they are trimmed."""
    return sum(len(entry.publication.body) for entry in done.entries) + 64 * len(done.names)


def _code(error: sqlite3.Error) -> int:
    """SQLite's primary result code; 0 where Python itself found the error."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _close(connection: sqlite3.Connection | None) -> None:
    if connection is not None:
        with suppress(sqlite3.Error):
            connection.close()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
