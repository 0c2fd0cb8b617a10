"""Requests that mean one thing to a proxy and another to the node, or that a library answers by itself."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.hardening.event_stream import read
from tests.serving import LIMIT_S, Running, serving

pytestmark = pytest.mark.anyio
EVENT = b'{"type":"news","message":1,"to":"all"}'


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
    posting = f"Content-Type: application/json\nContent-Length: {len(EVENT)}"
    for hosts in ("Host: 127.0.0.1\nHost: evil.example", "Host: 127.0.0.1\nhost: 127.0.0.1", "Accept: */*"):
        for path in ("/v1/stream?user=ann", "/v1/preferences", "/livez", "/"):
            said = await answer(node, f"GET {path} HTTP/1.1\n{hosts}")
            assert said.startswith("http/1.1 400"), (path, hosts, said)
        said = await answer(node, f"POST /v1/events HTTP/1.1\n{hosts}\n{posting}", EVENT)
        assert said.startswith("http/1.1 400"), said
    assert node.node.metrics.appended == 0
    assert node.node.metrics.streams_opened == 0
    # HTTP/1.0 has no Host.
    assert (await answer(node, "GET /livez HTTP/1.0")).startswith("http/1.1 200")


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
