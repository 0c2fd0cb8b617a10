"""uvicorn around one node: how it is started, and how it leaves.

Called by the command line. Deliberate: uvicorn waits for open connections before the lifespan ends, so the
drain happens here, before uvicorn is told to exit.
"""

import asyncio
import logging
import socket
from collections.abc import Callable
from types import FrameType
from typing import Literal

import uvicorn

from pushsse import memory
from pushsse.app import create_app
from pushsse.hub.drain import FLUSH_S, drain
from pushsse.node import Node
from pushsse.settings import Settings
from pushsse.stream import trial
from pushsse.stream.handover import HandoverHttp, drop
from pushsse.workers.worker import Worker

log = logging.getLogger(__name__)
Http = type[asyncio.Protocol] | Literal["auto", "h11", "httptools"]
GRACE_S = 5
BACKLOG = 4096
# Accepted sockets inherit these (tcp(7)): a peer that is gone, or doesn't read, is noticed.
_SOCKET_OPTIONS = (
    (socket.SOL_SOCKET, socket.SO_SNDBUF, 128 * 1024),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
)
_LINUX_OPTIONS = (
    ("TCP_KEEPIDLE", 20),
    ("TCP_KEEPINTVL", 5),
    ("TCP_KEEPCNT", 3),
    ("TCP_USER_TIMEOUT", 30_000),
)


class Server(uvicorn.Server):
    """A uvicorn server that drains its node first. `failed` says that a service died."""

    def __init__(self, config: uvicorn.Config, node: Node) -> None:
        super().__init__(config)
        self.node = node
        self.failed = False
        self.ready: Callable[[], None] | None = None
        self._leaving: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._unread: dict[asyncio.Transport, int] = {}

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's, on the loop that `handle_exit` will need."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self.started and self.ready is not None:
            self.ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM or SIGINT: drains; a second one ends at once. May interrupt any code, so it only asks."""
        if self._loop is None:
            self.should_exit = True
            return
        self._loop.call_soon_threadsafe(self.leave)

    def fail(self) -> None:
        """A service died: everybody is told to go elsewhere, now."""
        self.failed = True
        self.node.draining = True
        self.should_exit = True

    def leave(self) -> None:
        """Begins to stop; asked a second time, stops at once."""
        if self._leaving is not None:
            self.force_exit = self.should_exit = True
            return
        self._leaving = asyncio.create_task(self._drain(), name="drain")

    async def _drain(self) -> None:
        settings = self.node.settings
        log.info("stopping: not ready any more, streams end from %.1f s on", settings.drain_delay_s)
        self.node.draining = True
        await asyncio.sleep(settings.drain_delay_s)
        for server in self.servers:
            server.close()
        await drain(self.node.hub, window_s=settings.drain_window_s)
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's, which waits for all connections, also for those that a client doesn't read."""
        asyncio.get_running_loop().call_later(FLUSH_S, self._drop_unread)
        await super().shutdown(sockets)

    async def on_tick(self, counter: int) -> bool:
        """uvicorn's, ten times a second. Drops who reads nothing of an answer's rest for the send timeout.

        A stream that isn't handed over can't be aborted, only ended; a slow reader would hold it until TCP
        gives up.
        """
        if counter % max(1, round(self.node.settings.send_timeout_s * 10)) == 0:
            unread = self._closing()
            for transport, left in unread.items():
                if 0 < left == self._unread.get(transport):
                    drop(transport)
            self._unread = unread
        return await super().on_tick(counter)

    def _drop_unread(self) -> None:
        for transport in self._closing():
            transport.abort()

    def _closing(self) -> dict[asyncio.Transport, int]:
        """Connections whose answer is complete and hasn't been read, with the bytes that are left."""
        found: dict[asyncio.Transport, int] = {}
        for connection in self.server_state.connections:
            transport: asyncio.Transport | None = getattr(connection, "transport", None)
            if transport is not None and transport.is_closing():
                found[transport] = transport.get_write_buffer_size()
        return found


def listening_socket(settings: Settings) -> socket.socket:
    """The socket to accept on. Raises OSError."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if settings.workers > 1:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    for level, option, value in _SOCKET_OPTIONS:
        listener.setsockopt(level, option, value)
    for name, value in _LINUX_OPTIONS:
        if hasattr(socket, name):
            listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    listener.bind((settings.host, settings.port))
    return listener


def best_http() -> Http:
    """The protocol that can hand streams over, if uvicorn's insides are as they were tested."""
    if reason := trial.failed():
        log.warning("streams are written the portable way, which costs more: %s", reason)
        return "auto"
    return HandoverHttp


def make_server(settings: Settings, *, http: Http | None = None) -> Server:
    """A server for one node, on sockets that it is given when it runs. Raises SettingsError."""
    server: Server | None = None

    def on_failure() -> None:
        if server is not None:
            server.fail()

    app = create_app(settings, on_failure=on_failure)
    config = uvicorn.Config(
        app,
        lifespan="on",
        http=http or best_http(),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=GRACE_S,
    )
    server = Server(config, app.state.node)
    return server


def serve(
    settings: Settings,
    listener: socket.socket,
    *,
    ready: Callable[[], None] | None = None,
    worker: Worker | None = None,
) -> int:
    """Runs one node until it is told to stop; the exit status. `ready` is called when it serves."""
    server = make_server(settings)

    def on_ready() -> None:
        memory.settle()
        if ready is not None:
            ready()

    server.ready = on_ready
    server.node.worker = worker
    server.run(sockets=[listener])
    return 1 if server.failed or not server.started else 0
