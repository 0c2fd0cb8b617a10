"""How far each followed log was heard: what goes on from there is yielded, and a hole puts the node behind.

Kept by the listener, which does all reading. No I/O here: every method is one step of the state.
"""

import logging
from collections.abc import Iterator, Sequence

from pushsse.backplane import codec
from pushsse.backplane.base import Entry, Followed, Heard, Hearing, Lost
from pushsse.backplane.redis_read import Found, Want, merged, tail_of
from pushsse.metrics import Metrics
from pushsse.position import Mark

_FOLLOW_AT_ONCE = 8
_log = logging.getLogger(__name__)


class Place:
    """How far one log was heard; no epoch until it was read for the first time."""

    __slots__ = ("at_ms", "epoch", "number")

    def __init__(self) -> None:
        self.epoch = ""
        self.number = 0
        self.at_ms = 0


class Reading:
    """What is to be read at one moment: all logs from their places on, and the tails of some new ones."""

    __slots__ = ("_followed", "new", "places")

    def __init__(self, places: dict[str, Place], new: dict[str, Place]) -> None:
        self.places = places
        self.new = new
        self._followed = [Want(log, place.epoch, place.number, place.at_ms) for log, place in places.items()]

    @property
    def wants(self) -> list[Want]:
        """In the order in which `split` expects what was found."""
        return [*self._followed, *map(tail_of, self.new)]

    def went_back(self, found: Sequence[Found]) -> list[Want]:
        """The places that are no longer in their logs."""
        return [want for want, one in zip(self._followed, found, strict=False) if one.went_back]

    def split(self, found: Sequence[Found]) -> tuple[Sequence[Found], Sequence[Found]]:
        """What was found in the logs, and the tails."""
        return found[: len(self._followed)], found[len(self._followed) :]


class Places:
    """The followed logs. `behind`: something is missing, and will be read; until then nothing is taken."""

    def __init__(self, metrics: Metrics) -> None:
        self.behind = False
        self.left = False  # a log was left since this was last set to False
        self._metrics = metrics
        self._places: dict[str, Place] = {}
        self._new: dict[str, None] = {}

    @property
    def names(self) -> set[str]:
        """All logs that are asked for."""
        return set(self._places)

    @property
    def followed(self) -> list[str]:
        """Those that are followed by now."""
        return [log for log, place in self._places.items() if place.epoch]

    @property
    def is_incomplete(self) -> bool:
        """Whether something is to be read."""
        return self.behind or bool(self._new)

    def add(self, log: str) -> bool:
        """A log is asked for; whether that is new."""
        if log in self._places:
            return False
        self._places[log] = Place()
        self._new[log] = None
        return True

    def remove(self, log: str) -> bool:
        """A log is left; whether it was asked for."""
        self._new.pop(log, None)
        found = self._places.pop(log, None) is not None
        self.left = self.left or found
        return found

    def reset(self) -> None:
        """Every log is to be followed anew."""
        self._places = {log: Place() for log in self._places}
        self._new = dict.fromkeys(self._places)

    def mark(self, log: str) -> Mark | None:
        """How far a log was heard; None before it is followed."""
        place = self._places.get(log)
        return Mark(place.epoch, place.number) if place is not None and place.epoch else None

    def take(self, log: str, message: codec.Appended) -> Sequence[Entry]:
        """What of a message goes on from where the log was heard."""
        place = self._places[log]
        if message.epoch != place.epoch or message.first > place.number + 1:
            self.behind = True
        if self.behind or message.last <= place.number:
            # Behind: it will be read, in its order with what is missing.
            return ()
        skip = place.number + 1 - message.first
        place.number = message.last
        place.at_ms = message.at_ms
        return tuple(_entries(log, message))[skip:]

    def check(self, canary: bytes) -> None:
        """How the logs stand by what came before the canary: log, epoch, number a line."""
        for line in canary.decode().splitlines():
            log, epoch, number = line.split(" ")
            mark = self.mark(log)
            if mark is not None and mark != (epoch, int(number)):
                self.behind = True

    # What is missing

    def reading(self) -> Reading:
        """What to read next."""
        followed = {log: place for log, place in self._places.items() if place.epoch}
        return Reading(followed, {log: self._places[log] for log in list(self._new)[:_FOLLOW_AT_ONCE]})

    def apply(self, reading: Reading, every: Sequence[Found]) -> Iterator[Hearing]:
        """Takes what was read; what was left or followed anew meanwhile is passed over."""
        found, tails = reading.split(every)
        for one in found:
            yield from self._lost(one, reading.places[one.log])
        entries, self.behind = merged(found)
        kept = tuple(entry for entry in entries if self._is(entry.log, reading.places[entry.log]))
        for entry in kept:
            place = reading.places[entry.log]
            place.number, place.at_ms = entry.number, entry.at_ms
        if kept:
            self._metrics.gaps_filled += 1
            yield Heard(kept)
        for one in () if self.behind else tails:
            place = reading.new[one.log]
            if self._is(one.log, place):
                place.epoch, place.number, place.at_ms = one.head.epoch, one.head.number, one.at_ms
                del self._new[one.log]
                yield Followed(one.log, one.head, one.entries)

    def still(self, hearing: Hearing) -> Hearing | None:
        """What of a hearing is still followed."""
        if not isinstance(hearing, Heard):
            return hearing if self.mark(hearing.log) is not None else None
        entries = tuple(entry for entry in hearing.entries if self.mark(entry.log) is not None)
        return Heard(entries) if entries else None

    def _lost(self, one: Found, place: Place) -> Iterator[Hearing]:
        if not self._is(one.log, place):
            return
        if one.head.epoch != place.epoch or one.start > place.number:
            _log.warning("log %s: what came after %s-%d is lost", one.log, place.epoch, place.number)
            place.epoch, place.number, place.at_ms = one.head.epoch, one.start, 0
            yield Lost(one.log, one.head._replace(base=one.start))

    def _is(self, log: str, place: Place) -> bool:
        return self._places.get(log) is place


def _entries(log: str, message: codec.Appended) -> Iterator[Entry]:
    for i, blob in enumerate(message.blobs):
        yield Entry(log, message.first + i, message.order + i, message.at_ms, codec.decode(blob))
