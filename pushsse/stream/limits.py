"""uvicorn's HTTP protocol with bounds, so that no client takes memory, the event loop or a file without end.

`handover` and `immediate` build on `LimitedHttp`; the server calls `check` once a second for each connection.
A refusal is counted by its code, answered where an answer is due, and ends the connection. `admission` says
which connections are too many.

Deliberate:
- No timer for a connection or a request: `check` remembers what a client owed when it last looked, so a
  request that comes in time costs nothing. What is late is noticed up to two seconds after its limit.
- A large read is parsed in pieces, and while requests wait behind an unanswered one, the rest stays bytes,
  of which there are few: uvicorn would make objects of 3 kB of a request of 18 bytes.
- uvicorn's cycles of references (a request that never ran, a timer) are broken when the connection ends.
"""

import asyncio
import logging
import socket
import struct
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import partial
from http import HTTPStatus
from typing import Any, Literal, NamedTuple, Self, cast

import httptools
import msgspec
from starlette.types import Scope
from uvicorn import Config
from uvicorn._types import ASGI3Application, HTTPScope
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.utils import get_local_addr, is_ssl
from uvicorn.server import ServerState

from pushsse.stream.admission import EXCEEDED, Admission, Starts

# What is parsed at once: a hundred of the smallest requests.
PIECE_BYTES = 2 * 1024
# What may wait behind an unanswered request before nothing more is read.
MOST_WAITING_BYTES = 64 * 1024
# How long the pieces of one read may hold the event loop.
_TURN_S = 0.005
# A body that arrives at this rate may take longer than its limit, up to the largest body that any call takes.
BODY_BYTES_PER_S = 32 * 1024
_LARGEST_BODY = 1024 * 1024
# A chunked body has at most so many bytes around each of its own.
_AROUND = 8
# How long a refused client may go on sending before its connection is cut: closed at once, it would be reset,
# and lose the answer (RFC 9112, 9.6).
_LINGER_S = 2.0
# Of every JSON answer: it is one person's, and nothing but JSON.
ANSWER_HEADERS = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
ANSWER_LINES = "".join(f"{name}: {value}\r\n" for name, value in ANSWER_HEADERS.items()).encode()
# What a connection has of its own once something has to be parsed, and what it is in uvicorn's.
OWN = {"parser": httptools.HttpRequestParser, "pipeline": deque}
# struct linger: on, 0 seconds. Closing sends a reset (socket(7)).
_DROP = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a client may send, and how long it may take. `refusals` counts by the code of the answer.

    `own_address`: the application asks on which address a request came.
    """

    head_bytes: int = 32 * 1024
    head_fields: int = 100
    head_timeout_s: float = 10.0
    body_timeout_s: float = 10.0
    # Without any progress in reading an answer.
    read_timeout_s: float = 10.0
    refusals: Counter[str] = field(default_factory=Counter)
    admission: Admission | None = None
    own_address: bool = False
    starts: Starts = field(default_factory=Starts)


DEFAULT_LIMITS = Limits()


class Stage(Enum):
    """Where the parser stands."""

    BETWEEN = auto()
    HEAD = auto()
    BODY = auto()


BETWEEN, HEAD, BODY = Stage


class Refusal(NamedTuple):
    """Why a connection ends. Without a status nobody expects an answer."""

    code: str
    status: HTTPStatus | None = None
    detail: str = ""

    def answer(self) -> bytes:
        """The whole answer, in the form of the API's errors (RFC 9457)."""
        assert self.status is not None
        body = msgspec.json.encode(
            {
                "type": "about:blank",
                "title": self.status.phrase,
                "status": self.status.value,
                "code": self.code,
                "detail": self.detail,
            }
        )
        return (
            b"%b%bcontent-type: application/problem+json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
            % (
                STATUS_LINE[self.status],
                ANSWER_LINES,
                len(body),
                body,
            )
        )


_TOO_LARGE = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
_UNREADABLE = Refusal("bad_request", HTTPStatus.BAD_REQUEST, "the request isn't valid HTTP/1.1")
_LATE_HEAD, _LATE_BODY = (
    Refusal(f"{part}_timeout", HTTPStatus.REQUEST_TIMEOUT, f"the {part} of the request didn't arrive in time")
    for part in ("head", "body")
)
_SILENT = Refusal("silent")
_VERSIONS = ("1.1", "1.0")
# Unreserved characters, percent signs, those between parts, and what is around addresses and before ports.
_OF_HOSTS = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~%!$&'()*+,;=:[]"
_UNREAD = Refusal("unread")


