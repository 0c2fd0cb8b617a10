import asyncio
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from deploy.parts import Postgres
from pushsse.database import Database
from pushsse.people import StateTable
from pushsse.preferences.store import PreferenceStore


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.real)])
async def url(request: pytest.FixtureRequest, tmp_path: Path, anyio_backend: str) -> str:
    """The URL of a new, empty database, of either kind."""
    if request.param == "sqlite":
        return f"sqlite://{tmp_path}/test.db"
    server: Postgres = request.getfixturevalue("postgres_part")
    return await asyncio.to_thread(server.create_database, f"test_{secrets.token_hex(6)}")


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    # A busy machine may stand still for longer than people are to wait.
    async with Database(url, timeout_s=10) as database:
        await database.migrate()
        yield database


@pytest.fixture
def store(database: Database) -> PreferenceStore:
    return PreferenceStore(database, numbers_after=lambda: 0)


@pytest.fixture
def states(database: Database) -> StateTable:
    return StateTable(database)
