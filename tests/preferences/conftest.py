import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from deploy.parts import Postgres
from pushsse.database import Database
from pushsse.people import StateTable
from pushsse.preferences.store import PreferenceStore
from tests.migrated import migrated, migrated_in


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.real)])
def server(request: pytest.FixtureRequest) -> Postgres | None:
    """The server of a test's database; None for SQLite, which has none."""
    return request.getfixturevalue("postgres_part") if request.param == "postgres" else None


@pytest.fixture
def url(server: Postgres | None, tmp_path: Path) -> str:
    """The URL of a new, empty database, of either kind."""
    if server is None:
        return f"sqlite://{tmp_path}/test.db"
    return server.create_database(f"test_{secrets.token_hex(6)}")


@pytest.fixture
def migrated_url(server: Postgres | None, tmp_path: Path) -> str:
    """The URL of one that has all tables, with nothing in them."""
    return migrated(tmp_path / "migrated.db") if server is None else migrated_in(server)


@pytest.fixture
async def database(migrated_url: str, anyio_backend: str) -> AsyncIterator[Database]:
    """The same, open."""
    # A busy machine may stand still for longer than people are to wait.
    async with Database(migrated_url, timeout_s=10) as database:
        yield database


@pytest.fixture
def store(database: Database) -> PreferenceStore:
    return PreferenceStore(database, numbers_after=lambda: 0)


@pytest.fixture
def states(database: Database) -> StateTable:
    return StateTable(database)
