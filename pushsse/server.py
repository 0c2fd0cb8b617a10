"""uvicorn around one node: how it starts, drains and stops.

Called by the command line, once a worker or once a service. Deliberate: uvicorn waits for open connections
before it ends the lifespan, so the streams are drained here, before uvicorn is told to exit. `OpenFiles` says
when the process is out of files for connections, which uvloop doesn't.
"""

import asyncio
import contextlib
import errno
import gc
import logging
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Generator, Sequence
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Any, Literal, Protocol, cast

import uvicorn

from pushsse.app import application
from pushsse.hub.hub import FLUSH_S, Hub
from pushsse.node import Node, settle_memory
from pushsse.stream import handover
from pushsse.stream.handover import StreamProtocol
from pushsse.stream.immediate import ImmediateHttp
from pushsse.stream.limits import LimitedHttp, drop

logger = logging.getLogger(__name__)
Http = type[asyncio.Protocol] | Literal["auto", "h11", "httptools"]
GRACE_S = 5
# The calls have ended: the parts close within this.
LINGER_S = 10.0
# The streams have been told: the node has ended after this, and its process THREADS_S later.
LAST_S = FLUSH_S + GRACE_S + LINGER_S
# A second signal: the process is gone after this, whatever its parts do.
QUICK_S = 2.0
_QUICK_FLUSH_S = 0.3
# All has ended but threads: they get this, and the process ends without them.
THREADS_S = 2.0
# A service of the node has ended: its streams are told within this.
_FAILED_WINDOW_S = 1.0
BACKLOG = 4096


def stopping_signals() -> list[signal.Signals]:
    """The signals that end the service: SIGHUP, too, unless who started it had it ignored (nohup)."""
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [signal.SIGTERM, signal.SIGINT, *([] if ignored else [signal.SIGHUP])]


