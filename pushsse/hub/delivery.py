"""Delivers what the node hears: keeps it in the tails of the logs, and offers it to the live streams.

`Feed`, a service, listens to the backplane, and calls `Delivery` at once or, under load, with all that came
meanwhile. What was heard together is encoded once per shard, and each stream gets it in one write.
Deliberate: nothing in `Delivery` awaits, so nothing comes between an event's position and the filter before
its write (guarantee 3), nor between two steps of a stream's state (guarantee 2).
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from heapq import merge
from typing import NamedTuple

from msgspec.structs import replace

from pushsse.backplane import BROADCAST, Backplane, Entry, Followed, Gap, Heard, HeardLive, Hearing
from pushsse.backplane.answers import LiveDelta
from pushsse.event import Change, Publication
from pushsse.hub.growing import PlacedDelta
from pushsse.hub.hub import Hub, Shard
from pushsse.hub.people import Refresh
from pushsse.outcomes import EXPIRED, SWITCHED_OFF, WRITTEN
from pushsse.position import Mark, Position
from pushsse.stream.frame import Chunk, chunk, frame
from pushsse.stream.subscriber import LIVE, NOTHING_OFF, Person, Subscriber, selects

MAX_REST_S = 0.002
# A rest is so many times as long as the delivery was: deliveries take a ninth of the time at most.
_REST_RATIO = 8
# The event loop's timers count in milliseconds: a shorter rest would be none.
_MIN_REST_S = 0.0005
# How many hearings are delivered in a row before other tasks have their turn.
_MAX_IN_A_ROW = 64
QUEUE_LENGTH = 10_000


class Feed:
    """Hands what the node hears to delivery, in order: the node's one in-process queue.

    While it is idle, each hearing passes the queue by. After a delivery to many streams it rests for up to
    2 ms, so that what arrives meanwhile leaves in one write per stream; after a delivery to few it doesn't,
    because that would save nothing. When the queue is full it stops listening, and the log keeps what isn't
    read.
    """

    def __init__(self, backplane: Backplane, delivery: "Delivery") -> None:
        self._backplane = backplane
        self._delivery = delivery
        self._queue: deque[Hearing] = deque()
        self._heard = asyncio.Event()
        self._room = asyncio.Event()
        self._rest_until = 0.0
        self._failure: Exception | None = None

    @property
    def waiting(self) -> int:
        """How many hearings aren't delivered yet."""
        return len(self._queue)

    async def run(self) -> None:
        """Listens and delivers, for ever. An error of the delivery ends it."""
        self._backplane.listen_nowait(self)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._listen(), name="listen")
                tasks.create_task(self._deliver_queue(), name="deliver")
        finally:
            self._backplane.listen_nowait(None)

    def hear(self, hearing: Heard) -> bool:
        """Delivers one event for a few within the call that publishes it; False where it has to wait.

        Order: nothing waits in the queue. A broadcast always goes through it: what comes while it is written
        to thousands can then be written together.
        """
        entries = hearing.entries
        if self._queue or len(entries) != 1 or entries[0].log == BROADCAST:
            return False
        try:
            self._delivery.deliver_one(entries[0])
        except Exception as error:  # noqa: BLE001  it ends this service, not the publisher's request
            self._failure = error
            self._heard.set()
        return True

    async def _listen(self) -> None:
        in_a_row = 0
        async with aclosing(self._backplane.listen()) as hearings:
            async for hearing in hearings:
                # Guarantee 2: a hearing goes past the queue only while nothing waits in it, so it can't
                # overtake what was heard before it.
                if not self._queue and time.perf_counter() >= self._rest_until:
                    self._deliver((hearing,))
                    in_a_row += 1
                    if in_a_row == _MAX_IN_A_ROW:
                        in_a_row = 0
                        await asyncio.sleep(0)
                    continue
                self._queue.append(hearing)
                self._heard.set()
                # Guarantee 2: it is in the queue before this waits. With a hearing in hand, `hear` could find
                # the queue empty, and deliver first what comes after it.
                while len(self._queue) >= QUEUE_LENGTH:
                    self._room.clear()
                    await self._room.wait()

    async def _deliver_queue(self) -> None:
        while True:
            await self._heard.wait()
            if self._failure is not None:
                raise self._failure
            if (wait_s := self._rest_until - time.perf_counter()) > 0:
                await asyncio.sleep(wait_s)
            # Guarantee 2: emptied and delivered without an await between, so that `hear` and `_listen` see
            # either all of the batch waiting or all of it delivered.
            self._heard.clear()
            batch = tuple(self._queue)
            self._queue.clear()
            self._room.set()
            self._deliver(batch)
            rest_s = self._rest_until - time.perf_counter()
            # What waits in a transport leaves at the next turn of the loop; the rest begins after that.
            await asyncio.sleep(0)
            if rest_s > 0:
                self._rest_until = time.perf_counter() + rest_s

    def _deliver(self, batch: Sequence[Hearing]) -> None:
        began = time.perf_counter()
        self._delivery.deliver(batch)
        ended = time.perf_counter()
        rest_s = min(MAX_REST_S, (ended - began) * _REST_RATIO)
        self._rest_until = ended + rest_s if rest_s >= _MIN_REST_S else 0.0


