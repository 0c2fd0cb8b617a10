"""The node's table of open streams: shard and person to subscribers. What the node hears is delivered here.

Called by the feed with what the backplane let the node hear; writes to live subscribers. Those who fall
behind it gives to `catch_up`. `deliver` is synchronous, so nothing can come between a place and its filter.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from pushsse.backplane.base import (
    BROADCAST,
    Backplane,
    Entry,
    Followed,
    Heard,
    HeardLive,
    Hearing,
    Lost,
    log_of,
)
from pushsse.errors import CloseReason
from pushsse.event import Publication
from pushsse.hub.batch import Batch, Item, together
from pushsse.hub.followed import FollowedLog
from pushsse.hub.heartbeat import Heartbeat
from pushsse.metrics import Metrics
from pushsse.position import Mark, Position
from pushsse.stream.frame import Chunk, chunk, ending, ping
from pushsse.stream.subscriber import Person, Subscriber

IDLE_S = 60.0
TAIL_BYTES = 512 * 1024
BROADCAST_TAIL_BYTES = 8 * 1024 * 1024
Tap = Callable[[Publication, Position], None]


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
        shards: int,
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
        self._shard_count = shards
        self._behind = behind
        self._lost = lost

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

    def end(self, subscriber: Subscriber, reason: CloseReason) -> None:
        """Ends a stream for a reason, which the client learns in band."""
        if subscriber.reason is not None:
            return
        subscriber.reason = reason
        last = chunk(ending(reason, self.position(subscriber)))
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
        """Stops following the shards that nobody here has needed for a minute."""
        before = self.heartbeat.now - IDLE_S / self.heartbeat.tick_s
        for name, shard in list(self.shards.items()):
            if not shard.people and shard.idle_since < before:
                self.backplane.unfollow(name)
                del self.shards[name]

    # What is heard

    def deliver(self, hearings: Iterable[Hearing]) -> None:
        """Takes what the backplane let the node hear, in order, and writes it to the live subscribers."""
        batch = Batch(self.broadcast.mark)
        for hearing in hearings:
            if isinstance(hearing, Heard):
                for entry in hearing.entries:
                    self._hear(entry, batch)
            elif isinstance(hearing, HeardLive):
                if (shard := self.shards.get(hearing.log)) is not None:
                    self._keep(batch, shard, hearing.publication, shard.log.mark)
            else:
                self._write(batch)
                self._begin(hearing)
                batch = Batch(self.broadcast.mark)
        self._write(batch)

    def _hear(self, entry: Entry, batch: Batch) -> None:
        if entry.log == BROADCAST:
            self.broadcast.append(entry)
            batch.add_broadcast(entry.publication, self.broadcast.mark)
        elif (shard := self.shards.get(entry.log)) is not None:
            before = shard.log.mark
            shard.log.append(entry)
            self._keep(batch, shard, entry.publication, before)

    def _keep(self, batch: Batch, shard: Shard, publication: Publication, before: Mark) -> None:
        batch.add(shard.log.name, publication, shard.log.mark, before=before)
        if publication.subject:
            place = Position(self.broadcast.mark, shard.log.mark)
            for tap in tuple(self._taps.get(publication.subject, ())):
                tap(publication, place)

    def _begin(self, hearing: Followed | Lost) -> None:
        """A log is followed from a place on, or was lost and goes on in another epoch."""
        shard = self.shards.get(hearing.log)
        if shard is None and hearing.log != BROADCAST:
            return
        log = shard.log if shard is not None else self.broadcast
        if isinstance(hearing, Followed):
            log.begin(hearing.head, hearing.tail)
            return
        self.metrics.logs_lost += 1
        log.begin(hearing.head._replace(number=hearing.head.base), ())
        for concerned in (shard,) if shard is not None else tuple(self.shards.values()):
            self._owe_gap(concerned, at=log)
        if shard is not None:
            # Changes of switches may have been among what was lost.
            self._lost(tuple(shard.people.values()))

    def _owe_gap(self, shard: Shard, *, at: FollowedLog) -> None:
        """Everybody of a shard goes on from where a lost log begins anew, and is told so."""
        for person in tuple(shard.people.values()):
            for subscriber in tuple(person.subscribers):
                subscriber.gap = True
                if subscriber.live:
                    self.fell_behind(subscriber)
                elif subscriber.position is not None:
                    part = "broadcast" if at is self.broadcast else "shard"
                    subscriber.position = subscriber.position._replace(**{part: at.mark})

    # What is written

    def _write(self, batch: Batch) -> None:
        for name in self.shards if batch.broadcasts else batch.personal:
            shard = self.shards[name]
            # Nobody's shard costs nothing.
            if shard.people:
                self._write_shard(shard, batch)

    def _write_shard(self, shard: Shard, batch: Batch) -> None:
        items = batch.items(shard.log.name, shard.log.mark)
        touched = self._touched(shard, items)
        if batch.broadcasts and shard.live:
            self._write_broadcasts(shard, [item for item in items if item.publication.users is None], touched)
        for person, own in touched.items():
            wanted = [item for item in items if item.publication.users is None or item in own]
            live = [subscriber for subscriber in person.subscribers if subscriber.live]
            self._write_items(person, live, wanted)

    def _touched(self, shard: Shard, items: Sequence[Item]) -> dict[Person, set[Item]]:
        """The people here for whom there is something of their own."""
        found: dict[Person, set[Item]] = {}
        for item in items:
            for user in item.publication.users or ():
                if (person := shard.people.get(user)) is not None:
                    found.setdefault(person, set()).add(item)
        return found

    def _write_broadcasts(
        self, shard: Shard, items: Sequence[Item], touched: Mapping[Person, set[Item]]
    ) -> None:
        """To everybody but those who get something of their own with it."""
        everything = together(items)
        now = self.heartbeat.now
        written = 0
        for subscriber in tuple(shard.live):
            if touched and subscriber.person in touched:
                continue
            if subscriber.plain:
                subscriber.wrote = now
                subscriber.sink.write(everything)
                written += 1
            else:
                self._write_items(subscriber.person, (subscriber,), items)
        self.metrics.deliveries += written * len(items)

    def _write_items(self, person: Person, subscribers: Sequence[Subscriber], items: Sequence[Item]) -> None:
        frames: list[list[bytes]] = [[] for _ in subscribers]
        for item in items:
            publication = item.publication
            if publication.switchable and publication.name in person.off:
                self.metrics.suppressed += 1
                continue
            if publication.change is not None:
                person.learn(publication.change.version, frozenset(publication.change.after))
            for subscriber, chosen in zip(subscribers, frames, strict=True):
                if subscriber.wants(publication.name, publication.switchable):
                    chosen.append(item.frame(named=subscriber.named))
        for subscriber, chosen in zip(subscribers, frames, strict=True):
            if chosen:
                self.write(subscriber, b"".join(chosen), events=len(chosen))

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
