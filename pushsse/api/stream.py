"""`GET /v1/stream`: who, from where, what; then the stream begins, and the response has the connection.

Wired by `app`. A node that can't serve a stream just now says so with a 200 and a later `retry`, because a
browser's EventSource gives up for good on any other status.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from pushsse import position
from pushsse.api import query
from pushsse.api.identity import STREAM, Identifier, Identity
from pushsse.api.queue import Queue
from pushsse.errors import Unavailable
from pushsse.hub.resume import From, Opening, Resumer
from pushsse.hub.streams import StreamOptions, Streams
from pushsse.stream.frame import MEDIA_TYPE, STREAM_HEADERS, busy
from pushsse.stream.handover import offered
from pushsse.stream.response import StreamResponse
from pushsse.stream.subscriber import Sink, Subscriber

OPENING_AT_ONCE = 64
# A stream that isn't handed over takes some tasks, and four times as long to open.
PORTABLE_AT_ONCE = 4
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StreamEndpoint:
    """An ASGI endpoint, since the response may take the connection over."""

    identifier: Identifier
    resumer: Resumer
    streams: Streams
    has_room: Callable[[], bool]
    backlog_bytes: int
    queue: Queue = field(default_factory=lambda: Queue(OPENING_AT_ONCE))
    portable_queue: Queue = field(default_factory=lambda: Queue(PORTABLE_AT_ONCE))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        request = Request(scope, receive)
        who = self.identifier.identify(request, STREAM)
        wish, options = asked(request, who)
        if request.method == "HEAD":
            await Response(headers=STREAM_HEADERS, media_type=MEDIA_TYPE)(scope, receive, send)
            return
        if not self.has_room():
            await busy_response()(scope, receive, send)
            return
        queue = self.queue if offered(scope) is not None else self.portable_queue
        try:
            async with queue.turn() as begun, self.resumer.opening(who.user, wish) as opening:
                # Until the response begins the stream, the person is held by this context.
                await self._response(opening, options, begun)(scope, receive, send)
        except Unavailable as error:
            log.warning("a stream can't begin: %s", error)
            await busy_response()(scope, receive, send)

    def _response(self, opening: Opening, options: StreamOptions, begun: Callable[[], None]) -> ASGIApp:
        def begin(sink: Sink) -> Subscriber:
            # The portable response lasts as long as the stream does.
            begun()
            return self.streams.begin(opening, sink, options)

        return StreamResponse(begin, backlog_bytes=self.backlog_bytes)


def asked(request: Request, who: Identity) -> tuple[From, StreamOptions]:
    """What a request says about where to begin and what to send. Raises HttpProblem 400."""
    options = StreamOptions(
        named=query.flag(request, "named", default=True),
        types=query.types(request),
        expires_at=who.expires_at,
    )
    # EventSource sends the header by itself, and an old address in its URL for ever: the header wins.
    given = request.headers.get("last-event-id") or request.query_params.get("last_event_id")
    if given:
        return after(given), options
    return From(since_s=query.age(request, "since")), options


def after(given: str) -> From:
    """Where a client asks to go on from, by a position that it was given."""
    found = position.parse(given)
    return From(position=found, unreadable=found is None)


def busy_response() -> Response:
    """A stream that is over at once, and asks to come back later."""
    return Response(busy(), headers=STREAM_HEADERS, media_type=MEDIA_TYPE)
