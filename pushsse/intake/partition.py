"""A partition while this node has it: from which offset it is read, and whether its topic is still the same.

Called by the consumption for what was newly assigned, and where an offset turned out to be out of range.
Guarantee 1 begins here: claim first, then look at the fence, only then read.
"""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaTimeoutError

from pushsse.intake.base import Fences
from pushsse.intake.decode import Record
from pushsse.intake.same_backplane import SameBackplane
from pushsse.kafka import Connection, stop
from pushsse.settings import seconds

log = logging.getLogger(__name__)
_PROBE_S = 5.0


@dataclass(slots=True, eq=False)
class Partition:
    """What is known of a partition. `done` is the offset after the last record that is dealt with."""

    at: TopicPartition
    owner: str
    live: bool = True
    ready: bool = False
    held: bool = False
    done: int | None = None
    committed: int | None = None
    not_before: float = 0.0

    @property
    def name(self) -> str:
        """As logs name it."""
        return f"{self.at.topic}-{self.at.partition}"


@dataclass(frozen=True, slots=True)
class Range:
    """The offsets that a partition holds: `first` is the oldest, `end` the next to be written."""

    first: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """Claims partitions, and decides where reading starts."""

    connection: Connection
    fences: Fences
    start: str
    same: SameBackplane

    async def prepare(self, consumer: AIOKafkaConsumer, partitions: Sequence[Partition]) -> None:
        """Makes partitions ready to be read, and points the consumer at their first record.

        Raises KafkaError (CommitFailedError, IllegalStateError: they are somebody else's by now) and
        BackplaneUnavailable; it is right to call it again.
        """
        ats = [partition.at for partition in partitions]
        ranges = await _ranges(consumer, ats)
        offsets = {
            each.at: each.done if each.done is not None else await consumer.committed(each.at)
            for each in partitions
        }
        first = await self._first_offsets(consumer, [at for at, offset in offsets.items() if offset is None])
        wanted = {
            at: first[at] if offset is None else _within(at, offset, ranges[at])
            for at, offset in offsets.items()
        }
        # A commit proves that the group still counts us in: only then may another owner's claim be undone.
        await consumer.commit(self.same.marked(wanted))
        for partition in partitions:
            await self.fences.claim(partition.at.topic, partition.at.partition, partition.owner)
        anew = await self._made_anew(consumer, partitions)
        for partition in partitions:
            if partition.live:
                partition.committed = wanted[partition.at]
                partition.done = anew.get(partition.at, wanted[partition.at])
                consumer.seek(partition.at, partition.done)
                partition.ready = True
                log.info("%s is read from offset %d on", partition.name, partition.done)

    async def _first_offsets(
        self, consumer: AIOKafkaConsumer, ats: Sequence[TopicPartition]
    ) -> dict[TopicPartition, int]:
        """Where to begin with partitions for which the group has no offset.

        `start` is for a topic that the group has never read. Its offsets are decided once, for all of the
        topic's partitions, by whichever node is first, and kept in the backplane. A partition that appears
        later, or whose offsets Kafka has lost, begins at its beginning: nobody meant to pass it over.
        """
        found: dict[TopicPartition, int] = {}
        for topic in sorted({at.topic for at in ats}):
            mine = [at for at in ats if at.topic == topic]
            every = [TopicPartition(topic, n) for n in sorted(consumer.partitions_for_topic(topic) or ())]
            ranges = await _ranges(consumer, sorted({*mine, *every}))
            kept = await self.fences.first_start(topic, await self._start_offsets(consumer, every, ranges))
            for at in mine:
                begun = await self.fences.claimed(topic, at.partition)
                offset = None if begun else kept.get(at.partition)
                found[at] = ranges[at].first if offset is None else _within(at, offset, ranges[at])
        return found

    async def _start_offsets(
        self,
        consumer: AIOKafkaConsumer,
        ats: Sequence[TopicPartition],
        ranges: Mapping[TopicPartition, Range],
    ) -> Mapping[int, int]:
        """What `start` means for all partitions of a topic just now; nothing where the group has begun it."""
        for at in ats:
            if await consumer.committed(at) is not None:
                return {}
        if self.start == "earliest":
            return {at.partition: ranges[at].first for at in ats}
        if self.start == "latest":
            return {at.partition: ranges[at].end for at in ats}
        since_ms = max(0, int((time.time() - seconds(self.start)) * 1000))
        found = await consumer.offsets_for_times(dict.fromkeys(ats, since_ms))
        return {at.partition: ranges[at].end if found[at] is None else int(found[at].offset) for at in ats}

    async def _made_anew(
        self, consumer: AIOKafkaConsumer, partitions: Sequence[Partition]
    ) -> Mapping[TopicPartition, int]:
        """The partitions that aren't those whose records the log has, and where they begin; resets fences."""
        fences: dict[TopicPartition, tuple[int, int]] = {}
        for at in [partition.at for partition in partitions]:
            if (fence := await self.fences.fence(at.topic, at.partition)) is not None:
                fences[at] = fence
        # Only now, after the claims: the owner before us may have published what an earlier look missed.
        ranges = await _ranges(consumer, list(fences))
        to_read = {at: fences[at][0] for at, held in ranges.items() if held.first <= fences[at][0] < held.end}
        found = await self._timestamps_ms(to_read)
        anew: dict[TopicPartition, int] = {}
        for at, (offset, timestamp_ms) in fences.items():
            if offset < ranges[at].end and found.get(at) in (None, timestamp_ms):
                continue
            await self.fences.reset_fence(at.topic, at.partition)
            anew[at] = ranges[at].first
            log.warning(
                "%s-%d was made anew: offset %d %s. Its fence starts over, and it is read from the beginning",
                at.topic,
                at.partition,
                offset,
                "is another record than the one published" if at in to_read else "is beyond the end",
            )
        return anew

    async def _timestamps_ms(self, offsets: Mapping[TopicPartition, int]) -> Mapping[TopicPartition, int]:
        """The timestamps of the records at these offsets, where there are any.

        By a consumer without a group, so that the group's own isn't moved. Raises KafkaError.
        """
        if not offsets:
            return {}
        probe = self.connection.consumer(None)
        found: dict[TopicPartition, int] = {}
        try:
            await probe.start()
            for at, offset in offsets.items():
                record = await _record(probe, at, offset)
                if record is not None:
                    found[at] = record.timestamp
        finally:
            await stop(probe)
        return found


