"""What stands between a browser and a node: serves a few pages of its own, and passes everything else on.

It can do to the calls what networks and proxies do: cut them, let them hang, withhold streams. Each request
has a connection of its own, so that what is done to one leaves the others alone.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

_LIMIT = 2**16
# Whatever a page of ours may do under the strictest policy that has scripts at all.
CSP = "default-src 'none'; script-src 'self'; connect-src 'self'; worker-src 'self'"
Page = tuple[str, str, str]


@dataclass
class Gate:
    """Its port, what went through, and what it does to that."""

    upstream: int
    pages: dict[str, Page] = field(default_factory=dict)
    # Made on demand, such as tokens: each gets the query, and returns a status and a text.
    made: dict[str, Callable[[dict[str, str]], tuple[int, str]]] = field(default_factory=dict)
    port: int = 0
    requests: list[str] = field(default_factory=list)
    # Streams, of which nobody gets a byte while this is so.
    withholds: bool = False
    # Nothing passes any more through what is open, and nothing tells so.
    hangs: bool = False
    refuses: bool = False
    # Paths of which the next answer gets lost.
    loses: set[str] = field(default_factory=set)
    _open: dict[asyncio.StreamWriter, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def count(self, path: str) -> int:
        """How many requests there were of a path."""
        return sum(1 for each in self.requests if urlsplit(each).path == path)

    def streams(self) -> int:
        """How many streams are open just now."""
        return sum(1 for target in self._open.values() if target.startswith("/v1/stream"))

    def cut(self) -> None:
        """Ends all connections in the middle."""
        for writer in list(self._open):
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection of a browser."""
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            target = head.split(b" ", 2)[1].decode()
            path = urlsplit(target).path
            if self.refuses:
                writer.transport.abort()
            elif path in self.pages:
                await _answer(writer, 200, *self.pages[path])
            elif path in self.made:
                self.requests.append(target)
                query = {name: values[0] for name, values in parse_qs(urlsplit(target).query).items()}
                status, text = self.made[path](query)
                await _answer(writer, status, text, "text/plain", "no-store")
            else:
                self.requests.append(target)
                await self._pass(head, target, reader, writer)
        writer.close()

    async def _pass(
        self, head: bytes, target: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")]
        from_node, to_node = await asyncio.open_connection("127.0.0.1", self.upstream)
        to_node.write(b"\r\n".join([lines[0], b"Connection: close", *lines[1:]]))
        self._open[writer] = target
        ways = [asyncio.create_task(self._pipe(*way)) for way in ((reader, to_node), (from_node, writer))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in ways:
                each.cancel()
            self._open.pop(writer, None)
            to_node.close()

    def _loses_answer(self, sink: asyncio.StreamWriter) -> bool:
        path = urlsplit(self._open.get(sink, "")).path
        loses = path in self.loses
        self.loses.discard(path)
        return loses

    async def _pipe(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        lost = self._loses_answer(sink)
        with suppress(ConnectionError):
            while data := await source.read(_LIMIT):
                is_stream = b"text/event-stream" in data.partition(b"\r\n\r\n")[0]
                # What nobody got once leaves a hole: nothing else passes either.
                lost = lost or self.hangs or (self.withholds and is_stream)
                if lost:
                    continue
                sink.write(data)
                await sink.drain()


async def _answer(writer: asyncio.StreamWriter, status: int, text: str, kind: str, policy: str) -> None:
    body = text.encode()
    headers = (
        f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\nCache-Control: no-cache"
    )
    policed = f"Content-Security-Policy: {policy}\r\n" if kind == "text/html" else ""
    writer.write(f"HTTP/1.1 {status} -\r\n{headers}\r\n{policed}\r\n".encode() + body)
    await writer.drain()


@asynccontextmanager
async def gate(upstream: int) -> AsyncIterator[Gate]:
    """A gate to a node's port, while the context lasts."""
    made = Gate(upstream)
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0, limit=_LIMIT)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        made.cut()
