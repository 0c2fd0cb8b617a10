"""What the embedded backplane holds: logs, Kafka's partitions, the names it has seen, tickets, who is there.

`MemoryBackplane` calls it, on the event loop. All of it but the last two is a `Snapshot`, what one append
changes of it a `LogUpdate`: these are what the writer and the store are given.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress

import msgspec
from msgspec import Struct

from pushsse.backplane import (
    ENDED_MS,
    NO_ENTRY,
    PRESENCE_KEEP_MS,
    PRESENCE_LEASE_MS,
    REMEMBER_MOST,
    REMEMBER_MS,
    TAIL_BYTES,
    TAIL_ENTRIES,
    UNOPENED_MS,
    Append,
    Draft,
    Entry,
    Head,
    OpenedTicket,
    Stay,
    Ticket,
    TicketLife,
    TicketRefusal,
    fresh_word,
)
from pushsse.event import Change, Publication
from pushsse.position import Mark

_COMPACT_FROM = 1000
_NO_FENCE = (-1, 0)


@dataclass(slots=True)
class LogSnapshot:
    """One log: the entries it holds, and its last number even if it holds none."""

    epoch: str
    number: int = 0
    trimmed_ms: int = 0
    entries: list[Entry] = field(default_factory=list)


@dataclass(slots=True)
class Snapshot:
    """All that the embedded backplane knows, at one moment."""

    # The epoch of a log that has never held anything is this word and the log's name.
    word: str = field(default_factory=fresh_word)
    logs: dict[str, LogSnapshot] = field(default_factory=dict)
    fences: dict[tuple[str, str, int], tuple[int, int]] = field(default_factory=dict)
    owners: dict[tuple[str, int], str] = field(default_factory=dict)
    starts: dict[str, dict[int, int]] = field(default_factory=dict)
    names: dict[bytes, int] = field(default_factory=dict)
    identity: str = ""

    @property
    def order(self) -> int:
        """The highest order of any entry."""
        return max((log.entries[-1].order for log in self.logs.values() if log.entries), default=0)


class LogUpdate(Struct, frozen=True, gc=False):
    """What one call changed: the log's end after it, its entries, the fences it moved, its new names.

    `dropped` are the orders of the entries that the log no longer holds; `size` is roughly the bytes that it
    takes while it waits, beside the log that holds its entries as well.
    """

    log: str
    end: Mark
    trimmed_ms: int
    entries: Sequence[Entry]
    dropped: Sequence[int]
    fences: Sequence[tuple[str, int, int, int]]
    names: Sequence[tuple[bytes, int]]
    size: int


class MemoryLog:
    """Holds every number from `head.first` to `head.number`."""

    __slots__ = (
        "_at_ms",
        "_bytes",
        "_changes",
        "_dropped",
        "_entries",
        "_epoch",
        "_keep_bytes",
        "_keep_ms",
        "_name",
        "_number",
        "_trimmed",
        "appended_bytes",
        "trimmed_ms",
    )

    def __init__(self, name: str, epoch: str, *, keep_ms: int, keep_bytes: int) -> None:
        self._name = name
        self._epoch = epoch
        self._keep_ms = keep_ms
        self._keep_bytes = keep_bytes
        # Of the last entry, also while the list is empty.
        self._number = self._at_ms = 0
        self._entries: list[Entry] = []
        self._trimmed = 0  # places at the list's front that hold nothing more, and are cut off now and then
        self._bytes = 0
        # Since the process began.
        self.appended_bytes = 0
        self.trimmed_ms = 0
        # The orders of the entries that were trimmed since `take_dropped`.
        self._dropped: list[int] = []
        self._changes: deque[tuple[int, Change]] = deque()

    @property
    def head(self) -> Head:
        """The state of the log. Its numbers begin at 1, so its base is 0."""
        number = self._number
        return Head(self._epoch, number, number + 1 - len(self._entries) + self._trimmed, 0, self.trimmed_ms)

    @property
    def end(self) -> Mark:
        """The mark of its head."""
        return Mark(self._epoch, self._number)

    def append(self, order: int, at_ms: int, publication: Publication) -> Entry:
        """Appends the next entry. Its time is never before its predecessor's, so that `before` can search."""
        number = self._number = self._number + 1
        if at_ms < self._at_ms:
            at_ms = self._at_ms
        self._at_ms = at_ms
        entry = Entry(self._name, number, order, at_ms, publication)
        self._entries.append(entry)
        size = publication.size
        self._bytes += size
        self.appended_bytes += size
        if publication.change is not None:
            self._changes.append((number, publication.change))
        self.trim(at_ms)
        return entry

    def restore(self, number: int, trimmed_ms: int, entries: list[Entry]) -> None:
        """Continues where an earlier process stopped."""
        self._number, self.trimmed_ms, self._entries = number, trimmed_ms, entries
        self._at_ms = entries[-1].at_ms if entries else 0
        self._bytes = sum(entry.publication.size for entry in entries)
        changes = ((entry.number, entry.publication.change) for entry in entries)
        self._changes.extend((at, change) for at, change in changes if change is not None)

    def entries(self) -> list[Entry]:
        """A copy of all that it holds."""
        return self._entries[self._trimmed :]

    def trim(self, now_ms: int) -> None:
        """Trims what is too old or too much."""
        entries, at, oldest_ms = self._entries, self._trimmed, now_ms - self._keep_ms
        if at == len(entries) or (self._bytes <= self._keep_bytes and entries[at].at_ms >= oldest_ms):
            return
        while self._trimmed < len(entries) and (
            self._bytes > self._keep_bytes or entries[self._trimmed].at_ms < oldest_ms
        ):
            entry, entries[self._trimmed] = entries[self._trimmed], NO_ENTRY
            self._bytes -= entry.publication.size
            self.trimmed_ms = entry.at_ms
            self._dropped.append(entry.order)
            self._trimmed += 1
        first = self.head.first
        while self._changes and self._changes[0][0] < first:
            self._changes.popleft()
        if self._trimmed > _COMPACT_FROM and self._trimmed * 2 > len(entries):
            del entries[: self._trimmed]
            self._trimmed = 0

    def take_dropped(self) -> Sequence[int]:
        """The orders of the entries that were trimmed since the last call."""
        if not self._dropped:
            return ()
        dropped, self._dropped = self._dropped, []
        return dropped

    def after(self, number: int, limit: int) -> list[Entry]:
        """Up to `limit` entries after a number, as far as they are held."""
        start = self._trimmed + max(0, number + 1 - self.head.first)
        return self._entries[start : start + limit]

    def before(self, at_ms: int) -> int:
        """The number before the first entry at or after a time."""
        at = bisect_left(self._entries, at_ms, lo=self._trimmed, key=_at_ms)
        return self.head.first - 1 + at - self._trimmed

    def tail(self) -> tuple[Entry, ...]:
        """The newest entries: at most TAIL_ENTRIES, and TAIL_BYTES together."""
        start, room = len(self._entries), TAIL_BYTES
        least = max(self._trimmed, start - TAIL_ENTRIES)
        while start > least and room >= self._entries[start - 1].publication.size:
            start -= 1
            room -= self._entries[start].publication.size
        return tuple(self._entries[start:])

    def first_change(self, user: str, after: int) -> Change | None:
        """The first change of a person's switches after a number."""
        return next(
            (change for number, change in self._changes if number > after and change.user == user), None
        )


