"""A page of another site sends requests that carry the person's cookie: none of them does anything."""

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import jwt
import pytest

from tests.serving import Running, serving

pytestmark = pytest.mark.anyio
SECRET = "a secret of thirty-two bytes and more"
FRIEND = "https://friend.example"
JSON = "application/json"
SIMPLE = ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "")
FOREIGN = [
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1.evil.example"},
    {"Origin": "http://evil127.0.0.1"},
    {"Origin": "https://friend.example.evil.example"},
    {"Origin": "http://friend.example"},
    {"Origin": "https://friend.example:8443"},
    {"Origin": "http://["},
    {"Origin": "https://friend.example."},
    {"Origin": "https://friend.example/"},
    {"Origin": "https://friend.example@evil.example"},
    {"Origin": "https://evil.example#https://friend.example"},
    {"Origin": "https://evil.example, https://friend.example"},
    {"Origin": "https://friend.example https://evil.example"},
    {"Origin": "https://friend.example:443:443"},
    {"Origin": "https://friend\texample"},
    {"Origin": "https://friend-example"},
    {"Origin": "file://"},
    {"Origin": "HERE.evil.example"},
    {"Origin": "HERE@evil.example"},
    # Who a page belongs to isn't for a proxy's field to say.
    {"Origin": "https://evil.example", "X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "https"},
    {"Origin": "https://evil.example", "Forwarded": "host=evil.example;proto=https"},
    {"Origin": "https://evil.example", "X-Original-Host": "evil.example", "Referer": "HERE/"},
    {"Origin": "", "Sec-Fetch-Site": "cross-site"},
    {"Origin": "HERE", "Sec-Fetch-Site": "cross-site"},
    {"Origin": "HERE", "Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
]
# Refused only where something changes: a GET of the same origin has neither in older browsers.
UNSAID: list[dict[str, str]] = [{}, {"Sec-Fetch-Site": "none"}]
OWN = [
    {"Origin": "HERE"},
    {"Origin": "HERE", "Sec-Fetch-Site": "same-origin"},
    {"Sec-Fetch-Site": "same-origin"},
    {"Origin": FRIEND},
    {"Origin": FRIEND, "Sec-Fetch-Site": "cross-site"},
]
EVENT = {"type": "news", "message": 1, "to": "all"}
CALLS: list[tuple[str, object]] = [
    ("/v1/events", EVENT),
    ("/v1/preferences", {"types": {}}),
    ("/v1/questions", {"text": "How do I get a refund?"}),
    ("/v1/questions/00000000000000000000000000/cancel", None),
    ("/v1/chat", {"id": "c", "messages": [{"role": "user", "parts": [{"type": "text", "text": "Why?"}]}]}),
    ("/v1/chat/c/stop", None),
    ("/v1/agui", {"threadId": "t", "runId": "r", "messages": [{"role": "user", "content": "Why?"}]}),
    ("/v1/agui/t/stop", None),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Why?"}]}),
]
READS = ("/v1/events", "/v1/preferences", "/v1/questions", "/v1/chat/c/messages")


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Running]:
    async with serving(tmp_path, jwt_secret=SECRET, allowed_origins=(FRIEND,)) as running:
        claims = {"sub": "ann", "exp": time.time() + 600, "scope": "pushsse:admin"}
        running.http.headers["Cookie"] = f"__Host-pushsse={jwt.encode(claims, SECRET)}"
        yield running


def sent(node: Running, headers: dict[str, str]) -> dict[str, str]:
    return {name: value.replace("HERE", node.url) for name, value in headers.items()}


async def post(node: Running, path: str, body: object, kind: str, headers: dict[str, str]) -> tuple[int, str]:
    content = b"" if body is None else json.dumps(body)
    more = {"Content-Type": kind} if kind else {}
    reply = await node.http.post(path, content=content, headers={**sent(node, headers), **more})
    if "json" not in reply.headers.get("content-type", ""):
        return reply.status_code, ""
    told = reply.json()
    return reply.status_code, str(told.get("error", told).get("code", ""))


async def stream_status(node: Running, headers: dict[str, str], **more: str) -> int:
    stream = node.stream("ann", **sent(node, {"Cookie": node.http.headers["Cookie"], **headers, **more}))
    async with stream:
        return int(stream.response.status_code)


@pytest.mark.parametrize("headers", FOREIGN + UNSAID, ids=str)
async def test_no_call_that_changes_something_is_taken_from_another_site(
    node: Running, headers: dict[str, str]
) -> None:
    for path, body in CALLS:
        for kind in (JSON, *SIMPLE):
            assert await post(node, path, body, kind, headers) == (403, "origin_refused")
    assert node.node.metrics.appended == 0
    assert node.node.metrics.refusals["origin_refused"] == len(CALLS) * 5


async def test_no_text_becomes_an_event_for_another_site(node: Running) -> None:
    path = "/v1/events?type=news&to=all"
    for headers in (*FOREIGN, *UNSAID, *OWN):
        assert (await post(node, path, "text", "text/plain", headers))[0] == 403
    assert node.node.metrics.appended == 0


@pytest.mark.parametrize("headers", OWN, ids=str)
async def test_pages_of_this_site_and_named_ones_may_call_with_json_alone(
    node: Running, headers: dict[str, str]
) -> None:
    statuses = [(await post(node, path, body, JSON, headers))[0] for path, body in CALLS]
    assert statuses == [202, 200, 202, 404, 200, 204, 200, 204, 200]
    for path, body in CALLS:
        for kind in SIMPLE:
            assert await post(node, path, body, kind, headers) == (403, "content_type_refused")


async def test_what_reads_is_refused_for_a_foreign_page_and_not_for_one_that_says_nothing(
    node: Running,
) -> None:
    for headers in FOREIGN:
        assert await stream_status(node, headers) == 403, headers
        for path in READS:
            reply = await node.http.get(path, headers=sent(node, headers))
            assert (reply.status_code, reply.json()["code"]) == (403, "origin_refused"), headers
    for headers in (*UNSAID, *OWN):
        assert await stream_status(node, headers) == 200, headers
        for path in READS:
            assert (await node.http.get(path, headers=sent(node, headers))).status_code == 200, headers


async def test_two_origins_have_to_fit_both(node: Running) -> None:
    headers = [(b"Origin", FRIEND.encode()), (b"Origin", b"https://evil.example")]
    assert (await node.http.get("/v1/preferences", headers=headers)).status_code == 403


async def test_a_token_in_the_header_needs_no_origin(node: Running) -> None:
    token = node.http.headers.pop("Cookie").partition("=")[2]
    for origin in ({}, {"Origin": "null"}, {"Origin": "https://evil.example"}):
        headers = {"Authorization": f"Bearer {token}", "Content-Type": JSON, **origin}
        assert (await node.http.post("/v1/events", json=EVENT, headers=headers)).status_code == 202


CLAIMS = [
    {"X-Forwarded-For": "127.0.0.1"},
    {"X-Forwarded-For": "10.0.0.1, 127.0.0.1", "X-Real-IP": "127.0.0.1"},
    {"X-Forwarded-For": "not an address, " * 100 + "x"},
    {"Forwarded": "for=127.0.0.1;host=localhost;proto=https"},
    {"X-Forwarded-Host": "127.0.0.1", "X-Forwarded-Proto": "https", "X-Forwarded-Prefix": "/admin"},
    {"X-Original-URL": "/metrics", "X-Rewrite-URL": "/metrics", "X-HTTP-Method-Override": "POST"},
    {"X-Forwarded-User": "root", "X-Remote-User": "root", "Remote-User": "root", "X-User": "root"},
]


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: ascii(next(iter(claim))))
async def test_nothing_believes_what_a_client_says_in_a_proxys_name(
    node: Running, claim: dict[str, str]
) -> None:
    cookie = node.http.headers.pop("Cookie")
    own = {"Cookie": cookie, "Origin": node.url}
    for path in (
        "/v1/stream",
        "/v1/events",
        "/v1/preferences",
        "/v1/questions",
        "/v1/me",
        "/livez",
        "/readyz",
    ):
        for headers in ({}, own, {"Authorization": "Bearer x"}):
            async with node.http.stream("GET", path, headers=headers) as plain:
                said = plain.status_code, plain.headers.get("location")
            async with node.http.stream("GET", path, headers=headers | claim) as claiming:
                assert (claiming.status_code, claiming.headers.get("location")) == said, path
    reply = await node.http.get("/v1/me", headers=own | claim)
    assert reply.json()["user"] == "ann"
    assert node.node.metrics.appended == 0
