"""A node as nginx sees one, and as small as can be: it remembers requests, and answers as it is told."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

Answer = Callable[["Request", asyncio.StreamWriter], Awaitable[None]]
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Request:
    """What arrived."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


async def echo(request: Request, writer: asyncio.StreamWriter) -> None:
    """200 with the length of the body."""
    await whole(writer, "200 OK", str(len(request.body)).encode())


async def hang_up(_: Request, writer: asyncio.StreamWriter) -> None:
    """Reads the request, and dies."""
    writer.close()


async def whole(writer: asyncio.StreamWriter, status: str, body: bytes, kind: str = "text/plain") -> None:
    """A finite answer."""
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await writer.drain()


def chunk(data: bytes) -> bytes:
    """One piece of a streamed body; an empty one ends it."""
    return b"%x\r\n%s\r\n" % (len(data), data)


@dataclass
class Upstream:
    """`answer` may be changed while it runs. `release` is for answers that wait in the middle."""

    answer: Answer = echo
    ready: Answer = echo
    port: int = 0
    requests: list[Request] = field(default_factory=list)
    release: asyncio.Event = field(default_factory=asyncio.Event)
    _open: set[asyncio.StreamWriter] = field(default_factory=set)

    async def stream(self, _: Request, writer: asyncio.StreamWriter) -> None:
        """One event at once, another after `release`."""
        writer.write(STREAM + chunk(b"data: 1\n\n"))
        await writer.drain()
        while not self.release.is_set() and not writer.is_closing():
            await asyncio.sleep(0.01)
        writer.write(chunk(b"data: 2\n\n") + chunk(b""))
        await writer.drain()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator["Upstream"]:
        """Listens while the context lasts, on the same port each time."""
        server = await asyncio.start_server(self._connection, "127.0.0.1", self.port)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for writer in self._open:
                writer.transport.abort()
            while self._open:
                await asyncio.sleep(0.01)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            while not writer.is_closing():
                request = await _request(reader)
                if request.target == "/readyz":
                    # nginx's own question.
                    await self.ready(request, writer)
                    continue
                self.requests.append(request)
                await self.answer(request, writer)
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.close()
            self._open.discard(writer)


async def _request(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.strip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    method, target, _ = first.split(" ")
    return Request(method, target, headers, body)
