"""The feed hands on in order, at once when it is idle, gathered when deliveries cost something."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any, cast

import pytest

from pushsse import backplane
from pushsse.backplane import BROADCAST, Append, Draft, Entry, HeardLive, Hearing, NowaitListener
from pushsse.backplane.memory import MemoryBackplane
from pushsse.event import Publication
from pushsse.hub.delivery import Feed
from pushsse.metrics import Metrics

pytestmark = pytest.mark.anyio


class Heard:
    """A backplane that is only listened to, and a delivery that takes its time."""

    def __init__(self, cost_s: float = 0.0) -> None:
        self.cost_s = cost_s
        self.coming: asyncio.Queue[Hearing] = asyncio.Queue()
        self.batches: list[list[str]] = []
        self.feed = Feed(cast(Any, self), cast(Any, self))

    async def listen(self) -> AsyncGenerator[Hearing, None]:
        while True:
            yield await self.coming.get()

    def listen_nowait(self, ear: NowaitListener | None) -> None:
        self.ear = ear

    def deliver(self, hearings: Sequence[Hearing]) -> None:
        until = time.perf_counter() + self.cost_s
        self.batches.append([name(hearing) for hearing in hearings])
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


def name(hearing: Hearing) -> str:
    return hearing.entries[0].log if isinstance(hearing, backplane.Heard) else hearing.log


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


def published(log: str, *, events: int = 1) -> backplane.Heard:
    """What a backplane tells of events that were just published."""
    publication = Publication("a", b"", None)
    return backplane.Heard(tuple(Entry(log, number, number, 0, publication) for number in range(events)))


class Delivered:
    """A delivery that takes down what it is given, or fails."""

    def __init__(self, failure: Exception | None = None, *, cost_s: float = 0.0) -> None:
        self.heard: list[Hearing] = []
        self.failure = failure
        self.cost_s = cost_s

    def deliver(self, hearings: Sequence[Hearing]) -> None:
        if self.failure is not None:
            raise self.failure
        time.sleep(self.cost_s)
        self.heard += hearings

    def deliver_one(self, entry: backplane.Entry) -> None:
        self.deliver((backplane.Heard((entry,)),))

    @property
    def numbers(self) -> list[int]:
        entries = (heard.entries for heard in self.heard if isinstance(heard, backplane.Heard))
        return [entry.number for some in entries for entry in some]


def test_an_event_for_a_few_is_delivered_while_it_is_published() -> None:
    delivery = Delivered()
    feed = Feed(cast(Any, None), cast(Any, delivery))
    assert feed.hear(published("7"))
    assert delivery.heard == [published("7")]
    for later in (published(BROADCAST), published("7", events=2)):
        assert not feed.hear(later)
    assert delivery.heard == [published("7")]


async def test_what_waits_is_not_overtaken() -> None:
    heard = Heard(0.002)

    async def work() -> None:
        heard.hear(1)
        await heard.delivered(1)
        heard.hear(2)
        while not heard.feed.waiting:
            await asyncio.sleep(0)
        assert not heard.feed.hear(published("7"))
        assert await heard.delivered(2) == ["1", "2"]

    await running(heard, work())


async def test_what_is_published_at_once_overtakes_nothing_even_while_the_queue_is_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pushsse.hub.delivery.QUEUE_LENGTH", 1)
    log = MemoryBackplane(shards=1, keep_s=600, keep_bytes=1 << 20, metrics=Metrics())
    append = Append("0", (Draft(Publication("a", b"", ("ann",))),))
    delivery = Delivered(cost_s=0.001)
    deliverer = Feed(log, cast(Any, delivery))
    log.follow("0")
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(deliverer.run())
        for round in range(20):
            # While the feed rests after a delivery, one fills the queue and one waits for room.
            while len(delivery.heard) <= 3 * round:
                await asyncio.sleep(0)
            for _ in range(2):
                await log.publish([append])
                for _ in range(5):
                    await asyncio.sleep(0)
            while deliverer.waiting:
                await asyncio.sleep(0)
            log.publish_nowait([append])
        while len(delivery.numbers) < 60:
            await asyncio.sleep(0)
        running.cancel()
    assert delivery.numbers == list(range(1, 61))


async def test_a_delivery_that_fails_ends_the_feed_and_not_the_publisher() -> None:
    feed = Feed(cast(Any, Heard()), cast(Any, Delivered(ZeroDivisionError("a bug"))))
    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
            tasks.create_task(feed.run())
            await asyncio.sleep(0)
            assert feed.hear(published("7"))
