"""Delivers what the node hears: keeps it in the logs' tails, and writes it to the live subscribers.

Called by the feed with what the backplane let the node hear, in order. `deliver` is synchronous, so nothing
can come between the place of an event and the filter before its write.
"""

from collections.abc import Mapping, Sequence
from heapq import merge
from typing import NamedTuple

from pushsse.backplane import BROADCAST, Entry, Followed, Gap, Heard, HeardLive, Hearing
from pushsse.event import Publication
from pushsse.hub.hub import Hub, Shard
from pushsse.hub.log_tail import FollowedLog
from pushsse.position import Mark, Position
from pushsse.stream.frame import Chunk, chunk, with_id
from pushsse.stream.subscriber import NOTHING_OFF, Person, Subscriber


class Delivery:
    """From what was heard to what is written, for all streams of the node at once."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def deliver(self, hearings: Sequence[Hearing]) -> None:
        """Takes what the backplane let the node hear, in order, and writes it to the live subscribers."""
        # Here, since nothing is awaited from now until the write: what was heard may have waited for long, in
        # the log while Redis was away, or in this process while it was stopped.
        now_ms = self._hub.backplane.now_ms()
        if len(hearings) == 1 and isinstance(first := hearings[0], Heard) and len(first.entries) == 1:
            [entry] = first.entries
            if entry.log != BROADCAST:
                self._deliver_one(entry, now_ms)
                return
        batch = Batch(self._hub.broadcast.mark)
        for hearing in hearings:
            if isinstance(hearing, Heard):
                for entry in hearing.entries:
                    self._hear(entry, batch, now_ms)
            elif isinstance(hearing, HeardLive):
                if (shard := self._hub.shards.get(hearing.log)) is not None:
                    self._keep(batch, shard, hearing.publication, shard.log.mark)
            else:
                self._write(batch)
                self._begin(hearing)
                batch = Batch(self._hub.broadcast.mark)
        self._write(batch)

    def _deliver_one(self, entry: Entry, now_ms: int) -> None:
        """What a batch of one event for a few comes to, without the batch: most events are such."""
        if (shard := self._hub.shards.get(entry.log)) is None:
            return
        publication = entry.publication
        shard.log.append(entry)
        if 0 < publication.expires_ms <= now_ms:
            self._hub.metrics.expired += 1
            return
        if publication.subject:
            self._hub.tapped(publication)
        items: list[Item] = []
        for user in publication.users or ():
            if (person := shard.people.get(user)) is not None:
                items = items or [Item(publication, Position(self._hub.broadcast.mark, shard.log.mark))]
                live = [subscriber for subscriber in person.subscribers if subscriber.live]
                self._write_items(person, live, items)

    def _hear(self, entry: Entry, batch: "Batch", now_ms: int) -> None:
        """Whatever was heard counts in its log; what has expired goes no further."""
        expired = 0 < entry.publication.expires_ms <= now_ms
        if entry.log == BROADCAST:
            self._hub.broadcast.append(entry)
            if not expired:
                batch.add_broadcast(entry.publication, self._hub.broadcast.mark)
        elif (shard := self._hub.shards.get(entry.log)) is not None:
            before = shard.log.mark
            shard.log.append(entry)
            if not expired:
                self._keep(batch, shard, entry.publication, before)
        self._hub.metrics.expired += expired

    def _keep(self, batch: "Batch", shard: Shard, publication: Publication, before: Mark) -> None:
        batch.add(shard.log.name, publication, shard.log.mark, before=before)
        if publication.subject:
            self._hub.tapped(publication)

    def _begin(self, hearing: Followed | Gap) -> None:
        """A log is followed from a place on, or was lost and goes on in another epoch."""
        shard = self._hub.shards.get(hearing.log)
        if shard is None and hearing.log != BROADCAST:
            return
        log = shard.log if shard is not None else self._hub.broadcast
        if isinstance(hearing, Followed):
            log.begin(hearing.head, hearing.tail)
            return
        self._hub.metrics.logs_lost += 1
        log.begin(hearing.head._replace(number=hearing.head.base), ())
        for concerned in (shard,) if shard is not None else tuple(self._hub.shards.values()):
            self._owe_gap(concerned, at=log)
        if shard is not None:
            # Changes of switches may have been among what was lost.
            self._hub.lost(tuple(shard.people.values()))

    def _owe_gap(self, shard: Shard, *, at: FollowedLog) -> None:
        """Everybody of a shard goes on from where a lost log begins anew, and is told so."""
        for person in tuple(shard.people.values()):
            for subscriber in tuple(person.subscribers):
                subscriber.gap = True
                if subscriber.live:
                    self._hub.fell_behind(subscriber)
                elif subscriber.position is not None:
                    part = "broadcast" if at is self._hub.broadcast else "shard"
                    subscriber.position = subscriber.position._replace(**{part: at.mark})

    def _write(self, batch: "Batch") -> None:
        for name in self._hub.shards if batch.broadcasts else batch.personal:
            shard = self._hub.shards[name]
            # Nobody's shard costs nothing.
            if shard.people:
                self._write_shard(shard, batch)

    def _write_shard(self, shard: Shard, batch: "Batch") -> None:
        items = batch.items(shard.log.name, shard.log.mark)
        touched = self._touched(shard, items)
        if batch.broadcasts and shard.live:
            self._write_broadcasts(shard, [item for item in items if item.publication.users is None], touched)
        for person, own in touched.items():
            wanted = [item for item in items if item.publication.users is None or item in own]
            live = [subscriber for subscriber in person.subscribers if subscriber.live]
            self._write_items(person, live, wanted)

    def _touched(self, shard: Shard, items: Sequence["Item"]) -> dict[Person, set["Item"]]:
        """The people here for whom there is something of their own."""
        found: dict[Person, set[Item]] = {}
        for item in items:
            for user in item.publication.users or ():
                if (person := shard.people.get(user)) is not None:
                    found.setdefault(person, set()).add(item)
        return found

    def _write_broadcasts(
        self, shard: Shard, items: Sequence["Item"], touched: Mapping[Person, set["Item"]]
    ) -> None:
        """To everybody but those who get something of their own with it."""
        broadcasts = Broadcasts(items)
        everything = broadcasts.without(NOTHING_OFF).chunk
        now = self._hub.heartbeat.now
        whole = partly = held_back = 0
        for subscriber in tuple(shard.live):
            if touched and subscriber.person in touched:
                continue
            if subscriber.plain:
                subscriber.wrote = now
                subscriber.sink.write(everything)
                whole += 1
            elif subscriber.named and subscriber.types is None:
                count, chosen = broadcasts.without(subscriber.person.off)
                held_back += len(items) - count
                if count:
                    subscriber.wrote = now
                    subscriber.sink.write(chosen)
                    partly += count
            else:
                self._write_items(subscriber.person, (subscriber,), items)
        self._hub.metrics.deliveries += whole * len(items) + partly
        self._hub.metrics.suppressed += held_back

    def _write_items(
        self, person: Person, subscribers: Sequence[Subscriber], items: Sequence["Item"]
    ) -> None:
        frames: list[list[bytes]] = [[] for _ in subscribers]
        for item in items:
            publication = item.publication
            if publication.switchable and publication.name in person.off:
                self._hub.metrics.suppressed += 1
                continue
            if publication.change is not None:
                person.learn(publication.change.version, frozenset(publication.change.after))
            for subscriber, chosen in zip(subscribers, frames, strict=True):
                if subscriber.wants(publication.name, publication.switchable):
                    chosen.append(item.frame(named=subscriber.named))
        for subscriber, chosen in zip(subscribers, frames, strict=True):
            if chosen:
                self._hub.write(subscriber, b"".join(chosen), events=len(chosen))


class Item:
    """One publication at its place."""

    __slots__ = ("_frame", "place", "publication")

    def __init__(self, publication: Publication, place: Position) -> None:
        self.publication = publication
        self.place = place
        self._frame: bytes | None = None

    def frame(self, *, named: bool = True) -> bytes:
        """The whole frame; the named one is made once."""
        if not named:
            return with_id(self.publication, self.place, named=False)
        if self._frame is None:
            self._frame = with_id(self.publication, self.place)
        return self._frame


class Batch:
    """Broadcasts, and each shard's own publications, in the order in which they were heard."""

    __slots__ = ("_before", "_count", "_start", "broadcasts", "personal")

    def __init__(self, start: Mark) -> None:
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
        """What concerns one shard, in order. `now` is its log's mark."""
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


class Chosen(NamedTuple):
    """Those of a batch's broadcasts that one person gets: how many, and their frames as one chunk."""

    many: int
    chunk: Chunk


class Broadcasts:
    """A batch's broadcasts for one shard, joined once for each set of its types that somebody has off."""

    __slots__ = ("_items", "_made", "_types")

    def __init__(self, items: Sequence[Item]) -> None:
        self._items = items
        self._types = frozenset(i.publication.name for i in items if i.publication.switchable)
        self._made: dict[frozenset[str], Chosen] = {}

    def without(self, off: frozenset[str]) -> Chosen:
        """What somebody gets who has these types off."""
        off = off & self._types
        chosen = self._made.get(off)
        if chosen is None:
            frames = [
                i.frame()
                for i in self._items
                if not i.publication.switchable or i.publication.name not in off
            ]
            chosen = self._made[off] = Chosen(len(frames), chunk(b"".join(frames)))
        return chosen
