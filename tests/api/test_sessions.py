"""A company's own sessions: its server is asked with a request's cookies, and its answer isn't outlived."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest

from pushsse import api
from pushsse.api.identity import remote as remotes
from tests.answering import Answering, answering
from tests.serving import Running, Stream, serving
from tests.waiting import eventually

pytestmark = pytest.mark.anyio
SECRET = "a secret of thirty-two bytes and more"
FRIEND = "https://friend.example"


@dataclass
class Company:
    """The sessions of a company, by cookie, and how its server behaves."""

    sessions: dict[str, Any] = field(default_factory=dict)
    status: int = 0
    body: bytes = b""
    more: str = ""
    hold: asyncio.Event | None = None

    async def __call__(self, head: str) -> tuple[int, bytes, str]:
        if self.hold is not None:
            await self.hold.wait()
        if self.status:
            return self.status, self.body, self.more
        [cookie] = [line[8:] for line in head.split("\r\n") if line.lower().startswith("cookie: ")]
        if cookie not in self.sessions:
            return 401, b"", self.more
        return 200, json.dumps(self.sessions[cookie]).encode(), self.more


@pytest.fixture
def company() -> Company:
    return Company({f"sid={name}": {"user": name, "expires_in_s": 600} for name in ("ann", "bo")})


@pytest.fixture
async def asked(company: Company) -> AsyncIterator[Answering]:
    async with answering(company) as server:
        yield server


@pytest.fixture
async def node(asked: Answering, tmp_path: Path) -> AsyncIterator[Running]:
    async with serving(tmp_path, auth_url=asked.url, allowed_origins=(FRIEND,)) as running:
        yield running


async def me(node: Running, cookie: str, **headers: str) -> httpx.Response:
    return await node.http.get("/v1/me", headers={"Cookie": cookie, **headers})


def stream(node: Running, cookie: str) -> Stream:
    return Stream(node.url, "/v1/stream", {"Cookie": cookie})


async def test_the_server_is_asked_with_the_cookies_and_nothing_else_of_the_request(
    node: Running, asked: Answering
) -> None:
    headers = {
        "X-Forwarded-For": "10.0.0.1",
        "X-Secret": "s",
        "User-Agent": "theirs",
        "Accept-Language": "fi",
    }
    reply = await me(node, "sid=ann", **headers)
    assert reply.json()["user"] == "ann"
    assert 595 <= reply.json()["expires_in_s"] <= 600
    assert reply.json()["scope"] == "pushsse:stream pushsse:ask pushsse:preferences"
    [head] = asked.heads
    first, *lines = head.strip().split("\r\n")
    assert first == "GET /asked?from=push HTTP/1.1"
    assert {line.partition(":")[0].lower() for line in lines} == {
        "host",
        "accept",
        "accept-encoding",
        "cookie",
    }
    assert "Cookie: sid=ann" in lines


async def test_a_stream_and_calls_work_with_a_session(node: Running) -> None:
    async with stream(node, "sid=ann") as one:
        ready = await one.ready()
        assert ready["user"] == "ann"
        assert 590 <= ready["expires_in_s"] <= 600
        headers = {"Cookie": "sid=ann", "Origin": node.url}
        reply = await node.http.post("/v1/questions", json={"text": "How?"}, headers=headers)
        assert reply.status_code == 202
        assert json.loads((await one.until("question")).data)["text"] == "How?"


async def test_a_body_that_comes_after_somebody_else_has_signed_in_is_nobodys(
    node: Running, company: Company, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "BODY_AT_ONCE_S", 0.0)
    company.sessions["sid=shared"] = {"user": "ann", "expires_in_s": 0.3}
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
    fields = f"Cookie: sid=shared\r\nOrigin: {node.url}\r\nContent-Type: application/json\r\n"
    head = f"POST /v1/questions HTTP/1.1\r\nHost: {node.url[7:]}\r\n{fields}Expect: 100-continue\r\n"
    writer.write(f"{head}Content-Length: 14\r\n\r\n".encode())
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
    company.sessions["sid=shared"] = {"user": "bo", "expires_in_s": 600}
    await eventually(lambda: signed_in(node, "sid=shared", "bo"))
    writer.write(b'{"text":"How"}')
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 401 ")
    writer.close()


async def signed_in(node: Running, cookie: str, user: str) -> bool:
    return bool((await me(node, cookie)).json().get("user") == user)


async def test_scopes_are_those_that_the_server_names(node: Running, company: Company) -> None:
    company.sessions["sid=ops"] = {"user": "ops", "expires_in_s": 60, "scope": "pushsse:publish openid"}
    company.sessions["sid=root"] = {"user": "root", "expires_in_s": 60, "scope": ["pushsse:admin"], "x": 1}
    assert (await me(node, "sid=ops")).json()["scope"] == "pushsse:publish"
    assert (await me(node, "sid=root")).json()["scope"] == "pushsse:admin"
    async with stream(node, "sid=ops") as refused:
        assert refused.response.status_code == 403


async def test_an_answer_is_kept_for_half_a_minute_and_never_past_the_end_of_the_session(
    node: Running, company: Company, asked: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    clock = {"at": now}
    monkeypatch.setattr(time, "time", lambda: clock["at"])
    company.sessions["sid=short"] = {"user": "short", "expires_in_s": 10}
    for cookie, changes in (("sid=ann", (0, 29, 31)), ("sid=short", (0, 9, 10))):
        asked.heads.clear()
        for after_s, count in zip(changes, (1, 1, 2), strict=True):
            clock["at"] = now + after_s
            assert (await me(node, cookie)).status_code == 200
            assert len(asked.heads) == count, (cookie, after_s)
    # A clock that is put back makes nothing younger.
    clock["at"] = now - 100
    await me(node, "sid=ann")
    assert len(asked.heads) == 3


async def test_no_more_answers_are_kept_than_there_is_room_for(
    node: Running, company: Company, asked: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remotes, "MOST_KEPT", 3)
    for n in range(5):
        company.sessions[f"sid={n}"] = {"user": f"u{n}", "expires_in_s": 60}
        await me(node, f"sid={n}")
    asked.heads.clear()
    for n in (4, 3, 2):
        await me(node, f"sid={n}")
    assert asked.heads == []
    await me(node, "sid=0")
    assert len(asked.heads) == 1


async def test_one_question_at_a_time_for_the_same_cookies_and_few_at_once_in_all(
    node: Running, company: Company, asked: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    # They all wait until the server is held up by as many as there may be.
    monkeypatch.setattr(remotes, "TIMEOUT_S", 30.0)
    monkeypatch.setattr(remotes, "PATIENCE_S", 30.0)
    company.hold = asyncio.Event()
    same = [asyncio.create_task(me(node, "sid=ann")) for _ in range(20)]
    await eventually(lambda: len(asked.heads) == 1)
    for n in range(100):
        company.sessions[f"sid={n}"] = {"user": f"u{n}", "expires_in_s": 60}
    others = [asyncio.create_task(me(node, f"sid={n}")) for n in range(100)]
    await eventually(lambda: asked.busy == remotes.SESSIONS_AT_ONCE)
    company.hold.set()
    replies = await asyncio.gather(*same, *others)
    assert {reply.status_code for reply in replies} == {200}
    assert len(asked.heads) == 101
    assert asked.most_busy == remotes.SESSIONS_AT_ONCE


async def test_its_401_is_passed_on_and_not_kept(node: Running, company: Company, asked: Answering) -> None:
    for status in (0, 400, 403, 431):
        company.status = status
        reply = await me(node, "sid=eve")
        assert (reply.status_code, reply.json()["code"]) == (401, "session_invalid")
        assert reply.headers["www-authenticate"].startswith('Bearer error="invalid_token"')
    async with stream(node, "sid=eve") as refused:
        assert refused.response.status_code == 401
    company.status = 0
    company.sessions["sid=eve"] = {"user": "eve", "expires_in_s": 60}
    assert (await me(node, "sid=eve")).json()["user"] == "eve"
    company.sessions["sid=over"] = {"user": "over", "expires_in_s": 0}
    assert (await me(node, "sid=over")).json()["code"] == "session_invalid"


async def test_nobody_is_asked_about_where_there_is_no_cookie(node: Running, asked: Answering) -> None:
    for headers in ({}, {"Cookie": ""}):
        reply = await node.http.get("/v1/me", headers=headers)
        assert (reply.status_code, reply.json()["code"]) == (401, "token_missing")
        assert reply.headers["www-authenticate"] == "Bearer"
    token = jwt.encode({"sub": "ann", "exp": time.time() + 60}, SECRET)
    for given in (token, "x"):
        # There is no key: what a page says of itself isn't passed over for its cookie.
        reply = await me(node, "sid=ann", Authorization=f"Bearer {given}")
        assert (reply.status_code, reply.json()["code"]) == (401, "token_invalid")
    assert asked.heads == []


async def test_a_token_in_header_or_cookie_comes_first(asked: Answering, tmp_path: Path) -> None:
    token = jwt.encode({"sub": "tok", "exp": time.time() + 60}, SECRET)
    async with serving(tmp_path, auth_url=asked.url, jwt_secret=SECRET) as node:
        assert (await me(node, f"__Host-pushsse={token}; sid=ann")).json()["user"] == "tok"
        assert (await me(node, "sid=ann", Authorization=f"Bearer {token}")).json()["user"] == "tok"
        assert (await me(node, "__Host-pushsse=x; sid=ann")).json()["code"] == "token_invalid"
        assert asked.heads == []
        assert (await me(node, "sid=ann")).json()["user"] == "ann"


ODD = (
    b"",
    b"<html>",
    b"[]",
    b'{"user": "ann"}',
    b'{"expires_in_s": 60}',
    b'{"user": "a b", "expires_in_s": 60}',
    b'{"user": "", "expires_in_s": 60}',
    b'{"user": 7, "expires_in_s": 60}',
    b'{"user": "ann", "expires_in_s": "60"}',
    b'{"user": "ann", "expires_in_s": true}',
    b'{"user": "ann", "expires_in_s": NaN}',
    b'{"user": "ann", "expires_in_s": 1e999}',
    b'{"user": "ann", "expires_in_s": 60, "scope": 7}',
    b'{"user": "\xff", "expires_in_s": 60}',
    b'{"user": "ann", "expires_in_s": 60, "x": "' + b"x" * remotes.MOST_BYTES + b'"}',
    b"[" * 9000,
)


@pytest.mark.slow
async def test_while_it_is_away_calls_get_503_and_streams_come_back(
    node: Running, company: Company, asked: Answering, caplog: pytest.LogCaptureFixture
) -> None:
    async def is_away() -> None:
        reply = await me(node, "sid=secret")
        assert (reply.status_code, reply.json()["code"]) == (503, "unavailable")
        assert int(reply.headers["retry-after"]) > 0
        async with stream(node, "sid=secret") as busy:
            assert busy.response.status_code == 200
            [said] = await busy.rest()
            assert json.loads(said.data)["code"] == "overloaded"
            assert b"retry:" in busy.raw

    location = f"Location: {asked.url}\r\n"
    for status, body, more in ((500, b"", ""), (302, b"", location), (404, b"", ""), (204, b"", "")):
        company.status, company.body, company.more = status, body, more
        asked.heads.clear()
        await is_away()
        assert len(asked.heads) == 2
    company.more = ""
    for body in ODD:
        company.status, company.body = 200, body
        reply = await me(node, "sid=secret")
        assert reply.status_code == 503, body[:80]
    company.status, company.hold = 0, asyncio.Event()
    began = time.monotonic()
    await is_away()
    assert time.monotonic() - began < 2 * remotes.TIMEOUT_S + 2
    company.hold = None
    await asked.down()
    await is_away()
    await asked.up()
    assert (await me(node, "sid=ann")).status_code == 200
    assert "secret" not in caplog.text
    lines = [line for line in caplog.messages if "sessions at" in line]
    assert 1 <= len(lines) < 10


async def test_a_cookie_that_the_server_sets_goes_to_nobody_else(
    node: Running, company: Company, asked: Answering
) -> None:
    company.more = "Set-Cookie: sid=ann; Path=/\r\n"
    await me(node, "sid=ann")
    assert (await me(node, "theme=dark")).status_code == 401
    assert "ann" not in asked.heads[-1]


async def test_a_page_of_another_site_cannot_use_a_session(node: Running, asked: Answering) -> None:
    evil = {"Cookie": "sid=ann", "Origin": "https://evil.example"}
    for path in ("/v1/stream", "/v1/me", "/v1/events"):
        assert (await node.http.get(path, headers=evil)).json()["code"] == "origin_refused"
    for headers in (evil, {"Cookie": "sid=ann"}):
        reply = await node.http.post("/v1/questions", json={"text": "How?"}, headers=headers)
        assert (reply.status_code, reply.json()["code"]) == (403, "origin_refused")
    assert asked.heads == []
    for origin in (node.url, FRIEND):
        reply = await node.http.post(
            "/v1/preferences", json={"types": {}}, headers={"Cookie": "sid=ann", "Origin": origin}
        )
        assert reply.status_code == 200


@pytest.mark.slow
async def test_a_stream_ends_with_its_session_and_goes_on_with_one_that_goes_on(
    node: Running, company: Company, asked: Answering
) -> None:
    for name in ("lapses", "stays", "changes", "narrows"):
        company.sessions[f"sid={name}"] = {"user": name, "expires_in_s": 1.5}
    streams = {name: stream(node, f"sid={name}") for name in ("lapses", "stays", "changes", "narrows")}
    async with streams["lapses"], streams["stays"], streams["changes"], streams["narrows"]:
        for each in streams.values():
            assert (await each.ready())["expires_in_s"] <= 1
        del company.sessions["sid=lapses"]
        company.sessions["sid=stays"]["expires_in_s"] = 600
        company.sessions["sid=changes"]["user"] = "somebody"
        company.sessions["sid=narrows"]["scope"] = "pushsse:ask"
        for name in ("lapses", "changes", "narrows"):
            said = json.loads((await streams[name].until("exception")).data)
            assert (said["code"], said["retry"]) == ("token_expired", False)
            assert await streams[name].rest() == []
        assert len([head for head in asked.heads if "sid=stays" in head]) == 2
        company.sessions["sid=ops"] = {"user": "ops", "expires_in_s": 60, "scope": "pushsse:publish"}
        reply = await node.http.post(
            "/v1/events",
            json={"type": "news", "message": 7, "to": {"users": ["stays"]}},
            headers={"Cookie": "sid=ops", "Origin": node.url},
        )
        assert reply.status_code == 202
        assert await streams["stays"].messages(1) == [7]


@pytest.mark.slow
async def test_where_nobody_knows_whether_a_session_goes_on_its_stream_comes_back(
    node: Running, company: Company, asked: Answering
) -> None:
    company.sessions["sid=ann"]["expires_in_s"] = 1.5
    async with stream(node, "sid=ann") as one:
        await one.ready()
        await asked.down()
        said = json.loads((await one.until("exception")).data)
        assert (said["code"], said["retry"]) == ("overloaded", True)


@pytest.mark.slow
async def test_after_a_kick_a_session_is_asked_about_anew(
    node: Running, company: Company, asked: Answering
) -> None:
    company.sessions["sid=root"] = {"user": "root", "expires_in_s": 60, "scope": "pushsse:admin"}
    async with stream(node, "sid=ann") as one, stream(node, "sid=bo") as other:
        await one.ready()
        await other.ready()
        headers = {"Cookie": "sid=root", "Origin": node.url, "Content-Type": "application/json"}
        assert (await node.http.post("/v1/users/ann/kick", headers=headers)).status_code == 200
        assert json.loads((await one.until("exception")).data)["code"] == "revoked"
        assert len(node.node.hub.subscribers_of("bo")) == 1
    asked.heads.clear()
    # The company knows: its session is over, or isn't.
    async with stream(node, "sid=ann") as again:
        assert (await again.ready())["user"] == "ann"
    assert 1 <= len(asked.heads) <= 2
    del company.sessions["sid=ann"]
    assert (await node.http.post("/v1/users/ann/kick", headers=headers)).status_code == 200
    assert (await me(node, "sid=ann")).json()["code"] == "session_invalid"
