"""Pages of named origins, and no others, may call and read the answers, those of errors too."""

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import jwt
import pytest

from pushsse.api.calls import CALLS
from tests.serving import Running, serving

pytestmark = pytest.mark.anyio
SECRET = "a secret of thirty-two bytes and more"
FRIEND = "https://friend.example"
FOREIGN = (
    "https://evil.example",
    "null",
    "https://friend.example.evil.example",
    "https://evilfriend.example",
    "http://friend.example",
    "https://friend.example:8443",
    "HTTPS://FRIEND.EXAMPLE",
    "https://friend.example/",
    "*",
    "",
)
ALLOWED = {"authorization", "content-type", "last-event-id", "idempotency-key", "cache-control"}
OPENAI = ("/v1/chat/completions", "/v1/models")


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Running]:
    async with serving(tmp_path, jwt_secret=SECRET, allowed_origins=(FRIEND,)) as running:
        claims = {"sub": "ann", "exp": time.time() + 600, "scope": "pushsse:admin"}
        running.http.headers["Authorization"] = f"Bearer {jwt.encode(claims, SECRET)}"
        yield running


def words(value: str) -> set[str]:
    return {word.strip().lower() for word in value.split(",")}


async def test_every_call_has_a_preflight_for_a_named_origin_and_for_no_other(node: Running) -> None:
    for call in CALLS:
        asking = {
            "Access-Control-Request-Method": call.method,
            "Access-Control-Request-Headers": "authorization,cache-control,last-event-id",
        }
        path = call.path.replace("{id}", "0" * 26).replace("{user:path}", "ann")
        reply = await node.http.options(path, headers={"Origin": FRIEND, **asking})
        given = reply.headers
        assert (reply.status_code, reply.content) == (204, b"")
        assert given["access-control-allow-origin"] == FRIEND
        assert given["access-control-allow-credentials"] == "true"
        assert call.method.lower() in words(given["access-control-allow-methods"])
        more = {"user-agent", "x-conversation-id"} if call.path in OPENAI else set()
        assert words(given["access-control-allow-headers"]) == ALLOWED | more
        assert given["access-control-max-age"] == "7200"
        assert "origin" in words(given["vary"])
        for origin in FOREIGN:
            refused = await node.http.options(path, headers={"Origin": origin, **asking})
            assert refused.status_code == 405
            assert not [name for name in refused.headers if name.startswith("access-control")]


async def test_openais_client_may_say_of_itself_what_it_says_and_nothing_else(node: Running) -> None:
    asked = "authorization,x-stainless-arch,x-stainless-retry-count,x-user,x-stainless-a b,x-stainless-\u00e9"
    for path in (*OPENAI, "/v1/questions"):
        headers = {"Origin": FRIEND, "Access-Control-Request-Method": "POST"}
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        raw.append((b"Access-Control-Request-Headers", asked.encode()))
        reply = await node.http.options(path, headers=raw)
        allowed = words(reply.headers["access-control-allow-headers"])
        own = {"user-agent", "x-conversation-id", "x-stainless-arch", "x-stainless-retry-count"}
        assert allowed == (ALLOWED | own if path in OPENAI else ALLOWED)


async def test_answers_and_errors_are_readable_for_a_named_origin_and_for_no_other(
    node: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(node.node.preference_store, "preferences", broken)
    requests = [
        ("GET", "/v1/me", {}, None, 200),
        ("GET", "/v1/me", {"Authorization": "Bearer x"}, None, 401),
        ("GET", "/v1/stream", {"Authorization": "Bearer x"}, None, 401),
        ("GET", "/v1/stream?types=,a%20b", {}, None, 400),
        ("GET", "/nothing", {}, None, 404),
        ("GET", "/v1/preferences", {}, None, 500),
        ("POST", "/v1/me", {}, b"", 405),
        ("POST", "/v1/events", {}, b"{", 400),
        ("POST", "/v1/events", {}, json.dumps({"type": "news", "message": 1, "to": "all"}).encode(), 202),
        ("POST", "/v1/questions", {}, json.dumps({"text": "How?"}).encode(), 202),
    ]
    for method, path, headers, content, status in requests:
        for origin in (FRIEND, *FOREIGN):
            sent = {"Content-Type": "application/json", "Origin": origin, **headers}
            reply = await node.http.request(method, path, headers=sent, content=content)
            assert reply.status_code == status, (method, path, origin, reply.text)
            given = {name: v for name, v in reply.headers.items() if name.startswith("access-control")}
            assert "origin" in words(reply.headers["vary"])
            if origin == FRIEND:
                assert given.pop("access-control-allow-origin") == FRIEND
                assert given.pop("access-control-allow-credentials") == "true"
                exposed = words(given.pop("access-control-expose-headers"))
                assert {"location", "retry-after", "x-should-retry"} <= exposed
            assert given == {}


async def test_a_stream_is_readable_for_a_named_origin(node: Running) -> None:
    headers = {"Authorization": node.http.headers["Authorization"], "Origin": FRIEND}
    async with node.stream("ann", **headers) as stream:
        await stream.ready()
        assert stream.response.headers["access-control-allow-origin"] == FRIEND
        assert stream.response.headers["access-control-allow-credentials"] == "true"


async def test_without_named_origins_nothing_is_said(tmp_path: Path) -> None:
    async with serving(tmp_path, jwt_secret=SECRET) as node:
        for method in ("GET", "OPTIONS"):
            headers = {"Origin": FRIEND, "Access-Control-Request-Method": "GET"}
            reply = await node.http.request(method, "/v1/me", headers=headers)
            assert not [name for name in reply.headers if name.startswith("access-control")]
