"""How a node stops what runs for ever: one after the other, and not without end."""

import asyncio
from pathlib import Path

import pytest

from pushsse import node as module
from pushsse.build import build
from pushsse.node import Node, Service
from pushsse.settings import load
from tests.migrated import migrated
from tests.waiting import eventually

pytestmark = pytest.mark.anyio


def a_node(folder: Path) -> Node:
    return build(load({}, {"database_url": migrated(folder / "node.db")}))


def running() -> dict[str, "asyncio.Task[object]"]:
    """The running services, by their names."""
    return {task.get_name(): task for task in asyncio.all_tasks()}


class Closing:
    """Services that note their ends; each takes longer to close than the one before."""

    def __init__(self, *names: str) -> None:
        self.began: list[str] = []
        self.ended: list[str] = []
        # Whether the services that deliver had been told to end when the first of these had closed.
        self.delivering: list[bool] = []
        self.services: dict[str, Service] = {name: self._service(name, n) for n, name in enumerate(names)}

    def _service(self, name: str, turns: int) -> Service:
        async def run() -> None:
            self.began.append(name)
            try:
                await asyncio.Event().wait()
            finally:
                for _ in range(turns * 10):
                    await asyncio.sleep(0)
                self.delivering.append(running()["feed"].cancelling() == 0)
                self.ended.append(name)

        return run


async def test_each_service_has_ended_before_the_one_that_started_before_it_is_told_to(
    tmp_path: Path,
) -> None:
    closing = Closing("first", "second", "third")
    async with a_node(tmp_path).running(lambda: None, more=closing.services):
        await eventually(lambda: closing.began == ["first", "second", "third"])
    assert closing.ended == ["third", "second", "first"]
    # The intake is the last of the node's own to start.
    assert closing.delivering == [True, True, True]


async def test_a_service_that_does_not_end_holds_the_others_up_for_a_moment_only(tmp_path: Path) -> None:
    began, feed_ended = asyncio.Event(), asyncio.Event()

    async def hangs() -> None:
        feed = running()["feed"]
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.wait((feed,))
            feed_ended.set()

    async with asyncio.timeout(30), a_node(tmp_path).running(lambda: None, more={"hangs": hangs}):
        await began.wait()
    assert feed_ended.is_set()


async def test_a_service_that_loses_a_cancellation_is_told_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "IN_ORDER_S", 0.1)
    monkeypatch.setattr(module, "_AGAIN_S", 0.1)
    began = asyncio.Event()

    async def goes_on() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.Event().wait()

    async with asyncio.timeout(30), a_node(tmp_path).running(lambda: None, more={"goes on": goes_on}):
        await began.wait()
    assert "service goes on hasn't ended after 0.1 s, and is told again" in caplog.text
