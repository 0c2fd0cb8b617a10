"""Begins streams, and serves those who are behind from the log, as fast as their sockets drain.

A service: it owns the tasks of the streams that are behind; a stream that has caught up has none. Who makes
no progress for the send timeout is cut as slow, and can resume.
"""

import asyncio
import logging
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from pushsse.errors import CloseReason, Unavailable
from pushsse.event import Publication
from pushsse.hub.batch import with_id
from pushsse.hub.hub import Hub
from pushsse.hub.replay import Replay
from pushsse.hub.resume import Opening, Resume, Switches
from pushsse.position import Position
from pushsse.retry import Backoff
from pushsse.stream.frame import chunk, event, random_retry_ms
from pushsse.stream.subscriber import Person, Sink, Subscriber

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """What a client asked of its stream, and when its token ends (seconds since 1970)."""

    named: bool = True
    types: frozenset[str] | None = None
    expires_at: float | None = None


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """What this node says in `ready`, and what it allows."""

    node: str
    heartbeat_s: float
    window_s: int
    send_timeout_s: float
    lifetime_s: float


class Streams:
    """The streams of this node, from their first frame on."""

    def __init__(
        self,
        hub: Hub,
        replay: Replay,
        *,
        limits: StreamLimits,
        switches: Callable[[str], Awaitable[Switches]],
        so_far: Callable[[str], Awaitable[Sequence[Publication]]],
    ) -> None:
        self._hub = hub
        self._replay = replay
        self._limits = limits
        self._switches = switches
        self._so_far = so_far
        self._tasks: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Lives as long as the node does, and the tasks of those behind with it."""
        async with asyncio.TaskGroup() as self._tasks:
            await asyncio.Event().wait()

    def begin(self, opening: Opening, sink: Sink, options: StreamOptions) -> Subscriber:
        """Begins a stream with its `ready`. It is live at once if there is nothing to replay."""
        person, start = opening.person, opening.start
        subscriber = Subscriber(
            person,
            sink,
            self._hub,
            id=secrets.token_hex(6),
            position=start,
            held=opening.held,
            named=options.named,
            types=options.types,
        )
        self._limit_life(subscriber, options.expires_at)
        self._hub.add(subscriber)
        self._hub.metrics.resumes[opening.resume.value] += 1
        sink.write(chunk(self._ready(subscriber, opening.resume, start)))
        if start == self._hub.place(person) and subscriber.room:
            self._hub.go_live(subscriber)
        else:
            self.serve(subscriber)
        if opening.growing:
            assert self._tasks is not None
            self._tasks.create_task(self._tell_growing(subscriber), name=f"so far {subscriber.id}")
        return subscriber

    def serve(self, subscriber: Subscriber) -> None:
        """Serves a subscriber that is behind until it has caught up."""
        assert self._tasks is not None
        self._tasks.create_task(self._serve(subscriber), name=f"catch up {subscriber.id}")

    def refresh(self, people: Sequence[Person]) -> None:
        """Reads the switches of people anew, because changes of them may have been lost with a log."""
        assert self._tasks is not None
        self._tasks.create_task(self._refresh(people), name="refresh switches")

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
                subscriber.sink.write(chunk(self._ready(subscriber, Resume.GAP, position)))
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
            async with asyncio.timeout(self._limits.send_timeout_s):
                while not subscriber.room and subscriber.reason is None:
                    await subscriber.wake.wait()
                    subscriber.wake.clear()
        except TimeoutError:
            return False
        finally:
            subscriber.wake = None
        return True

    async def _tell_growing(self, subscriber: Subscriber) -> None:
        """The answers that are growing, from their beginnings; read once their next pieces are heard."""
        try:
            so_far = await self._so_far(subscriber.person.name)
        except Unavailable:
            # The next piece but few reaches back, and the whole answer comes at the end.
            return
        if so_far and subscriber.reason is None:
            position = self._hub.position(subscriber)
            frames = [with_id(publication, position) for publication in so_far]
            self._hub.write(subscriber, b"".join(frames), events=len(frames))

    async def _refresh(self, people: Sequence[Person]) -> None:
        backoff = Backoff()
        for person in people:
            while person.subscribers:
                try:
                    switches = await self._switches(person.name)
                except Unavailable:
                    await asyncio.sleep(backoff.next_s())
                    continue
                person.learn(switches.version, switches.off)
                break

    def _limit_life(self, subscriber: Subscriber, expires_at: float | None) -> None:
        ends_in_s: list[tuple[float, CloseReason]] = []
        if expires_at is not None:
            ends_in_s.append((max(0.0, expires_at - time.time()), CloseReason.TOKEN_EXPIRED))
        if self._limits.lifetime_s:
            ends_in_s.append((self._limits.lifetime_s * random.uniform(0.8, 1.0), CloseReason.LIFETIME))
        if ends_in_s:
            seconds, subscriber.ends_for = min(ends_in_s, key=lambda end: end[0])
            subscriber.ends_at = self._hub.heartbeat.ticks(seconds)

    def _ready(self, subscriber: Subscriber, resume: Resume, position: Position) -> bytes:
        heartbeat = self._hub.heartbeat
        left_s = int((subscriber.ends_at - heartbeat.now) * heartbeat.tick_s) if subscriber.ends_at else None
        data = {
            "user": subscriber.person.name,
            "node": self._limits.node,
            "stream": subscriber.id,
            "resume": resume.value,
            "heartbeat_s": self._limits.heartbeat_s,
            "expires_in_s": left_s,
            "window_s": self._limits.window_s,
        }
        return event("ready", data, position, retry_ms=random_retry_ms())
