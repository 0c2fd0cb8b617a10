"""The embedded log on disk: an SQLite file, and beside it a table of the last number of each log.

`LogWriter` is its only caller. The table is mapped into memory and outlives a killed process, so the next
start knows whether the file lacks something. Both carry the session of the latest start, so that an older
file is not mistaken for the latest. A log that lost entries, or may have (a power cut), continues in a new
epoch: its clients are told a gap. Deliberate: a file of its own, so that it never waits for the database's.
"""

import fcntl
import logging
import mmap
import os
import secrets
import sqlite3
import struct
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

import msgspec

from pushsse.backplane import BROADCAST, REMEMBER_MOST, REMEMBER_MS, Entry, codec, fresh_word, machine_ms
from pushsse.backplane.memory.logs import LogSnapshot, LogUpdate, Snapshot
from pushsse.errors import SettingsError

logger = logging.getLogger(__name__)
VERSION = 2
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_FORGET_EVERY_S = 60.0
_NUMBER = struct.Struct("<Q")
_SCHEMA = """
    CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS log (name TEXT PRIMARY KEY, epoch TEXT NOT NULL, number INTEGER NOT NULL,
        trimmed_ms INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS entry (log TEXT NOT NULL, number INTEGER NOT NULL, place INTEGER PRIMARY KEY,
        at_ms INTEGER NOT NULL, body BLOB NOT NULL);
    CREATE TABLE IF NOT EXISTS fence (log TEXT NOT NULL, topic TEXT NOT NULL, partition INTEGER NOT NULL,
        position INTEGER NOT NULL, at_ms INTEGER NOT NULL, PRIMARY KEY (log, topic, partition)) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS owner (topic TEXT NOT NULL, partition INTEGER NOT NULL, owner TEXT NOT NULL,
        PRIMARY KEY (topic, partition)) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS start (topic TEXT PRIMARY KEY, offsets TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS seen (name BLOB PRIMARY KEY, at_ms INTEGER NOT NULL) WITHOUT ROWID;
"""
# Version 1 found entries by log and number. The index of that took half of the time of a write.
_FROM_VERSION_1 = (
    "ALTER TABLE entry RENAME TO old",
    "CREATE TABLE entry (log TEXT NOT NULL, number INTEGER NOT NULL, place INTEGER PRIMARY KEY,"
    " at_ms INTEGER NOT NULL, body BLOB NOT NULL)",
    "INSERT INTO entry SELECT log, number, place, at_ms, body FROM old ORDER BY place",
    "DROP TABLE old",
)
# The type of each column's values. Anything else is damage that SQLite itself does not report.
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
# With another number of shards, people hash to other logs. Owners and starts do not depend on that.
_BY_LOG = ("log", "entry", "fence", "seen")
# The same file can perhaps be used later: it is locked, or the disk is full or away.
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
_LOG = "INSERT OR REPLACE INTO log VALUES"
_ENTRY = "INSERT OR REPLACE INTO entry VALUES"
_TRIM = "DELETE FROM entry WHERE place IN (SELECT value FROM json_each(?))"
_FENCE = "INSERT OR REPLACE INTO fence VALUES"
_SEEN = "INSERT OR REPLACE INTO seen VALUES"
_OWNER = "INSERT OR REPLACE INTO owner VALUES (?, ?, ?)"
_START = "INSERT OR REPLACE INTO start VALUES (?, ?)"
_RESET_FENCE = "DELETE FROM fence WHERE topic = ? AND partition = ?"
# The same bounds as in memory: REMEMBER_MS and REMEMBER_MOST.
_REMEMBERED = """SELECT name, at_ms FROM
    (SELECT name, at_ms FROM seen WHERE at_ms >= ? ORDER BY at_ms DESC LIMIT ?) ORDER BY at_ms"""
_FORGET = """DELETE FROM seen WHERE at_ms < max(?, coalesce(
    (SELECT at_ms FROM seen ORDER BY at_ms DESC LIMIT 1 OFFSET ?), 0))"""


class RowChange(NamedTuple):
    """Any other change: an SQL statement and its row."""

    sql: str
    row: tuple[object, ...]