def _within(at: TopicPartition, offset: int, held: Range) -> int:
    """The offset, or the oldest one where Kafka doesn't hold it (any more, or yet)."""
    if held.first <= offset <= held.end:
        return offset
    log.warning(
        "%s-%d: offset %d is out of range (%d to %d), starting at the earliest",
        at.topic,
        at.partition,
        offset,
        held.first,
        held.end,
    )
    return held.first


async def _record(probe: AIOKafkaConsumer, at: TopicPartition, offset: int) -> Record | None:
    """The record at an offset; None where there is none now (compacted, or a transaction's marker)."""
    probe.assign([at])
    probe.seek(at, offset)
    until = time.monotonic() + _PROBE_S
    while time.monotonic() < until:
        found: Mapping[TopicPartition, Sequence[Record]] = await probe.getmany(
            at, timeout_ms=500, max_records=1
        )
        if found:
            return found[at][0] if found[at][0].offset == offset else None
        if await probe.position(at) > offset:
            return None
    raise KafkaTimeoutError(f"{at.topic}-{at.partition}: the record at {offset} couldn't be read")


async def _ranges(
    consumer: AIOKafkaConsumer, ats: Sequence[TopicPartition]
) -> Mapping[TopicPartition, Range]:
    if not ats:
        return {}
    first, end = await asyncio.gather(consumer.beginning_offsets(ats), consumer.end_offsets(ats))
    return {at: Range(first[at], end[at]) for at in ats}