class Owed(NamedTuple):
    """What a client owed when `check` looked: a `mark` that differs from the last one is progress.

    `refusal` is how the connection ends after `limit_s` without any; None where it has been refused already.
    """

    mark: tuple[str, int]
    limit_s: float
    refusal: Refusal | None


class Flow(FlowControl):
    """uvicorn's, which doesn't read on while much that was read already waits for its turn."""

    holds = False
    read_paused = False
    write_paused = False

    def __init__(self, transport: asyncio.Transport) -> None:
        # Without uvicorn's event, which most connections never wait for, and which would be a microsecond.
        self._transport = transport

    async def drain(self) -> None:
        """Called by uvicorn's answers before each write: waits while the transport is full."""
        if self.write_paused:
            await self._is_writable_event.wait()

    def pause_writing(self) -> None:
        """Called by the transport when it is full."""
        if not self.write_paused:
            self.write_paused = True
            self._is_writable_event = asyncio.Event()

    def resume_reading(self) -> None:
        """Called by uvicorn whenever a request wants to be read."""
        if not self.holds:
            super().resume_reading()


# A request that waits for the one before it, and what answers it.
_Waiting = tuple[RequestResponseCycle, ASGI3Application]


class Pipeline(list[_Waiting]):
    """Stands in for uvicorn's deque: an empty one takes 0.7 kB, for as long as the connection lasts."""

    __slots__ = ()

    def appendleft(self, waiting: _Waiting) -> None:
        """Adds the newest."""
        self.insert(0, waiting)

    def popleft(self) -> _Waiting:
        """Takes the newest back."""
        return self.pop(0)