class Delivery:
    """From what was heard to what is written, for all streams of the node."""

    def __init__(self, hub: Hub, refresh: Refresh) -> None:
        self._hub = hub
        self._refresh = refresh

    def deliver(self, hearings: Sequence[Hearing]) -> None:
        """Takes what the backplane yielded, in order, and writes it to the live streams."""
        if len(hearings) == 1 and isinstance(first := hearings[0], Heard) and len(first.entries) == 1:
            [entry] = first.entries
            if entry.log != BROADCAST:
                self.deliver_one(entry)
                return
        # The time of expiry is asked for here and not where the event was heard: it may have waited for long,
        # in the log while Redis was away, or in this process while it was stopped.
        now_ms = self._hub.backplane.now_ms()
        batch = Batch(self._hub.broadcast.mark, now_ms)
        for hearing in hearings:
            if isinstance(hearing, Heard):
                for entry in hearing.entries:
                    self._hear(entry, batch, now_ms)
            elif isinstance(hearing, HeardLive):
                self._hear_live(hearing, batch)
            else:
                # Guarantee 2: what was heard before a log was lost is written before its streams are told.
                self._write(batch)
                self._follow_or_lose(hearing)
                batch = Batch(self._hub.broadcast.mark, now_ms)
        self._write(batch)

    def deliver_one(self, entry: Entry) -> None:
        """Does what `deliver` would with one entry of a shard, without a batch: most events are such."""
        hub, publication = self._hub, entry.publication
        if (shard := hub.shards.get(entry.log)) is None:
            return
        # Guarantee 2: the log moves before the write, so that a stream whose sink fills up in it falls behind
        # at a position that is past this entry.
        shard.log.append(entry)
        # As in `deliver`.
        now_ms = hub.backplane.now_ms()
        if 0 < publication.expires_ms <= now_ms:
            self._expired(publication, shard, now_ms)
            return
        if publication.subject:
            hub.show(publication)
        item: Item | None = None
        for user in publication.users or ():
            if (person := shard.people.get(user)) is not None:
                if item is None:
                    item = Item(publication, Position(hub.broadcast.mark, shard.log.mark))
                self._write_item(person, item, now_ms)

    def _hear(self, entry: Entry, batch: "Batch", now_ms: int) -> None:
        """Puts an entry into its log's tail and into the batch; what has expired only into the tail."""
        expired = 0 < entry.publication.expires_ms <= now_ms
        if entry.log == BROADCAST:
            self._hub.broadcast.append(entry)
            # One that can't be read is for nobody: a chunk of nothing would be the end of every body.
            if not expired and entry.publication.users is None:
                batch.add_broadcast(entry.publication, self._hub.broadcast.mark)
        elif (shard := self._hub.shards.get(entry.log)) is not None:
            before = shard.log.mark
            shard.log.append(entry)
            if not expired:
                self._add(batch, shard, entry.publication, before)
        if expired:
            self._expired(entry.publication, self._hub.shards.get(entry.log), now_ms)

    def _expired(self, publication: Publication, shard: Shard | None, now_ms: int) -> None:
        self._hub.metrics.expired += 1
        if (outcomes := self._hub.outcomes) is not None:
            if publication.users is None:
                outcomes.count(publication, EXPIRED, len(self._hub.subscribers))
            elif shard is not None:
                outcomes.note_all(publication, shard.people.keys() & publication.users, EXPIRED, now_ms)

    def _hear_live(self, hearing: HeardLive, batch: "Batch") -> None:
        """Puts a delta into the batch, if it continues what this node has of its answer."""
        shard = self._hub.shards.get(hearing.log)
        publication: Publication | None = hearing.publication
        if shard is None or publication is None or not shard.people.keys() & (publication.users or ()):
            return
        if isinstance(publication, LiveDelta):
            publication = self._hub.growing.hear(publication)
        if publication is not None:
            self._add(batch, shard, publication, shard.log.mark)

    def _add(self, batch: "Batch", shard: Shard, publication: Publication, before: Mark) -> None:
        """Puts a shard's publication into the batch, and shows it to the replies to its question."""
        batch.add(shard.log.name, publication, shard.log.mark, before=before)
        if publication.subject:
            self._hub.show(publication)

    def _follow_or_lose(self, hearing: Followed | Gap) -> None:
        """A log is followed from its head on, or was lost and goes on from its base."""
        shard = self._hub.shards.get(hearing.log)
        if shard is None and hearing.log != BROADCAST:
            return
        tail = shard.log if shard is not None else self._hub.broadcast
        if isinstance(hearing, Followed):
            tail.begin(hearing.head, hearing.tail)
            return
        self._hub.metrics.logs_lost += 1
        # Guarantee 2: before the streams are told. A live one takes the node's position when it falls behind.
        tail.begin(replace(hearing.head, number=hearing.head.base), ())
        # Guarantee 2: every stream of the log is told, live or behind, before anything that follows the gap.
        for concerned in (shard,) if shard is not None else tuple(self._hub.shards.values()):
            for person in concerned.people.values():
                for subscriber in tuple(person.subscribers):
                    subscriber.owe_gap(tail.name, tail.mark)
        if shard is not None:
            # Guarantee 3: changes of switches may have been among what was lost.
            self._refresh.switches(tuple(shard.people.values()))
            for user in shard.people if self._hub.growing.people else ():
                # Ends of answers may have been, too.
                self._hub.growing.forget_person(user)

    def _write(self, batch: "Batch") -> None:
        for name in self._hub.shards if batch.broadcasts else batch.personal:
            shard = self._hub.shards[name]
            # A shard without people is followed for a while: it costs nothing here.
            if shard.people:
                self._write_shard(shard, batch)

    def _write_shard(self, shard: Shard, batch: "Batch") -> None:
        items = batch.items(shard.log.name, shard.log.mark)
        personal = self._personal(shard, items)
        if batch.broadcasts and shard.live:
            broadcasts = [item for item in items if item.publication.users is None]
            self._write_broadcasts(shard, broadcasts, personal, batch.at_ms)
        # Guarantee 2: whoever gets personal events gets the broadcasts in the same write, in the order of the
        # log.
        for person, own in personal.items():
            wanted = [item for item in items if item.publication.users is None or item in own]
            live = [subscriber for subscriber in person.subscribers if subscriber.state is LIVE]
            self._write_items(person, live, wanted, batch.at_ms)

    def _personal(self, shard: Shard, items: Sequence["Item"]) -> dict[Person, set["Item"]]:
        """The people of this node who get personal events, and which."""
        found: dict[Person, set[Item]] = {}
        for item in items:
            for user in item.publication.users or ():
                if (person := shard.people.get(user)) is not None:
                    found.setdefault(person, set()).add(item)
        return found

    def _write_broadcasts(
        self, shard: Shard, items: Sequence["Item"], personal: Mapping[Person, set["Item"]], at_ms: int
    ) -> None:
        """Writes broadcasts to all live streams but those of people who get personal events with them."""
        broadcasts = Broadcasts(items)
        everything = broadcasts.without(NOTHING_OFF).chunk
        now = self._hub.heartbeat.now
        whole = partly = suppressed = 0
        tally: Counter[frozenset[str]] | None = None if self._hub.outcomes is None else Counter()
        # A copy: a stream whose sink fills up leaves the table while it is written to.
        for subscriber in tuple(shard.live):
            if personal and subscriber.person in personal:
                continue
            if subscriber.unfiltered:
                subscriber.offer(everything, now)
                whole += 1
            elif subscriber.named and subscriber.types is None:
                count, chosen = broadcasts.without(subscriber.person.off)
                suppressed += len(items) - count
                if tally is not None:
                    tally[subscriber.person.off] += 1
                if count:
                    subscriber.offer(chosen, now)
                    partly += count
            else:
                self._write_items(subscriber.person, (subscriber,), items, at_ms)
        self._hub.metrics.deliveries += whole * len(items) + partly
        self._hub.metrics.suppressed += suppressed
        if tally is not None:
            tally[NOTHING_OFF] += whole
            self._count(items, tally)

    def _count(self, items: Sequence["Item"], tally: Mapping[frozenset[str], int]) -> None:
        """Notes what became of broadcasts, by how many streams have which types off."""
        outcomes = self._hub.outcomes
        assert outcomes is not None
        for publication in [item.publication for item in items]:
            off = sum(count for types, count in tally.items() if publication.name in types)
            outcomes.count(publication, SWITCHED_OFF, off)
            outcomes.count(publication, WRITTEN, sum(tally.values()) - off)

    def _write_item(self, person: Person, item: "Item", at_ms: int) -> None:
        """As `_write_items`, of one item to all live streams of a person; its chunk is made once for them."""
        hub, publication = self._hub, item.publication
        # Guarantee 3: as in `_write_items`.
        outcomes = hub.outcomes
        if publication.switchable and publication.name in person.off:
            hub.metrics.suppressed += 1
            if outcomes is not None:
                outcomes.note(publication, person.name, SWITCHED_OFF, at_ms)
            return
        if publication.change is not None:
            self._learn(person, publication.change)
        now = hub.heartbeat.now
        # A copy: a sink may end its stream within a write.
        for subscriber in tuple(person.subscribers):
            if subscriber.state is LIVE and selects(subscriber.types, publication):
                hub.metrics.deliveries += 1
                subscriber.offer(item.chunk(named=subscriber.named), now)
                if outcomes is not None:
                    outcomes.note(publication, person.name, WRITTEN, at_ms)
                    # Once, however many streams the person has.
                    outcomes = None

    def _write_items(
        self, person: Person, subscribers: Sequence[Subscriber], items: Sequence["Item"], at_ms: int
    ) -> None:
        """Filters items by the person's switches and each stream's types, and writes what is left."""
        frames: list[list[bytes]] = [[] for _ in subscribers]
        outcomes = self._hub.outcomes
        for item in items:
            publication = item.publication
            # Guarantee 3: the switches are read here, after the event's position is fixed and right before
            # its write.
            if publication.switchable and publication.name in person.off:
                self._hub.metrics.suppressed += 1
                if outcomes is not None:
                    outcomes.reached(publication, person.name, SWITCHED_OFF, at_ms)
                continue
            if publication.change is not None:
                # Guarantee 3: what follows the change in this batch is filtered by it.
                self._learn(person, publication.change)
            if publication.subject and isinstance(publication, PlacedDelta):
                for subscriber, chosen in zip(subscribers, frames, strict=True):
                    chosen += item.frames(publication.for_listener(subscriber), named=subscriber.named)
                continue
            is_written = False
            for subscriber, chosen in zip(subscribers, frames, strict=True):
                if selects(subscriber.types, publication):
                    chosen.append(item.frame(named=subscriber.named))
                    is_written = True
            if is_written and outcomes is not None:
                outcomes.reached(publication, person.name, WRITTEN, at_ms)
        for subscriber, chosen in zip(subscribers, frames, strict=True):
            if chosen:
                self._hub.metrics.deliveries += len(chosen)
                subscriber.offer(chunk(b"".join(chosen)), self._hub.heartbeat.now)

    def _learn(self, person: Person, change: Change) -> None:
        """Takes a change of somebody's switches."""
        person.learn(change.version, frozenset(change.after), revision=change.revision, quiet=change.quiet)
        if change.revision < self._hub.rules.revision:
            # It follows from an earlier catalogue than this node's: a change that overlapped with one of the
            # catalogue, or one by a release that knows no categories.
            self._refresh.switches((person,))


