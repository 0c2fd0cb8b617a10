"""The node's table of open streams: shard and person to subscribers, and what may happen to one.

Asked and told by delivery, resume, streams and heartbeat. Those who fall behind are given to `behind`; whose
log was lost, to `lost`.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

from pushsse.backplane import (
    BROADCAST,
    Backplane,
    log_of,
)
from pushsse.errors import BackplaneUnavailable, CloseReason
from pushsse.event import Publication
from pushsse.hub.heartbeat import Heartbeat
from pushsse.hub.log_tail import TAIL_MS, FollowedLog
from pushsse.metrics import Metrics
from pushsse.position import Position
from pushsse.stream.frame import Chunk, chunk, ending, ping, spread_retries_ms
from pushsse.stream.subscriber import Person, Subscriber

IDLE_S = 60.0
TAIL_BYTES = 512 * 1024
BROADCAST_TAIL_BYTES = 8 * 1024 * 1024
PATIENCE_S = 5.0
MOST_WAITING = 10_000
STEP_S = 0.05
FLUSH_S = 1.0
Tap = Callable[[Publication], None]


class Shard:
    """One shard's log, and the live subscribers who stand where it does."""

    __slots__ = ("idle_since", "live", "log", "people")

    def __init__(self, name: str) -> None:
        self.idle_since = 0
        self.log = FollowedLog(name, keep_bytes=TAIL_BYTES)
        self.live: dict[Subscriber, None] = {}
        self.people: dict[str, Person] = {}


class Hub:
    """Who is here, and how far the node has heard."""

    def __init__(
        self,
        backplane: Backplane,
        *,
        heartbeat: Heartbeat,
        metrics: Metrics,
        behind: Callable[[Subscriber], None],
        lost: Callable[[Sequence[Person]], None],
    ) -> None:
        self.backplane = backplane
        self.shards: dict[str, Shard] = {}
        self.broadcast = FollowedLog(BROADCAST, keep_bytes=BROADCAST_TAIL_BYTES)
        self.heartbeat = heartbeat
        self.metrics = metrics
        self.subscribers: dict[Subscriber, None] = {}
        self._taps: dict[str, list[Tap]] = {}
        self._shard_count = backplane.shards
        self._behind = behind
        self.lost = lost

    # Who is here

    def hold(self, user: str) -> Person:
        """The person of this name, kept up to date from now until `release`. Follows his shard."""
        name = log_of(user, self._shard_count)
        shard = self.shards.get(name)
        if shard is None:
            shard = self.shards[name] = Shard(name)
            self.backplane.follow(BROADCAST)
            self.backplane.follow(name)
        person = shard.people.get(user)
        if person is None:
            person = shard.people[user] = Person(user, name)
        person.holds += 1
        return person

    def release(self, person: Person) -> None:
        """Ends one hold; a person without any is forgotten."""
        person.holds -= 1
        if person.holds == 0:
            shard = self.shards[person.log]
            del shard.people[person.name]
            shard.idle_since = self.heartbeat.now

    def follows(self, person: Person) -> bool:
        """Whether the node hears the person's logs by now."""
        return self.broadcast.ready.is_set() and self.shards[person.log].log.ready.is_set()

    async def followed(self, person: Person) -> None:
        """Waits until the node hears the person's logs."""
        await self.broadcast.ready.wait()
        await self.shards[person.log].log.ready.wait()

    def log(self, person: Person) -> FollowedLog:
        """The person's shard log."""
        return self.shards[person.log].log

    def place(self, person: Person) -> Position:
        """Where the node stands in the person's logs."""
        return Position(self.broadcast.mark, self.shards[person.log].log.mark)

    def position(self, subscriber: Subscriber) -> Position:
        """Where a subscriber stands."""
        return subscriber.position or self.place(subscriber.person)

    def add(self, subscriber: Subscriber) -> None:
        """A stream begins, behind its logs; it keeps a hold on its person."""
        subscriber.person.holds += 1
        subscriber.person.subscribers.append(subscriber)
        self.subscribers[subscriber] = None
        self.heartbeat.add(subscriber)
        self.metrics.streams_opened += 1

    def go_live(self, subscriber: Subscriber) -> None:
        """A subscriber has everything that the node has heard, and hears the rest from `deliver`."""
        subscriber.position = None
        subscriber.live = True
        self.shards[subscriber.person.log].live[subscriber] = None

    def fell_behind(self, subscriber: Subscriber) -> None:
        """A live subscriber's sink is full: from here on it is served from the log."""
        subscriber.position = self.place(subscriber.person)
        subscriber.held = subscriber.person.off
        subscriber.live = False
        del self.shards[subscriber.person.log].live[subscriber]
        self._behind(subscriber)

    def end(self, subscriber: Subscriber, reason: CloseReason, *, retry_ms: int | None = None) -> None:
        """Ends a stream for a reason, which the client learns in band."""
        if subscriber.reason is not None:
            return
        subscriber.reason = reason
        last = chunk(ending(reason, self.position(subscriber), retry_ms=retry_ms))
        self.left(subscriber)
        self.heartbeat.bury(subscriber)
        subscriber.sink.end(last)
        if subscriber.wake is not None:
            subscriber.wake.set()

    def left(self, subscriber: Subscriber) -> None:
        """A stream is over: it is forgotten, and counted under its reason, once."""
        if subscriber not in self.subscribers:
            return
        del self.subscribers[subscriber]
        if subscriber.live:
            subscriber.position = self.place(subscriber.person)
            subscriber.live = False
            del self.shards[subscriber.person.log].live[subscriber]
        subscriber.person.subscribers.remove(subscriber)
        self.release(subscriber.person)
        reason = subscriber.reason or CloseReason.DISCONNECTED
        self.metrics.endings[reason.code] += 1

    def tapped(self, publication: Publication) -> None:
        """Shows a publication of some subject to those who asked for it."""
        for tap in tuple(self._taps.get(publication.subject, ())):
            tap(publication)

    @contextmanager
    def tap(self, subject: str, tap: Tap) -> Iterator[None]:
        """Lets a function see every publication of one subject (a question) while the context lasts."""
        taps = self._taps.setdefault(subject, [])
        taps.append(tap)
        try:
            yield
        finally:
            taps.remove(tap)
            if not taps:
                del self._taps[subject]

    def prune(self) -> None:
        """Gives up old entries, and the shards that nobody here has needed for a minute."""
        old_ms = self.backplane.now_ms() - TAIL_MS
        self.broadcast.forget(old_ms)
        before = self.heartbeat.now - IDLE_S / self.heartbeat.tick_s
        for name, shard in list(self.shards.items()):
            shard.log.forget(old_ms)
            if not shard.people and shard.idle_since < before:
                self.backplane.unfollow(name)
                del self.shards[name]

    def write(self, subscriber: Subscriber, raw: bytes, *, events: int) -> None:
        """Writes frames to one subscriber."""
        subscriber.wrote = self.heartbeat.now
        self.metrics.deliveries += events
        subscriber.sink.write(chunk(raw))

    def ping(self, subscribers: Iterable[Subscriber]) -> None:
        """Writes a ping to quiet subscribers; made once per shard."""
        made: dict[str, Chunk] = {}
        for subscriber in subscribers:
            person = subscriber.person
            if (said := made.get(person.log)) is None:
                said = made[person.log] = chunk(ping(self.place(person)))
            subscriber.wrote = self.heartbeat.now
            subscriber.sink.write(said)


