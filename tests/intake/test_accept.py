import asyncio
import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest

from deploy.parts.ports import free_port
from pushsse import event
from pushsse.api.events import EmbeddedIntake, KafkaProducerIntake, Submitted
from pushsse.backplane import Draft, Receipt
from pushsse.errors import EventTooLarge, KafkaUnavailable
from pushsse.intake import cloudevents
from pushsse.kafka import Connection
from pushsse.kafka.producer import Producer

from .kit import Kit, drafter

pytestmark = pytest.mark.anyio


def submitted(name: str, **more: object) -> Submitted:
    given = event.from_json({"id": name, "type": "alarm", "message": name, "to": "all"} | more)
    return Submitted(given, name, drafter().draft(given, event_id=name, at=datetime.now(UTC)))


async def test_events_go_into_the_topic_with_their_id_under_the_key_that_keeps_them_in_order(
    kit: Kit,
) -> None:
    await kit.create(kit.topic)
    async with Producer(kit.connection) as producer:
        await KafkaProducerIntake(producer, topic=kit.topic).accept(
            [
                submitted("a"),
                submitted("b", key="k"),
                submitted("c", to={"users": ["ann"]}),
                submitted("d", to={"users": ["ann", "bo"]}),
            ]
        )
        records = await kit.read_all(kit.topic)
    assert [record.key for record in records] == [b"all", b"k", b"ann", b"all"]
    assert [json.loads(record.value or b"")["id"] for record in records] == list("abcd")


async def test_a_cloudevent_goes_into_the_topic_under_its_partitionkey_with_its_trace(kit: Kit) -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    whole = {
        "specversion": "1.0",
        "type": "order",
        "source": "/shop",
        "id": "1",
        "pushsseto": "ann",
        "data": 1,
    }
    body = json.dumps(whole | {"partitionkey": "A-981", "traceparent": trace}).encode()
    at = datetime.now(UTC)
    cloud = cloudevents.of_json(body, at=at, to=None)
    made = drafter().draft(cloud.event, event_id="/shop|1", at=at, once=cloud.once, trace=cloud.trace)
    await kit.create(kit.topic)
    async with Producer(kit.connection) as producer:
        await KafkaProducerIntake(producer, topic=kit.topic).accept([Submitted(cloud.event, "/shop|1", made)])
        [record] = await kit.read_all(kit.topic)
    assert (record.key, tuple(record.headers)) == (b"A-981", (("traceparent", trace.encode()),))
    assert json.loads(record.value or b"")["id"] == "/shop|1"


async def test_a_message_goes_into_the_topic_as_it_was_sent(kit: Kit) -> None:
    given = event.decode(b'{"type":"a","to":"all","message":{"n": [0.1000, 1e3, -0]}}')
    made = drafter().draft(given, event_id="x", at=datetime.now(UTC))
    await kit.create(kit.topic)
    async with Producer(kit.connection) as producer:
        await KafkaProducerIntake(producer, topic=kit.topic).accept([Submitted(given, "x", made)])
        [record] = await kit.read_all(kit.topic)
    assert b'"message":{"n": [0.1000, 1e3, -0]}' in (record.value or b"")


async def test_what_was_produced_comes_back_through_the_intake_once(kit: Kit) -> None:
    await kit.create(kit.topic, kit.dlq)
    async with Producer(kit.connection) as producer, kit.running():
        intake = KafkaProducerIntake(producer, topic=kit.topic)
        await intake.accept([submitted(str(n)) for n in range(500)])
        await intake.accept([submitted("7")])
        await kit.until_committed(501)
    names = [json.loads(body.removeprefix(b"data: "))["id"] for body in await kit.recorder.bodies()]
    assert names == [str(n) for n in range(500)]


async def test_a_kafka_that_is_away_is_told_in_time_and_is_used_again_when_it_is_back(kit: Kit) -> None:
    await kit.create(kit.topic)
    async with Producer(Connection(bootstrap=f"127.0.0.1:{free_port()}"), timeout_s=1) as producer:
        began = time.monotonic()
        with pytest.raises(KafkaUnavailable, match=kit.topic):
            await KafkaProducerIntake(producer, topic=kit.topic).accept([submitted("a")])
        assert time.monotonic() - began < 4


