"""Serves streams that are behind from the logs, as fast as their sockets drain, until they go live.

A service: the hub hands it each stream that falls behind or that begins behind, and it owns one task for
each. `Replay`, which reads what lies between a cursor and the node, also serves the events endpoint. A stream
that makes no progress for the send timeout is ended as slow, and can resume.
"""

import asyncio
import logging
from collections.abc import Sequence
from heapq import merge

from pushsse.backplane import BROADCAST, Backplane, Entry
from pushsse.errors import CloseReason, Unavailable
from pushsse.hub.hub import Hub
from pushsse.hub.log_tail import LogTail
from pushsse.hub.opening import Opener
from pushsse.position import Mark
from pushsse.retry import Backoff
from pushsse.stream.frame import Resume, chunk, frame
from pushsse.stream.subscriber import Behind, Cursor, Subscriber, selects

STEP_ENTRIES = 500
STEP_BYTES = 32 * 1024
STEP_S = 0.005
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
        while isinstance(behind := subscriber.state, Behind):
            if behind.cursor.take_gap():
                ready = chunk(self._opener.ready(subscriber, Resume.GAP))
                subscriber.offer(ready, self._hub.heartbeat.now)
            # Guarantee 4: the next piece is read only when the last one has left.
            if not behind.room and not await self._has_room(subscriber, behind):
                subscriber.end(CloseReason.SLOW)
                return
            try:
                await self._step(subscriber, behind)
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

    async def _step(self, subscriber: Subscriber, behind: Behind) -> None:
        """Offers the next piece, and moves the cursor past it. Raises BackplaneUnavailable."""
        cursor = behind.cursor
        entries = await self._replay.entries(cursor)
        # While the log was read the stream may have ended, and nothing may follow its last frame; or a log
        # was lost.
        if subscriber.state is not behind or cursor.owes_gap:
            return
        frames: list[bytes] = []
        size = 0
        loop = asyncio.get_running_loop()
        until = loop.time() + STEP_S
        for entry in entries:
            # Guarantee 2: the cursor moves past every entry, also those that aren't for this stream.
            if self._replay.advance(cursor, entry) and selects(subscriber.types, entry.publication):
                frames.append(frame(entry.publication, cursor.position, named=subscriber.named))
                size += len(frames[-1])
            # An entry for 10,000 people takes 0.1 ms to look at.
            if size >= STEP_BYTES or loop.time() > until:
                break
        if frames:
            self._hub.metrics.deliveries += len(frames)
            subscriber.offer(chunk(b"".join(frames)), self._hub.heartbeat.now)


class Replay:
    """Reads what lies between a cursor and the node: from the node's memory, else from the log."""

    def __init__(self, hub: Hub, backplane: Backplane) -> None:
        self._hub = hub
        self._backplane = backplane

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

    def advance(self, cursor: Cursor, entry: Entry) -> bool:
        """Moves a cursor past an entry; whether the entry is for its person."""
        publication, person = entry.publication, cursor.person
        epochs = cursor.position
        epoch = epochs.broadcast.epoch if entry.log == BROADCAST else epochs.shard.epoch
        cursor.move(entry.log, Mark(epoch, entry.number))
        if publication.users is not None and person.name not in publication.users:
            return False
        if publication.change is not None:
            cursor.switched(frozenset(publication.change.after))
        if self.expired(publication.expires_ms):
            self._hub.metrics.expired += 1
            return False
        # Guarantee 3: on when it was published, and on now.
        if publication.switchable and (publication.name in cursor.off or publication.name in person.off):
            self._hub.metrics.suppressed += 1
            return False
        return True

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
