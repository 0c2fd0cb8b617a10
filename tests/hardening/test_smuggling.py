"""Requests whose end two servers may see in different places: none carries another one past the first.

Each shape carries a second request that publishes an event. At the node alone and through nginx it is never
published, the client that comes next gets its own answer, and files and memory come back.
"""

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import jwt
import pytest

from deploy.parts.nginx import Nginx
from deploy.parts.part import descendants
from tests.cli.running import served
from tests.deployed.conftest import run_nginx
from tests.hardening.test_pipelines import ENDS, attack
from tests.serving import Running, serving
from tests.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.real]
SECRET = "a secret of thirty-two bytes and more"
TOKEN = jwt.encode(
    {"sub": "ann", "iat": time.time(), "exp": time.time() + 3600, "scope": "pushsse:admin"}, SECRET
)
EVENT = b'{"type":"smuggled","message":1,"to":"all"}'
LINES = f"Host: localhost\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n".encode()
HIDDEN = b"POST /v1/events HTTP/1.1\r\n" + LINES + b"Content-Length: %d\r\n\r\n" % len(EVENT) + EVENT
CHUNKED = b"Transfer-Encoding: chunked\r\n"
NO_CHUNK = b"0\r\n\r\n"


def post(fields: bytes, body: bytes, version: bytes = b"1.1") -> bytes:
    """A request with these fields and this body, whatever they say of each other."""
    return b"POST /v1/preferences HTTP/" + version + b"\r\n" + LINES + fields + b"\r\n" + body


def length(of: bytes) -> bytes:
    return b"Content-Length: %d\r\n" % len(of)


