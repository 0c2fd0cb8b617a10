"""uvicorn's HTTP protocol, which answers the most frequent calls itself: without a task and without ASGI.

`server` gives `ImmediateHttp` to uvicorn; its calls are the application's. A small request that arrives whole
goes to its call while it is parsed, and the answer is written there. All else goes through ASGI, and so
does every request whose call would have to wait.

Deliberate:
- One read must hold exactly one request. Then nothing of it is missing, and no further request is behind it
  that would have to wait for its turn. What comes while a request waits for its call gives that to ASGI.
- A call that returns None, or raises a PushsseError, has changed nothing. ASGI runs the request again from
  its beginning, so each error is made into a response in one place. Any other exception is a bug: it is
  logged here too, since ASGI may not come upon it.
- httptools parses each head, with two exceptions. One is a head that equals the head before it on the same
  connection in all but the number behind Content-Length: a producer sends the same head again and again. The
  other is a GET in which nothing is written in an unusual way, as clients open streams: `plain_head` reads it
  at a fraction of the cost. If its call has to leave it to ASGI, httptools parses it.
- The answer has the bytes that uvicorn's own cycle would write. They go straight to the socket while nothing
  waits in the transport.
- The timer of an idle connection isn't renewed for each request: when it fires, it looks how long that was.
"""

import asyncio
import logging
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, Self, cast

from msgspec import Struct
from starlette.requests import Request
from starlette.types import Scope
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE
from uvicorn.server import ServerState

from pushsse.errors import PushsseError
from pushsse.stream.handover import HandoverHttp, StreamProtocol, descriptor
from pushsse.stream.limits import ANSWER_LINES, BETWEEN, BODY, PIECE_BYTES, Refusal, is_host

logger = logging.getLogger(__name__)
# A request with its head.
MOST_BYTES = 16 * 1024
_LENGTH = b"content-length:"
# Whatever changes how a request or its body is read.
_UNUSUAL = frozenset({b"expect", b"upgrade", b"transfer-encoding", b"content-encoding"})
_LOOKED_AT = _UNUSUAL | {b"host", b"content-length"}
# A whole request, of which httptools makes the same. Its header fields are the second group.
_PLAIN = re.compile(
    rb"GET (/[A-Za-z0-9/?&=._~%:,+@-]*) HTTP/1\.1\r\n((?:[A-Za-z0-9-]++: [!-~](?:[ -~]*[!-~])?\r\n)++)\r\n"
)
_NOT_PLAIN = _UNUSUAL | {b"content-length", b"connection", b"proxy-connection"}


class Reply(Struct, frozen=True, gc=False):
    """An answer, with the headers that Starlette gives a response of this type."""

    status: int
    media_type: bytes
    body: bytes


# The call has taken the connection over.
TAKEN_OVER = Reply(200, b"", b"")
# What to call when a request no longer waits.
Leave = Callable[[], None]
# The call opens a stream later, on the connection of the request that it is given.
Later = Callable[["WaitingRequest"], Leave]
# None: nothing has happened, and ASGI has to answer. A name, since the annotations of a function that is made
# for each request are worked out each time.
ReplyOrLater = Reply | Later | None
# Answers a request by its body. An exception says the same as None.
Answer = Callable[[bytes], ReplyOrLater]
# Takes a request's head, and returns what answers the bodies behind it, now and later; None as above.
ImmediateCall = Callable[[Request], Answer | None]
# By method and path.
ImmediateCalls = Mapping[tuple[bytes, bytes], ImmediateCall]
NO_CALLS: ImmediateCalls = {}