def set_owner(topic: str, partition: int, owner: str) -> RowChange:
    """A partition has been claimed."""
    return RowChange(_OWNER, (topic, partition, owner))


def set_start(topic: str, offsets: Mapping[int, int]) -> RowChange:
    """Where reading of a topic began."""
    return RowChange(_START, (topic, _json(offsets)))


def delete_fences(topic: str, partition: int) -> RowChange:
    """The fences of a partition have been reset."""
    return RowChange(_RESET_FENCE, (topic, partition))


def set_identity(identity: str) -> RowChange:
    """The word by which the backplane is known."""
    return RowChange(_SET, ("identity", identity))


class LogStore:
    """The file and the table of numbers, between `load` and `close`.

    Everything blocks and belongs in one thread at a time, except `set_number`, which only writes memory.
    """

    def __init__(self, path: Path, *, shards: int, boot_id: Path = BOOT_ID) -> None:
        self.path = path
        self.is_current = False
        self._shards = shards
        self._boot_id = boot_id
        self._session = secrets.randbits(63) or 1
        self._numbers: _Numbers | None = None
        self._connection: sqlite3.Connection | None = None
        self._forgotten_at = time.monotonic()

    @property
    def is_open(self) -> bool:
        """Whether this process has the lock, and may write."""
        return self._numbers is not None

    def load(self) -> Snapshot:
        """Reads what an earlier start left. `is_current` says whether the file holds all of it.

        A damaged file is put aside. Where the file cannot be used now, the snapshot is empty. Both are
        logged. Raises SettingsError where another process has the lock.
        """
        try:
            self._numbers = _Numbers(self.path.with_name(self.path.name + ".numbers"), self._shards)
        except BlockingIOError:
            raise SettingsError(
                f"PUSHSSE_DATABASE_URL: another process uses {self.path.name.removesuffix('-log')}. Without"
                " Redis two processes would share no events: stop it, give this one a database of its own,"
                " or set PUSHSSE_REDIS_URL for both"
            ) from None
        except OSError as error:
            logger.warning(
                "%s can't be used: %s. The log is in memory alone, and a restart loses it: mend that and"
                " start again",
                self.path,
                error.strerror,
            )
            # From now on the file is out of date. Without the table, a later start could not know that.
            with suppress(OSError):
                self._put_aside()
            return Snapshot()
        try:
            return self._read()
        except (sqlite3.Error, ValueError, TypeError, KeyError, msgspec.MsgspecError) as error:
            if isinstance(error, sqlite3.OperationalError) and _code(error) in _AWAY:
                return self._without_file(error)
            return self._start_over(error)

    def set_number(self, log: str, number: int) -> None:
        """Notes the last number of a log, for the next start."""
        if self._numbers is not None:
            self._numbers.set(log, number)

    def write(
        self, changes: Sequence[LogUpdate | RowChange], whole: Snapshot | None, *, last: bool = False
    ) -> None:
        """Writes changes, or everything if there is a `whole`, in one transaction; `last` marks a clean end.

        Raises sqlite3.Error and OSError; the next call opens the file again, and must bring the whole. A
        damaged file has been put aside by then.
        """
        try:
            if self._connection is None:
                self._connection = self._connect()
            self._transact(self._connection, changes, whole, last=last)
        except BaseException as error:
            self._disconnect()
            if isinstance(error, sqlite3.Error) and _code(error) in _DAMAGED:
                with suppress(OSError):
                    self._put_aside()
            raise

    def close(self) -> None:
        """Closes the file, and releases the lock."""
        self._disconnect()
        if self._numbers is not None:
            self._numbers.close()

    def _transact(
        self,
        connection: sqlite3.Connection,
        changes: Sequence[LogUpdate | RowChange],
        whole: Snapshot | None,
        *,
        last: bool,
    ) -> None:
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            if whole is not None:
                _rewrite(connection, whole)
                connection.executemany(_SET, self._meta(whole))
            else:
                _apply(connection, changes)
            if time.monotonic() - self._forgotten_at > _FORGET_EVERY_S:
                self._forgotten_at = time.monotonic()
                connection.execute(_FORGET, (machine_ms() - REMEMBER_MS, REMEMBER_MOST))
            if last:
                connection.execute(_SET, ("clean", "1"))
        if last:
            # Onto the disk itself, so that a clean end survives a power cut, too.
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=2.0, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.executescript(_SCHEMA)
        return connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()

    def _meta(self, snapshot: Snapshot) -> list[tuple[str, str]]:
        return [
            ("version", str(VERSION)),
            ("shards", str(self._shards)),
            ("boot", self._boot()),
            ("session", str(self._session)),
            ("word", snapshot.word),
            ("identity", snapshot.identity),
            ("clean", "0"),
        ]

    def _boot(self) -> str:
        """Which start of the machine this is. Where that is unknown: a word that matches no other."""
        try:
            return self._boot_id.read_text().strip()
        except OSError:
            return secrets.token_hex(16)

    # At the start

    def _without_file(self, error: Exception) -> Snapshot:
        """Starts empty; the file is written whole as soon as it can be."""
        assert self._numbers is not None
        logger.warning(
            "%s can't be used yet: %s. Until it can, the log is in memory alone, and a restart loses it",
            self.path,
            error,
        )
        # The table gets this start's session and the file does not: unless it is written, it is out of date.
        self._numbers.begin(self._session, {})
        return Snapshot()

    def _start_over(self, error: Exception) -> Snapshot:
        try:
            aside = self._put_aside()
            snapshot = self._read()
        except (sqlite3.Error, OSError) as failed:
            return self._without_file(failed)
        logger.warning(
            "%s is damaged: %s. It is put aside as %s, the logs begin again, and clients are told a gap",
            self.path,
            error,
            aside,
        )
        return snapshot

    def _put_aside(self) -> str:
        """Renames the file, and returns its new name. Raises OSError."""
        aside = self.path.with_name(f"{self.path.name}.damaged")
        os.replace(self.path, aside)
        for left in ("-wal", "-shm"):
            self.path.with_name(self.path.name + left).unlink(missing_ok=True)
        return aside.name

    def _read(self) -> Snapshot:
        assert self._numbers is not None
        with closing(self._connect()) as connection:
            meta = dict(connection.execute("SELECT name, value FROM meta"))
            version = meta.get("version", str(VERSION))
            if version not in ("1", str(VERSION)):
                raise ValueError(f"its version is {version}, and this release reads {VERSION} and 1")
            _check_types(connection)
            same_shards = meta.get("shards", str(self._shards)) == str(self._shards)
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                for statement in _FROM_VERSION_1 if version == "1" else ():
                    connection.execute(statement)
                # Where the clock went back, names would be remembered for longer than REMEMBER_MS.
                connection.execute("UPDATE seen SET at_ms = ?1 WHERE at_ms > ?1", (machine_ms(),))
                for table in () if same_shards else _BY_LOG:
                    connection.execute(f"DELETE FROM {table}")  # nosec B608 # our own names
                snapshot = _read_snapshot(connection)
                snapshot.identity = meta.get("identity", "")
                if same_shards and meta:
                    snapshot.word = meta.get("word", snapshot.word)
                    self._renew_epochs(snapshot, meta)
                _rewrite_logs(connection, snapshot)
                connection.executemany(_SET, self._meta(snapshot))
            # Guarantee 2: a kill between the two leaves different sessions, and then all logs get new epochs.
            self._numbers.begin(self._session, {name: log.number for name, log in snapshot.logs.items()})
        self.is_current = True
        return snapshot

    def _renew_epochs(self, snapshot: Snapshot, meta: Mapping[str, str]) -> None:
        """Gives a new epoch to each log that lost something; to all of them where that cannot be known.

        Guarantee 2: in the old epoch the lost numbers would be given again, and a client that has seen them
        would miss other entries without a word.
        """
        assert self._numbers is not None
        # Not the latest start's file; or a power cut, which may have taken parts of the file and the table.
        unknown = meta.get("session") != str(self._numbers.session) or (
            meta.get("clean") != "1" and meta.get("boot") != self._boot()
        )
        if unknown:
            snapshot.word = fresh_word()
        lost = []
        for name, number in self._numbers.all().items():
            log = snapshot.logs.get(name)
            if log is None and number and not unknown:
                log = snapshot.logs[name] = LogSnapshot("")
            if log is not None and (unknown or number != log.number):
                log.epoch = fresh_word() + name
                # Who asks for the past (`since`) is told that it has a gap.
                log.trimmed_ms = machine_ms()
                lost.append(name)
        if lost:
            logger.warning(
                "%s may lack what was published last (a kill, a power cut, or an older file was put back):"
                " clients of %s are told a gap",
                self.path,
                "all logs" if unknown else f"log {', '.join(lost)}",
            )


