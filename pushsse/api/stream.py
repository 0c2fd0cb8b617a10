"""`GET /v1/stream`: who, from where, what; then the stream begins, and the response has the connection.

A node that can't serve a stream just now says so with a 200 and a later `retry`, because a
browser's EventSource gives up for good on any other status.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pushsse import position
from pushsse.api import Query, direct
from pushsse.api.access import Tickets, has_ticket, ticket_of
from pushsse.api.identity import STREAM, Identifier, Identity
from pushsse.errors import CloseReason, Overloaded, Unavailable
from pushsse.hub.opening import Begin, From, Opener, StreamOptions
from pushsse.hub.people import GATHER_S
from pushsse.retry import Seldom
from pushsse.stream.admission import over_limit
from pushsse.stream.frame import MEDIA_TYPE, STREAM_HEADERS, busy
from pushsse.stream.handover import offered
from pushsse.stream.immediate import TAKEN_OVER, Answer, Leave, ReplyOrLater, WaitingRequest
from pushsse.stream.portable import QueueStream, WakeQueue, start, start_nowait
from pushsse.stream.subscriber import Sink, Subscriber

OPENING_AT_ONCE = 64
# A stream that isn't handed over takes three times as long to open.
PORTABLE_AT_ONCE = 4
# How long a client waits for its turn.
PATIENCE_S = 15.0
logger = logging.getLogger(__name__)


class Queue:
    """At most `at_once` have a turn; the others wait in the order in which they came."""

    def __init__(self, at_once: int) -> None:
        self._room = asyncio.Semaphore(at_once)

    async def __aenter__(self) -> None:
        """A turn, while the context lasts. Raises Overloaded."""
        if self._room.locked():
            await self._wait()
        else:
            # At once, and without a timer.
            await self._room.acquire()

    async def __aexit__(self, *error: object) -> None:
        self._room.release()

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self._room.acquire()
        except TimeoutError:
            raise Overloaded(f"others have been opening streams for {PATIENCE_S:.0f} s") from None


class HasRoom(Protocol):
    """Says whether the node takes one more stream; the node does it."""

    def has_room(self) -> bool:
        """Whether one more stream may begin."""
        ...

    @property
    def isolated(self) -> bool:
        """Whether that is because the node has lost Redis."""
        ...


class OpeningRate:
    """Tells streams that open one by one from a storm of them."""

    def __init__(self) -> None:
        self._last = -GATHER_S

    def is_calm(self) -> bool:
        """Whether the stream before this one opened at least GATHER_S ago. Called once for each stream."""
        last, self._last = self._last, time.monotonic()
        return self._last - last >= GATHER_S


def _itself(subscriber: Subscriber) -> Subscriber:
    return subscriber


@dataclass(frozen=True, slots=True)
class StreamEndpoint:
    """An ASGI endpoint, since a stream may take the connection over."""

    identifier: Identifier
    tickets: Tickets
    opener: Opener
    node: HasRoom
    backlog_bytes: int
    limited: Counter[str]
    refusals: Counter[str]
    allowed_origins: Collection[str] = ()
    queue: Queue = field(default_factory=lambda: Queue(OPENING_AT_ONCE))
    portable_queue: Queue = field(default_factory=lambda: Queue(PORTABLE_AT_ONCE))
    wake_queue: WakeQueue = field(default_factory=WakeQueue)
    rate: OpeningRate = field(default_factory=OpeningRate)
    failures: Seldom = field(
        default_factory=lambda: Seldom("a stream can't begin, and its client comes back", logger)
    )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if over_limit(scope):
            # The connection has been counted. Its browser comes back by itself, over another one.
            await self._busy(close=True)(scope, receive, send)
            return
        request = Request(scope, receive)
        ticket = ticket_of(request, self.allowed_origins)
        try:
            who = None if ticket is not None else await self.identifier.identify(request, STREAM)
        except Unavailable:
            # Whoever has to be asked is away, and has been logged. The person may well be let in later.
            await self._busy()(scope, receive, send)
            return
        wish, options = asked(request, who)
        if request.method == "HEAD":
            await Response(headers=STREAM_HEADERS, media_type=MEDIA_TYPE)(scope, receive, send)
            return
        # Before the queue: a node that is full says so at once, and its clients go to another one.
        if not self._has_room():
            await self._busy()(scope, receive, send)
            return
        try:
            if who is not None:
                queued = await self._begin(scope, send, who.user, wish, options)
            else:
                assert ticket is not None
                queued = await self._begin_by_ticket(request, send, ticket, wish, options)
        except Unavailable as error:
            # Of all clients of a node whose Redis is away, each fails every few seconds.
            self.failures.failed(error)
            await self._busy()(scope, receive, send)
            return
        # Outside the queue, which is for openings: this lasts as long as the stream.
        if queued is not None:
            direct.respond_later(scope, partial(queued, scope, receive, send))

    def _busy(self, *, close: bool = False) -> Response:
        """The answer that brings a browser back by itself, counted."""
        self.refusals[CloseReason.OVERLOADED.code] += 1
        return busy_response(close=close)

    def _has_room(self) -> bool:
        """Whether one more stream may begin; counts one that may not."""
        has_room = self.node.has_room()
        self.limited["streams"] += not (has_room or self.node.isolated)
        return has_room

    async def _begin(
        self,
        scope: Scope,
        send: Send,
        user: str,
        wish: From,
        options: StreamOptions,
        begun: Callable[[Subscriber], Subscriber] = _itself,
    ) -> QueueStream | None:
        """Begins a stream, and tells `begun`; none if the client has left. Raises Unavailable."""

        def begin(sink: Sink) -> Subscriber:
            # Guarantee 5: the node may have filled up or closed a moment ago, and nobody else may end this
            # stream by now. It is asked before the stream itself takes room.
            has_room = self._has_room()
            subscriber = self.opener.begin(opening, sink, options)
            try:
                begun(subscriber)
                if not has_room:
                    subscriber.end(CloseReason.OVERLOADED)
            except BaseException:
                # Whoever has the connection closes it, and doesn't know the subscriber yet.
                subscriber.gone()
                raise
            return subscriber

        offer = offered(scope)
        if offer is not None:
            # Guarantee 4: before its turn. A client that reads nothing would keep one of the few.
            await offer.drained()
        async with self.queue if offer is not None else self.portable_queue:
            if offer is not None and offer.has_left:
                # Nobody reads an answer. Those behind it in the queue have their turn at once.
                return None
            # Until the stream begins, the person is held by this context.
            async with self.opener.opening(user, wish) as opening:
                # Others began while this one waited, or the node has lost Redis.
                if not self._has_room():
                    raise Overloaded("the node has filled up, or closed, while this one waited")
                return await start(
                    begin, scope, send, wake_queue=self.wake_queue, backlog_bytes=self.backlog_bytes
                )

    async def _begin_by_ticket(
        self, request: Request, send: Send, ticket: str, wish: From, options: StreamOptions
    ) -> QueueStream | None:
        """As `_begin`, with a ticket. Raises Unavailable, HttpProblem 401."""
        # The header alone: EventSource sends it when it comes back. In a URL a position proves nothing.
        resumes = bool(request.headers.get("last-event-id", "").strip())
        async with self.tickets.opening(ticket, resumes=resumes) as opened:
            return await self._begin(
                request.scope, send, opened.ticket.user, wish, opened.options(options), opened.begun
            )

    def opening(self, request: Request) -> Answer | None:
        """Opens a stream without ASGI; None where that can't be. Raises what `__call__` answers with.

        At once, or in a storm together with others, which costs less.
        """
        calm = self.rate.is_calm()
        if not self.node.has_room() or has_ticket(request):
            return None
        who = self.identifier.identify_nowait(request, STREAM)
        if who is None:
            return None
        wish, options = asked(request, who)
        if wish.since_s is not None:
            return None
        wanted = _Wanted(self, who.user, wish, options, request)
        return wanted.open if calm else wanted.queue


class _Wanted:
    """A stream that is asked for, and opens without ASGI. The HTTP protocol calls `open` or `queue`.

    An object and not some functions within `opening`: one is made for each stream.
    """

    __slots__ = ("_endpoint", "_options", "_request", "_user", "_waiting", "_wish")

    def __init__(
        self, endpoint: StreamEndpoint, user: str, wish: From, options: StreamOptions, request: Request
    ) -> None:
        self._endpoint = endpoint
        self._user = user
        self._wish = wish
        self._options = options
        self._request = request

    def open(self, body: bytes) -> ReplyOrLater:
        """Opens it at once."""
        if body:
            return None
        begun = self._endpoint.opener.open_nowait(self._user, self._wish, self._options, self._start_at_once)
        return TAKEN_OVER if begun else None

    def queue(self, body: bytes) -> ReplyOrLater:
        """Leaves it to the opener's queue."""
        return None if body or not self._endpoint.opener.may_queue else self._wait

    def _wait(self, waiting: WaitingRequest) -> Leave:
        self._waiting = waiting
        self._endpoint.opener.begin_soon(self._user, self._wish, self._options, self)
        return self._leave

    def _leave(self) -> None:
        self._endpoint.opener.leave(self)

    def _start_at_once(self, begin: Begin) -> bool:
        connection = offered(self._request.scope)
        return start_nowait(begin, connection, backlog_bytes=self._endpoint.backlog_bytes)

    # Client, for the opener's queue

    def start(self, begin: Begin) -> bool:
        """Has it begin on the connection of the request that waits, if there is room."""
        # Those before in the same batch have taken their room.
        return self._endpoint.node.has_room() and start_nowait(
            begin, self._waiting, backlog_bytes=self._endpoint.backlog_bytes
        )

    def decline(self) -> None:
        """ASGI opens it, or answers that the node is busy."""
        self._waiting.decline()


