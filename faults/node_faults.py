"""Faults of nodes: killed, restarted one after another, a clock that is off, two releases side by side."""

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable

from deploy.parts import Node
from faults.client import Client
from faults.nodes import ClockNode, NextNode, SlowClockNode
from faults.report import Row
from faults.resources import poll
from faults.shaking import shake
from faults.sleeper import Sleeper
from faults.world import PEOPLE, World

_SLACK_S = 5.0
_QUIET_CLIENTS = 1_200
_WINDOW_S = 10.0
# Two seconds unready, ten for the streams, five for what else is open, and two of grace.
_EXIT_S = 19.0
# Two seconds at most, and what a busy machine adds.
_QUICK_S = 4.0


async def killed(world: World) -> None:
    """A node killed (-9) with its clients."""
    async with world.row(7, "node killed (-9) with its clients") as row:
        # A node that was away has none: who left it stays where he went.
        by_node = Counter(client.node for client in world.crowd.clients)
        node = max(world.cluster.stack.nodes, key=lambda node: by_node[node.name])
        victims = [client for client in world.crowd.clients if client.node == node.name]
        node.kill()

        async def caught_up() -> bool:
            return all(_late_s(world, client) < float("inf") for client in victims)

        await poll(caught_up, limit_s=14)
        late = sorted(_late_s(world, client) for client in victims)
        in_time = sum(each <= _SLACK_S for each in late) / len(late)
        row.check("its clients", len(victims), len(victims) > world.scale.streams / 6)
        row.check(f"caught up elsewhere within retry + {_SLACK_S:.0f} s", f"{in_time:.1%}", in_time >= 0.99)
        row.check("the last after retry +", f"{late[-1]:.1f} s", ok=True)
        await asyncio.to_thread(node.start)
        await asyncio.sleep(1 if world.scale.fast else 3)


def _late_s(world: World, client: Client) -> float:
    """How long after its `retry` a client got the first event that was sent after it was back."""
    if not client.endings or client.ready_at is None:
        return float("inf")
    ended, ready_at = client.endings[0], client.readies[0][0]
    for receipt in client.account.receipts:
        if world.producer.ledger.sent[receipt.key].at > ready_at:
            return receipt.at - ended.at - ended.retry_s
    return float("inf")


async def restarted(world: World) -> None:
    """A rolling restart of all nodes with SIGTERM."""
    quiet = [world.client(f"quiet{number}", types=["calm"]) for number in range(_QUIET_CLIENTS)]
    await world.crowd.open(quiet)
    async with world.row(
        8, f"rolling restart (SIGTERM) of all nodes, {world.scale.streams + _QUIET_CLIENTS} streams"
    ) as row:
        peaks: list[tuple[float, str]] = []
        exits: list[float] = []
        for node in world.cluster.stack.nodes:
            theirs = [client for client in world.crowd.clients if client.node == node.name]
            token = world.cluster.token("sleeper")
            async with Sleeper(node.port, token), Sleeper(node.port, token):
                # More than fits into any buffer on the way.
                await world.producer.send(["sleeper"], "news", pad=30_000)
                await asyncio.sleep(1)
                for _ in range(16):
                    await world.producer.send(["sleeper"], "news", pad=30_000)
                await asyncio.sleep(0.3)
                begun = time.monotonic()
                node.terminate()
                status = await asyncio.to_thread(node.wait, 40)
                exits.append(time.monotonic() - begun)
                row.check(f"{node.name} ended with", status, status == 0)
            await asyncio.to_thread(node.start)
            await asyncio.sleep(3)
            _check_leaving(row, theirs)
            peak, most = _peak(theirs, begun), 1.5 * len(theirs) / _WINDOW_S
            peaks.append((peak / most, f"{peak} of {most:.0f}"))
        row.check("exit after at most", f"{max(exits):.1f} s", max(exits) <= _EXIT_S)
        row.check("peak of reconnects per second", max(peaks)[1], max(peaks)[0] < 1)
        for _ in range(3):
            await world.producer.send(None, "calm")
        await world.settle()
        world.leave(quiet)


