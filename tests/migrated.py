"""A SQLite file that has all tables: a migration costs 40 ms, and most tests need its result only."""

import asyncio
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from pushsse.database import Database


def migrated(file: Path) -> str:
    """The URL of a database in a new file, with all tables and nothing in them."""
    file.write_bytes(_content())
    return f"sqlite://{file}"


@cache
def _content() -> bytes:
    async def make(url: str) -> None:
        async with Database(url) as database:
            await database.migrate()

    # In a thread, since the caller's loop may be running.
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as thread:
        file = Path(folder) / "made.db"
        thread.submit(asyncio.run, make(f"sqlite://{file}")).result()
        return file.read_bytes()
