"""Writes streams under any ASGI server: sse-starlette's EventSourceResponse over a bounded queue.

The stream endpoint calls `start`, which takes the connection over where the server offers that (`handover`),
and else makes such a response. Deliberate: pings and shutdown are left to the hub, whose heartbeat and drain
do both for all streams.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Protocol

from sse_starlette import EventSourceResponse
from sse_starlette.sse import AppStatus
from starlette.types import Receive, Scope, Send

from pushsse.stream.frame import MEDIA_TYPE, STREAM_HEADERS, Chunk
from pushsse.stream.handover import StreamProtocol, offered
from pushsse.stream.subscriber import Sink, Subscriber

# How many streams are woken in one turn of the event loop.
_WAKES_PER_TURN = 64
# Made once: they are the same for all streams.
_HEADERS = EventSourceResponse(iter(()), headers=STREAM_HEADERS, ping=0).raw_headers
_HEAD = [
    (b"content-type", f"{MEDIA_TYPE}; charset=utf-8".encode()),
    *((name.lower().encode(), value.encode()) for name, value in STREAM_HEADERS.items()),
    (b"x-accel-buffering", b"no"),
]

# Of a body that isn't a stream, on a connection that was handed over: nobody parses a further request on it.
CLOSE = (b"connection", b"close")


def head_bytes(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The head of a response to a call that is answered without ASGI."""
    return b"HTTP/1.1 200 OK\r\n" + b"".join(b"%b: %b\r\n" % field for field in fields)


_HEAD_BYTES = head_bytes(_HEAD)
AppStatus.disable_automatic_graceful_drain()  # type: ignore[no-untyped-call]


class WakeQueue:
    """Wakes the streams that have something to send, a few in each turn of the event loop.

    Guarantee 4: a broadcast would otherwise make thousands of tasks ready together, and every other task
    would wait for all of them.
    """

    def __init__(self) -> None:
        self._streams: deque[QueueStream] = deque()

    def add(self, stream: "QueueStream") -> None:
        """A stream to be woken."""
        if not self._streams:
            asyncio.get_running_loop().call_soon(self._next)
        self._streams.append(stream)

    def _next(self) -> None:
        for _ in range(min(_WAKES_PER_TURN, len(self._streams))):
            self._streams.popleft().wake()
        if self._streams:
            asyncio.get_running_loop().call_soon(self._next)