HALF = NO_CHUNK + HIDDEN
ONE_CHUNK = b"%x\r\n%b\r\n" % (len(HIDDEN), HIDDEN) + NO_CHUNK
UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
# Whoever reads one way sees one request, whoever reads the other way sees a second one.
SHAPES = {
    "length and chunks": post(length(HALF) + CHUNKED, HALF),
    "chunks and length": post(CHUNKED + length(HALF), HALF),
    "a short length and chunks": post(b"Content-Length: 5\r\n" + CHUNKED, HALF),
    "no length and chunks": post(b"Content-Length: 0\r\n" + CHUNKED, ONE_CHUNK),
    "two lengths": post(length(HIDDEN) + b"Content-Length: 0\r\n", HIDDEN),
    "two lengths, the shorter first": post(b"Content-Length: 0\r\n" + length(HIDDEN), HIDDEN),
    "a list of lengths": post(b"Content-Length: 0, %d\r\n" % len(HIDDEN), HIDDEN),
    "a length with a sign": post(b"Content-Length: +0\r\n", HIDDEN),
    "a negative length": post(b"Content-Length: -1\r\n", HIDDEN),
    "a hexadecimal length": post(b"Content-Length: 0x0\r\n", HIDDEN),
    "a length with a blank within": post(b"Content-Length: 0 %d\r\n" % len(HIDDEN), HIDDEN),
    "a blank length": post(b"Content-Length: \r\n", HIDDEN),
    "a length over 64 bits": post(b"Content-Length: 18446744073709551616\r\n", HIDDEN),
    "chunks twice": post(CHUNKED + CHUNKED, HALF),
    "chunks and identity": post(b"Transfer-Encoding: chunked, identity\r\n", HALF),
    "identity and chunks, and length": post(b"Transfer-Encoding: identity, chunked\r\n" + length(HALF), HALF),
    "nearly chunks": post(b"Transfer-Encoding: xchunked\r\n", HALF),
    "quoted chunks": post(b'Transfer-Encoding: "chunked"\r\n' + length(HALF), HALF),
    "chunks after a vertical tab": post(b"Transfer-Encoding: \x0bchunked\r\n" + length(HALF), HALF),
    "a blank before the colon": post(b"Transfer-Encoding : chunked\r\n" + length(HALF), HALF),
    "a blank before the name": post(length(HALF) + b" Transfer-Encoding: chunked\r\n", HALF),
    "a tab before the name": post(length(HALF) + b"\tTransfer-Encoding: chunked\r\n", HALF),
    "NUL in the name": post(length(HALF) + b"Transfer-Encoding\x00: chunked\r\n", HALF),
    "an underscore for the hyphen":
        post(b"Content-Length: 5\r\nTransfer_Encoding: chunked\r\n", NO_CHUNK)[:-5],
    "a folded field": post(length(HALF) + b"X: x\r\n Transfer-Encoding: chunked\r\n", HALF),
    "chunks on a folded line": post(b"Transfer-Encoding:\r\n chunked\r\n" + length(HALF), HALF),
    "a bare CR before chunks": post(length(HALF) + b"X: x\rTransfer-Encoding: chunked\r\n", HALF),
    "a bare LF before chunks": post(length(HALF) + b"X: x\nTransfer-Encoding: chunked\r\n", HALF),
    "NUL in a value": post(length(HALF) + b"X: x\x00y\r\n" + CHUNKED, HALF),
    "chunks in HTTP/1.0": post(CHUNKED + b"Connection: keep-alive\r\n", HALF, b"1.0"),
    "a chunk's size with 0x": post(CHUNKED, b"0x0\r\n\r\n" + HIDDEN),
    "a chunk's size with a sign": post(CHUNKED, b"+0\r\n\r\n" + HIDDEN),
    "a chunk's size over 64 bits": post(CHUNKED, b"10000000000000000\r\n\r\n" + HIDDEN),
    "a chunk's size after a blank": post(CHUNKED, b" 0\r\n\r\n" + HIDDEN),
    "a chunk without a size": post(CHUNKED, b"\r\n\r\n" + HIDDEN),
    "a chunk's end that isn't one": post(CHUNKED, b"2\r\n{}xx0\r\n\r\n" + HIDDEN),
    "a line end in a chunk's extension": post(CHUNKED, b"2;\n{}\r\n0\r\n\r\n" + HIDDEN),
    "a bare LF after a chunk's size": post(CHUNKED, b"2\n{}\r\n0\r\n\r\n" + HIDDEN),
    "a bare CR after a chunk's size": post(CHUNKED, b"2\r{}\r\n0\r\n\r\n" + HIDDEN),
    "a GET with a body": b"GET /v1/preferences HTTP/1.1\r\n" + LINES + length(HIDDEN) + b"\r\n" + HIDDEN,
    "a HEAD with a body": b"HEAD /v1/preferences HTTP/1.1\r\n" + LINES + length(HIDDEN) + b"\r\n" + HIDDEN,
    "words after the version": b"GET /livez HTTP/1.1 HTTP/1.1\r\n" + LINES + b"\r\n" + HIDDEN,
    "an upgrade to HTTP/2": post(UPGRADE + length(HIDDEN), HIDDEN),
    "a tunnel": b"CONNECT localhost:80 HTTP/1.1\r\n" + LINES + b"\r\n" + HIDDEN,
    "HTTP/0.9": b"GET /livez\r\n" + HIDDEN,
    "HTTP/2's preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + HIDDEN,
    "a version of two digits":
        b"GET /livez HTTP/1.10\r\n" + LINES + b"Content-Length: 0\r\n\r\n" + HIDDEN,
    "an early end of the head": b"POST /v1/preferences HTTP/1.1\r\n" + LINES + b"X: x\r\n\r \n" + HIDDEN,
}  # fmt: skip


@dataclass
class Way:
    """How the node is reached: its port, or nginx's."""

    node: Running
    port: int
    nginx: Nginx | None


@pytest.fixture(params=["node", "nginx"])
async def way(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Way]:
    async with serving(tmp_path, jwt_secret=SECRET, head_timeout_s=2.0, body_timeout_s=2.0) as node:
        if request.param == "node":
            yield Way(node, node.port, None)
            return
        parts = run_nginx(Nginx(tmp_path / "nginx", [f"127.0.0.1:{node.port}"]))
        nginx = await asyncio.to_thread(next, parts)
        try:
            yield Way(node, nginx.port, nginx)
        finally:
            await asyncio.to_thread(next, parts, None)


