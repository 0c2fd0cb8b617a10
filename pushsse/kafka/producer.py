"""A Kafka producer that starts when it is first needed, and again after a failure.

Called by the dead letters, `KafkaProducerIntake`, the answerer over Kafka and `Outcomes`. Each has one of its
own, so that a topic that fails stops only one of them.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import NamedTuple, Self, TypeVar
from zlib import crc32

from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    CorruptRecordException,
    KafkaError,
    MessageSizeTooLargeError,
    PolicyViolationError,
    RecordListTooLargeError,
    UnknownError,
)
from aiokafka.producer.message_accumulator import BatchBuilder

from pushsse.errors import KafkaUnavailable
from pushsse.kafka import BATCH_BYTES, Connection, cancellation_is_ours, give_up, start, stop

_PACKED_AT_ONCE = 500
# A key, and a value.
Packed = tuple[bytes | None, bytes]


class Outgoing(NamedTuple):
    """A record on its way to Kafka; without a partition its key decides."""

    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()
    partition: int | None = None


_Sent = TypeVar("_Sent", Outgoing, Packed)


class RecordRefused(KafkaUnavailable):
    """The topic doesn't take one of these records, whenever it is sent: another try needs another record."""


class RecordTooLarge(RecordRefused):
    """The topic doesn't take a record of this size."""


# aiokafka has no name for INVALID_RECORD (87: a compacted topic, and no key), which it calls unknown.
_REFUSALS = (CorruptRecordException, PolicyViolationError, UnknownError)


