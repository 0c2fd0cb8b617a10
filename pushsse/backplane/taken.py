"""What the embedded backplane has taken already: fences, the owners of partitions, and names of drafts.

Used by `memory` alone.
"""

from collections.abc import Iterable, Mapping
from itertools import compress

import msgspec

from pushsse.backplane.base import REMEMBER_MOST, REMEMBER_MS, Call, Draft
from pushsse.backplane.memory_file import State
from pushsse.event import Publication

_NOTHING = (-1, 0)


class Taken:
    """Fences by log, topic and partition; owners by topic and partition; names, oldest first."""

    __slots__ = ("_fences", "_identity", "_names", "_owners", "_starts")

    def __init__(self) -> None:
        self._fences: dict[tuple[str, str, int], tuple[int, int]] = {}
        self._owners: dict[tuple[str, int], str] = {}
        self._identity = ""
        self._starts: dict[str, Mapping[int, int]] = {}
        self._names: dict[bytes, int] = {}

    def restore(self, state: State) -> None:
        """Goes on with what an earlier process knew."""
        self._fences, self._owners, self._names = state.fences, state.owners, state.names
        self._starts = dict(state.starts)
        self._identity = state.identity

    def save_to(self, state: State) -> None:
        """Copies what is known."""
        # copy(), which is several times as fast as dict() for a million names of which the oldest are gone.
        state.fences, state.owners, state.names = dict(self._fences), dict(self._owners), self._names.copy()
        state.starts = {topic: dict(offsets) for topic, offsets in self._starts.items()}
        state.identity = self._identity

    def fences_of(self, call: Call) -> list[tuple[str, int, int, int]]:
        """The fences that a call may have moved: topic, partition, offset, time."""
        places = dict.fromkeys(
            (d.source.topic, d.source.partition) for d in call.drafts if d.source is not None
        )
        found = ((place, self._fences.get((call.log, *place))) for place in places)
        return [(*place, *fence) for place, fence in found if fence is not None]

    def times_of(self, names: Iterable[bytes]) -> list[tuple[bytes, int]]:
        """Since when names are known."""
        return [(name, self._names[name]) for name in names if name in self._names]

    def claim(self, topic: str, partition: int, owner: str) -> None:
        """Makes `owner` the only one of a partition."""
        self._owners[topic, partition] = owner

    def known_as(self, suggested: str) -> str:
        """The word by which the backplane is known."""
        self._identity = self._identity or suggested
        return self._identity

    def is_claimed(self, topic: str, partition: int) -> bool:
        """Whether a partition was ever claimed."""
        return (topic, partition) in self._owners

    def first_start(self, topic: str, offsets: Mapping[int, int]) -> Mapping[int, int]:
        """Where reading of a topic began; the first call says it."""
        return self._starts.setdefault(topic, dict(offsets))

    def is_foreign(self, call: Call) -> bool:
        """Whether a source of the call is from a partition that has another owner."""
        sources = [draft.source for draft in call.drafts if draft.source is not None]
        return any(self._owners.get(source[:2], source.owner) != source.owner for source in sources)

    def unfenced(self, call: Call) -> list[Draft]:
        """The drafts above their fence, which advances past them.

        Against the fence as it was before the call: one record may have several drafts in it.
        """
        fences = self._fences
        found: list[Draft] = []
        highest: dict[tuple[str, str, int], tuple[int, int]] = {}
        for draft in call.drafts:
            source = draft.source
            if source is not None:
                place = (call.log, source.topic, source.partition)
                if source.offset <= fences.get(place, _NOTHING)[0]:
                    continue
                highest[place] = max(highest.get(place, _NOTHING), (source.offset, source.timestamp_ms))
            found.append(draft)
        fences.update(highest)
        return found

    def fence(self, topic: str, partition: int) -> tuple[int, int] | None:
        """The highest offset that any log has of a partition, with its record's time."""
        found = [fence for place, fence in self._fences.items() if place[1:] == (topic, partition)]
        return max(found, default=None)

    def reset_fence(self, topic: str, partition: int) -> None:
        """Forgets the fence of a partition."""
        for place in [place for place in self._fences if place[1:] == (topic, partition)]:
            del self._fences[place]

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
