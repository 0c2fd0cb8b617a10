"""One person who opens streams without end."""

import asyncio
from pathlib import Path

import pytest

from pushsse.server import Http
from pushsse.stream.immediate import ImmediateHttp
from tests.serving import LIMIT_S, Running, serving
from tests.waiting import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.slow]
STREAMS = 3_000
MOST = 20
AT_ONCE = 100
LAST = (
    b'retry: 300000\nevent: exception\ndata: {"code":"too_many_streams",'
    b'"detail":"newer streams of this person took this one\'s place","retry":false}\nid: '
)
END = b"\n\n\r\n0\r\n\r\n"


async def read(node: Running, user: str, began: asyncio.Event) -> bytes:
    """Opens a stream, and reads it to its end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
    try:
        writer.write(b"GET /v1/stream?user=%b HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" % user.encode())
        first = await reader.readuntil(b"event: ready")
        began.set()
        return first + await reader.readuntil(b"\r\n0\r\n\r\n")
    finally:
        writer.close()


async def opened(node: Running, user: str) -> "asyncio.Task[bytes]":
    """A stream that has begun, and what reads it."""
    began = asyncio.Event()
    reading = asyncio.create_task(read(node, user, began))
    await asyncio.wait_for(began.wait(), LIMIT_S)
    return reading


@pytest.mark.parametrize("http", [ImmediateHttp, "httptools"])
async def test_the_oldest_streams_of_a_person_give_way_and_are_told(http: Http, tmp_path: Path) -> None:
    async with serving(tmp_path, http=http) as node:
        other = await opened(node, "bo")
        readings: list[asyncio.Task[bytes]] = []

        def are_told() -> bool:
            return sum(not reading.done() for reading in readings) <= MOST

        while len(readings) < STREAMS:
            readings += await asyncio.gather(*(opened(node, "ann") for _ in range(AT_ONCE)))
            # Clients whose stream has ended leave: there are never many at once.
            await eventually(are_told)
        left = [reading for reading in readings if not reading.done()]
        ended = [reading.result() for reading in readings if reading.done()]
        assert len(left) == MOST
        assert all(LAST in body and body.endswith(END) for body in ended)
        # The newest stayed, and they still get what is published.
        assert set(left) <= set(readings[-AT_ONCE:])
        assert len(node.node.hub.subscribers) == MOST + 1
        metrics = (await node.http.get("/metrics")).text
        assert f'pushsse_limited_total{{limit="streams_per_user"}} {STREAMS - MOST}.0' in metrics
        assert f'pushsse_endings_total{{reason="too_many_streams"}} {STREAMS - MOST}.0' in metrics
        await node.publish("news", "for-the-newest", "ann")
        assert not other.done()
    assert all(b"for-the-newest" in body for body in await asyncio.gather(*left))
    assert b"too_many_streams" not in await other


@pytest.mark.parametrize("most", [0, 50])
async def test_the_number_is_a_setting_and_may_be_none(most: int, tmp_path: Path) -> None:
    async with serving(tmp_path, max_streams_per_user=most) as node:
        readings = [await opened(node, "ann") for _ in range(51)]
        assert len(node.node.hub.subscribers) == (most or 51)
    bodies = await asyncio.gather(*readings)
    assert [b"too_many_streams" in body for body in bodies] == [bool(most)] + [False] * 50
