"""Which entries of a log a newer one has taken the place of (`collapse`, `withdraw`), as a replay asks.

Each tail of a log keeps a `Newest`, written as the node hears entries that have a key; others cost nothing.
A replay also looks ahead in the piece that it has read (`Ahead`), for what came before the node listened.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

from pushsse.backplane import Entry
from pushsse.event import Publication

# An entry for more people isn't noted: each of them costs a microsecond.
MOST_NOTED = 1_000
_MOST_TYPES = 8
# To look whether one of 10,000 people has an entry takes 0.1 ms.
_LOOK_S = 0.005
_CLOCK_EVERY = 32
# Whether somebody gets the publications of a name.
Gets = Callable[[str], bool]


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
