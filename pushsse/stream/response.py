"""Answers a stream request: over the connection itself where the server hands it over, else over a queue.

Made by the stream endpoint; calls `begin` with the sink as soon as the head has left.
"""

from collections.abc import Callable

from starlette.types import Receive, Scope, Send

from pushsse.stream.eventsource import QueueSink
from pushsse.stream.frame import MEDIA_TYPE, STREAM_HEADERS
from pushsse.stream.handover import offered
from pushsse.stream.subscriber import Sink, Subscriber

_HEAD = [
    (b"content-type", f"{MEDIA_TYPE}; charset=utf-8".encode()),
    *((name.lower().encode(), value.encode()) for name, value in STREAM_HEADERS.items()),
    (b"x-accel-buffering", b"no"),
]


class StreamResponse:
    """An ASGI response that never ends by itself."""

    def __init__(self, begin: Callable[[Sink], Subscriber], *, backlog_bytes: int) -> None:
        self._begin = begin
        self._backlog_bytes = backlog_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        hand_over = offered(scope)
        if hand_over is None:
            await self._portable(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": _HEAD})
        stream = hand_over(self._backlog_bytes)
        if stream is None:
            # The client has gone, or has sent a request behind this one: an empty stream, it comes back.
            await send({"type": "http.response.body", "body": b""})
            return
        try:
            stream.subscriber = self._begin(stream)
        except BaseException:
            # Nobody else knows of the connection by now.
            stream.abort()
            raise

    async def _portable(self, scope: Scope, receive: Receive, send: Send) -> None:
        sink = QueueSink(backlog_bytes=self._backlog_bytes)
        sink.subscriber = self._begin(sink)
        await sink.respond(scope, receive, send)
