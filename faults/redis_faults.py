"""Faults of Redis: killed, stopped, stalled, cut off, emptied, set back."""

import asyncio
import shutil
import time
from collections.abc import Sequence

from aiokafka.admin import AIOKafkaAdminClient

from faults.report import Row
from faults.resources import poll
from faults.world import PEOPLE, World
from pushsse.backplane import log_of

_SHARDS = 64
_BACK_S = 5.0
_NOTICED_S = 5.0
_TOLD_S = 10.0


async def killed(world: World) -> None:
    """Redis killed and back, with its append-only file."""
    redis = world.cluster.stack.redis
    for away_s in (1,) if world.scale.fast else (1, 8, 30):
        async with world.row(1, f"Redis killed (-9), back after {away_s} s with its append-only file") as row:
            redis.kill()
            await asyncio.sleep(away_s)
            await asyncio.to_thread(redis.start)
            back = time.monotonic()
            await asyncio.sleep(2 if world.scale.fast else _BACK_S + 1)
            heard_s = world.heard_again_s(back)
            row.check("working again after", f"{heard_s:.1f} s", heard_s <= _BACK_S)
            row.check("streams cut", world.cuts(), world.cuts() == 0)


async def stopped(world: World) -> None:
    """Redis doesn't answer, and connections to it stay."""
    async with world.row(2, "Redis stopped (SIGSTOP) for 15 s") as row:
        redis = world.cluster.stack.redis
        redis.pause()
        begun = time.monotonic()

        async def noticed() -> bool:
            return await world.cluster.total("backplane_available") == 0

        noticed_s = await poll(noticed, limit_s=10, step_s=0.2)
        row.check("noticed after", f"{noticed_s:.1f} s", noticed_s <= _NOTICED_S)
        early = await committed(world)
        await asyncio.sleep(max(0.0, 15 - (time.monotonic() - begun)))
        # Nothing can get into the log meanwhile, so nothing may be committed.
        grown = await committed(world) - early
        row.check("offsets committed meanwhile", grown, grown == 0)
        redis.resume()
        back = time.monotonic()
        await asyncio.sleep(_BACK_S + 1)
        heard_s = world.heard_again_s(back)
        row.check("working again after", f"{heard_s:.1f} s", heard_s <= _BACK_S)
        row.check("streams cut", world.cuts(), world.cuts() == 0)


async def stalled(world: World) -> None:
    """Writes stall; listeners are cut off in a burst, by command and by their output buffer."""
    redis = world.cluster.redis
    await _listeners_cut_off(world)
    if world.scale.fast:
        return
    async with world.row(3, "CLIENT PAUSE 3000 WRITE") as row:
        await redis.client_pause(3000, all=False)
        await asyncio.sleep(8)
        row.check("streams cut", world.cuts(), world.cuts() == 0)
    async with world.row(3, "output buffer limit of 1 MB, and a burst of 14 MB at a node that sleeps") as row:
        before = await world.cluster.total("backplane_reconnects")
        await redis.config_set("client-output-buffer-limit", "pubsub 1048576 1048576 1")
        node = world.cluster.stack.node(1)
        node.pause()
        # 3 MB for each of five people: what a shard's log keeps, so that all of it is still there.
        await _burst(world, 1_200, pad=12_000, people=_people_of(world, node.name)[:5])
        await asyncio.sleep(2)
        node.resume()
        await asyncio.sleep(4)
        await redis.config_set("client-output-buffer-limit", "pubsub 33554432 8388608 60")
        cut_off = await world.cluster.total("backplane_reconnects") - before
        row.check("listeners cut off", int(cut_off), cut_off)
        row.check("streams cut", world.cuts(), world.cuts() == 0)


async def _listeners_cut_off(world: World) -> None:
    redis = world.cluster.redis
    async with world.row(3, "CLIENT KILL TYPE pubsub, ten times during a burst") as row:
        burst = asyncio.create_task(_burst(world, 2_000))
        cut = 0
        for _ in range(10):
            cut += await redis.client_kill_filter(_type="pubsub")
            await asyncio.sleep(0.2)
        await burst
        row.check("listeners cut off", cut, cut)
        row.check("streams cut", world.cuts(), world.cuts() == 0)


async def emptied(world: World) -> None:
    """Logs are lost: emptied, and set back to an older state."""
    async with world.row(4, "FLUSHALL", gaps=True) as row:
        begun = time.monotonic()
        await world.cluster.redis.flushall()
        await asyncio.sleep(2 if world.scale.fast else _TOLD_S + 2)
        _check_told(world, row, begun)
    if world.scale.fast:
        return
    async with world.row(4, "Redis restored from a snapshot 5 s older", gaps=True) as row:
        redis = world.cluster.stack.redis
        data, older = redis.folder / "appendonlydir", redis.folder / "older"
        redis.pause()
        await asyncio.to_thread(shutil.copytree, data, older)
        redis.resume()
        await asyncio.sleep(5)
        redis.kill()
        await asyncio.to_thread(shutil.rmtree, data)
        older.rename(data)
        await asyncio.to_thread(redis.start)
        begun = time.monotonic()
        await asyncio.sleep(_TOLD_S + 2)
        _check_told(world, row, begun)


def _check_told(world: World, row: Row, begun: float) -> None:
    times = [
        client.account.gap_notices[0].at - begun
        for client in world.crowd.clients
        if client.account.gap_notices
    ]
    untold = len(world.crowd.clients) - len(times)
    row.check("last client told after", f"{max(times, default=-1):.1f} s", times and max(times) <= _TOLD_S)
    row.check("clients not told", untold, untold == 0)
    heard_s = world.heard_again_s(begun)
    row.check("working again after", f"{heard_s:.1f} s", heard_s <= _TOLD_S)


async def committed(world: World) -> int:
    """The sum of the group's committed offsets."""
    admin = AIOKafkaAdminClient(bootstrap_servers=world.cluster.stack.kafka.url)
    await admin.start()
    try:
        offsets = await admin.list_consumer_group_offsets("pushsse")
        return sum(found.offset for found in offsets.values())
    finally:
        await admin.close()


def _people_of(world: World, node: str) -> list[str]:
    """People with a stream at a node, each of another shard."""
    users = (client.account.user for client in world.crowd.clients if client.node == node)
    return list({log_of(user, _SHARDS): user for user in users}.values())


async def _burst(world: World, events: int, *, pad: int = 0, people: Sequence[str] = PEOPLE) -> None:
    for number in range(events):
        await world.producer.send([people[number % len(people)]], "news", pad=pad)
        if number % 20 == 0:
            await asyncio.sleep(0.01)
