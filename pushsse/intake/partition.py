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
from aiokafka.errors import KafkaError, KafkaTimeoutError

from pushsse.intake.base import Fences
from pushsse.intake.connection import Connection
from pushsse.settings import seconds

log = logging.getLogger(__name__)
_PROBE_S = 5.0
_STOP_S = 2.0


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
        anew = await self._made_anew(partitions, ranges)
        for partition in partitions:
            partition.committed = wanted[partition.at]
            partition.done = ranges[partition.at].first if partition.at in anew else wanted[partition.at]
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
        self, partitions: Sequence[Partition], ranges: Mapping[TopicPartition, Range]
    ) -> set[TopicPartition]:
        """The partitions that aren't those whose records the log has; their fences are reset."""
        anew: set[TopicPartition] = set()
        for partition in partitions:
            fence = await self.fences.fence(partition.at.topic, partition.at.partition)
            if fence is None:
                continue
            offset, timestamp_ms = fence
            held = ranges[partition.at]
            if offset < held.first:
                continue
            found_ms = None if offset >= held.end else await self._timestamp_ms(partition.at, offset)
            if offset < held.end and found_ms in (None, timestamp_ms):
                continue
            await self.fences.reset_fence(partition.at.topic, partition.at.partition)
            anew.add(partition.at)
            log.warning(
                "%s was made anew: offset %d is %s. Its fence starts over, and it is read from the beginning",
                partition.name,
                offset,
                "beyond the end" if found_ms is None else "another record than the one published",
            )
        return anew

    async def _timestamp_ms(self, at: TopicPartition, offset: int) -> int | None:
        """The timestamp of the record at an offset; None where there is none (compacted, or a control record).

        By a consumer without a group, so that the group's own isn't moved. Raises KafkaError.
        """
        probe = self.connection.consumer(None)
        try:
            await probe.start()
            probe.assign([at])
            probe.seek(at, offset)
            until = time.monotonic() + _PROBE_S
            while time.monotonic() < until:
                found = await probe.getmany(at, timeout_ms=500, max_records=1)
                if found:
                    record = found[at][0]
                    return int(record.timestamp) if record.offset == offset else None
                if await probe.position(at) > offset:
                    return None
            raise KafkaTimeoutError(f"the record at offset {offset} couldn't be read")
        finally:
            await stop(probe)


async def _ranges(
    consumer: AIOKafkaConsumer, ats: Sequence[TopicPartition]
) -> Mapping[TopicPartition, Range]:
    first, end = await asyncio.gather(consumer.beginning_offsets(ats), consumer.end_offsets(ats))
    return {at: Range(first[at], end[at]) for at in ats}


async def stop(consumer: AIOKafkaConsumer) -> None:
    """Stops a consumer within bounded time, whatever state Kafka is in."""
    try:
        async with asyncio.timeout(_STOP_S):
            await consumer.stop()
    except (KafkaError, TimeoutError) as error:
        log.debug("a consumer couldn't be stopped cleanly: %r", error)