class _Head(Struct, frozen=True, gc=False):
    """A head around the number behind Content-Length, and what answers the bodies behind it.

    `around` is how long it is without the number.
    """

    before: bytes
    after: bytes
    around: int
    answer: Answer

    @classmethod
    def of(cls, head: bytes, answer: Answer) -> Self | None:
        """None where the number can't be told from the rest for certain."""
        lower = head.lower()
        start = lower.find(_LENGTH) + len(_LENGTH)
        end = head.find(b"\r\n", start)
        if lower.count(_LENGTH) != 1:
            return None
        while head[start : start + 1] == b" ":
            start += 1
        if not head[start:end].isdigit():
            return None
        return cls(head[:start], head[end:], start + len(head) - end, answer)

    def body(self, data: bytes) -> bytes | None:
        """The body of a request that has this head, and is whole; None for any other.

        Also where the number isn't as long as that of the bytes behind it together with itself, as 996 and
        1000: those few are parsed.
        """
        size = len(data)
        rest = size - self.around
        length = rest - len(str(rest))
        # The only number with which it would be whole: one comparison tells whether the data begins so.
        head = b"%b%d%b" % (self.before, length, self.after)
        if size > MOST_BYTES or size - len(head) != length or not data.startswith(head):
            return None
        return data[len(head) :]


def plain_head(data: bytes) -> tuple[bytes, list[tuple[bytes, bytes]]] | None:
    """The URL and the header fields of a request that is plain and whole, as httptools has them."""
    plain = _PLAIN.fullmatch(data)
    if plain is None:
        return None
    url, lines = plain.groups()
    headers = []
    hosts = 0
    for line in lines[:-2].split(b"\r\n"):
        name, _, value = line.partition(b": ")
        name = name.lower()
        if name == b"host" and is_host(value):
            hosts += 1
        elif name == b"host" or (name in _NOT_PLAIN and line.lower() != b"connection: keep-alive"):
            return None
        headers.append((name, value))
    return (url, headers) if hosts == 1 else None


class WaitingRequest:
    """A request without a body whose call opens a stream later: by `take_immediate`, or else by `decline`.

    Both do nothing once the client has gone, or has sent more: then ASGI has the request.
    """

    __slots__ = ("_connection", "_leave")

    def __init__(self, connection: "ImmediateHttp") -> None:
        self._connection: ImmediateHttp | None = connection
        self._leave: Leave | None = None

    def begin(self, later: Later) -> None:
        """Called by the connection: from now on the request waits."""
        self._leave = later(self)

    def take_immediate(self, head: bytes, backlog_bytes: int) -> StreamProtocol | None:
        """The connection, as from `Offer.take_immediate`; None if it can't be had."""
        connection = self._connection
        return None if connection is None else connection.hand_over_waiting(head, backlog_bytes)

    def decline(self) -> None:
        """ASGI has to answer."""
        if self._connection is not None:
            self._connection.stop_waiting()

    def close(self) -> None:
        """Called by the connection: the request no longer waits."""
        self._connection = None
        # What waits elsewhere refers to this object.
        leave, self._leave = self._leave, None
        if leave is not None:
            leave()


