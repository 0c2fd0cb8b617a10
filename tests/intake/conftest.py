from collections.abc import AsyncIterator, Iterator

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from deploy.parts import Kafka
from tests.parts import shared

from .kit import Kit


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def bootstrap(kafka_part: Kafka) -> str:
    """The address of a Kafka."""
    return kafka_part.url


@pytest.fixture(scope="session")
def own_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    """A Kafka for the tests that pause or kill it; they leave it running."""
    yield from shared(Kafka(tmp_path_factory.mktemp("own_kafka")))


@pytest.fixture
async def kit(bootstrap: str, anyio_backend: str) -> AsyncIterator[Kit]:
    """A topic, a group and a backplane of the test's own."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        yield Kit(bootstrap, admin)
    finally:
        await admin.close()
