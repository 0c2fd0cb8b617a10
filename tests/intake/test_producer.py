"""The producer: what a failed send costs the others, and what is left of a producer that was dropped."""

import asyncio
import gc
import socket
import time
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from deploy.parts import Kafka
from pushsse import kafka
from pushsse.errors import KafkaUnavailable
from pushsse.kafka import BATCH_BYTES, Connection, start, stop
from pushsse.kafka.producer import Outgoing, Producer, RecordRefused, RecordTooLarge
from tests.waiting import eventually

from .kit import Kit

pytestmark = pytest.mark.anyio


class Held(AIOKafkaProducer):  # type: ignore[misc]
    """One of aiokafka's without a Kafka: the test settles what was sent, by its value."""

    def __init__(self) -> None:
        super().__init__(bootstrap_servers="127.0.0.1:1")
        self.sent: dict[bytes, asyncio.Future[None]] = {}

    async def start(self) -> None:
        """Nothing to connect to."""

    async def send(self, topic: str, value: bytes, **_: Any) -> asyncio.Future[None]:
        self.sent[value] = asyncio.get_running_loop().create_future()
        return self.sent[value]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldConnection(Connection):
    """Makes producers that the test settles."""

    made: list[Held] = field(default_factory=list)

    def producer(self, *, batch_bytes: int = BATCH_BYTES) -> Held:
        self.made.append(Held())
        return self.made[-1]


async def test_a_send_that_fails_late_leaves_the_producer_alone_that_others_use_by_then() -> None:
    connection = HeldConnection(bootstrap="nowhere")
    made = connection.made
    async with Producer(connection) as producer:
        early, late = [
            asyncio.create_task(producer.send("t", [Outgoing(None, value)])) for value in (b"early", b"late")
        ]
        await eventually(lambda: made and len(made[0].sent) == 2)
        made[0].sent[b"early"].set_exception(KafkaError("lost"))
        with pytest.raises(KafkaUnavailable):
            await early
        others = [asyncio.create_task(producer.send("t", [Outgoing(None, b"other")]))]
        await eventually(lambda: len(made) == 2 and made[1].sent)
        made[0].sent[b"late"].set_exception(KafkaError("lost"))
        with pytest.raises(KafkaUnavailable):
            await late
        others.append(asyncio.create_task(producer.send("t", [Outgoing(None, b"another")])))
        await eventually(lambda: len(made[1].sent) == 2)
        for sent in made[1].sent.values():
            sent.set_result(None)
        await asyncio.gather(*others)
    assert len(made) == 2


@pytest.mark.real
@pytest.mark.timeout(180)
async def test_nothing_of_a_producer_goes_on_once_it_was_dropped_in_front_of_a_silent_kafka(
    own_broker: Kafka,
) -> None:
    own_broker.create_topic("t")
    before = asyncio.all_tasks()
    async with Producer(Connection(bootstrap=own_broker.url)) as producer:
        await producer.send("t", [Outgoing(None, b"1")])
        own_broker.pause()
        began = time.monotonic()
        try:
            with pytest.raises(KafkaUnavailable):
                await producer.send("t", [Outgoing(None, b"2")])
        finally:
            own_broker.resume()
        assert time.monotonic() - began < 12
        assert asyncio.all_tasks() == before


@pytest.mark.real
@pytest.mark.timeout(180)
async def test_what_a_send_without_an_answer_leaves_is_never_sent(
    kit: Kit, caplog: pytest.LogCaptureFixture
) -> None:
    await kit.create(kit.topic)
    async with Producer(kit.connection, timeout_s=1.5) as producer:
        # From now on the producer knows the topic, and tries to send what it has for it.
        await producer.send(kit.topic, [Outgoing(None, b"0")])
        await kit.admin.delete_topics([kit.topic])
        lost = asyncio.create_task(producer.send(kit.topic, [Outgoing(None, b"1")]))
        # The topic comes back while the send that got no answer is being taken back.
        await eventually(lambda: producer._producer is None)
        await kit.create(kit.topic)
        with pytest.raises(KafkaUnavailable):
            await lost
        await producer.send(kit.topic, [Outgoing(None, b"1")])
    assert [record.value for record in await kit.read_all(kit.topic)] == [b"1"]
    gc.collect()
    assert "never retrieved" not in caplog.text


async def test_what_a_topic_refuses_is_told_by_its_place_and_the_others_are_taken(kit: Kit) -> None:
    await kit.create(kit.topic, config={"cleanup.policy": "compact", "max.message.bytes": "2000"})
    records = [
        Outgoing(b"a", b"small"),
        Outgoing(None, b"no key"),
        Outgoing(b"b", b"x" * 5000),
        Outgoing(b"c", b"small"),
    ]
    async with Producer(kit.connection) as producer:
        refused = await producer.send_each(kit.topic, records)
        assert await producer.send_each(kit.topic, records[:1]) == {}
    assert {at: type(reason) for at, reason in refused.items()} == {1: RecordRefused, 2: RecordTooLarge}
    assert {record.key for record in await kit.read_all(kit.topic)} == {b"a", b"c"}


async def test_a_topic_that_takes_less_at_once_gets_what_is_packed_in_smaller_batches(kit: Kit) -> None:
    await kit.create(kit.topic, config={"max.message.bytes": "20000"})
    records = [(b"ann", b"%d" % number + b"x" * 500) for number in range(300)]
    async with Producer(kit.connection, batch_bytes=128 * 1024) as producer:
        await producer.send_packed(kit.topic, records)
        await producer.send_packed(kit.topic, records[:1])
        with pytest.raises(RecordTooLarge):
            await producer.send_packed(kit.topic, [(b"ann", b"x" * 30_000)])
    there = [(record.key, record.value) for record in await kit.read_all(kit.topic)]
    assert there == records + records[:1]


@pytest.mark.parametrize("kind", ["consumer", "producer"])
async def test_a_client_whose_start_is_cancelled_leaves_no_connection(bootstrap: str, kind: str) -> None:
    connection = Connection(bootstrap=bootstrap)
    for number in range(40):
        client = connection.producer() if kind == "producer" else connection.consumer(None)
        starting = asyncio.create_task(start(client))
        await asyncio.sleep(number * 0.0003)
        starting.cancel()
        await asyncio.wait([starting])
        await stop(client)
    del client, starting
    # pytest reports a connection that the collector finds open.
    gc.collect()


@pytest.mark.parametrize("kind", ["consumer", "producer"])
@pytest.mark.parametrize("cancels", [1, 2])
async def test_a_start_that_is_cancelled_in_front_of_a_silent_kafka_leaves_nothing(
    kind: str, cancels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka, "_STOP_S", 0.5 if cancels == 1 else 60.0)
    failed: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failed.append(context))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        before = asyncio.all_tasks()
        connection = Connection(bootstrap=f"127.0.0.1:{silent.getsockname()[1]}")
        client = connection.producer() if kind == "producer" else connection.consumer(None)
        starting = asyncio.create_task(start(client))
        for _ in range(cancels):
            await asyncio.sleep(0.1)
            starting.cancel()
        await asyncio.wait([starting], timeout=10)
        assert starting.cancelled()
        await stop(client)
        # Well before the request that has no answer fails by itself.
        async with asyncio.timeout(2):
            await eventually(lambda: asyncio.all_tasks() == before)
    del client, starting
    gc.collect()
    assert not failed
