"""Real parts for the whole path: a topic, a Redis and a database of each test's own."""

import secrets
from collections.abc import AsyncIterator, Iterator

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from tests.backplane.redis_server import RedisServer
from tests.intake.conftest import bootstrap
from tests.preferences.conftest import postgres_server
from tests.preferences.server import Server

__all__ = ["bootstrap", "postgres_server"]


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.close()


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    redis_server.admin.flushall()
    return redis_server.url


@pytest.fixture
async def postgres_url(postgres_server: Server, anyio_backend: str) -> str:
    return await postgres_server.database()


@pytest.fixture
async def kafka_topic(bootstrap: str, anyio_backend: str) -> AsyncIterator[tuple[str, str]]:
    topic = f"events-{secrets.token_hex(4)}"
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, 4, 1), NewTopic(f"{topic}.dlq", 1, 1)])
        yield bootstrap, topic
        await admin.delete_topics([topic, f"{topic}.dlq"])
    finally:
        await admin.close()