async def signalled(world: World) -> None:
    """A second SIGTERM, and SIGHUP."""
    # Nodes that are started under nohup ignore SIGHUP, as they should.
    other = signal.SIGTERM if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else signal.SIGHUP
    async with world.row(20, f"SIGTERM twice at one node, {other.name} at another") as row:
        for number, signals, expected in (
            (1, (signal.SIGTERM, signal.SIGTERM), 128 + signal.SIGTERM),
            (2, (other,), 0),
        ):
            node = world.cluster.stack.node(number)
            theirs = [client for client in world.crowd.clients if client.node == node.name]
            for sent in signals:
                node.send(sent)
                await asyncio.sleep(0.5)
            begun = time.monotonic()
            status = await asyncio.to_thread(node.wait, 40)
            took_s = time.monotonic() - begun
            row.check(f"{node.name} ended with", status, status == expected)
            if status:
                told = sum(client.endings[-1].code == "shutdown" for client in theirs if client.endings)
                row.check("after", f"{took_s:.1f} s", took_s < _QUICK_S)
                row.check("told shutdown", f"{told} of {len(theirs)}", 0 < told == len(theirs))
            else:
                _check_leaving(row, theirs)
            await asyncio.to_thread(node.start)
            await asyncio.sleep(3)


def _check_leaving(row: Row, clients: Iterable[Client]) -> None:
    endings = [client.endings[-1] for client in clients if client.endings]
    told = sum(ending.code == "shutdown" and ending.clean for ending in endings)
    times = sorted(ending.at for ending in endings)
    spread_s = times[-1] - times[0] if times else 0.0
    row.check("told shutdown", f"{told} of {len(endings)}", told == len(endings))
    row.check("over", f"{spread_s:.1f} s", 0.7 * _WINDOW_S < spread_s < 1.2 * _WINDOW_S)


def _peak(clients: Iterable[Client], since: float) -> int:
    """The most connections opened in any one second."""
    times = sorted(at for client in clients for at in client.opened if at > since)
    return max((sum(at <= other < at + 1 for other in times) for at in times), default=0)


async def clock(world: World) -> None:
    """The clock of one node is five minutes off, ahead and behind."""
    for make, word in ((ClockNode, "ahead"), (SlowClockNode, "behind")):
        await exchange(world, 2, make)
        what = f"clock of one node 5 minutes {word}; events that expire after 4 minutes"
        async with world.row(16, what) as row:
            await _shaken(world, row, 2)
    await exchange(world, 2, world.cluster.make)


async def side_by_side(world: World) -> None:
    """A node and its next version on one Redis."""
    await exchange(world, 1, NextNode)
    async with world.row(17, "a node and its next version side by side on one Redis") as row:
        await _shaken(world, row, 1)
    await exchange(world, 1, world.cluster.make)


async def _shaken(world: World, row: Row, number: int) -> None:
    """Clients come and go between that node and the others, and flip switches."""
    node = world.cluster.stack.node(number)
    before = (await world.cluster.metrics(node)).get("appended", 0)
    flips = await shake(world, 15, people=PEOPLE[:60], flips_per_s=4, drops_per_s=10)
    now = await world.cluster.metrics(node)
    row.check("flips", flips, flips > 20)
    row.check("streams at that node", int(now["connections"]), now["connections"] > 20)
    appended = int(now["appended"] - before)
    row.check("appended by it", appended, appended > 100)


async def exchange(world: World, number: int, make: Callable[..., Node]) -> None:
    """Puts another kind of node in a node's place; its clients come back."""
    world.cluster.stack.node(number).kill()
    node = world.cluster.replace(number, make)
    await asyncio.to_thread(node.start)

    async def whole() -> bool:
        return all(client.ready_at is not None for client in world.crowd.clients)

    await poll(whole, limit_s=20)
    # The other members of the group wait for the dead one to be given up.
    await asyncio.sleep(12)
    # Least connections: who comes now goes to the new one.
    for client in world.crowd.clients[::6]:
        world.crowd.drop(client)
    await asyncio.sleep(1)
    await poll(whole, limit_s=20)
