"""The fast way of writing a stream: uvicorn hands its connection over, and the ASGI task ends.

uvicorn gives a connection to one protocol object, which parses requests and runs the application for each. It
already knows how to pass a connection on (to its WebSocket protocol); the same is done here for streams.
`HandoverHttp` is what uvicorn is given as `http=`: it offers a function in the request's scope. The response
calls it once the head has left; then `StreamProtocol` owns the transport, and parser, scope and task go.

Deliberate: it leans on uvicorn's insides, so `trial` tries it at the start, and where they have changed,
streams are written the portable way. What a client sends after its request is read and dropped, so that its
leaving is noticed. A write goes straight to the socket while nothing waits in the transport, which saves its
queue and a turn.
"""

import asyncio
import os
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import cast
from weakref import ref

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

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

    _requests = 0

    def on_message_begin(self) -> None:
        """A request begins: uvicorn makes its scope, to which the offer is added."""
        super().on_message_begin()
        self._requests += 1
        # The scope is held by this object: an offer that held it too would leave a cycle for each request.
        offer: Handover = partial(_hand_over, ref(self), self._requests)
        cast(Scope, self.scope)["extensions"] = {EXTENSION: offer}

    def hand_over(self, request: int, backlog_bytes: int) -> StreamProtocol | None:
        """The connection, from now on the caller's; None if it can't be had.

        It can't be while the client has begun a further request, or when it has gone.
        """
        cycle, transport = self.cycle, self.transport
        if request != self._requests or self.pipeline or transport.is_closing():
            return None
        if not cycle.response_started or not cycle.chunked_encoding:
            return None
        self._unset_keepalive_if_required()
        self.connections.discard(self)
        stream = StreamProtocol(transport, cast(set[object], self.connections))
        transport.set_write_buffer_limits(high=backlog_bytes)
        transport.set_protocol(stream)
        self.flow.resume_reading()
        # For uvicorn the client has gone: nothing more is sent, and nothing is missed.
        cycle.disconnected = True
        cycle.message_event.set()
        # The parser and this object hold each other: in a storm of clients that would wait, thousandfold, for
        # the collector of cycles.
        self.parser = None  # type: ignore[assignment]
        if self.flow.write_paused:
            stream.pause_writing()
        return stream


def _hand_over(connection: "ref[HandoverHttp]", request: int, backlog_bytes: int) -> StreamProtocol | None:
    found = connection()
    return None if found is None else found.hand_over(request, backlog_bytes)


def offered(scope: Scope) -> Handover | None:
    """The offer in a request's scope; None under another server."""
    found: Handover | None = scope.get("extensions", {}).get(EXTENSION)
    return found