class QueueStream(EventSourceResponse):
    """One stream: a sink for the hub, and the response that sends what is queued.

    It is full above `backlog_bytes`, and has room again when it is empty. It starts one task beside the
    server's own, where sse-starlette starts three, which cost memory and time with thousands of streams.
    """

    def __init__(
        self,
        wake_queue: WakeQueue,
        *,
        backlog_bytes: int,
        head: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        """`head`: the header fields of a body that isn't a stream of events."""
        super().__init__(self._body(), ping=0)
        # Nobody takes this lock here, and it takes 0.8 kB.
        self._send_lock = None  # type: ignore[assignment]
        self.raw_headers = list(head) or _HEADERS
        self.subscriber: Subscriber | None = None
        self._wake_queue = wake_queue
        self._backlog_bytes = backlog_bytes
        self._queued: list[bytes] = []
        self._bytes = 0
        self._ended = False
        self._full = False
        self._idle: asyncio.Future[None] | None = None
        self._until_gone: asyncio.Timeout | None = None

    def attach(self, subscriber: Subscriber) -> None:
        """From now on the subscriber is told what happens here, and first what has happened already."""
        self.subscriber = subscriber
        if self._full:
            # Guarantee 4: a stream that was full before it had a subscriber falls behind all the same.
            subscriber.paused()

    # Sink

    def write(self, chunk: Chunk) -> None:
        """Queues a chunk."""
        self._put(chunk)
        if self._bytes > self._backlog_bytes and not self._full:
            self._full = True
            if self.subscriber is not None:
                self.subscriber.paused()

    def end(self, chunk: Chunk) -> None:
        """Queues the last chunk; the body ends when it has left."""
        self._ended = True
        self._put(chunk)

    def abort(self) -> None:
        """Drops what is queued, and the response."""
        self._queued.clear()
        self._ended = True
        self._close()

    def wake(self) -> None:
        """Called by the wake queue: something is queued to be sent."""
        if self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    # Response

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI: until the body has ended, the client has gone, or `abort` was called."""
        writing = asyncio.ensure_future(self._write(send))
        writing.add_done_callback(self._close)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(None) as self._until_gone:
                    while (await receive())["type"] != "http.disconnect":
                        pass
        finally:
            self._until_gone = None
            writing.cancel()
            await asyncio.wait((writing,))
            # The two refer to each other: a cycle would stay in memory until the collector runs.
            subscriber, self.subscriber = self.subscriber, None
            if subscriber is not None:
                subscriber.gone()
        if not writing.cancelled():
            # Some servers say in this way that the client has gone (ASGI 2.4).
            with suppress(OSError):
                writing.result()

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for piece in self.body_iterator:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _put(self, chunk: Chunk) -> None:
        # A stream that has something queued is awake, or in the wake queue.
        if not self._queued:
            self._wake_queue.add(self)
        self._queued.append(chunk.raw)
        self._bytes += len(chunk.raw)

    def _close(self, _: object = None) -> None:
        """Ends the server's task's wait for the client to leave."""
        if self._until_gone is not None:
            self._until_gone.reschedule(0)
            self._until_gone = None

    async def _body(self) -> AsyncIterator[bytes]:
        """All that is queued, joined, each time that something is."""
        while self._queued or not self._ended:
            if not self._queued:
                self._idle = asyncio.get_running_loop().create_future()
                await self._idle
                continue
            raw = b"".join(self._queued)
            self._queued.clear()
            self._bytes = 0
            yield raw
            if self._full and not self._queued:
                self._full = False
                if self.subscriber is not None:
                    self.subscriber.resumed()


async def start(
    begin: Callable[[Sink], Subscriber],
    scope: Scope,
    send: Send,
    *,
    wake_queue: WakeQueue,
    backlog_bytes: int,
    head: Sequence[tuple[bytes, bytes]] = (),
    refusal: bytes = b"",
) -> QueueStream | None:
    """Begins a stream with `begin`, which gets the stream's sink.

    Returns the response, which is still to be sent; None where the server has handed its connection over.
    `head` are the header fields of a body that isn't a stream of events; `refusal` is that body where the
    connection can't be had.
    """
    offer = offered(scope)
    if offer is None:
        queued = QueueStream(wake_queue, backlog_bytes=backlog_bytes, head=head)
        queued.attach(begin(queued))
        return queued
    offer.hold_head()
    await send({"type": "http.response.start", "status": 200, "headers": [*head, CLOSE] if head else _HEAD})
    stream = offer.take(backlog_bytes)
    if stream is None:
        # The client has left, or has sent another request behind this one: it gets an empty stream and comes
        # back.
        await send({"type": "http.response.body", "body": refusal})
        return None
    try:
        stream.attach(begin(stream))
    except BaseException:
        # The server has let go of the connection, so nobody else would close it.
        stream.abort()
        raise
    return None


class Takeable(Protocol):
    """A connection that the server may hand over without ASGI."""

    def take_immediate(self, head: bytes, backlog_bytes: int) -> StreamProtocol | None:
        """The connection; None if it can't be had. `head` is still to be sent."""
        ...


def start_nowait(
    begin: Callable[[Sink], Subscriber],
    connection: Takeable | None,
    *,
    backlog_bytes: int,
    head: bytes = _HEAD_BYTES,
) -> bool:
    """As `start` where the server hands its connection over, without waiting. False: nothing was begun."""
    stream = None if connection is None else connection.take_immediate(head, backlog_bytes)
    if stream is None:
        return False
    try:
        stream.attach(begin(stream))
    except BaseException:
        # Nobody else knows of the connection by now.
        stream.abort()
        raise
    return True