def _at_ms(entry: Entry) -> int:
    return entry.at_ms


class Partitions:
    """What is known about Kafka's partitions: fences by log, owners, and where reading of a topic began."""

    __slots__ = ("_fences", "_owners", "_starts")

    def __init__(self) -> None:
        self._fences: dict[tuple[str, str, int], tuple[int, int]] = {}
        self._owners: dict[tuple[str, int], str] = {}
        self._starts: dict[str, Mapping[int, int]] = {}

    def restore(self, snapshot: Snapshot) -> None:
        """Continues with what an earlier process knew."""
        self._fences, self._owners, self._starts = snapshot.fences, snapshot.owners, dict(snapshot.starts)

    def save_to(self, snapshot: Snapshot) -> None:
        """Copies what is known."""
        snapshot.fences, snapshot.owners = dict(self._fences), dict(self._owners)
        snapshot.starts = {topic: dict(offsets) for topic, offsets in self._starts.items()}

    def fences_of(self, append: Append) -> list[tuple[str, int, int, int]]:
        """The fences that an append may have moved: topic, partition, offset, time."""
        moved = dict.fromkeys(
            (d.source.topic, d.source.partition) for d in append.drafts if d.source is not None
        )
        found = ((key, self._fences.get((append.log, *key))) for key in moved)
        return [(*key, *fence) for key, fence in found if fence is not None]

    def claim(self, topic: str, partition: int, owner: str) -> None:
        """Makes `owner` the only owner of a partition."""
        self._owners[topic, partition] = owner

    def is_claimed(self, topic: str, partition: int) -> bool:
        """Whether a partition was ever claimed."""
        return (topic, partition) in self._owners

    def first_start(self, topic: str, offsets: Mapping[int, int]) -> Mapping[int, int]:
        """Where reading of a topic began, as the first call said."""
        return self._starts.setdefault(topic, dict(offsets))

    def is_foreign(self, append: Append) -> bool:
        """Whether a source is from a partition that has another owner."""
        sources = [draft.source for draft in append.drafts if draft.source is not None]
        return any(
            self._owners.get((each.topic, each.partition), each.owner) != each.owner for each in sources
        )

    def is_unclaimed(self, append: Append) -> bool:
        """Whether a source is from a partition that nobody has claimed."""
        sources = [draft.source for draft in append.drafts if draft.source is not None]
        return any((each.topic, each.partition) not in self._owners for each in sources)

    def unfenced(self, append: Append) -> list[Draft]:
        """The drafts above their fence, which moves up to them.

        Guarantee 1: against the fence as it was before the append, since one record may have several drafts
        in it. The fence moves for drafts that expire or repeat, too: it is never behind Kafka's committed
        offset.
        """
        fences = self._fences
        found: list[Draft] = []
        highest: dict[tuple[str, str, int], tuple[int, int]] = {}
        for draft in append.drafts:
            source = draft.source
            if source is not None:
                key = (append.log, source.topic, source.partition)
                if source.offset <= fences.get(key, _NO_FENCE)[0]:
                    continue
                highest[key] = max(highest.get(key, _NO_FENCE), (source.offset, source.timestamp_ms))
            found.append(draft)
        fences.update(highest)
        return found

    def fence(self, topic: str, partition: int) -> tuple[int, int] | None:
        """The highest offset that any log has of a partition, with its record's time."""
        found = [fence for key, fence in self._fences.items() if key[1:] == (topic, partition)]
        return max(found, default=None)

    def reset_fence(self, topic: str, partition: int) -> None:
        """Forgets the fence of a partition."""
        for key in [key for key in self._fences if key[1:] == (topic, partition)]:
            del self._fences[key]


