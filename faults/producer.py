"""Produces to Kafka what the ledger knows of: the steady load, and what a fault wants besides."""

import asyncio
import json
import random
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from aiokafka import AIOKafkaProducer

from faults.ledger import Ledger
from faults.records import PARTITIONS, Sent

TYPES = ("alarm", "chat", "news", "offer", "order")
# Less than a clock may be off, more than an outage lasts.
TTL_S = 240
_STEP_S = 0.02


class Producer:
    """One idempotent producer: an event that Kafka acknowledged is there once, in the order of sending."""

    def __init__(self, bootstrap: str, topic: str, people: Sequence[str]) -> None:
        self.ledger = Ledger("")
        self.people = people
        self.topic = topic
        self._bootstrap = bootstrap
        self._locks = [asyncio.Lock() for _ in range(PARTITIONS)]
        self._pending: set[asyncio.Future[object]] = set()
        self._group = asyncio.TaskGroup()
        self._load: asyncio.Task[None] | None = None
        self._kafka: AIOKafkaProducer | None = None

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        await self.renew()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.pause()
        if self._kafka is not None:
            await self._kafka.stop()
        await self._group.__aexit__(kind, error, trace)

    async def renew(self) -> None:
        """A new connection, for a topic that was recreated."""
        if self._kafka is not None:
            await self._kafka.stop()
        self._kafka = AIOKafkaProducer(
            bootstrap_servers=self._bootstrap,
            acks="all",
            enable_idempotence=True,
            linger_ms=5,
            # What waits while the broker is away must fit, and mustn't be given up.
            max_batch_size=1024 * 1024,
            request_timeout_ms=90_000,
            metadata_max_age_ms=5_000,
            retry_backoff_ms=250,
        )
        await self._kafka.start()

    def load(self, per_second: float = 200, *, broadcasts: float = 0.05) -> None:
        """Begins the steady load."""
        assert self._load is None
        self._load = self._group.create_task(self._run(per_second, broadcasts))

    async def pause(self) -> None:
        """Ends the load; returns when Kafka has answered for everything that was sent."""
        if self._load is not None:
            self._load.cancel()
            await asyncio.wait([self._load])
            self._load = None
        if self._pending:
            await asyncio.wait(self._pending, timeout=90)

    async def send(
        self, users: Sequence[str] | None, type_: str, *, partition: int | None = None, pad: int = 0
    ) -> Sent:
        """Sends one event, and enters it; doesn't wait for Kafka."""
        assert self._kafka is not None
        if partition is None:
            partition = random.randrange(PARTITIONS)
        async with self._locks[partition]:
            sent = self.ledger.enter(partition, type_, users, time.monotonic())
            future = await self._kafka.send(
                self.topic, encode(self.ledger.tag, sent, pad=pad), partition=partition
            )
        self._pending.add(future)
        future.add_done_callback(lambda done: self._answered(sent, done))
        return sent

    async def raw(self, value: bytes, *, partition: int) -> int:
        """Sends bytes that the ledger doesn't know of, and waits for Kafka; their offset."""
        assert self._kafka is not None
        return int((await self._kafka.send_and_wait(self.topic, value, partition=partition)).offset)

    def _answered(self, sent: Sent, done: "asyncio.Future[object]") -> None:
        self._pending.discard(done)
        if not done.cancelled() and done.exception() is None:
            sent.acked = time.monotonic()

    async def _run(self, per_second: float, broadcasts: float) -> None:
        begun, count = time.monotonic(), 0
        while True:
            due = int((time.monotonic() - begun) * per_second)
            while count < due:
                count += 1
                users = None if random.random() < broadcasts else self._some()
                await self.send(users, random.choice(TYPES))
            await asyncio.sleep(_STEP_S)

    def _some(self) -> list[str]:
        return random.sample(self.people, random.choice((1, 1, 2, 3)))


def encode(tag: str, sent: Sent, *, pad: int = 0) -> bytes:
    """An event as Kafka has it."""
    to = "all" if sent.users is None else {"users": sorted(sent.users)}
    name = f"{tag}|{sent.key.partition}|{sent.key.number}"
    message = {"text": "something happened", "pad": "x" * pad}
    return json.dumps({"id": name, "type": sent.type, "message": message, "to": to, "ttl_s": TTL_S}).encode()
