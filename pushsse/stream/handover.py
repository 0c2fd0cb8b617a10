"""The fast way of writing a stream: uvicorn hands its connection over, and the ASGI task ends.

uvicorn gives a connection to one protocol object, which parses requests and runs the application for each. It
already knows how to pass a connection on (to its WebSocket protocol); the same is done here for streams.
`HandoverHttp` is what uvicorn is given as `http=`: it puts an `Offer` in each request's scope. The response
sends its head, which `HeldHead` keeps, and takes the offer; then `StreamProtocol` owns the transport, and
parser, scope and task go. The head leaves with the stream's first chunk: one packet and one system call.

Deliberate: it leans on uvicorn's insides, so `failed` tries it at the start, and where they have changed,
streams are written the portable way, within `LimitedHttp` if that still works. What a client sends after its
request is read and dropped, so that its leaving is noticed. A write goes straight to the socket while nothing
waits in the transport, which saves its queue and a turn.
"""

import asyncio
import os
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import cast
from weakref import ref

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from pushsse.stream.admission import EXCEEDED
from pushsse.stream.frame import Chunk, chunk
from pushsse.stream.limits import DEFAULT_LIMITS, OWN, LimitedHttp, drop
from pushsse.stream.subscriber import Subscriber

EXTENSION = "pushsse.handover"
LAST_CHUNK = b"0\r\n\r\n"
TRIAL_S = 5.0
_REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
_TOO_LARGE = b"GET / HTTP/1.1\r\n" + b"x: x\r\n" * (DEFAULT_LIMITS.head_fields + 1) + b"\r\n"
_FIRST, _LAST = chunk(b"handed"), chunk(b"over")


