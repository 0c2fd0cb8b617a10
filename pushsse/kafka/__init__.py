"""aiokafka's clients, made with the settings that the guarantees need; and which topics are read.

`Connection` makes the clients for `consumer`, `partition`, `producer` and `pushsse doctor`. A `TopicReader`
reads what a topic holds without a group, so that nothing is committed and no member of one notices: for
`pushsse try`, `pushsse dead` and `explain`. `Topics` is made from the settings, by `intake` and for
the answerer over Kafka: `consumer` subscribes to what is there of them, and `partition` asks it where each
begins. A dead-letter topic is never one of them, whatever a pattern says: its reader would write what it
reads. Deliberate: `auto_offset_reset="none"`. aiokafka would move to another offset silently, and a topic
that was recreated would go unnoticed.
"""

import asyncio
import logging
import re
import ssl
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

# Also for those outside kafka/, who may not import aiokafka.
from aiokafka import TopicPartition as TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError

from pushsse.settings import DLQ_SUFFIX, Settings, is_topic_name

REQUEST_TIMEOUT_MS = 12_000
SESSION_TIMEOUT_MS = 6_000
PRODUCE_TIMEOUT_MS = 5_000
MAX_REQUEST_BYTES = 1024 * 1024
# aiokafka's own.
BATCH_BYTES = 16 * 1024
_STOP_S = 2.0
_ASK_S = 10.0
_START_S = 10.0
_READ_S = 10.0
_POLL_MS = 300
# Where offsets have no record (transactions, compaction), the last ones are farther back than their number.
_FARTHER = (1, 10, 100)

logger = logging.getLogger(__name__)


class Record(Protocol):
    """A Kafka record, as aiokafka hands it out; the timestamp is in milliseconds."""

    @property
    def topic(self) -> str: ...
    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Sequence[tuple[str, bytes]]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """Where Kafka is and how to talk to it."""

    bootstrap: str
    security_protocol: str = "PLAINTEXT"
    sasl_mechanism: str = "PLAIN"
    sasl_username: str | None = None
    sasl_password: str | None = None
    ssl_cafile: str | None = None
    session_timeout_ms: int = SESSION_TIMEOUT_MS

    def consumer(self, group: str | None) -> AIOKafkaConsumer:
        """A consumer that isn't started and has no topic; it takes bytes and commits nothing by itself."""
        return AIOKafkaConsumer(
            bootstrap_servers=self.bootstrap,
            client_id="pushsse",
            group_id=group,
            # Guarantee 1: where reading starts is decided, and offsets are committed, by `partition`,
            # when the records are applied.
            auto_offset_reset="none",
            enable_auto_commit=False,
            # An event of a transaction that was aborted was never sent.
            isolation_level="read_committed",
            fetch_max_wait_ms=50,
            fetch_max_bytes=4 * 1024 * 1024,
            max_partition_fetch_bytes=1024 * 1024,
            # Longer than the session timeout: the answer to joining a group may take as long as that.
            request_timeout_ms=max(REQUEST_TIMEOUT_MS, self.session_timeout_ms + 2_000),
            # A topic that is made or deleted, or gets partitions, is noticed within this time.
            metadata_max_age_ms=5_000,
            session_timeout_ms=self.session_timeout_ms,
            heartbeat_interval_ms=self.session_timeout_ms // 4,
            security_protocol=self.security_protocol,
            ssl_context=self._ssl_context(),
            sasl_mechanism=self.sasl_mechanism,
            sasl_plain_username=self.sasl_username,
            sasl_plain_password=self.sasl_password,
        )

    def producer(self, *, batch_bytes: int = BATCH_BYTES) -> AIOKafkaProducer:
        """A producer that isn't started; what it acknowledged is on all in-sync replicas, once, in order.

        `batch_bytes`: how much may go together to one partition.
        """
        return AIOKafkaProducer(
            bootstrap_servers=self.bootstrap,
            client_id="pushsse",
            acks="all",
            # The broker drops what a retry brings a second time, so order and number stay right.
            enable_idempotence=True,
            request_timeout_ms=PRODUCE_TIMEOUT_MS,
            max_request_size=MAX_REQUEST_BYTES,
            max_batch_size=batch_bytes,
            security_protocol=self.security_protocol,
            ssl_context=self._ssl_context(),
            sasl_mechanism=self.sasl_mechanism,
            sasl_plain_username=self.sasl_username,
            sasl_plain_password=self.sasl_password,
        )

    @asynccontextmanager
    async def admin(self) -> AsyncIterator[AIOKafkaAdminClient]:
        """A client for questions about groups and topics. Raises KafkaError."""
        client = AIOKafkaAdminClient(
            bootstrap_servers=self.bootstrap,
            client_id="pushsse",
            request_timeout_ms=PRODUCE_TIMEOUT_MS,
            security_protocol=self.security_protocol,
            ssl_context=self._ssl_context(),
            sasl_mechanism=self.sasl_mechanism,
            sasl_plain_username=self.sasl_username,
            sasl_plain_password=self.sasl_password,
        )
        try:
            await start(client)
            yield client
        finally:
            await client.close()

    def _ssl_context(self) -> ssl.SSLContext | None:
        if "SSL" not in self.security_protocol.split("_"):
            return None
        return ssl.create_default_context(cafile=self.ssl_cafile)


