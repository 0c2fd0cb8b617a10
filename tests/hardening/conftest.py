"""What several of these tests break."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.backplane.redis_server import RedisServer


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of the test's own."""
    server = RedisServer(tmp_path / "redis")
    server.start()
    yield server
    server.close()