async def test_a_topic_that_isnt_there_is_unavailable_until_it_is(kit: Kit) -> None:
    async with Producer(kit.connection, timeout_s=1) as producer:
        intake = KafkaProducerIntake(producer, topic=kit.topic)
        with pytest.raises(KafkaUnavailable, match=kit.topic):
            await intake.accept([submitted("a")])
        await kit.create(kit.topic)
        await intake.accept([submitted("a")])
    assert len(await kit.read_all(kit.topic)) == 1


class Dispatched:
    """A dispatcher that notes what it is given; `turns_s` are its first waits."""

    def __init__(self, *turns_s: float, repeated: int = 0) -> None:
        self.once: list[str] = []
        self._turns_s = list(turns_s)
        self._repeated = repeated

    async def dispatch(self, drafts: Sequence[Draft]) -> Receipt:
        await asyncio.sleep(self._turns_s.pop() if self._turns_s else 0)
        self.once += [draft.once for draft in drafts]
        return Receipt(repeated=self._repeated)

    def dispatch_nowait(self, draft: Draft) -> Receipt:
        self.once.append(draft.once)
        return Receipt(repeated=self._repeated)


async def test_the_embedded_intake_dispatches_in_order_of_acceptance() -> None:
    dispatcher = Dispatched(0.01)
    intake = EmbeddedIntake(dispatcher, waits=False)
    await asyncio.gather(*[intake.accept([submitted(f"{n}a"), submitted(f"{n}b")]) for n in range(20)])
    assert dispatcher.once == [f"alarm|{n}{part}" for n in range(20) for part in "ab"]


async def test_an_event_is_taken_at_once_only_while_no_other_is_on_its_way() -> None:
    dispatcher = Dispatched(0.01)
    intake = EmbeddedIntake(dispatcher, waits=False)
    first = asyncio.create_task(intake.accept([submitted("a")]))
    await asyncio.sleep(0)
    assert intake.accept_nowait(submitted("b")) is None
    await first
    assert intake.accept_nowait(submitted("b")) is not None
    assert dispatcher.once == ["alarm|a", "alarm|b"]


async def test_an_event_never_passes_one_that_waits_for_its_turn() -> None:
    dispatcher = Dispatched()
    intake = EmbeddedIntake(dispatcher, waits=False)
    refused = []

    async def accept_then_try() -> None:
        await intake.accept([submitted("a")])
        # The lock is open at this moment, and "b" is next.
        refused.append(intake.accept_nowait(submitted("c")) is None)

    await asyncio.gather(accept_then_try(), intake.accept([submitted("b")]))
    assert refused == [True]
    assert dispatcher.once == ["alarm|a", "alarm|b"]


async def test_an_id_that_nobody_gave_is_not_remembered() -> None:
    dispatcher = Dispatched(repeated=3)
    intake = EmbeddedIntake(dispatcher, waits=False)
    own = event.from_json({"type": "alarm", "message": 1, "to": "all"})
    unnamed = Submitted(own, "made", drafter().draft(own, event_id="made", at=datetime.now(UTC)))
    assert await intake.accept([submitted("mine"), unnamed]) == 3
    assert dispatcher.once == ["alarm|mine", ""]


async def test_an_event_that_the_topic_never_takes_is_told_and_the_others_are_taken(kit: Kit) -> None:
    await kit.create(kit.topic, config={"max.message.bytes": "2000"})
    async with Producer(kit.connection) as producer:
        intake = KafkaProducerIntake(producer, topic=kit.topic)
        many = {"users": [f"user-{n}" for n in range(1000)]}
        with pytest.raises(EventTooLarge) as refused:
            await intake.accept([submitted("a"), submitted("big", to=many), submitted("c")])
        records = await kit.read_all(kit.topic)
    assert refused.value.ids == ("big",)
    assert {json.loads(record.value or b"")["id"] for record in records} == {"a", "c"}
