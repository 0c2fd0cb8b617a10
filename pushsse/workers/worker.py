"""A worker's link to its supervisor: it says when it serves, tells its numbers, and asks for everybody's.

Handed to the node by `server.serve`. When the link ends the supervisor is gone, and so is the worker soon.
"""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path

import msgspec
from prometheus_client.core import Metric

from pushsse.workers.gathered import Exposition, families
from pushsse.workers.words import MAX_LINE, Asked, Hello, Ready, Scrape, Told, line, read

_SCRAPE_S = 3.0
Collect = Callable[[], Iterable[Metric]]


class SupervisorGone(Exception):
    """The supervisor has ended without a word."""


class Worker:
    """One worker's side."""

    def __init__(self, socket: Path, index: int) -> None:
        self._socket = socket
        self._index = index
        self._serving = asyncio.Event()

    def ready(self) -> None:
        """The worker serves."""
        self._serving.set()

    async def run(self, collect: Collect) -> None:
        """Answers the supervisor for as long as the node runs. Raises SupervisorGone."""
        try:
            reader, writer = await asyncio.open_unix_connection(self._socket, limit=MAX_LINE)
        except OSError as error:
            raise SupervisorGone from error
        with closing(writer):
            writer.write(line(Hello(self._index)))
            async with asyncio.TaskGroup() as tasks:
                told = tasks.create_task(self._tell_ready(writer), name="tell ready")
                try:
                    while sent := await reader.readline():
                        word = read(sent)
                        if isinstance(word, Asked):
                            writer.write(line(Told(word.turn, families(collect()))))
                finally:
                    told.cancel()
                    # The last numbers: what was counted since somebody asked.
                    writer.write(line(Told(0, families(collect()))))
        raise SupervisorGone

    async def exposition(self, collect: Collect) -> bytes:
        """The numbers of all workers, or, if the supervisor doesn't answer in time, this one's own."""
        try:
            async with asyncio.timeout(_SCRAPE_S):
                reader, writer = await asyncio.open_unix_connection(self._socket)
                with closing(writer):
                    writer.write(line(Scrape()))
                    if text := await reader.read(-1):
                        return text
        except (OSError, TimeoutError, msgspec.DecodeError):
            pass
        return Exposition(families(collect())).text()

    async def _tell_ready(self, writer: asyncio.StreamWriter) -> None:
        await self._serving.wait()
        writer.write(line(Ready()))
