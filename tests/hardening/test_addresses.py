"""One address with many connections, or many new ones: at a node, and through nginx, whatever it claims."""

import asyncio
import json
import re
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from deploy.parts import Nginx
from tests.deployed.conftest import run_nginx
from tests.deployed.upstream import Upstream
from tests.serving import LIMIT_S, Running, serving
from tests.waiting import eventually

pytestmark = pytest.mark.anyio
CLAIMED = b"X-Forwarded-For: 192.0.2.%d\r\nForwarded: for=192.0.2.%d\r\nX-Real-IP: 192.0.2.%d\r\n"
BUSY = re.compile(
    rb'retry: (\d{4,5})\nevent: exception\ndata: {"code":"overloaded","detail":"[^"]+","retry":true}\n\n'
)


def get(path: str, number: int | None = None) -> bytes:
    """A request, which claims to come from another address each time."""
    claimed = b"" if number is None else CLAIMED % ((number % 250,) * 3)
    return b"GET %b HTTP/1.1\r\nHost: 127.0.0.1\r\n%b\r\n" % (path.encode(), claimed)


def last(request: bytes) -> bytes:
    """The same, after which the connection ends."""
    return request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")


@asynccontextmanager
async def connected(
    port: int, sent: bytes, source: str = "127.0.0.1"
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection from an address of this machine's, with a request on its way."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
    try:
        writer.write(sent)
        yield reader, writer
    finally:
        writer.close()


async def answer(port: int, sent: bytes, source: str = "127.0.0.1") -> bytes:
    """All that is answered, up to the end of the connection; empty where it was cut without a word."""
    async with connected(port, sent, source) as (reader, _):
        try:
            return await asyncio.wait_for(reader.read(), LIMIT_S)
        except ConnectionResetError:
            return b""


def is_busy(found: bytes) -> bool:
    return found.startswith(b"HTTP/1.1 200 ") and BUSY.search(found) is not None


async def counted(node: Running, limit: str) -> int:
    # From an address of its own, so that it is let in.
    found = await answer(node.port, last(get("/metrics")), "127.0.0.9")
    value = re.search(rb'pushsse_limited_total{limit="%b"} (\d+)' % limit.encode(), found)
    return int(value[1]) if value else 0


async def test_an_address_has_so_many_connections_and_a_stream_above_that_comes_back(tmp_path: Path) -> None:
    # A development identity answers 403 to whoever comes through a proxy: nothing is claimed here.
    async with serving(tmp_path, max_connections_per_address=5) as node:
        streams = [connected(node.port, get("/v1/stream?user=ann")) for _ in range(5)]
        for stream in streams:
            reader, _ = await stream.__aenter__()
            await reader.readuntil(b"event: ready")
        found = await answer(node.port, get("/v1/stream?user=ann"))
        assert is_busy(found)
        assert b"connection: close\r\n" in found.lower()
        found = await answer(node.port, get("/livez"))
        assert found.startswith(b"HTTP/1.1 429 ")
        assert json.loads(found.partition(b"\r\n\r\n")[2])["code"] == "connections_per_address"
        assert b"retry-after: " in found
        # Somebody else isn't concerned, nor is the same address once it has room again.
        async with connected(node.port, get("/v1/stream?user=bo"), "127.0.0.2") as (reader, _):
            await reader.readuntil(b"event: ready")
        assert await counted(node, "connections_per_address") == 2
        await streams[0].__aexit__(None, None, None)
        await eventually(lambda: len(node.node.hub.subscribers) == 4)
        async with connected(node.port, get("/v1/stream?user=ann")) as (reader, _):
            await reader.readuntil(b"event: ready")
        for stream in streams[1:]:
            await stream.__aexit__(None, None, None)


async def test_what_is_far_above_the_limit_is_cut_and_nothing_stays_counted(tmp_path: Path) -> None:
    async with serving(tmp_path, max_connections_per_address=5) as node:
        for _ in range(3):
            idle = [socket.create_connection(("127.0.0.1", node.port)) for _ in range(40)]
            await eventually(lambda: len(node.connections) == 10)
            for each in idle:
                each.close()
            await eventually(lambda: not node.connections)
        async with connected(node.port, get("/v1/stream?user=ann")) as (reader, _):
            await reader.readuntil(b"event: ready")


async def test_more_connections_a_second_than_may_be_are_told_to_come_back_later(tmp_path: Path) -> None:
    async with serving(tmp_path, accepts_per_second=20) as node:
        began = time.monotonic()
        found = await asyncio.gather(*(_first(node, number) for number in range(200)))
        took = time.monotonic() - began
        opened = sum(b"event: ready" in each for each in found)
        assert 20 <= opened <= 20 * (took + 1) + 1
        busy = sum(map(is_busy, found))
        assert 20 <= busy <= 20 * (took + 1) + 1
        # The rest isn't worth an answer.
        assert opened + busy + sum(not each for each in found) == 200

        async def is_let_in() -> bool:
            return (await _first(node, 0)).startswith(b"HTTP/1.1 200 ")

        await eventually(is_let_in)


async def _first(node: Running, number: int) -> bytes:
    async with connected(node.port, get(f"/v1/stream?user=user{number}")) as (reader, _):
        try:
            return await asyncio.wait_for(reader.readuntil(b"}\nid: "), LIMIT_S)
        except asyncio.IncompleteReadError as error:
            return error.partial
        except ConnectionResetError:
            return b""


async def test_without_these_settings_a_node_counts_no_connection(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        found = await asyncio.gather(*(_first(node, number) for number in range(100)))
        assert all(b"event: ready" in each for each in found)


@pytest.mark.real
async def test_nginx_limits_the_real_address_whatever_a_client_claims(tmp_path: Path) -> None:
    async with Upstream().serving() as upstream:
        upstream.answer = upstream.stream
        front = Nginx(
            tmp_path / "nginx", [f"127.0.0.1:{upstream.port}"], connections_per_address=5, exempt=()
        )
        for nginx in run_nginx(front):
            streams = [connected(nginx.port, get("/v1/stream", number)) for number in range(5)]
            for stream in streams:
                reader, _ = await stream.__aenter__()
                await reader.readuntil(b"data: 1")
            for number in range(5, 10):
                async with connected(nginx.port, get("/v1/stream", number)) as (reader, _):
                    found = await asyncio.wait_for(reader.readuntil(b"\n\n"), LIMIT_S)
                    assert is_busy(found), found
                async with connected(nginx.port, get("/v1/preferences", number)) as (reader, _):
                    found = await asyncio.wait_for(reader.readuntil(b"}"), LIMIT_S)
                    assert found.startswith(b"HTTP/1.1 429 ")
                    assert b"Retry-After: 5\r\n" in found
                    assert b'"code":"too_many_requests"' in found
            assert len(upstream.requests) == 5
            # The node sees the real address alone.
            for request in upstream.requests:
                assert request.headers["x-forwarded-for"] == "127.0.0.1"
                assert {"forwarded", "x-real-ip"}.isdisjoint(request.headers)
            # Another address has connections of its own.
            async with connected(nginx.port, get("/v1/stream"), "127.0.0.2") as (reader, _):
                await reader.readuntil(b"data: 1")
            upstream.release.set()
            for stream in streams:
                await stream.__aexit__(None, None, None)


@pytest.mark.real
@pytest.mark.parametrize(("path", "rate"), [("/v1/stream", 50), ("/v1/preferences", 200)])
async def test_nginx_limits_how_often_an_address_asks(path: str, rate: int, tmp_path: Path) -> None:
    burst, sent = 1_000, 2_500
    async with Upstream().serving() as upstream:
        upstream.answer = upstream.stream
        upstream.release.set()
        for nginx in run_nginx(Nginx(tmp_path / "nginx", [f"127.0.0.1:{upstream.port}"], exempt=())):
            began = time.monotonic()
            statuses = await asyncio.gather(*(_asked(nginx.port, path, sent // 25) for _ in range(25)))
            took = time.monotonic() - began
            found = [each for some in statuses for each in some]
            assert len(found) == sent
            passed = found.count("passed")
            assert burst <= passed <= burst + rate * took + 1
            assert passed == len(upstream.requests)
            assert sent - passed == found.count("busy" if path == "/v1/stream" else "429")
            async with connected(nginx.port, get(path), "127.0.0.2") as (reader, _):
                await reader.readuntil(b"data: 1")


async def _asked(port: int, path: str, times: int) -> list[str]:
    """What became of requests, one after the other."""
    found = []
    for number in range(times):
        whole = await answer(port, last(get(path, number)))
        if b"data: 2" in whole:
            found.append("passed")
        else:
            found.append("busy" if is_busy(whole) else whole[9:12].decode())
    return found
