"""Tickets: what a stream's URL can do, for how long, and what a stranger can do with it."""

import asyncio
import json
import logging
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import jwt
import pytest

from pushsse.api import access
from pushsse.backplane import codec
from pushsse.server import Http
from pushsse.stream.immediate import ImmediateHttp
from tests.backplane.redis_server import RedisServer
from tests.serving import Running, Stream, serving
from tests.waiting import eventually

pytestmark = pytest.mark.anyio
SECRET = "a secret of more than thirty-two bytes, as it has to be"
AT_ONCE = 50
BOTH = pytest.mark.parametrize("http", [ImmediateHttp, "httptools"])


def token(user: str, *, scope: str = "", **claims: object) -> str:
    now = int(time.time())
    return jwt.encode({"sub": user, "iat": now, "exp": now + 7200, "scope": scope, **claims}, SECRET)


def bearer(user: str, *, scope: str = "", **claims: object) -> dict[str, str]:
    return {"authorization": f"Bearer {token(user, scope=scope, **claims)}"}


async def make(node: Running, user: str = "ann", **claims: Any) -> dict[str, Any]:
    reply = await node.http.post("/v1/tickets", headers=bearer(user, **claims))
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


def stream(node: Running, ticket: str, query: str = "", **headers: str) -> Stream:
    return Stream(node.url, f"/v1/stream?ticket={ticket}&{query}", headers)


async def refusal(node: Running, ticket: str, **headers: str) -> tuple[int, str]:
    """The status and the code with which a ticket's URL is refused."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    reply = await node.http.get(f"/v1/stream?ticket={ticket}", headers=names)
    return reply.status_code, str(reply.json()["code"])


async def last(opened: Stream) -> tuple[str, bool]:
    """Why a stream ended, and whether its client is to come back."""
    events = await opened.rest()
    assert events[-1].event == "exception"
    said = json.loads(events[-1].data)
    assert said["retry"] or b"\nretry: 300000\nevent: exception\n" in opened.raw
    return said["code"], said["retry"]


async def publish(node: Running, message: object, to: object = "all") -> None:
    event = {"type": "news", "message": message, "to": to}
    reply = await node.http.post("/v1/events", json=event, headers=bearer("sender", scope="pushsse:publish"))
    assert reply.status_code == 202, reply.text


@asynccontextmanager
async def nodes(tmp_path: Path, redis: RedisServer, *, count: int = 2) -> AsyncIterator[list[Running]]:
    async with AsyncExitStack() as stack:
        found = []
        for number in range(count):
            given: Mapping[str, Any] = {"redis_url": redis.url, "jwt_secret": SECRET, "node": f"n{number}"}
            found.append(await stack.enter_async_context(serving(tmp_path, **given)))
        yield found


@pytest.fixture
def no_longer_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tickets open by themselves for as long as it takes to open one, and not for 30 s."""
    monkeypatch.setattr(access, "FRESH_S", 1.0)


# What it opens


@BOTH
async def test_a_ticket_opens_the_stream_of_the_person_who_made_it(http: Http, tmp_path: Path) -> None:
    async with serving(tmp_path, http=http, jwt_secret=SECRET) as node:
        made = await make(node)
        assert made["expires_in_s"] == 30
        assert re.fullmatch(r"[A-Za-z0-9_-]{32}", made["ticket"])
        # No hole: what comes after the call is read after the position, and at it a stream begins.
        await publish(node, "after", {"users": ["ann"]})
        later = await node.http.get(f"/v1/events?after={made['position']}", headers=bearer("ann"))
        assert [event["data"]["message"] for event in later.json()["events"]] == ["after"]
        async with stream(node, made["ticket"], f"last_event_id={made['position']}") as opened:
            ready = await opened.ready()
            assert (ready["user"], ready["resume"]) == ("ann", "complete")
            assert 2800 <= ready["expires_in_s"] <= 3600
            assert await opened.messages(1) == ["after"]
        other = await make(node)
        assert other["ticket"] != made["ticket"]


async def test_an_admin_makes_one_for_somebody_else_and_nobody_else_does(tmp_path: Path) -> None:
    async with serving(tmp_path, jwt_secret=SECRET) as node:
        admin, bo = bearer("root", scope="pushsse:admin"), bearer("bo")
        reply = await node.http.post("/v1/tickets", json={"user": "ann"}, headers=admin)
        async with stream(node, reply.json()["ticket"]) as opened:
            assert (await opened.ready())["user"] == "ann"
        reply = await node.http.post("/v1/tickets", json={"user": "ann"}, headers=bo)
        assert (reply.status_code, reply.json()["code"]) == (403, "scope_missing")
        assert (await node.http.post("/v1/tickets", json={"user": "bo"}, headers=bo)).status_code == 200
        reply = await node.http.post("/v1/tickets", headers=bearer("bo", scope="pushsse:publish"))
        assert (reply.status_code, reply.json()["code"]) == (403, "scope_missing")
        for body in (b'{"user": "a b"}', b'{"users": "ann"}', b'{"user": 1}', b"[]"):
            assert (await node.http.post("/v1/tickets", content=body, headers=admin)).status_code == 422
        assert (await node.http.post("/v1/tickets", content=b"{", headers=admin)).status_code == 400
        assert (await node.http.post("/v1/tickets")).status_code == 401


