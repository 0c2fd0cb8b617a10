"""A whole node under a real uvicorn on a free port, in the test's own loop, and a client of streams."""

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from httpx_sse import ServerSentEvent
from httpx_sse._decoders import SSEDecoder

from deploy.parts.certificate import Certificate
from pushsse.build import build
from pushsse.cli.serve import listening_socket
from pushsse.node import Node
from pushsse.server import Http, Server
from pushsse.settings import load
from tests.migrated import migrated
from tests.waiting import eventually

LIMIT_S = 30.0
# A node shares its loop with the test, and the machine with others: it doesn't say that its database is away
# because all stood still for longer than people are to wait.
DATABASE_TIMEOUT_S = 20.0


@dataclass
class Running:
    """A node that serves."""

    url: str
    node: Node
    http: httpx.AsyncClient
    stop: Any
    connections: set[Any]
    trust: ssl.SSLContext | None = None

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    async def connect(self, *, receive_bytes: int = 0) -> socket.socket:
        """A connection for a test that reads it, or doesn't, by itself."""
        return await asyncio.to_thread(self._connect, receive_bytes)

    def _connect(self, receive_bytes: int) -> socket.socket:
        made = socket.socket()
        if receive_bytes:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        made.settimeout(LIMIT_S)
        made.connect(("127.0.0.1", self.port))
        return made if self.trust is None else self.trust.wrap_socket(made, server_hostname="localhost")

    async def publish(self, type_: str, message: object, to: object = "all", **more: object) -> str:
        users = to if to == "all" else {"users": [to] if isinstance(to, str) else to}
        reply = await self.http.post(
            "/v1/events", json={"type": type_, "message": message, "to": users, **more}
        )
        assert reply.status_code == 202, reply.text
        return str(reply.json()["ids"][0])

    async def switch(self, user: str, **types: bool) -> None:
        reply = await self.http.post(f"/v1/preferences?user={user}", json={"types": types})
        assert reply.status_code == 200, reply.text

    async def until_known(self, *types: str) -> None:
        """Waits until the types are in the catalogue, which they join some time after their first event."""

        async def joined() -> bool:
            reply = await self.http.get("/v1/preferences?user=somebody")
            known = reply.json()["types"] if reply.status_code == 200 else ()
            return set(types) <= {each["name"] for each in known}

        await eventually(joined)

    def stream(self, user: str, query: str = "", **headers: str) -> "Stream":
        return Stream(self.url, f"/v1/stream?user={user}&{query}", headers, self.trust)


@dataclass
class Stream:
    """One EventSource-like reader; `raw` has every byte of the body."""

    url: str
    path: str
    headers: dict[str, str]
    trust: ssl.SSLContext | None = None
    raw: bytearray = field(default_factory=bytearray)
    ended: bool = False
    last_id: str = ""

    async def __aenter__(self) -> "Stream":
        self._client = client(self.url, self.trust)
        headers = {name.replace("_", "-"): value for name, value in self.headers.items()}
        request = self._client.build_request("GET", self.path, headers=headers)
        self.response = await self._client.send(request, stream=True)
        self._events = self._decode()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._events.aclose()  # type: ignore[attr-defined]
        await self.response.aclose()
        await self._client.aclose()

    async def _decode(self) -> AsyncIterator[ServerSentEvent]:
        decoder = SSEDecoder()
        rest = b""
        async for piece in self.response.aiter_bytes():
            self.raw += piece
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                if (event := decoder.decode(line.decode())) is not None:
                    yield event
        self.ended = True

    async def next(self) -> ServerSentEvent:
        event = await asyncio.wait_for(anext(self._events), LIMIT_S)
        self.last_id = event.id
        return event

    async def ready(self) -> dict[str, Any]:
        event = await self.next()
        assert event.event == "ready"
        return dict(json.loads(event.data))

    async def until(self, name: str) -> ServerSentEvent:
        while (event := await self.next()).event != name:
            pass
        return event

    async def messages(self, count: int) -> list[Any]:
        """The messages of the next people's events."""
        found: list[Any] = []
        while len(found) < count:
            event = await self.next()
            data = json.loads(event.data)
            if "message" in data:
                found.append(data["message"])
        return found

    async def rest(self) -> list[ServerSentEvent]:
        """Everything up to the end of the body."""
        found = []
        try:
            while True:
                found.append(await self.next())
        except StopAsyncIteration:
            return found


@asynccontextmanager
async def serving(
    folder: Path, *, http: Http | None = None, certificate: Certificate | None = None, **options: object
) -> AsyncIterator[Running]:
    """Serves while the context lasts; over TLS with a certificate."""
    given: dict[str, object] = {"port": 0, "drain_delay_s": 0.0, "drain_window_s": 0.1, **options}
    file = folder / "node.db"
    given.setdefault("database_url", f"sqlite://{file}" if file.exists() else migrated(file))
    settings = load({}, given)
    listener = listening_socket(settings)
    port = listener.getsockname()[1]
    server = Server(build(settings, database_timeout_s=DATABASE_TIMEOUT_S), http=http)
    trust = None
    if certificate is not None:
        server.config.ssl_certfile, server.config.ssl_keyfile = certificate.chain, str(certificate.key)
        trust = ssl.create_default_context(cafile=certificate.authority)
    async with started(server, listener, server.leave):
        url = f"http://127.0.0.1:{port}" if trust is None else f"https://localhost:{port}"
        async with client(url, trust) as caller:
            yield Running(url, server.node, caller, server.leave, server.server_state.connections, trust)


@asynccontextmanager
async def started(
    server: uvicorn.Server, listener: socket.socket, stop: Callable[[], None]
) -> AsyncIterator[None]:
    """Any server of uvicorn's, serving on a socket while the context lasts; `stop` asks it to end."""
    task = asyncio.create_task(server.serve(sockets=[listener]))

    def is_ready() -> bool:
        assert not task.done(), "the server didn't start"
        return server.started

    try:
        await eventually(is_ready)
        yield
    finally:
        stop()
        await asyncio.wait_for(task, 20)


def client(url: str, trust: ssl.SSLContext | None) -> httpx.AsyncClient:
    """A client of a node."""
    # Reading the system's certificate authorities takes 20 ms, and plain HTTP needs none.
    verify = False if trust is None else trust
    return httpx.AsyncClient(base_url=url, timeout=LIMIT_S, trust_env=False, verify=verify)
