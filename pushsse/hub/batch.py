"""What the node heard in one go, encoded once per shard, so that each stream gets it in one write.

Filled and read by the hub within one `deliver`. The `id` line under a frame is the place in both logs as it
was at that event, so it is the same for every stream of a shard.
"""

from collections.abc import Sequence
from heapq import merge

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


def together(items: Sequence[Item]) -> Chunk:
    """Several frames as one chunk."""
    return chunk(b"".join([item.frame() for item in items]))
