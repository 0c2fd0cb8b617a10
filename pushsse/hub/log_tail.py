"""One log that this node follows: how far the node has heard it, and its tail, which is kept in memory.

Delivery writes it as the node hears the log; the opening and catch-up read it, so that a storm of clients
that reconnect is served from memory and not by Redis. Each tail has a `Newest`: which entries a newer one has
taken the place of (`collapse`, `withdraw`). It is written as the node hears entries that have a key, and
asked by replays; entries without a key cost nothing. A replay also looks ahead in the piece that it has read
(`Ahead`), for what came before the node listened.
"""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager

from pushsse.backplane import NO_ENTRY, Entry, Head
from pushsse.errors import BackplaneUnavailable
from pushsse.event import Publication
from pushsse.position import Mark

# Long enough for a storm of clients that come back after a node, or the way to it, was away.
TAIL_MS = 60_000
# Keys of one log, for each person, whose newest entry is remembered: some 350 bytes each.
KEEP_KEYS = 2_000
# How long somebody waits until the node has heard a log.
WAIT_LIMIT_S = 5.0
# Besides the bytes that the log keeps: the objects of an entry, and of a recipient (CPython 3.11).
_ENTRY_BYTES = 520
_RECIPIENT_BYTES = 64
# An entry for more people isn't noted: each of them costs a microsecond.
MOST_NOTED = 1_000
_MOST_TYPES = 8
# To look whether one of 10,000 people has an entry takes 0.1 ms.
_LOOK_S = 0.005
_CLOCK_EVERY = 32
# Whether somebody gets the publications of a name.
Gets = Callable[[str], bool]


class LogTail:
    """A followed log: its `mark` is the last entry heard, and the tail holds all entries from `first` to it.

    `ready` is set once the log is followed, `advanced` whenever the mark moves. `changes` are the tail's
    entries that change somebody's switches. `newest` knows the entries with a key, also older ones than those
    of the tail. Guarantee 2: the backplane yields numbers without a hole, so the tail has none, and an entry
    is found in the list by its number.
    """

    __slots__ = (
        "_bytes", "_dropped", "_keep_bytes", "_tail", "advanced", "changes", "mark", "name", "newest", "ready"
    )  # fmt: skip

    def __init__(self, name: str, *, keep_bytes: int, keep_keys: int = KEEP_KEYS) -> None:
        self.name = name
        self.newest = Newest(most=keep_keys)
        self.mark = Mark("", 0)
        self.changes: deque[Entry] = deque()
        self.ready = asyncio.Event()
        self.advanced = asyncio.Event()
        self._tail: list[Entry] = []
        # So many places at the front of the list hold nothing more. It is cut now and then, since each cut
        # copies it.
        self._dropped = 0
        self._keep_bytes = keep_bytes
        self._bytes = 0

    @property
    def first(self) -> int:
        """The oldest number of the tail, one above the mark's if the tail is empty."""
        return self.mark.number + 1 - (len(self._tail) - self._dropped)

    def begin(self, head: Head, tail: Sequence[Entry]) -> None:
        """Starts over at a head of the log; `tail` is what the log held just before, oldest first."""
        self._tail.clear()
        self.changes.clear()
        self._bytes = self._dropped = 0
        if head.epoch != self.mark.epoch:
            self.newest.clear()
        self.mark = Mark(head.epoch, head.number - len(tail))
        for entry in tail:
            self.append(entry)
        self.ready.set()
        self.advanced.set()

    def append(self, entry: Entry) -> None:
        """Takes the next entry, as it was heard."""
        publication = entry.publication
        self.mark = Mark(self.mark.epoch, entry.number)
        self._tail.append(entry)
        self._bytes += _size(publication)
        if publication.change is not None:
            self.changes.append(entry)
        if publication.collapse:
            self.newest.note(entry)
        while self._bytes > self._keep_bytes:
            self._drop_oldest()
        self.forget(entry.at_ms - TAIL_MS)
        self.advanced.set()

    def forget(self, before_ms: int) -> None:
        """Forgets what is older than a time."""
        while self._dropped < len(self._tail) and self._tail[self._dropped].at_ms < before_ms:
            self._drop_oldest()

    def after(self, number: int, limit: int) -> list[Entry]:
        """Up to `limit` entries after a number that the tail reaches back to."""
        start = len(self._tail) - (self.mark.number - number)
        return self._tail[start : start + limit]

    def reaches(self, number: int) -> bool:
        """Whether the tail has everything after a number."""
        return number + 1 >= self.first

    def has(self, mark: Mark) -> bool:
        """Whether the node has heard the log up to a mark."""
        return self.mark.epoch == mark.epoch and self.mark.number >= mark.number

    def covers(self, mark: Mark) -> bool:
        """Whether the tail has everything after a mark, up to now."""
        now = self.mark
        return mark.epoch == now.epoch and mark.number <= now.number and self.reaches(mark.number)

    async def heard(self, mark: Mark) -> None:
        """Waits until the node has heard the log up to a mark. Raises BackplaneUnavailable."""
        if self.has(mark):
            return
        async with limited_wait():
            while not self.has(mark):
                self.advanced.clear()
                await self.advanced.wait()

    def changes_after(self, number: int) -> Iterator[Entry]:
        """The entries of the tail that changed somebody's switches."""
        return (entry for entry in self.changes if entry.number > number)

    def _drop_oldest(self) -> None:
        dropped, self._tail[self._dropped] = self._tail[self._dropped], NO_ENTRY
        self._dropped += 1
        self._bytes -= _size(dropped.publication)
        if self.changes and self.changes[0].number <= dropped.number:
            self.changes.popleft()
        if self._dropped > 100 and self._dropped * 2 > len(self._tail):
            del self._tail[: self._dropped]
            self._dropped = 0