class Producer:
    """Sends records and waits until all in-sync replicas have them. Leave it by `async with`."""

    def __init__(
        self, connection: Connection, *, timeout_s: float = 5.0, batch_bytes: int = BATCH_BYTES
    ) -> None:
        """`batch_bytes`: how much goes to one partition at once; a topic that takes less gets BATCH_BYTES."""
        self._connection = connection
        self._timeout_s = timeout_s
        self._batch_bytes = batch_bytes
        self._starting = asyncio.Lock()
        self._producer: AIOKafkaProducer | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Stops it, within 6 s whatever state Kafka is in."""
        await self._drop(self._producer)

    async def send(self, topic: str, records: Sequence[Outgoing]) -> None:
        """Sends the records in order; within a key they stay in order.

        Returns when all are acknowledged. Raises KafkaUnavailable, RecordRefused, RecordTooLarge; any of the
        records may have been taken then. All of it takes `timeout_s`, and 6 s more where a producer that
        failed doesn't stop.
        """
        await self._sent(topic, records, self._send)

    async def send_packed(self, topic: str, records: Sequence[Packed]) -> None:
        """As `send`, at a tenth of its cost, for thousands of records of which one isn't missed.

        Within a key they stay in order, and those of a key are in one partition, which isn't the one that
        Kafka's own clients would choose. A record that is too large for the topic raises RecordTooLarge.
        """
        try:
            await self._sent(topic, records, self._send_packed)
        except RecordTooLarge:
            if self._batch_bytes <= BATCH_BYTES:
                raise
            # What is too large may be what they are together.
            self._batch_bytes = BATCH_BYTES
            await self._sent(topic, records, self._send_packed)

    async def send_each(self, topic: str, records: Sequence[Outgoing]) -> Mapping[int, RecordRefused]:
        """As `send`, of as many as the topic takes: returns the others, by their place, and why each.

        Raises KafkaUnavailable. Where one is refused, the others may come a second time.
        """
        try:
            await self.send(topic, records)
        except RecordRefused:
            # Kafka doesn't say which one it was; perhaps one of another call's, sent in the same batch.
            pass
        else:
            return {}
        refused: dict[int, RecordRefused] = {}
        for at, record in enumerate(records):
            try:
                await self.send(topic, [record])
            except RecordRefused as error:
                refused[at] = error
        return refused

    async def _sent(
        self,
        topic: str,
        records: Sequence[_Sent],
        send: Callable[[AIOKafkaProducer, str, Sequence[_Sent]], Awaitable[None]],
    ) -> None:
        producer: AIOKafkaProducer | None = None
        try:
            async with asyncio.timeout(self._timeout_s):
                producer = await self._ready()
                await send(producer, topic, records)
        except (MessageSizeTooLargeError, RecordListTooLargeError):
            await self._drop(producer)
            raise RecordTooLarge(f"{topic} takes no record of this size") from None
        except _REFUSALS as error:
            await self._drop(producer)
            raise RecordRefused(f"{topic} refuses a record: {error}") from error
        except (KafkaError, TimeoutError) as error:
            why = str(error) or f"no answer within {self._timeout_s:g} s"
            if isinstance(error, TimeoutError) and producer is not None and _is_missing(producer, topic):
                why = "it isn't there, or may not be written: make it"
            # An idempotent producer that has lost a record can't go on, since its sequence has a hole. The
            # next try gets a new one.
            await self._drop(producer, give_up)
            raise KafkaUnavailable(f"{topic} can't be written: {why}") from error
        except asyncio.CancelledError:
            if cancellation_is_ours():
                raise
            # Another send failed and stopped the producer, with the records of this one in it.
            raise KafkaUnavailable(f"{topic} can't be written: the producer was stopped") from None

    async def _send_packed(self, producer: AIOKafkaProducer, topic: str, records: Sequence[Packed]) -> None:
        partitions = sorted(await producer.partitions_for(topic))
        count = len(partitions)
        builders: dict[int, BatchBuilder] = {}
        pending: list[asyncio.Future[object]] = []
        try:
            for number, (key, value) in enumerate(records):
                if not number % _PACKED_AT_ONCE:
                    await asyncio.sleep(0)
                if key is not None:
                    # As `partition_of` has it, without a call for each.
                    partition = partitions[crc32(key) % count]
                else:
                    partition = partitions[number // _PACKED_AT_ONCE % count]
                builder = builders.get(partition)
                if builder is None:
                    builder = builders[partition] = producer.create_batch()
                if builder.append(timestamp=None, key=key, value=value) is None:
                    pending.append(await producer.send_batch(builder, topic, partition=partition))
                    builder = builders[partition] = producer.create_batch()
                    builder.append(timestamp=None, key=key, value=value)
            for partition, builder in builders.items():
                pending.append(await producer.send_batch(builder, topic, partition=partition))
            await _taken(pending)
        finally:
            _leave(pending)

    async def _send(self, producer: AIOKafkaProducer, topic: str, records: Sequence[Outgoing]) -> None:
        pending: list[asyncio.Future[object]] = []
        try:
            for key, value, headers, partition in records:
                pending.append(
                    await producer.send(topic, value, key=key, headers=list(headers), partition=partition)
                )
            await _taken(pending)
        finally:
            _leave(pending)

    async def _ready(self) -> AIOKafkaProducer:
        async with self._starting:
            if self._producer is None:
                producer = self._connection.producer(batch_bytes=self._batch_bytes)
                try:
                    await start(producer)
                except BaseException:
                    await stop(producer)
                    raise
                self._producer = producer
            return self._producer

    async def _drop(
        self,
        producer: AIOKafkaProducer | None,
        how: Callable[[AIOKafkaProducer], Awaitable[None]] = stop,
    ) -> None:
        # Another send may have dropped it before: the one that is there now is as good as new.
        if producer is not None and producer is self._producer:
            self._producer = None
            await how(producer)


def _is_missing(producer: AIOKafkaProducer, topic: str) -> bool:
    """Whether brokers have answered, and none has the topic."""
    cluster = producer.client.cluster
    return bool(cluster.brokers()) and not cluster.partitions_for_topic(topic)


async def _taken(pending: Sequence[asyncio.Future[object]]) -> None:
    """Waits until Kafka has what these are about. Raises what the first that fails was refused with."""
    # Not `gather`: it would cancel them. aiokafka's own future behind one that was cancelled still fails,
    # and asyncio reports an exception that nobody has looked at.
    done = pending and (await asyncio.wait(pending, return_when=asyncio.FIRST_EXCEPTION))[0]
    for each in done:
        each.result()


def _leave(pending: Sequence[asyncio.Future[object]]) -> None:
    """Waits for none of these any longer."""
    for each in pending:
        each.add_done_callback(_look_at)


def _look_at(done: asyncio.Future[object]) -> None:
    if not done.cancelled():
        done.exception()


def partition_of(key: bytes, partitions: Sequence[int]) -> int:
    """Where `send_packed` puts a key; the partitions are in order."""
    return partitions[crc32(key) % len(partitions)]
