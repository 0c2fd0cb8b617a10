"""Writes the embedded log to disk behind the publishers, in one thread, some 50 ms late.

`MemoryBackplane` adds each change on the event loop; the thread takes all that waits and hands it to
`LogStore` as one transaction. Where the disk fails or falls too far behind, changes are dropped, and the next
write takes a snapshot of everything instead.
"""

import asyncio
import gc
import logging
import sqlite3
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from pushsse.backplane.memory.logs import LogUpdate, Snapshot
from pushsse.backplane.memory.store import BOOT_ID, LogStore, RowChange
from pushsse.retry import Backoff, Outage

logger = logging.getLogger(__name__)
MOST_PENDING_BYTES = 64 * 1024**2


@dataclass(frozen=True, slots=True)
class WriterLimits:
    """How late changes are written, how long a full disk is waited for, how long the last write may take."""

    write_every_s: float = 0.05
    retry_s: float = 5.0
    retry_most_s: float = 60.0
    close_s: float = 10.0
    most_pending: int = 200_000


class SnapshotSource(Protocol):
    """Who knows everything that the file should hold."""

    def snapshot(self) -> Snapshot:
        """A copy of all there is; called on the event loop."""
        ...


class _Transaction(NamedTuple):
    """What one transaction writes: changes, or the `whole` instead; and who waits for it."""

    changes: Sequence[LogUpdate | RowChange]
    whole: Snapshot | None
    waiting: Sequence[asyncio.Future[None]]


class LogWriter:
    """Writes between `open` and `close`. `on_disk` says whether changes reach the file at present."""

    def __init__(
        self, path: Path, *, shards: int, limits: WriterLimits | None = None, boot_id: Path = BOOT_ID
    ) -> None:
        self.on_disk = False
        self._store = LogStore(path, shards=shards, boot_id=boot_id)
        self._limits = limits or WriterLimits()
        self._pending: list[LogUpdate | RowChange] = []
        self._pending_bytes = 0
        # More waited than may: only a snapshot can bring the file up to date. Used on the event loop alone.
        self._dropped = False
        self._waiting: list[asyncio.Future[None]] = []
        # The thread has taken changes, and isn't done with them.
        self._writing = False
        # Whether changes are taken: there is a thread, and `close` wasn't called.
        self._takes = False
        # Something is pending; somebody waits for it; `close` was called.
        self._wake, self._urgent, self._ending = threading.Event(), threading.Event(), threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._source: SnapshotSource | None = None
        self._thread: threading.Thread | None = None

    async def open(self, source: SnapshotSource) -> Snapshot:
        """Returns what an earlier start left, and begins to write. Raises what `LogStore.load` raises."""
        self._loop = asyncio.get_running_loop()
        self._source = source
        collecting = gc.isenabled()
        # The collector would walk all that is read again and again, and the event loop waits for each walk.
        gc.disable()
        try:
            snapshot = await asyncio.to_thread(self._store.load)
        finally:
            # Nor may it walk all that once it is enabled again. `node.release_memory` unfreezes it.
            gc.freeze()
            if collecting:
                gc.enable()
        self.on_disk = self._store.is_current
        if self._store.is_open:
            self._thread = threading.Thread(target=self._run, name="log writer", daemon=True)
            self._thread.start()
            self._takes = True
        return snapshot

    async def close(self) -> None:
        """Writes what is left, and marks the file as complete."""
        self._takes = False
        for event in (self._ending, self._urgent, self._wake):
            event.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, self._limits.close_s)
            if self._thread.is_alive():
                # The thread keeps the lock: what it still writes must not meet another process.
                logger.warning(
                    "%s wasn't written within %.1f s: what isn't on disk is lost, and clients are told a gap",
                    self._store.path,
                    self._limits.close_s,
                )
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)

    # On the event loop

    def add(self, change: LogUpdate | RowChange) -> None:
        """Takes a change, to be written soon; never waits."""
        if not self._takes:
            return
        size = 0
        if isinstance(change, LogUpdate):
            size = change.size
            if change.entries:
                # Guarantee 2: noted here, before anybody hears the entries. After a kill the table has a
                # number that the file lacks, and the log gets a new epoch. Noted later, the number could be
                # given again in the same epoch, to an entry that clients who have seen it never get.
                self._store.set_number(change.log, change.end.number)
        if self._dropped:
            return
        if not self._pending:
            self._wake.set()
        if len(self._pending) < self._limits.most_pending and self._pending_bytes < MOST_PENDING_BYTES:
            self._pending.append(change)
            self._pending_bytes += size
        else:
            # Not `on_disk`: the thread sets that after its present write, which lacks what is dropped here.
            self._pending, self._pending_bytes, self._dropped = [], 0, True

    async def flush(self) -> None:
        """Returns when everything so far is on disk, or when the disk has failed."""
        # Guarantee 1: what the thread has taken isn't on disk yet. Kafka's offsets are committed after this.
        unwritten = self._pending or self._dropped or self._writing
        if self.on_disk and unwritten and not self._ending.is_set():
            waiting = asyncio.get_running_loop().create_future()
            self._waiting.append(waiting)
            self._urgent.set()
            self._wake.set()
            await waiting

    def _take(self) -> _Transaction:
        """All that waits. After a failure, and where changes were dropped, everything there is."""
        changes, self._pending, self._pending_bytes = self._pending, [], 0
        waiting, self._waiting = self._waiting, []
        self._writing = True
        dropped, self._dropped = self._dropped, False
        whole = (
            self._source.snapshot() if (dropped or not self.on_disk) and self._source is not None else None
        )
        return _Transaction(changes, whole, waiting)

    # In the thread

    def _run(self) -> None:
        outage = Outage(
            f"writing {self._store.path}, without which a restart loses what was published since",
            logger,
            Backoff(self._limits.retry_s, self._limits.retry_most_s),
        )
        wait_s = 0.0
        if not self.on_disk:
            # `LogStore.load` has logged why.
            outage.begin()
            wait_s = outage.backoff.next_s()
        while True:
            if outage.since is not None:
                self._ending.wait(wait_s)
            else:
                self._wake.wait()
                # Gathers what comes meanwhile into one transaction, unless somebody waits for it.
                self._urgent.wait(self._limits.write_every_s)
            # Cleared before the changes are taken: what comes after that wakes the thread again.
            self._wake.clear()
            self._urgent.clear()
            last = self._ending.is_set()
            batch = self._take() if last else self._take_on_loop()
            try:
                self._store.write(batch.changes, batch.whole, last=last)
            except Exception as error:  # without the thread, whoever waits for the disk would hang
                self.on_disk = False
                if outage.since is None and not isinstance(error, (sqlite3.Error, OSError)):
                    logger.exception("writing %s failed unexpectedly", self._store.path)
                wait_s = outage.failed(error)
            else:
                self.on_disk = True
                outage.over()
            self._writing = False
            self._answer(batch.waiting)
            if last:
                self._store.close()
                return

    def _take_on_loop(self) -> _Transaction:
        """Runs `_take` on the event loop; once `close` was called nothing is added, and the thread may."""
        taken: list[_Transaction] = []
        done = threading.Event()

        def take() -> None:
            if not self._ending.is_set():
                taken.append(self._take())
            done.set()

        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(take)
                while not done.wait(0.1) and not self._ending.is_set():
                    pass
        return taken[0] if taken else self._take()

    def _answer(self, waiting: Sequence[asyncio.Future[None]]) -> None:
        def answer() -> None:
            for each in waiting:
                if not each.done():
                    each.set_result(None)

        if waiting and self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed, and whoever waited with it
                self._loop.call_soon_threadsafe(answer)
