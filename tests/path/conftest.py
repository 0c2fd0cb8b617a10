"""Real parts for the whole path: a topic, a Redis and a database of each test's own."""

import secrets
from collections.abc import AsyncIterator, Iterator

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from deploy.parts import Kafka, Postgres
from tests.backplane.redis_server import RedisServer
from tests.migrated import migrated_in


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
def postgres_url(postgres_part: Postgres) -> str:
    """A database that has all tables."""
    return migrated_in(postgres_part)


@pytest.fixture
async def kafka_topic(kafka_part: Kafka, anyio_backend: str) -> AsyncIterator[tuple[str, str]]:
    topic = f"events-{secrets.token_hex(4)}"
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka_part.url)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, 4, 1), NewTopic(f"{topic}.dlq", 1, 1)])
        yield kafka_part.url, topic
        await admin.delete_topics([topic, f"{topic}.dlq"])
    finally:
        await admin.close()
