"""The node's one in-process queue, between the backplane's `listen` and delivery.

A service. While it is idle, each hearing passes the queue by. After a delivery to many streams it rests for
up to 2 ms, so that what arrives meanwhile leaves in one write per stream; after a delivery to few it doesn't,
because that would save nothing. When the queue is full it stops listening, and the log keeps what isn't read.
"""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from contextlib import aclosing

from pushsse.backplane import BROADCAST, Backplane, Heard, Hearing
from pushsse.hub.delivery import Delivery

MAX_REST_S = 0.002
# A rest is so many times as long as the delivery was: deliveries take a ninth of the time at most.
_REST_RATIO = 8
# The event loop's timers count in milliseconds: a shorter rest would be none.
_MIN_REST_S = 0.0005
# How many hearings are delivered in a row before other tasks have their turn.
_MAX_IN_A_ROW = 64
QUEUE_LENGTH = 10_000


class Feed:
    """Hands what the node hears to delivery, in order."""

    def __init__(self, backplane: Backplane, delivery: Delivery) -> None:
        self._backplane = backplane
        self._delivery = delivery
        self._queue: deque[Hearing] = deque()
        self._heard = asyncio.Event()
        self._room = asyncio.Event()
        self._rest_until = 0.0
        self._failure: Exception | None = None

    @property
    def waiting(self) -> int:
        """How many hearings aren't delivered yet."""
        return len(self._queue)

    async def run(self) -> None:
        """Listens and delivers, for ever. An error of the delivery ends it."""
        self._backplane.listen_nowait(self)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._listen(), name="listen")
                tasks.create_task(self._deliver_queue(), name="deliver")
        finally:
            self._backplane.listen_nowait(None)

    def hear(self, hearing: Heard) -> bool:
        """Delivers one event for a few within the call that publishes it; False where it has to wait.

        Order: nothing waits in the queue. A broadcast always goes through it: what comes while it is written
        to thousands can then be written together.
        """
        if self._queue or len(hearing.entries) != 1 or hearing.entries[0].log == BROADCAST:
            return False
        try:
            self._delivery.deliver((hearing,))
        except Exception as error:  # noqa: BLE001  it ends this service, not the publisher's request
            self._failure = error
            self._heard.set()
        return True

    async def _listen(self) -> None:
        in_a_row = 0
        async with aclosing(self._backplane.listen()) as hearings:
            async for hearing in hearings:
                # Guarantee 2: a hearing goes past the queue only while nothing waits in it, so it can't
                # overtake what was heard before it.
                if not self._queue and time.perf_counter() >= self._rest_until:
                    self._deliver((hearing,))
                    in_a_row += 1
                    if in_a_row == _MAX_IN_A_ROW:
                        in_a_row = 0
                        await asyncio.sleep(0)
                    continue
                self._queue.append(hearing)
                self._heard.set()
                # Guarantee 2: it is in the queue before this waits. With a hearing in hand, `hear` could find
                # the queue empty, and deliver first what comes after it.
                while len(self._queue) >= QUEUE_LENGTH:
                    self._room.clear()
                    await self._room.wait()

    async def _deliver_queue(self) -> None:
        while True:
            await self._heard.wait()
            if self._failure is not None:
                raise self._failure
            if (wait_s := self._rest_until - time.perf_counter()) > 0:
                await asyncio.sleep(wait_s)
            # Guarantee 2: emptied and delivered without an await between, so that `hear` and `_listen` see
            # either all of the batch waiting or all of it delivered.
            self._heard.clear()
            batch = tuple(self._queue)
            self._queue.clear()
            self._room.set()
            self._deliver(batch)
            rest_s = self._rest_until - time.perf_counter()
            # What waits in a transport leaves at the next turn of the loop; the rest begins after that.
            await asyncio.sleep(0)
            if rest_s > 0:
                self._rest_until = time.perf_counter() + rest_s

    def _deliver(self, batch: Sequence[Hearing]) -> None:
        began = time.perf_counter()
        self._delivery.deliver(batch)
        ended = time.perf_counter()
        rest_s = min(MAX_REST_S, (ended - began) * _REST_RATIO)
        self._rest_until = ended + rest_s if rest_s >= _MIN_REST_S else 0.0
