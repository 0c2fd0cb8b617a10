"""What people cost who don't get an event: those who have its type off, and those who aren't here."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain

import httpx

from bench.contestants import BenchNode, bearer, user
from bench.generator import Figures, Generator

SHARES = (0, 50, 90)
_EVENTS = 60
_TURNS = 4
_AT_ONCE = 16


@dataclass
class SwitchCosts:
    """An event for everybody before anybody has switched anything off, and after; and one of a type that
    some have off, turn by turn, by their percentage."""

    before: Figures | None = None
    after: Figures | None = None
    off: dict[int, list[Figures]] = field(default_factory=dict)

    def figures(self) -> list[Figures]:
        """All that was measured."""
        found = [self.before, self.after, *chain.from_iterable(self.off.values())]
        return [one for one in found if one is not None]


def measure(node: BenchNode, load: Generator, count: int) -> SwitchCosts:
    """On open streams. The types take turns."""
    kinds = {share: f"share{share}" for share in SHARES}
    for kind in kinds.values():
        load.each(node.publish(kind=kind), events=1, reach=count)
    costs = SwitchCosts(before=load.each(node.publish(), events=_EVENTS, reach=count))
    off = {share: [number for number in range(count) if number % 100 < share] for share in SHARES}
    wishes: dict[int, dict[str, bool]] = {}
    for share, people in off.items():
        for number in people:
            wishes.setdefault(number, {})[kinds[share]] = False
    asyncio.run(switch(node, wishes))
    costs.after = load.each(node.publish(), events=_EVENTS, reach=count)
    for _ in range(_TURNS):
        for share, kind in kinds.items():
            figures = load.each(
                node.publish(kind=kind), events=_EVENTS // _TURNS, reach=count - len(off[share])
            )
            costs.off.setdefault(share, []).append(figures)
    return costs


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
