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

    async def prepare(self, consumer: AIOKafkaConsumer, partitions: Sequence[Partition]) -> None:
        """Makes partitions ready to be read, and points the consumer at their first record.

        Raises KafkaError (CommitFailedError, IllegalStateError: they are somebody else's by now) and
        BackplaneUnavailable; it is right to call it again.
        """
        ats = [partition.at for partition in partitions]
        ranges = await _ranges(consumer, ats)
        wanted = {partition.at: await self._wanted(consumer, partition, ranges) for partition in partitions}
        # A commit proves that the group still counts us in: only then may another owner's claim be undone.
        await consumer.commit(wanted)
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

    async def _wanted(
        self, consumer: AIOKafkaConsumer, partition: Partition, ranges: Mapping[TopicPartition, Range]
    ) -> int:
        """The offset to go on from, were it not for a topic made anew."""
        held = ranges[partition.at]
        offset = partition.done if partition.done is not None else await consumer.committed(partition.at)
        if offset is None:
            return await self._start(consumer, partition.at, held)
        if not held.first <= offset <= held.end:
            log.warning(
                "%s: offset %d is out of range (%d to %d), starting at the earliest",
                partition.name,
                offset,
                held.first,
                held.end,
            )
            return held.first
        return offset

    async def _start(self, consumer: AIOKafkaConsumer, at: TopicPartition, held: Range) -> int:
        if self.start == "earliest":
            return held.first
        if self.start == "latest":
            return held.end
        since_ms = int((time.time() - seconds(self.start)) * 1000)
        found = (await consumer.offsets_for_times({at: max(0, since_ms)}))[at]
        return held.end if found is None else int(found.offset)

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
