"""The node's one in-process queue, between what the backplane lets it hear and its delivery.

A service. Idle, it delivers at once; under load it waits a moment after each delivery, so that what arrives
meanwhile leaves in one write per stream. Full, it stops reading: the log keeps what isn't read.
"""

import asyncio
from contextlib import aclosing

from pushsse.backplane.base import Backplane, Hearing
from pushsse.hub.delivery import Delivery

GATHER_S = 0.002
QUEUE_LENGTH = 10_000


class Feed:
    """Listens, and hands on in order."""

    def __init__(self, backplane: Backplane, delivery: Delivery) -> None:
        self._backplane = backplane
        self._delivery = delivery
        self._queue: asyncio.Queue[Hearing] = asyncio.Queue(QUEUE_LENGTH)

    @property
    def waiting(self) -> int:
        """How many hearings aren't delivered yet."""
        return self._queue.qsize()

    async def run(self) -> None:
        """Listens and delivers, for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listen(), name="listen")
            tasks.create_task(self._deliver(), name="deliver")

    async def _listen(self) -> None:
        async with aclosing(self._backplane.listen()) as hearings:
            async for hearing in hearings:
                await self._queue.put(hearing)

    async def _deliver(self) -> None:
        loop = asyncio.get_running_loop()
        rested_at = 0.0
        while True:
            batch = [await self._queue.get()]
            if (wait_s := rested_at - loop.time()) > 0:
                await asyncio.sleep(wait_s)
            while not self._queue.empty():
                batch.append(self._queue.get_nowait())
            self._delivery.deliver(batch)
            # What waits in a transport leaves when the loop turns: the rest begins after that.
            await asyncio.sleep(0)
            rested_at = loop.time() + GATHER_S
