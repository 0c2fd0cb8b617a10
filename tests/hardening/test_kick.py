"""Somebody whose access is taken away: on every node, for good, and while they are just coming in."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import jwt
import pytest

from deploy.parts import Postgres
from pushsse import api
from pushsse.errors import CloseReason
from pushsse.hub.people import PersonState
from pushsse.kicks import Kicked, KickedRow, KickTable
from pushsse.people import StoredPeople
from pushsse.server import Http
from pushsse.stream.immediate import ImmediateHttp
from tests.backplane.redis_server import RedisServer
from tests.migrated import migrated_in
from tests.serving import Running, Stream, serving

pytestmark = pytest.mark.anyio
SECRET = "a secret of more than thirty-two bytes, as it has to be"
BOTH = pytest.mark.parametrize("http", [ImmediateHttp, "httptools"])


def token(user: str, *, scope: str = "", **claims: object) -> str:
    return jwt.encode({"sub": user, "exp": time.time() + 600, "scope": scope, **claims}, SECRET)


def bearer(user: str, *, scope: str = "", **claims: object) -> dict[str, str]:
    return {"authorization": f"Bearer {token(user, scope=scope, **claims)}"}


def issued_now(user: str, *, scope: str = "") -> dict[str, str]:
    return bearer(user, scope=scope, iat=int(time.time()))


def stream(node: Running, headers: Mapping[str, str]) -> Stream:
    return Stream(node.url, "/v1/stream", dict(headers))


async def kick(node: Running, user: str) -> httpx.Response:
    return await node.http.post(f"/v1/users/{user}/kick", headers=bearer("root", scope="pushsse:admin"))


async def status(node: Running, headers: Mapping[str, str]) -> tuple[int, str]:
    """What a stream with these headers begins with: its status, and the code of a refusal."""
    async with stream(node, headers) as opened:
        if opened.response.status_code == 200:
            return 200, (await opened.next()).event
        return opened.response.status_code, json.loads(await opened.response.aread())["code"]


async def until_revoked(opened: Stream) -> None:
    """Reads to the end, which says why, and that the client needn't come back soon."""
    events = await opened.rest()
    last = json.loads(events[-1].data)
    assert events[-1].event == "exception"
    assert (last["code"], last["retry"]) == ("revoked", False)
    assert b"\nretry: 300000\nevent: exception\n" in opened.raw
    assert opened.ended


@pytest.mark.parametrize(
    ("path", "scope", "body"),
    [
        ("/v1/questions", "ask", b'{"text":"Late?"}'),
        ("/v1/preferences", "preferences", b'{"types":{}}'),
        ("/v1/tickets", "stream", b"{}"),
        ("/v1/events", "publish", b'{"type":"news","message":1,"to":"all"}'),
        ("/v1/agui", "ask", b'{"threadId":"t","runId":"r","messages":[{"role":"user","content":"Late?"}]}'),
    ],
)
async def test_a_body_that_comes_after_the_kick_is_refused(
    tmp_path: Path, path: str, scope: str, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "BODY_AT_ONCE_S", 0.0)
    async with serving(tmp_path, jwt_secret=SECRET) as node:
        reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
        head = (
            f"POST {path} HTTP/1.1\r\nHost: here\r\nContent-Length: {len(body)}\r\nExpect: 100-continue\r\n"
        )
        fields = {"Content-Type": "application/json", **issued_now("ann", scope=f"pushsse:{scope}")}
        named = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        writer.write(f"{head}{named}\r\n".encode())
        # It is let in by now, since its body is read.
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert (await kick(node, "ann")).status_code == 200
        writer.write(body)
        answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 401 "), answer
        writer.close()
        assert not node.node.metrics.appended


@asynccontextmanager
async def two_nodes(redis: RedisServer, database_url: str) -> AsyncIterator[tuple[Running, Running]]:
    given: dict[str, Any] = {"redis_url": redis.url, "jwt_secret": SECRET, "database_url": database_url}
    async with (
        serving(Path(), node="one", **given) as one,
        serving(Path(), node="two", **given) as two,
    ):
        yield one, two


# One node