class Server(uvicorn.Server):
    """A uvicorn server that drains its node before it stops.

    `ready` is called when it serves, `told` when it is told to end, also in a signal's handler, `ended` when
    its node has ended.

    It starts; serves; drains (`leave`, or at once `fail`); hurries, if it is told again meanwhile; and stops,
    which is uvicorn's `shutdown`. Told while it starts, it stops after that. `failed` says that a service has
    ended by itself.
    """

    def __init__(
        self,
        node: Node,
        *,
        http: Http | None = None,
        ready: Callable[[], None] | None = None,
        told: Callable[[], None] | None = None,
        ended: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                application(node, on_failure=self.fail),
                lifespan="on",
                http=http or best_http(),
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,
                proxy_headers=False,
                backlog=BACKLOG,
                timeout_keep_alive=node.settings.keep_alive_s,
                timeout_graceful_shutdown=GRACE_S,
            )
        )
        self.node = node
        self.failed = False
        self._quick_status = 0
        self._ready = ready
        self._told = told
        self._ended = ended
        self._signals = 0
        self._leaving: asyncio.Task[None] | None = None
        self._hurries = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._unread: dict[asyncio.Transport, int] = {}
        self._files = OpenFiles(node.hub)

    @property
    def status(self) -> int:
        """The exit status of the process."""
        return self._quick_status or (1 if self.failed or not self.started else 0)

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's, from the start of the node to its end."""
        try:
            await super().serve(sockets)
        finally:
            if self._ended is not None:
                self._ended()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's. Says why it failed; keeps the loop, which `handle_exit` needs."""
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(self._files.hear)
        protocol = self.config.http_protocol_class
        if issubclass(protocol, LimitedHttp):
            self.config.http_protocol_class = protocol.of_server(
                self.config, self.server_state, self.lifespan.state
            )
        ports = [str(each.getsockname()[1]) for each in sockets or ()]
        reason = ""
        try:
            await super().startup(sockets)
        except SystemExit:
            # Raised by uvicorn where the lifespan failed. The node has logged why.
            self.failed = self.should_exit = True
        except OSError as error:
            reason = error.strerror or str(error)
            await self.lifespan.shutdown()
        if self.started and not all(map(_is_listening, sockets or ())):
            # uvloop says nothing when listen(2) fails.
            reason = os.strerror(errno.EADDRINUSE)
        if reason:
            # The port was bound at the start, and another process has begun to listen on it since then.
            logger.critical(
                "can't listen on port %s: %s; another process took it during the start",
                ", ".join(ports),
                reason,
            )
            self.failed = self.should_exit = True
        elif self.started and self._ready is not None:
            self._ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """uvicorn's, and SIGHUP."""
        with super().capture_signals():
            if threading.current_thread() is not threading.main_thread() or (
                signal.SIGHUP not in stopping_signals()
            ):
                yield
                return
            before = signal.signal(signal.SIGHUP, self.handle_exit)
            try:
                yield
            finally:
                signal.signal(signal.SIGHUP, before)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A first SIGTERM, SIGINT or SIGHUP drains, a second one stops at once, a third one exits here.

        It may interrupt any code, so all it does is call the loop, and `told`.
        """
        self._signals += 1
        if self._told is not None:
            self._told()
        if self._loop is None:
            self.should_exit = True
        elif self._signals > 2:
            os._exit(128 + sig)
        elif self._signals == 2:
            self._loop.call_soon_threadsafe(self._hear_second_signal, 128 + sig)
        else:
            self._loop.call_soon_threadsafe(self.leave)

    def fail(self) -> None:
        """A service of the node has ended by itself: the streams end now, and come back elsewhere."""
        self.failed = True
        if self._told is not None:
            self._told()
        if not self.started:
            self.should_exit = True
        elif self._leaving is None:
            self._leaving = asyncio.create_task(self._drain(0.0, _FAILED_WINDOW_S), name="drain")

    def leave(self) -> None:
        """Begins to stop. Asked a second time, it stops without waiting for streams and calls."""
        settings = self.node.settings
        if not self.started:
            self.should_exit = True
        elif self._leaving is None:
            logger.log(
                # With workers, the supervisor says it for all of them.
                logging.INFO if self.node.worker is None else logging.DEBUG,
                "stopping: %d streams end within %.1f s",
                len(self.node.hub.subscribers),
                settings.drain_delay_s + settings.drain_window_s,
            )
            self._leaving = asyncio.create_task(
                self._drain(settings.drain_delay_s, settings.drain_window_s), name="drain"
            )
        else:
            self._hurry()

    def _hear_second_signal(self, status: int) -> None:
        """Stops within QUICK_S, in order where that is possible."""
        self._quick_status = status
        if self.node.worker is None:
            logger.info("stopping at once: a second signal")
        # A part that can't be closed in time, such as a Kafka that doesn't answer, is left as it is.
        asyncio.get_running_loop().call_later(QUICK_S, os._exit, status)
        self._hurry()

    def _hurry(self) -> None:
        if not self.started:
            self.should_exit = True
        elif not self._hurries:
            self._hurries = True
            if self._leaving is not None:
                self._leaving.cancel()
            self._leaving = asyncio.create_task(self._drain(0.0, 0.0), name="drain in a hurry")

    async def _drain(self, delay_s: float, window_s: float) -> None:
        # The order is guarantee 5's: first not ready, so that balancers send nothing new while all still
        # works; then no new connections; then the streams, each with its reason; uvicorn last, which would
        # wait for them.
        hurries = self._hurries
        self.node.draining = True
        await asyncio.sleep(delay_s)
        for server in self.servers:
            server.close()
        await self.node.leave(window_s=window_s, flush_s=_QUICK_FLUSH_S if hurries else FLUSH_S)
        self.should_exit = True
        if hurries:
            # uvicorn waits for connections, perhaps since before.
            await asyncio.sleep(_QUICK_FLUSH_S)
            for connection in self._connections():
                connection.transport.abort()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's, which also waits for connections that their client doesn't read: those are cut."""
        asyncio.get_running_loop().call_later(FLUSH_S, self._drop_unread)
        await super().shutdown(sockets)

    async def on_tick(self, counter: int) -> bool:
        """uvicorn's, ten times a second. Looks for open files, and for connections that make no progress.

        A stream that isn't handed over can be ended, not aborted: ASGI has no call for that. A reader that is
        cut as slow would hold its connection until TCP gives up. Whatever is complete and unread for the send
        timeout is dropped, but for streams that were handed over: those have the heartbeat's `LINGER_S`.
        """
        if counter % max(1, round(self.node.settings.send_timeout_s * 10)) == 0:
            unread = {
                each.transport: each.transport.get_write_buffer_size()
                for each in self._connections()
                if each.transport.is_closing() and not isinstance(each, StreamProtocol)
            }
            for transport, left in unread.items():
                if 0 < left == self._unread.get(transport):
                    drop(transport)
            self._unread = unread
        if counter % 10 == 0:
            self._files.check()
            now = asyncio.get_running_loop().time()
            for connection in self._connections():
                if isinstance(connection, LimitedHttp):
                    connection.check(now)
        return await super().on_tick(counter)

    def _drop_unread(self) -> None:
        for connection in self._connections():
            if connection.transport.is_closing():
                connection.transport.abort()

    def _connections(self) -> "list[HttpConnection]":
        """Those that are open: each is a protocol of uvicorn's, or a stream that was handed over."""
        return list(cast(set[HttpConnection], self.server_state.connections))


class HttpConnection(Protocol):
    """What the server needs of the protocol of a connection."""

    transport: asyncio.Transport


