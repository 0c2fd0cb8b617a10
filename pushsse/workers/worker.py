"""A worker's link to its supervisor: it says when it serves, tells its numbers, and asks for everybody's.

Handed to the node by `server.serve`. When the link ends the supervisor is gone, and so is the worker soon.
"""

import asyncio
import itertools
import socket
from collections.abc import Callable, Iterable
from contextlib import closing

from prometheus_client.core import Metric

from pushsse.settings import Settings
from pushsse.workers.gathered import Exposition, families
from pushsse.workers.words import MAX_LINE, Asked, Begin, Hello, Ready, Scrape, Scraped, Told, line, read

_SCRAPE_S = 3.0
Collect = Callable[[], Iterable[Metric]]


class SupervisorGone(Exception):
    """The supervisor has ended without a word."""


class Worker:
    """One worker's side of a socket pair."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._serving = asyncio.Event()
        self._writer: asyncio.StreamWriter | None = None
        self._scrapes: dict[int, asyncio.Future[bytes]] = {}
        self._numbers = itertools.count(1)

    def settings(self) -> Settings:
        """The supervisor's first word. Raises SupervisorGone."""
        # Unbuffered, so that what follows stays in the socket for `run`.
        with self._link.makefile("rb", buffering=0) as sent:
            told = sent.readline()
        if not told:
            raise SupervisorGone
        begin = read(told)
        assert isinstance(begin, Begin)
        return begin.settings

    def ready(self) -> None:
        """The worker serves."""
        self._serving.set()

    async def run(self, collect: Collect) -> None:
        """Answers the supervisor for as long as the node runs. Raises SupervisorGone."""
        try:
            reader, writer = await asyncio.open_unix_connection(sock=self._link, limit=MAX_LINE)
        except OSError as error:
            raise SupervisorGone from error
        with closing(writer):
            self._writer = writer
            writer.write(line(Hello()))
            async with asyncio.TaskGroup() as tasks:
                told = tasks.create_task(self._tell_ready(writer), name="tell ready")
                try:
                    while sent := await reader.readline():
                        self._hear(sent, writer, collect)
                except OSError as error:
                    raise SupervisorGone from error
                finally:
                    told.cancel()
                    self._writer = None
                    # The last numbers: what was counted since somebody asked.
                    writer.write(line(Told(0, families(collect()))))
        raise SupervisorGone

    def _hear(self, sent: bytes, writer: asyncio.StreamWriter, collect: Collect) -> None:
        word = read(sent)
        if isinstance(word, Asked):
            writer.write(line(Told(word.turn, families(collect()))))
        elif isinstance(word, Scraped):
            waiting = self._scrapes.get(word.number)
            if waiting is not None and not waiting.done():
                waiting.set_result(word.text.encode())

    async def exposition(self, collect: Collect) -> bytes:
        """The numbers of all workers, or, if the supervisor doesn't answer in time, this one's own."""
        if self._writer is not None:
            number = next(self._numbers)
            answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
            self._scrapes[number] = answer
            try:
                self._writer.write(line(Scrape(number)))
                async with asyncio.timeout(_SCRAPE_S):
                    return await answer
            except TimeoutError:
                pass
            finally:
                del self._scrapes[number]
        return Exposition(families(collect())).text()

    async def _tell_ready(self, writer: asyncio.StreamWriter) -> None:
        await self._serving.wait()
        writer.write(line(Ready()))
