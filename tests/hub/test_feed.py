"""The feed hands on in order, at once when it is idle, gathered when deliveries cost something."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any, cast

import pytest

from pushsse.backplane import HeardLive, Hearing
from pushsse.event import Publication
from pushsse.hub.feed import Feed

pytestmark = pytest.mark.anyio


class Heard:
    """A backplane of which only `listen` is used, and a delivery that takes its time."""

    def __init__(self, cost_s: float = 0.0) -> None:
        self.cost_s = cost_s
        self.coming: asyncio.Queue[Hearing] = asyncio.Queue()
        self.batches: list[list[str]] = []
        self.feed = Feed(cast(Any, self), cast(Any, self))

    async def listen(self) -> AsyncGenerator[Hearing, None]:
        while True:
            yield await self.coming.get()

    def deliver(self, hearings: Sequence[HeardLive]) -> None:
        until = time.perf_counter() + self.cost_s
        self.batches.append([hearing.log for hearing in hearings])
        while time.perf_counter() < until:
            pass

    def hear(self, *names: object) -> None:
        for name in names:
            self.coming.put_nowait(HeardLive(str(name), Publication("a", b"", None)))

    async def delivered(self, count: int) -> list[str]:
        async with asyncio.timeout(10):
            while len(found := [name for batch in self.batches for name in batch]) < count:
                await asyncio.sleep(0)
        return found


async def running(heard: Heard, work: Any) -> None:
    async with asyncio.TaskGroup() as tasks:
        feed = tasks.create_task(heard.feed.run())
        await work
        feed.cancel()


@pytest.mark.parametrize("cost_s", [0.0, 0.001])
async def test_order_is_kept_whatever_a_delivery_costs(cost_s: float) -> None:
    heard = Heard(cost_s)

    async def work() -> None:
        for number in range(0, 300, 3):
            heard.hear(number, number + 1, number + 2)
            if number % 7 == 0:
                await asyncio.sleep(0)
            heard.cost_s = cost_s if number % 2 else 0.0
        assert await heard.delivered(300) == [str(number) for number in range(300)]
        assert heard.feed.waiting == 0

    await running(heard, work())


async def test_cheap_deliveries_are_made_at_once_and_dear_ones_gathered() -> None:
    heard = Heard()

    async def work() -> None:
        heard.hear(1)
        await heard.delivered(1)
        heard.hear(2)
        await heard.delivered(2)
        assert heard.batches == [["1"], ["2"]]
        heard.cost_s = 0.002
        heard.hear(3)
        await heard.delivered(3)
        heard.hear(4, 5, 6)
        await heard.delivered(6)
        assert heard.batches[2:] == [["3"], ["4", "5", "6"]]

    await running(heard, work())