class _Numbers:
    """The last number of each log, in a file that is mapped into memory. A process locks it, too."""

    def __init__(self, path: Path, shards: int) -> None:
        """Raises BlockingIOError where another process has the lock, OSError."""
        # By the name of the log.
        self._places = {BROADCAST: _NUMBER.size} | {
            str(shard): _NUMBER.size * (shard + 2) for shard in range(shards)
        }
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
        """Notes a log's last number."""
        _NUMBER.pack_into(self._map, self._places[name], number)

    def all(self) -> dict[str, int]:
        """The numbers by log."""
        return {name: _NUMBER.unpack_from(self._map, place)[0] for name, place in self._places.items()}

    @property
    def session(self) -> int:
        """The session of the start that set them; 0 for none."""
        return int(_NUMBER.unpack_from(self._map, 0)[0])

    def begin(self, session: int, numbers: Mapping[str, int]) -> None:
        """Sets the session and all numbers."""
        _NUMBER.pack_into(self._map, 0, session)
        for name in self.all():
            self.set(name, numbers.get(name, 0))

    def close(self) -> None:
        """Writes the table to the disk, as far as the disk takes it, and releases the lock."""
        with suppress(OSError):
            self._map.flush()
            os.fsync(self._file.fileno())
        self._map.close()
        self._file.close()


