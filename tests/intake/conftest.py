from collections.abc import AsyncIterator

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from deploy.parts import Kafka

from .kit import Kit


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def bootstrap(kafka_part: Kafka) -> str:
    """The address of a Kafka."""
    return kafka_part.url


@pytest.fixture
async def kit(bootstrap: str, anyio_backend: str) -> AsyncIterator[Kit]:
    """A topic, a group and a backplane of the test's own."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        yield Kit(bootstrap, admin)
    finally:
        await admin.close()
