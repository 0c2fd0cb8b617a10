"""Growths of answers on their way to Redis: those of many answers together, in one round trip.

Called by `RedisBackplane.grow`, over the connection that publishes: a delta stays behind the event before it,
and ahead of the next. Each is one run of grow.lua. While a round trip is under way, what comes waits for the
next one, so a hundred answers that grow at once need a few round trips each fiftieth of a second.
"""

import asyncio
from collections.abc import Callable
from typing import cast

from pushsse.backplane import codec
from pushsse.backplane.answers import ANSWER_KEEP_MS, Grew, Growth
from pushsse.backplane.redis.connection import Argument, RedisConnection, script
from pushsse.errors import BackplaneUnavailable

_GROW = script("grow")
# Nothing else is published meanwhile.
_MOST_TOGETHER = 64
_MOST_BYTES = 1024 * 1024
# A run's arguments, and whoever waits for its reply.
_Waiting = tuple[tuple[Argument, ...], asyncio.Future[Grew]]


class Growths:
    """What waits, and the task that sends it. `tasks` has to be set before the first."""

    def __init__(self, connection: RedisConnection, *, names: str, channel: Callable[[str], str]) -> None:
        self.tasks: asyncio.TaskGroup | None = None
        self._connection = connection
        self._names = names
        self._channel = channel
        self._waiting: list[_Waiting] = []
        self._sending: asyncio.Task[None] | None = None

    async def grow(self, growth: Growth) -> Grew:
        """One run of the script. Raises BackplaneUnavailable."""
        head = codec.pack(
            (
                growth.question,
                growth.attempt,
                growth.after,
                growth.seq,
                growth.whole,
                ANSWER_KEEP_MS,
                self._channel(growth.user),
                len(growth.parts),
            )
        )
        deltas = map(codec.encode_live, growth.publications)
        run: tuple[Argument, ...] = (
            self._names,
            head,
            growth.text.encode(),
            growth.status,
            *growth.parts,
            *deltas,
        )
        grown: asyncio.Future[Grew] = asyncio.get_running_loop().create_future()
        self._waiting.append((run, grown))
        if self._sending is None:
            assert self.tasks is not None
            # A task of its own: whoever asks may be cancelled, and others wait for the same reply.
            self._sending = self.tasks.create_task(self._send_all(), name="backplane growths")
        return await grown

    async def _send_all(self) -> None:
        try:
            while self._waiting:
                await self._send(self._next())
        finally:
            self._sending = None

    def _next(self) -> list[_Waiting]:
        count, size = 0, 0
        for run, _ in self._waiting[:_MOST_TOGETHER]:
            size += sum(len(argument) for argument in run if isinstance(argument, bytes))
            if count and size > _MOST_BYTES:
                break
            count += 1
        together, self._waiting = self._waiting[:count], self._waiting[count:]
        return together

    async def _send(self, together: list[_Waiting]) -> None:
        try:
            replies = await self._connection.run_many(_GROW, [run for run, _ in together])
        except BackplaneUnavailable as error:
            for _, grown in together:
                if not grown.done():
                    grown.set_exception(BackplaneUnavailable(str(error)))
            return
        except BaseException:
            for _, grown in together:
                grown.cancel()
            raise
        for (_, grown), reply in zip(together, replies, strict=True):
            # Whoever asked may have gone.
            if not grown.done():
                grown.set_result(Grew(cast(int, reply)))
