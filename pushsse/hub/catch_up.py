"""Serves streams that are behind from the logs, as fast as their sockets drain, until they go live.

A service: the hub hands it each stream that falls behind or that begins behind, and it owns one task for
each. `Replay`, which reads what lies between a cursor and the node, also serves polls and unread counts.
Whoever goes through many entries that aren't for it does so in its turn (`Scans`), which `explain` shares. A
stream that makes no progress for the send timeout is ended as slow, and can resume.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from heapq import merge
from typing import NamedTuple

from pushsse.backplane import BROADCAST, Backplane, Entry
from pushsse.errors import CloseReason, PushsseError, Unavailable
from pushsse.event import WITHDRAW, Publication
from pushsse.hub.hub import Hub
from pushsse.hub.log_tail import Ahead, LogTail
from pushsse.hub.opening import Opener
from pushsse.outcomes import EXPIRED, SWITCHED_OFF, WRITTEN
from pushsse.position import Mark, Position
from pushsse.retry import Backoff
from pushsse.stream.frame import Resume, chunk, frame
from pushsse.stream.subscriber import Behind, Cursor, Off, Subscriber

STEP_ENTRIES = 500
STEP_BYTES = 32 * 1024
STEP_S = 0.005
# Entries that one turn of a scan goes through.
SCAN_ENTRIES = 20_000
SCANS_AT_ONCE = 2
# Calls that may wait for a turn: of one person, and of all together.
MOST_WAITING_EACH = 16
MOST_WAITING = 256
# To look at the clock for each entry takes as long as to pass over it.
_CLOCK_EVERY = 32
# Shorter rests are put together: a timer isn't exact to less.
_LEAST_REST_S = 0.002
# With fewer entries to look at for each frame, a stream is slowed down by what it writes.
_ENTRIES_A_FRAME = 4
_MOST_REST_S = 0.1
logger = logging.getLogger(__name__)


class CatchUp:
    """The streams of this node that are behind."""

    def __init__(self, hub: Hub, replay: "Replay", opener: Opener, *, send_timeout_s: float) -> None:
        self._hub = hub
        self._replay = replay
        self._opener = opener
        self._send_timeout_s = send_timeout_s

    async def run(self) -> None:
        """Serves whoever is behind, for ever; each stream in a task of its own."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                subscriber = await self._hub.behind.get()
                tasks.create_task(self._serve(subscriber), name=f"catch up {subscriber.id}")

    async def _serve(self, subscriber: Subscriber) -> None:
        try:
            await self._catch_up(subscriber)
        except Exception:
            logger.exception(
                "catch-up of stream %s failed; the stream ends as overloaded",
                subscriber.id,
                extra={"stream": subscriber.id},
            )
            subscriber.end(CloseReason.OVERLOADED)

    async def _catch_up(self, subscriber: Subscriber) -> None:
        backoff = Backoff()
        scanning = False
        while isinstance(behind := subscriber.state, Behind):
            if behind.cursor.take_gap():
                ready = chunk(self._opener.ready(subscriber, Resume.GAP))
                subscriber.offer(ready, self._hub.heartbeat.now)
            # Guarantee 4: the next piece is read only when the last one has left.
            if not behind.room and not await self._has_room(subscriber, behind):
                subscriber.end(CloseReason.SLOW)
                return
            try:
                step = self._scan if scanning else self._step
                scanning = not await step(subscriber, behind)
            except Unavailable:
                await asyncio.sleep(backoff.next_s())
                continue
            backoff.reset()
            if subscriber.go_live():
                return
            await asyncio.sleep(0)

    async def _has_room(self, subscriber: Subscriber, behind: Behind) -> bool:
        """Waits until the sink has room or the stream is over; False after the send timeout."""
        try:
            async with asyncio.timeout(self._send_timeout_s):
                while not behind.room and subscriber.state is behind:
                    await behind.changed()
        except TimeoutError:
            return False
        return True

    async def _scan(self, subscriber: Subscriber, behind: Behind) -> bool:
        """Steps, in a turn of its own, until the socket slows the stream down, or the turn is over."""
        scans = self._replay.scans
        async with scans.turn(subscriber.person.name, limit_s=None):
            for _ in range(SCAN_ENTRIES // STEP_ENTRIES):
                if subscriber.state is not behind or behind.cursor.owes_gap or not behind.room:
                    break
                async with scans.piece():
                    if await self._step(subscriber, behind):
                        return True
        return False

    async def _step(self, subscriber: Subscriber, behind: Behind) -> bool:
        """Offers the next piece, and moves the cursor past it. Raises BackplaneUnavailable.

        False where it went through a piece of the log for little, and is to go on: no socket slows such a
        stream down.
        """
        cursor = behind.cursor
        entries = await self._replay.entries(cursor)
        # While the log was read the stream may have ended, and nothing may follow its last frame; or a log
        # was lost.
        if subscriber.state is not behind or cursor.owes_gap:
            return True
        passed = self._replay.advance(cursor, entries, types=subscriber.types, most_bytes=STEP_BYTES)
        frames = [frame(each.publication, each.position, named=subscriber.named) for each in passed.found]
        if frames:
            self._hub.metrics.deliveries += len(frames)
            subscriber.offer(chunk(b"".join(frames)), self._hub.heartbeat.now)
        return passed.looked_at < _ENTRIES_A_FRAME * len(frames) or self._replay.is_current(cursor)


class ScansBusy(PushsseError):
    """Too many calls wait to go through the log, or this one has waited for too long."""


class Scans:
    """Whose turn it is to go through much of the log: few at a time, and one of each person at most.

    The others wait, person after person, so that one with many calls delays the others by one. All scans
    together take about half of the event loop: after each piece they rest for as long as it took.
    """

    def __init__(self) -> None:
        self._running: set[str] = set()
        # By person, in the order of their turns. Nobody is here without a call that waits.
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._count = 0
        self._resting = asyncio.Lock()
        self._owed_s = 0.0

    @asynccontextmanager
    async def turn(self, person: str, *, limit_s: float | None) -> AsyncIterator[None]:
        """A person's turn. Raises ScansBusy where too many wait, or after `limit_s`; None: waits for ever."""
        await self._enter(person, limit_s)
        try:
            yield
        finally:
            self._leave(person)

    @asynccontextmanager
    async def piece(self) -> AsyncIterator[None]:
        """One piece of a scan, after the rest that the pieces before it are owed."""
        # One rests for all: with a rest of its own for each, two would take turns and leave nothing.
        async with self._resting:
            rest_s = 0.0
            if self._owed_s >= _LEAST_REST_S:
                rest_s, self._owed_s = min(self._owed_s, _MOST_REST_S), 0.0
            await asyncio.sleep(rest_s)
        # Of the event loop's thread: what was waited for, a log in Redis, kept nobody from the loop.
        began = time.thread_time()
        try:
            yield
        finally:
            self._owed_s += time.thread_time() - began

    async def _enter(self, person: str, limit_s: float | None) -> None:
        if len(self._running) < SCANS_AT_ONCE and person not in self._running:
            self._running.add(person)
            return
        before = self._waiting.get(person, ())
        if limit_s is not None and (len(before) >= MOST_WAITING_EACH or self._count >= MOST_WAITING):
            raise ScansBusy("too many calls go through old events just now, try again")
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(person, deque()).append(mine)
        self._count += 1
        try:
            async with asyncio.timeout(limit_s):
                await mine
        except BaseException as error:
            if mine.done() and not mine.cancelled():
                # Its turn came in the same round of the event loop as the end of its wait.
                self._leave(person)
            else:
                self._give_up(person, mine)
            if isinstance(error, TimeoutError):
                raise ScansBusy(f"old events couldn't be read within {limit_s:.0f} s, try again") from None
            raise

    def _give_up(self, person: str, mine: "asyncio.Future[None]") -> None:
        waiting = self._waiting.get(person, deque())
        # Not there where `_leave` has passed it over.
        if mine in waiting:
            self._count -= 1
            waiting.remove(mine)
            if not waiting:
                del self._waiting[person]

    def _leave(self, person: str) -> None:
        self._running.discard(person)
        while len(self._running) < SCANS_AT_ONCE:
            # At most SCANS_AT_ONCE are passed over.
            following = next((each for each in self._waiting if each not in self._running), None)
            if following is None:
                return
            # To the end of the line with whoever has further calls.
            waiting = self._waiting.pop(following)
            mine = waiting.popleft()
            if waiting:
                self._waiting[following] = waiting
            self._count -= 1
            # One that has just been cancelled is passed over.
            if not mine.done():
                self._running.add(following)
                mine.set_result(None)


class Found(NamedTuple):
    """A publication for whoever reads, and the position behind it."""

    publication: Publication
    position: Position


class Passed(NamedTuple):
    """What a cursor was moved past: what is for its person, and how many entries that took."""

    found: list[Found]
    looked_at: int


class Replay:
    """Reads what lies between a cursor and the node: from the node's memory, else from the log."""

    def __init__(self, hub: Hub, backplane: Backplane) -> None:
        self._hub = hub
        self._backplane = backplane
        self.scans = Scans()

    async def entries(self, cursor: Cursor) -> Sequence[Entry]:
        """The next entries after the cursor, in order; none when it is where the node is.

        Where the log no longer has them, the cursor skips what is lost and owes a gap. Raises
        BackplaneUnavailable.
        """
        hub, shard = self._hub, self._hub.log(cursor.person)
        if self._skip_lost_epochs(cursor, shard):
            return ()
        position = cursor.position
        after_broadcast, after_shard = position.broadcast.number, position.shard.number
        if hub.broadcast.reaches(after_broadcast) and shard.reaches(after_shard):
            return _merged(
                hub.broadcast.after(after_broadcast, STEP_ENTRIES), shard.after(after_shard, STEP_ENTRIES)
            )
        page = await self._backplane.read(
            {BROADCAST: after_broadcast, shard.name: after_shard}, limit=STEP_ENTRIES
        )
        # A log may have been lost meanwhile.
        if cursor.position != position or self._skip_lost_epochs(cursor, shard):
            return ()
        upto: dict[str, int] = {}
        for tail, mark in ((hub.broadcast, position.broadcast), (shard, position.shard)):
            head = page.heads[tail.name]
            # Guarantee 2: nothing beyond what the node has heard, or it would be written once more when the
            # stream is live; and nothing of an epoch that the node will hear of with a gap.
            upto[tail.name] = tail.mark.number if head.epoch == mark.epoch else 0
            if head.epoch == mark.epoch and head.first > mark.number + 1:
                cursor.skip(tail.name, Mark(mark.epoch, min(head.first - 1, tail.mark.number)))
        return [entry for entry in page.entries if entry.number <= upto[entry.log]]

    def advance(
        self,
        cursor: Cursor,
        entries: Sequence[Entry],
        *,
        types: frozenset[str] | None,
        most: int = STEP_ENTRIES,
        most_bytes: int = 0,
        tells: bool = True,
    ) -> Passed:
        """Moves a cursor past entries, for about 5 ms, and finds those for its person and of these types.

        Of those with the same key for the same audience only the newest is found, as far as a newer one is
        among these entries, or the node has heard it and remembers. Stops at `most` found ones, and where
        they have `most_bytes` (0: any). With `tells`, the person gets what is found.
        """
        name = cursor.person.name
        broadcast, shard = cursor.position.broadcast, cursor.position.shard
        b_number, s_number = broadcast.number, shard.number
        found: list[Found] = []
        looked_at = size = 0
        outcomes = self._hub.outcomes if tells else None
        at_ms = self._hub.backplane.now_ms()
        replaced = _Replaced(self._hub, cursor, entries, types)
        clock = asyncio.get_running_loop().time
        until = clock() + STEP_S
        for entry in entries:
            # Guarantee 2: the cursor moves past every entry, also those that aren't for this person.
            if entry.log == BROADCAST:
                b_number = entry.number
            else:
                s_number = entry.number
            looked_at += 1
            # An entry for 10,000 people takes 0.1 ms to look at.
            if not looked_at % _CLOCK_EVERY and clock() > until:
                most = 0
            publication, users = entry.publication, entry.publication.users
            # First what rules most entries out, for whoever goes through a whole log for a few types.
            if (types is None or not publication.switchable or publication.name in types) and (
                users is None or name in users
            ):
                if publication.change is not None:
                    change = publication.change
                    cursor.switched(Off(frozenset(change.after), change.revision, change.version))
                    replaced.forget()
                became = self._became(cursor, entry, replaced, looked_at - 1)
                if outcomes is not None and became:
                    outcomes.reached(publication, name, became, at_ms)
                if became == WRITTEN:
                    at = Position(Mark(broadcast.epoch, b_number), Mark(shard.epoch, s_number))
                    found.append(Found(publication, at))
                    size += len(publication.body)
                    if 0 < most_bytes <= size:
                        break
            if len(found) >= most:
                break
        cursor.position = Position(Mark(broadcast.epoch, b_number), Mark(shard.epoch, s_number))
        return Passed(found, looked_at)

    def _became(self, cursor: Cursor, entry: Entry, replaced: "_Replaced", index: int) -> str:
        """What becomes of an entry for the cursor's person, and counts it; "" if a newer one replaces it."""
        publication, metrics = entry.publication, self._hub.metrics
        if self.expired(publication.expires_ms):
            metrics.expired += 1
            return EXPIRED
        # Guarantee 3: on when it was published, and on now.
        if publication.switchable and (
            publication.name in cursor.person.off
            or (publication.name in cursor.off.types and self._hub.was_off(publication.name, cursor.off))
        ):
            metrics.suppressed += 1
            return SWITCHED_OFF
        if publication.collapse and replaced.has(entry, index):
            metrics.replaced += 1
            return ""
        return WRITTEN

    def is_current(self, cursor: Cursor) -> bool:
        """Whether a cursor is where the node is, so that nothing is left to read."""
        return cursor.position == self._hub.position(cursor.person)

    def expired(self, expires_ms: int) -> bool:
        """Whether an event may no longer be written. The answer is void after an await."""
        return 0 < expires_ms <= self._backplane.now_ms()

    def _skip_lost_epochs(self, cursor: Cursor, shard: LogTail) -> bool:
        """Moves a cursor that is in an epoch that is over to where the node is; whether it was in one."""
        position = cursor.position
        if position.broadcast.epoch != self._hub.broadcast.mark.epoch:
            cursor.skip(BROADCAST, self._hub.broadcast.mark)
        if position.shard.epoch != shard.mark.epoch:
            cursor.skip(shard.name, shard.mark)
        return cursor.position is not position


class _Replaced:
    """Which of some entries with a key newer ones have replaced, for a cursor's person.

    One that the person doesn't get replaces nothing: one of a type that is off now, or was at its place.
    """

    __slots__ = ("_ahead", "_cursor", "_entries", "_hub", "_types")

    def __init__(
        self, hub: Hub, cursor: Cursor, entries: Sequence[Entry], types: frozenset[str] | None
    ) -> None:
        self._hub = hub
        self._cursor = cursor
        self._entries = entries
        self._types = types
        self._ahead: Ahead | None = None

    def has(self, entry: Entry, index: int) -> bool:
        """Whether a newer one has replaced the entry at an index."""
        hub, person = self._hub, self._cursor.person
        tail = hub.broadcast if entry.log == BROADCAST else hub.log(person)
        if tail.newest.is_replaced(entry, person.name, self._gets):
            return True
        if self._ahead is None:
            # Not before: most pieces have no keys.
            self._ahead = Ahead(self._entries, person.name, self._gets)
        return self._ahead.replaces(index, entry.publication)

    def forget(self) -> None:
        """The switches at the cursor have changed."""
        self._ahead = None

    def _gets(self, name: str) -> bool:
        cursor = self._cursor
        return name == WITHDRAW or (
            (self._types is None or name in self._types)
            # Guarantee 2: where the switches change further on, a type that is on here and now may have been
            # off at the place of the newer one.
            and cursor.off.version == cursor.person.version
            and name not in cursor.person.off
            and not self._hub.was_off(name, cursor.off)
        )


def _merged(one: list[Entry], other: list[Entry]) -> list[Entry]:
    """Two runs of entries merged by their order.

    Guarantee 2: a run that was cut at the limit goes on with entries that may come before the end of the
    other run, so the merge ends where the first cut is.
    """
    if not other:
        return one
    if not one:
        return other
    ends = [run[-1].order for run in (one, other) if len(run) == STEP_ENTRIES]
    upto = min(ends, default=max(one[-1].order, other[-1].order))
    return [entry for entry in merge(one, other, key=lambda entry: entry.order) if entry.order <= upto]
