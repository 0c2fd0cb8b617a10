"""A relay before PostgreSQL or Redis: every query can be made slow, or the way there be cut.

A process of its own, since the loop with all the clients would make every query slow: `python -m
faults.relay PORT TARGET` reads seconds of delay from its input, a line each; `inf` cuts the way.
"""

import asyncio
import math
import sys
from types import TracebackType
from typing import Self

import uvloop

_CHUNK = 65_536


class Relay:
    """Passes bytes on between `port` and `target`, those towards the target after a delay."""

    def __init__(self, port: int, target: int) -> None:
        self.port = port
        self._target = target
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", __name__, str(self.port), str(self._target), stdin=asyncio.subprocess.PIPE
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            await self._process.wait()

    def cut(self) -> None:
        """Nothing gets through any more, either way, and nobody is told, as when a network is cut."""
        self.delay(math.inf)

    def mend(self) -> None:
        """Everything gets through again, what waited first."""
        self.delay(0.0)

    def delay(self, seconds: float) -> None:
        """From now on whatever goes to the target waits so long."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(f"{seconds}\n".encode())


class _Passing:
    """The process's side."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._delay_s = 0.0
        self._open = asyncio.Event()
        self._open.set()

    async def run(self, port: int) -> None:
        server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        loop = asyncio.get_running_loop()
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            delay_s = float(line)
            if delay_s == math.inf:
                self._open.clear()
                continue
            self._open.set()
            self._delay_s = delay_s
        server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._open.wait()
        try:
            there, onward = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.close()
            return
        async with asyncio.TaskGroup() as group:
            group.create_task(self._pass(reader, onward, slow=True))
            group.create_task(self._pass(there, writer, slow=False))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, slow: bool) -> None:
        try:
            while data := await reader.read(_CHUNK):
                await self._open.wait()
                if slow and self._delay_s:
                    await asyncio.sleep(self._delay_s)
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()


if __name__ == "__main__":
    uvloop.run(_Passing(int(sys.argv[2])).run(int(sys.argv[1])))