async def test_it_opens_a_stream_and_nothing_else(tmp_path: Path) -> None:
    async with serving(tmp_path, jwt_secret=SECRET) as node:
        ticket = (await make(node))["ticket"]
        for path in ("/v1/events", "/v1/preferences", "/v1/questions"):
            reply = await node.http.get(f"{path}?ticket={ticket}")
            assert (reply.status_code, reply.json()["code"]) == (401, "token_missing")
        assert (await node.http.post(f"/v1/tickets?ticket={ticket}")).status_code == 401
        # Some programs look at a URL before they open it.
        assert (await node.http.head(f"/v1/stream?ticket={ticket}")).status_code == 401
        async with stream(node, ticket, authorization=bearer("bo")["authorization"]) as opened:
            assert (await opened.ready())["user"] == "bo"
        async with stream(node, ticket, cookie=f"__Host-pushsse={token('bo')}") as opened:
            assert (await opened.ready())["user"] == "ann"
        # A proxy's own, which a browser repeats.
        async with stream(node, ticket, authorization="Basic YW5uOmFubg==") as opened:
            assert (await opened.ready())["user"] == "ann"


@pytest.mark.parametrize("bad", ["x", "A" * 31, "A" * 33, "A" * 32, "%00" * 32, "ü" * 32, "A" * 5000])
async def test_what_is_no_ticket_is_refused(bad: str, tmp_path: Path) -> None:
    async with serving(tmp_path, jwt_secret=SECRET) as node:
        reply = await node.http.get(f"/v1/stream?ticket={bad}")
        assert (reply.status_code, reply.json()["code"]) == (401, "ticket_invalid")
        assert reply.headers["www-authenticate"].startswith("Bearer ")
        assert bad not in reply.text


# How often, and for how long


@BOTH
@pytest.mark.usefixtures("no_longer_fresh")
async def test_later_it_opens_only_for_a_client_that_comes_back(http: Http, tmp_path: Path) -> None:
    async with serving(tmp_path, http=http, jwt_secret=SECRET) as node:
        ticket = (await make(node))["ticket"]
        unused = (await make(node))["ticket"]
        began = time.monotonic()
        async with stream(node, ticket) as opened:
            await opened.ready()
            await publish(node, 1)
            assert await opened.messages(1) == [1]
            position = opened.last_id

        await publish(node, 2)
        await eventually(lambda: time.monotonic() > began + 1.5)
        # It was never opened, and its time is over: also for a client with a position.
        assert await refusal(node, unused, last_event_id=position) == (401, "ticket_used")
        assert await refusal(node, unused) == (401, "ticket_used")
        # The URL alone opens nothing, whatever it says of a position.
        assert await refusal(node, ticket) == (401, "ticket_used")
        assert await refusal(node, f"{ticket}&last_event_id={position}") == (401, "ticket_used")
        assert await refusal(node, ticket, last_event_id="") == (401, "ticket_used")
        for _ in range(2):
            async with stream(node, ticket, last_event_id=position) as again:
                assert (await again.ready())["resume"] == "complete"
                assert await again.messages(1) == [2]


@BOTH
async def test_it_ends_with_the_token_that_made_it(http: Http, tmp_path: Path) -> None:
    async with serving(tmp_path, http=http, jwt_secret=SECRET) as node:
        ends = time.time() + 3
        made = await make(node, exp=ends)
        assert made["expires_in_s"] in (2, 3)
        async with stream(node, made["ticket"]) as opened:
            assert (await opened.ready())["expires_in_s"] <= 3
            assert await last(opened) == ("token_expired", False)
            position = opened.last_id
        await eventually(lambda: time.time() > ends)
        assert await refusal(node, made["ticket"], last_event_id=position) == (401, "token_expired")
        assert await refusal(node, made["ticket"]) == (401, "token_expired")


async def test_it_ends_after_its_own_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "LIVES_S", 1.0)
    async with (
        serving(tmp_path, jwt_secret=SECRET) as node,
        stream(node, (await make(node))["ticket"]) as opened,
    ):
        await opened.ready()
        assert await last(opened) == ("token_expired", False)


# One stream at a time