class StreamProtocol(asyncio.Protocol):
    """Owns the connection of one stream: the hub writes to it, the event loop tells it what happens."""

    __slots__ = (
        "_closed",
        "_connections",
        "_fd",
        "_full",
        "_head",
        "_leave",
        "_waiting",
        "subscriber",
        "transport",
    )

    def __init__(
        self,
        transport: asyncio.Transport,
        connections: set[object],
        head: bytes,
        leave: Callable[[], None] | None = None,
        *,
        tls: bool,
    ) -> None:
        """`leave` is called when the connection is gone. Under `tls` all bytes have to pass the transport."""
        self.subscriber: Subscriber | None = None
        # As uvicorn's protocols have it: the server cuts what is left when it stops.
        self.transport = transport
        self._leave = leave
        self._connections = connections
        self._head = head
        self._closed = False
        self._full = False
        # An earlier answer may still wait.
        self._waiting = True
        self._fd = -1 if tls else transport.get_extra_info("socket").fileno()
        # uvicorn waits for what is in here when it stops, and calls its `shutdown`.
        connections.add(self)

    def attach(self, subscriber: Subscriber) -> None:
        """From now on the subscriber is told what happens here, and first what has happened already."""
        self.subscriber = subscriber
        if self._full:
            # Guarantee 4: answers that the client hasn't read, or `ready`, may fill the transport before
            # there is a subscriber. The transport says so only once.
            subscriber.paused()

    # Sink

    def write(self, chunk: Chunk) -> None:
        """Takes a chunk whole; what the socket doesn't take waits in the transport."""
        if self._closed:
            return
        framed = chunk.framed
        if self._waiting:
            framed, self._head = self._head + framed, b""
            if self._fd < 0 or self.transport.get_write_buffer_size():
                self.transport.write(framed)
                return
            self._waiting = False
        # As for an immediate answer, which shares no code with this: a call for each stream and event costs.
        try:
            sent = os.write(self._fd, framed)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.abort()
            return
        if sent < len(framed):
            self._waiting = True
            self.transport.write(framed[sent:])

    def end(self, chunk: Chunk) -> None:
        """Takes the last chunk and closes once everything has left."""
        if not self._closed:
            self._closed = True
            self.transport.write(self._head + chunk.framed + LAST_CHUNK)
            self.transport.close()

    def abort(self) -> None:
        """Closes now, with all that waits."""
        self._closed = True
        if self._fd >= 0:
            drop(self.transport)
        else:
            self.transport.abort()

    # What the event loop tells

    def pause_writing(self) -> None:
        """The transport holds more than its bound."""
        self._full = True
        if self.subscriber is not None:
            self.subscriber.paused()

    def resume_writing(self) -> None:
        """The transport has room again."""
        self._full = False
        if self.subscriber is not None:
            self.subscriber.resumed()

    def data_received(self, data: bytes) -> None:
        """Nothing that a client says after its request is of interest."""

    def eof_received(self) -> bool:
        """The client won't read any more either: the transport closes itself."""
        self._closed = True
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone, for whatever reason."""
        self._closed = True
        self._fd = -1
        self._connections.discard(self)
        if self._leave is not None:
            self._leave()
        # The two hold each other, which would wait for the collector of cycles.
        subscriber, self.subscriber = self.subscriber, None
        if subscriber is not None:
            subscriber.gone()

    def shutdown(self) -> None:
        """uvicorn stops: by now the drain has ended the stream, or there was none."""
        self._closed = True
        self.transport.close()


class UnchunkedStreamProtocol(StreamProtocol):
    """For a client of HTTP/1.0, which knows no chunks: its stream ends with the connection."""

    __slots__ = ()

    def write(self, chunk: Chunk) -> None:
        """Takes the bytes of a chunk."""
        super().write(Chunk(chunk.raw, chunk.raw))

    def end(self, chunk: Chunk) -> None:
        """Takes the last bytes and closes once everything has left."""
        self.write(chunk)
        self.shutdown()


class HandoverHttp(LimitedHttp):
    """uvicorn's HTTP protocol, with an offer to hand the connection over in each request's scope."""

    # What the head of the newest request says; set where it isn't given to ASGI at once.
    keep_alive = True
    # Further header fields of what is answered without ASGI, each with its line end.
    answer_fields = b""

    def extensions(self) -> dict[str, object]:
        """Of the request that begins: the offer is added."""
        # The scope is held by this object: an offer that held it too would leave a cycle for each request.
        offer = Offer(ref(self), self.requests)
        return {EXTENSION: offer, EXCEEDED: self.exceeded} if self.exceeded else {EXTENSION: offer}

    def on_headers_complete(self) -> None:
        """The head of a request is there: uvicorn makes its cycle, whose answer leaves in one piece."""
        super().on_headers_complete()
        # The answer to HEAD ends with its head.
        if cast(Scope, self.scope)["method"] != "HEAD":
            self.cycle.transport = cast(asyncio.Transport, Joined(self._wire()))

    def hold_head(self, request: int) -> "HeldHead | None":
        """What holds the head of the answer to a request, from now on; None if that isn't the newest one."""
        if self._has_more_than(request):
            return None
        head = HeldHead(self._wire())
        self.cycle.transport = cast(asyncio.Transport, head)
        return head

    def hand_over(self, request: int, head: "HeldHead", backlog_bytes: int) -> StreamProtocol | None:
        """The connection, from now on the caller's; None if it can't be had.

        It can't be while the client has begun a further request, or when it has gone.
        """
        cycle, transport = self.cycle, self.transport
        if self._has_more_than(request) or transport.is_closing():
            return None
        if not cycle.response_started or not cycle.chunked_encoding:
            return None
        stream = self._let_go(head.taken(), backlog_bytes)
        # For uvicorn the client has gone: nothing more is sent, and nothing is missed.
        cycle.disconnected = True
        cycle.message_event.set()
        return stream

    def hand_over_immediate(self, request: int, head: bytes, backlog_bytes: int) -> StreamProtocol | None:
        """As `hand_over`, of an immediate call, which ASGI knows nothing of; `head` is still to be sent."""
        if self._has_more_than(request) or self.transport.is_closing():
            return None
        head += self.answer_fields
        if not self.keep_alive:
            head += b"connection: close\r\n"
        return self._let_go(head + b"transfer-encoding: chunked\r\n\r\n", backlog_bytes)

    @property
    def _is_old(self) -> bool:
        """Whether the newest request is one of HTTP/1.0."""
        return bool(cast(Scope, self.scope)["http_version"] == "1.0")

    def _wire(self) -> "asyncio.Transport | Unchunked":
        """Where the answer to the newest request goes."""
        return Unchunked(self.transport) if self._is_old else self.transport

    def _has_more_than(self, request: int) -> bool:
        """Whether anything was read behind a request."""
        return request != self.requests or bool(self.pipeline or self.rest) or self._refused is not None

    def _let_go(self, head: bytes, backlog_bytes: int) -> StreamProtocol:
        transport = self.transport
        self._unset_keepalive_if_required()
        self.connections.discard(self)
        kind = StreamProtocol
        if self._is_old:
            kind, head = UnchunkedStreamProtocol, unchunked(head)
        connections = cast(set[object], self.connections)
        stream = kind(transport, connections, head, self.take_leave(), tls=self.scheme == "https")
        transport.set_write_buffer_limits(backlog_bytes)
        transport.set_protocol(stream)
        flow = self.flow
        if flow.read_paused:
            flow.resume_reading()
        # The parser and this object hold each other: in a storm of clients that would wait, thousandfold, for
        # the collector of cycles.
        self.has_let_go = True
        self.parser = None  # type: ignore[assignment]
        if flow.write_paused:
            stream.pause_writing()
        return stream


