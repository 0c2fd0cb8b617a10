"""Clients that behave as EventSource does, many in one process: raw sockets, `retry`, `Last-Event-ID`.

Each writes what it gets into its account of the ledger. Used by the world; told where to connect by it.
"""

import asyncio
import socket
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Self, cast

import httptools

from faults.client import Client, Ending

_NARROW = 2048


class Crowd:
    """Many clients: opened at a bounded pace, reconnecting by themselves until they are closed."""

    def __init__(self) -> None:
        self.clients: list[Client] = []
        self._loop = asyncio.get_running_loop()
        self._group = asyncio.TaskGroup()
        self._closing = False

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True
        self.close(self.clients)
        await self._group.__aexit__(kind, error, trace)

    async def open(self, clients: Iterable[Client], *, per_second: float = 400, limit_s: float = 60) -> None:
        """Opens clients, and returns when all of them are ready."""
        fresh = list(clients)
        self.clients += fresh
        for client in fresh:
            self.connect(client)
            await asyncio.sleep(1 / per_second)
        async with asyncio.timeout(limit_s):
            while any(client.ready_at is None for client in fresh):
                await asyncio.sleep(0.05)

    def close(self, clients: Iterable[Client]) -> None:
        """Ends clients for good."""
        for client in list(clients):
            client.reconnects = False
            self.drop(client)
        gone = {id(client) for client in self.clients if not client.reconnects}
        self.clients = [client for client in self.clients if id(client) not in gone]

    def drop(self, client: Client) -> None:
        """Cuts a client's connection, as a network does; it comes back by itself."""
        if client.transport is not None:
            client.transport.abort()

    def connect(self, client: Client) -> None:
        """Opens a client's next connection."""
        if client.reconnects and not self._closing:
            self._group.create_task(self._connect(client))

    def ended(self, client: Client, *, clean: bool) -> None:
        """From the wire: it comes back after `retry`, as EventSource does."""
        client.wire, client.transport, client.ready_at = None, None, None
        client.endings.append(Ending(time.monotonic(), client.code, clean, client.retry_s))
        if client.reconnects and not client.refused and not self._closing:
            # Who was slow is healthy when he comes back.
            client.slow_s = 0.0
            self._loop.call_later(0 if client.impatient else client.retry_s, self.connect, client)

    async def _connect(self, client: Client) -> None:
        client.connection += 1
        client.code = ""
        client.opened.append(time.monotonic())
        wire = client.wire = _Wire(client, self)
        try:
            if client.slow_s:
                narrow = socket.socket()
                narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _NARROW)
                narrow.setblocking(False)
                await self._loop.sock_connect(narrow, ("127.0.0.1", client.port))
                await self._loop.create_connection(lambda: wire, sock=narrow)
            else:
                await self._loop.create_connection(lambda: wire, "127.0.0.1", client.port)
        except OSError:
            self.ended(client, clean=False)


class _Wire(asyncio.Protocol):
    """One connection: HTTP/1.1 in, blocks of lines out."""

    def __init__(self, client: Client, crowd: Crowd) -> None:
        self.transport: asyncio.Transport | None = None
        self._client = client
        self._crowd = crowd
        self._parser = httptools.HttpResponseParser(self)
        self._rest = b""
        self._whole = False
        self._type = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's are asyncio's in deed, not by birth.
        self.transport = cast(asyncio.Transport, transport)
        if self._client.wire is self:
            self._client.transport = self.transport
        if not self._client.reconnects:
            self.transport.abort()
            return
        self.transport.write(self._client.request())

    def data_received(self, data: bytes) -> None:
        if self._client.slow_s and self.transport is not None:
            self.transport.pause_reading()
            asyncio.get_running_loop().call_later(self._client.slow_s, self._read_on)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._client.refused = f"not HTTP: {error}"
            if self.transport is not None:
                self.transport.abort()

    def _read_on(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"content-type":
            self._type = value

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status != 200 or not self._type.startswith(b"text/event-stream"):
            # A browser's EventSource gives up here, for good.
            self._client.refused = f"{status} {self._type.decode()}"

    def on_body(self, body: bytes) -> None:
        if self._client.refused:
            return
        *blocks, self._rest = (self._rest + body).split(b"\n\n") if self._rest else body.split(b"\n\n")
        for block in blocks:
            self._client.frame(block)

    def on_message_complete(self) -> None:
        self._whole = True
        if self.transport is not None:
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if self._client.wire is self:
            self._crowd.ended(self._client, clean=self._whole)
