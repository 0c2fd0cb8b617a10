"""The backplane of a single process: logs in memory, one listener, no outage; a file for the next start.

Called by whoever publishes; hands to `listen`. Deliberate: `publish` appends each call without suspending, so
that it is atomic; it waits only while the listener is more than MOST_WAITING entries behind, and lets others
have the loop between calls for many recipients.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from heapq import merge
from itertools import islice
from pathlib import Path
from typing import Self

from pushsse.backplane import (
    BROADCAST,
    BROADCAST_SHARE,
    Call,
    Entry,
    Followed,
    Heard,
    HeardLive,
    Hearing,
    Page,
    Receipt,
)
from pushsse.backplane.memory.file import Appended, LogFile, LogState, State, fresh_word
from pushsse.backplane.memory.logs import KeptLog, Taken, recipients
from pushsse.errors import NotOwner
from pushsse.event import Change, Publication
from pushsse.metrics import Metrics

MOST_WAITING = 10_000
# Recipients, each of whom is remembered: some 3 ms.
_AT_ONCE = 2_000


class MemoryBackplane:
    """Keeps the contract of `Backplane`. `keep_bytes` bounds a shard's log, the broadcast log has more."""

    def __init__(
        self, *, shards: int, keep_s: float, keep_bytes: int, metrics: Metrics, file: Path | None = None
    ) -> None:
        self._keep_ms = int(keep_s * 1000)
        self._keep_bytes = keep_bytes
        self._metrics = metrics
        self._file = LogFile(file, shards=shards) if file is not None else None
        # Each log's name follows it, so that no place in one log can be taken for a place in another.
        self._word = fresh_word()
        self._logs: dict[str, KeptLog] = {}
        self._order = 0
        self._taken = Taken()
        self._asked: dict[str, None] = {}
        self._listening = False
        self._waiting: deque[Hearing] = deque()
        self._behind = 0
        self._wake = asyncio.Event()
        self._room = asyncio.Event()

    async def __aenter__(self) -> Self:
        """Goes on where the file ends. Raises SettingsError where another process has it."""
        if self._file is not None:
            file = self._file
            state = await file.open(self._state)
            self._order, self._word = state.order, state.word
            self._taken.restore(state)
            # A walk over all entries.
            self._logs = await asyncio.to_thread(self._restored, state)
            self._metrics.gauge("log_kept", "Whether the embedded log is on disk", lambda: file.kept)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._file is not None:
            await self._file.close()
        self._logs.clear()

    def _restored(self, state: State) -> dict[str, KeptLog]:
        logs: dict[str, KeptLog] = {}
        for name, kept in state.logs.items():
            log = logs[name] = self._new_log(name, kept.epoch)
            log.restore(kept.number, kept.trimmed_ms, kept.entries)
        return logs

    def _state(self) -> State:
        """All there is, as it is now."""
        state = State(self._word)
        self._taken.save_to(state)
        for name, log in self._logs.items():
            head = log.head
            state.logs[name] = LogState(head.epoch, head.number, head.trimmed_ms, log.held())
        return state

    # Publishing

    async def publish(self, calls: Sequence[Call]) -> Receipt:
        """Appends, call by call. Raises NotOwner once the other calls are in."""
        await self._wait_for_room()
        receipt = Receipt()
        heard: list[Entry] = []
        refused: list[Call] = []
        weight = 0
        for call in calls:
            if self._taken.is_foreign(call):
                refused.append(call)
                continue
            if weight >= _AT_ONCE:
                self._tell_all(heard)
                heard, weight = [], 0
                await asyncio.sleep(0)
            appended = self._append(call, receipt)
            weight += sum(recipients(draft.publication) for draft in call.drafts)
            if self._listening and call.log in self._asked:
                heard += appended
        self._tell_all(heard)
        receipt.count(self._metrics)
        if self._file is not None and any(d.source is not None for call in calls for d in call.drafts):
            # Their offsets are committed after this: Kafka gives nobody again what is lost here then.
            await self._file.written()
        if refused:
            raise NotOwner(f"{len(refused)} of {len(calls)} calls come from partitions with another owner")
        return receipt

    async def publish_live(self, log: str, publication: Publication) -> None:
        """Hands a publication to the listener, without the log."""
        await self._wait_for_room()
        if self._listening and log in self._asked:
            self._tell(HeardLive(log, publication))

    def _append(self, call: Call, receipt: Receipt) -> list[Entry]:
        log = self._log(call.log)
        now_ms = self.now_ms()
        drafts = self._taken.unfenced(call)
        receipt.fenced += len(call.drafts) - len(drafts)
        appended: list[Entry] = []
        for draft in drafts:
            if 0 < draft.publication.expires_ms <= now_ms:
                receipt.expired += 1
                continue
            publication = self._taken.unrepeated(call.log, draft, now_ms)
            receipt.repeated += recipients(draft.publication) - recipients(publication)
            if publication is not None:
                self._order += 1
                appended.append(log.append(self._order, now_ms, publication))
        receipt.appended += len(appended)
        head = log.head
        receipt.marks[call.log] = head.mark
        if self._file is not None and call.drafts:
            names = [name for draft in call.drafts if draft.once for name in draft.names(call.log)]
            self._file.appended(
                Appended(
                    call.log,
                    head.epoch,
                    head.number,
                    head.first,
                    head.trimmed_ms,
                    appended,
                    self._taken.fences_of(call),
                    self._taken.times_of(names),
                )
            )
        return appended

    def _log(self, name: str) -> KeptLog:
        log = self._logs.get(name)
        if log is None:
            log = self._logs[name] = self._new_log(name, self._word + name)
        return log

    def _new_log(self, name: str, epoch: str) -> KeptLog:
        share = BROADCAST_SHARE if name == BROADCAST else 1
        return KeptLog(name, epoch, keep_ms=self._keep_ms, keep_bytes=self._keep_bytes * share)

    # Listening

    async def listen(self) -> AsyncGenerator[Hearing, None]:
        """What is published to the followed logs from now on."""
        if self._listening:
            raise RuntimeError("the backplane has a listener already")
        self._listening = True
        for log in self._asked:
            self._begin(log)
        try:
            while True:
                while self._waiting:
                    heard = self._waiting.popleft()
                    self._behind -= _weight(heard)
                    if self._behind < MOST_WAITING:
                        self._room.set()
                    yield heard
                self._wake.clear()
                await self._wake.wait()
        finally:
            self._listening = False
            self._waiting.clear()
            self._behind = 0
            self._room.set()

    def follow(self, log: str) -> None:
        """Takes effect at once: what is appended after this call is heard."""
        if log in self._asked:
            return
        self._asked[log] = None
        if self._listening:
            self._begin(log)

    def unfollow(self, log: str) -> None:
        """Takes effect at once: what waits for the listener is dropped."""
        if self._asked.pop(log, log) is None:
            kept = [left for heard in self._waiting if (left := _without(log, heard)) is not None]
            self._waiting = deque(kept)
            self._behind = sum(map(_weight, kept))

    def _begin(self, name: str) -> None:
        log = self._trimmed(name)
        self._tell(Followed(name, log.head, log.tail()))

    def _trimmed(self, name: str) -> KeptLog:
        log = self._log(name)
        log.trim(self.now_ms())
        return log

    def _tell_all(self, heard: Sequence[Entry]) -> None:
        if heard:
            self._tell(Heard(tuple(heard)))

    def _tell(self, heard: Hearing) -> None:
        self._waiting.append(heard)
        self._behind += _weight(heard)
        self._wake.set()

    async def _wait_for_room(self) -> None:
        while self._behind >= MOST_WAITING:
            self._room.clear()
            await self._room.wait()

    # Reading

    async def read(self, after: Mapping[str, int], *, limit: int) -> Page:
        """Up to `limit` entries after these numbers."""
        logs = {name: self._trimmed(name) for name in after}
        found = [logs[name].after(number, limit + 1) for name, number in after.items()]
        entries = tuple(islice(merge(*found, key=_order), limit))
        heads = {name: log.head for name, log in logs.items()}
        return Page(entries, heads, more=sum(map(len, found)) > limit)

    async def since(self, logs: Iterable[str], at_ms: int) -> Mapping[str, int]:
        """For each log the number before its first entry at or after a time."""
        return {name: self._trimmed(name).before(at_ms) for name in logs}

    async def first_change(self, log: str, user: str, after: int) -> Change | None:
        """The first change of a person's switches in a log after a number."""
        return self._trimmed(log).first_change(user, after)

    # Kafka's partitions

    async def claim(self, topic: str, partition: int, owner: str) -> None:
        """Makes `owner` the only one whose sources of this partition are taken."""
        self._taken.claim(topic, partition, owner)
        if self._file is not None:
            self._file.claimed(topic, partition, owner)

    async def identity(self, suggested: str) -> str:
        """The word by which this backplane is known, `suggested` where it has none."""
        known = self._taken.known_as("")
        identity = self._taken.known_as(suggested)
        if self._file is not None and identity != known:
            self._file.known_as(identity)
            # Offsets are committed under it: after a kill it must be the same.
            await self._file.written()
        return identity

    async def claimed(self, topic: str, partition: int) -> bool:
        """Whether anybody has ever claimed a partition."""
        return self._taken.is_claimed(topic, partition)

    async def first_start(self, topic: str, offsets: Mapping[int, int]) -> Mapping[int, int]:
        """Where reading began when a topic was first started, by partition."""
        kept = self._taken.first_start(topic, offsets)
        if self._file is not None:
            self._file.started(topic, dict(kept))
            # Nothing is read before: a start after a kill would begin at a later end, and leave some out.
            await self._file.written()
        return kept

    async def fence(self, topic: str, partition: int) -> tuple[int, int] | None:
        """The highest offset that any log has of this partition, with its record's timestamp in ms."""
        return self._taken.fence(topic, partition)

    async def reset_fence(self, topic: str, partition: int) -> None:
        """Forgets the fence of a partition."""
        self._taken.reset_fence(topic, partition)
        if self._file is not None:
            self._file.unfenced(topic, partition)

    def now_ms(self) -> int:
        """This machine's clock."""
        return time.time_ns() // 1_000_000

    @property
    def hears(self) -> bool:
        """Always."""
        return True

    @property
    def available(self) -> bool:
        """Always: it is in this process."""
        return True


def _weight(heard: Hearing) -> int:
    return len(heard.entries) if isinstance(heard, Heard) else 1


def _without(log: str, heard: Hearing) -> Hearing | None:
    if not isinstance(heard, Heard):
        return None if heard.log == log else heard
    entries = tuple(entry for entry in heard.entries if entry.log != log)
    return Heard(entries) if entries else None


def _order(entry: Entry) -> int:
    return entry.order
