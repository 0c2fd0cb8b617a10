"""Waiting for what a node can't begin without, with a word about which one. Called by `serve`."""

import asyncio
from collections.abc import Awaitable, Callable

import redis.asyncio as redis
from redis.exceptions import RedisError

from pushsse.backoff import Backoff
from pushsse.database import Database
from pushsse.errors import DatabaseUnavailable
from pushsse.settings import Settings
from pushsse.shown import shown

Say = Callable[[str], None]
# What is missing; empty when nothing is.
Probe = Callable[[], Awaitable[str]]
_TIMEOUT_S = 2.0


async def wait(settings: Settings, say: Say) -> None:
    """Returns when the database is there and migrated, and Redis answers. The embedded parts always are.

    Kafka is waited for by the node itself, which serves streams meanwhile.
    """
    if not settings.database_url.startswith("sqlite"):
        async with Database(settings.database_url, cool_s=0.0) as database:
            await _wait(lambda: _database(database, shown(settings.database_url)), say)
    if settings.redis_url:
        async with redis.Redis.from_url(
            settings.redis_url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S
        ) as client:
            await _wait(lambda: _redis(client, shown(settings.redis_url)), say)


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
        pending = await database.pending_migrations()
    except DatabaseUnavailable as error:
        return f"the database at {where}: {error}"
    return f"`pushsse migrate`: {where} lacks {', '.join(pending)}" if pending else ""


async def _redis(client: redis.Redis, where: str) -> str:
    try:
        await client.ping()
    except (RedisError, OSError) as error:
        return f"Redis at {where}: {error}"
    return ""
