"""Reads the switches of all people who open a stream at about the same time with one question.

Asked by resume for each stream; a service. A storm of reconnecting clients costs the database one query per
hundred people: more at once would keep the event loop with their streams for too long.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from pushsse.errors import DatabaseUnavailable
from pushsse.preferences.views import Switches

MOST_AT_ONCE = 100
Answer = asyncio.Future[Switches]


class Reading:
    """Gathers questions while one is under way; what is asked is read after it was asked."""

    def __init__(self, read: Callable[[Sequence[str]], Awaitable[dict[str, Switches]]]) -> None:
        self._read = read
        self._waiting: dict[str, Answer] = {}
        self._asked = asyncio.Event()

    async def switches(self, user: str) -> Switches:
        """One person's switches, as they are now. Raises DatabaseUnavailable."""
        answer = self._waiting.get(user)
        if answer is None:
            answer = self._waiting[user] = asyncio.get_running_loop().create_future()
            self._asked.set()
        # Shielded, since somebody else may wait for the same answer.
        return await asyncio.shield(answer)

    async def run(self) -> None:
        """Reads for whoever waits, for ever."""
        while True:
            await self._asked.wait()
            waiting = dict(list(self._waiting.items())[:MOST_AT_ONCE])
            for user in waiting:
                del self._waiting[user]
            if not self._waiting:
                self._asked.clear()
            await self._answer(waiting)

    async def _answer(self, waiting: dict[str, Answer]) -> None:
        try:
            found = await self._read(list(waiting))
        except DatabaseUnavailable as error:
            for answer in waiting.values():
                answer.set_exception(error)
                # Whoever asked may have gone: then nobody looks at it, and that is right.
                answer.exception()
            return
        for user, answer in waiting.items():
            answer.set_result(found[user])
