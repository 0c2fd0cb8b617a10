"""Lets few streams begin at a time: a storm of clients waits here, and the event loop has time for others.

Used by the stream endpoint.
"""

import asyncio

from pushsse.errors import Overloaded

PATIENCE_S = 15.0


class Queue:
    """At most `at_once` have a turn; the others wait in the order in which they came."""

    def __init__(self, at_once: int) -> None:
        self._room = asyncio.Semaphore(at_once)

    async def __aenter__(self) -> None:
        """A turn, while the context lasts. Raises Overloaded."""
        if self._room.locked():
            await self._wait()
        else:
            # At once, and without a timer.
            await self._room.acquire()

    async def __aexit__(self, *error: object) -> None:
        self._room.release()

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self._room.acquire()
        except TimeoutError:
            raise Overloaded(f"others have been opening streams for {PATIENCE_S:.0f} s") from None
