"""Several topics in one group, by name and by pattern, over a real Kafka."""

import json
from typing import Any

import pytest
from cloudevents.core.bindings import kafka
from cloudevents.core.v1.event import CloudEvent

from pushsse.intake import Sources, sources_of
from pushsse.settings import KafkaSource, Settings
from tests.intake.kit import Kit, drafter, value
from tests.waiting import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.real]


def configured(kit: Kit, *tables: KafkaSource) -> Sources:
    settings = Settings(kafka_bootstrap=kit.bootstrap, kafka_topic=kit.topic, kafka=tables)
    return sources_of(
        settings, metrics=kit.metrics, drafter=drafter(refused="no"), now_ms=kit.backplane.now_ms
    )


async def produce(kit: Kit, topic: str, number: int, **more: Any) -> None:
    await kit.produce([value(number)], topic=topic, **more)


async def test_topics_are_read_by_name_and_by_pattern_and_new_ones_from_their_beginning(kit: Kit) -> None:
    named, first, second = f"{kit.topic}-orders", f"{kit.topic}-alarm-1", f"{kit.topic}-alarm-2"
    decode = configured(
        kit,
        KafkaSource(topics=(named,), format="headers", start="earliest"),
        KafkaSource(topics=(f"{kit.topic}-alarm-.*",), start="latest", name="alarms"),
    )
    await kit.create(named, f"{named}.dlq", first, f"{first}.dlq")
    # Too late for a source that starts at the end; kept for the one that starts at the beginning.
    await produce(kit, first, 1)
    await kit.produce(
        [b'{"n": 2}'], topic=named, headers=[("pushsse-type", b"order"), ("pushsse-to", b"all")]
    )
    await kit.produce([b"no json"], topic=named)

    async def numbers() -> list[int]:
        return sorted(await kit.recorder.numbers())

    async with kit.running(topics=decode.topics, decode=decode):
        await eventually(lambda: kit.metrics.sources[named].dead == 1, what="the dead letter")
        await produce(kit, first, 3)
        await eventually(lambda: kit.metrics.sources["alarms"].mapped >= 1, what="the alarm")
        assert await numbers() == [2, 3]
        # A topic that is made now has its first record before anybody reads it.
        await kit.create(second)
        await produce(kit, second, 4)
        await kit.create(kit.topic)
        await produce(kit, kit.topic, 5)

        async def all_there() -> bool:
            return await numbers() == [2, 3, 4, 5]

        await eventually(all_there, what="records of topics that were made later")
    [letter] = await kit.read_all(f"{named}.dlq")
    found = dict(letter.headers)
    assert (letter.value, found["topic"], found["offset"]) == (b"no json", named.encode(), b"1")
    assert json.loads((await kit.recorder.bodies())[0].removeprefix(b"data: "))["type"]


async def test_more_partitions_than_are_prepared_at_once_are_all_read(kit: Kit) -> None:
    await kit.create(kit.topic, partitions=130)
    for partition in (0, 70, 129):
        await kit.produce([value(partition)], partition=partition)
    async with kit.running():

        async def all_there() -> bool:
            return sorted(await kit.recorder.numbers()) == [0, 70, 129]

        await eventually(all_there, what="records of all partitions")


async def test_what_the_sdk_of_cloudevents_writes_into_kafka_is_read_in_both_modes(kit: Kit) -> None:
    topic = f"{kit.topic}-clouds"
    decode = configured(kit, KafkaSource(topics=(topic,), format="cloudevents", start="earliest"))
    await kit.create(topic, f"{topic}.dlq")
    for number, to_message in enumerate((kafka.to_structured_event, kafka.to_binary_event), 1):
        attributes = {
            "type": "order",
            "source": "/shop",
            "id": str(number),
            "pushsseto": "all",
            "partitionkey": "k",
        }
        message = to_message(CloudEvent(attributes, {"n": number}))
        assert message.key == "k"
        await kit.produce([message.value], topic=topic, key=b"k", headers=list(message.headers.items()))
    async with kit.running(topics=decode.topics, decode=decode):

        async def both() -> bool:
            return await kit.recorder.numbers() == [1, 2]

        await eventually(both, what="both events")
    assert [json.loads(body.removeprefix(b"data: "))["id"] for body in await kit.recorder.bodies()] == [
        "/shop|1", "/shop|2"
    ]  # fmt: skip
