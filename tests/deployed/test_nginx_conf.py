"""deploy/nginx-sse.conf, the file itself, in a real nginx before two tiny upstreams."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path

import httpx
import pytest

from deploy.parts.nginx import CONFIGURATION, Nginx
from tests.deployed.conftest import Front, run_nginx
from tests.deployed.upstream import Request, Upstream, echo, hang_up, whole

pytestmark = [pytest.mark.anyio, pytest.mark.real]
KIB = 1024


async def events(response: httpx.Response) -> AsyncGenerator[str, None]:
    """The pieces of a stream, as they come."""
    async for piece in response.aiter_text():
        yield piece


def client(front: Front, over: str) -> httpx.AsyncClient:
    return front.tls if over == "h2" else front.http


def test_nginx_accepts_the_file_that_is_deployed(tmp_path: Path) -> None:
    for nginx in run_nginx(Nginx(tmp_path / "nginx", ["127.0.0.1:1"])):
        assert (nginx.folder / "nginx-sse.conf").resolve() == CONFIGURATION
        assert "[warn]" not in nginx.log.read_text()
        assert "[emerg]" not in nginx.log.read_text()


@pytest.mark.parametrize("over", ["http", "h2"])
@pytest.mark.parametrize(
    "call",
    ["GET /v1/stream", "POST /v1/questions", "POST /v1/questions/01KB3QZV0000000000000000AB/regenerate"],
)
async def test_a_streamed_answer_arrives_piece_by_piece(front: Front, over: str, call: str) -> None:
    front.first.answer, front.second.answer = front.first.stream, front.second.stream
    method, path = call.split()
    async with client(front, over).stream(method, path) as response:
        assert response.http_version == {"http": "HTTP/1.1", "h2": "HTTP/2"}[over]
        async with aclosing(events(response)) as pieces:
            assert await asyncio.wait_for(anext(pieces), 5) == "data: 1\n\n"
            # Had nginx kept anything back, the first piece would not have come before this.
            front.first.release.set()
            front.second.release.set()
            assert await asyncio.wait_for(anext(pieces), 5) == "data: 2\n\n"


async def refuse(_: Request, writer: asyncio.StreamWriter) -> None:
    await whole(writer, "503 Service Unavailable", b'{"code": "starting"}', "application/problem+json")


@pytest.mark.parametrize("over", ["http", "h2"])
@pytest.mark.parametrize("how", ["refuse", "hang up"])
async def test_a_stream_that_no_node_can_serve_gets_a_busy_answer(front: Front, over: str, how: str) -> None:
    front.first.answer = front.second.answer = refuse if how == "refuse" else hang_up
    response = await client(front, over).get("/v1/stream", headers={"Accept": "text/event-stream"})
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/event-stream"
    assert response.headers["cache-control"] == "no-store"
    retry, event, data, *rest = response.text.split("\n")
    assert 3000 <= int(retry.removeprefix("retry: ")) <= 6000
    assert event == "event: exception"
    told = json.loads(data.removeprefix("data: "))
    assert (told["code"], told["retry"]) == ("overloaded", True)
    assert rest == ["", ""]
    assert len(front.first.requests) == len(front.second.requests) == 1


@pytest.mark.parametrize("given", ["/v1/users/ann/../../stream", "/v1/users/%2e%2e/stream", "/v1//stream"])
async def test_a_node_gets_the_path_of_a_stream_as_nginx_understood_it(front: Front, given: str) -> None:
    front.first.answer = front.second.answer = echo
    # As it is written: a client would tidy it up.
    reader, writer = await asyncio.open_connection(front.http.base_url.host, front.http.base_url.port)
    writer.write(f"DELETE {given}?types=a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    await asyncio.wait_for(reader.read(-1), 5)
    writer.close()
    passed = [request.target for request in (*front.first.requests, *front.second.requests)]
    assert passed == ["/v1/stream?types=a"]


async def test_a_busy_answer_comes_at_different_times(front: Front) -> None:
    front.first.answer = front.second.answer = refuse
    answers = await asyncio.gather(*(front.http.get("/v1/stream") for _ in range(40)))
    assert len({answer.text.split("\n")[0] for answer in answers}) > 1


async def test_a_busy_answer_is_readable_for_pages_of_sites_that_are_named(front: Front) -> None:
    front.first.answer = front.second.answer = refuse
    named = "https://shop.example"
    origins = front.nginx.folder / "nginx-sse.d" / "origins.conf"
    origins.write_text(f"{named} $http_origin;\n")
    front.nginx.restart()
    ours = await front.http.get("/v1/stream", headers={"Origin": named})
    assert ours.headers["access-control-allow-origin"] == named
    assert ours.headers["access-control-allow-credentials"] == "true"
    others = await front.http.get("/v1/stream", headers={"Origin": "https://evil.example"})
    assert others.status_code == 200
    assert "access-control-allow-origin" not in others.headers


async def test_a_stream_is_offered_to_the_other_node(front: Front) -> None:
    front.first.answer = hang_up
    front.second.answer = front.second.stream
    front.second.release.set()
    for _ in range(3):
        response = await front.http.get("/v1/stream")
        assert response.text == "data: 1\n\ndata: 2\n\n"


@pytest.mark.parametrize("call", ["GET /v1/stream", "GET /v1/preferences", "POST /v1/events"])
async def test_the_only_node_of_many_that_is_left_serves_everybody(front: Front, call: str) -> None:
    """A node that is away has the fewest connections, so nginx asks it first, each time."""
    front.second.answer = front.second.stream if "stream" in call else echo
    servers = [*(f"127.0.0.1:{number}" for number in range(1, 5)), f"127.0.0.1:{front.second.port}"]
    method, path = call.split()
    async with AsyncExitStack() as several:
        for nginx in run_nginx(Nginx(front.nginx.folder.parent / "many", servers)):
            http = await several.enter_async_context(httpx.AsyncClient(base_url=nginx.url, trust_env=False))
            for _ in range(6):
                response = await several.enter_async_context(http.stream(method, path))
                # The streams stay open: the one that is there has more connections each time.
                assert await anext(events(response)) == ("data: 1\n\n" if "stream" in call else "0")
    assert len(front.second.requests) == 6


async def test_a_node_that_is_back_takes_all_streams_at_once(front: Front) -> None:
    """As when nodes are restarted one after the other: the second leaves soon after the first is back."""
    first, second = Upstream(), Upstream()
    first.answer, second.answer = first.stream, second.stream
    async with AsyncExitStack() as nodes:
        async with first.serving(), second.serving():
            servers = [f"127.0.0.1:{upstream.port}" for upstream in (first, second)]
        for nginx in run_nginx(Nginx(front.nginx.folder.parent / "rolling", servers)):
            http = await nodes.enter_async_context(httpx.AsyncClient(base_url=nginx.url, trust_env=False))
            async with second.serving():
                for _ in range(4):
                    async with http.stream("GET", "/v1/stream") as response:
                        assert await anext(events(response)) == "data: 1\n\n"
            async with first.serving():
                responses = [
                    await nodes.enter_async_context(http.stream("GET", "/v1/stream")) for _ in range(20)
                ]
                for response in responses:
                    assert await anext(events(response)) == "data: 1\n\n"


async def hang(_: Request, writer: asyncio.StreamWriter) -> None:
    while not writer.is_closing():
        await asyncio.sleep(0.02)


async def test_a_stream_goes_past_a_node_that_hangs(front: Front) -> None:
    """As a process that was stopped: the kernel takes its connections, and nobody answers."""
    front.first.ready = front.first.answer = hang
    front.second.answer = front.second.stream
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as several:
        took = []
        for _ in range(20):
            began = loop.time()
            response = await several.enter_async_context(front.http.stream("GET", "/v1/stream"))
            assert await anext(events(response)) == "data: 1\n\n"
            took.append(loop.time() - began)
        assert max(took) < 5
        assert not front.first.requests


async def test_a_node_that_is_not_ready_gets_no_streams(front: Front) -> None:
    front.first.ready = refuse
    front.first.answer, front.second.answer = front.first.stream, front.second.stream
    async with AsyncExitStack() as several:
        for _ in range(10):
            response = await several.enter_async_context(front.http.stream("GET", "/v1/stream"))
            assert await anext(events(response)) == "data: 1\n\n"
    assert not front.first.requests


async def test_streams_are_spread_over_the_nodes(front: Front) -> None:
    front.first.answer, front.second.answer = front.first.stream, front.second.stream
    front.first.release.set()
    front.second.release.set()
    for _ in range(100):
        assert (await front.http.get("/v1/stream")).status_code == 200
    assert min(len(front.first.requests), len(front.second.requests)) > 25


async def test_the_question_whether_a_node_is_ready_is_not_for_the_outside(front: Front) -> None:
    assert (await front.http.get("/-/ready")).status_code == 404


@pytest.mark.parametrize("status", [400, 401, 403])
async def test_what_ends_a_stream_for_good_reaches_the_client(front: Front, status: int) -> None:
    async def answer(_: Request, writer: asyncio.StreamWriter) -> None:
        await whole(writer, f"{status} No", b"{}", "application/problem+json")

    front.first.answer = front.second.answer = answer
    response = await front.http.get("/v1/stream")
    assert (response.status_code, response.text) == (status, "{}")


@pytest.mark.parametrize("path", ["/v1/events", "/v1/questions", "/v1/preferences"])
async def test_a_post_that_a_node_may_have_seen_never_runs_twice(front: Front, path: str) -> None:
    front.first.answer = front.second.answer = hang_up
    response = await front.http.post(path, json={})
    assert front.requests == 1
    assert response.status_code == 503
    assert response.headers["content-type"] == "application/problem+json"
    assert int(response.headers["retry-after"]) > 0
    assert response.json()["status"] == 503


async def test_a_post_that_no_node_has_seen_goes_to_the_one_that_is_there(front: Front) -> None:
    gone = Nginx(front.nginx.folder.parent / "other", ["127.0.0.1:1", f"127.0.0.1:{front.second.port}"])
    for nginx in run_nginx(gone):
        async with httpx.AsyncClient(base_url=nginx.url, trust_env=False) as http:
            answers = [await http.post("/v1/events", content=b"x") for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200] * 4
    assert len(front.second.requests) == 4


async def test_a_503_of_a_nodes_own_reaches_the_client_as_it_is(front: Front) -> None:
    front.first.answer = front.second.answer = refuse
    response = await front.http.get("/v1/preferences")
    assert (response.status_code, response.json()) == (503, {"code": "starting"})
    assert front.requests == 1


@pytest.mark.parametrize("path", ["/v1/preferences", "/v1/stream"])
async def test_what_nginx_refuses_by_itself_is_told_as_the_nodes_tell_it(front: Front, path: str) -> None:
    token = await front.http.get(path, headers={"Authorization": "Bearer " + "x" * 40 * KIB})
    assert (token.status_code, token.json()["code"]) == (431, "headers_too_large")
    assert token.headers["content-type"] == "application/problem+json"
    address = await front.http.get(f"{path}?x={'x' * 40 * KIB}")
    assert (address.status_code, address.json()["code"]) == (414, "uri_too_long")
    reader, writer = await asyncio.open_connection("127.0.0.1", front.nginx.port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nHost: y\r\nConnection: close\r\n\r\n".encode())
    answer = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"application/problem+json" in answer
    assert b'"code":"bad_request"' in answer
    assert front.requests == 0


async def test_a_token_of_20_kb_passes(front: Front) -> None:
    for http in (front.http, front.tls):
        token = "Bearer " + "x" * 20 * KIB
        assert (await http.get("/v1/preferences", headers={"Authorization": token})).status_code == 200
    assert {request.headers["authorization"] for request in front.first.requests + front.second.requests} == {
        token
    }


async def test_a_400_of_a_nodes_own_reaches_the_client_as_it_is(front: Front) -> None:
    async def answer(_: Request, writer: asyncio.StreamWriter) -> None:
        await whole(writer, "400 Bad Request", b'{"code": "not_json"}', "application/problem+json")

    front.first.answer = front.second.answer = answer
    for path in ("/v1/preferences", "/v1/events", "/v1/questions", "/v1/stream"):
        response = await front.http.get(path)
        assert (response.status_code, response.json()) == (400, {"code": "not_json"})


async def test_one_connection_of_a_browser_takes_many_streams_and_calls_beside_them(front: Front) -> None:
    front.first.answer, front.second.answer = front.first.stream, front.second.stream
    async with AsyncExitStack() as several:
        for _ in range(150):
            response = await several.enter_async_context(front.tls.stream("GET", "/v1/stream"))
            assert await anext(events(response)) == "data: 1\n\n"
        front.first.answer = front.second.answer = echo
        assert (await front.tls.get("/v1/preferences")).status_code == 200


@pytest.mark.parametrize(("path", "limit"), [("/v1/questions", 64 * KIB), ("/v1/events", KIB * KIB)])
async def test_a_body_has_a_limit(front: Front, path: str, limit: int) -> None:
    for http in (front.http, front.tls):
        fits = await http.post(path, content=b"x" * limit)
        assert (fits.status_code, fits.text) == (200, str(limit))
    # Not over HTTP/2: httpx waits there for leave to send the rest, and reads no answer meanwhile.
    too_large = await front.http.post(path, content=b"x" * (limit + 1))
    assert too_large.status_code == 413
    assert too_large.headers["content-type"] == "application/problem+json"
    assert too_large.json()["code"] == "too_large"
    assert front.requests == 2


async def test_a_body_where_a_stream_is_asked_for_has_a_limit_too(front: Front) -> None:
    too_large = await front.http.post("/v1/stream", content=b"x" * (64 * KIB + 1))
    assert (too_large.status_code, too_large.json()["code"]) == (413, "too_large")
    assert front.requests == 0


async def test_nodes_learn_the_clients_address_from_nginx_alone(front: Front) -> None:
    claims = {"X-Forwarded-For": "6.6.6.6", "X-Real-IP": "6.6.6.6", "Forwarded": "for=6.6.6.6"}
    for path in ("/v1/stream", "/v1/events", "/v1/questions", "/v1/preferences"):
        await front.tls.get(path, headers={**claims, "X-Forwarded-Host": "evil.example"})
    for request in front.first.requests + front.second.requests:
        assert request.headers["x-forwarded-for"] == "127.0.0.1"
        assert request.headers["x-forwarded-proto"] == "https"
        assert request.headers["host"] == f"localhost:{front.nginx.tls_port}"
        assert not {"x-real-ip", "forwarded", "x-forwarded-host", "connection"} & set(request.headers)
    assert front.requests == 4


async def test_the_access_log_has_no_queries(front: Front) -> None:
    await front.http.get("/v1/preferences?ticket=secret")
    front.first.answer = front.second.answer = refuse
    await front.http.get("/v1/stream?ticket=secret", headers={"Referer": "http://x/?ticket=secret"})
    front.nginx.stop()
    log = front.nginx.access_log.read_text()
    assert '"GET /v1/preferences HTTP/1.1" 200' in log
    assert '"GET /v1/stream HTTP/1.1" 200' in log
    assert "secret" not in log


async def test_whether_a_node_is_ready_is_for_the_balancer_alone(front: Front) -> None:
    hidden = await front.http.get("/readyz")
    assert (hidden.status_code, hidden.json()["code"]) == (404, "not_found")
    assert front.requests == 0
    # Which node answers is no secret, and what watches nginx from outside has to ask something.
    assert (await front.http.get("/livez")).status_code == 200


@pytest.mark.parametrize("path", ["/metrics", "/metrics?x=1", "//metrics", "/v1/../metrics", "/%6detrics"])
async def test_counters_are_not_for_the_outside(front: Front, path: str) -> None:
    # A client of its own would tidy such a path up.
    reader, writer = await asyncio.open_connection("127.0.0.1", front.nginx.port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    answer = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert front.requests == 0