class SeenNames:
    """The names of drafts that recipients have had, oldest first: for REMEMBER_MS, at most REMEMBER_MOST."""

    __slots__ = ("_names",)

    def __init__(self) -> None:
        self._names: dict[bytes, int] = {}

    def restore(self, snapshot: Snapshot) -> None:
        """Continues with what an earlier process knew."""
        self._names = snapshot.names

    def save_to(self, snapshot: Snapshot) -> None:
        """Copies what is known."""
        # Of a million names of which the oldest are gone, copy() is several times as fast as dict().
        snapshot.names = self._names.copy()

    def times_of(self, names: Iterable[bytes]) -> list[tuple[bytes, int]]:
        """Since when each of these names has been known, without those that are not."""
        return [(name, self._names[name]) for name in names if name in self._names]

    def unrepeated(self, publication: Publication, names: Sequence[bytes], now_ms: int) -> Publication | None:
        """A draft's publication for those whose names are new, in their order; None if that is nobody."""
        if not names:
            return publication
        new = [self._is_new(name, now_ms) for name in names]
        if all(new):
            return publication
        if publication.users is None or not any(new):
            return None
        return msgspec.structs.replace(publication, users=tuple(compress(publication.users, new)))

    def _is_new(self, name: bytes, now_ms: int) -> bool:
        """Whether a name is not known; from now on it is."""
        names = self._names
        while names and names[oldest := next(iter(names))] <= now_ms - REMEMBER_MS:
            del names[oldest]
        if name in names:
            return False
        names[name] = now_ms
        if len(names) > REMEMBER_MOST:
            del names[next(iter(names))]
        return True


