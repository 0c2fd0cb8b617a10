"""Waiting for what a node can't begin without, with a word about which one. Called by `serve`."""

import asyncio
from collections.abc import Awaitable, Callable

from pushsse.backoff import Backoff
from pushsse.backplane.redis.canary import probe
from pushsse.database import Database
from pushsse.errors import DatabaseUnavailable, SettingsError
from pushsse.settings import Settings
from pushsse.shown import shown

Say = Callable[[str], None]
# What is missing; empty when nothing is.
Probe = Callable[[], Awaitable[str]]


async def wait(settings: Settings, say: Say) -> None:
    """Returns when the database is there and migrated, and Redis answers. The embedded parts always are.

    Kafka is waited for by the node itself, which serves streams meanwhile.
    """
    if not settings.database_url.startswith("sqlite"):
        async with Database(settings.database_url, cool_s=0.0) as database:
            await _wait(lambda: _database(database, shown(settings.database_url)), say)
    if settings.redis_url:
        await _wait(lambda: _redis(settings), say)


async def _wait(probe: Probe, say: Say) -> None:
    backoff = Backoff(first_s=0.2, most_s=2.0)
    said = ""
    while missing := await probe():
        what, _, _ = missing.partition(": ")
        if what != said:
            say(f"waiting for {missing}")
            said = what
        await asyncio.sleep(backoff.next_s())


async def _database(database: Database, where: str) -> str:
    try:
        encoding = await database.encoding()
        pending = await database.pending_migrations()
    except DatabaseUnavailable as error:
        return f"the database at {where}: {error}"
    if encoding != "UTF8":
        raise SettingsError(
            f"PUSHSSE_DATABASE_URL: {where} is encoded in {encoding}, which can't hold every name:"
            " make a database with CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0"
        )
    return f"`pushsse migrate`: {where} lacks {', '.join(pending)}" if pending else ""


async def _redis(settings: Settings) -> str:
    missing = await probe(settings.redis_url, settings.redis_prefix)
    return f"Redis at {shown(settings.redis_url)}: {missing}" if missing else ""
