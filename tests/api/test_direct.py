"""The calls that go straight to their endpoints do what the others do, and nothing else."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pushsse.api import HANDLERS, HttpProblem, json_response, read_body
from pushsse.api.direct import Application, Direct, answered
from pushsse.errors import BackplaneUnavailable, InvalidInput, NotJson, Violation
from tests.serving import Running, serving

pytestmark = pytest.mark.anyio
ERRORS = [
    HttpProblem(418, "teapot", "short and stout", {"x-tea": "1"}),
    InvalidInput(Violation("$.a", "is bad")),
    NotJson(Violation("$", "isn't JSON")),
    BackplaneUnavailable("away"),
    ZeroDivisionError("a bug"),
]


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Running]:
    async with serving(tmp_path) as running:
        yield running


def application(error: Exception | None) -> Application:
    return Application(
        direct=direct(error),
        routes=[Route(path, endpoint(error), methods=["POST"]) for path in ("/x", "/direct")],
        exception_handlers=HANDLERS,
    )


def direct(error: Exception | None) -> Direct:
    return Direct({("POST", "/direct"): answered(endpoint(error))}, handlers=HANDLERS, origins=True)


def endpoint(error: Exception | None) -> Callable[[Request], Awaitable[Response]]:
    async def respond(request: Request) -> Response:
        body = await read_body(request, 10)
        if error is not None:
            raise error
        return json_response({"bytes": len(body)})

    return respond


@pytest.mark.parametrize("error", [None, *ERRORS], ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("content", [b"", b"ten bytes.", b"eleven byte"])
async def test_an_answer_is_the_same_on_both_ways(error: Exception | None, content: bytes) -> None:
    transport = httpx.ASGITransport(application(error), raise_app_exceptions=False)
    headers = {"x-request-id": "r"}
    async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as client:
        plain, direct = [await client.post(path, content=content) for path in ("/x", "/direct")]
    assert (plain.status_code, plain.headers, plain.content) == (
        direct.status_code,
        direct.headers,
        direct.content,
    )


async def test_a_bug_is_raised_for_the_server_to_log() -> None:
    transport = httpx.ASGITransport(application(ZeroDivisionError("a bug")))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        for path in ("/x", "/direct"):
            with pytest.raises(ZeroDivisionError):
                await client.post(path)


@pytest.mark.parametrize(
    ("method", "path", "headers", "root", "goes"),
    [
        ("POST", "/direct", [], "", True),
        ("GET", "/direct", [], "", False),
        ("POST", "/direct/", [], "", False),
        ("POST", "/direct", [], "/push", False),
    ],
)
async def test_what_is_not_exactly_such_a_call_goes_the_ordinary_way(
    method: str, path: str, headers: list[tuple[bytes, bytes]], root: str, goes: bool
) -> None:
    scope = {"type": "http", "method": method, "path": path, "headers": headers, "root_path": root}
    assert (direct(None).find(scope) is not None) is goes


async def raw(node: Running, request: bytes, *, until: bytes = b"") -> list[bytes]:
    """What is read of an answer, piece by piece as the packets come."""
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
    writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    writer.write(request)
    pieces: list[bytes] = []
    async with asyncio.timeout(10):
        while not pieces or (until and until not in b"".join(pieces)):
            pieces.append(await reader.read(100_000))
    writer.close()
    return pieces


async def test_an_answer_leaves_in_one_piece(node: Running) -> None:
    body = b'{"type":"a","to":"all","message":1}'
    request = b"POST /v1/events HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    [piece] = await raw(node, request)
    head, _, answer = piece.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 202 ")
    assert answer.startswith(b'{"accepted":1')


async def test_head_continue_and_an_answer_without_a_body_still_have_their_head(node: Running) -> None:
    for path in (b"/livez", b"/v1/stream"):
        [piece] = await raw(node, b"HEAD " + path + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert piece.startswith(b"HTTP/1.1 200 ")
    request = (
        b"POST /v1/events?type=a&to=all HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 2\r\n"
        b"Expect: 100-continue\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
    async with asyncio.timeout(10):
        writer.write(request)
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"hi")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 202 ")
    writer.close()


async def test_requests_on_one_connection_are_answered_in_order(node: Running) -> None:
    one = b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    two = b"GET /none HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    answers = b"".join(await raw(node, one * 3 + two, until=b"not_found"))
    assert answers.count(b"HTTP/1.1 200 OK\r\n") == 3
    assert answers.index(b"HTTP/1.1 404 ") > answers.rindex(b"HTTP/1.1 200 ")