class Item:
    """One publication at its position, which is the same for every stream of a shard."""

    __slots__ = ("_chunk", "_frame", "position", "publication")

    def __init__(self, publication: Publication, position: Position) -> None:
        self.publication = publication
        self.position = position
        self._frame: bytes | None = None
        self._chunk: Chunk | None = None

    def frame(self, *, named: bool = True) -> bytes:
        """The whole frame; the named one is made once."""
        if not named:
            return frame(self.publication, self.position, named=False)
        if self._frame is None:
            self._frame = frame(self.publication, self.position)
        return self._frame

    def frames(self, publications: Sequence[Publication], *, named: bool) -> list[bytes]:
        """The frames of what a stream gets instead of this publication, which may be itself."""
        return [
            self.frame(named=named) if each is self.publication else frame(each, self.position, named=named)
            for each in publications
        ]

    def chunk(self, *, named: bool = True) -> Chunk:
        """The frame as a chunk by itself; the named one is made once."""
        if not named:
            return chunk(self.frame(named=False))
        if self._chunk is None:
            self._chunk = chunk(frame(self.publication, self.position))
        return self._chunk


class Batch:
    """What was heard together: broadcasts, and each shard's own publications, in the order of hearing.

    `at_ms` is when it is delivered.
    """

    __slots__ = ("_before", "_count", "_start", "at_ms", "broadcasts", "personal")

    def __init__(self, start: Mark, at_ms: int) -> None:
        self.at_ms = at_ms
        self.broadcasts: list[tuple[int, Publication, Mark]] = []
        self.personal: dict[str, list[tuple[int, Publication, Mark]]] = {}
        self._before: dict[str, Mark] = {}
        self._start = start
        self._count = 0

    def add_broadcast(self, publication: Publication, mark: Mark) -> None:
        """A publication for everybody, and the broadcast log's mark at it."""
        self._count += 1
        self.broadcasts.append((self._count, publication, mark))

    def add(self, shard: str, publication: Publication, mark: Mark, *, before: Mark) -> None:
        """A publication of one shard, its log's mark at it and before it."""
        self._count += 1
        self.personal.setdefault(shard, []).append((self._count, publication, mark))
        self._before.setdefault(shard, before)

    def items(self, shard: str, now: Mark) -> list[Item]:
        """What concerns one shard, in the order in which it was heard. `now` is the mark of its log."""
        # Guarantee 2: each position is where both logs stood at that event, so a client that resumes there
        # misses and repeats nothing, whichever of a batch's frames was the last that it got.
        at_broadcast, at_shard = self._start, self._before.get(shard, now)
        found = []
        own = [(*item, False) for item in self.personal.get(shard, ())]
        for _, publication, mark, is_broadcast in merge(
            ((*i, True) for i in self.broadcasts), own, key=_order
        ):
            if is_broadcast:
                at_broadcast = mark
            else:
                at_shard = mark
            found.append(Item(publication, Position(at_broadcast, at_shard)))
        return found


