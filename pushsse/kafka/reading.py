"""Reads what a topic holds, without a group: nothing is committed, and no member of one notices.

Called by `pushsse try` (the last records of a topic), by `pushsse dead` (a topic from some offset on) and by
`explain` (a partition from some time on).
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from pushsse.kafka import Connection, Record, stop
from pushsse.kafka.fences import Range, ranges

_START_S = 10.0
_READ_S = 10.0
_POLL_MS = 300
# Where offsets have no record (transactions, compaction), the last ones are farther back than their number.
_FARTHER = (1, 10, 100)


@dataclass(frozen=True, slots=True)
class TopicReader:
    """A consumer without a group. What it does raises OSError where Kafka can't be asked."""

    consumer: AIOKafkaConsumer
    admin: AIOKafkaAdminClient

    async def topics(self) -> Sequence[str]:
        """The topics that may be read."""
        with _as_os_error():
            return sorted(await self.consumer.topics())

    async def ranges(self, topic: str) -> Mapping[int, Range]:
        """What each partition of a topic holds just now."""
        with _as_os_error():
            # The consumer knows the partitions of what it reads alone.
            [described] = await self.admin.describe_topics([topic])
            ats = [TopicPartition(topic, each["partition"]) for each in described["partitions"]]
            found = await ranges(self.consumer, ats)
        return {at.partition: found[at] for at in sorted(found)}

    async def last(self, topic: str, count: int) -> list[Record]:
        """The last records of a topic, of all its partitions together, by their time."""
        every = await self.ranges(topic)
        found: list[Record] = []
        for partition, available in every.items():
            for farther in _FARTHER:
                start = max(available.first, available.end - count * farther)
                records = [record async for record in self.forward(topic, partition, start, available.end)]
                if len(records) >= count or start == available.first:
                    break
            found += records[-count:]
        found.sort(key=lambda record: (record.timestamp, record.partition, record.offset))
        return found[-count:]

    async def since(self, topic: str, partition: int, at_ms: int) -> int | None:
        """The first offset of a partition with a record from a time on (ms since 1970); None without any."""
        at = TopicPartition(topic, partition)
        with _as_os_error():
            self.consumer.assign([at])
            found = (await self.consumer.offsets_for_times({at: max(0, at_ms)}))[at]
        return None if found is None else int(found.offset)

    async def forward(self, topic: str, partition: int, start: int, end: int) -> AsyncIterator[Record]:
        """A partition's records from `start` up to, and without, `end`."""
        at = TopicPartition(topic, partition)
        with _as_os_error():
            self.consumer.assign([at])
            self.consumer.seek(at, start)
        until = time.monotonic() + _READ_S
        while start < end:
            with _as_os_error():
                polled: Mapping[TopicPartition, Sequence[Record]] = await self.consumer.getmany(
                    at, timeout_ms=_POLL_MS, max_records=500
                )
                start = await self.consumer.position(at)
            for record in polled.get(at, ()):
                if record.offset < end:
                    yield record
            if polled:
                until = time.monotonic() + _READ_S
            elif time.monotonic() > until:
                raise OSError(f"{topic}-{partition} wasn't answered for {_READ_S:.0f} s")


@asynccontextmanager
async def reader(connection: Connection) -> AsyncIterator[TopicReader]:
    """A reader that is connected. Raises OSError."""
    async with AsyncExitStack() as stack:
        consumer = connection.consumer(None)
        stack.push_async_callback(stop, consumer)
        with _as_os_error():
            async with asyncio.timeout(_START_S):
                await consumer.start()
                admin = await stack.enter_async_context(connection.admin())
        yield TopicReader(consumer, admin)


class _as_os_error:
    """What aiokafka raises, as OSError."""

    def __enter__(self) -> None:
        """Nothing."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, KafkaError):
            raise OSError(str(error) or type(error).__name__) from error
        if isinstance(error, TimeoutError):
            raise OSError(f"no answer within {_START_S:.0f} s") from error
