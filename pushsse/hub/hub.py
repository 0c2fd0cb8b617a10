"""The node's table of open streams: who is here, and how far the node has heard each log.

Delivery writes to the streams that it finds here, the opening and catch-up read where the node stands, and
subscribers report each change of their state. `drain` ends all streams of a node that stops or is isolated.
Deliberate: a person is on this node while somebody holds it, be it a stream, an opening or a reply.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Protocol

from pushsse.backplane import BROADCAST, Backplane, log_of
from pushsse.backplane.answers import ENDINGS, SoFar
from pushsse.errors import CloseReason
from pushsse.event import Publication
from pushsse.hub.growing import GrowingAnswers, PlacedDelta
from pushsse.hub.heartbeat import Heartbeat
from pushsse.hub.log_tail import TAIL_MS, LogTail, limited_wait
from pushsse.metrics import Metrics
from pushsse.outcomes import Outcomes
from pushsse.position import Position
from pushsse.stream.frame import Chunk, chunk, frame, ping, spread_retries_ms
from pushsse.stream.subscriber import LIVE, Ended, Gone, Off, Person, Subscriber

# How long a shard is followed after its last person left: they often come back.
IDLE_S = 60.0
SHARD_TAIL_BYTES = 512 * 1024
BROADCAST_TAIL_BYTES = 8 * 1024 * 1024
BROADCAST_KEEP_KEYS = 20_000
TAP_LENGTH = 10_000
# How often a drain ends some streams, and looks which have left.
DRAIN_STEP_S = 0.05
FLUSH_S = 1.0
Tap = Callable[[Publication], None]


class Rules(Protocol):
    """What this node knows of the catalogue. Neither waits: the view may be some seconds old."""

    @property
    def revision(self) -> int:
        """Rises when the rules of types change: default, mandatory, category."""
        ...

    def changed_since(self, name: str, revision: int) -> bool:
        """Whether the rules of a type have changed since a revision."""
        ...


class NoRules:
    """A catalogue that never changes."""

    revision = 0

    def changed_since(self, name: str, revision: int) -> bool:
        """Never."""
        return False


class Shard:
    """One shard's log, the people on this node who hash to it, and the live ones of their streams."""

    __slots__ = ("idle_since", "live", "log", "people")

    def __init__(self, name: str) -> None:
        self.log = LogTail(name, keep_bytes=SHARD_TAIL_BYTES)
        self.live: dict[Subscriber, None] = {}
        self.people: dict[str, Person] = {}
        self.idle_since = 0


