"""What `pushsse doctor` learns of Kafka."""

import pytest

from pushsse.intake.probe import topics
from pushsse.settings import load

from .kit import Kit

pytestmark = pytest.mark.anyio


async def test_topics_are_told_with_their_partitions(kit: Kit) -> None:
    await kit.create(kit.topic, partitions=3)
    there = await topics(load({}, {"kafka_bootstrap": kit.bootstrap}))
    assert there[kit.topic] == 3


async def test_a_kafka_that_is_not_there_is_an_error_in_time() -> None:
    with pytest.raises(OSError, match=r".+"):
        await topics(load({}, {"kafka_bootstrap": "127.0.0.1:1"}))