def unchunked(head: bytes) -> bytes:
    """The head of an answer for HTTP/1.0, to which chunks may not be sent (RFC 9112, 6.1)."""
    return head.replace(b"\r\ntransfer-encoding: chunked\r\n", b"\r\n").replace(
        b"\r\nconnection: keep-alive\r\n", b"\r\n"
    )


class _Wire:
    """Stands for the transport in uvicorn's answer, as far as that uses it, but for `write`."""

    __slots__ = ("_transport",)

    def __init__(self, transport: "asyncio.Transport | Unchunked") -> None:
        self._transport = transport

    def close(self) -> None:
        """Closes the connection."""
        self._transport.close()

    def is_closing(self) -> bool:
        """Whether the connection is being closed."""
        return self._transport.is_closing()


class Unchunked(_Wire):
    """For HTTP/1.0: takes whole chunks, and writes what they hold."""

    __slots__ = ("_chunked", "_head_is_out")

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__(transport)
        self._head_is_out = False
        self._chunked = False

    def write(self, data: bytes) -> None:
        """Writes the head without word of chunks; then their contents."""
        if data.startswith(b"HTTP/1.1 100 "):
            return
        if not self._head_is_out:
            head, end, data = data.partition(b"\r\n\r\n")
            self._head_is_out = True
            self._chunked = b"\r\ntransfer-encoding: chunked\r\n" in head + end
            self._transport.write(unchunked(head + end))
        self._transport.write(_contents(data) if self._chunked else data)


def _contents(chunks: bytes) -> bytes:
    """What whole chunks hold."""
    found = b""
    while chunks:
        size, _, rest = chunks.partition(b"\r\n")
        length = int(size, 16)
        found += rest[:length]
        chunks = rest[length + 2 :]
    return found


class Joined(_Wire):
    """The head waits for the body, which follows.

    Only where the head says how long that is: an answer that grows may begin long before its first piece.
    """

    __slots__ = ("_began", "_head")

    def __init__(self, transport: asyncio.Transport | Unchunked) -> None:
        super().__init__(transport)
        self._head = b""
        self._began = False

    def write(self, data: bytes) -> None:
        """Keeps the head; writes what follows, and the head before it."""
        if not self._began and not data.startswith(b"HTTP/1.1 100 "):
            self._began = True
            if b"\r\ncontent-length: " in data:
                self._head = data
                return
        if self._head:
            data, self._head = self._head + data, b""
        self._transport.write(data)

    def close(self) -> None:
        """Closes the connection; a head whose body doesn't come leaves before."""
        if self._head:
            self._transport.write(self._head)
            self._head = b""
        self._transport.close()


class HeldHead(_Wire):
    """Keeps what is written until that is taken or released."""

    __slots__ = ("_held",)

    def __init__(self, transport: asyncio.Transport | Unchunked) -> None:
        super().__init__(transport)
        self._held: bytes | None = b""

    def taken(self) -> bytes:
        """What was kept, for somebody else to write."""
        held, self._held = self._held, None
        return held or b""

    def release(self) -> None:
        """Writes what was kept; from here on nothing is."""
        held = self.taken()
        if not self._transport.is_closing():
            self._transport.write(held)

    def write(self, data: bytes) -> None:
        """Keeps it, or writes it."""
        if self._held is None:
            self._transport.write(data)
        else:
            self._held += data


class Offer:
    """The connection of a request, for whoever answers it: `hold_head`, then send the head, then `take`."""

    __slots__ = ("_connection", "_head", "_request")

    def __init__(self, connection: "ref[HandoverHttp]", request: int) -> None:
        self._connection = connection
        self._request = request
        self._head: HeldHead | None = None

    @property
    def has_left(self) -> bool:
        """Whether the client is known to have gone."""
        connection = self._connection()
        return connection is None or connection.transport.is_closing()

    async def drained(self) -> None:
        """Returns when the client has read enough of its earlier answers for another one to be sent."""
        connection = self._connection()
        if connection is not None:
            await connection.flow.drain()

    def hold_head(self) -> None:
        """What is sent from here on is kept until `take`."""
        connection = self._connection()
        self._head = None if connection is None else connection.hold_head(self._request)

    def take(self, backlog_bytes: int) -> StreamProtocol | None:
        """The connection; None if it can't be had, then the answer goes on as any other."""
        connection, head = self._connection(), self._head
        if connection is None or head is None:
            return None
        stream = connection.hand_over(self._request, head, backlog_bytes)
        if stream is None:
            head.release()
        return stream

    def take_immediate(self, head: bytes, backlog_bytes: int) -> StreamProtocol | None:
        """The connection of an immediate call; None if it can't be had.

        `head` is the status line and the headers, without those that say how the body ends.
        """
        connection = self._connection()
        return (
            None if connection is None else connection.hand_over_immediate(self._request, head, backlog_bytes)
        )