class Hub:
    """The streams and people of this node. The registry that subscribers report to."""

    def __init__(
        self,
        backplane: Backplane,
        *,
        heartbeat: Heartbeat,
        metrics: Metrics,
        rules: Rules | None = None,
        outcomes: Outcomes | None = None,
    ) -> None:
        self.backplane = backplane
        self.rules: Rules = rules or NoRules()
        # Where it is noted what became of events, if it is.
        self.outcomes = outcomes
        self.shards: dict[str, Shard] = {}
        self.broadcast = LogTail(BROADCAST, keep_bytes=BROADCAST_TAIL_BYTES, keep_keys=BROADCAST_KEEP_KEYS)
        self.heartbeat = heartbeat
        self.metrics = metrics
        self.subscribers: dict[Subscriber, None] = {}
        # Streams for catch-up to serve. Bounded by the number of streams: each is in it once at most.
        self.behind: asyncio.Queue[Subscriber] = asyncio.Queue()
        self.growing = GrowingAnswers()
        # What `take_moved` returns; None where nobody calls it.
        self._moved: dict[str, int] | None = None
        self._taps: dict[str, list[Tap]] = {}
        self._shard_count = backplane.shards

    # People and their logs

    def hold(self, user: str) -> Person:
        """The person of this name, whose logs the node follows until `release`."""
        name = log_of(user, self._shard_count)
        shard = self.shards.get(name)
        if shard is None:
            # A node follows only the shards of the people that it has; `listen` yields Followed for each.
            shard = self.shards[name] = Shard(name)
            self.backplane.follow(BROADCAST)
            self.backplane.follow(name)
        person = shard.people.get(user)
        if person is None:
            person = shard.people[user] = Person(user, name)
        person.holds += 1
        return person

    def release(self, person: Person) -> None:
        """Ends one hold; a person whom nobody holds is forgotten."""
        person.holds -= 1
        if person.holds == 0:
            # The shard is still followed for a while: people who reload a page find its tail in memory.
            shard = self.shards[person.log]
            del shard.people[person.name]
            if self.growing.people:
                self.growing.forget_person(person.name)
            shard.idle_since = self.heartbeat.now

    def follows(self, person: Person) -> bool:
        """Whether the node hears the person's logs by now."""
        return self.broadcast.ready.is_set() and self.shards[person.log].log.ready.is_set()

    async def followed(self, person: Person) -> None:
        """Waits until the node hears the person's logs. Raises BackplaneUnavailable."""
        if self.follows(person):
            return
        async with limited_wait():
            await self.broadcast.ready.wait()
            await self.shards[person.log].log.ready.wait()

    def log(self, person: Person) -> LogTail:
        """The person's shard log."""
        return self.shards[person.log].log

    def position(self, person: Person) -> Position:
        """Where the node stands in the person's logs."""
        return Position(self.broadcast.mark, self.shards[person.log].log.mark)

    def people_before(self, revision: int) -> Sequence[Person]:
        """Those on this node whose switches follow from an earlier revision of the catalogue."""
        return [
            person
            for shard in self.shards.values()
            for person in shard.people.values()
            if person.revision < revision
        ]

    def was_off(self, name: str, off: Off) -> bool:
        """Whether a type was off at a place in the log, and not only by what its rules were then.

        Where the catalogue has changed a type's default, or made it mandatory, the log doesn't say what held
        at the place: what holds now decides alone.
        """
        return name in off.types and not self.rules.changed_since(name, off.revision)

    # Streams

    def add(self, subscriber: Subscriber) -> None:
        """A stream begins, behind its logs. It holds its person."""
        person = subscriber.person
        person.holds += 1
        person.subscribers.append(subscriber)
        if len(person.subscribers) == 1:
            person.since_ms = self.backplane.now_ms()
        if self._moved is not None:
            self._moved.setdefault(person.name, person.since_ms)
        self.subscribers[subscriber] = None
        self.heartbeat.add(subscriber)
        self.metrics.streams_opened += 1

    def subscribers_of(self, user: str) -> Sequence[Subscriber]:
        """A person's open streams on this node."""
        person = self.person(user)
        return () if person is None else tuple(person.subscribers)

    def take_moved(self) -> Mapping[str, int]:
        """The people whose number of streams has changed since the last call; none at the first one.

        With each since when there has been a stream at the first of the changes (ms).
        """
        moved, self._moved = self._moved, {}
        return moved or {}

    def person(self, user: str) -> Person | None:
        """Somebody who has a stream on this node, or is about to."""
        shard = self.shards.get(log_of(user, self._shard_count))
        return None if shard is None else shard.people.get(user)

    def users(self) -> Sequence[str]:
        """Everybody who has a stream on this node, or is about to."""
        return [user for shard in self.shards.values() for user in shard.people]

    def went_live(self, subscriber: Subscriber) -> None:
        """Called by the subscriber in the step that makes it live."""
        self.shards[subscriber.person.log].live[subscriber] = None
        if self.growing.people and subscriber.person.name in self.growing.people:
            # Later, not within this step: a write that fills the sink would end its being live midway.
            asyncio.get_running_loop().call_soon(self._bring, subscriber)

    def fell_behind(self, subscriber: Subscriber) -> None:
        """Called by the subscriber in the step that ends its being live, and for one that begins behind."""
        self.shards[subscriber.person.log].live.pop(subscriber, None)
        self.behind.put_nowait(subscriber)

    def left(self, subscriber: Subscriber) -> None:
        """Called by the subscriber in the step that ends it: it is forgotten, and its reason counted."""
        # Guarantee 5: the only place that counts endings, and a subscriber gets here once.
        state, person = subscriber.state, subscriber.person
        assert isinstance(state, (Ended, Gone))
        # Before the release, with which the person may go.
        self.shards[person.log].live.pop(subscriber, None)
        del self.subscribers[subscriber]
        person.subscribers.remove(subscriber)
        if self._moved is not None:
            self._moved.setdefault(person.name, person.since_ms)
        if self.growing.people:
            self.growing.leave(subscriber, person.name)
        self.release(person)
        self.metrics.endings[state.reason.code] += 1
        if isinstance(state, Ended):
            self.heartbeat.bury(subscriber)

    def ping(self, subscribers: Iterable[Subscriber]) -> None:
        """Pings live subscribers; the frame is made once per shard."""
        made: dict[str, Chunk] = {}
        for subscriber in subscribers:
            person = subscriber.person
            if (found := made.get(person.log)) is None:
                found = made[person.log] = chunk(ping(self.position(person)))
            subscriber.offer(found, self.heartbeat.now)

    def prune(self) -> None:
        """Forgets old entries, and the shards that nobody here has needed for a minute."""
        old_ms = self.backplane.now_ms() - TAIL_MS
        self.broadcast.forget(old_ms)
        before = self.heartbeat.now - IDLE_S / self.heartbeat.tick_s
        for name, shard in list(self.shards.items()):
            shard.log.forget(old_ms)
            if not shard.people and shard.idle_since < before:
                self.backplane.unfollow(name)
                del self.shards[name]

    # Publications about one question

    def show(self, publication: Publication) -> None:
        """Called by delivery: shows a publication about a question to the replies that stream its answer."""
        if publication.name in ENDINGS:
            self.growing.end(publication.subject, publication.attempt)
        for tap in tuple(self._taps.get(publication.subject, ())):
            for each in (
                publication.for_listener(tap) if isinstance(publication, PlacedDelta) else (publication,)
            ):
                tap(each)

    def learn(self, question: str, user: str, so_far: SoFar | None, *, since: float) -> None:
        """Takes an answer so far that was read from a time on (monotonic); who lacks some of it gets that."""
        person = self.person(user)
        if person is None:
            return
        self.growing.learn(question, user, so_far, since=since)
        if (answer := self.growing.answer(question)) is None:
            return
        for tap in tuple(self._taps.get(question, ())):
            for delta in answer.lacking(tap):
                tap(delta)
        for subscriber in tuple(person.subscribers):
            self._bring(subscriber)

    def _bring(self, subscriber: Subscriber) -> None:
        """Writes what a live stream lacks of the answers that grow for its person."""
        if subscriber.state is not LIVE:
            # Once it is live.
            return
        position = subscriber.position
        frames = [
            frame(delta, position, named=subscriber.named)
            for answer in self.growing.of(subscriber.person.name)
            for delta in answer.lacking(subscriber)
        ]
        if frames:
            self.metrics.deliveries += len(frames)
            subscriber.offer(chunk(b"".join(frames)), self.heartbeat.now)

    @asynccontextmanager
    async def publications(self, user: str, subject: str) -> AsyncIterator[AsyncIterator[Publication]]:
        """All publications to a person about one question from now on, in order, wherever it is answered.

        What was there of the answer before comes after `learn`. Raises BackplaneUnavailable.
        """
        heard: asyncio.Queue[Publication] = asyncio.Queue(TAP_LENGTH)

        def tap(publication: Publication) -> None:
            # Full only for a reader that its send timeout cuts anyway.
            if not heard.full():
                heard.put_nowait(publication)

        async def publications() -> AsyncIterator[Publication]:
            while True:
                yield await heard.get()

        person = self.hold(user)
        try:
            with self._tapped(subject, tap):
                await self.followed(person)
                yield publications()
        finally:
            self.release(person)

    @contextmanager
    def _tapped(self, subject: str, tap: Tap) -> Iterator[None]:
        taps = self._taps.setdefault(subject, [])
        taps.append(tap)
        try:
            yield
        finally:
            taps.remove(tap)
            if (answer := self.growing.answer(subject)) is not None:
                answer.sent.pop(tap, None)
            if not taps:
                del self._taps[subject]


