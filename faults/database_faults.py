"""Faults around the switches: PostgreSQL gone, hung and slow; switches flipped all the time."""

import asyncio
import time

import asyncpg
import httpx

from faults.producer import TYPES
from faults.report import Row
from faults.shaking import shake
from faults.world import PEOPLE, World

_OUTAGE_S = 12.0
_REFUSED_S = 2.0
_BACK_S = 10.0


async def away(world: World) -> None:
    """PostgreSQL stopped, hung, and made slow."""
    postgres = world.cluster.stack.postgres
    async with world.row(10, "PostgreSQL stopped for 12 s") as row:
        await asyncio.to_thread(postgres.stop)
        await _without_database(world, row)
        await asyncio.to_thread(postgres.start)
        await _with_database(world, row)
    async with world.row(10, "PostgreSQL hung (SIGSTOP) for 12 s") as row:
        postgres.pause()
        await _without_database(world, row)
        postgres.resume()
        await _with_database(world, row)
    async with world.row(10, "PostgreSQL takes 5 s a query, for 12 s") as row:
        world.cluster.relay.delay(5.0)
        await _without_database(world, row)
        world.cluster.relay.delay(0.0)
        await _with_database(world, row)


async def read_only(world: World) -> None:
    """PostgreSQL takes no writes: a standby after a failover, or a disk that is full."""
    async with world.row(23, "PostgreSQL read-only for 12 s, and events of a new type meanwhile") as row:
        begun = time.monotonic()
        await _execute(world, "ALTER SYSTEM SET default_transaction_read_only = on")
        refused = number = 0
        while time.monotonic() - begun < _OUTAGE_S:
            number += 1
            event = b'{"type": "fresh%d", "message": 1, "to": {"users": ["nobody"]}}' % number
            await world.producer.raw(event, partition=0)
            reply = await world.post(PEOPLE[-number], "/v1/preferences", {"types": {}})
            refused += reply.status_code == 503 and "retry-after" in reply.headers
            await asyncio.sleep(0.5)
        row.check("POSTs refused (503, Retry-After)", f"{refused} of {number}", refused >= number - 1)
        heard_s = world.heard_again_s(begun + _OUTAGE_S / 2)
        row.check("streams go on: longest silence", f"{heard_s:.1f} s", heard_s < 3)
        row.check("streams cut", world.cuts(), world.cuts() == 0)
        running = len(world.cluster.nodes)
        row.check("nodes that run", running, running == len(world.cluster.stack.nodes))
        await _execute(world, "ALTER SYSTEM RESET default_transaction_read_only")
        await _with_database(world, row)


async def _execute(world: World, statement: str) -> None:
    """Changes the server's own settings, past the relay; sessions that are open take them at once."""
    connection = await asyncpg.connect(world.cluster.stack.postgres.url)
    try:
        await connection.execute("SET default_transaction_read_only = off")
        await connection.execute(statement)
        await connection.execute("SELECT pg_reload_conf()")
    finally:
        await connection.close()


async def _without_database(world: World, row: Row) -> None:
    """Streams and intake go on; what needs the database is refused in time, with `Retry-After`."""
    begun = time.monotonic()
    before = await world.cluster.total("unfiltered")
    took: list[float] = []
    refused = 0
    number = 0
    while time.monotonic() - begun < _OUTAGE_S:
        number += 1
        user = PEOPLE[-number]
        asked = time.monotonic()
        try:
            reply = await world.post(user, "/v1/preferences", {"types": {}})
            refused += reply.status_code == 503 and "retry-after" in reply.headers
        except httpx.HTTPError:
            pass
        took.append(time.monotonic() - asked)
        await asyncio.sleep(0.3)
    row.check("POSTs refused (503, Retry-After)", f"{refused} of {number}", refused == number)
    row.check("the slowest after", f"{max(took):.1f} s", max(took) <= _REFUSED_S)
    heard_s = world.heard_again_s(begun + _OUTAGE_S / 2)
    row.check("streams go on: longest silence", f"{heard_s:.1f} s", heard_s < 3)
    row.check("streams cut", world.cuts(), world.cuts() == 0)
    unfiltered = int(await world.cluster.total("unfiltered") - before)
    row.check("published unfiltered", unfiltered, unfiltered > 100)


async def _with_database(world: World, row: Row) -> None:
    back = time.monotonic()
    status = 0
    while status != 200 and time.monotonic() - back < 2 * _BACK_S:
        status = await world.switch(PEOPLE[5], TYPES[0], on=False)
        await asyncio.sleep(0.2)
    took_s = time.monotonic() - back
    row.check("switches work again after", f"{took_s:.1f} s", took_s < _BACK_S)
    await asyncio.sleep(2)


async def flipped(world: World) -> None:
    """Switches flipped at random under load, with reconnects and resumes."""
    async with world.row(14, "switches flipped at random, 30/s, under 100 events/s for those people") as row:
        people = PEOPLE[:24]
        seconds = 8 if world.scale.fast else 40
        flips = await shake(world, seconds, people=people, flips_per_s=30, drops_per_s=3, aimed_per_s=100)
        row.check("flips", flips, flips > 12 * seconds)
        row.check("reconnects", world.cuts(), world.cuts() > 1.5 * seconds)
        # So that the next faults have people who get something.
        for (user, type_), flips_of in list(world.flips.items()):
            if user in people and not flips_of[-1].on:
                await world.switch(user, type_, on=True)