def _apply(connection: sqlite3.Connection, changes: Sequence[LogUpdate | RowChange]) -> None:
    """Writes changes in their order: a fence that is reset in between stays reset."""
    run: list[LogUpdate] = []
    for change in changes:
        if isinstance(change, LogUpdate):
            run.append(change)
            continue
        _apply_updates(connection, run)
        run = []
        connection.execute(change.sql, change.row)
    _apply_updates(connection, run)


def _apply_updates(connection: sqlite3.Connection, updates: Sequence[LogUpdate]) -> None:
    """Writes updates in a row, statement by statement."""
    _insert(connection, _ENTRY, [_row(entry) for update in updates for entry in update.entries])
    # The state of a log is that after its last update.
    newest = {update.log: update for update in updates}
    _insert(connection, _LOG, [(log, u.end.epoch, u.end.number, u.trimmed_ms) for log, u in newest.items()])
    # After the inserts: a batch may hold entries that are trimmed within it.
    if dropped := [place for update in updates for place in update.dropped]:
        connection.execute(_TRIM, (msgspec.json.encode(dropped).decode(),))
    _insert(connection, _FENCE, [(update.log, *fence) for update in updates for fence in update.fences])
    _insert(connection, _SEEN, [name for update in updates for name in update.names])


def _insert(connection: sqlite3.Connection, into: str, rows: Sequence[tuple[object, ...]]) -> None:
    """Inserts rows, up to 64 with one execution.

    Each execution passes the interpreter's lock to and fro, for which the event loop then has to wait:
    `executemany`, which executes once a row, costs the event loop more than the thread.
    """
    at = 0
    # Of few numbers, so that each statement stays prepared.
    for size in (64, 8, 1):
        while at + size <= len(rows):
            text = _insertion(into, size, len(rows[at]))
            connection.execute(text, [value for row in rows[at : at + size] for value in row])
            at += size


