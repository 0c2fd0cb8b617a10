"""Requests sent in one go without waiting for answers, and every way a connection can end."""

import asyncio
import gc
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from itertools import product
from pathlib import Path

import httptools
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from uvicorn.server import ServerState

from pushsse.stream.handover import HandoverHttp, StreamProtocol, offered
from pushsse.stream.immediate import ImmediateHttp
from pushsse.stream.limits import PIECE_BYTES, LimitedHttp, Refusal
from tests.cli.running import served
from tests.leftovers import Leftovers
from tests.serving import LIMIT_S, Running, serving
from tests.waiting import eventually, until

pytestmark = [pytest.mark.anyio, pytest.mark.slow]
HOST = b" HTTP/1.1\r\nHost: 127.0.0.1\r\n"
LIVE = b"GET /livez" + HOST + b"\r\n"
LAST = b"GET /livez" + HOST + b"Connection: close\r\n\r\n"
EVENT = b'{"type":"alarm","to":"all","message":1}'
POST = b"POST /v1/events" + HOST + b"Content-Type: application/json\r\nContent-Length: "
PUBLISH = POST + b"%d\r\n\r\n" % len(EVENT) + EVENT
STREAM = b"GET /v1/stream?user=ann" + HOST + b"\r\n"
# What is sent before the connection ends: answered, half, wrong, and more than one.
SENT = {
    "nothing": b"",
    "half a head": LIVE[:20],
    "an answered request": LIVE,
    "a request that is answered at once": PUBLISH,
    "half a body": PUBLISH[:-5],
    "half a chunked body": b"POST /v1/events" + HOST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab",
    "a body that isn't JSON": POST + b"1\r\n\r\n{",
    "a body that is too large": POST + b"99999999\r\n\r\n" + b"x" * 1000,
    "no such call": b"GET /no" + HOST + b"\r\n",
    "a bug": b"GET /v1/questions?user=ann" + HOST + b"\r\n",
    "no HTTP": b"hello\r\n\r\n",
    "an upgrade": b"GET /livez" + HOST + b"Connection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    "HEAD": b"HEAD /v1/stream" + HOST + b"\r\n",
    "a last request": LAST,
    "a head that is too large": b"GET /livez" + HOST + b"X: " + b"x" * 40_000 + b"\r\n\r\n",
    "too many fields": b"GET /livez" + HOST + b"X: x\r\n" * 200 + b"\r\n",
    "a stream": STREAM,
    "a stream, and more": STREAM + LIVE,
    "a small pipeline": LIVE * 20,
    "a large pipeline": (LIVE + b"GET /openapi.json" + HOST + b"\r\n") * 2000,
    "a pipeline of posts": PUBLISH * 1000,
    "a pipeline that ends in half a body": LIVE * 5 + PUBLISH[:-5],
}


def close(client: socket.socket) -> None:
    client.close()


def half_close(client: socket.socket) -> None:
    client.settimeout(0.5)
    try:
        client.shutdown(socket.SHUT_WR)
        while client.recv(65536):
            pass
    except OSError:
        pass
    client.close()


def reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


ENDS = (close, half_close, reset)


def attack(port: int, sent: bytes, end: Callable[[socket.socket], None], *, times: int) -> None:
    """Connects, sends, waits for the first of an answer or a moment, and ends the connection."""
    for _ in range(times):
        client = socket.create_connection(("127.0.0.1", port))
        client.settimeout(0.02)
        try:
            client.sendall(sent)
            client.recv(100)
        except OSError:
            pass
        end(client)


