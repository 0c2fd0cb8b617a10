"""Reads several logs at one moment, and merges what they hold by its order.

Called by the Redis backplane, for streams that resume or are behind, and by its listener, when it follows a
log or has missed something.
"""

from collections.abc import Iterable, Sequence
from heapq import merge
from typing import NamedTuple, cast

from pushsse.backplane import TAIL_BYTES, TAIL_ENTRIES, Entry, Head, codec, fresh_word
from pushsse.backplane.redis.connection import RedisConnection, Reply, script
from pushsse.event import Change

_MOST_BYTES = 4 * 1024 * 1024
_READ, _RENEW, _SINCE, _CHANGE = (script(name) for name in ("read", "renew", "since", "first_change"))


class Want(NamedTuple):
    """What is wanted of a log: what comes after a place in it, or its newest entries (`tail`: how many)."""

    log: str
    epoch: str = ""
    number: int = 0
    at_ms: int = 0
    tail: int = 0


class ReadResult(NamedTuple):
    """What a log held: entries after `start`, without a hole. `went_back`: it lacks the wanted place."""

    log: str
    head: Head
    at_ms: int
    start: int
    went_back: bool
    entries: tuple[Entry, ...]

    @property
    def is_cut(self) -> bool:
        """Whether the log has more after these entries."""
        return bool(self.entries) and self.entries[-1].number < self.head.number


def tail_of(log: str) -> Want:
    """The newest entries of a log."""
    return Want(log, tail=TAIL_ENTRIES)


def merged(results: Iterable[ReadResult]) -> tuple[tuple[Entry, ...], bool]:
    """The entries of several logs by order, and whether there is more."""
    results = tuple(results)
    entries = merge(*(one.entries for one in results), key=_order)
    cuts = [one.entries[-1].order for one in results if one.is_cut]
    if not cuts:
        return tuple(entries), False
    # Guarantee 2: only up to the first cut. What comes after it in the other logs would overtake what the log
    # that was cut still has.
    return tuple(entry for entry in entries if entry.order <= min(cuts)), True


class LogReader:
    """Runs the reading scripts. Everything raises BackplaneUnavailable."""

    def __init__(self, connection: RedisConnection, *, names: str) -> None:
        self._connection = connection
        self._names = names

    async def read(self, wants: Sequence[Want], *, limit: int) -> tuple[ReadResult, ...]:
        """What the logs hold at one moment, about 4 MiB at most. A log that does not exist begins.

        Guarantee 2: one script for all logs. Read one by one, a later log would have entries whose order is
        beyond what an earlier one had, and merging them would let them overtake.
        """
        most_bytes = TAIL_BYTES if any(want.tail for want in wants) else _MOST_BYTES
        replies = await self._connection.run(
            _READ, self._names, fresh_word(), limit, most_bytes, codec.pack(wants)
        )
        rows = cast(list[list[Reply]], replies)
        return tuple(_result(want, row) for want, row in zip(wants, rows, strict=True))

    async def renew(self, want: Want) -> None:
        """Gives a new epoch to a log that went back behind a place, unless another node has done so."""
        await self._connection.run(
            _RENEW, self._names, fresh_word(), want.log, want.epoch, want.number, want.at_ms
        )

    async def since(self, logs: Sequence[str], at_ms: int) -> dict[str, int]:
        """For each log the number before its first entry at or after a time."""
        numbers = await self._connection.run(_SINCE, self._names, at_ms, *logs)
        return dict(zip(logs, cast(list[int], numbers), strict=True))

    async def first_change(self, log: str, user: str, after: int) -> Change | None:
        """The first change of a person's switches in a log after a number."""
        blob = await self._connection.run(_CHANGE, self._names, log, user, after)
        return codec.decode_change(blob) if isinstance(blob, bytes) else None


def _result(want: Want, row: list[Reply]) -> ReadResult:
    epoch, *numbers, items = row
    number, first, base, trimmed_ms, at_ms, start, back = cast(list[int], numbers)
    head = Head(cast(bytes, epoch).decode(), number, first, base, trimmed_ms)
    entries = tuple(_entry(want.log, cast(list[Reply], item)) for item in cast(list[Reply], items))
    if want.tail or start >= number:
        return ReadResult(want.log, head, at_ms, max(start, 0), bool(back), entries)
    # Guarantee 2: whatever is not there although the log should hold it (somebody deleted it) moves `start`,
    # and is told as a gap.
    if not entries:
        return ReadResult(want.log, head._replace(first=number + 1), at_ms, number, bool(back), ())
    if entries[-1].number - start != len(entries):
        last = entries[-1].number
        entries = tuple(e for i, e in enumerate(reversed(entries)) if e.number == last - i)[::-1]
        start = entries[0].number - 1
    return ReadResult(want.log, head, at_ms, start, bool(back), entries)


def _entry(log: str, item: list[Reply]) -> Entry:
    name, fields = cast(tuple[bytes, list[bytes]], item)
    _, order, _, at_ms, _, blob, *_ = fields
    return Entry(log, int(name.partition(b"-")[0]), int(order), int(at_ms), codec.decode(blob))


def _order(entry: Entry) -> int:
    return entry.order