@BOTH
async def test_each_opening_ends_the_stream_before(http: Http, tmp_path: Path) -> None:
    async with serving(tmp_path, http=http, jwt_secret=SECRET) as node:
        ticket = (await make(node))["ticket"]
        bystander = (await make(node))["ticket"]
        async with stream(node, ticket) as one, stream(node, bystander) as other:
            await one.ready()
            await other.ready()
            async with stream(node, ticket) as two:
                await two.ready()
                assert await last(one) == ("replaced", False)
                await publish(node, "here")
                assert await two.messages(1) == await other.messages(1) == ["here"]
        metrics = (await node.http.get("/metrics")).text
        assert 'pushsse_endings_total{reason="replaced"} 1.0' in metrics


async def test_the_stream_before_ends_on_another_node_too(redis_server: RedisServer, tmp_path: Path) -> None:
    async with nodes(tmp_path, redis_server) as (one, two):
        ticket = (await make(one))["ticket"]
        async with stream(one, ticket) as here:
            await here.ready()
            async with stream(two, ticket) as there:
                assert (await there.ready())["user"] == "ann"
                began = time.monotonic()
                assert await last(here) == ("replaced", False)
                assert time.monotonic() - began < 5
                async with stream(one, ticket) as back:
                    await back.ready()
                    assert await last(there) == ("replaced", False)
                    await publish(two, "to the newest")
                    assert await back.messages(1) == ["to the newest"]


async def test_a_notice_that_gets_lost_is_made_up_for(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codec, "decode_notice", lambda payload: None)
    monkeypatch.setattr(access, "LOOK_EVERY_S", 0.5)
    async with nodes(tmp_path, redis_server) as (one, two):
        ticket = (await make(one))["ticket"]
        async with stream(one, ticket) as here, stream(two, ticket) as there:
            await here.ready()
            await there.ready()
            assert await last(here) == ("replaced", False)
            await publish(two, "still here")
            assert await there.messages(1) == ["still here"]


async def left_of(where: list[Running], ticket: str, tasks: asyncio.TaskGroup) -> Counter[str]:
    """Opens a ticket 50 times at once, on all nodes; how the streams ended, the one that stayed by a kick."""
    ended: Counter[str] = Counter()
    opened = [stream(where[i % len(where)], ticket) for i in range(AT_ONCE)]
    going_on = set(range(AT_ONCE))
    begun = 0

    async def read(number: int) -> None:
        nonlocal begun
        async with opened[number] as each:
            await each.ready()
            begun += 1
            code, _ = await last(each)
            going_on.remove(number)
            ended[code] += 1

    readings = [tasks.create_task(read(number)) for number in range(AT_ONCE)]
    await eventually(lambda: begun == AT_ONCE and len(going_on) == 1)
    streams = [s for node in where for s in node.node.hub.subscribers if s.is_open]
    assert len(streams) == 1
    # It stays, though nothing hinders it from ending.
    await publish(where[0], "for the one")
    [number] = going_on
    await eventually(lambda: b"for the one" in opened[number].raw)
    admin = bearer("root", scope="pushsse:admin")
    assert (await where[-1].http.post("/v1/users/ann/kick", headers=admin)).status_code == 200
    await asyncio.gather(*readings)
    return ended


@BOTH
async def test_fifty_at_once_leave_one_stream(
    http: Http, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "FRESH_S", 5.0)
    async with serving(tmp_path, http=http, jwt_secret=SECRET, max_streams_per_user=0) as node:
        ticket, began = (await make(node))["ticket"], time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            ended = await left_of([node], ticket, tasks)
        assert ended == {"replaced": AT_ONCE - 1, "revoked": 1}
        await eventually(lambda: time.monotonic() > began + 6)
        assert await refusal(node, ticket) == (401, "ticket_used")


