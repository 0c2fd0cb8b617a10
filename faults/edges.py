"""Events at every millisecond around a connect and around a resume."""

import asyncio
import random
import time
from bisect import bisect_left
from itertools import pairwise

from faults.client import Client
from faults.records import Key
from faults.world import World

_USER = "edge"
_EDGES = 5_000
_AT_ONCE = 12
_PER_S = 1_000
_LIMIT_S = 200.0


class _Edges:
    """What is due to the person in one partition, in order; and what was found wrong."""

    def __init__(self) -> None:
        self.index: dict[Key, int] = {}
        self.times: list[float] = []
        self.lives = 0
        self.gone = 0
        self.wrong: list[str] = []

    def due(self, key: Key, at: float) -> None:
        """The next event of the person's."""
        self.index[key] = len(self.times)
        self.times.append(at)

    def judge(self, client: Client) -> None:
        """A client's life: what it got must be a run without a hole, from where it was ready on."""
        got = [self.index[receipt.key] for receipt in client.account.receipts if receipt.key in self.index]
        self.lives += 1
        since = client.account.since
        if since is None or not got:
            self.gone += 1
        elif got != list(range(got[0], got[0] + len(got))):
            holes = [(a, b) for a, b in pairwise(got) if b != a + 1]
            self.wrong.append(f"{client.readies}: after {holes[0][0]} came {holes[0][1]}")
        elif got[0] > bisect_left(self.times, since):
            self.wrong.append(
                f"{client.readies}: began at {got[0]}, {bisect_left(self.times, since)} was due"
            )
        if any(resume == "gap" for _, resume in client.readies):
            self.wrong.append(f"told gap: {client.readies}")


async def around(world: World) -> None:
    """Events published at every millisecond around a connect and around a resume, 5,000 times."""
    async with world.row(13, "an event every millisecond around 5,000 connects and resumes") as row:
        edges = _Edges()
        async with asyncio.TaskGroup() as group:
            sending = group.create_task(_send(world, edges))
            begun = time.monotonic()

            async def live() -> None:
                while 2 * edges.lives < _EDGES and time.monotonic() - begun < _LIMIT_S:
                    await _life(world, edges)

            await asyncio.gather(*(live() for _ in range(_AT_ONCE)))
            sending.cancel()
        row.check("connects and resumes", 2 * edges.lives, 2 * edges.lives >= _EDGES)
        row.check("events meanwhile", len(edges.times), edges.times)
        row.check("with a gap or a repeat", len(edges.wrong), not edges.wrong)
        row.check("without any event", edges.gone, edges.gone < 0.01 * edges.lives)
        row.examples += edges.wrong[:5]


async def _life(world: World, edges: _Edges) -> None:
    """Connects, is cut after some milliseconds, resumes at once, and leaves."""
    client = world.client(_USER)
    await world.crowd.open([client], per_second=1e6)
    await asyncio.sleep(random.uniform(0.005, 0.05))
    client.impatient = True
    world.crowd.drop(client)
    until = time.monotonic() + 10
    while len(client.readies) < 2 and time.monotonic() < until:
        await asyncio.sleep(0.005)
    await asyncio.sleep(random.uniform(0.005, 0.05))
    world.crowd.close([client])
    edges.judge(client)


async def _send(world: World, edges: _Edges) -> None:
    begun, count = time.monotonic(), 0
    while True:
        while count < (time.monotonic() - begun) * _PER_S:
            count += 1
            sent = await world.producer.send([_USER], "news", partition=0)
            edges.due(sent.key, sent.at)
        await asyncio.sleep(0.001)
