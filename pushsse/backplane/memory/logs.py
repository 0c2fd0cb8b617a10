"""The logs of the embedded backplane, trimmed by age and by bytes, and what it has taken already.

Used by the embedded backplane alone. Taken already: fences, the owners of partitions, and names of drafts.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import compress

import msgspec

from pushsse.backplane import (
    REMEMBER_MOST,
    REMEMBER_MS,
    TAIL_BYTES,
    TAIL_ENTRIES,
    Append,
    Draft,
    Entry,
    Head,
    fresh_word,
)
from pushsse.event import Change, Publication

_GIVEN_UP = 1000
_NOTHING = (-1, 0)


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


class MemoryLog:
    """Holds every number from `head.first` to `head.number`."""

    __slots__ = (
        "_before",
        "_bytes",
        "_changes",
        "_entries",
        "_epoch",
        "_given_up",
        "_keep_bytes",
        "_keep_ms",
        "_name",
        "_trimmed_ms",
    )

    def __init__(self, name: str, epoch: str, *, keep_ms: int, keep_bytes: int) -> None:
        self._name = name
        self._epoch = epoch
        self._keep_ms = keep_ms
        self._keep_bytes = keep_bytes
        self._before = 0  # the number before the first of all, or the last one where none is held
        self._entries: list[Entry] = []
        self._given_up = 0  # of the list's front: no longer held, and cut off now and then
        self._bytes = 0
        self._trimmed_ms = 0
        self._changes: deque[tuple[int, Change]] = deque()

    @property
    def head(self) -> Head:
        """The log as it stands; its numbers begin after 0."""
        number = self._entries[-1].number if self._entries else self._before
        return Head(
            self._epoch, number, number + 1 - len(self._entries) + self._given_up, 0, self._trimmed_ms
        )

    def append(self, order: int, at_ms: int, publication: Publication) -> Entry:
        """The next number. Its time is never before the one before it, so that times can be searched."""
        number = self._before + 1
        if self._entries:
            last = self._entries[-1]
            number, at_ms = last.number + 1, max(at_ms, last.at_ms)
        entry = Entry(self._name, number, order, at_ms, publication)
        self._entries.append(entry)
        self._bytes += _size(publication)
        if publication.change is not None:
            self._changes.append((number, publication.change))
        self.trim(at_ms)
        return entry

    def restore(self, number: int, trimmed_ms: int, entries: list[Entry]) -> None:
        """Goes on where an earlier process stopped."""
        self._before, self._trimmed_ms, self._entries = number, trimmed_ms, entries
        self._bytes = sum(_size(entry.publication) for entry in entries)
        changes = ((entry.number, entry.publication.change) for entry in entries)
        self._changes.extend((at, change) for at, change in changes if change is not None)

    def entries(self) -> list[Entry]:
        """A copy of all that it holds."""
        return self._entries[self._given_up :]

    def trim(self, now_ms: int) -> None:
        """Gives up what is too old or too much; the last entry stays in the list to carry the number."""
        entries, oldest_ms = self._entries, now_ms - self._keep_ms
        while self._given_up < len(entries) and (
            self._bytes > self._keep_bytes or entries[self._given_up].at_ms < oldest_ms
        ):
            self._bytes -= _size(entries[self._given_up].publication)
            self._trimmed_ms = entries[self._given_up].at_ms
            self._given_up += 1
        if self._given_up > _GIVEN_UP and self._given_up * 2 > len(entries):
            # One stays even where all were given up: the head takes its number from it.
            cut = min(self._given_up, len(entries) - 1)
            del entries[:cut]
            self._given_up -= cut
        first = self.head.first
        while self._changes and self._changes[0][0] < first:
            self._changes.popleft()

    def after(self, number: int, limit: int) -> list[Entry]:
        """Up to `limit` entries after a number, as far as they are held."""
        start = self._given_up + max(0, number + 1 - self.head.first)
        return self._entries[start : start + limit]

    def before(self, at_ms: int) -> int:
        """The number before the first entry at or after a time."""
        at = bisect_left(self._entries, at_ms, lo=self._given_up, key=_at_ms)
        return self.head.first - 1 + at - self._given_up

    def tail(self) -> tuple[Entry, ...]:
        """The newest entries: at most TAIL_ENTRIES, and TAIL_BYTES together."""
        start, room = len(self._entries), TAIL_BYTES
        least = max(self._given_up, start - TAIL_ENTRIES)
        while start > least and room >= _size(self._entries[start - 1].publication):
            start -= 1
            room -= _size(self._entries[start].publication)
        return tuple(self._entries[start:])

    def first_change(self, user: str, after: int) -> Change | None:
        """The first change of a person's switches after a number."""
        return next(
            (change for number, change in self._changes if number > after and change.user == user), None
        )