def offered(scope: Scope) -> Offer | None:
    """The offer in a request's scope; None under another server."""
    found: Offer | None = scope.get("extensions", {}).get(EXTENSION)
    return found


def descriptor(transport: asyncio.BaseTransport) -> int:
    """What to write to while nothing waits in the transport; -1 under TLS, where all goes through that.

    It is this connection's until after `connection_lost`.
    """
    if transport.get_extra_info("sslcontext") is not None:
        return -1
    return cast(int, transport.get_extra_info("socket").fileno())


def failed(http: type[LimitedHttp] = HandoverHttp) -> str:
    """What went wrong; empty if a request was answered, and another one refused, as it should be.

    Of a protocol that hands connections over, the answer is a stream that takes its connection.
    """
    # A thread, since an event loop may be running here already.
    with ThreadPoolExecutor(1) as thread:
        error = thread.submit(lambda: asyncio.run(_try(http))).exception()
    return f"uvicorn's insides have changed: {error!r}" if error else ""


async def _try(http: type[LimitedHttp]) -> None:
    state = ServerState()
    app = _hand_over if issubclass(http, HandoverHttp) else _answer
    answer = await _ask(http, state, app, _REQUEST)
    if not answer.startswith(b"HTTP/1.1 200 "):
        raise AssertionError(f"a stream's head is {answer!r}")
    if not answer.endswith(b"\r\n\r\n" + _FIRST.framed + _LAST.framed + LAST_CHUNK):
        raise AssertionError(f"a stream's body is {answer!r}")
    answer = await _ask(http, state, app, _TOO_LARGE)
    if not answer.startswith(b"HTTP/1.1 431 "):
        raise AssertionError(f"a head without end is answered with {answer!r}")
    if state.connections or state.tasks:
        raise AssertionError("a connection is still counted after its end")


async def _ask(http: type[LimitedHttp], state: ServerState, app: ASGIApp, request: bytes) -> bytes:
    """All that is answered on a connection."""
    loop = asyncio.get_running_loop()
    config = Config(app, http=http, ws="none", lifespan="off", log_config=None, access_log=False)
    config.load()
    kind = http.of_server(config, state, {})

    def connection() -> LimitedHttp:
        return kind(config=config, server_state=state, app_state={})

    served, client = socket.socketpair()
    client.setblocking(False)
    with client:
        transport, _ = await loop.connect_accepted_socket(connection, served)
        try:
            _compare(connection(), HttpToolsProtocol(config, state, {}))
            async with asyncio.timeout(TRIAL_S):
                await loop.sock_sendall(client, request)
                answer = b""
                while more := await loop.sock_recv(client, 4096):
                    answer += more
        finally:
            transport.abort()
    # What is called soon after the end, is called.
    await asyncio.sleep(0)
    return answer


def _compare(ours: HttpToolsProtocol, uvicorns: HttpToolsProtocol) -> None:
    """Raises AssertionError unless a new connection has what uvicorn's would have, then and in a request."""
    cast(LimitedHttp, ours).begin_parsing()
    for when in ("new connection", "request"):
        for name, value in vars(uvicorns).items():
            own = getattr(ours, name, _compare)
            if own != value and type(value) is not OWN.get(name):
                raise AssertionError(f"a {when}'s {name} is {own!r}, not {value!r}")
        for each in (ours, uvicorns):
            each.on_message_begin()
        # Ours alone.
        cast(Scope, ours.scope).pop("extensions")


async def _hand_over(scope: Scope, receive: Receive, send: Send) -> None:
    offer = offered(scope)
    if offer is None:
        raise AssertionError("no handover is offered")
    offer.hold_head()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    stream = offer.take(1_000)
    if stream is None:
        raise AssertionError("the connection isn't handed over")
    stream.write(_FIRST)
    stream.end(_LAST)


async def _answer(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"connection", b"close")]})
    await send({"type": "http.response.body", "body": _FIRST.raw, "more_body": True})
    await send({"type": "http.response.body", "body": _LAST.raw})
