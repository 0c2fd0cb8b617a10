"""Starts the answer to a stream request: over the connection itself where the server hands it over, else
over a queue. Called by the stream endpoint.
"""

from collections.abc import Callable

from starlette.types import Scope, Send

from pushsse.stream.eventsource import QueueStream, Turns
from pushsse.stream.frame import MEDIA_TYPE, STREAM_HEADERS
from pushsse.stream.handover import offered
from pushsse.stream.subscriber import Sink, Subscriber

_HEAD = [
    (b"content-type", f"{MEDIA_TYPE}; charset=utf-8".encode()),
    *((name.lower().encode(), value.encode()) for name, value in STREAM_HEADERS.items()),
    (b"x-accel-buffering", b"no"),
]


async def start(
    begin: Callable[[Sink], Subscriber], scope: Scope, send: Send, *, turns: Turns, backlog_bytes: int
) -> QueueStream | None:
    """Begins a stream with `begin`.

    Returns the response, which is still to be sent; None where the server has handed its connection over.
    """
    offer = offered(scope)
    if offer is None:
        queued = QueueStream(turns, backlog_bytes=backlog_bytes)
        queued.subscriber = begin(queued)
        return queued
    offer.hold_head()
    await send({"type": "http.response.start", "status": 200, "headers": _HEAD})
    stream = offer.take(backlog_bytes)
    if stream is None:
        # The client has gone, or has sent a request behind this one: an empty stream, it comes back.
        await send({"type": "http.response.body", "body": b""})
        return None
    try:
        stream.subscriber = begin(stream)
    except BaseException:
        # Nobody else knows of the connection by now.
        stream.abort()
        raise
    return None
