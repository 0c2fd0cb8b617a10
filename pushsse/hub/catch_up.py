"""Serves streams that are behind from the log, as fast as their sockets drain, until they are live again.

A service: it owns one task per stream that is behind; a stream that has caught up has none. Called by the hub
and by the opening; `Replay` is also what the events endpoint reads its JSON with. A stream that makes no
progress for the send timeout is cut as slow, and can resume.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from heapq import merge
from typing import Protocol

from pushsse.backplane import BROADCAST, Backplane, Entry
from pushsse.errors import CloseReason, Unavailable
from pushsse.hub.hub import Hub
from pushsse.hub.log_tail import FollowedLog
from pushsse.position import Mark, Position
from pushsse.retry import Backoff
from pushsse.stream.frame import chunk, with_id
from pushsse.stream.subscriber import Person, Subscriber

STEP_ENTRIES = 500
STEP_BYTES = 32 * 1024
log = logging.getLogger(__name__)


class Reader(Protocol):
    """Whoever stands at a position: a subscriber, or one call for events as JSON."""

    person: Person
    held: frozenset[str]
    position: Position | None
    gap: bool

    def wants(self, name: str, switchable: bool) -> bool:
        """Whether events of this name were asked for."""
        ...


class Replay:
    """Reads what is between a reader and the node."""

    def __init__(self, hub: Hub, backplane: Backplane) -> None:
        self._hub = hub
        self._backplane = backplane

    async def step(self, subscriber: Subscriber) -> bool:
        """Writes the next piece; False when the subscriber stands where the node does.

        Raises BackplaneUnavailable. Nothing is awaited between the last look and the answer False.
        """
        entries = await self.entries(subscriber)
        if subscriber.gap:
            return True
        if not entries:
            return subscriber.position != self._hub.place(subscriber.person)
        frames: list[bytes] = []
        size = 0
        for entry in entries:
            if self.advance(subscriber, entry) and subscriber.position is not None:
                frame = with_id(entry.publication, subscriber.position, named=subscriber.named)
                frames.append(frame)
                size += len(frame)
                if size >= STEP_BYTES:
                    break
        if frames:
            self._hub.write(subscriber, b"".join(frames), events=len(frames))
        return True

    async def entries(self, reader: Reader) -> Sequence[Entry]:
        """The next entries after the reader's position, in order; none when it is where the node is.

        Where the log can't have them any more the reader is moved on, and owed a gap.
        """
        hub, log = self._hub, self._hub.log(reader.person)
        assert reader.position is not None
        if self._lost_epoch(reader, log):
            return ()
        broadcast, shard = reader.position.broadcast.number, reader.position.shard.number
        if hub.broadcast.reaches(broadcast) and log.reaches(shard):
            return _merged(hub.broadcast.after(broadcast, STEP_ENTRIES), log.after(shard, STEP_ENTRIES))
        position = reader.position
        page = await self._backplane.read({BROADCAST: broadcast, log.name: shard}, limit=STEP_ENTRIES)
        if reader.position != position or self._lost_epoch(reader, log):
            return ()
        for followed, mark in ((hub.broadcast, position.broadcast), (log, position.shard)):
            head = page.heads[followed.name]
            if head.epoch == mark.epoch and head.first > mark.number + 1:
                self._move(reader, followed, Mark(mark.epoch, min(head.first - 1, followed.mark.number)))
        heard = {BROADCAST: hub.broadcast.mark.number, log.name: log.mark.number}
        return [entry for entry in page.entries if entry.number <= heard[entry.log]]

    def expired(self, expires_ms: int) -> bool:
        """Whether what was found may no longer be written; asked again where something was awaited since."""
        return 0 < expires_ms <= self._backplane.now_ms()

    def advance(self, reader: Reader, entry: Entry) -> bool:
        """Moves a reader past an entry; whether the entry is for it."""
        assert reader.position is not None
        publication, person = entry.publication, reader.person
        if entry.log == BROADCAST:
            reader.position = reader.position._replace(
                broadcast=Mark(reader.position.broadcast.epoch, entry.number)
            )
        else:
            reader.position = reader.position._replace(shard=Mark(reader.position.shard.epoch, entry.number))
        if publication.users is not None and person.name not in publication.users:
            return False
        if publication.change is not None:
            reader.held = frozenset(publication.change.after)
        if self.expired(publication.expires_ms):
            self._hub.metrics.expired += 1
            return False
        if publication.switchable and (publication.name in reader.held or publication.name in person.off):
            self._hub.metrics.suppressed += 1
            return False
        return reader.wants(publication.name, publication.switchable)

    def _lost_epoch(self, reader: Reader, log: FollowedLog) -> bool:
        """Moves a reader who stands in an epoch that is over to where the node is."""
        assert reader.position is not None
        found = False
        if reader.position.broadcast.epoch != self._hub.broadcast.mark.epoch:
            self._move(reader, self._hub.broadcast, self._hub.broadcast.mark)
            found = True
        if reader.position.shard.epoch != log.mark.epoch:
            self._move(reader, log, log.mark)
            found = True
        return found

    def _move(self, reader: Reader, log: FollowedLog, mark: Mark) -> None:
        assert reader.position is not None
        reader.gap = True
        part = "broadcast" if log is self._hub.broadcast else "shard"
        reader.position = reader.position._replace(**{part: mark})


class CatchUp:
    """The streams of this node that are behind."""

    def __init__(
        self,
        hub: Hub,
        replay: Replay,
        *,
        gap: Callable[[Subscriber, Position], bytes],
        send_timeout_s: float,
    ) -> None:
        self._hub = hub
        self._replay = replay
        self._gap = gap
        self._send_timeout_s = send_timeout_s
        self._tasks: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Lives as long as the node does, and the tasks of those behind with it."""
        async with asyncio.TaskGroup() as self._tasks:
            await asyncio.Event().wait()

    def serve(self, subscriber: Subscriber) -> None:
        """Serves a subscriber that is behind until it has caught up."""
        assert self._tasks is not None
        self._tasks.create_task(self._serve(subscriber), name=f"catch up {subscriber.id}")

    async def _serve(self, subscriber: Subscriber) -> None:
        try:
            await self._catch_up(subscriber)
        except Exception:
            log.exception("stream %s can't be served", subscriber.id)
            self._hub.end(subscriber, CloseReason.OVERLOADED)

    async def _catch_up(self, subscriber: Subscriber) -> None:
        backoff = Backoff()
        while subscriber.reason is None:
            if subscriber.gap:
                subscriber.gap = False
                position = self._hub.position(subscriber)
                subscriber.sink.write(chunk(self._gap(subscriber, position)))
            if not subscriber.room and not await self._drained(subscriber):
                self._hub.end(subscriber, CloseReason.SLOW)
                return
            try:
                more = await self._replay.step(subscriber)
            except Unavailable:
                await asyncio.sleep(backoff.next_s())
                continue
            backoff.reset()
            if not more and subscriber.room and not subscriber.gap and subscriber.reason is None:
                self._hub.go_live(subscriber)
                return
            await asyncio.sleep(0)

    async def _drained(self, subscriber: Subscriber) -> bool:
        """Waits for room; False when nothing moved for the send timeout."""
        subscriber.wake = asyncio.Event()
        try:
            async with asyncio.timeout(self._send_timeout_s):
                while not subscriber.room and subscriber.reason is None:
                    await subscriber.wake.wait()
                    subscriber.wake.clear()
        except TimeoutError:
            return False
        finally:
            subscriber.wake = None
        return True


def _merged(one: list[Entry], other: list[Entry]) -> list[Entry]:
    """Two runs merged by order; what may come before the rest of a run that was cut is left for next time."""
    if not other:
        return one
    if not one:
        return other
    ends = [run[-1].order for run in (one, other) if len(run) == STEP_ENTRIES]
    upto = min(ends, default=max(one[-1].order, other[-1].order))
    return [entry for entry in merge(one, other, key=lambda entry: entry.order) if entry.order <= upto]