class Watch:
    """Hears what the hub hears of one person's question."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    @asynccontextmanager
    async def __call__(self, user: str, question_id: str) -> AsyncIterator[AsyncIterator[Publication]]:
        """Everything from now on, in order. Raises BackplaneUnavailable."""
        heard: asyncio.Queue[Publication] = asyncio.Queue(MOST_WAITING)

        def tap(publication: Publication) -> None:
            # Full only for a reader that is cut by its send timeout anyway.
            if not heard.full():
                heard.put_nowait(publication)

        async def publications() -> AsyncIterator[Publication]:
            while True:
                yield await heard.get()

        person = self._hub.hold(user)
        try:
            with self._hub.tap(question_id, tap):
                try:
                    async with asyncio.timeout(PATIENCE_S):
                        await self._hub.followed(person)
                except TimeoutError:
                    raise BackplaneUnavailable("the person's log isn't followed yet") from None
                yield publications()
        finally:
            self._hub.release(person)


async def drain(
    hub: Hub,
    *,
    window_s: float,
    flush_s: float = FLUSH_S,
    reason: CloseReason = CloseReason.SHUTDOWN,
) -> None:
    """Ends all streams within `window_s` seconds; last words may take `flush_s` more."""
    loop = asyncio.get_running_loop()
    leaving = list(hub.subscribers)
    ended = tuple(leaving)
    random.shuffle(leaving)
    # Even ends and even waits make even returns, for whichever node gets them.
    retries = spread_retries_ms()
    began, whole = loop.time(), len(leaving)
    while leaving:
        spent = (loop.time() - began) / window_s if window_s > 0 else 1.0
        due = whole - round(whole * min(1.0, spent))
        while len(leaving) > due:
            hub.end(leaving.pop(), reason, retry_ms=next(retries))
        if leaving:
            await asyncio.sleep(STEP_S)
    late = list(hub.subscribers)
    for subscriber in late:
        hub.end(subscriber, reason, retry_ms=next(retries))
    await _flush([*ended, *late], flush_s)


async def _flush(ended: Sequence[Subscriber], flush_s: float) -> None:
    """Lets last words leave; whoever hasn't read them by then is dropped."""
    waiting = [subscriber for subscriber in ended if not subscriber.over]
    deadline = asyncio.get_running_loop().time() + flush_s
    while waiting and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(STEP_S)
        waiting = [subscriber for subscriber in waiting if not subscriber.over]
    for subscriber in waiting:
        subscriber.sink.abort()
