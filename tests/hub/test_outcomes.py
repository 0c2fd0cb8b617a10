"""What is kept of outcomes while nobody takes them."""

import asyncio
from collections.abc import Sequence
from typing import cast

import pytest

from pushsse import outcomes
from pushsse.errors import KafkaUnavailable
from pushsse.event import Publication, encode
from pushsse.kafka.producer import Outgoing, Producer
from pushsse.outcomes import WRITTEN, Outcomes
from tests.waiting import eventually

pytestmark = pytest.mark.anyio


class Silent:
    """A Kafka that doesn't answer, or does so after a while."""

    def __init__(self) -> None:
        self.answers = asyncio.Event()
        self.calls = 0
        self.taken: list[Outgoing] = []

    async def send_packed(self, topic: str, records: Sequence[Outgoing]) -> None:
        self.calls += 1
        await self.answers.wait()
        self.taken += records


def made(kafka: Silent) -> Outcomes:
    return Outcomes(cast(Producer, kafka), topic="t", node="here", now_ms=lambda: 5)


def published(number: int) -> Publication:
    data = {"id": f"e{number}", "message": "x"}
    return encode("news", data, users=("ann",), switchable=True)


async def test_a_kafka_that_does_not_answer_keeps_no_publication_and_few_records(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outcomes, "MOST_BYTES", 10_000)
    kafka = Silent()
    noting = made(kafka)
    running = asyncio.create_task(noting.run())
    try:
        noting.note(published(0), "ann", WRITTEN)
        await eventually(lambda: kafka.calls)
        # From here on a call is under way, and records are made all the same.
        for number in range(1, 200):
            noting.note(published(number), "ann", WRITTEN)
        await eventually(lambda: noting.lost)
        kafka.answers.set()
        await eventually(lambda: noting.sent + noting.lost >= 200)
        assert noting.sent < 60
        assert kafka.taken[-1].value is not None
        assert b'"event":"e199"' in kafka.taken[-1].value
    finally:
        running.cancel()
        await asyncio.wait((running,))


async def test_what_is_noted_within_one_turn_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcomes, "MOST_NOTED", 5)
    noting = made(Silent())
    for number in range(8):
        noting.note(published(number), "ann", WRITTEN)
    assert noting.lost == 3


async def test_a_node_that_stops_does_not_wait_for_a_silent_kafka() -> None:
    kafka = Silent()
    noting = made(kafka)
    running = asyncio.create_task(noting.run())
    noting.note(published(1), "ann", WRITTEN)
    await eventually(lambda: kafka.calls)
    running.cancel()
    await asyncio.wait((running,), timeout=30)
    assert running.cancelled()


async def test_an_outage_is_waited_for_and_nothing_is_lost(caplog: pytest.LogCaptureFixture) -> None:
    class Refusing(Silent):
        async def send_packed(self, topic: str, records: Sequence[Outgoing]) -> None:
            self.calls += 1
            if self.calls < 3:
                raise KafkaUnavailable("away")
            self.taken += records

    kafka = Refusing()
    noting = made(kafka)
    running = asyncio.create_task(noting.run())
    noting.note(published(1), "ann", WRITTEN)
    await eventually(lambda: noting.sent == 1)
    assert (len(kafka.taken), noting.lost) == (1, 0)
    assert "away" in caplog.text
    running.cancel()
    await asyncio.wait((running,))