async def drain(
    hub: Hub,
    *,
    window_s: float,
    flush_s: float = FLUSH_S,
    reason: CloseReason = CloseReason.SHUTDOWN,
    close: Callable[[], None] = lambda: None,
) -> None:
    """Ends all streams within `window_s` seconds, in random order; their last frames may take `flush_s` more.

    Guarantee 5: each client gets `exception` with the reason and a random `retry`, and a clean end of the
    body. Guarantee 4: a client that doesn't read is dropped after `flush_s`, so it can't delay the stop.
    `close` is called before the last are ended; from then on no stream may begin.
    """
    loop = asyncio.get_running_loop()
    leaving = list(hub.subscribers)
    ended = tuple(leaving)
    random.shuffle(leaving)
    # Even ends and even waits spread the returns evenly over whichever nodes get them.
    retries = spread_retries_ms()
    began, total = loop.time(), len(leaving)
    while leaving:
        spent = (loop.time() - began) / window_s if window_s > 0 else 1.0
        due = total - round(total * min(1.0, spent))
        while len(leaving) > due:
            leaving.pop().end(reason, retry_ms=next(retries))
        if leaving:
            await asyncio.sleep(DRAIN_STEP_S)
    # Guarantee 5: no stream may begin any more when the last are ended, or nobody would end it.
    close()
    # Those that began during the drain.
    late = list(hub.subscribers)
    for subscriber in late:
        subscriber.end(reason, retry_ms=next(retries))
    await _flush([*ended, *late], flush_s)


async def _flush(ended: Sequence[Subscriber], flush_s: float) -> None:
    """Waits until the connections have closed, and drops those that haven't after `flush_s` seconds."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + flush_s
    waiting = [subscriber for subscriber in ended if not isinstance(subscriber.state, Gone)]
    while waiting and loop.time() < deadline:
        await asyncio.sleep(DRAIN_STEP_S)
        waiting = [subscriber for subscriber in waiting if not isinstance(subscriber.state, Gone)]
    for subscriber in waiting:
        subscriber.sink.abort()
