"""Faults of clients: slow readers, moments around a connect and a resume, thousands dropped at once."""

import asyncio
import gc
import statistics
import sys
import time
from collections.abc import Sequence

from faults.client import Client
from faults.report import Row
from faults.resources import poll
from faults.world import World

_PAIRS = 5
_RUN_S = 6.0
_SLOW = 3
_SLOW_STEP_S = 2.0
_AIMED_PER_S = 30
_MANY = 8_000
_MANY_EVENTS = 5_000
_LAG_S = 0.25


async def slow(world: World) -> None:
    """Slow readers are cut and resume; healthy ones with much to read aren't."""
    async with world.row(9, "1 % of the clients read 1 kB/s while 240 kB/s come for them") as row:
        runs: dict[bool, list[float]] = {False: [], True: []}
        for number in range(_PAIRS):
            # Turn and turn about, so that neither has what comes first.
            for with_slow in (False, True) if number % 2 == 0 else (True, False):
                last = with_slow and number == _PAIRS - 1
                runs[with_slow].append(await _run(world, slow=with_slow, to_the_end=last))
        healthy, beside = statistics.median(runs[False]), statistics.median(runs[True])
        row.check("p99 of the others", f"{healthy * 1000:.0f} ms", ok=True)
        allowed = max(healthy * 1.25, healthy + 0.005)
        row.check("beside slow readers", f"{beside * 1000:.0f} ms", beside <= allowed)
        cut = int(await world.cluster.total("endings:slow"))
        row.check("cut with slow, and resumed", cut, cut >= _SLOW)
    async with world.row(9, "healthy clients resume 5,000 events, and meet a burst of 5,000") as row:
        before = await world.cluster.total("endings:slow")
        absent = [world.client(f"absent{number}") for number in range(3)]
        met = [world.client(f"met{number}") for number in range(3)]
        await world.crowd.open([*absent, *met])
        await asyncio.sleep(0.5)
        for client in absent:
            client.retry_s = 8.0
            world.crowd.drop(client)
        users = [client.account.user for client in (*absent, *met)]
        for _ in range(_MANY_EVENTS):
            await world.producer.send(users, "news")
        await asyncio.sleep(15)
        got = min(len(client.account.receipts) for client in (*absent, *met))
        row.check("each got", got, got >= _MANY_EVENTS)
        cut = int(await world.cluster.total("endings:slow") - before)
        row.check("cut", cut, cut == 0)
        await world.settle()
        world.leave([*absent, *met])


async def _run(world: World, *, slow: bool, to_the_end: bool = False) -> float:
    """Some seconds with three people who get much; the p99 of everybody else in seconds.

    `to_the_end` waits until those who are slow have been cut, and have all of it as healthy clients.
    """
    stack = world.cluster.stack
    clients = [world.client(f"slow{n}", port=stack.nodes[n % 3].port) for n in range(_SLOW)]
    for client in clients:
        client.slow_s = _SLOW_STEP_S if slow else 0.0
    await world.crowd.open(clients)
    # What the clients have noted so far would be walked again and again, and be latency of our own.
    gc.collect()
    gc.freeze()
    begun = time.monotonic()
    count = 0
    while (spent := time.monotonic() - begun) < _RUN_S:
        while count < spent * _AIMED_PER_S:
            count += 1
            await world.producer.send([client.account.user for client in clients], "news", pad=8_000)
        await asyncio.sleep(0.02)
    last = await world.producer.send([client.account.user for client in clients], "news")
    latencies = _latencies(world, begun, begun + _RUN_S, {client.account.user for client in clients})

    async def cut() -> bool:
        return all(
            client.connection > 1
            and any(receipt.key == last.key for receipt in client.account.receipts[-99:])
            for client in clients
        )

    # Ended after 5 s without progress, dropped 10 s later, back after `retry`.
    if to_the_end:
        await poll(cut, limit_s=40)
    await asyncio.sleep(1.5)
    if slow and not to_the_end:
        world.crowd.close(clients)
    else:
        world.leave(clients, all_until_now=True)
    return latencies[int(len(latencies) * 0.99)]


def _latencies(world: World, begin: float, end: float, but: set[str]) -> Sequence[float]:
    sent = world.producer.ledger.sent
    found = [
        receipt.at - sent[receipt.key].at
        for client in world.crowd.clients
        if client.account.user not in but
        for receipt in client.account.receipts
        if begin < receipt.at < end
    ]
    return sorted(found)


async def dropped(world: World) -> None:
    """8,000 clients dropped at once."""
    quiet = [world.client(f"quiet{number}", types=["calm"]) for number in range(_MANY - world.scale.streams)]
    await world.crowd.open(quiet, per_second=500, limit_s=120)
    async with world.row(15, "8,000 clients dropped at once (nginx killed, back after 1 s)") as row:
        await _drop(world, row, quiet)
        await world.settle()
        world.leave(quiet)


async def _drop(world: World, row: Row, quiet: Sequence[Client]) -> None:
    nginx = world.cluster.stack.nginx
    calm = asyncio.create_task(_calm(world))
    reads = await _reads(world)
    nodes = [node.url for node in world.cluster.stack.nodes]
    probe = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "faults.lag", *nodes, stdin=-1, stdout=asyncio.subprocess.PIPE
    )
    nginx.kill()
    await asyncio.sleep(1)
    await asyncio.to_thread(nginx.start)
    back = time.monotonic()
    clients = world.crowd.clients

    async def all_back() -> bool:
        return all(client.ready_at is not None for client in clients)

    await poll(all_back, limit_s=60, step_s=0.2)
    times = sorted(client.ready_at - back if client.ready_at else 999.0 for client in clients)
    nearly = times[int(len(times) * 0.99)]
    row.check("99 % back after", f"{nearly:.1f} s", nearly <= 30)
    row.check("the last after", f"{times[-1]:.1f} s", times[-1] < 60)
    out, _ = await probe.communicate(b"")
    lag_s = float(out)
    row.check("loop lag p99", f"{lag_s * 1000:.0f} ms", lag_s < _LAG_S)
    read = await _reads(world) - reads
    logs = 65 * len(nodes)
    row.check("reads of logs in Redis", f"{read} for {len(clients)} clients", read <= 2 * logs)
    calm.cancel()
    await asyncio.wait([calm])
    gaps = sum(len(client.account.gap_notices) for client in quiet)
    row.check("gaps", gaps, gaps == 0)


async def _calm(world: World) -> None:
    while True:
        await world.producer.send(None, "calm")
        await asyncio.sleep(1)


async def _reads(world: World) -> int:
    """How often Redis was asked for entries of a log."""
    stats = await world.cluster.redis.info("commandstats")
    return int(stats.get("cmdstat_xrange", {}).get("calls", 0))