MOST_TICKETS = 20_000
_FORGET_TICKETS_MS = 10_000


@dataclass(slots=True)
class _KeptTicket:
    ticket: Ticket
    fresh_until_ms: int
    ends_ms: int
    forget_ms: int
    opened: int = 0


class MemoryTickets:
    """Tickets by name, at most MOST_TICKETS: where there are more, the oldest go."""

    __slots__ = ("_forgotten_ms", "_kept")

    def __init__(self) -> None:
        self._kept: dict[str, _KeptTicket] = {}
        self._forgotten_ms = 0

    def keep(self, name: str, ticket: Ticket, life: TicketLife, now_ms: int) -> None:
        """Keeps a new ticket."""
        if now_ms - self._forgotten_ms >= _FORGET_TICKETS_MS:
            self._forgotten_ms = now_ms
            self._kept = {name: kept for name, kept in self._kept.items() if kept.forget_ms > now_ms}
        fresh_ms = min(life.fresh_ms, life.lives_ms)
        kept = _KeptTicket(ticket, now_ms + fresh_ms, now_ms + life.lives_ms, now_ms + UNOPENED_MS)
        self._kept[name] = kept
        if len(self._kept) > MOST_TICKETS:
            del self._kept[next(iter(self._kept))]

    def open(self, name: str, now_ms: int, *, resumes: bool) -> OpenedTicket | TicketRefusal:
        """Counts one more opening, if there may be one."""
        kept = self._kept.get(name)
        if kept is None or kept.forget_ms <= now_ms:
            return TicketRefusal.UNKNOWN
        if kept.ends_ms <= now_ms:
            return TicketRefusal.EXPIRED
        if kept.fresh_until_ms <= now_ms and not (resumes and kept.opened):
            return TicketRefusal.USED
        kept.opened += 1
        kept.forget_ms = kept.ends_ms + ENDED_MS
        return OpenedTicket(kept.ticket, kept.opened, kept.ends_ms - now_ms)

    def openings(self, names: Iterable[str]) -> dict[str, int]:
        """How often each was opened."""
        return {name: kept.opened for name in names if (kept := self._kept.get(name)) is not None}


class MemoryPlaces:
    """Who is where, by place: what was told of it, and when its lease ends."""

    __slots__ = ("_ends", "_told")

    def __init__(self) -> None:
        self._told: dict[str, dict[str, Stay]] = {}
        self._ends: dict[str, int] = {}

    def tell(
        self, place: str, stays: Mapping[str, Stay | None], now_ms: int, lease_ms: int, *, anew: bool
    ) -> bool:
        """Says who is at a place; False where its lease has ended."""
        if anew:
            for old in [each for each, ends in self._ends.items() if ends + PRESENCE_KEEP_MS <= now_ms]:
                del self._ends[old], self._told[old]
        elif self._ends.get(place, 0) <= now_ms:
            return False
        told = self._told.setdefault(place, {})
        for user, stay in stays.items():
            if stay is None:
                told.pop(user, None)
            else:
                told[user] = stay
        self._ends[place] = now_ms + lease_ms
        return True

    def end(self, place: str, now_ms: int) -> None:
        """Ends the lease of a place."""
        if place in self._ends:
            self._ends[place] = now_ms

    def presence(self, users: Iterable[str], now_ms: int) -> dict[str, dict[str, Stay]]:
        """What is known of these people, by place."""
        found: dict[str, dict[str, Stay]] = {}
        for user in users:
            for place, told in self._told.items():
                if (stay := told.get(user)) is not None:
                    ends = self._ends[place]
                    alive = ends > now_ms
                    found.setdefault(user, {})[place] = (
                        stay if alive else stay.ended(ends - PRESENCE_LEASE_MS)
                    )
        return found


def recipients(publication: Publication | None) -> int:
    """How many recipients a publication has for `Receipt.repeated`: a broadcast has one."""
    if publication is None:
        return 0
    return 1 if publication.users is None else len(publication.users)
