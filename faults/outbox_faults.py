"""Faults around an outbox: a node that has most of its rows killed, and PostgreSQL killed."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import asyncpg
import msgspec

from deploy.parts import Node
from faults.producer import TTL_S, TYPES
from faults.records import PARTITIONS
from faults.resources import poll
from faults.world import PEOPLE, World
from pushsse.intake.outbox.tables import sql

_TABLE = "pushsse_outbox"
# A lease of 8 s, and what it takes to claim.
_TAKEN_OVER_S = 12.0
_BACK_S = 15.0
_PER_KEY_S = 50.0
_AWAY = (
    OSError,
    TimeoutError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)
_INSERT = f"""INSERT INTO {_TABLE} (key, type, message, recipients, event_id, ttl_s)
    VALUES ($1, $2, '{{"text": "something happened"}}', $3, $4, $5)"""


async def killed(world: World) -> None:
    """Rows of an outbox, and no records: a node killed in the middle, then PostgreSQL."""
    stack = world.cluster.stack
    await _prepare(world)
    async with world.row(
        24, "rows of an outbox alone: a node killed (-9), then PostgreSQL killed (-9)"
    ) as row:
        # Of one key all events come the same way: what came through Kafka has to be there before.
        await world.producer.pause()
        await world.settle()
        async with _written(world):
            await asyncio.sleep(5)
            node = await _busiest(world)
            node.kill()
            await asyncio.sleep(_TAKEN_OVER_S)
            heard_s = time.monotonic() - _all_heard_at(world)
            row.check("each key heard", f"{heard_s:.1f} s ago", heard_s < 2)
            await asyncio.to_thread(node.start)
            await asyncio.sleep(2)
            stack.postgres.kill()
            await asyncio.to_thread(stack.postgres.start)
            back = time.monotonic()

            async def all_heard() -> bool:
                return _all_heard_at(world) > back

            took_s = await poll(all_heard, limit_s=_BACK_S, step_s=0.1)
            row.check("working again after", f"{took_s:.1f} s", took_s < _BACK_S)
            await asyncio.sleep(back + 5 - time.monotonic())

        async def is_empty() -> bool:
            return await _count(world) == 0

        await poll(is_empty, limit_s=20)
        left = await _count(world)
        row.check("rows left", left, left == 0)


async def _prepare(world: World) -> None:
    """The table, and nodes that read it. The other faults' nodes don't."""
    stack = world.cluster.stack
    connection = await asyncpg.connect(stack.postgres.url)
    await connection.execute(sql(_TABLE))
    await connection.close()
    for node in stack.nodes:
        node.settings["PUSHSSE_OUTBOX"] = _TABLE
        node.kill()
        await asyncio.to_thread(node.start)
    await world.settle()


@asynccontextmanager
async def _written(world: World) -> AsyncIterator[None]:
    """Rows are written while the context lasts, one transaction after the other for each key."""
    ends = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        for key in range(PARTITIONS):
            tasks.create_task(_write(world, key, ends))
        try:
            yield
        finally:
            ends.set()


async def _write(world: World, key: int, ends: asyncio.Event) -> None:
    connection: asyncpg.Connection | None = None
    url, ledger = world.cluster.stack.postgres.url, world.producer.ledger
    while not ends.is_set():
        try:
            if connection is None:
                connection = await asyncpg.connect(url, timeout=5)
            users = random.sample(PEOPLE, random.choice((1, 1, 2, 3)))
            sent = ledger.enter(key, random.choice(TYPES), users, time.monotonic())
            to = msgspec.json.encode({"users": users}).decode()
            name = f"{ledger.tag}|{key}|{sent.key.number}"
            await connection.execute(_INSERT, str(key), sent.type, to, name, TTL_S, timeout=5)
            sent.acked = time.monotonic()
        except _AWAY:
            # It may be there or not: the ledger has it as one that was never acknowledged.
            if connection is not None:
                connection.terminate()
            connection = None
            await asyncio.sleep(0.2)
        else:
            await asyncio.sleep(random.uniform(0.5, 1.5) / _PER_KEY_S)
    if connection is not None:
        with suppress(OSError, asyncpg.InterfaceError):
            await connection.close(timeout=5)


async def _busiest(world: World) -> Node:
    """A node that reads one of the keys."""
    connection = await asyncpg.connect(world.cluster.stack.postgres.url)
    try:
        taker = await connection.fetchval(
            f"""SELECT taker FROM {_TABLE}_bucket WHERE base > 0 AND taker IS NOT NULL
                 ORDER BY base DESC LIMIT 1"""
        )
    finally:
        await connection.close()
    return next(node for node in world.cluster.nodes if str(taker).startswith(f"{node.name}-"))


async def _count(world: World) -> int:
    connection = await asyncpg.connect(world.cluster.stack.postgres.url)
    try:
        return int(await connection.fetchval(f"SELECT count(*) FROM {_TABLE}"))
    finally:
        await connection.close()


def _all_heard_at(world: World) -> float:
    """Since when there is something newer of each key."""
    last = dict.fromkeys(range(PARTITIONS), 0.0)
    for client in world.crowd.clients:
        for receipt in client.account.receipts[-200:]:
            last[receipt.key.partition] = max(last[receipt.key.partition], receipt.at)
    return min(last.values())
