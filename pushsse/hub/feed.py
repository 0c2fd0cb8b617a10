"""The node's one in-process queue, between what the backplane lets it hear and its delivery.

A service. Idle, it delivers at once. After a delivery that cost something it waits a moment, so that what
arrives meanwhile leaves in one write per stream; after one to a few it doesn't, since nothing would be saved.
Full, it stops reading: the log keeps what isn't read.
"""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from contextlib import aclosing

from pushsse.backplane import BROADCAST, Backplane, Heard, Hearing
from pushsse.hub.delivery import Delivery

GATHER_S = 0.002
# A wait is so many times as long as the delivery was: deliveries take a ninth of the time at most.
_TIMES = 8
# The event loop counts in milliseconds: a shorter wait is none.
_LEAST_S = 0.0005
_IN_A_ROW = 64
QUEUE_LENGTH = 10_000


class Feed:
    """Listens, and hands on in order."""

    def __init__(self, backplane: Backplane, delivery: Delivery) -> None:
        self._backplane = backplane
        self._delivery = delivery
        self._queue: deque[Hearing] = deque()
        self._heard = asyncio.Event()
        self._room = asyncio.Event()
        self._rested_at = 0.0
        self._failure: Exception | None = None

    @property
    def waiting(self) -> int:
        """How many hearings aren't delivered yet."""
        return len(self._queue)

    async def run(self) -> None:
        """Listens and delivers, for ever."""
        self._backplane.hear_at_once(self)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._listen(), name="listen")
                tasks.create_task(self._deliver_queue(), name="deliver")
        finally:
            self._backplane.hear_at_once(None)

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
                # What waits stays in the queue until it is delivered: nothing overtakes it here.
                if not self._queue and time.perf_counter() >= self._rested_at:
                    self._deliver((hearing,))
                    in_a_row += 1
                    if in_a_row == _IN_A_ROW:
                        in_a_row = 0
                        await asyncio.sleep(0)
                    continue
                while len(self._queue) >= QUEUE_LENGTH:
                    self._room.clear()
                    await self._room.wait()
                self._queue.append(hearing)
                self._heard.set()

    async def _deliver_queue(self) -> None:
        while True:
            await self._heard.wait()
            if self._failure is not None:
                raise self._failure
            if (wait_s := self._rested_at - time.perf_counter()) > 0:
                await asyncio.sleep(wait_s)
            self._heard.clear()
            batch = tuple(self._queue)
            self._queue.clear()
            self._room.set()
            self._deliver(batch)
            rest_s = self._rested_at - time.perf_counter()
            # What waits in a transport leaves when the loop turns: the rest begins after that.
            await asyncio.sleep(0)
            if rest_s > 0:
                self._rested_at = time.perf_counter() + rest_s

    def _deliver(self, batch: Sequence[Hearing]) -> None:
        began = time.perf_counter()
        self._delivery.deliver(batch)
        ended = time.perf_counter()
        rest_s = min(GATHER_S, (ended - began) * _TIMES)
        self._rested_at = ended + rest_s if rest_s >= _LEAST_S else 0.0
