"""Some calls as publish.lua takes them: what they say in MessagePack, entries, names and changes as they are.

Used by the Redis backplane's `publish`.
"""

from pushsse.backplane import codec
from pushsse.backplane.base import Call, Draft
from pushsse.position import Mark

_MOST_DRAFTS = 1000
_MOST_BYTES = 1024 * 1024
_MOST_NAMES = 1000  # 3–5 ms of Redis
_FIRST_BLOB = 7  # of the script's arguments, which Lua counts from 1


class Portion:
    """Calls for one run of the script."""

    __slots__ = ("_bytes", "_drafts", "_names", "blobs", "calls", "logs")

    def __init__(self) -> None:
        self.logs: list[str] = []
        self.calls: list[tuple[object, ...]] = []
        self.blobs: list[bytes] = []
        self._bytes = 0
        self._drafts = 0
        self._names = 0

    @property
    def is_full(self) -> bool:
        """Whether one run of the script should take no more: nothing else runs in Redis meanwhile."""
        return self._drafts >= _MOST_DRAFTS or self._bytes >= _MOST_BYTES or self._names >= _MOST_NAMES

    def add(self, call: Call, known: Mark, *, keep_bytes: int) -> None:
        """A call, with what this node knows of its log."""
        sources: dict[tuple[str, str], int] = {}
        drafts = [self._draft(call.log, draft, sources) for draft in call.drafts]
        self._drafts += len(drafts)
        self.logs.append(call.log)
        self.calls.append((call.log, known.epoch, known.number, keep_bytes, tuple(sources), drafts))

    def _draft(self, log: str, draft: Draft, sources: dict[tuple[str, str], int]) -> tuple[object, ...]:
        publication, source, _ = draft
        which, offset, at_ms = 0, 0, 0
        if source is not None:
            partition = (f"{source.topic}/{source.partition}", source.owner)
            which = sources.setdefault(partition, len(sources) + 1)
            offset, at_ms = source.offset, source.timestamp_ms
        entry = self._blob(codec.encode(publication))
        names = draft.names(log)
        self._names += len(names)
        # One recipient is a repeat or none: only several may have to be taken apart.
        begin, end = codec.users_of(publication) if len(names) > 1 else (0, 0)
        had = self._blob(b"".join(names)) if names else 0
        packed = (entry, publication.expires_ms, had, which, offset, at_ms, begin, end)
        change = publication.change
        return packed if change is None else (*packed, change.user, self._blob(codec.encode_change(change)))

    def _blob(self, blob: bytes) -> int:
        self.blobs.append(blob)
        self._bytes += len(blob)
        return len(self.blobs) + _FIRST_BLOB - 1
