"""What the node heard in one go, encoded once per shard, so that each stream gets it in one write.

Filled and read by the hub within one `deliver`. The `id` line under a frame is the place in both logs as it
was at that event, so it is the same for every stream of a shard.
"""

from collections.abc import Sequence
from heapq import merge
from typing import NamedTuple

from pushsse.event import Publication
from pushsse.position import Mark, Position
from pushsse.stream.frame import Chunk, chunk


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


def with_id(publication: Publication, place: Position, *, named: bool = True) -> bytes:
    """A publication's frame under its place."""
    return b"%bid: %b\n\n" % (publication.frame(named=named), str(place).encode())


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
