"""Many clients that open streams at once: few have a turn at a time, and everybody's comes."""

import asyncio

import pytest

from pushsse.api import stream
from pushsse.api.stream import Queue
from pushsse.errors import Overloaded

pytestmark = pytest.mark.anyio


async def test_few_have_a_turn_at_a_time_and_the_others_follow_in_order() -> None:
    waiting = Queue(3)
    inside: list[int] = []
    done: list[int] = []

    async def enter(number: int) -> None:
        async with waiting:
            inside.append(number)
            assert len(inside) <= 3
            await asyncio.sleep(0)
            inside.remove(number)
            done.append(number)

    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        for number in range(50):
            group.create_task(enter(number))
    assert done == sorted(done)


async def test_who_waits_too_long_is_told_that_the_node_is_overloaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stream, "PATIENCE_S", 0.05)
    waiting = Queue(1)
    async with waiting:
        with pytest.raises(Overloaded):
            async with waiting:
                pass
    async with asyncio.timeout(5), waiting:
        pass
