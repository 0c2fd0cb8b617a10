"""A backplane of each kind for the contract, and a Redis for each."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from pushsse.backplane import Backplane
from pushsse.backplane.memory import MemoryBackplane
from pushsse.backplane.memory.writer import LogWriter
from pushsse.backplane.redis import RedisBackplane
from pushsse.metrics import Metrics

from .ear import OWNER
from .redis_server import RedisServer

Make = Callable[..., AbstractAsyncContextManager[Backplane]]


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.close()


@pytest.fixture(params=["memory", "on disk", pytest.param("redis", marks=pytest.mark.real)])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Makes an empty backplane, of each kind, with bounds of the test's choice."""
    kind: str = request.param
    server: RedisServer | None = None
    if kind == "redis":
        server = request.getfixturevalue("redis_server")
        assert server is not None
        server.admin.flushall()

    def make(
        *, keep_s: float = 600, keep_bytes: int = 4 * 1024**2, shards: int = 8
    ) -> AbstractAsyncContextManager[Backplane]:
        if server is None:
            writer = LogWriter(tmp_path / "x.db-log", shards=shards) if kind == "on disk" else None
            return MemoryBackplane(
                shards=shards, keep_s=keep_s, keep_bytes=keep_bytes, metrics=Metrics(), writer=writer
            )
        return RedisBackplane(
            server.url,
            prefix="test:",
            node="here",
            shards=shards,
            keep_s=keep_s,
            keep_bytes=keep_bytes,
            metrics=Metrics(),
        )

    return make


@pytest.fixture
async def backplane(make: Make) -> AsyncIterator[Backplane]:
    """An empty one, with the claims of whoever publishes `sourced`."""
    async with make() as backplane:
        for partition in range(2):
            await backplane.claim("topic", partition, OWNER)
        yield backplane


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that the test may break, with an append-only file that is written at each command."""
    server = RedisServer(tmp_path, "--appendonly", "yes", "--appendfsync", "always")
    server.start()
    yield server
    server.close()
