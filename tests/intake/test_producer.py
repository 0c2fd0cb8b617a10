"""The producer: what a failed send costs the others."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from pushsse.errors import KafkaUnavailable
from pushsse.kafka import Connection
from pushsse.kafka.producer import Outgoing, Producer
from tests.waiting import eventually

pytestmark = pytest.mark.anyio


class Held(AIOKafkaProducer):  # type: ignore[misc]
    """One of aiokafka's without a Kafka: the test settles what was sent, by its value."""

    def __init__(self) -> None:
        super().__init__(bootstrap_servers="127.0.0.1:1")
        self.sent: dict[bytes, asyncio.Future[None]] = {}
        self.stopped = False

    async def start(self) -> None:
        """Nothing to connect to."""

    async def send(self, topic: str, value: bytes, **_: Any) -> asyncio.Future[None]:
        self.sent[value] = asyncio.get_running_loop().create_future()
        return self.sent[value]

    async def stop(self) -> None:
        self.stopped = True
        await super().stop()


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldConnection(Connection):
    """Makes producers that the test settles."""

    made: list[Held] = field(default_factory=list)

    def producer(self) -> Held:
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
        after = asyncio.create_task(producer.send("t", [Outgoing(None, b"after")]))
        await eventually(lambda: len(made) == 2 and made[1].sent)
        made[0].sent[b"late"].set_exception(KafkaError("lost"))
        with pytest.raises(KafkaUnavailable):
            await late
        assert [each.stopped for each in made] == [True, False]
        made[1].sent[b"after"].set_result(None)
        await after