def _order(item: tuple[int, Publication, Mark, bool]) -> int:
    return item[0]


class JoinedFrames(NamedTuple):
    """Those of a batch's broadcasts that one person gets: how many, and their frames as one chunk."""

    many: int
    chunk: Chunk


class Broadcasts:
    """A batch's broadcasts for one shard, joined once for each set of its types that somebody has off."""

    __slots__ = ("_items", "_last", "_last_off", "_made", "_types")

    def __init__(self, items: Sequence[Item]) -> None:
        self._items = items
        self._types = frozenset(i.publication.name for i in items if i.publication.switchable)
        self._last_off = NOTHING_OFF
        self._last = self._joined(NOTHING_OFF)
        self._made: dict[frozenset[str], JoinedFrames] = {NOTHING_OFF: self._last}

    def without(self, off: frozenset[str]) -> JoinedFrames:
        """What somebody gets who has these types off."""
        # What is off by default, most have off, and share the set.
        if off is self._last_off:
            return self._last
        here = off & self._types
        chosen = self._made.get(here)
        if chosen is None:
            chosen = self._made[here] = self._joined(here)
        self._last_off, self._last = off, chosen
        return chosen

    def _joined(self, off: frozenset[str]) -> JoinedFrames:
        frames = [
            i.frame() for i in self._items if not i.publication.switchable or i.publication.name not in off
        ]
        return JoinedFrames(len(frames), chunk(b"".join(frames)))
