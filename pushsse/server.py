"""uvicorn around one node: how it is started, and how it leaves.

Called by the command line. Deliberate: uvicorn waits for open connections before the lifespan ends, so the
drain happens here, before uvicorn is told to exit.
"""

import asyncio
import logging
import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import Literal

import uvicorn

from pushsse import memory
from pushsse.app import create_app
from pushsse.errors import CloseReason
from pushsse.hub.drain import FLUSH_S, drain
from pushsse.node import Node
from pushsse.settings import Settings
from pushsse.stream import trial
from pushsse.stream.frame import random_retry_ms
from pushsse.stream.handover import HandoverHttp, drop
from pushsse.workers.worker import Worker

log = logging.getLogger(__name__)
Http = type[asyncio.Protocol] | Literal["auto", "h11", "httptools"]
GRACE_S = 5
BACKLOG = 4096
_LAST_WORDS_S = 0.2


class Server(uvicorn.Server):
    """A uvicorn server that drains its node first. `failed` says that a service died."""

    def __init__(self, config: uvicorn.Config, node: Node) -> None:
        super().__init__(config)
        self.node = node
        self.failed = False
        self.status = 0
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
        """SIGTERM, SIGINT, SIGHUP: drains; a second one ends at once. It may interrupt any code."""
        if self._loop is None:
            self.should_exit = True
            return
        self._loop.call_soon_threadsafe(self.leave, sig)

    def fail(self) -> None:
        """A service died: everybody is told to go elsewhere, now."""
        if not self.failed:
            self.failed = True
            self._cut()

    def leave(self, sig: int = signal.SIGTERM) -> None:
        """Begins to stop; asked a second time, stops at once."""
        if self._leaving is None:
            self._leaving = asyncio.create_task(self._drain(), name="drain")
        elif not self.status:
            log.info("stopping at once: a second signal")
            self.status = 128 + sig
            self._leaving.cancel()
            self._cut()

    async def _drain(self) -> None:
        settings = self.node.settings
        streams = len(self.node.hub.subscribers)
        log.info(
            "stopping: %d streams end within %.1f s",
            streams,
            settings.drain_delay_s + settings.drain_window_s,
        )
        self.node.draining = True
        await asyncio.sleep(settings.drain_delay_s)
        for server in self.servers:
            server.close()
        await drain(self.node.hub, window_s=settings.drain_window_s)
        self.should_exit = True

    def _cut(self) -> None:
        """Ends every stream with its last words now, and every other connection that is still open."""
        self.node.draining = True
        for server in self.servers:
            server.close()
        for subscriber in list(self.node.hub.subscribers):
            self.node.hub.end(subscriber, CloseReason.SHUTDOWN, retry_ms=random_retry_ms())
        # In the next turns of the loop: what was just written may still leave.
        asyncio.get_running_loop().call_later(_LAST_WORDS_S, self._abort)
        self.should_exit = True

    def _abort(self) -> None:
        for connection in list(self.server_state.connections):
            transport: asyncio.Transport | None = getattr(connection, "transport", None)
            if transport is not None:
                transport.abort()

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
    server: Server,
    listener: socket.socket,
    *,
    ready: Callable[[], None] | None = None,
    worker: Worker | None = None,
) -> int:
    """Runs one node until it is told to stop; the exit status. `ready` is called when it serves."""

    def on_ready() -> None:
        memory.settle()
        if ready is not None:
            ready()

    server.ready = on_ready
    server.node.worker = worker
    # A terminal that closes. Where it was started by nohup, the signal stays ignored.
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, server.handle_exit)
    server.run(sockets=[listener])
    return 1 if server.failed or not server.started else server.status
