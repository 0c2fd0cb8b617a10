"""What browsers are told about answers: no guessing of types, no framing, no copies, no referrer."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pushsse.api.calls import CALLS
from pushsse.api.files import DEVELOPMENT_PAGE, DOCS, PAGE
from pushsse.server import Http
from pushsse.stream.immediate import ImmediateHttp
from tests.serving import LIMIT_S, Running, serving

pytestmark = pytest.mark.anyio
BOTH = pytest.mark.parametrize("node", [ImmediateHttp, "httptools"], indirect=True)


@pytest.fixture
async def node(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Running]:
    http: Http = request.param
    async with serving(tmp_path, http=http) as running:
        yield running


def path(call_path: str) -> str:
    return re.sub(r"{\w+(:path)?}", "x", call_path)


@BOTH
async def test_every_answer_but_a_stream_forbids_guessing_its_type_and_the_api_s_are_kept_nowhere(
    node: Running,
) -> None:
    event = {"type": "news", "message": 1, "to": "all"}
    for call in CALLS:
        if call.path == "/v1/stream":
            continue
        body = event if call.name == "publishEvents" else None
        reply = await node.http.request(call.method, path(call.path), json=body)
        assert reply.headers["x-content-type-options"] == "nosniff", call
        if "json" in reply.headers.get("content-type", "json") or call.path == "/metrics":
            assert reply.headers["cache-control"] == "no-store", call
    for bad in ("/nowhere", "/v1/stream?since=never"):
        reply = await node.http.get(bad)
        assert (reply.headers["x-content-type-options"], reply.headers["cache-control"]) == (
            "nosniff",
            "no-store",
        )


REFUSED = {
    "no HTTP": (b"hello\r\n\r\n", 400),
    "a head that is too large": (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 40_000 + b"\r\n\r\n", 431),
    "too many fields": (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: x\r\n" * 200 + b"\r\n", 431),
    "half a head": (b"GET / HTTP/1.1\r\n", 408),
    "half a body": (
        b"POST /v1/events?user=ops HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\n{",
        408,
    ),
    "two hosts": (b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\nConnection: close\r\n\r\n", 400),
}


@pytest.mark.parametrize("kind", REFUSED)
async def test_refusals_of_what_no_call_sees_have_the_same_headers(kind: str, tmp_path: Path) -> None:
    sent, status = REFUSED[kind]
    async with serving(tmp_path, head_timeout_s=0.5, body_timeout_s=0.5) as node:
        reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
        writer.write(sent)
        head, _, _ = (await asyncio.wait_for(reader.read(-1), LIMIT_S)).partition(b"\r\n\r\n")
        writer.close()
    line, *fields = head.decode().lower().split("\r\n")
    assert line.startswith(f"http/1.1 {status} ")
    assert {"cache-control: no-store", "x-content-type-options: nosniff"} <= set(fields)


@BOTH
async def test_the_page_runs_its_own_files_alone_and_in_no_frame(node: Running) -> None:
    pages = [*PAGE, *DEVELOPMENT_PAGE, *DOCS]
    assert {call.path for call in CALLS} >= set(pages)
    for each in pages:
        headers = (await node.http.get(each)).headers
        policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-opener-policy"] == "same-origin"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "camera=()" in headers["permissions-policy"]


@BOTH
async def test_the_page_has_no_script_or_style_of_its_own_within(node: Running) -> None:
    for page in ("/", "/docs"):
        text = (await node.http.get(page)).text
        assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", text)
        assert all("src=" in tag for tag in re.findall(r"<script[^>]*>", text))
