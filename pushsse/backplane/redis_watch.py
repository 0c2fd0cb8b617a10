"""The canary: once a second Redis tells this node's own listener how its logs stand, over another connection.

A service of the Redis backplane. It keeps Redis's clock as well, and whether Redis answered a moment ago.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import cast

from pushsse.backplane.redis_link import Link, script
from pushsse.errors import BackplaneUnavailable

EVERY_S = 1.0
_SURE_WITHIN_S = 0.25
_ALIVE_MS = 10_000
_CHECK = script("check")


# Counts the time that a machine sleeps, too, where the system has such a clock (Linux).
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def elapsed_s() -> float:
    """Seconds on a clock that never jumps, and goes on while the process is stopped or the machine sleeps.

    With it the node knows Redis's time when it wakes, before it hears from Redis again: what expired
    meanwhile mustn't be written.
    """
    return time.clock_gettime(_CLOCK)


class Watch:
    """`run` for ever; the rest is what it has found out."""

    def __init__(self, link: Link, *, names: str, canary: bytes, logs: Callable[[], Iterable[str]]) -> None:
        self.available = False
        self._alive = f"{names}alive"
        self._link = link
        self._names = names
        self._canary = canary
        self._logs = logs
        self._ahead_ms: float | None = None  # of `elapsed_s`

    def now_ms(self) -> int:
        """Redis's clock, as far as known; until it has answered once, this machine's."""
        if self._ahead_ms is None:
            return time.time_ns() // 1_000_000
        return int(elapsed_s() * 1000 + self._ahead_ms)

    async def run(self) -> None:
        """Looks once a second."""
        while True:
            try:
                await self._look()
                # A replica, or a Redis that is full, hears and answers, and takes nothing.
                await self._link.call("SET", self._alive, "1", "PX", _ALIVE_MS)
                self.available = True
            except BackplaneUnavailable:
                self.available = False
            await asyncio.sleep(EVERY_S)

    async def _look(self) -> None:
        asked = elapsed_s()
        time_ms = cast(int, await self._link.run(_CHECK, self._names, self._canary, *self._logs()))
        took = elapsed_s() - asked
        if took < _SURE_WITHIN_S or self._ahead_ms is None:
            self._ahead_ms = time_ms - (asked + took / 2) * 1000
