"""A small web server beside the test, whose answers the test decides: what a company runs for its logins."""

import asyncio
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from deploy.parts.certificate import Certificate


@dataclass
class Answering:
    """Answers each request with `answer(head)`: status, body and more header lines."""

    answer: Callable[[str], Awaitable[tuple[int, bytes, str]]]
    heads: list[str] = field(default_factory=list)
    tls: ssl.SSLContext | None = None
    port: int = 0
    busy: int = 0
    most_busy: int = 0
    _server: asyncio.Server | None = None
    _connections: set[asyncio.StreamWriter] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http{'' if self.tls is None else 's'}://127.0.0.1:{self.port}/asked?from=push"

    async def up(self) -> None:
        """Listens, on the same port as before."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self.tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def down(self) -> None:
        """As if the server had been stopped."""
        if self._server is not None:
            self._server.close()
            for writer in self._connections:
                writer.transport.abort()
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                self.heads.append(head)
                self.busy += 1
                self.most_busy = max(self.most_busy, self.busy)
                try:
                    status, body, more = await self.answer(head)
                finally:
                    self.busy -= 1
                writer.write(
                    f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n{more}\r\n".encode() + body
                )
                await writer.drain()
        except (asyncio.IncompleteReadError, OSError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(writer)
            writer.close()


@asynccontextmanager
async def answering(
    answer: Callable[[str], Awaitable[tuple[int, bytes, str]]], *, certificate: Certificate | None = None
) -> AsyncIterator[Answering]:
    """Serves while the context lasts; over TLS with a certificate."""
    made = Answering(answer)
    if certificate is not None:
        made.tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        made.tls.load_cert_chain(certificate.chain, certificate.key)
    await made.up()
    try:
        yield made
    finally:
        await made.down()


@contextmanager
def answering_beside(status: int, body: bytes) -> Iterator[str]:
    """The URL of a server in a thread, for a test without a loop: it has one answer."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        serving = threading.Thread(target=server.serve_forever, daemon=True)
        serving.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/asked"
        finally:
            server.shutdown()
            serving.join()
