"""What `pushsse doctor` learns of Kafka."""

import pytest

from pushsse.kafka import configurations, existing_topics
from pushsse.kafka.dead_letters import about_dead_letters
from pushsse.settings import load

from .kit import Kit

pytestmark = pytest.mark.anyio


async def test_topics_are_told_with_their_partitions(kit: Kit) -> None:
    await kit.create(kit.topic, partitions=3)
    there = await existing_topics(load({}, {"kafka_bootstrap": kit.bootstrap}))
    assert there[kit.topic] == 3


async def test_a_kafka_that_is_not_there_is_an_error_in_time() -> None:
    with pytest.raises(OSError, match=r".+"):
        await existing_topics(load({}, {"kafka_bootstrap": "127.0.0.1:1"}))


async def test_settings_of_the_dead_letter_topic_that_cost_letters_are_told(kit: Kit) -> None:
    settings = load({}, {"kafka_bootstrap": kit.bootstrap})
    await kit.create(kit.topic)
    await kit.create(kit.dlq, config={"max.message.bytes": "2000", "cleanup.policy": "compact"})
    set_to = await configurations(settings, [kit.topic, f"{kit.topic}-missing", kit.dlq])
    assert set_to.keys() == {kit.topic, kit.dlq}
    assert about_dead_letters(set_to[kit.topic], kit.topic) == []
    small, compacted = about_dead_letters(set_to[kit.dlq], kit.dlq)
    assert "2000 bytes" in small
    assert "cleanup.policy=delete" in compacted
