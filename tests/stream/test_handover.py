"""The handover's edges: what it leans on, and when it doesn't happen."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from starlette.types import Receive, Scope, Send
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from pushsse.api import stream
from pushsse.api.access import TicketOpening
from pushsse.errors import CloseReason
from pushsse.hub.opening import From, Opener, Opening
from pushsse.server import Http, best_http
from pushsse.stream import handover
from pushsse.stream.frame import chunk
from pushsse.stream.handover import HandoverHttp, Offer, StreamProtocol, offered
from pushsse.stream.immediate import ImmediateHttp
from pushsse.stream.limits import OWN, LimitedHttp
from pushsse.stream.subscriber import Live, Subscriber
from tests.serving import LIMIT_S, Running, serving
from tests.waiting import eventually

pytestmark = pytest.mark.anyio


def test_the_handover_works_with_this_uvicorn() -> None:
    assert [handover.failed(http) for http in (LimitedHttp, HandoverHttp, ImmediateHttp)] == ["", "", ""]
    assert best_http() is ImmediateHttp


def test_what_uvicorn_sets_for_a_connection_and_pushsse_does_not_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begin = HttpToolsProtocol.__init__

    def newer(self: HttpToolsProtocol, *arguments: Any, **named: Any) -> None:
        begin(self, *arguments, **named)
        vars(self)["newer"] = 1

    monkeypatch.setattr(HttpToolsProtocol, "__init__", newer)
    assert "a new connection's newer" in handover.failed(ImmediateHttp)


def test_what_uvicorn_says_of_a_request_and_pushsse_does_not_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begin = HttpToolsProtocol.on_message_begin

    def newer(self: HttpToolsProtocol) -> None:
        begin(self)
        cast(Scope, self.scope)["newer"] = 1

    monkeypatch.setattr(HttpToolsProtocol, "on_message_begin", newer)
    assert "a request's scope" in handover.failed(ImmediateHttp)


async def test_connections_of_a_server_share_what_it_has_and_no_other_server_has_it() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("nobody asks")

    async def another(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("nobody asks")

    states = ServerState(), ServerState()
    made = []
    for each, state in zip((app, another), states, strict=True):
        config = Config(
            each, http=ImmediateHttp, ws="none", lifespan="off", log_config=None, proxy_headers=False
        )
        config.load()
        assert config.loaded_app is each
        kind = ImmediateHttp.of_server(config, state, {})
        made.append([kind(config=config, server_state=state, app_state={}) for _ in range(2)])
    (one, two), (three, _) = made
    # A function would be a method of the connection, were it simply in the class.
    assert one.app is two.app is one.config.loaded_app is not three.app
    assert one.connections is states[0].connections
    assert three.connections is states[1].connections
    assert not vars(one)
    for connection in (one, two):
        connection.begin_parsing()
    assert one.parser is not two.parser
    assert one.pipeline is not two.pipeline
    assert set(vars(one)) == set(OWN)


@pytest.mark.parametrize(
    "changed", ["on_message_begin", "_unset_keepalive_if_required", "on_headers_complete", "on_url"]
)
def test_changed_insides_are_noticed_and_what_is_gone_is_said(
    changed: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delattr(HttpToolsProtocol, changed)
    monkeypatch.setattr(handover, "TRIAL_S", 0.5)
    assert best_http() == "auto"
    [line] = [each for each in caplog.records if each.name == "pushsse.server"]
    assert line.levelname == "ERROR"
    assert all(word in line.getMessage() for word in ("CPU", "heads", "bodies", "connections", "accepts"))


def fixed_transport(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer's transport can't be replaced any more, which nothing but the handover needs."""

    def fix(cycle: RequestResponseCycle, transport: object) -> None:
        if "transport" in vars(cycle):
            raise AttributeError("can't set")
        vars(cycle)["transport"] = transport

    found = property(lambda cycle: vars(cycle)["transport"], fix)
    monkeypatch.setattr(RequestResponseCycle, "transport", found, raising=False)


