"""Reads the switches of all people who open a stream at about the same time with one question.

Asked by resume for each stream; a service. A single client's question is asked at once; when clients come
thick and fast, one query has those of some milliseconds, up to 64: more at once would keep the event
loop with their streams for too long.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice

from pushsse.errors import DatabaseUnavailable
from pushsse.preferences.views import Switches

MOST_AT_ONCE = 64
GATHER_S = 0.005
Answer = asyncio.Future[Switches]


class Reading:
    """Gathers questions while one is under way; what is asked is read after it was asked."""

    def __init__(
        self,
        read: Callable[[Sequence[str]], Awaitable[dict[str, Switches]]],
        *,
        now: Callable[[str], Switches | None] = lambda _: None,
    ) -> None:
        """`now` reads one person's at once, or says None."""
        self._read = read
        self._now = now
        self._answered_at = -GATHER_S
        self._waiting: dict[str, list[Answer]] = {}
        self._asked = asyncio.Event()

    async def switches(self, user: str) -> Switches:
        """One person's switches, as they are now. Raises DatabaseUnavailable."""
        clock = time.monotonic()
        if clock - self._answered_at >= GATHER_S and (found := self._now(user)) is not None:
            self._answered_at = clock
            return found
        answer: Answer = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(user, []).append(answer)
        self._asked.set()
        return await answer

    async def run(self) -> None:
        """Reads for whoever waits, for ever."""
        while True:
            await self._asked.wait()
            if time.monotonic() - self._answered_at < GATHER_S and len(self._waiting) < MOST_AT_ONCE:
                await asyncio.sleep(GATHER_S)
            waiting = dict(islice(self._waiting.items(), MOST_AT_ONCE))
            for user in waiting:
                del self._waiting[user]
            if not self._waiting:
                self._asked.clear()
            await self._answer(waiting)
            self._answered_at = time.monotonic()

    async def _answer(self, waiting: dict[str, list[Answer]]) -> None:
        found: dict[str, Switches] = {}
        failure: DatabaseUnavailable | None = None
        try:
            found = await self._read(list(waiting))
        except DatabaseUnavailable as error:
            failure = error
        for user, answers in waiting.items():
            for answer in answers:
                # Whoever asked may have gone.
                if answer.done():
                    continue
                if failure is None:
                    answer.set_result(found[user])
                else:
                    answer.set_exception(failure)
