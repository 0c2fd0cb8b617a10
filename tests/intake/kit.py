"""What the tests over a real Kafka share: topics, producing, a recording dispatch, a running intake."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import GroupCoordinatorNotAvailableError, KafkaError

from pushsse.backplane import Append, Draft, Receipt
from pushsse.backplane.memory import MemoryBackplane
from pushsse.backplane.memory.logs import Snapshot
from pushsse.errors import BackplaneUnavailable, Unavailable
from pushsse.intake import Decode, Drafter, EventHandler, Made, PushsseFormat
from pushsse.kafka import Connection, Topics, one_topic
from pushsse.kafka.consumer import Consumer, ConsumerPace, Handler
from pushsse.kafka.partition import Fences
from pushsse.metrics import Metrics
from pushsse.node import Interruptible
from tests.waiting import eventually


def drafter(*, refused: str = "none", max_age_s: int = 86_400) -> Drafter:
    """The rule that makes events drafts, without a database."""
    return Drafter(types=AllTypesBut(refused), max_age_s=max_age_s)


def value(number: int, **more: object) -> bytes:
    return json.dumps({"type": "alarm", "message": {"n": number}, "to": "all"} | more).encode()


PACE = ConsumerPace()


class Recorder:
    """A dispatch that publishes to one log and remembers; `failures` of its calls fail first."""

    def __init__(self, backplane: MemoryBackplane) -> None:
        self.backplane = backplane
        self.calls: list[list[Draft]] = []
        self.receipts: list[Receipt] = []
        self.failures = 0
        self.open = asyncio.Event()
        self.open.set()

    async def dispatch(self, drafts: Sequence[Draft]) -> Receipt:
        self.calls.append(list(drafts))
        await self.open.wait()
        if self.failures:
            self.failures -= 1
            raise Unavailable("not now")
        receipt = await self.backplane.publish([Append("all", tuple(drafts))])
        self.receipts.append(receipt)
        return receipt

    @property
    def appended(self) -> int:
        return sum(receipt.appended for receipt in self.receipts)

    @property
    def fenced(self) -> int:
        return sum(receipt.fenced for receipt in self.receipts)

    def offsets(self, partition: int = 0) -> list[int]:
        """The offsets that were dispatched, in order of dispatch."""
        sources = [draft.source for call in self.calls for draft in call]
        return [source.offset for source in sources if source and source.partition == partition]

    async def bodies(self) -> list[bytes]:
        """What is in the log."""
        page = await self.backplane.read({"all": 0}, limit=100_000)
        return [entry.publication.body for entry in page.entries]

    async def numbers(self) -> list[int]:
        """The events in the log, by their number."""
        return [json.loads(body.removeprefix(b"data: "))["message"]["n"] for body in await self.bodies()]


class Backplane(MemoryBackplane):
    """A backplane whose identity and claims can get lost, or be away, as one can that is kept in Redis."""

    known_by = ""
    away = False

    async def identity(self, suggested: str) -> str:
        if self.away:
            raise BackplaneUnavailable("not now")
        self.known_by = self.known_by or suggested
        return self.known_by

    def lose_claims(self) -> None:
        """As when somebody empties Redis: claims, fences and starts are gone."""
        self._partitions.restore(Snapshot())


@dataclass(frozen=True)
class AllTypesBut:
    """A catalogue that refuses one type."""

    refused: str

    def admits(self, name: str) -> bool:
        return name != self.refused


@dataclass
class Kit:
    bootstrap: str
    admin: AIOKafkaAdminClient
    topic: str = field(default_factory=lambda: f"events-{uuid4().hex[:8]}")
    group: str = field(default_factory=lambda: f"group-{uuid4().hex[:8]}")
    metrics: Metrics = field(default_factory=Metrics)
    backplane: Backplane = field(init=False)
    recorder: Recorder = field(init=False)

    def __post_init__(self) -> None:
        self.backplane = Backplane(shards=64, keep_s=3600, keep_bytes=64 * 1024**2, metrics=self.metrics)
        self.recorder = Recorder(self.backplane)

    @property
    def dlq(self) -> str:
        return f"{self.topic}.dlq"

    @property
    def connection(self) -> Connection:
        return Connection(bootstrap=self.bootstrap, session_timeout_ms=6000)

    async def configure(self, topic: str, config: dict[str, str]) -> None:
        """Changes the settings of a topic."""
        await self.admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, config)])

    async def create(self, *topics: str, partitions: int = 1, config: dict[str, str] | None = None) -> None:
        end = time.monotonic() + 20
        while True:
            answer = await self.admin.create_topics(
                [NewTopic(name, partitions, 1, topic_configs=config) for name in topics]
            )
            if all(error[1] == 0 for error in answer.topic_errors):
                break
            # A topic of that name is still being deleted.
            assert time.monotonic() < end, answer.topic_errors
            await asyncio.sleep(0.05)
        for name in topics:
            await self._until_there(name, partitions)

    async def widen(self, partitions: int) -> None:
        """More partitions for the topic."""
        await self.admin.create_partitions({self.topic: NewPartitions(partitions)})
        await self._until_there(self.topic, partitions)

    async def _until_there(self, topic: str, partitions: int) -> None:
        end = time.monotonic() + 20
        while True:
            [found] = await self.admin.describe_topics([topic])
            if len(found["partitions"]) >= partitions:
                return
            assert time.monotonic() < end, found
            await asyncio.sleep(0.02)

    async def delete(self) -> None:
        await self.admin.delete_topics([self.topic])

    async def produce(self, values: Sequence[bytes | None], **more: Any) -> None:
        """One after another into a partition (0 if none is given)."""
        producer = AIOKafkaProducer(bootstrap_servers=self.bootstrap, linger_ms=2)
        await producer.start()
        try:
            topic = more.pop("topic", self.topic)
            where = {"partition": 0} | more
            await asyncio.gather(*[await producer.send(topic, each, **where) for each in values])
        finally:
            await producer.stop()

    @asynccontextmanager
    async def consumer(self) -> AsyncIterator[AIOKafkaConsumer]:
        consumer = AIOKafkaConsumer(bootstrap_servers=self.bootstrap, enable_auto_commit=False)
        await consumer.start()
        try:
            yield consumer
        finally:
            await consumer.stop()

    async def read_all(self, topic: str, partition: int = 0) -> list[ConsumerRecord[bytes, bytes]]:
        """Everything that a partition holds."""
        at = TopicPartition(topic, partition)
        found: list[ConsumerRecord[bytes, bytes]] = []
        async with self.consumer() as consumer:
            consumer.assign([at])
            await consumer.seek_to_beginning(at)
            end = (await consumer.end_offsets([at]))[at]
            while await consumer.position(at) < end:
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    found += records
        return found

    async def committed(self, partition: int = 0) -> int:
        """What the group has committed, -1 for nothing."""
        try:
            offsets = await self.admin.list_consumer_group_offsets(self.group)
        except GroupCoordinatorNotAvailableError:
            # The first group of a new broker has to wait for the topic that offsets are kept in.
            return -1
        found = offsets.get(TopicPartition(self.topic, partition))
        return -1 if found is None else int(found.offset)

    async def until_committed(self, offset: int, partition: int = 0) -> None:
        async def there() -> bool:
            return await self.committed(partition) == offset

        await eventually(there, what=f"commit of offset {offset}")

    async def rewind(self, offset: int, partition: int = 0) -> None:
        """Sets the group's offset, while it has no member."""
        consumer = AIOKafkaConsumer(bootstrap_servers=self.bootstrap, group_id=self.group)
        consumer.assign([TopicPartition(self.topic, partition)])
        await consumer.start()
        try:
            await consumer.commit({TopicPartition(self.topic, partition): offset})
        except KafkaError as error:
            raise AssertionError("the group still has members") from error
        finally:
            await consumer.stop()

    def intake(
        self,
        recorder: Recorder | None = None,
        *,
        start: str = "earliest",
        topics: Topics | None = None,
        decode: Decode | None = None,
        skip_refused: bool = True,
        connection: Connection | None = None,
        fences: Fences | None = None,
        pace: ConsumerPace = PACE,
    ) -> Interruptible:
        consumer = Consumer(
            connection or self.connection,
            topics=topics or one_topic(self.topic, start=start, dlq_topic=self.dlq),
            group=self.group,
            fences=fences or self.backplane,
            metrics=self.metrics,
            skip_refused=skip_refused,
            pace=pace,
        )
        own = PushsseFormat(metrics=self.metrics, drafter=drafter(refused="no"))
        handler: Handler[Made] = EventHandler(decode or own, recorder or self.recorder)
        return Interruptible(lambda: consumer.run(handler))

    @asynccontextmanager
    async def running(self, recorder: Recorder | None = None, **options: Any) -> AsyncIterator[Interruptible]:
        """An intake that runs, and is cancelled at the end; that it died before is an error."""
        intake = self.intake(recorder, **options)
        task = asyncio.create_task(intake.run())
        try:
            yield intake
        finally:
            ended = task.done()
            task.cancel()
            await asyncio.wait([task])
            assert not ended, f"the intake ended by itself: {task}"
            assert task.cancelled(), task
