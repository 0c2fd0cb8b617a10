from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from pushsse.database import Database
from pushsse.preferences.store import PreferenceStore

from .server import Server, binaries


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    programs = binaries()
    if programs is None:
        pytest.skip("PostgreSQL's programs aren't installed")
    server = Server(programs)
    server.start()
    yield server
    server.remove()


@pytest.fixture(params=["sqlite", "postgres"])
async def url(request: pytest.FixtureRequest, tmp_path: Path, anyio_backend: str) -> str:
    """The URL of a new, empty database, of either kind."""
    if request.param == "sqlite":
        return f"sqlite://{tmp_path}/test.db"
    server: Server = request.getfixturevalue("postgres_server")
    return await server.database()


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    async with Database(url) as database:
        await database.migrate()
        yield database


@pytest.fixture
def store(database: Database) -> PreferenceStore:
    return PreferenceStore(database)
