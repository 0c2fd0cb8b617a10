"""Databases that have all tables: a migration costs 40 to 400 ms, and most tests need its result only."""

import asyncio
import secrets
import tempfile
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import asyncpg

from deploy.parts import Postgres
from pushsse.database import Database


def migrated(file: Path) -> str:
    """The URL of a database in a new file, with all tables and nothing in them."""
    file.write_bytes(_content())
    return f"sqlite://{file}"


def migrated_in(server: Postgres) -> str:
    """The URL of a new database of a PostgreSQL, with all tables and nothing in them."""
    name, template = f"test_{secrets.token_hex(6)}", _template(server)

    async def copy() -> None:
        connection = await asyncpg.connect(server.url)
        await connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        await connection.close()

    _in_a_thread(copy())
    return server.url_of(name)


@cache
def _content() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "made.db"
        _in_a_thread(_migrate(f"sqlite://{file}"))
        return file.read_bytes()


@cache
def _template(server: Postgres) -> str:
    """The name of a database that nobody is connected to."""
    name = "migrated"
    _in_a_thread(_migrate(server.create_database(name)))
    return name


async def _migrate(url: str) -> None:
    async with Database(url) as database:
        await database.migrate()


def _in_a_thread(made: Coroutine[None, None, None]) -> None:
    """Runs it to its end, also where the caller's loop is running."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, made).result()
