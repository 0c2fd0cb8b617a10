"""The portable way of writing a stream: sse-starlette's EventSourceResponse over a bounded queue.

Used by the stream endpoint under any ASGI server that doesn't offer the handover, and for finite streams.
Deliberate: its own pings and its shutdown are off, the hub's heartbeat and drain do both for all streams.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from sse_starlette import EventSourceResponse
from sse_starlette.sse import AppStatus
from starlette.types import Receive, Scope, Send

from pushsse.stream.frame import STREAM_HEADERS, Chunk
from pushsse.stream.subscriber import Subscriber

AppStatus.disable_automatic_graceful_drain()  # type: ignore[no-untyped-call]


class QueueSink:
    """A queue between the hub and one response; full above `backlog_bytes`, with room again when empty."""

    def __init__(self, *, backlog_bytes: int) -> None:
        self.subscriber: Subscriber | None = None
        self._backlog_bytes = backlog_bytes
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        self._ended = False
        self._full = False
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def write(self, chunk: Chunk) -> None:
        """Queues a chunk."""
        self._waiting.append(chunk.raw)
        self._bytes += len(chunk.raw)
        self._wake.set()
        if self._bytes > self._backlog_bytes and not self._full:
            self._full = True
            if self.subscriber is not None:
                self.subscriber.paused()

    def end(self, chunk: Chunk) -> None:
        """Queues the last chunk; the body ends when it has left."""
        self._waiting.append(chunk.raw)
        self._ended = True
        self._wake.set()

    def abort(self) -> None:
        """Drops what is queued, and the response."""
        self._ended = True
        self._waiting.clear()
        self._wake.set()
        if self._task is not None:
            self._task.cancel()

    async def body(self) -> AsyncIterator[bytes]:
        """The response's body: whatever is queued, in one piece."""
        while self._waiting or not self._ended:
            if not self._waiting:
                self._wake.clear()
                await self._wake.wait()
                continue
            raw = b"".join(self._waiting)
            self._waiting.clear()
            self._bytes = 0
            yield raw
            if self._full and not self._waiting:
                self._full = False
                if self.subscriber is not None:
                    self.subscriber.resumed()

    async def respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the body until it has ended, the client has gone, or `abort` was called."""
        response = EventSourceResponse(self.body(), headers=STREAM_HEADERS, ping=0)
        self._task = asyncio.ensure_future(response(scope, receive, send))
        try:
            await asyncio.wait((self._task,))
            if not self._task.cancelled():
                self._task.result()
        finally:
            self._task.cancel()
            if self.subscriber is not None:
                self.subscriber.gone()
