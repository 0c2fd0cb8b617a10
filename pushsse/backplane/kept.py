"""One log of the embedded backplane: its entries in a list, trimmed by age and by bytes.

Used by `memory` alone.
"""

from bisect import bisect_left
from collections import deque

from pushsse.backplane.base import TAIL_BYTES, TAIL_ENTRIES, Entry, Head
from pushsse.event import Change, Publication

_GIVEN_UP = 1000


class KeptLog:
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

    def held(self) -> list[Entry]:
        """All that is held."""
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
