"""What the nodes hold on to: open files, memory, and tracebacks in their logs. Asked by the world."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping

from faults.cluster import Cluster
from faults.report import Row

# An idle connection to a node, nginx's or a producer's, ends after 75 s. People who have left are remembered
# for 120 s, and the memory of thousands of streams isn't given back to the system before.
_LIMIT_S = 150.0
_FILES_SPARE = 3


class Resources:
    """Remembers what warm nodes have, and looks whether they are back there."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._files = 0
        self._rss: Mapping[str, int] = {}

    async def note(self) -> None:
        """The nodes are warm and quiet now."""
        self._cluster.tracebacks()
        self._files, self._rss = await self._cluster.files(), self._cluster.rss()

    async def look(self, row: Row) -> None:
        """Adds to the row what the nodes hold, once they are back or the limit is reached."""
        await poll(self._are_back, limit_s=_LIMIT_S)
        files = await self._cluster.files() - self._files
        row.check("files", f"{files:+d}", files <= _FILES_SPARE)
        now = self._cluster.rss()
        most = max(now, key=lambda name: now[name] / self._base(name))
        grown = now[most] / self._base(most) - 1
        row.check("memory", f"{grown:+.0%} to {now[most] / 1e6:.0f} MB", self._memory_is_back())

    def look_for_tracebacks(self, row: Row) -> None:
        """Adds them to the row, if there are any."""
        if tracebacks := self._cluster.tracebacks():
            row.check("tracebacks", tracebacks, ok=False)

    async def _are_back(self) -> bool:
        return self._memory_is_back() and await self._cluster.files() - self._files <= _FILES_SPARE

    def _memory_is_back(self) -> bool:
        rss = self._cluster.rss()
        return all(held <= self._base(name) * 1.1 + 5 * 1024**2 for name, held in rss.items())

    def _base(self, name: str) -> int:
        return self._rss.get(name) or max(self._rss.values())


async def poll(check: Callable[[], Awaitable[bool]], *, limit_s: float, step_s: float = 0.5) -> float:
    """Asks until it holds or the limit is reached; seconds that it took."""
    begun = time.monotonic()
    while not await check() and time.monotonic() - begun < limit_s:
        await asyncio.sleep(step_s)
    return time.monotonic() - begun