async def test_where_the_handover_alone_cannot_be_had_the_limits_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fixed_transport(monkeypatch)
    http = best_http()
    assert http is LimitedHttp
    assert "written the portable way" in caplog.text
    async with serving(
        tmp_path, http=http, head_fields=10, body_timeout_s=0.5, max_connections_per_address=2
    ) as node:
        async with node.stream("ann") as stream:
            await stream.ready()
            await node.publish("news", "hello")
            assert await stream.messages(1) == ["hello"]
            # The third connection: beside the stream's and that of the calls.
            answer = await said(node, b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 429 ")
        await eventually(lambda: len(node.connections) == 1)
        fields = b"x: x\r\n" * 20
        answer = await said(node, b"GET /livez HTTP/1.1\r\nHost: localhost\r\n" + fields + b"\r\n")
        assert answer.startswith(b"HTTP/1.1 431 ")
        await eventually(lambda: len(node.connections) == 1)
        head = b"POST /v1/events HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n"
        assert (await said(node, head)).startswith(b"HTTP/1.1 408 ")
        assert node.node.metrics.limited["connections_per_address"] == 1
        assert node.node.metrics.refusals["body_timeout"] == 1


async def said(node: Running, sent: bytes) -> bytes:
    """All that is answered, up to the end of the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
    writer.write(sent)
    try:
        return await asyncio.wait_for(reader.read(-1), LIMIT_S)
    finally:
        writer.close()


async def test_a_request_behind_the_stream_s_own_ends_it_cleanly_and_is_answered(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(node.url.rsplit(":", 1)[1]))
        stream = b"GET /v1/stream?user=ann HTTP/1.1\r\nHost: localhost\r\n\r\n"
        writer.write(stream + b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answered = await asyncio.wait_for(reader.readuntil(b'"alive"}'), 5)
        assert answered.count(b"HTTP/1.1 200") == 2
        assert not node.node.hub.subscribers
        writer.close()


async def test_an_answer_whose_connection_cannot_be_had_any_more_goes_on_as_any_other() -> None:
    """The client's next request comes after the head was held, and before the connection is taken."""
    loop = asyncio.get_running_loop()
    served, client = socket.socketpair()
    client.setblocking(False)
    held, pipelined = asyncio.Event(), asyncio.Event()

    async def app(scope: Scope, _: Receive, send: Send) -> None:
        offer = offered(scope)
        assert offer is not None
        offer.hold_head()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if scope["path"] == "/first":
            with pytest.raises(BlockingIOError):
                client.recv(1)
            held.set()
            await pipelined.wait()
            assert offer.take(1_000) is None
            await send({"type": "http.response.body", "body": b"first"})
        else:
            stream = offer.take(1_000)
            assert stream is not None
            stream.end(chunk(b"second"))

    config = Config(app, http=HandoverHttp, ws="none", lifespan="off", log_config=None)
    config.load()
    _, connection = await loop.connect_accepted_socket(
        lambda: HandoverHttp(config, ServerState(), {}), served
    )
    with client:
        async with asyncio.timeout(LIMIT_S):
            await loop.sock_sendall(client, b"GET /first HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await held.wait()
            await loop.sock_sendall(client, b"GET /second HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await eventually(lambda: connection.pipeline)
            pipelined.set()
            answered = b""
            while more := await loop.sock_recv(client, 4096):
                answered += more
    head, first, second = answered.split(b"HTTP/1.1 200 OK\r\n")
    assert head == b""
    assert first.endswith(b"\r\n\r\n5\r\nfirst\r\n0\r\n\r\n")
    assert second.endswith(b"\r\n\r\n6\r\nsecond\r\n0\r\n\r\n")


async def test_what_a_client_says_after_its_request_is_dropped(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(node.url.rsplit(":", 1)[1]))
        writer.write(b"GET /v1/stream?user=ann HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await reader.readuntil(b"event: ready")
        writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await node.publish("news", "still here")
        await asyncio.wait_for(reader.readuntil(b"still here"), 5)
        writer.write_eof()
        await eventually(lambda: not node.node.hub.subscribers)
        writer.close()


async def test_a_connection_is_dropped_when_its_stream_cannot_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path) as node:

        def broken(*_: object) -> None:
            raise RuntimeError("a bug")

        monkeypatch.setattr(node.node.hub, "add", broken)
        reader, writer = await asyncio.open_connection("127.0.0.1", int(node.url.rsplit(":", 1)[1]))
        writer.write(b"GET /v1/stream?user=ann HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
            await asyncio.wait_for(reader.readuntil(b"event: ready"), 5)
        assert not any(isinstance(each, StreamProtocol) for each in node.connections)
        writer.close()


@pytest.mark.parametrize("http", [HandoverHttp, LimitedHttp, "auto"])
async def test_a_stream_that_fails_once_it_is_registered_leaves_nothing(
    http: Http, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path, http=http) as node:
        begun: list[Subscriber] = []

        def broken(_: TicketOpening, subscriber: Subscriber) -> Subscriber:
            begun.append(subscriber)
            raise RuntimeError("a bug")

        monkeypatch.setattr(TicketOpening, "begun", broken)
        ticket = (await node.http.post("/v1/tickets?user=ann")).json()["ticket"]
        _, writer = await asyncio.open_connection("127.0.0.1", node.port)
        writer.write(f"GET /v1/stream?ticket={ticket} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        await eventually(lambda: begun)
        await eventually(lambda: not node.node.hub.subscribers)
        assert not any(shard.people for shard in node.node.hub.shards.values())
        writer.close()


@pytest.mark.parametrize("what", ["the drain has ended", "the node has filled up"])
async def test_a_stream_whose_head_had_to_wait_for_its_reader_ends_if_meanwhile(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = asyncio.Event()
    hold_head = Offer.hold_head

    def holding(offer: Offer) -> None:
        hold_head(offer)
        # As the transport does where a client leaves its answers unread.
        connection.pause_writing()
        held.set()

    async with serving(tmp_path, http=ImmediateHttp, max_streams=1) as node:
        reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
        async with asyncio.timeout(LIMIT_S):
            writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await reader.readuntil(b"}")
            [connection] = [each for each in node.connections if isinstance(each, ImmediateHttp)]
            with monkeypatch.context() as patch:
                patch.setattr(Offer, "hold_head", holding)
                writer.write(b"GET /v1/stream?user=ann&since=1m HTTP/1.1\r\nHost: localhost\r\n\r\n")
                await held.wait()
            if what == "the drain has ended":
                await node.node.leave(window_s=0.0)
                connection.resume_writing()
                answer = await reader.read(-1)
            else:
                async with node.stream("bo") as other:
                    await other.ready()
                    connection.resume_writing()
                    answer = await reader.read(-1)
                    assert [each.person.name for each in node.node.hub.subscribers] == ["bo"]
        writer.close()
    assert b"event: exception" in answer
    assert answer.endswith(b"0\r\n\r\n")


async def test_who_reads_nothing_keeps_nobody_from_opening_a_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "OPENING_AT_ONCE", 1)
    async with serving(tmp_path, http=ImmediateHttp) as node:
        reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
        async with asyncio.timeout(LIMIT_S):
            writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await reader.readuntil(b"}")
            [connection] = [each for each in node.connections if isinstance(each, ImmediateHttp)]
            connection.pause_writing()
            writer.write(b"GET /v1/stream?user=ann&since=1m HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await eventually(lambda: connection.is_answering)
            async with node.stream("bo", "since=1m") as other:
                await other.ready()
            connection.resume_writing()
            await reader.readuntil(b"event: ready")
        writer.close()


async def test_nothing_is_looked_up_for_who_left_before_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_up: list[str] = []
    gate = asyncio.Event()
    opening = Opener.opening

    @asynccontextmanager
    async def gated(opener: Opener, user: str, wish: From) -> AsyncIterator[Opening]:
        looked_up.append(user)
        await gate.wait()
        async with opening(opener, user, wish) as opened:
            yield opened

    monkeypatch.setattr(Opener, "opening", gated)
    monkeypatch.setattr(stream, "OPENING_AT_ONCE", 1)

    async def ask(user: str) -> asyncio.StreamWriter:
        _, writer = await asyncio.open_connection("127.0.0.1", node.port)
        writer.write(f"GET /v1/stream?user={user}&since=1m HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        return writer

    async with serving(tmp_path) as node:
        first = await ask("first")
        await eventually(lambda: looked_up == ["first"])
        leaving = [await ask("leaves") for _ in range(5)]
        await eventually(lambda: sum(each.is_answering for each in node.connections) == 6)
        for writer in leaving:
            writer.close()
        await eventually(lambda: len(node.connections) == 1)
        gate.set()
        async with node.stream("last", "since=1m") as last:
            await last.ready()
        assert looked_up == ["first", "last"]
        first.close()


async def test_an_aborted_stream_is_gone_with_all_that_a_slow_reader_has_not_read(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        slow = socket.socket()
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.settimeout(LIMIT_S)
        slow.connect(("127.0.0.1", int(node.url.rsplit(":", 1)[1])))
        slow.sendall(b"GET /v1/stream?user=ann HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await eventually(lambda: len(node.node.hub.subscribers) == 1)
        (subscriber,) = node.node.hub.subscribers
        # More than the client's side of the connection takes, less than the kernel holds on ours.
        await node.publish("news", "x" * 40_000)
        await eventually(lambda: isinstance(subscriber.state, Live))
        subscriber.sink.abort()
        await eventually(lambda: not node.node.hub.subscribers)
        with slow, pytest.raises(ConnectionResetError):
            read_to_the_end(slow)


async def test_a_stream_that_ended_has_its_whole_time_to_be_read(tmp_path: Path) -> None:
    async with serving(tmp_path, send_timeout_s=0.2) as node:
        slow = await node.connect(receive_bytes=4096)
        slow.sendall(b"GET /v1/stream?user=ann HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await eventually(lambda: len(node.node.hub.subscribers) == 1)
        (subscriber,) = node.node.hub.subscribers
        [connection] = [each for each in node.connections if isinstance(each, StreamProtocol)]
        # More than the kernel takes, so that the rest waits in the transport.
        while not connection.transport.get_write_buffer_size():
            subscriber.sink.write(chunk(b": " + b"x" * 50_000 + b"\n\n"))
        subscriber.end(CloseReason.LIFETIME)
        # Longer than what an answer has: unread for two send timeouts.
        await asyncio.sleep(1.0)
        with slow:
            answer = await asyncio.to_thread(read_all, slow)
        assert b'"code":"lifetime"' in answer
        assert answer.endswith(b"0\r\n\r\n")


def read_all(connection: socket.socket) -> bytes:
    """All that comes until the other side ends the connection."""
    found = bytearray()
    while more := connection.recv(1 << 16):
        found += more
    return bytes(found)


def read_to_the_end(connection: socket.socket) -> None:
    """Reads until the other side ends the connection."""
    while connection.recv(1024):
        pass