def connection(settings: Settings) -> Connection:
    """The connection that the settings ask for."""
    return Connection(
        bootstrap=settings.kafka_bootstrap,
        security_protocol=settings.kafka_security_protocol,
        sasl_mechanism=settings.kafka_sasl_mechanism,
        sasl_username=settings.kafka_sasl_username or None,
        sasl_password=settings.kafka_sasl_password or None,
        ssl_cafile=settings.kafka_ssl_cafile or None,
        session_timeout_ms=round(settings.kafka_session_timeout_s * 1000),
    )


async def start(client: AIOKafkaConsumer | AIOKafkaProducer | AIOKafkaAdminClient) -> None:
    """Starts a client. Raises KafkaError.

    aiokafka leaves its first connection open if it is cancelled while it asks a broker there. So a start that
    is cancelled gets 2 s to come to its end, in a task of its own; `stop` then closes what it opened.
    """
    starting = asyncio.ensure_future(client.start())
    try:
        await asyncio.shield(starting)
    except asyncio.CancelledError:
        await _ended(starting)
        raise


async def stop(client: AIOKafkaConsumer | AIOKafkaProducer) -> None:
    """Stops a consumer within 4 s, a producer within 6 s, whatever state Kafka is in.

    It runs in tasks of its own, because aiokafka cancels its own tasks and lets the CancelledError out of
    `stop`. Here it would pass for ours, and a task group takes a cancelled service for one that ended well.
    aiokafka then doesn't close a consumer's connections, so they are closed here, mostly twice.
    """
    if isinstance(client, AIOKafkaConsumer):
        await _in_turn(client.stop, client._client.close)
        return
    # The steps of aiokafka's own `stop`, each with its limit. The first waits until Kafka has what is
    # pending. Where it never does, `stop` gets no further, and the task that sends tries for ever.
    client._closed = True
    await _in_turn(client._message_accumulator.close, client._sender.close, client.client.close)


async def give_up(producer: AIOKafkaProducer) -> None:
    """Stops a producer one of whose sends got no answer in time, within 4 s.

    What is on the way to Kafka is waited for. What waits behind it fails, and is never sent: whoever sent it
    tries again, and it would be there twice.
    """
    producer._closed = True
    await _in_turn(producer._sender.close)
    accumulator = producer._message_accumulator
    queued = [batch for batches in accumulator._batches.values() for batch in batches]
    # Of those that were sent before, aiokafka looks for each here when it fails.
    accumulator._pending_batches.update(queued)
    accumulator.fail_all(KafkaError("the producer was given up"))
    for batch in queued:
        # Nobody else looks at it, and asyncio reports an exception that nobody has looked at.
        batch._drain_waiter.exception()
    await _in_turn(producer.client.close)


async def _in_turn(*steps: Callable[[], Coroutine[None, None, None]]) -> None:
    for step in steps:
        await _ended(asyncio.ensure_future(step()))


async def _ended(task: "asyncio.Future[None]") -> None:
    """Waits 2 s for the end of something that a client does, and then cancels it.

    At once, where whoever waits is cancelled meanwhile: nobody would be there for its end.
    """
    task.add_done_callback(_say_failed)
    try:
        await asyncio.wait([task], timeout=_STOP_S)
    finally:
        task.cancel()
    # It ends at once: aiokafka keeps no cancellation to itself.
    await asyncio.wait([task], timeout=_STOP_S)


def _say_failed(task: "asyncio.Future[None]") -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.debug("a client of Kafka didn't start or stop cleanly: %r", error)