@BOTH
async def test_streams_end_and_tokens_of_before_no_longer_count(http: Http, tmp_path: Path) -> None:
    async with serving(tmp_path, http=http, jwt_secret=SECRET) as node:
        before = issued_now("ann")
        async with (
            stream(node, before) as one,
            stream(node, bearer("ann")) as other,
            stream(node, issued_now("bo")) as bystander,
        ):
            for each in (one, other, bystander):
                await each.ready()
            reply = await kick(node, "ann")
            assert reply.status_code == 200
            kicked = reply.json()
            assert (kicked["user"], kicked["within_s"]) == ("ann", 5)
            await until_revoked(one)
            await until_revoked(other)
            await node.http.post(
                "/v1/events",
                json={"type": "news", "message": 1, "to": "all"},
                headers=bearer("root", scope="pushsse:publish"),
            )
            assert (await bystander.next()).event == "news"
        at = kicked["kicked_at"]
        assert abs(at - time.time()) < 60
        assert await status(node, before) == (401, "token_revoked")
        assert await status(node, bearer("ann", iat=at)) == (401, "token_revoked")
        assert await status(node, bearer("ann", iat=at + 0.999)) == (401, "token_revoked")
        assert await status(node, bearer("ann")) == (401, "token_revoked")
        for path in ("/v1/events", "/v1/preferences", "/v1/questions"):
            reply = await node.http.get(path, headers=before)
            assert (reply.status_code, reply.json()["code"]) == (401, "token_revoked")
        # Who signs in again has a token of a later second; nobody else is concerned.
        assert await status(node, bearer("ann", iat=at + 1)) == (200, "ready")
        assert await status(node, bearer("bo")) == (200, "ready")
        metrics = (await node.http.get("/metrics")).text
        assert 'pushsse_endings_total{reason="revoked"} 2.0' in metrics
        assert 'pushsse_refusals_total{code="token_revoked"}' in metrics