def _size(publication: Publication) -> int:
    users = publication.users or ()
    return len(publication.name) + len(publication.body) + sum(map(len, users)) + len(users)


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

    def fences_of(self, call: Append) -> list[tuple[str, int, int, int]]:
        """The fences that a call may have moved: topic, partition, offset, time."""
        moved = dict.fromkeys(
            (d.source.topic, d.source.partition) for d in call.drafts if d.source is not None
        )
        found = ((key, self._fences.get((call.log, *key))) for key in moved)
        return [(*key, *fence) for key, fence in found if fence is not None]

    def claim(self, topic: str, partition: int, owner: str) -> None:
        """Makes `owner` the only one of a partition."""
        self._owners[topic, partition] = owner

    def is_claimed(self, topic: str, partition: int) -> bool:
        """Whether a partition was ever claimed."""
        return (topic, partition) in self._owners

    def first_start(self, topic: str, offsets: Mapping[int, int]) -> Mapping[int, int]:
        """Where reading of a topic began; the first call says it."""
        return self._starts.setdefault(topic, dict(offsets))

    def is_foreign(self, call: Append) -> bool:
        """Whether a source of the call is from a partition that has another owner."""
        sources = [draft.source for draft in call.drafts if draft.source is not None]
        return any(self._owners.get(source[:2], source.owner) != source.owner for source in sources)

    def unfenced(self, call: Append) -> list[Draft]:
        """The drafts above their fence, which advances past them.

        Against the fence as it was before the call: one record may have several drafts in it.
        """
        fences = self._fences
        found: list[Draft] = []
        highest: dict[tuple[str, str, int], tuple[int, int]] = {}
        for draft in call.drafts:
            source = draft.source
            if source is not None:
                key = (call.log, source.topic, source.partition)
                if source.offset <= fences.get(key, _NOTHING)[0]:
                    continue
                highest[key] = max(highest.get(key, _NOTHING), (source.offset, source.timestamp_ms))
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

    def unrepeated(self, log: str, draft: Draft, now_ms: int) -> Publication | None:
        """A draft for those who haven't had its name in the last ten minutes; None if that is nobody."""
        publication = draft.publication
        if not draft.once:
            return publication
        news = [self._is_new(name, now_ms) for name in draft.names(log)]
        if all(news):
            return publication
        if publication.users is None or not any(news):
            return None
        return msgspec.structs.replace(publication, users=tuple(compress(publication.users, news)))

    def _is_new(self, name: bytes, now_ms: int) -> bool:
        """Whether a name isn't known; it is from now on."""
        names = self._names
        while names and names[oldest := next(iter(names))] <= now_ms - REMEMBER_MS:
            del names[oldest]
        if name in names:
            return False
        names[name] = now_ms
        if len(names) > REMEMBER_MOST:
            del names[next(iter(names))]
        return True


def recipients(publication: Publication | None) -> int:
    """How many recipients a publication has, as repeats are counted: a broadcast has one."""
    if publication is None:
        return 0
    return 1 if publication.users is None else len(publication.users)
