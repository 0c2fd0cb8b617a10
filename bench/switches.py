"""What people cost who don't get an event: those who have its type off, and those who aren't here."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

import httpx

from bench.contestants import BenchNode, bearer, user
from bench.generator import Figures, Generator

SHARES = (0, 50, 90)
_EVENTS = 60
_AT_ONCE = 16


@dataclass
class Seen:
    """Figures by the percentage that has the type off."""

    off: dict[int, Figures] = field(default_factory=dict)
    other_off: Figures | None = None


def measure(node: BenchNode, load: Generator, count: int) -> Seen:
    """On open streams."""
    seen = Seen()
    for share in SHARES:
        off = [number for number in range(count) if number % 100 < share]
        kind = f"share{share}"
        load.each(node.publish(kind=kind), events=1, reach=count)
        asyncio.run(switch(node, {number: {kind: False} for number in off}))
        seen.off[share] = load.each(node.publish(kind=kind), events=_EVENTS, reach=count - len(off))
    seen.other_off = load.each(node.publish(), events=_EVENTS, reach=count)
    return seen


async def switch(node: BenchNode, wishes: Mapping[int, Mapping[str, bool]]) -> None:
    """As people do it: each with his own token."""
    waiting = list(wishes.items())
    async with httpx.AsyncClient(base_url=node.url, timeout=20) as client:

        async def some() -> None:
            while waiting:
                number, types = waiting.pop()
                name, _, value = bearer(user(number)).partition(": ")
                answer = await client.post("/v1/preferences", json={"types": types}, headers={name: value})
                answer.raise_for_status()

        async with asyncio.TaskGroup() as tasks:
            for _ in range(_AT_ONCE):
                tasks.create_task(some())