@BOTH
async def test_a_stream_that_is_opening_is_ended_too(
    http: Http, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    going_on, waiting = asyncio.Event(), asyncio.Event()
    state_of = PersonState(0, frozenset(), pending=False, logged=None, open_question=False)

    async def states(_: StoredPeople, users: Sequence[str]) -> Mapping[str, PersonState]:
        waiting.set()
        await going_on.wait()
        return dict.fromkeys(users, state_of)

    async def state(people: StoredPeople, user: str) -> PersonState:
        return (await states(people, [user]))[user]

    async def nothing(*_: object, **__: object) -> list[KickedRow]:
        return []

    # Else the next look at the table would end them, some seconds later.
    monkeypatch.setattr(KickTable, "after", nothing)
    # The database takes its time: between the check of the token and the stream a kick fits in.
    monkeypatch.setattr(StoredPeople, "states", states)
    monkeypatch.setattr(StoredPeople, "state", state)
    monkeypatch.setattr(StoredPeople, "state_nowait", lambda _, user: None)
    async with serving(tmp_path, http=http, jwt_secret=SECRET) as node:

        async def opened() -> bytes:
            async with stream(node, issued_now("ann")) as opening:
                await opening.ready()
                await until_revoked(opening)
                return bytes(opening.raw)

        openings = [asyncio.create_task(opened()) for _ in range(3)]
        await asyncio.wait_for(waiting.wait(), 30)
        assert (await kick(node, "ann")).status_code == 200
        going_on.set()
        assert all(await asyncio.wait_for(asyncio.gather(*openings), 20))
        assert not node.node.hub.subscribers


async def test_a_publisher_on_an_open_connection_is_refused_as_well(tmp_path: Path) -> None:
    async with serving(tmp_path, http=ImmediateHttp, jwt_secret=SECRET) as node:
        headers = issued_now("sender", scope="pushsse:publish")
        event = {"type": "news", "message": 1, "to": "all"}
        # The second one is answered by the head of the first, which the connection remembers.
        for _ in range(2):
            reply = await node.http.post("/v1/events", json=event, headers=headers)
            assert reply.status_code == 202
        await kick(node, "sender")
        reply = await node.http.post("/v1/events", json=event, headers=headers)
        assert (reply.status_code, reply.json()["code"]) == (401, "token_revoked")


async def test_only_an_admin_kicks_and_only_a_name(tmp_path: Path) -> None:
    async with serving(tmp_path, jwt_secret=SECRET) as node:
        scopes = "pushsse:stream pushsse:ask pushsse:preferences pushsse:publish pushsse:answer"
        reply = await node.http.post("/v1/users/ann/kick", headers=bearer("bo", scope=scopes))
        assert (reply.status_code, reply.json()["code"]) == (403, "scope_missing")
        assert (await node.http.post("/v1/users/ann/kick")).status_code == 401
        assert await status(node, bearer("ann")) == (200, "ready")
        for name in ("a%20b", "a" * 129, "%E2%80%8Bann"):
            reply = await kick(node, name)
            assert (reply.status_code, reply.json()["code"]) == (400, "user_invalid")
        # A page of another site can't, with an admin's cookie.
        cookie = {"cookie": f"__Host-pushsse={token('root', scope='pushsse:admin')}", "origin": "http://evil"}
        reply = await node.http.post("/v1/users/ann/kick", headers=cookie)
        assert (reply.status_code, reply.json()["code"]) == (403, "origin_refused")
        for name in ("a/b", "kick", "änn", "a%b"):
            assert (await kick(node, quote(name, safe=""))).json()["user"] == name
            assert await status(node, bearer(name)) == (401, "token_revoked")


async def test_in_development_streams_end_and_may_come_back(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        async with node.stream("ann") as opened:
            await opened.ready()
            assert (await node.http.post("/v1/users/ann/kick")).status_code == 200
            await until_revoked(opened)
        reply = await node.http.get("/v1/events?user=ann")
        assert reply.status_code == 200


# Several nodes, and what outlives them


async def test_all_nodes_end_the_streams_within_five_seconds(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    async with two_nodes(redis_server, f"sqlite://{tmp_path}/both.db") as (one, two):
        before = issued_now("ann")
        async with stream(one, before) as here, stream(two, before) as there:
            await here.ready()
            await there.ready()
            began = time.monotonic()
            assert (await kick(two, "ann")).json()["within_s"] == 5
            await until_revoked(here)
            await until_revoked(there)
            assert time.monotonic() - began < 5
        assert await status(one, before) == (401, "token_revoked")


async def test_without_redis_the_other_node_learns_of_it_within_a_minute(
    redis_server: RedisServer, postgres_part: Postgres
) -> None:
    url = await asyncio.to_thread(migrated_in, postgres_part)
    async with two_nodes(redis_server, url) as (one, two):
        before = issued_now("ann")
        async with stream(one, before) as here, stream(two, before) as there:
            await here.ready()
            await there.ready()
            redis_server.freeze()
            began = time.monotonic()
            reply = await kick(two, "ann")
            assert reply.json()["within_s"] == 60
            await until_revoked(there)
            fresh = bearer("ann", iat=reply.json()["kicked_at"] + 1)
            async with stream(one, fresh) as again:
                await again.ready()
                await until_revoked(here)
                assert time.monotonic() - began < 60
                # Who has signed in again since stays, also on a node that learned of the kick after that.
                assert [s.is_open for s in one.node.hub.subscribers] == [True]
            assert await status(one, before) == (401, "token_revoked")
            redis_server.thaw()


async def test_a_node_that_starts_knows_the_kicks_before_it_takes_streams(tmp_path: Path) -> None:
    before = issued_now("ann")
    async with serving(tmp_path, jwt_secret=SECRET) as node:
        await kick(node, "ann")
    async with serving(tmp_path, jwt_secret=SECRET) as node:
        assert await status(node, before) == (401, "token_revoked")


# What a node remembers


def test_a_kick_holds_until_no_token_can_be_older() -> None:
    kicked = Kicked()
    assert not kicked.refuses("ann", None)
    kicked.learn("ann", 100)
    kicked.learn("bo", 200)
    kicked.learn("ann", 90)
    assert [kicked.refuses("ann", at) for at in (None, 99, 100, 101)] == [True, True, True, False]
    kicked.forget(150)
    assert not kicked.refuses("ann", 1)
    assert kicked.refuses("bo", 1)
    assert kicked.size == 1


def test_a_revoked_stream_is_told_not_to_come_back() -> None:
    assert (CloseReason.REVOKED.code, CloseReason.REVOKED.retry) == ("revoked", False)