@pytest.mark.parametrize("kind", SENT)
async def test_no_connection_leaves_anything_however_it_ends(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = Leftovers(LimitedHttp, StreamProtocol, RequestResponseCycle, httptools.HttpRequestParser)
    # The heartbeat has streams that are over until its next turn.
    async with serving(tmp_path, heartbeat_s=1.0) as node:
        if kind == "a bug":

            async def broken(*_: object, **__: object) -> None:
                raise RuntimeError("a bug")

            monkeypatch.setattr(type(node.node.questions), "page", broken)
        # pytest keeps what is logged, with its tracebacks.
        monkeypatch.setattr(logging.getLogger("uvicorn.error"), "disabled", True)
        for end in ENDS:
            await asyncio.to_thread(attack, node.port, SENT[kind], end, times=1)
        await eventually(lambda: not node.connections)
        gc.collect()
        gc.disable()
        try:
            for end in ENDS:
                await asyncio.to_thread(attack, node.port, SENT[kind], end, times=4)
            await eventually(lambda: not node.connections)
            await eventually(lambda: not left.found(), what=f"{kind}: no cycle holds a connection")
        finally:
            gc.enable()


async def test_a_pipeline_is_answered_in_order_and_only_a_few_of_it_are_parsed(tmp_path: Path) -> None:
    most = 0
    async with serving(tmp_path) as node:
        reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
        writer.write((LIVE + PUBLISH) * 1000 + LAST)

        async def watch() -> None:
            nonlocal most
            while True:
                for each in node.connections:
                    if isinstance(each, LimitedHttp):
                        most = max(most, len(each.pipeline))
                await asyncio.sleep(0)

        watching = asyncio.create_task(watch())
        answers = (await asyncio.wait_for(reader.read(-1), LIMIT_S)).split(b"HTTP/1.1 ")[1:]
        watching.cancel()
        writer.close()
    statuses = [answer[:3] for answer in answers]
    assert statuses == [b"200", b"202"] * 1000 + [b"200"]
    assert most <= PIECE_BYTES / len(LIVE)


CHUNKED = b"POST /v1/events" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
WRONG = {
    "no HTTP": (b"hello\r\n\r\n", b"400"),
    "bytes": (b"\x00\xff\xfe", b"400"),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"z" * 400, b"400"),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"400"),
    "no length": (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n", b"400"),
    "a length and chunks": (CHUNKED.replace(b"\r\n\r\n", b"\r\nContent-Length: 3\r\n\r\n"), b"400"),
    "a head that is too large": (SENT["a head that is too large"], b"431"),
    "too many fields": (SENT["too many fields"], b"431"),
    "a body that can't be read": (CHUNKED + b"zz\r\n", b"400"),
}
BEFORE = {
    "one that ASGI answers": (LIVE, [b"200"]),
    "one that is answered at once": (PUBLISH, [b"202"]),
    "several": (LIVE + PUBLISH + LIVE, [b"200", b"202", b"200"]),
    "more than are parsed ahead": ((LIVE + PUBLISH) * 150, [b"200", b"202"] * 150),
    "one with a wrong body": (SENT["a body that isn't JSON"], [b"400"]),
}


@pytest.mark.parametrize("before", BEFORE)
async def test_requests_before_one_that_cannot_be_read_are_answered(before: str, tmp_path: Path) -> None:
    sent, statuses = BEFORE[before]
    async with serving(tmp_path) as node:
        for (wrong, refused), apart in product(WRONG.values(), (False, True)):
            reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
            # What follows it is no request any more.
            for piece in [sent, wrong, sent] if apart else [sent + wrong + sent]:
                writer.write(piece)
                await asyncio.sleep(0.001)
            answers = (await asyncio.wait_for(reader.read(-1), LIMIT_S)).split(b"HTTP/1.1 ")[1:]
            writer.close()
            assert [answer[:3] for answer in answers] == [*statuses, refused], (wrong[:20], apart)
            assert b"\r\nconnection: close\r\n" in answers[-1].lower()


async def test_a_stream_ends_where_more_was_sent_behind_it_than_can_be_read(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
        writer.write(STREAM + b"hello\r\n\r\n")
        answers = (await asyncio.wait_for(reader.read(-1), LIMIT_S)).split(b"HTTP/1.1 ")[1:]
        writer.close()
    # As where a request is behind it, which a client of streams doesn't send.
    assert [answer[:3] for answer in answers] == [b"200", b"400"]


async def test_an_answer_that_takes_long_comes_before_what_is_wrong_behind_it() -> None:
    go_on = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await go_on.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})

    async with connected(app) as (client, connection):
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(client, LIVE * 2 + b"hello\r\n\r\n")
        await eventually(lambda: connection.limits.refusals["bad_request"])
        # Nobody owes anything but the application.
        for now in (0.0, 1e6):
            connection.check(now)
        go_on.set()
        said = b""
        while piece := await asyncio.wait_for(loop.sock_recv(client, 4096), LIMIT_S):
            said += piece
        assert [answer[:3] for answer in said.split(b"HTTP/1.1 ")[1:]] == [b"200", b"200", b"400"]
        # The client is to close now, and has some time for that.
        for now in (2e6, 3e6):
            connection.check(now)
        assert connection.transport.is_closing()


WRONG_BETWEEN = Refusal("bad_request", HTTPStatus.BAD_REQUEST, "what is no request, between two")


async def test_behind_what_is_refused_between_requests_nothing_is_one(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
        writer.write(PUBLISH)
        assert b" 202 " in await asyncio.wait_for(reader.readline(), LIMIT_S)
        [connection] = node.connections
        connection.refuse(WRONG_BETWEEN)
        # As the one before, whose head is known.
        writer.write(PUBLISH)
        answers = (await asyncio.wait_for(reader.read(-1), LIMIT_S)).split(b"HTTP/1.1 ")[1:]
        writer.close()
        assert [answer[:3] for answer in answers] == [b"400"]
        assert node.node.metrics.appended == 1


class ResetAfterWriting:
    """A connection's transport, whose client resets the connection once it was written to."""

    def __init__(self, transport: asyncio.Transport, client: socket.socket) -> None:
        self._transport = transport
        self._client = client

    def write(self, data: bytes) -> None:
        self._transport.write(data)
        self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._client.close()

    def __getattr__(self, name: str) -> object:
        return getattr(self._transport, name)


async def test_a_client_that_resets_while_it_is_refused_is_let_go(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        client = await node.connect()
        await eventually(lambda: len(node.connections) == 1)
        [connection] = node.connections
        connection.transport = ResetAfterWriting(connection.transport, client)
        connection.refuse(WRONG_BETWEEN)
        await eventually(lambda: not node.connections)


async def test_no_stream_gets_a_connection_on_which_something_was_refused() -> None:
    go_on, taken = asyncio.Event(), []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        offer = offered(scope)
        assert offer is not None
        await go_on.wait()
        offer.hold_head()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        taken.append(offer.take(1_000))
        await send({"type": "http.response.body"})

    async with connected(app) as (client, connection):
        await asyncio.get_running_loop().sock_sendall(client, STREAM)
        await eventually(lambda: connection.is_answering)
        connection.refuse(WRONG_BETWEEN)
        go_on.set()
        await eventually(lambda: taken)
        assert taken == [None]


@asynccontextmanager
async def connected(app: ASGIApp) -> AsyncIterator[tuple[socket.socket, HandoverHttp]]:
    """A client's socket, and the connection that serves it."""
    served_end, client = socket.socketpair()
    client.setblocking(False)
    config = Config(app, http=HandoverHttp, ws="none", lifespan="off", log_config=None)
    config.load()
    _, connection = await asyncio.get_running_loop().connect_accepted_socket(
        lambda: HandoverHttp(config, ServerState(), {}), served_end
    )
    with client:
        yield client, connection


async def test_a_body_behind_other_requests_is_read_to_its_end(tmp_path: Path) -> None:
    lines = EVENT + b"\n"
    body = lines * (200_000 // len(lines))
    post = (
        b"POST /v1/events"
        + HOST
        + b"Content-Type: application/x-ndjson\r\nContent-Length: %d\r\n\r\n" % len(body)
    )
    for before in (LIVE, LIVE * 100):
        async with serving(tmp_path) as node:
            reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
            writer.write(before + post + body[:70])
            await asyncio.sleep(0.1)
            writer.write(body[70:] + LAST)
            answer = await asyncio.wait_for(reader.read(-1), LIMIT_S)
            writer.close()
        assert b'"accepted":%d' % (len(body) // len(lines)) in answer
        assert answer.count(b"HTTP/1.1 200") == before.count(b"GET") + 1


async def test_a_request_learns_that_its_client_has_left_though_others_wait_behind_it() -> None:
    left = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        left.set()

    async with connected(app) as (client, connection):
        await asyncio.get_running_loop().sock_sendall(client, LIVE * 3)
        await eventually(lambda: connection.pipeline)
    await asyncio.wait_for(left.wait(), LIMIT_S)
    assert not connection.pipeline


async def test_after_pipelines_that_were_reset_every_request_is_answered(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        for sent in (PUBLISH * 5000, STREAM + PUBLISH * 500, (PUBLISH + STREAM) * 500):
            for end in (reset, close):
                await asyncio.to_thread(attack, node.port, sent, end, times=5)
        await asyncio.gather(*(_publish(node, str(number)) for number in range(40)))
        async with node.stream("ann") as stream:
            await stream.ready()


async def _publish(node: Running, user: str) -> None:
    await asyncio.wait_for(node.publish("alarm", 1, to=user), LIMIT_S)


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.real
@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
async def test_memory_goes_back_after_a_storm_of_every_kind(tmp_path: Path) -> None:
    def storm(port: int) -> None:
        for sent in SENT.values():
            for end in ENDS:
                attack(port, sent, end, times=5)

    # A small log, which the first storm fills.
    with served(tmp_path, PUSHSSE_LOG_KEEP_BYTES="65536") as node:
        port = int(node.url.rsplit(":", 1)[1])
        await asyncio.to_thread(storm, port)
        # What a first storm fills once: the log, tables, the interpreter's own memory.
        await asyncio.sleep(25)
        before = _resident(node.process.pid)
        for _ in range(3):
            await asyncio.to_thread(storm, port)
        until(
            lambda: _resident(node.process.pid) < before * 1.1,
            what=f"memory goes back to {before}",
            within_s=60,
        )


def test_what_serves_is_limited() -> None:
    assert issubclass(ImmediateHttp, LimitedHttp)