class LimitedHttp(HttpToolsProtocol):
    """uvicorn's HTTP protocol, with limits."""

    flow: Flow = cast(Flow, None)
    # uvicorn's own, which it sets for each connection.
    logger = logging.getLogger("uvicorn.error")
    access_logger = logging.getLogger("uvicorn.access")
    timeout_keep_alive_task: asyncio.TimerHandle | None = None
    transport = cast(asyncio.Transport, None)
    server: tuple[str, int | None] | None = None
    client: tuple[str, int] | None = None
    scheme: Literal["http", "https"] | None = None
    scope = cast(HTTPScope, None)
    headers = cast(list[tuple[bytes, bytes]], None)
    expect_100_continue = False
    cycle = cast(RequestResponseCycle, None)
    # Until something has to be parsed: most streams open without.
    parser = cast(httptools.HttpRequestParser, None)
    pipeline = cast("deque[_Waiting]", ())
    # Whether the connection is gone, or was handed over.
    has_let_go = False
    # Of the class until they are set: most connections are handed over, or answered, without most of them.
    stage = BETWEEN
    # How many requests have begun.
    requests = 0
    # What was read and isn't parsed, and where that begins.
    rest = b""
    rest_at = 0
    # Of the head or the body that is being parsed, as it came, and of the body itself.
    _bytes = 0
    _body_bytes = 0
    # What ASGI is at, which isn't `cycle` while others wait behind it.
    _running: RequestResponseCycle | None = None
    _refused: Refusal | None = None
    # Of a request that offers to upgrade: a head with what its own says of its body, then what reads both.
    _offered = b""
    _offered_body: "_OfferedBody | None" = None
    # Which limit the connection itself exceeds, and its address as it was entered.
    exceeded = ""
    _entered: str | None = None
    _owed_mark: tuple[str, int] | None = None
    _owed_since = 0.0

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        # What uvicorn's does (`handover.failed` compares them), where a connection needs it by itself: 4 us
        # less for each.
        self.config = config
        self.app = config.loaded_app
        self.loop = _loop or asyncio.get_event_loop()
        self.access_log = config.access_log and self.access_logger.hasHandlers()
        self.ws_protocol_class = config.ws_protocol_class
        self.root_path = config.root_path
        self.asgi_version = config.asgi_version
        self.limit_concurrency = config.limit_concurrency
        self.app_state = app_state
        self.timeout_keep_alive = config.timeout_keep_alive
        self.server_state = server_state
        self.connections = server_state.connections
        self.tasks = server_state.tasks
        self.limits: Limits = getattr(self.app, "limits", DEFAULT_LIMITS)

    def _begin_with_server(self, **_: object) -> None:
        """How a connection of a class by `of_server` begins: with nothing of its own."""

    def begin_parsing(self) -> None:
        """Sets OWN."""
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.pipeline = cast("deque[_Waiting]", Pipeline())

    @classmethod
    def of_server(cls, config: Config, server_state: ServerState, app_state: dict[str, Any]) -> type[Self]:
        """A class for the connections of one server: it has what they share, and each only its own."""
        shared = dict(vars(cls(config, server_state, app_state)))
        for name, value in shared.items():
            if hasattr(value, "__get__"):
                # A function (an application may be one) would be bound to each connection.
                shared[name] = staticmethod(value)
        return cast(type[Self], type(cls.__name__, (cls,), {**shared, "__init__": cls._begin_with_server}))

    # uvicorn's

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """uvicorn's, without asking the kernel for the address of our own end where nobody reads that."""
        self.connections.add(self)
        self.transport = transport
        self.flow = Flow(transport)
        # What the transport knows already: uvicorn makes a socket object to ask the kernel once more.
        peer = transport.get_extra_info("peername")
        self.client = (peer[0], peer[1]) if isinstance(peer, tuple) else None
        if self.limits.own_address:
            self.server = get_local_addr(transport)
        self.scheme = "https" if is_ssl(transport) else "http"
        self.enter()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        super().connection_lost(exc)
        self.has_let_go = True
        if (leave := self.take_leave()) is not None:
            leave()
        # After a reset uvicorn leaves its timer, which would keep all of this for 75 s.
        self._unset_keepalive_if_required()
        self.rest, self._offered_body = b"", None
        # The next requests are what `cycle` is: the one that runs would wait for its client for ever.
        running, self._running = self._running, None
        if running is not None and not running.response_complete:
            running.disconnected = True
            running.message_event.set()
        # A request that never runs holds this object, which holds it.
        for cycle, _ in self.pipeline:
            cycle.on_response = _nothing
        if self.pipeline:
            self.pipeline.clear()

    def data_received(self, data: bytes) -> None:
        """Something was read."""
        if self._refused is not None:
            return
        if self.rest or self.pipeline:
            self.rest, self.rest_at = self.rest[self.rest_at :] + data, 0
            self._hold_if_full()
        elif len(data) <= PIECE_BYTES:
            self.parse(data)
        else:
            self.rest, self.rest_at = data, 0
            self._parse_rest()

    def parse(self, data: bytes) -> None:
        """Parses a piece of what was read."""
        stage = self.stage
        self._feed(data)
        if self.stage is BETWEEN or self._refused is not None:
            return
        if self.stage is stage:
            self._bytes += len(data)
        most = self.limits.head_bytes
        if self.stage is BODY:
            # Extensions of chunks, and trailers, which may be as endless as a head.
            most += self._body_bytes * _AROUND
        if self._bytes > most:
            detail = f"the request has more than {self.limits.head_bytes} bytes of header fields"
            self.refuse(Refusal("headers_too_large", _TOO_LARGE, detail))
        elif len(self.headers) > self.limits.head_fields:
            self.refuse(self._too_many())

    def on_message_begin(self) -> None:
        """A request begins."""
        self.stage = HEAD
        self.requests += 1
        self._bytes = self._body_bytes = 0
        # What uvicorn's does (`handover.failed` compares it, too), in one step.
        self.url = b""
        self.expect_100_continue = False
        self.headers = []
        scope: Scope = {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": "1.1",
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "root_path": self.root_path,
            "headers": self.headers,
            "state": self.app_state.copy(),
            "extensions": self.extensions(),
        }
        self.scope = cast(HTTPScope, scope)

    def extensions(self) -> dict[str, object]:
        """Of the scope of the request that begins."""
        return {EXCEEDED: self.exceeded} if self.exceeded else {}

    def on_headers_complete(self) -> None:
        """The head of a request is there. Raises HeadRefused, which ends the parsing."""
        if len(self.headers) > self.limits.head_fields:
            self._refused = self._too_many()
            raise HeadRefused
        if self.parser.get_http_version() not in _VERSIONS:
            # The parser takes others, too (0.9, 2.0), and would have them answered as 1.1.
            self._refused = _UNREADABLE
            raise HeadRefused
        super().on_headers_complete()
        if self.parser.should_upgrade() and (head := _framing(self.headers)):
            self._offered = head
            # What follows the body is left to another connection.
            self.cycle.keep_alive = False
        self.stage = BODY
        self._bytes = 0
        # Trailers come through `on_header`, too; they aren't the head's, which the application has by now.
        self.headers = []

    def on_body(self, body: bytes) -> None:
        """A piece of a body."""
        self.count_body(body)
        super().on_body(body)

    def count_body(self, body: bytes) -> None:
        """Says that a piece of what is read belongs to a body."""
        self._body_bytes += len(body)

    def on_message_complete(self) -> None:
        """A request is whole; or the head of one that offers to upgrade, whose body comes yet."""
        if self._offered:
            return
        self.stage = BETWEEN
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """An answer is whole: what waits behind its request has its turn."""
        super().on_response_complete()
        if self._refused is not None:
            if not self.is_answering and not self.transport.is_closing():
                self._end(self._refused)
        elif self.rest and not self.pipeline:
            self.loop.call_soon(self._parse_rest)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        self.limits.starts.start(self.loop, partial(super()._start_asgi_task, cycle, app))

    def _feed(self, data: bytes) -> None:
        """As uvicorn's `data_received`, which leaves lines in the log for whatever a stranger sends."""
        self._unset_keepalive_if_required()
        if cast(object, self.parser) is None:
            self.begin_parsing()
        try:
            if self._offered_body is not None:
                self._offered_body.feed(data)
            else:
                self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            # An offer that may be ignored (RFC 9110, 7.8): the request is served as any other. Java's
            # HttpClient and `curl --http2` make it with each request.
            if self._offered:
                self._offered_body, head, self._offered = _OfferedBody(self), self._offered, b""
                self.stage = BODY
                self._feed(head + data[offer.args[0] :])
        except httptools.HttpParserError:
            # It can't be read, or a callback has refused it.
            if not self.has_let_go:
                self.refuse(self._refused or _UNREADABLE)

    # Admission

    def enter(self) -> None:
        """Counts the connection, and drops it where it is far over a limit. Called when it is made."""
        admission = self.limits.admission
        if admission is None or self.client is None:
            return
        self._entered = self.client[0]
        exceeded = admission.enter(self._entered)
        if exceeded is not None:
            self.exceeded = exceeded.limit
            if exceeded.is_far:
                drop(self.transport)

    def take_leave(self) -> Callable[[], None] | None:
        """What to call when the connection is gone, for whoever has it then; None if it isn't counted."""
        admission, address = self.limits.admission, self._entered
        self._entered = None
        return None if admission is None or address is None else partial(admission.leave, address)

    # One piece after another

    def _parse_rest(self) -> None:
        until = self.loop.time() + _TURN_S
        while self.rest and not self.pipeline:
            if self.has_let_go or self._refused is not None or self.transport.is_closing():
                self.rest = b""
                return
            if self.loop.time() > until:
                self.loop.call_soon(self._parse_rest)
                break
            self.parse(self._next_piece())
        if not self.has_let_go:
            self._hold_if_full()

    def _next_piece(self) -> bytes:
        """Ends with a head where that is near: a request behind it is parsed when this one is answered."""
        rest, start = self.rest, self.rest_at
        end = start + PIECE_BYTES
        if self.stage is not BODY and (found := rest.find(b"\r\n\r\n", start, end)) >= 0:
            end = found + 4
        self.rest_at = end
        if end >= len(rest):
            # Nothing lies behind this piece: its request may have the connection.
            self.rest = b""
        return rest[start:end]

    def _hold_if_full(self) -> None:
        """Reads on while little waits: a client that leaves is noticed only by reading."""
        if len(self.rest) - self.rest_at > MOST_WAITING_BYTES:
            self.flow.holds = True
            self.flow.pause_reading()
        elif self.flow.holds:
            self.flow.holds = False
            self.flow.resume_reading()

    # Refusals

    @property
    def is_answering(self) -> bool:
        """Whether ASGI is still at a request."""
        return self._running is not None and not self._running.response_complete

    def refuse(self, refusal: Refusal) -> None:
        """Ends the connection: with an answer, once the requests before this one have theirs."""
        self.limits.refusals[refusal.code] += 1
        self._refused = refusal
        self.rest = b""
        running = self._running
        if running is None or running.response_complete:
            self._end(refusal)
        elif self.stage is not BODY:
            # Those before it are whole: `on_response_complete` goes on.
            return
        elif running is not self.cycle:
            # Its head is there, but it never runs.
            cycle, _ = self.pipeline.popleft()
            cycle.on_response = _nothing
        else:
            self._running = None
            running.disconnected = True
            running.message_event.set()
            if running.response_started:
                drop(self.transport)
            else:
                self._end(refusal)

    def _end(self, refusal: Refusal) -> None:
        if refusal.status is None:
            self.transport.close()
            return
        self._unset_keepalive_if_required()
        self.transport.write(refusal.answer())
        if not self.transport.can_write_eof():
            self.transport.close()
            return
        try:
            self.transport.write_eof()
        except OSError:
            # asyncio's own loop says so where the client has reset the connection a moment ago.
            drop(self.transport)
        else:
            self._hold_if_full()

    def check(self, now: float) -> None:
        """Refuses a client that owes something for longer than it may. Called once a second."""
        owed = self._owes()
        mark = None if owed is None else owed.mark
        if mark != self._owed_mark:
            self._owed_mark, self._owed_since = mark, now
        elif owed is not None and now - self._owed_since > owed.limit_s:
            self._end_late(owed.refusal)

    def _owes(self) -> Owed | None:
        limits = self.limits
        if self.has_let_go or self.transport.is_closing():
            return None
        is_refused = self._refused is not None
        if is_refused and not self.is_answering:
            return Owed(("end", 0), _LINGER_S, None)
        if self.flow.write_paused:
            unread = self.transport.get_write_buffer_size()
            return Owed(("reading", unread), limits.read_timeout_s, _UNREAD)
        if is_refused:
            # The requests before it are being answered.
            return None
        if self.timeout_keep_alive_task is not None and self.stage is BETWEEN:
            # uvicorn's own limit holds. Behind an answer a request may have begun already.
            return None
        if self.flow.read_paused or self.rest or self.pipeline:
            # It isn't the client who is waited for.
            return None
        if self.stage is not BODY:
            if self.is_answering:
                return None
            # Also where nothing has begun: empty lines before a request begin none.
            refusal = _SILENT if self.stage is BETWEEN else _LATE_HEAD
            return Owed((self.stage.name, self.requests), limits.head_timeout_s, refusal)
        cycle = cast(RequestResponseCycle | None, self.cycle)
        if cycle is not None and cycle.waiting_for_100_continue and not cycle.response_complete:
            return None
        # What has arrived earns more time, but isn't progress by itself: that would never end.
        earned_s = min(self._body_bytes, _LARGEST_BODY) / BODY_BYTES_PER_S
        return Owed((BODY.name, self.requests), limits.body_timeout_s + earned_s, _LATE_BODY)

    def _end_late(self, refusal: Refusal | None) -> None:
        if refusal is not None and refusal is not _UNREAD:
            self.refuse(refusal)
            return
        # Closing would wait for the client to read.
        if refusal is not None:
            self.limits.refusals[refusal.code] += 1
        drop(self.transport)

    def _too_many(self) -> Refusal:
        detail = f"the request has more than {self.limits.head_fields} header fields"
        return Refusal("headers_too_large", _TOO_LARGE, detail)


