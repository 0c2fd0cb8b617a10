"""Request heads without end: the address, a field's name or value, the number of fields, trailers."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.serving import LIMIT_S, Running, serving
from tests.waiting import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.slow]
KIB = 1024
HOST = b" HTTP/1.1\r\nHost: 127.0.0.1\r\n"
CHUNKED = b"POST /v1/events" + HOST + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
# A beginning, and what comes after it without end.
ENDLESS = {
    "the address": (b"GET /", b"x" * KIB),
    "the query": (b"GET /livez?x=", b"x" * KIB),
    "the method": (b"", b"\r\n" * 512),
    "a field's name": (b"GET /livez" + HOST, b"x" * KIB),
    "a field's value": (b"GET /livez" + HOST + b"X: ", b"x" * KIB),
    "the fields": (b"GET /livez" + HOST, b"x: y\r\n" * 200),
    "long fields": (b"GET /livez" + HOST, b"x: " + b"y" * KIB + b"\r\n"),
    "a chunk's extension": (CHUNKED + b"1;", b"x" * KIB),
    "the trailers": (CHUNKED + b"1\r\n{\r\n0\r\n", b"x: y\r\n" * 200),
    "a trailer's value": (CHUNKED + b"1\r\n{\r\n0\r\nx: ", b"x" * KIB),
}


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Running]:
    async with serving(tmp_path) as running:
        yield running


@pytest.mark.parametrize("what", [each for each in ENDLESS if each != "the method"])
async def test_a_head_without_end_is_a_431_and_the_connection_is_closed(what: str, node: Running) -> None:
    begin, more = ENDLESS[what]
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
    writer.write(begin)
    sent = 0
    try:
        while not node.node.metrics.refusals:
            assert sent < 512 * KIB, "it is taken without end"
            writer.write(more * 8)
            await writer.drain()
            sent += len(more) * 8
            await asyncio.sleep(0.005)
    except ConnectionError:
        pass
    answer = await asyncio.wait_for(reader.read(-1), LIMIT_S)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 431 ")
    assert b"connection: close" in head
    assert json.loads(body)["code"] == "headers_too_large"
    assert node.node.metrics.refusals == {"headers_too_large": 1}
    await eventually(lambda: not node.connections)
    writer.close()


async def test_a_connection_that_goes_on_after_its_refusal_is_cut(node: Running) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", node.port)

    async def send() -> None:
        while True:
            writer.write(b"GET /" + b"x" * 64 * KIB)
            await writer.drain()
            await asyncio.sleep(0.01)

    with pytest.raises(ConnectionError):
        await asyncio.wait_for(send(), LIMIT_S)
    await eventually(lambda: not node.connections)
    writer.close()


async def test_a_head_within_the_limits_is_taken_in_one_piece_or_many(node: Running) -> None:
    fields = b"".join(b"X-%d: %b\r\n" % (number, b"x" * 300) for number in range(97))
    request = b"GET /livez" + HOST + fields + b"Connection: close\r\n\r\n"
    assert len(request) < 32 * KIB
    for size in (len(request), 1000):
        reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
        for start in range(0, len(request), size):
            writer.write(request[start : start + size])
            await writer.drain()
        assert (await asyncio.wait_for(reader.read(-1), LIMIT_S)).startswith(b"HTTP/1.1 200 ")
        writer.close()
    assert not node.node.metrics.refusals


async def test_trailers_are_nobodys_headers(node: Running) -> None:
    """A trailer that looks like a proxy's field would otherwise be refused as one, or believed."""
    event = b'{"type":"alarm","to":"all","message":1}'
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
    writer.write(CHUNKED + b"%x\r\n%b\r\n0\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n" % (len(event), event))
    writer.write(b"GET /livez" + HOST + b"Connection: close\r\n\r\n")
    answer = await asyncio.wait_for(reader.read(-1), LIMIT_S)
    assert answer.startswith(b"HTTP/1.1 202 ")
    assert b"HTTP/1.1 200 " in answer
    writer.close()


async def test_no_head_holds_the_event_loop(node: Running) -> None:
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            before = time.thread_time()
            await asyncio.sleep(0)
            longest = max(longest, time.thread_time() - before)

    watching = asyncio.create_task(watch())
    connections = [await asyncio.open_connection("127.0.0.1", node.port) for _ in ENDLESS]
    for (begin, more), (_, writer) in zip(ENDLESS.values(), connections, strict=True):
        writer.write(begin + more * (256 * KIB // len(more)))
    for _, writer in connections:
        writer.close()
    await eventually(lambda: not node.connections)
    watching.cancel()
    # The whole loop, the clients' side included; it was seconds.
    assert longest < 0.2