@asynccontextmanager
async def limited_wait() -> AsyncIterator[None]:
    """A limit of time for a wait for logs. Raises BackplaneUnavailable.

    Entered only where there is something to wait for: a timer costs a tenth of an opening.
    """
    try:
        async with asyncio.timeout(WAIT_LIMIT_S):
            yield
    except TimeoutError:
        raise BackplaneUnavailable(f"this node waited for a person's logs for {WAIT_LIMIT_S:.0f} s") from None


def _size(publication: Publication) -> int:
    """Roughly the bytes that an entry takes in memory."""
    size, users = publication.size + _ENTRY_BYTES, publication.users
    return size if users is None or len(users) == 1 else size + _RECIPIENT_BYTES * len(users)


class Newest:
    """The newest number of each key in one log, for each person (everybody is ""), by the event's name.

    At most `most` of them; those that were noted first are forgotten first.
    """

    __slots__ = ("_most", "_numbers")

    def __init__(self, *, most: int) -> None:
        self._most = most
        self._numbers: OrderedDict[tuple[str, str], dict[str, int]] = OrderedDict()

    def clear(self) -> None:
        """The log goes on in another epoch."""
        self._numbers.clear()

    def note(self, entry: Entry) -> None:
        """Takes an entry with a key."""
        publication = entry.publication
        users = ("",) if publication.users is None else publication.users
        if len(users) > MOST_NOTED:
            return
        for user in users:
            place = publication.collapse, user
            by_name = self._numbers.setdefault(place, {})
            # A tail that is read once more brings older entries again.
            by_name[publication.name] = max(entry.number, by_name.get(publication.name, 0))
            self._numbers.move_to_end(place)
            if len(by_name) > _MOST_TYPES:
                del by_name[min(by_name, key=by_name.__getitem__)]
        while len(self._numbers) > self._most:
            self._numbers.popitem(last=False)

    def is_replaced(self, entry: Entry, user: str, gets: Gets) -> bool:
        """Whether a newer one is known that this person gets."""
        publication = entry.publication
        place = publication.collapse, "" if publication.users is None else user
        by_name = self._numbers.get(place)
        return by_name is not None and any(
            number > entry.number and gets(name) for name, number in by_name.items()
        )


class Ahead:
    """Where in a piece of the log the last entry of each key is that a person gets; looks for 5 ms."""

    __slots__ = ("_last",)

    def __init__(self, entries: Sequence[Entry], user: str, gets: Gets) -> None:
        self._last: dict[tuple[bool, str], int] = {}
        until = time.perf_counter() + _LOOK_S
        # From the end: where the time isn't enough, what counts for most of the others is known.
        for index in range(len(entries) - 1, -1, -1):
            publication = entries[index].publication
            if not publication.collapse:
                continue
            if not index % _CLOCK_EVERY and time.perf_counter() > until:
                return
            place = _place(publication)
            if place not in self._last and gets(publication.name):
                users = publication.users
                if users is None or user in users:
                    self._last[place] = index

    def replaces(self, index: int, publication: Publication) -> bool:
        """Whether there is a newer one than the publication at an index."""
        return self._last.get(_place(publication), -1) > index


def _place(publication: Publication) -> tuple[bool, str]:
    return publication.users is None, publication.collapse
