"""Clients that behave as EventSource does, many in one process: raw sockets, `retry`, `Last-Event-ID`.

Each writes what it gets into its account of the ledger. Used by the world; told where to connect by it.
"""

import asyncio
import json
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self, cast

import httptools

from tests.faults.ledger import Account, Key, Receipt, Told

DEFAULT_RETRY_S = 3.0
_NARROW = 2048
_ID = b'"id":"'


@dataclass(frozen=True, slots=True)
class Ending:
    """A connection's end: the code of the `exception` before it, "" for a cut; whether the body was whole."""

    at: float
    code: str
    clean: bool
    retry_s: float


@dataclass(slots=True, eq=False)
class Client:
    """One EventSource. `account` is its side of the ledger; the rest is what happened to its connections.

    `impatient`: it doesn't wait for `retry`. `slow_s`: it takes some two kB each time these seconds are over.
    """

    account: Account
    port: int
    token: str
    query: str = ""
    tag: bytes = b""
    last_id: bytes = b""
    retry_s: float = DEFAULT_RETRY_S
    connection: int = 0
    ready_at: float | None = None
    node: str = ""
    refused: str = ""
    opened: list[float] = field(default_factory=list)
    readies: list[tuple[float, str]] = field(default_factory=list)
    endings: list[Ending] = field(default_factory=list)
    code: str = ""
    pings: int = 0
    reconnects: bool = True
    impatient: bool = False
    slow_s: float = 0.0
    wire: "_Wire | None" = None
    heard: Callable[[Receipt], None] | None = None

    def request(self) -> bytes:
        """The bytes of the request, as EventSource sends it."""
        last = b"Last-Event-ID: %b\r\n" % self.last_id if self.last_id else b""
        return (
            f"GET /v1/stream{self.query} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n"
            f"Accept: text/event-stream\r\nAuthorization: Bearer {self.token}\r\n"
        ).encode() + b"%b\r\n" % last

    def frame(self, block: bytes) -> None:
        """One event of the stream."""
        name, data, position, retry = b"", b"", b"", b""
        for line in block.split(b"\n"):
            if line.startswith(b"data: "):
                data = line[6:]
            elif line.startswith(b"event: "):
                name = line[7:]
            elif line.startswith(b"id: "):
                position = line[4:]
            elif line.startswith(b"retry: "):
                retry = line[7:]
        if retry:
            self.retry_s = int(retry) / 1000
        before = self.last_id
        self.last_id = position or self.last_id
        if data.startswith(b'{"id":"'):
            self._event(data, position)
        elif name == b"ready":
            self._ready(json.loads(data), before, position)
        elif name == b"exception":
            self.code = json.loads(data)["code"]
        elif name == b"ping":
            self.pings += 1

    def _event(self, data: bytes, position: bytes) -> None:
        start = len(_ID) + 1
        tag, _, rest = data[start : data.index(b'"', start)].partition(b"|")
        if tag != self.tag:
            # Everything of an earlier round was there before this one began.
            self.account.foreign += tag[:1] == self.tag[:1]
            return
        partition, _, number = rest.partition(b"|")
        receipt = Receipt(Key(int(partition), int(number)), time.monotonic(), self.connection, position)
        self.account.receipts.append(receipt)
        if self.heard is not None:
            self.heard(receipt)

    def _ready(self, data: dict[str, str], before: bytes, position: bytes) -> None:
        now = time.monotonic()
        self.ready_at = now
        self.node = data["node"]
        self.readies.append((now, data["resume"]))
        if self.account.since is None:
            self.account.since = now
        if data["resume"] == "gap":
            old, new = before.partition(b"."), position.partition(b".")
            broadcasts, personal = (old[at].split(b"-")[0] != new[at].split(b"-")[0] for at in (0, 2))
            both = broadcasts == personal
            self.account.told.append(Told(now, broadcasts or both, personal or both))


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
        if client.wire is not None and client.wire.transport is not None:
            client.wire.transport.abort()

    def connect(self, client: Client) -> None:
        """Opens a client's next connection."""
        if client.reconnects and not self._closing:
            self._group.create_task(self._connect(client))

    def ended(self, client: Client, *, clean: bool) -> None:
        """From the wire: it comes back after `retry`, as EventSource does."""
        client.wire, client.ready_at = None, None
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