def _is_listening(listener: socket.socket) -> bool:
    try:
        return bool(listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError:
        return False


def best_http() -> Http:
    """The protocol that does most, of those that work with the insides of this uvicorn."""
    if not (reason := handover.failed(ImmediateHttp)):
        return ImmediateHttp
    if not handover.failed(LimitedHttp):
        logger.warning("streams are written the portable way, at two to three times the CPU: %s", reason)
        return LimitedHttp
    logger.error(
        "uvicorn serves clients by itself: streams cost two to three times the CPU, and nothing limits heads,"
        " the time of heads, bodies and unread answers, connections of an address and accepts per second;"
        " install the release of uvicorn that pushsse requires, or let nginx hold clients to limits: %s",
        reason,
    )
    return "auto"


def serve(node: Node, listeners: Sequence[socket.socket], *, ready: Callable[[], None]) -> int:
    """Serves until told to stop; the exit status. `ready` is called when the node serves."""

    def settled() -> None:
        # Not by Server: the memory is the process's, which has many nodes, and more, where tests run.
        settle_memory()
        ready()

    settings = node.settings
    last_resort = LastResort(settings.drain_delay_s + settings.drain_window_s + LAST_S)
    server = Server(
        node, ready=settled, told=last_resort.tell, ended=lambda: end_in_time(server.status, last_resort)
    )
    server.run(sockets=list(listeners))
    return server.status


class LastResort:
    """Ends a process that doesn't end by itself: its loop may be held, wait for ever, or run no more.

    A thread, begun before it is needed, since a signal's handler may start none.
    """

    def __init__(self, last_s: float) -> None:
        """`last_s`: how long the node may take once it is told to end."""
        self._last_s = last_s
        # None: the node is told to end. A status: it has. Handlers may put into it whatever they interrupt.
        self._said: SimpleQueue[int | None] = SimpleQueue()
        threading.Thread(target=self._run, name="last resort", daemon=True).start()

    def tell(self) -> None:
        """The node is told to end."""
        self._said.put(None)

    def end(self, status: int) -> None:
        """The node has ended."""
        self._said.put(status)

    def _run(self) -> None:
        status = self._said.get()
        until = time.monotonic() + self._last_s
        while status is None:
            try:
                status = self._said.get(timeout=max(0.0, until - time.monotonic()))
            except Empty:
                # Its loop is held, or a part or code of the operator's own keeps each cancellation to itself.
                logger.critical(
                    "this process was told to end %g s ago, and its node hasn't ended: it ends without it",
                    self._last_s,
                )
                os._exit(1)
        time.sleep(THREADS_S)
        busy = [
            each.name
            for each in threading.enumerate()
            if not each.daemon and each is not threading.main_thread()
        ]
        logger.warning(
            "the node has ended, and is not waited for %s any longer than %g s",
            f"the threads {', '.join(busy)}" if busy else "the interpreter",
            THREADS_S,
        )
        os._exit(status)


def end_in_time(status: int, last_resort: LastResort) -> None:
    """Ends the process within THREADS_S, and at once at a further signal. All that it served has ended.

    asyncio and the interpreter wait for threads without limit: for a look-up of a name, or for what a
    function of the operator's own called with `asyncio.to_thread`. Nothing can stop a thread.
    """
    # The interpreter would walk all objects three times more, which takes 0.3 s of CPU, or seconds with a
    # large log in memory.
    gc.freeze()
    for number in stopping_signals():
        signal.signal(number, lambda sig, _: os._exit(128 + sig))
    last_resort.end(status)


_OUT = (errno.EMFILE, errno.ENFILE)
_EVERY_S = 60.0


class OpenFiles:
    """Says that a process is out of open files, and what to do: once a minute, not once a connection.

    Each stream takes one. Deliberate: uvloop closes a connection that it has no file for without a word, and
    asyncio logs a traceback for each try. So one file is tried for, and the traceback is held back.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._said_at: float | None = None

    def check(self) -> None:
        """Says so if no more file can be opened."""
        try:
            os.close(os.dup(2))
        except OSError as error:
            if error.errno in _OUT:
                self._say(error)

    def hear(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """The loop's handler of errors that nobody awaits."""
        error = context.get("exception")
        if isinstance(error, OSError) and error.errno in _OUT:
            self._say(error)
        else:
            loop.default_exception_handler(context)

    def _say(self, error: OSError) -> None:
        now = time.monotonic()
        if self._said_at is not None and now < self._said_at + _EVERY_S:
            return
        self._said_at = now
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if error.errno == errno.ENFILE:
            whose = "this machine has none left (fs.file-max)"
        else:
            whose = f"this process may have {limit}, and {len(self._hub.subscribers)} of them are streams"
        logger.error(
            "out of open files: %s; new connections are refused until some are closed;"
            " raise the limit (ulimit -n, LimitNOFILE= in systemd) or set PUSHSSE_MAX_STREAMS",
            whose,
        )
