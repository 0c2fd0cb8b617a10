"""A stretch of a topic, read from a time on without a group: for who looks something up.

Called by `explain`. Commits nothing, and ends where the topic ended when it began.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from pushsse.errors import KafkaUnavailable
from pushsse.kafka import Connection, Record, stop

_AT_ONCE = 500


async def stretch(
    connection: Connection,
    topic: str,
    *,
    partition: Callable[[Sequence[int]], int],
    from_ms: int,
) -> AsyncIterator[Record]:
    """The records of one partition, which is chosen among those there are, from a time on (ms since 1970).

    Raises KafkaUnavailable. Give it a time limit: Kafka may not answer.
    """
    try:
        async with connection.admin() as admin:
            [described] = await admin.describe_topics([topic])
        there = sorted(each["partition"] for each in described["partitions"])
        if not there:
            raise KafkaUnavailable(f"the topic {topic} isn't there, or may not be read")
        async with _started(connection) as consumer:
            which = TopicPartition(topic, partition(there))
            consumer.assign([which])
            end = (await consumer.end_offsets([which]))[which]
            begin = (await consumer.offsets_for_times({which: max(0, from_ms)}))[which]
            if begin is None or begin.offset >= end:
                return
            consumer.seek(which, begin.offset)
            while await consumer.position(which) < end:
                found = await consumer.getmany(which, timeout_ms=1000, max_records=_AT_ONCE)
                for record in found.get(which, ()):
                    if record.offset >= end:
                        return
                    yield record
    except KafkaError as error:
        raise KafkaUnavailable(f"{topic} can't be read: {error}") from error


@asynccontextmanager
async def _started(connection: Connection) -> AsyncIterator[AIOKafkaConsumer]:
    consumer = connection.consumer(None)
    try:
        await consumer.start()
        yield consumer
    finally:
        await stop(consumer)
