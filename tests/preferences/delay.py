"""A slow way to a server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Delay:
    """A TCP relay in front of a server; it holds answers back for `seconds`, and the end for `end_s`."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.end_s = 0.0
        self.port = 0

    @asynccontextmanager
    async def before(self, port: int) -> AsyncIterator[None]:
        async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            there, back = await asyncio.open_connection("127.0.0.1", port)
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._copy(reader, back, slow=False))
                    group.create_task(self._copy(there, writer, slow=True))
            except* OSError:
                pass

        server = await asyncio.start_server(relay, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield
        finally:
            server.close()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, slow: bool) -> None:
        try:
            while read := await reader.read(65536):
                if slow and self.seconds:
                    await asyncio.sleep(self.seconds)
                writer.write(read)
            if slow and self.end_s:
                await asyncio.sleep(self.end_s)
        finally:
            writer.close()
