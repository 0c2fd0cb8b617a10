"""A way to nginx that can be cut as a network is: what is open stays open, and nothing passes any more."""

import asyncio
import threading
from contextlib import suppress

from deploy.parts.ports import take_port

_CHUNK = 65_536
_LIMIT_S = 10.0


class Relay:
    """Passes bytes on between its port and `target` while the context lasts, in a thread of its own."""

    def __init__(self, target: int) -> None:
        self.port = take_port(self)
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._open: set[asyncio.Task[None]] = set()
        # Of what was cut: the connections stay, and nobody reads them.
        self._cut: list[asyncio.StreamWriter] = []
        self._writers: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._ready = threading.Event()

    def freeze(self) -> None:
        """Nobody hears anything more on the connections that are open; new ones work."""
        self._loop.call_soon_threadsafe(self._freeze)

    def __enter__(self) -> "Relay":
        self._thread.start()
        assert self._ready.wait(_LIMIT_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_LIMIT_S)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", self.port))
        self._ready.set()
        self._loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        for writer in (*self._writers, *self._cut):
            writer.transport.abort()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    def _freeze(self) -> None:
        self._cut += self._writers
        for task in self._open:
            task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, onward = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.close()
            return
        self._writers |= {writer, onward}
        passing = [asyncio.create_task(_pass(reader, onward)), asyncio.create_task(_pass(there, writer))]
        self._open.update(passing)
        with suppress(asyncio.CancelledError):
            # An end of either side is one of both.
            await asyncio.wait(passing, return_when=asyncio.FIRST_COMPLETED)
        for task in passing:
            task.cancel()
        self._open.difference_update(passing)
        for each in (writer, onward):
            self._writers.discard(each)
            if each not in self._cut:
                each.close()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