def cancellation_is_ours() -> bool:
    """Whether the CancelledError being handled was asked for; if not, it leaked out of aiokafka."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


async def existing_topics(settings: Settings) -> dict[str, int]:
    """The topics that may be read, and how many partitions each has. Raises OSError."""
    try:
        async with asyncio.timeout(_ASK_S), connection(settings).admin() as admin:
            found = await admin.describe_topics()
            return {each["topic"]: len(each["partitions"]) for each in found if not each["is_internal"]}
    except KafkaError as error:
        raise OSError(f"{error}") from error
    except TimeoutError as error:
        raise OSError(f"no answer within {_ASK_S:.0f} s") from error


async def configurations(settings: Settings, topics: Iterable[str]) -> dict[str, dict[str, str]]:
    """What topics are set to, by Kafka's names, in one request; without those that may not be asked about.

    Raises OSError.
    """
    try:
        async with asyncio.timeout(_ASK_S), connection(settings).admin() as admin:
            answers = await admin.describe_configs(
                [ConfigResource(ConfigResourceType.TOPIC, topic) for topic in topics]
            )
    except KafkaError as error:
        raise OSError(f"{error}") from error
    except TimeoutError as error:
        raise OSError(f"no answer within {_ASK_S:.0f} s") from error
    return {
        topic: {entry[0]: entry[1] or "" for entry in entries}
        for answer in answers
        for error, _, _, topic, entries in answer.resources
        if not error
    }


class Range(NamedTuple):
    """The offsets that a partition holds: `first` is the oldest, `end` the next to be written."""

    first: int
    end: int


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


async def ranges(consumer: AIOKafkaConsumer, ats: Sequence[TopicPartition]) -> Mapping[TopicPartition, Range]:
    """What partitions hold just now. Raises KafkaError."""
    if not ats:
        return {}
    first, end = await asyncio.gather(consumer.beginning_offsets(ats), consumer.end_offsets(ats))
    return {at: Range(first[at], end[at]) for at in ats}


@asynccontextmanager
async def reader(connection: Connection) -> AsyncIterator[TopicReader]:
    """A reader that is connected. Raises OSError."""
    async with AsyncExitStack() as stack:
        consumer = connection.consumer(None)
        stack.push_async_callback(stop, consumer)
        with _as_os_error():
            async with asyncio.timeout(_START_S):
                await start(consumer)
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


@dataclass(frozen=True, slots=True)
class TopicGroup:
    """Topics that are read alike, by name or by a pattern (a regular expression for the whole name).

    `start` is "earliest", "latest" or an age such as 10m: where reading begins without a committed offset.
    """

    wanted: Sequence[str]
    start: str
    names: frozenset[str] = field(init=False)
    patterns: tuple[re.Pattern[str], ...] = field(init=False)

    def __post_init__(self) -> None:
        names = frozenset(each for each in self.wanted if is_topic_name(each))
        object.__setattr__(self, "names", names)
        patterns = tuple(re.compile(each) for each in self.wanted if each not in names)
        object.__setattr__(self, "patterns", patterns)

    def matches(self, topic: str) -> bool:
        """Whether the topic is one of these."""
        return topic in self.names or any(pattern.fullmatch(topic) for pattern in self.patterns)


@dataclass(frozen=True, slots=True)
class Topics:
    """All topics of a consumer: a topic belongs to the first of the groups that matches it.

    `dlq_topic` takes all dead letters; "" is for one topic for each, TOPIC.dlq. `never` are topics that no
    pattern matches.
    """

    groups: Sequence[TopicGroup]
    dlq_topic: str = ""
    never: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """As logs name them."""
        return ", ".join(each for group in self.groups for each in group.wanted)

    def group_of(self, topic: str) -> int | None:
        """The place of a topic's group; None for a topic that isn't read."""
        for place, group in enumerate(self.groups):
            if topic in group.names:
                return place
        if topic.endswith(DLQ_SUFFIX) or topic == self.dlq_topic or topic in self.never:
            return None
        return next((place for place, group in enumerate(self.groups) if group.matches(topic)), None)

    def among(self, there: Iterable[str]) -> frozenset[str]:
        """Which of the topics that are there are read."""
        return frozenset(topic for topic in there if self.group_of(topic) is not None)

    def missing(self, there: Iterable[str]) -> list[str]:
        """The topics and patterns that stand for nothing of what is there."""
        found = self.among(there)
        return [
            each
            for group in self.groups
            for each in group.wanted
            if each not in found and not any(re.fullmatch(each, topic) for topic in found)
        ]

    def may_grow(self, there: Collection[str]) -> bool:
        """Whether there can be more topics to read than these."""
        return any(group.patterns or not group.names.issubset(there) for group in self.groups)

    def start_of(self, topic: str) -> str:
        """Where a topic that was never read begins."""
        place = self.group_of(topic)
        return self.groups[place].start if place is not None else "earliest"

    def dead_letters_of(self, topic: str) -> str:
        """The topic for those records of a topic that can't be used."""
        return self.dlq_topic or f"{topic}{DLQ_SUFFIX}"


def one_topic(topic: str, *, start: str, dlq_topic: str) -> Topics:
    """One topic alone."""
    return Topics((TopicGroup((topic,), start),), dlq_topic)
