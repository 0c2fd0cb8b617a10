"""The portable way of writing a stream: sse-starlette's EventSourceResponse over a bounded queue.

Used by the stream endpoint under any ASGI server that doesn't offer the handover. Deliberate: pings and
shutdown are left to the hub, whose heartbeat and drain do both for all streams.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

from sse_starlette import EventSourceResponse
from sse_starlette.sse import AppStatus
from starlette.types import Receive, Scope, Send

from pushsse.stream.frame import STREAM_HEADERS, Chunk
from pushsse.stream.subscriber import Subscriber

AppStatus.disable_automatic_graceful_drain()  # type: ignore[no-untyped-call]


class QueueStream(EventSourceResponse):
    """One stream: the hub writes to it, and as a response it sends what is queued.

    It is full above `backlog_bytes`, and has room again when it is empty. It takes one task beside the
    server's own; sse-starlette alone would start three (for the shutdown, for the client's leaving), which
    thousands of streams would feel, in memory and whenever they all come at once.
    """

    def __init__(self, *, backlog_bytes: int) -> None:
        super().__init__(self._body(), headers=STREAM_HEADERS, ping=0)
        self.subscriber: Subscriber | None = None
        self._backlog_bytes = backlog_bytes
        self._queued: list[bytes] = []
        self._bytes = 0
        self._ended = False
        self._full = False
        self._wake: asyncio.Future[None] | None = None
        self._open: asyncio.Timeout | None = None

    # Sink

    def write(self, chunk: Chunk) -> None:
        """Queues a chunk."""
        self._queued.append(chunk.raw)
        self._bytes += len(chunk.raw)
        self._rouse()
        if self._bytes > self._backlog_bytes and not self._full:
            self._full = True
            if self.subscriber is not None:
                self.subscriber.paused()

    def end(self, chunk: Chunk) -> None:
        """Queues the last chunk; the body ends when it has left."""
        self._queued.append(chunk.raw)
        self._ended = True
        self._rouse()

    def abort(self) -> None:
        """Drops what is queued, and the response."""
        self._queued.clear()
        self._ended = True
        self._rouse()
        # The writing task may wait for a client that doesn't read.
        self._close()

    # Response

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI: until the body has ended, the client has gone, or `abort` was called."""
        writing = asyncio.ensure_future(self._stream_response(send))
        writing.add_done_callback(self._close)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(None) as self._open:
                    while (await receive())["type"] != "http.disconnect":
                        pass
        finally:
            self._open = None
            writing.cancel()
            await asyncio.wait((writing,))
            if self.subscriber is not None:
                self.subscriber.gone()
        if not writing.cancelled():
            # Some servers say in this way that the client has gone (ASGI 2.4).
            with suppress(OSError):
                writing.result()

    def _close(self, _: object = None) -> None:
        """Makes the server's task leave off waiting for the client's leaving."""
        if self._open is not None:
            self._open.reschedule(0)
            self._open = None

    def _rouse(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def _body(self) -> AsyncIterator[bytes]:
        """Whatever is queued, in one piece."""
        while self._queued or not self._ended:
            if not self._queued:
                self._wake = asyncio.get_running_loop().create_future()
                await self._wake
                continue
            raw = b"".join(self._queued)
            self._queued.clear()
            self._bytes = 0
            yield raw
            if self._full and not self._queued:
                self._full = False
                if self.subscriber is not None:
                    self.subscriber.resumed()