@cache
def _insertion(into: str, rows: int, columns: int) -> str:
    row = f"({', '.join('?' * columns)})"
    return f"{into} {', '.join([row] * rows)}"


def _row(entry: Entry) -> tuple[object, ...]:
    return entry.log, entry.number, entry.order, entry.at_ms, codec.encode(entry.publication)


def _rewrite(connection: sqlite3.Connection, snapshot: Snapshot) -> None:
    """Writes everything in place of what is there."""
    for table in _TYPES:
        connection.execute(f"DELETE FROM {table}")  # nosec B608 # our own names
    _rewrite_logs(connection, snapshot)
    for log in snapshot.logs.values():
        connection.executemany(_insertion(_ENTRY, 1, 5), map(_row, log.entries))
    _insert(connection, _FENCE, [(*key, *fence) for key, fence in snapshot.fences.items()])
    connection.executemany(_OWNER, [(*key, owner) for key, owner in snapshot.owners.items()])
    connection.executemany(_START, [(topic, _json(offsets)) for topic, offsets in snapshot.starts.items()])
    connection.executemany(_insertion(_SEEN, 1, 2), snapshot.names.items())


def _rewrite_logs(connection: sqlite3.Connection, snapshot: Snapshot) -> None:
    connection.execute("DELETE FROM log")
    rows = [(name, log.epoch, log.number, log.trimmed_ms) for name, log in snapshot.logs.items()]
    _insert(connection, _LOG, rows)


def _check_types(connection: sqlite3.Connection) -> None:
    """Raises ValueError where a table holds a value of a type that was never written to it."""
    for table, columns in _TYPES.items():
        wrong = " OR ".join(f"typeof({column}) <> '{kind}'" for column, kind in columns.items())
        found = connection.execute(f"SELECT 1 FROM {table} WHERE {wrong} LIMIT 1")  # nosec B608 # our own names
        if found.fetchone():
            raise ValueError(f"table {table} holds a value of another type")


def _read_snapshot(connection: sqlite3.Connection) -> Snapshot:
    snapshot, decoder = Snapshot(), codec.Decoder()
    for name, epoch, number, trimmed_ms in connection.execute("SELECT * FROM log"):
        snapshot.logs[name] = LogSnapshot(epoch, number, trimmed_ms)
    rows = connection.execute("SELECT log, number, place, at_ms, body FROM entry ORDER BY place")
    for name, number, order, at_ms, body in rows:
        entries = snapshot.logs[name].entries
        # Guarantee 2: whatever is missing or unreadable is damage. To pass over it would be a silent gap.
        if entries and entries[-1].number + 1 != number:
            raise ValueError(f"log {name} has no entry {entries[-1].number + 1}")
        publication = decoder.entry(body)
        if publication is codec.UNREADABLE:
            raise ValueError(f"entry {number} of log {name} can't be read")
        entries.append(Entry(name, number, order, at_ms, publication))
    for name, log in snapshot.logs.items():
        if log.entries and log.entries[-1].number != log.number:
            raise ValueError(f"log {name} ends at {log.entries[-1].number}, not at {log.number}")
    for name, topic, partition, offset, at_ms in connection.execute("SELECT * FROM fence"):
        snapshot.fences[name, topic, partition] = offset, at_ms
    for topic, partition, owner in connection.execute("SELECT * FROM owner"):
        snapshot.owners[topic, partition] = owner
    for topic, offsets in connection.execute("SELECT * FROM start"):
        snapshot.starts[topic] = msgspec.json.decode(offsets, type=dict[int, int])
    rows = connection.execute(_REMEMBERED, (machine_ms() - REMEMBER_MS, REMEMBER_MOST))
    # One by one: dict(rows) would not release the interpreter, and a million hold the event loop too long.
    for name, at_ms in rows:
        snapshot.names[name] = at_ms
    return snapshot


def _json(offsets: Mapping[int, int]) -> str:
    return msgspec.json.encode(dict(offsets)).decode()


def _code(error: sqlite3.Error) -> int:
    """SQLite's primary result code (sqlite.org/rescode.html); 0 where Python itself found the error."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF
