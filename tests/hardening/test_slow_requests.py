"""Clients that take their time: idle sockets, heads and bodies that drip, answers that nobody reads."""

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from starlette.types import Receive, Scope, Send
from uvicorn import Config
from uvicorn.server import ServerState

from pushsse.stream.handover import HandoverHttp
from pushsse.stream.limits import LimitedHttp
from tests.serving import LIMIT_S, Running, serving
from tests.waiting import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.slow]
HOST = b" HTTP/1.1\r\nHost: 127.0.0.1\r\n"
LIVE = b"GET /livez" + HOST + b"\r\n"
POST = b"POST /v1/events" + HOST + b"Content-Type: application/json\r\nContent-Length: 500\r\n\r\n"
# Each: what is sent first, what drips after it, and the status of the refusal; None where it is silent.
SLOW = {
    "nothing": (b"", b"", None, "silent"),
    "empty lines": (b"", b"\r\n", None, "silent"),
    "empty lines after an answer": (LIVE, b"\r\n", None, "silent"),
    "a head": (b"GET /livez HTTP/1.1\r\nX: ", b"x", b"408", "head_timeout"),
    "a head after an answer": (LIVE + b"GET /livez HTTP/1.1\r\nX: ", b"x", b"408", "head_timeout"),
    "a head behind an answer": (LIVE + b"GET /livez HTTP/1.1\r\nX: ", b"", b"408", "head_timeout"),
    "a body": (POST, b"x", b"408", "body_timeout"),
    "a body that never begins": (POST, b"", b"408", "body_timeout"),
    "a body behind an offer to upgrade": (
        POST[:-2] + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
        b"x",
        b"408",
        "body_timeout",
    ),
    "a chunk": (
        b"POST /v1/events" + HOST + b"Transfer-Encoding: chunked\r\n\r\n",
        b"1\r\nx\r\n",
        b"408",
        "body_timeout",
    ),
    "the body of a refused request": (
        b"POST /no" + HOST + b"Content-Length: 500\r\n\r\n", b"x", b"408", "body_timeout"
    ),
}  # fmt: skip


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Running]:
    async with serving(tmp_path, head_timeout_s=1.0, body_timeout_s=1.0, send_timeout_s=0.5) as running:
        yield running


@pytest.mark.parametrize("what", SLOW)
async def test_a_slow_client_is_refused_however_regularly_it_sends(what: str, node: Running) -> None:
    begin, drip, status, code = SLOW[what]
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
    writer.write(begin)

    async def send() -> None:
        while True:
            writer.write(drip)
            await asyncio.sleep(0.1)

    sending = asyncio.create_task(send())
    try:
        answer = await asyncio.wait_for(reader.read(-1), LIMIT_S)
    except ConnectionError:
        answer = b""
    sending.cancel()
    writer.close()
    assert node.node.metrics.refusals == {code: 1}
    if status is not None:
        assert b"HTTP/1.1 " + status in answer
        assert b'"code":"%b"' % code.encode() in answer
    await eventually(lambda: not node.connections)


async def test_a_thousand_idle_sockets_and_hundreds_of_slow_requests_are_gone_after_the_limit(
    node: Running,
) -> None:
    begins = [b""] * 1000 + [b"GET /livez HTTP/1.1\r\nX: "] * 300 + [POST] * 300
    sockets = []
    for begin in begins:
        client = socket.socket()
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", node.port))
        await asyncio.get_running_loop().sock_sendall(client, begin)
        sockets.append(client)
    async with node.stream("ann") as stream:
        await stream.ready()
        await eventually(lambda: sum(node.node.metrics.refusals.values()) == len(begins))
        await eventually(lambda: not any(map(_is_attack, node.connections)))
        # Whoever behaves is still there.
        await node.publish("alarm", 1)
        assert await stream.messages(1) == [1]
    for client in sockets:
        client.close()
    assert node.node.metrics.refusals == {"silent": 1000, "head_timeout": 300, "body_timeout": 300}


def _is_attack(connection: object) -> bool:
    return isinstance(connection, LimitedHttp) and connection.requests < 2


async def test_a_large_body_at_a_fair_rate_is_taken(node: Running) -> None:
    event = b'{"type":"alarm","to":"all","message":1}\n'
    body = event * 5000
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
    writer.write(
        b"POST /v1/events" + HOST + b"Content-Type: application/x-ndjson\r\nConnection: close\r\n"
        b"Content-Length: %d\r\n\r\n" % len(body)
    )
    for start in range(0, len(body), 8_000):
        writer.write(body[start : start + 8_000])
        await asyncio.sleep(0.15)
    answer = await asyncio.wait_for(reader.read(-1), LIMIT_S)
    writer.close()
    assert answer.startswith(b"HTTP/1.1 202 ")
    assert not node.node.metrics.refusals


async def test_a_client_that_reads_none_of_its_answers_is_cut(node: Running) -> None:
    with await node.connect(receive_bytes=4096) as client:
        client.settimeout(0.5)
        try:
            while True:
                client.sendall((b"GET /openapi.json" + HOST + b"\r\n") * 10)
        except OSError:
            pass
        await eventually(lambda: node.node.metrics.refusals["unread"] == 1)
        await eventually(lambda: not any(isinstance(each, LimitedHttp) for each in node.connections))


async def test_an_open_stream_and_an_idle_connection_within_its_limit_stay(node: Running) -> None:
    async with node.stream("ann") as stream:
        await stream.ready()
        reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
        for _ in range(2):
            writer.write(LIVE)
            await asyncio.wait_for(reader.readuntil(b"}"), LIMIT_S)
            await asyncio.sleep(3.5)
        await node.publish("alarm", 1)
        assert await stream.messages(1) == [1]
        assert not node.node.metrics.refusals
        writer.close()


async def test_what_waits_for_its_turn_behind_a_slow_answer_is_not_late() -> None:
    turn = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/slow":
            await turn.wait()
        body = (await receive())["body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    loop = asyncio.get_running_loop()
    served, client = socket.socketpair()
    client.setblocking(False)
    config = Config(app, http=HandoverHttp, ws="none", lifespan="off", log_config=None)
    config.load()
    _, connection = await loop.connect_accepted_socket(
        lambda: HandoverHttp(config, ServerState(), {}), served
    )
    with client:
        await loop.sock_sendall(
            client, b"GET /slow" + HOST + b"\r\nPOST /x" + HOST + b"Content-Length: 2\r\n\r\n"
        )
        await eventually(lambda: connection.pipeline)
        await loop.sock_sendall(client, b"ab")
        for second in range(0, 100, 5):
            connection.check(float(second))
        turn.set()
        answered = b""
        async with asyncio.timeout(LIMIT_S):
            while b"ab" not in answered:
                answered += await loop.sock_recv(client, 4096)
    assert answered.count(b"HTTP/1.1 200") == 2
