"""The fast way of writing a stream: uvicorn hands its connection over, and the ASGI task ends.

uvicorn gives a connection to one protocol object, which parses requests and runs the application for each. It
already knows how to pass a connection on (to its WebSocket protocol); the same is done here for streams.
`HandoverHttp` is what uvicorn is given as `http=`: it offers a function in the request's scope. The response
calls it once the head has left; then `StreamProtocol` owns the transport, and parser, scope and task go.

Deliberate: it leans on the insides that `unusable` checks; where they have changed, streams are written the
portable way. What a client sends after its request is read and dropped, so that its leaving is noticed.
A write goes straight to the socket while nothing waits in the transport, which saves its queue and a turn.
"""

import asyncio
import os
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from inspect import signature
from typing import cast

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from pushsse.stream.frame import Chunk
from pushsse.stream.subscriber import Subscriber

EXTENSION = "pushsse.handover"
# struct linger: on, 0 seconds. Closing sends a reset (socket(7)).
_DROP = struct.pack("ii", 1, 0)
LAST_CHUNK = b"0\r\n\r\n"
Handover = Callable[[int], "StreamProtocol | None"]


class StreamProtocol(asyncio.Protocol):
    """Owns the connection of one stream: the hub writes to it, the event loop tells it what happens."""

    __slots__ = ("_connections", "_fd", "_over", "_transport", "_waiting", "subscriber")

    def __init__(self, transport: asyncio.Transport, connections: set[object]) -> None:
        self.subscriber: Subscriber | None = None
        self._transport = transport
        self._connections = connections
        self._over = False
        # The head may still wait, and under TLS everything has to go through the transport.
        self._waiting = True
        self._fd = -1
        if transport.get_extra_info("sslcontext") is None:
            self._fd = transport.get_extra_info("socket").fileno()
        # uvicorn waits for what is in here when it stops, and calls its `shutdown`.
        connections.add(self)

    # Sink

    def write(self, chunk: Chunk) -> None:
        """Takes a chunk whole; what the socket doesn't take waits in the transport."""
        if self._over:
            return
        if self._waiting:
            if self._fd < 0 or self._transport.get_write_buffer_size():
                self._transport.write(chunk.framed)
                return
            self._waiting = False
        try:
            # The descriptor is this connection's until after `connection_lost`.
            sent = os.write(self._fd, chunk.framed)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.abort()
            return
        if sent < len(chunk.framed):
            self._waiting = True
            self._transport.write(chunk.framed[sent:])

    def end(self, chunk: Chunk) -> None:
        """Takes the last chunk and closes once everything has left."""
        if not self._over:
            self._over = True
            self._transport.write(chunk.framed + LAST_CHUNK)
            self._transport.close()

    def abort(self) -> None:
        """Closes now, with all that waits, also in the kernel, where a slow reader would hold it for long."""
        self._over = True
        if self._fd >= 0:
            connection = self._transport.get_extra_info("socket")
            with suppress(OSError):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _DROP)
        self._transport.abort()

    # What the event loop tells

    def pause_writing(self) -> None:
        """The transport holds more than its bound."""
        if self.subscriber is not None:
            self.subscriber.paused()

    def resume_writing(self) -> None:
        """The transport has room again."""
        if self.subscriber is not None:
            self.subscriber.resumed()

    def data_received(self, data: bytes) -> None:
        """Nothing that a client says after its request is of interest."""

    def eof_received(self) -> bool:
        """The client won't read any more either: the transport closes itself."""
        self._over = True
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone, for whatever reason."""
        self._over = True
        self._fd = -1
        self._connections.discard(self)
        # The two hold each other, which would wait for the collector of cycles.
        subscriber, self.subscriber = self.subscriber, None
        if subscriber is not None:
            subscriber.gone()

    def shutdown(self) -> None:
        """uvicorn stops: by now the drain has ended the stream, or there was none."""
        self._over = True
        self._transport.close()


class HandoverHttp(HttpToolsProtocol):
    """uvicorn's HTTP protocol, with an offer to hand the connection over in each request's scope."""

    def on_message_begin(self) -> None:
        """A request begins: uvicorn makes its scope, to which the offer is added."""
        super().on_message_begin()
        scope = self.scope
        offer: Handover = partial(self._hand_over, scope)
        cast(Scope, scope)["extensions"] = {EXTENSION: offer}

    def _hand_over(self, scope: object, backlog_bytes: int) -> StreamProtocol | None:
        """The connection, from now on the caller's; None if it can't be had.

        It can't be while the client has sent a further request, or when it has gone.
        """
        cycle = self.cycle
        if cycle.scope is not scope or self.pipeline or self.transport.is_closing():
            return None
        if not cycle.response_started or not cycle.chunked_encoding:
            return None
        transport = self.transport
        self._unset_keepalive_if_required()
        self.connections.discard(self)
        stream = StreamProtocol(transport, cast(set[object], self.connections))
        transport.set_write_buffer_limits(high=backlog_bytes)
        transport.set_protocol(stream)
        self.flow.resume_reading()
        # For uvicorn the client has gone: nothing more is sent, and nothing is missed.
        cycle.disconnected = True
        cycle.message_event.set()
        # The parser and this object hold each other, and so do the scope and the offer in it: in a storm of
        # clients that would wait, thousandfold, for the collector of cycles.
        self.parser = None  # type: ignore[assignment]
        cast(Scope, scope)["extensions"] = {}
        if self.flow.write_paused:
            stream.pause_writing()
        return stream


def offered(scope: Scope) -> Handover | None:
    """The offer in a request's scope; None under another server."""
    found: Handover | None = scope.get("extensions", {}).get(EXTENSION)
    return found


def unusable() -> str:
    """What is different about uvicorn's insides; empty if they are as they were tested."""
    cycle = signature(RequestResponseCycle.__init__).parameters
    state = ServerState()
    for owner, name, found in (
        ("RequestResponseCycle", "scope", "scope" in cycle),
        ("RequestResponseCycle", "message_event", "message_event" in cycle),
        ("HttpToolsProtocol", "on_message_begin", hasattr(HttpToolsProtocol, "on_message_begin")),
        ("HttpToolsProtocol", "shutdown", hasattr(HttpToolsProtocol, "shutdown")),
        (
            "HttpToolsProtocol",
            "_unset_keepalive_if_required",
            hasattr(HttpToolsProtocol, "_unset_keepalive_if_required"),
        ),
        ("ServerState", "connections", isinstance(state.connections, set)),
    ):
        if not found:
            return f"uvicorn's {owner} has no {name} any more"
    return ""
