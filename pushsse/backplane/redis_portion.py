"""Some calls as publish.lua takes them: what they say in MessagePack, entries and changes as they are.

Used by the Redis backplane's `publish`.
"""

from pushsse.backplane import codec
from pushsse.backplane.base import Call, Draft
from pushsse.position import Mark

_MOST_DRAFTS = 1000
_MOST_BYTES = 1024 * 1024
_FIRST_BLOB = 7  # of the script's arguments, which Lua counts from 1


class Portion:
    """Calls for one run of the script."""

    __slots__ = ("_bytes", "blobs", "calls", "logs")

    def __init__(self) -> None:
        self.logs: list[str] = []
        self.calls: list[tuple[object, ...]] = []
        self.blobs: list[bytes] = []
        self._bytes = 0

    @property
    def is_full(self) -> bool:
        """Whether one run of the script should take no more: nothing else runs in Redis meanwhile."""
        return len(self.blobs) >= _MOST_DRAFTS or self._bytes >= _MOST_BYTES

    def add(self, call: Call, known: Mark, *, keep_bytes: int) -> None:
        """A call, with what this node knows of its log."""
        sources: dict[tuple[str, str], int] = {}
        drafts = [self._draft(draft, sources) for draft in call.drafts]
        self.logs.append(call.log)
        self.calls.append((call.log, known.epoch, known.number, keep_bytes, tuple(sources), drafts))

    def _draft(self, draft: Draft, sources: dict[tuple[str, str], int]) -> tuple[object, ...]:
        publication, source, once = draft
        which, offset, at_ms = 0, 0, 0
        if source is not None:
            partition = (f"{source.topic}/{source.partition}", source.owner)
            which = sources.setdefault(partition, len(sources) + 1)
            offset, at_ms = source.offset, source.timestamp_ms
        entry = self._blob(codec.encode(publication))
        packed = (entry, publication.expires_ms, once, which, offset, at_ms)
        change = publication.change
        return packed if change is None else (*packed, change.user, self._blob(codec.encode_change(change)))

    def _blob(self, blob: bytes) -> int:
        self.blobs.append(blob)
        self._bytes += len(blob)
        return len(self.blobs) + _FIRST_BLOB - 1