async def test_fifty_at_once_on_three_nodes_leave_one_stream(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    async with nodes(tmp_path, redis_server, count=3) as where:
        ticket = (await make(where[0]))["ticket"]
        async with asyncio.TaskGroup() as tasks:
            ended = await left_of(where, ticket, tasks)
        assert ended == {"replaced": AT_ONCE - 1, "revoked": 1}


# Who else


@BOTH
async def test_a_kick_voids_the_tickets_of_a_person(http: Http, tmp_path: Path) -> None:
    async with serving(tmp_path, http=http, jwt_secret=SECRET) as node:
        admin = bearer("root", scope="pushsse:admin")
        unused, theirs = (await make(node))["ticket"], (await make(node, "bo"))["ticket"]
        by_admin = (await node.http.post("/v1/tickets", json={"user": "ann"}, headers=admin)).json()["ticket"]
        async with stream(node, (await make(node))["ticket"]) as opened:
            await opened.ready()
            assert (await node.http.post("/v1/users/ann/kick", headers=admin)).status_code == 200
            assert await last(opened) == ("revoked", False)
        assert await refusal(node, unused) == (401, "token_revoked")
        assert await refusal(node, by_admin) == (401, "token_revoked")
        async with stream(node, theirs) as other:
            await other.ready()


async def test_pages_of_other_sites_make_none_and_open_none(tmp_path: Path) -> None:
    async with serving(tmp_path, jwt_secret=SECRET) as node:
        cookie = f"__Host-pushsse={token('ann')}"
        for headers in (
            {"origin": "http://evil.example"},
            {"origin": "null"},
            {},
            {"sec-fetch-site": "cross-site"},
        ):
            reply = await node.http.post("/v1/tickets", json={}, headers={"cookie": cookie, **headers})
            assert (reply.status_code, reply.json()["code"]) == (403, "origin_refused")
        own = {"cookie": cookie, "origin": node.url}
        reply = await node.http.post("/v1/tickets", headers={**own, "content-type": "text/plain"})
        assert (reply.status_code, reply.json()["code"]) == (403, "content_type_refused")
        reply = await node.http.post("/v1/tickets", json={}, headers=own)
        assert reply.headers["cache-control"] == "no-store"
        ticket = reply.json()["ticket"]
        async with stream(node, ticket, origin=node.url) as opened:
            await opened.ready()
            for origin in ("http://evil.example", "null", f"{node.url}.evil.example"):
                assert await refusal(node, ticket, origin=origin) == (403, "origin_refused")
            await publish(node, "undisturbed")
            assert await opened.messages(1) == ["undisturbed"]
    theirs = "https://app.example.com"
    async with serving(tmp_path, jwt_secret=SECRET, allowed_origins=[theirs]) as node:
        async with stream(node, (await make(node))["ticket"], origin=theirs) as opened:
            await opened.ready()
            assert opened.response.headers["access-control-allow-origin"] == theirs
        assert await refusal(node, (await make(node))["ticket"], origin="http://evil.example") == (
            403,
            "origin_refused",
        )


async def test_a_person_makes_so_many_a_minute(tmp_path: Path) -> None:
    async with serving(tmp_path, jwt_secret=SECRET, tickets_per_minute=2) as node:
        for _ in range(2):
            await make(node)
        reply = await node.http.post("/v1/tickets", headers=bearer("ann"))
        assert (reply.status_code, reply.json()["code"]) == (429, "rate_limited")
        # Whoever makes them for others is limited by whom they are for.
        for user in ("bo", "cleo", "dan"):
            reply = await node.http.post(
                "/v1/tickets", json={"user": user}, headers=bearer("root", scope="pushsse:admin")
            )
            assert reply.status_code == 200


async def test_without_redis_calls_are_told_to_wait_and_streams_to_come_back(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    async with nodes(tmp_path, redis_server, count=1) as (node,):
        ticket = (await make(node))["ticket"]
        redis_server.freeze()
        reply = await node.http.post("/v1/tickets", headers=bearer("ann"))
        assert (reply.status_code, reply.json()["code"]) == (503, "unavailable")
        assert int(reply.headers["retry-after"]) > 0
        busy = await node.http.get(f"/v1/stream?ticket={ticket}")
        assert busy.status_code == 200
        assert '"code":"overloaded"' in busy.text
        assert int(busy.text.removeprefix("retry: ").partition("\n")[0]) >= 5000
        redis_server.thaw()


async def test_it_is_nowhere_but_with_the_client(
    redis_server: RedisServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with nodes(tmp_path, redis_server, count=1) as (node,):
        ticket = (await make(node))["ticket"]
        async with stream(node, ticket) as opened:
            await opened.ready()
        await node.http.get(f"/v1/stream?ticket={ticket}&types=%00")
        assert (await node.http.get(f"/v1/stream?ticket={ticket[:-1]}_x")).status_code == 401
        kept = dump(redis_server)
        assert "ann" in kept
        assert ticket not in kept
        # Each is forgotten in time.
        keys = [key for key in redis_server.admin.keys("*") if b":ticket:" in key]
        assert keys
        assert all(0 < redis_server.admin.pttl(key) <= 4_200_000 for key in keys)
    ours = [one for one in caplog.records if not one.name.startswith(("httpx", "httpcore"))]
    assert ours
    assert not [one for one in ours if ticket in one.getMessage()]


def dump(server: RedisServer) -> str:
    """All keys and hashes."""
    found = []
    for key in server.admin.keys("*"):
        found.append(repr(key))
        if server.admin.type(key) == b"hash":
            found.append(repr(server.admin.hgetall(key)))
    return "\n".join(found)