async def said(port: int, sent: bytes) -> bytes:
    """All that comes back until the other side closes, or says nothing more."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    found = b""
    try:
        writer.write(sent)
        async with asyncio.timeout(1.0):
            while piece := await reader.read(65536):
                found += piece
    except (TimeoutError, ConnectionError):
        pass
    finally:
        writer.close()
    return found


async def victim(port: int) -> bytes:
    """What an innocent client that comes after gets for a path that nobody else asks for."""
    asked = b"GET /no-such-path HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    return await said(port, asked)


# nginx forgives these. It sees two requests in them, hands both on in its own words, and answers both.
FORGIVEN = {
    "a line end in a chunk's extension",
    "a bare LF after a chunk's size",
    "a version of two digits",
}


async def test_no_shape_carries_a_second_request(way: Way) -> None:
    for shape, sent in SHAPES.items():
        before = way.node.node.metrics.appended
        answers = await said(way.port, sent)
        published = way.node.node.metrics.appended - before
        if way.nginx is not None and shape in FORGIVEN:
            assert published == answers.count(b"HTTP/1.1 202 "), shape
        else:
            assert published == 0, (shape, answers)
            assert answers.count(b"HTTP/1.1 ") <= 1, (shape, answers)
        assert not re.search(rb"HTTP/1.1 5(?!01)", answers), (shape, answers)
        answer = await victim(way.port)
        assert answer.startswith(b"HTTP/1.1 404 "), shape
        assert answer.count(b"HTTP/1.1 ") == 1, shape
    # What the shapes carry would have been published by itself.
    before = way.node.node.metrics.appended
    assert b"HTTP/1.1 202 " in await said(way.port, HIDDEN)
    assert way.node.node.metrics.appended == before + 1


async def test_a_request_behind_a_sound_one_is_one_of_the_same_client(way: Way) -> None:
    """Extensions of chunks and trailers are sound; both ends agree on where such a body ends."""
    body = b'{"types":{}}'
    for chunks in (
        b"%x;a=b\r\n%b\r\n0;c\r\n\r\n" % (len(body), body),
        b"%x\r\n%b\r\n0\r\nX: y\r\n\r\n" % (len(body), body),
        b"%04x\r\n%b\r\n000\r\n\r\n" % (len(body), body),
    ):
        before = way.node.node.metrics.appended
        answers = await said(way.port, post(CHUNKED, chunks) + HIDDEN)
        assert re.findall(rb"HTTP/1.1 (\d+) ", answers) == [b"200", b"202"]
        assert way.node.node.metrics.appended == before + 1


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="files are counted in /proc")
@pytest.mark.parametrize("through", ["node", "nginx"])
def test_files_and_memory_come_back_after_all_shapes_and_all_ends(tmp_path: Path, through: str) -> None:
    limits = {"PUSHSSE_HEAD_TIMEOUT_S": "1", "PUSHSSE_BODY_TIMEOUT_S": "1", "PUSHSSE_JWT_SECRET": SECRET}
    with served(tmp_path, **limits) as node:
        port = int(node.url.rsplit(":", 1)[1])
        pids = [node.process.pid]
        if through == "node":
            storms(port, pids)
            return
        for nginx in run_nginx(Nginx(tmp_path / "nginx", [f"127.0.0.1:{port}"])):
            storms(nginx.port, [*pids, nginx.pid, *descendants(nginx.pid)])


def storms(port: int, pids: list[int]) -> None:
    """The first storm fills what is kept; later ones leave no file, and under a tenth more memory."""

    def storm() -> None:
        for sent in SHAPES.values():
            for end in ENDS:
                attack(port, sent, end, times=2)
        # nginx keeps up to 64 connections to nodes.
        until(lambda: sum(map(files, pids)) < files_before + 100, "files are closed")

    files_before = sum(map(files, pids))
    storm()
    memory_before = sum(map(resident, pids))
    for _ in range(3):
        storm()
    until(lambda: sum(map(resident, pids)) < memory_before * 1.1, "memory comes back")


def files(pid: int) -> int:
    """How many files and sockets a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def resident(pid: int) -> int:
    """Bytes of memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
