"""Events that expire on their way: a node that was cut off from Redis, or stopped, writes none of them late.

What is sent here isn't in the ledger, whose events last longer than any fault: two readers of their own note
what they get and when, one at the node that is away and one at another.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from deploy.parts import Node
from deploy.parts.ports import free_port
from faults.client import Client
from faults.node_faults import exchange
from faults.records import Account, Key
from faults.relay import Relay
from faults.report import Row
from faults.resources import poll
from faults.world import World
from pushsse import event
from pushsse.backplane import BROADCAST, Append, Draft, log_of
from pushsse.backplane.redis import RedisBackplane
from pushsse.metrics import Metrics

_SHARDS = 64
_USER = "brief"
_TAG = "brief"
_EVENTS = 50
_TTL_S = 4
_AWAY_S = 12.0
# A reader's own loop may be that late with what was written in time.
_GRACE_S = 0.25
_BACK_S = 20.0


async def late(world: World) -> None:
    """A node is cut off from Redis for 12 s, or stopped, while the log has events that expire after 4 s."""
    what = f"{_EVENTS} events that expire after {_TTL_S} s, in the log in time"
    async with Relay(free_port(), world.cluster.stack.redis.port) as relay:
        make = world.cluster.make
        url = world.cluster.stack.settings["PUSHSSE_REDIS_URL"]
        relayed = url.replace(f":{world.cluster.stack.redis.port}", f":{relay.port}")
        await exchange(world, 1, partial(with_redis, make, relayed))
        async with world.row(18, f"a node cut off from Redis for {_AWAY_S:.0f} s; {what}") as row:
            await _away(world, row, relay.cut, relay.mend)
        await exchange(world, 1, partial(with_redis, make, url))
    async with world.row(18, f"a node stopped (SIGSTOP) for {_AWAY_S:.0f} s; {what}") as row:
        node = world.cluster.stack.node(1)
        await _away(world, row, node.pause, node.resume)


def with_redis(
    make: Callable[..., Node], url: str, name: str, folder: Path, settings: dict[str, str], **more: object
) -> Node:
    """A node with another way to Redis."""
    return make(name, folder, {**settings, "PUSHSSE_REDIS_URL": url}, **more)


async def _away(world: World, row: Row, leave: Callable[[], None], come_back: Callable[[], None]) -> None:
    async with _reader(world, 1) as away, _reader(world, 2) as here, _publisher(world) as publish:
        await publish(0, 1, 60)
        await _until(away, 0)
        leave()
        sent = time.monotonic()
        await publish(1, _EVENTS, _TTL_S)
        await asyncio.sleep(_AWAY_S)
        come_back()
        await publish(_EVENTS + 1, 1, 60)
        back_s = await _until(away, _EVENTS + 1)
        await _until(here, _EVENTS + 1)
        row.check("written late", _late(away, sent), _late(away, sent) == 0)
        elsewhere = sum(0 < receipt.key.number <= _EVENTS for receipt in here.account.receipts)
        row.check("written in time elsewhere", elsewhere, elsewhere == _EVENTS and not _late(here, sent))
        row.check("working again after", f"{back_s:.1f} s", back_s < _BACK_S)


def _late(client: Client, sent: float) -> int:
    """How many events a reader got after they had expired."""
    limit = sent + _TTL_S + _GRACE_S
    return sum(
        0 < receipt.key.number <= _EVENTS and receipt.at > limit for receipt in client.account.receipts
    )


async def _until(client: Client, number: int) -> float:
    """Waits for an event that doesn't expire; how long that took."""

    async def got() -> bool:
        return any(receipt.key == Key(0, number) for receipt in client.account.receipts)

    return await poll(got, limit_s=_BACK_S)


@asynccontextmanager
async def _reader(world: World, number: int) -> AsyncIterator[Client]:
    """A client straight at a node, of which the ledger doesn't know."""
    port = world.cluster.stack.node(number).port
    client = Client(Account(_USER), port, world.cluster.token(_USER), tag=_TAG.encode())
    world.crowd.connect(client)

    async def ready() -> bool:
        return client.ready_at is not None

    try:
        await poll(ready, limit_s=_BACK_S)
        yield client
    finally:
        world.crowd.close([client])


@asynccontextmanager
async def _publisher(world: World) -> AsyncIterator[Callable[[int, int, int], Awaitable[None]]]:
    """Appends to the log as a node does: whichever node is away, the events are in the log in time."""
    settings = world.cluster.stack.settings
    async with RedisBackplane(
        settings["PUSHSSE_REDIS_URL"],
        prefix=settings.get("PUSHSSE_REDIS_PREFIX", "pushsse:"),
        node="expiry",
        shards=_SHARDS,
        keep_s=86_400,
        keep_bytes=4 * 1024**2,
        metrics=Metrics(),
    ) as backplane:

        async def publish(first: int, many: int, ttl_s: int) -> None:
            for number in range(first, first + many):
                to: object = "all" if number % 2 else {"users": [_USER]}
                log = BROADCAST if number % 2 else log_of(_USER, _SHARDS)
                found = event.from_json({"type": "news", "message": 1, "to": to, "ttl_s": ttl_s})
                made = event.publication(
                    found, event_id=f"{_TAG}|0|{number}", at=datetime.now(UTC), max_age_s=86_400
                )
                receipt = await backplane.publish([Append(log, (Draft(made),))])
                assert receipt.appended == 1

        yield publish