class _OfferedBody:
    """Reads the body of a request that offers to upgrade, with a parser of its own.

    The request's takes what follows the head for another protocol, and finds no body. This one begins with
    what the head said of the body, and ends with it.
    """

    def __init__(self, connection: LimitedHttp) -> None:
        self._connection: LimitedHttp | None = connection
        self._began = False
        self._parser = httptools.HttpRequestParser(self)

    def feed(self, data: bytes) -> None:
        """First the head of `_framing`, then the body; what follows it is dropped. Raises HttpParserError."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            if self._connection is not None:
                raise

    def on_headers_complete(self) -> None:
        """The body begins."""
        self._began = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """One of the trailers, once the body has begun."""
        if self._began and self._connection is not None:
            self._connection.on_header(name, value)

    def on_body(self, body: bytes) -> None:
        """A piece of the body, without what is around it."""
        if self._connection is not None:
            self._connection.on_body(body)

    def on_message_complete(self) -> None:
        """The body is whole."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.on_message_complete()


class HeadRefused(Exception):
    """Stops the parser; the connection knows why."""


def drop(transport: asyncio.Transport) -> None:
    """Closes now, with all that waits, also in the kernel, where a slow reader would hold it for long."""
    connection = transport.get_extra_info("socket")
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _DROP)
    transport.abort()


def is_host(value: bytes) -> bool:
    """Whether all characters of a Host field's value may be in a host or a port (RFC 3986, 3.2.2)."""
    return not value.translate(None, _OF_HOSTS)


def _framing(headers: list[tuple[bytes, bytes]]) -> bytes:
    """A head that says of the body what these say, as they say it; empty where there is none."""
    said = [each for each in headers if each[0] in (b"content-length", b"transfer-encoding")]
    if all(name == b"content-length" and not value.strip(b" 0") for name, value in said):
        return b""
    fields = b"".join(name + b": " + value + b"\r\n" for name, value in said)
    return b"POST / HTTP/1.1\r\n" + fields + b"\r\n"


def _nothing() -> None:
    """What a request that never runs does when it is answered."""