def asked(request: Request, who: Identity | None) -> tuple[From, StreamOptions]:
    """What a request says about where to begin and what to send; `who` sets the times of its token.

    Raises HttpProblem 400.
    """
    query = Query(request)
    options = StreamOptions(
        named=query.flag("named", default=True),
        types=query.types(),
        expires_at=None if who is None else who.expires_at,
        issued_at=None if who is None else who.issued_at,
        renew=None if who is None else who.renew,
    )
    return wished(query), options


def wished(query: Query, *, also: str = "") -> From:
    """Where a client goes on from: the last position that it gives, else the past that `since` names.

    `also` is a further parameter with a position. Where none that is given can be read it is a gap, and never
    `new`. Raises HttpProblem 400.
    """
    given = query.positions()
    if also and (further := query.get(also)) is not None:
        given.append(further)
    # Also where it isn't needed: whether it is an age doesn't depend on what else is given.
    since_s = query.age_s("since")
    if not given:
        return From(since_s=since_s)
    for text in reversed(given):
        if (found := position.parse(text)) is not None:
            return From(position=found)
    return From(unreadable=True)


def busy_response(*, close: bool = False) -> Response:
    """A stream that is over at once, and asks to come back later; with `close`, over another connection."""
    headers = {**STREAM_HEADERS, "Connection": "close"} if close else STREAM_HEADERS
    return Response(busy(), headers=headers, media_type=MEDIA_TYPE)
