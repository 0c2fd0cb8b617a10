"""The supervisor's ear: who serves, and the numbers of all workers as one.

A scrape of any worker comes here. A counter never goes back while the supervisor lives: what a worker last
told is kept when it is gone, or doesn't answer; lost is only what it counted after it was last asked.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field

import msgspec

from pushsse.workers.gathered import Exposition, Family, Sum
from pushsse.workers.words import Asked, Hello, Ready, Scrape, Scraped, Told, line, read

log = logging.getLogger(__name__)
ANSWER_S = 1.0


@dataclass(slots=True, eq=False)
class Link:
    """A worker's connection, and what it last told."""

    index: int
    writer: asyncio.StreamWriter
    families: tuple[Family, ...] = ()
    turn: int = 0
    answered: asyncio.Event = field(default_factory=asyncio.Event)

    def hear(self, told: Told) -> None:
        """The worker's numbers."""
        self.families = told.families
        self.turn = max(self.turn, told.turn)
        self.answered.set()


class Gatherer:
    """Listens for workers. `served` counts how often each came to serve; the supervisor counts `restarts`."""

    def __init__(self, *, workers: int, ready: Callable[[], None]) -> None:
        self.served: Counter[int] = Counter()
        self.restarts = 0
        self._workers = workers
        self._ready: Callable[[], None] | None = ready
        self._links: set[Link] = set()
        self._gone = Sum()
        self._turn = 0
        self._scraping = asyncio.Lock()

    async def attend(self, index: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Hears one worker until its link ends."""
        link = Link(index, writer)
        with closing(writer):
            try:
                async with asyncio.TaskGroup() as scrapes:
                    await self._hear(link, reader, scrapes)
            except* ConnectionError:
                # The worker is gone; its exit status says more.
                pass
            except* (OSError, ValueError, msgspec.DecodeError) as errors:
                log.warning("the link to worker %d broke: %r", index, errors.exceptions[0])

    async def exposition(self) -> bytes:
        """All numbers, in Prometheus' text format."""
        async with self._scraping:
            self._turn += 1
            asked = set(self._links)
            for link in asked:
                link.answered.clear()
                link.writer.write(line(Asked(self._turn)))
            try:
                async with asyncio.timeout(ANSWER_S):
                    for link in asked:
                        await link.answered.wait()
            except TimeoutError:
                pass
            return Exposition(self._sum()).text()

    def _sum(self) -> tuple[Family, ...]:
        total, unanswered = Sum(), 0
        total.add(self._gone.families())
        for link in self._links:
            silent = link.turn != self._turn
            unanswered += silent
            total.add(link.families, counters_only=silent)
        total.add(self._own(unanswered))
        return total.families()

    def _own(self, unanswered: int) -> tuple[Family, ...]:
        restarts = (("pushsse_worker_restarts_total", (), float(self.restarts)),)
        workers = (("pushsse_workers", (), float(len(self._links))),)
        return (
            Family("pushsse_workers", "gauge", "Workers", workers),
            Family(
                "pushsse_workers_unanswered",
                "gauge",
                "Workers that didn't answer this scrape: their gauges are missing",
                (("pushsse_workers_unanswered", (), float(unanswered)),),
            ),
            Family("pushsse_worker_restarts", "counter", "Workers that died and were replaced", restarts),
        )

    async def _hear(self, link: Link, reader: asyncio.StreamReader, scrapes: asyncio.TaskGroup) -> None:
        try:
            while sent := await reader.readline():
                word = read(sent)
                if isinstance(word, Hello):
                    self._links.add(link)
                elif isinstance(word, Told):
                    link.hear(word)
                elif isinstance(word, Ready):
                    self._serves(link.index)
                elif isinstance(word, Scrape):
                    # A task: the answer waits for this worker's own numbers, too.
                    scrapes.create_task(self._answer(link, word.number), name=f"scrape {link.index}")
        finally:
            self._links.discard(link)
            self._gone.add(link.families, counters_only=True)
            link.answered.set()

    async def _answer(self, link: Link, number: int) -> None:
        text = (await self.exposition()).decode()
        link.writer.write(line(Scraped(number, text)))
        await link.writer.drain()

    def _serves(self, index: int) -> None:
        self.served[index] += 1
        if self._ready is not None and len(self.served) == self._workers:
            self._ready()
            self._ready = None
