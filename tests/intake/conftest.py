import os
from collections.abc import AsyncIterator, Iterator

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from .broker import Broker, jars
from .kit import Kit


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def bootstrap() -> Iterator[str]:
    """The address of a Kafka: the one that is named, else one of our own."""
    if named := os.environ.get("PUSHSSE_TEST_KAFKA"):
        yield named
        return
    libs = jars()
    if not libs:
        pytest.skip("neither PUSHSSE_TEST_KAFKA names a Kafka, nor KAFKA_LIBS the folder of its jars")
    broker = Broker(libs)
    try:
        broker.start()
        yield broker.bootstrap
    finally:
        broker.remove()


@pytest.fixture
async def kit(bootstrap: str, anyio_backend: str) -> AsyncIterator[Kit]:
    """A topic, a group and a backplane of the test's own."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        yield Kit(bootstrap, admin)
    finally:
        await admin.close()
