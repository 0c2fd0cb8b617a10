"""Lets a reply hear one question's publications, wherever the answer is made. Called by api/reply."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pushsse.errors import BackplaneUnavailable
from pushsse.event import Publication
from pushsse.hub.hub import Hub

PATIENCE_S = 5.0
MOST_WAITING = 10_000


class Watch:
    """Hears what the hub hears of one person's question."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    @asynccontextmanager
    async def __call__(self, user: str, question_id: str) -> AsyncIterator[AsyncIterator[Publication]]:
        """Everything from now on, in order. Raises BackplaneUnavailable."""
        heard: asyncio.Queue[Publication] = asyncio.Queue(MOST_WAITING)

        def tap(publication: Publication) -> None:
            # Full only for a reader that is cut by its send timeout anyway.
            if not heard.full():
                heard.put_nowait(publication)

        async def publications() -> AsyncIterator[Publication]:
            while True:
                yield await heard.get()

        person = self._hub.hold(user)
        try:
            with self._hub.tap(question_id, tap):
                try:
                    async with asyncio.timeout(PATIENCE_S):
                        await self._hub.followed(person)
                except TimeoutError:
                    raise BackplaneUnavailable("the person's log isn't followed yet") from None
                yield publications()
        finally:
            self._hub.release(person)
