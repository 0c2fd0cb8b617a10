import asyncio

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from deploy.parts import Kafka
from pushsse.kafka.consumer import ConsumerPace
from tests.waiting import eventually

from .kit import Kit, value

STUCK_S = 8.0
pytestmark = [pytest.mark.anyio, pytest.mark.real, pytest.mark.timeout(180)]


@pytest.mark.parametrize(
    "long",
    [pytest.param(False, marks=pytest.mark.long, id="for a moment"), pytest.param(True, id="for long")],
)
async def test_a_kafka_that_crashes_and_comes_back_is_read_on(
    own_broker: Kafka, long: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Once shorter and once longer than it takes until the consumer is given up and replaced."""
    admin = AIOKafkaAdminClient(bootstrap_servers=own_broker.url)
    await admin.start()
    try:
        kit = Kit(own_broker.url, admin)
        await kit.create(kit.topic, kit.dlq)
        await kit.produce([value(n) for n in range(100)])
        async with kit.running(pace=ConsumerPace(stuck_s=STUCK_S)):
            await kit.until_committed(100)
            own_broker.kill()
            if long:
                await eventually(lambda: "the consumer is replaced" in caplog.text, 60)
            else:
                await asyncio.sleep(1)
            assert ("the consumer is replaced" in caplog.text) == long
            await asyncio.to_thread(own_broker.start)
            await kit.produce([value(n) for n in range(100, 200)])
            await eventually(lambda: kit.recorder.appended == 200, 60)
            await kit.until_committed(200)
        assert await kit.recorder.numbers() == list(range(200))
    finally:
        await admin.close()
