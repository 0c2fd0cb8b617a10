"""Scrapes of a service with workers: who shares a collection, and how the numbers of processes combine."""

import asyncio
import socket
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest

from pushsse.build import build
from pushsse.errors import Unavailable
from pushsse.metrics import Metrics
from pushsse.settings import load
from pushsse.workers.supervisor import Scraper
from pushsse.workers.worker import MAX_LINE, SupervisorGone, Worker
from tests.waiting import eventually

pytestmark = pytest.mark.anyio


class Counting:
    """One worker's metrics, with how often they were collected and a counter."""

    def __init__(self) -> None:
        self.collected = 0
        self.metrics = Metrics(appended=1)
        self.metrics.gauge("collections", "sum", "Times that this was asked", self._ask)

    def _ask(self) -> float:
        self.collected += 1
        return self.collected


@asynccontextmanager
async def task(work: Coroutine[object, None, None]) -> AsyncIterator[None]:
    """Runs something while the context lasts."""
    running = asyncio.create_task(work)
    try:
        yield
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError, SupervisorGone):
            await running


@asynccontextmanager
async def workers(*all_metrics: Metrics) -> AsyncIterator[tuple[Worker, ...]]:
    """A supervisor's scraper, and a worker for each metrics, in one process."""
    async with AsyncExitStack() as stack:
        scraper = Scraper(workers=len(all_metrics), ready=lambda: None)
        await stack.enter_async_context(task(scraper.run()))
        made = []
        for index, metrics in enumerate(all_metrics):
            ours, theirs = socket.socketpair()
            reader, writer = await asyncio.open_unix_connection(sock=ours, limit=MAX_LINE)
            await stack.enter_async_context(task(scraper.receive(index, reader, writer)))
            worker = Worker(theirs)
            await stack.enter_async_context(task(worker.run(metrics)))
            made.append(worker)

        async def all_are_there() -> bool:
            return f"pushsse_workers {len(made)}.0" in (await made[0].exposition()).decode()

        await eventually(all_are_there)
        yield tuple(made)


def node_metrics(folder: Path) -> Metrics:
    """Those of a whole node."""
    settings = load({}, {"database_url": f"sqlite://{folder / 'node.db'}"})
    return build(settings).metrics


async def test_a_gauge_of_several_processes_is_what_its_declaration_says(tmp_path: Path) -> None:
    one, other = node_metrics(tmp_path), node_metrics(tmp_path)
    for at, metrics in enumerate((one, other), 1):
        metrics.gauges = {
            name: asked._replace(ask=lambda at=at: at)  # type: ignore[misc]
            for name, asked in metrics.gauges.items()
        }
        metrics.counters = {
            name: asked._replace(ask=lambda at=at: at)  # type: ignore[misc]
            for name, asked in metrics.counters.items()
        }
        metrics.lag["events", "0"] = at
    async with workers(one, other) as made:
        lines = [line.rpartition(" ") for line in (await made[0].exposition()).decode().splitlines()]
    found = {name: float(value) for name, _, value in lines if not name.startswith("#")}
    # Streams and what is about them are in one process each.
    for name in ("connections", "streams_behind", "people", "hearings_waiting", "database_failures_total"):
        assert found[f"pushsse_{name}"] == 3, name
    # Each process knows all of these; a partition is one process's.
    for name in ("kicked", "types", "isolated", 'kafka_lag{partition="0",topic="events"}'):
        assert found[f"pushsse_{name}"] == 2, name
    for name in ("backplane_available", "database_available"):
        assert found[f"pushsse_{name}"] == 1, name


async def test_however_many_ask_one_collection_runs_and_one_waits() -> None:
    counting = [Counting(), Counting()]
    async with workers(*(each.metrics for each in counting)) as made:
        before = [each.collected for each in counting]
        scrapes = [asyncio.create_task(made[n % 2].exposition()) for n in range(200)]
        found = {await scrape for scrape in scrapes}
        assert all(b"pushsse_appended_total 2.0" in each for each in found)
        # The first of a worker, and one for those who came while it ran: of two workers four at most.
        assert all(each.collected - past <= 4 for each, past in zip(counting, before, strict=True))


async def test_a_scrape_never_gets_what_was_counted_before_it_came() -> None:
    counting = Counting()
    async with workers(counting.metrics) as (worker,):
        for _ in range(50):
            first = asyncio.create_task(worker.exposition())
            # At any point of the first one's way to the supervisor and back.
            for _ in range(counting.metrics.appended % 12):
                await asyncio.sleep(0)
            counting.metrics.appended += 1
            second = await worker.exposition()
            assert f"pushsse_appended_total {counting.metrics.appended}.0" in second.decode()
            await first


async def test_who_gives_up_takes_nobody_s_answer_away() -> None:
    async with workers(Metrics()) as (worker,):
        scrapes = [asyncio.create_task(worker.exposition()) for _ in range(10)]
        await asyncio.sleep(0)
        for scrape in scrapes[:5]:
            scrape.cancel()
        assert all([b"pushsse_workers 1.0" in await scrape for scrape in scrapes[5:]])


async def test_a_scrape_that_waits_when_the_link_ends_is_refused() -> None:
    ours, theirs = socket.socketpair()
    worker = Worker(theirs)
    async with task(worker.run(Metrics())):
        scrape = asyncio.create_task(worker.exposition())
        with ours:
            ours.setblocking(False)
            heard = b""
            while b"scrape" not in heard:
                heard += await asyncio.get_running_loop().sock_recv(ours, 4096)
        with pytest.raises(Unavailable):
            await asyncio.wait_for(scrape, 1.0)
