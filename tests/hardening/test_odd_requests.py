"""Requests that mean one thing to a proxy and another to the node, or that a library answers by itself."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.hardening.event_stream import read
from tests.serving import LIMIT_S, Running, serving
from tests.waiting import eventually

pytestmark = pytest.mark.anyio
EVENT = b'{"type":"news","message":1,"to":"all"}'
POSTING = f"Content-Type: application/json\nContent-Length: {len(EVENT)}"


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Running]:
    async with serving(tmp_path) as running:
        yield running


async def answer(node: Running, head: str, body: bytes = b"") -> str:
    """The status and the head of the answer to raw bytes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
    try:
        writer.write(head.replace("\n", "\r\n").encode("latin-1") + b"\r\n\r\n" + body)
        async with asyncio.timeout(LIMIT_S):
            return (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    finally:
        writer.close()


async def test_a_slash_too_many_is_not_found_and_never_a_redirect(node: Running) -> None:
    for path in ("/v1/events/", "/v1/stream/", "/metrics/", "/livez/", "/v1/questions/x/cancel/", "//"):
        for method in ("GET", "POST"):
            said = await answer(node, f"{method} {path} HTTP/1.1\nHost: evil.example\nContent-Length: 0")
            assert said.startswith("http/1.1 404"), (path, said)
            assert "evil.example" not in said


async def test_a_path_with_a_line_end_is_not_found(node: Running) -> None:
    for path in (
        "/metrics",
        "/readyz",
        "/v1/preferences",
        "/v1/events",
        "/v1/stream",
        "/",
        "/v1/questions/x",
    ):
        for end in ("%0a", "%0d", "%0d%0a", "%0A"):
            said = await answer(node, f"GET {path}{end} HTTP/1.1\nHost: 127.0.0.1")
            assert said.startswith("http/1.1 404"), path + end


async def test_two_hosts_or_none_are_refused_on_every_way(node: Running) -> None:
    for hosts in ("Host: 127.0.0.1\nHost: evil.example", "Host: 127.0.0.1\nhost: 127.0.0.1", "Accept: */*"):
        for path in ("/v1/stream?user=ann", "/v1/preferences", "/livez", "/"):
            said = await answer(node, f"GET {path} HTTP/1.1\n{hosts}")
            assert said.startswith("http/1.1 400"), (path, hosts, said)
        said = await answer(node, f"POST /v1/events HTTP/1.1\n{hosts}\n{POSTING}", EVENT)
        assert said.startswith("http/1.1 400"), said
    assert node.node.metrics.appended == 0
    assert node.node.metrics.streams_opened == 0
    # HTTP/1.0 has no Host.
    assert (await answer(node, "GET /livez HTTP/1.0")).startswith("http/1.1 200")


async def test_a_host_with_what_no_host_has_is_refused_on_every_way(node: Running) -> None:
    for host in (
        "x/y@z",
        "a@127.0.0.1",
        "127.0.0.1/",
        "127.0.0.1?x",
        "127.0.0.1#",
        "a b",
        "<x>",
        "\\",
        "\xe9",
    ):
        for path in ("/v1/stream?user=ann", "/v1/events?user=ann&wait_s=1", "/v1/preferences", "/livez", "/"):
            said = await answer(node, f"GET {path} HTTP/1.1\nHost: {host}")
            assert said.startswith("http/1.1 400"), (path, host, said)
        said = await answer(node, f"POST /v1/events HTTP/1.1\nHost: {host}\n{POSTING}", EVENT)
        assert said.startswith("http/1.1 400"), said
    assert node.node.metrics.appended == 0
    assert node.node.metrics.streams_opened == 0
    for host in ("", "127.0.0.1", "localhost:80", "[::1]:8000", "xn--bcher-kva.example", "a_b.c~d", "%C3%A9"):
        assert (await answer(node, f"GET /livez HTTP/1.1\nHost: {host}")).startswith("http/1.1 200"), host


async def test_versions_that_are_no_1_x_are_refused_on_every_way(node: Running) -> None:
    for version in ("2.0", "0.9", "1.2", "3.0", "0.0", "1.10"):
        for path in ("GET /v1/stream?user=ann", "GET /livez", "GET /", "HEAD /livez", "GET /nowhere"):
            said = await answer(node, f"{path} HTTP/{version}\nHost: 127.0.0.1")
            assert said.startswith("http/1.1 400"), (path, version, said)
            assert "connection: close" in said
        head = f"POST /v1/events HTTP/{version}\nHost: 127.0.0.1\n{POSTING}"
        assert (await answer(node, head, EVENT)).startswith("http/1.1 400"), version
    assert node.node.metrics.appended == 0
    assert node.node.metrics.streams_opened == 0


async def test_allow_names_every_method_of_a_path(node: Running) -> None:
    for path, methods in (
        ("/v1/events", "get, head, post"),
        ("/v1/preferences", "get, head, post"),
        ("/v1/questions", "get, head, post"),
        ("/v1/questions/x/cancel", "post"),
        ("/v1/stream", "get, head"),
    ):
        reply = await node.http.request("DELETE", path)
        assert (reply.status_code, reply.headers["allow"].lower()) == (405, methods), path


async def test_origins_that_are_no_urls_are_no_errors_of_the_server(node: Running) -> None:
    for origin in (
        "http://[",
        "http://]",
        "http://[::1",
        "://",
        "http://",
        "\x7f",
        "é",
        "http://a:b",
        "null",
    ):
        for path in ("/v1/preferences", "/v1/stream", "/v1/events"):
            reply = await node.http.get(path, headers=[(b"Origin", origin.encode("latin-1"))])
            assert reply.status_code in (400, 403), (origin, path, reply.text)


BROKEN = {
    "no HTTP": b"hello\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "another version": b"GET / HTTP/3.7\r\nHost: 127.0.0.1\r\n\r\n",
    "HTTP/2 in the words of 1.1": b"GET / HTTP/2.0\r\nHost: 127.0.0.1\r\n\r\n",
    "HTTP/0.9 with a head": b"GET / HTTP/0.9\r\nHost: 127.0.0.1\r\n\r\n",
    "a blank in a field's name": b"GET / HTTP/1.1\r\nHo st: 127.0.0.1\r\n\r\n",
    "two lengths": b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    "bytes in the path": b"GET /\xff\xfe HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "no path": b"GET http://[ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "a chunk without a size":
        b"POST /v1/events HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
async def test_what_is_no_http_is_refused_counted_and_not_logged(
    node: Running, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
    writer.write(BROKEN[what])
    async with asyncio.timeout(LIMIT_S):
        head, _, body = (await reader.read(-1)).partition(b"\r\n\r\n")
    writer.close()
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"application/problem+json" in head
    assert b"connection: close" in head
    assert json.loads(body)["code"] == "bad_request"
    assert node.node.metrics.refusals == {"bad_request": 1}
    # A stranger writes nothing into the log, however many of these there are.
    assert not caplog.records
    await eventually(lambda: not node.connections)


OFFER = "Connection: Upgrade, HTTP2-Settings\nUpgrade: h2c\nHTTP2-Settings: AAMAAABkAAQAAP__"
CHUNKED = "Transfer-Encoding: chunked"
CHUNK = b"%x\r\n%b\r\n0\r\n" % (len(EVENT), EVENT)
BODIES = {
    "a length": (f"Content-Length: {len(EVENT)}", EVENT),
    "chunks": (CHUNKED, CHUNK + b"\r\n"),
    "chunks and a trailer": (CHUNKED, CHUNK + b"A: 1\r\n\r\n"),
}


@pytest.mark.parametrize("size", [1, 7, 100_000], ids=["byte by byte", "in pieces", "at once"])
@pytest.mark.parametrize("name", BODIES)
async def test_the_body_behind_an_offer_to_upgrade_is_read(node: Running, name: str, size: int) -> None:
    framing, body = BODIES[name]
    head = f"POST /v1/events?user=ops HTTP/1.1\nHost: 127.0.0.1\n{framing}\n{OFFER}\n"
    head += "Content-Type: application/json\n\n"
    # Were it a request, it would publish once more.
    hidden = "POST /v1/events?user=ops&type=hidden&to=all HTTP/1.1\nHost: 127.0.0.1\nContent-Length: 1\n\nx"
    sent = head.replace("\n", "\r\n").encode() + body
    pieces = [sent[start : start + size] for start in range(0, len(sent), size)]
    pieces[-1] += hidden.replace("\n", "\r\n").encode()
    async with node.stream("ann") as stream:
        await stream.ready()
        reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0)
        async with asyncio.timeout(LIMIT_S):
            answered = (await reader.read()).decode()
        writer.close()
        assert answered.startswith("HTTP/1.1 202"), answered
        assert answered.count("HTTP/1.1") == 1
        assert "connection: close" in answered.lower()
        assert (await stream.messages(1)) == [1]
        await node.publish("news", "the next")
        assert (await stream.messages(1)) == ["the next"]


@pytest.mark.parametrize("body", [b"5\r\nab", b"zz\r\n"], ids=["a piece", "nonsense"])
async def test_a_body_behind_an_offer_that_ends_early_is_nobodys(node: Running, body: bytes) -> None:
    head = f"POST /v1/events?user=ops&type=news&to=all HTTP/1.1\nHost: 127.0.0.1\n{CHUNKED}\n{OFFER}\n\n"
    async with node.stream("ann") as stream:
        await stream.ready()
        _, writer = await asyncio.open_connection("127.0.0.1", node.port)
        writer.write(head.replace("\n", "\r\n").encode() + body)
        await writer.drain()
        writer.close()
        await node.publish("news", "the next")
        assert (await stream.messages(1)) == ["the next"]


@pytest.mark.parametrize("coding", ["gzip", "identity", "chunked, gzip"])
async def test_a_body_without_an_end_is_refused_behind_an_offer_too(
    node: Running, coding: str, caplog: pytest.LogCaptureFixture
) -> None:
    """RFC 9112, 6.3: where chunked isn't the last coding, nothing says where the body ends."""
    for offer in ("", f"\n{OFFER}"):
        head = f"POST /v1/events?user=ops HTTP/1.1\nHost: 127.0.0.1\nTransfer-Encoding: {coding}{offer}"
        said = await answer(node, head)
        assert said.startswith("http/1.1 400"), said
    assert not caplog.records


@pytest.mark.parametrize("to", ["h2c", "websocket", "TLS/1.0"])
async def test_an_offer_to_upgrade_is_passed_over_and_not_logged(
    node: Running, to: str, caplog: pytest.LogCaptureFixture
) -> None:
    """RFC 9110, 7.8: a server may ignore it; Java's client, for one, offers HTTP/2 with its first request."""
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
    async with asyncio.timeout(LIMIT_S):
        for offer in (f"Connection: Upgrade\r\nUpgrade: {to}\r\n", ""):
            writer.write(f"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n{offer}\r\n".encode())
            assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 200 ")
    writer.close()
    assert not caplog.records


async def test_a_tunnel_is_not_logged(node: Running, caplog: pytest.LogCaptureFixture) -> None:
    said = await answer(node, "CONNECT evil.example:443 HTTP/1.1\nHost: evil.example:443")
    assert said.startswith(("http/1.1 4", "http/1.1 5")), said
    assert not caplog.records


OLD = "HTTP/1.0\nHost: 127.0.0.1\nAccept: text/event-stream\nContent-Type: application/json"


@pytest.mark.parametrize("kept", ["", "\nConnection: keep-alive"], ids=["", "kept"])
async def test_http_1_0_gets_no_chunks_and_a_connection_that_ends(node: Running, kept: str) -> None:
    body = b'{"text":"How do I get a refund?"}'
    for path in ("POST /v1/questions?user=ann", "GET /v1/stream?user=ann", "GET /openapi.json"):
        post = path.startswith("POST")
        reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
        head = f"{path} {OLD}{kept}" + (f"\nContent-Length: {len(body)}" if post else "")
        writer.write(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + (body if post else b""))
        found = b""
        async with asyncio.timeout(LIMIT_S):
            if "stream" in path:
                found = await reader.readuntil(b"\n\n")
                for number in range(3):
                    await node.publish("news", number, "ann")
                    found += await reader.readuntil(b"\n\n")
                node.node.end_streams()
            found += await reader.read(-1)
        writer.close()
        answer_head, _, answered = found.partition(b"\r\n\r\n")
        assert b"200 OK" in answer_head
        lower = answer_head.lower()
        assert b"transfer-encoding" not in lower
        assert b"keep-alive" not in lower
        if "openapi" in path:
            assert json.loads(answered)
            continue
        assert b"\r" not in answered
        events = read(answered).events
        names = [each.type for each in events]
        assert names[0] == ("question" if post else "ready")
        assert names[-1] == ("answer" if post else "exception")
        assert post or names[1:-1] == ["news"] * 3
        assert all(json.loads(each.data) for each in events)
        assert answered.endswith(b"\n\n")