class ImmediateHttp(HandoverHttp):
    """Looks for an immediate call behind each request."""

    # What was read and is being parsed, and whether its request began with it.
    _data = b""
    _began = False
    # Whether the next request to begin is the first of `_data`.
    _fresh = False
    # What answers the request that is being parsed, and where its body begins.
    _answer: Answer | None = None
    _body_at = 0
    # The last request, while its call is to open a stream.
    _waiting: WaitingRequest | None = None
    # That request as it was read, where `plain_head` has read it.
    _unparsed = b""
    # The head of the last request, where its call answered it.
    _head: _Head | None = None
    _answered_at = 0.0
    _fd = -1

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        plain = not (self.root_path or config.access_log or self.limit_concurrency is not None)
        self._calls: ImmediateCalls = getattr(self.app, "immediate", NO_CALLS) if plain else NO_CALLS
        self.answer_fields = getattr(self.app, "answer_fields", b"")

    def data_received(self, data: bytes) -> None:
        if self._waiting is not None:
            # ASGI answers in order, and so it has to answer both.
            self.stop_waiting()
        if (
            self.stage is BETWEEN
            and not self.rest
            and not self.flow.write_paused
            # `is_answering`, after the first line above.
            and ((running := self._running) is None or running.response_complete)
        ):
            head = self._head
            if head is None:
                if self._read_plain(data):
                    return
            elif (body := head.body(data)) is not None and self.reply(head.answer, body, keep_alive=True):
                # `on_response_complete`, as far as there is anything to do.
                self.server_state.total_requests += 1
                self._answered_at = self.loop.time()
                return
        self._began = False
        super().data_received(data)

    def parse(self, data: bytes) -> None:
        self._fresh = self.stage is BETWEEN
        if self._fresh:
            # With what was read behind it, as far as it matters here.
            start = self.rest_at
            self._data = data + self.rest[start : start + MOST_BYTES] if self.rest else data
        super().parse(data)
        if self.stage is BETWEEN:
            self._data = b""

    def on_message_begin(self) -> None:
        self._began, self._fresh = self._fresh, False
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._answer = self._found()
        if self._answer is None:
            super().on_headers_complete()
        else:
            self.stage = BODY

    def on_body(self, body: bytes) -> None:
        if self._answer is None:
            super().on_body(body)
        else:
            # It is counted all the same: what is no body counts as a head.
            self.count_body(body)

    def on_message_complete(self) -> None:
        self.stage = BETWEEN
        answer, self._answer = self._answer, None
        self._head = None
        if answer is None:
            super().on_message_complete()
            return
        # Only within this callback does the parser know whether the connection is kept.
        keep_alive = self.keep_alive = self.parser.should_keep_alive()
        body = self._data[self._body_at :]
        if not self.reply(answer, body, keep_alive=keep_alive):
            super().on_headers_complete()
            if body:
                super().on_body(body)
            super().on_message_complete()
            return
        if self._waiting is not None or self.has_let_go:
            return
        if keep_alive:
            self._head = _Head.of(self._data[: self._body_at], answer)
        self._answered_at = self.loop.time()
        self.on_response_complete()

    @property
    def is_answering(self) -> bool:
        """Whether a request is still to be answered, by ASGI or by its call."""
        return self._waiting is not None or super().is_answering

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone: nothing waits any more."""
        self._end_wait()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """uvicorn stops: a request that waits is answered all the same."""
        self.stop_waiting()
        super().shutdown()

    def refuse(self, refusal: Refusal) -> None:
        """Ends the connection."""
        # What follows is no request, also where it looks like the last one.
        self._head = None
        super().refuse(refusal)

    def hand_over_waiting(self, head: bytes, backlog_bytes: int) -> StreamProtocol | None:
        """The connection of the request that waits, from now on the caller's; None if it can't be had."""
        stream = self.hand_over_immediate(self.requests, head, backlog_bytes)
        if stream is not None:
            self._end_wait()
        return stream

    def stop_waiting(self) -> None:
        """Gives the request that waits to ASGI; does nothing if there is none, or the client has gone."""
        unparsed = self._unparsed
        if not self._end_wait() or self.transport.is_closing():
            return
        if unparsed:
            self._parse_for_asgi(unparsed)
            return
        super().on_headers_complete()
        # The parser has forgotten it.
        self.cycle.keep_alive = self.keep_alive
        super().on_message_complete()

    def _end_wait(self) -> bool:
        """Whether a request waited."""
        waiting, self._waiting = self._waiting, None
        self._unparsed = b""
        if waiting is None:
            return False
        waiting.close()
        return True

    def timeout_keep_alive_handler(self) -> None:
        """The connection was idle for as long as it may be, unless it has been used since the timer began."""
        left_s = self._answered_at + self.timeout_keep_alive - self.loop.time()
        if left_s > 0 and not self.transport.is_closing():
            self.timeout_keep_alive_task = self.loop.call_later(left_s, self.timeout_keep_alive_handler)
        else:
            super().timeout_keep_alive_handler()

    def reply(self, answer: Answer, body: bytes, *, keep_alive: bool) -> bool:
        """Answers a request, or has it wait for its call; False where ASGI has to answer."""
        try:
            found = answer(body)
            if found is None or found is TAKEN_OVER:
                return found is not None
            if not isinstance(found, Reply):
                self._waiting = WaitingRequest(self)
                self._waiting.begin(found)
                return True
        except PushsseError:
            # ASGI has it now: one that also waited would be answered twice.
            self._end_wait()
            return False
        except Exception:
            logger.exception("a call failed that is answered without ASGI: %s", self._asked)
            self._end_wait()
            # A call that had taken the connection over has closed it: nothing is left to answer.
            return self.has_let_go
        self._write(
            b"%b%bcontent-length: %d\r\ncontent-type: %b\r\n%b\r\n%b"
            % (
                STATUS_LINE[found.status],
                ANSWER_LINES,
                len(found.body),
                found.media_type,
                self.answer_fields if keep_alive else self.answer_fields + b"connection: close\r\n",
                found.body,
            )
        )
        if not keep_alive:
            self.transport.close()
        return True

    def _read_plain(self, data: bytes) -> bool:
        """Reads a request without httptools; False for any that isn't plain, or has no immediate call."""
        plain = plain_head(data) if len(data) <= PIECE_BYTES else None
        if plain is None or self.exceeded or self._refused is not None or self.server_state.default_headers:
            return False
        url, headers = plain
        path, _, query = url.partition(b"?")
        call = self._calls.get((b"GET", path))
        if call is None or len(headers) > self.limits.head_fields:
            return False
        self._unset_keepalive_if_required()
        super().on_message_begin()
        self.stage = BETWEEN
        self.keep_alive = True
        self.headers += headers
        answer = self._answer_of(call, b"GET", path, query)
        # Set before the call: it may decline at once.
        self._unparsed = data
        if answer is None or not self.reply(answer, b"", keep_alive=True):
            self._unparsed = b""
            self._parse_for_asgi(data)
        elif self._waiting is None:
            self._unparsed = b""
            if not self.has_let_go:
                self._answered_at = self.loop.time()
                self.on_response_complete()
        return True

    def _parse_for_asgi(self, data: bytes) -> None:
        """Has httptools parse a plain request whose call left it to ASGI."""
        # Past this class's own `parse`: no call is looked for once more.
        super().parse(data)

    def _found(self) -> Answer | None:
        """What answers the request whose head is being parsed, if it is usual, small and whole."""
        path, _, query = self.url.partition(b"?")
        method = self.parser.get_method()
        call = self._calls.get((method, path))
        data = self._data
        if call is None or self.exceeded or not self._began or len(data) > MOST_BYTES or b"#" in query:
            return None
        if self.is_answering or self.flow.write_paused or self.server_state.default_headers:
            return None
        if len(self.headers) > self.limits.head_fields:
            return None
        body_bytes = hosts = 0
        for name, value in self.headers:
            if name not in _LOOKED_AT:
                continue
            if name == b"host":
                if not is_host(value):
                    return None
                hosts += 1
            elif name == b"content-length":
                body_bytes = int(value)
            else:
                return None
        self._body_at = data.find(b"\r\n\r\n") + 4
        # Empty lines may come before a request: then the first empty line isn't the one behind its head.
        if not data.startswith(method):
            return None
        if hosts != 1 or self._body_at + body_bytes != len(data) or self.parser.get_http_version() != "1.1":
            return None
        return self._answer_of(call, method, path, query)

    def _answer_of(self, call: ImmediateCall, method: bytes, path: bytes, query: bytes) -> Answer | None:
        """What a call has for the request whose head is there."""
        scope = cast(Scope, self.scope)
        scope["method"] = method.decode("ascii")
        scope["path"], scope["raw_path"], scope["query_string"] = path.decode("ascii"), path, query
        try:
            return call(Request(scope))
        except PushsseError:
            return None
        except Exception:
            logger.exception("a head failed that is answered without ASGI: %s", self._asked)
            return None

    @property
    def _asked(self) -> str:
        """The last request for the log, by its method and path."""
        scope = cast(Scope, self.scope)
        return f"{scope['method']} {scope['path']}"

    def _write(self, data: bytes) -> None:
        transport = self.transport
        if self._fd < 0:
            self._fd = descriptor(transport)
        if self._fd < 0 or transport.is_closing() or transport.get_write_buffer_size():
            transport.write(data)
            return
        try:
            sent = os.write(self._fd, data)
        except OSError:
            # Full, or gone: the transport finds out which.
            sent = 0
        if sent < len(data):
            transport.write(data[sent:])
