"""The calls as their users meet them: what is taken, what is refused and how, and who may."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import jwt
import pytest

from pushsse.api.files import DEVELOPMENT_PAGE, PAGE
from tests.serving import Running, serving
from tests.waiting import eventually

pytestmark = pytest.mark.anyio
SECRET = "a secret of thirty-two bytes and more"
EVENT = {"type": "news", "message": 1, "to": "all"}


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Running]:
    async with serving(tmp_path) as running:
        yield running


def token(user: str = "ann", *, secret: str = SECRET, algorithm: str = "HS256", **claims: object) -> str:
    return jwt.encode({"sub": user, "exp": time.time() + 60} | claims, secret, algorithm)


BAD_EVENTS = [
    (b"", 400, "$"),
    (b"{", 400, "$"),
    (b"\xff", 400, "$"),
    (b'{"type":"a","message":NaN,"to":"all"}', 400, "$"),
    (b"[]", 422, "$"),
    (b'{"message":1,"to":"all"}', 422, "$.type"),
    (b'{"type":"a","to":"all"}', 422, "$.message"),
    (b'{"type":"a","message":1}', 422, "$.to"),
    (b'{"type":"a b","message":1,"to":"all"}', 422, "$.type"),
    (b'{"type":"ping","message":1,"to":"all"}', 422, "$.type"),
    (b'{"type":"pushsse.x","message":1,"to":"all"}', 422, "$.type"),
    (b'{"type":"a","message":1,"to":"some"}', 422, "$.to"),
    (b'{"type":"a","message":1,"to":{"users":[]}}', 422, "$.to.users"),
    (b'{"type":"a","message":1,"to":{"users":["a b"]}}', 422, "$.to.users[0]"),
    (b'{"type":"a","message":1,"to":{"users":["a\\n"]}}', 422, "$.to.users[0]"),
    (b'{"type":"a","message":1,"to":{"users":["a"],"groups":["g"]}}', 422, "$.to.groups"),
    (b'{"type":"a","message":1,"to":"all","extra":7}', 422, "$.extra"),
    (b'{"type":"a","message":"\\ud800","to":"all"}', 422, "$.message"),
    (b'{"type":"a","message":"a\\u0000b","to":"all"}', 422, "$.message"),
    (b'{"type":"a","message":' + b"[" * 70 + b"]" * 70 + b',"to":"all"}', 422, "$.message"),
    (b'{"type":"a","message":' + b"[" * 90_000 + b"]" * 90_000 + b',"to":"all"}', 422, "$"),
    (b'{"type":"a","message":"' + b"x" * 50_000 + b'","to":"all"}', 422, "$.message"),
    (b'{"type":"a","message":1,"to":"all","id":""}', 422, "$.id"),
    (b'{"type":"a","message":1,"to":"all","id":"a\\nb"}', 422, "$.id"),
    (b'{"type":"a","message":1,"to":"all","ttl_s":0}', 422, "$.ttl_s"),
    (b'{"type":"a","message":1,"to":"all","ts":"yesterday"}', 422, "$.ts"),
    (b'{"type":"a","message":1,"to":"all","ts":"0001-01-01T00:00:00+05:00"}', 422, "$.ts"),
    (b'{"type":"a","message":' + b"9" * 5000 + b',"to":"all"}', 422, "$"),
]


@pytest.mark.parametrize(("body", "status", "at"), BAD_EVENTS, ids=range(len(BAD_EVENTS)))
async def test_a_bad_event_is_refused_by_field_and_value(
    node: Running, body: bytes, status: int, at: str
) -> None:
    reply = await node.http.post("/v1/events", content=body)
    assert reply.status_code == status
    assert reply.headers["content-type"] == "application/problem+json"
    problem = reply.json()
    assert problem["status"] == status
    assert problem["title"]
    assert problem["errors"][0]["at"].startswith(at)
    assert not node.node.metrics.appended


async def test_good_lines_beside_bad_ones_are_taken(node: Running) -> None:
    lines = [
        json.dumps(EVENT),
        "{",
        json.dumps(EVENT | {"type": "b d"}),
        "",
        json.dumps(EVENT | {"id": "mine"}),
    ]
    reply = await node.http.post("/v1/events", content="\n".join(lines))
    assert reply.status_code == 202
    body = reply.json()
    assert body["accepted"] == 2
    assert body["ids"][1] == "mine"
    assert [rejected["line"] for rejected in body["rejected"]] == [2, 3]
    assert body["rejected"][1]["errors"][0]["at"] == "$.type"
    assert "b d" in body["rejected"][1]["errors"][0]["detail"]
    none = await node.http.post("/v1/events", content='{"a":1}\n{"b":2}\n')
    assert none.status_code == 422


async def test_one_id_for_many_people_reaches_each_and_a_repeat_is_told(node: Running) -> None:
    people = [f"user-{i}" for i in range(300)]
    lines = [json.dumps(EVENT | {"id": "order-1", "to": {"users": [user]}}) for user in people]
    reply = (await node.http.post("/v1/events", content="\n".join(lines))).json()
    assert (reply["accepted"], reply["repeated"]) == (300, 0)
    for user in (people[0], people[299]):
        read = (await node.http.get(f"/v1/events?user={user}&since=1m")).json()
        assert [event["data"]["id"] for event in read["events"]] == ["order-1"]
    more = EVENT | {"id": "order-1", "to": {"users": [*people[:3], "new"]}}
    assert (await node.http.post("/v1/events", json=more)).json()["repeated"] == 3
    assert len((await node.http.get("/v1/events?user=new&since=1m")).json()["events"]) == 1
    assert len((await node.http.get("/v1/events?user=user-0&since=1m")).json()["events"]) == 1
    everybody = [
        (await node.http.post("/v1/events", json=EVENT | {"id": "order-1"})).json() for _ in range(2)
    ]
    assert [told["repeated"] for told in everybody] == [0, 1]


async def test_an_event_expires_in_polls_and_replays(node: Running) -> None:
    async with node.stream("ann") as stream:
        start = (await stream.next()).id
        began = datetime.now(UTC) - timedelta(seconds=59.3)
        await node.publish("news", "brief", ts=began.isoformat(), ttl_s=60)
        await node.publish("news", "lasting")
        assert await stream.messages(2) == ["brief", "lasting"]

    async def polled() -> list[object]:
        reply = await node.http.get(f"/v1/events?user=ann&after={start}")
        return [each["data"]["message"] for each in reply.json()["events"]]

    assert await polled() == ["brief", "lasting"]

    async def expired() -> bool:
        return await polled() == ["lasting"]

    await eventually(expired)
    async with node.stream("ann", Last_Event_ID=start) as stream:
        assert (await stream.ready())["resume"] == "complete"
        assert await stream.messages(1) == ["lasting"]


async def test_a_time_at_an_edge_is_the_same_live_in_a_replay_and_by_poll(node: Running) -> None:
    async with node.stream("ann") as stream:
        start = (await stream.next()).id
        for ts in ("9999-12-31T23:59:59Z", "2038-01-19T03:14:08Z", "1970-01-01T00:00:00Z"):
            await node.publish("news", ts, ts=ts)
        for ts in ("1969-12-31T23:59:59Z", "0001-01-01T00:00:00Z"):
            reply = await node.http.post("/v1/events", json=EVENT | {"ts": ts})
            assert reply.status_code == 422
        await node.publish("news", "last")
        wanted = ["9999-12-31T23:59:59Z", "2038-01-19T03:14:08Z", "last"]
        assert await stream.messages(3) == wanted
    async with node.stream("ann", Last_Event_ID=start) as stream:
        assert await stream.messages(3) == wanted
    reply = await node.http.get(f"/v1/events?user=ann&after={start}")
    assert [each["data"]["message"] for each in reply.json()["events"]] == wanted


WORDS = [
    ("/v1/events", EVENT | {"type": "a b"}, "order.paid"),
    ("/v1/events", EVENT | {"id": "a\n"}, "order-981-paid"),
    ("/v1/events", EVENT | {"to": {"users": ["a", "b c"]}}, "ann"),
    ("/v1/questions", {"text": "   "}, "refund"),
    ("/v1/questions", {"text": "a", "conversation": "a b"}, "order-981"),
]


@pytest.mark.parametrize(("path", "body", "example"), WORDS)
async def test_what_is_allowed_is_said_in_words_with_an_example(
    node: Running, path: str, body: object, example: str
) -> None:
    reply = await node.http.post(f"{path}?user=ann", json=body)
    assert reply.status_code == 422
    assert example in reply.json()["detail"]
    assert "regex" not in reply.text


async def test_any_other_body_with_a_type_is_a_text_message(node: Running) -> None:
    async with node.stream("ann") as stream:
        await stream.ready()
        reply = await node.http.post("/v1/events?type=deploy&to=all", content="deployed\n")
        assert reply.status_code == 202
        form = {"content-type": "application/x-www-form-urlencoded"}
        await node.http.post("/v1/events?type=deploy&to=ann", content="for ann", headers=form)
        assert await stream.messages(2) == ["deployed\n", "for ann"]
    assert (await node.http.post("/v1/events?type=deploy", content="x")).status_code == 400
    assert (await node.http.post("/v1/events?type=a%20b&to=all", content="x")).status_code == 422
    assert (
        await node.http.post("/v1/events", content="x", headers={"content-type": "text/csv"})
    ).status_code == 415


async def test_bodies_over_their_limit_are_a_413(node: Running) -> None:
    big = b'{"text":"' + b"x" * 70_000 + b'"}'
    assert (await node.http.post("/v1/questions?user=ann", content=big)).status_code == 413
    assert (await node.http.post("/v1/preferences?user=ann", content=big)).status_code == 413
    events = json.dumps(EVENT).encode() + b" " * 1_100_000
    assert (await node.http.post("/v1/events", content=events)).status_code == 413


async def test_a_body_that_does_not_end_is_cut_off(node: Running) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(node.url.rsplit(":", 1)[1]))
    writer.write(
        b"POST /v1/preferences?user=ann HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    for _ in range(3):
        writer.write(b"8000\r\n" + b" " * 0x8000 + b"\r\n")
    answer = await asyncio.wait_for(reader.read(), 5)
    assert answer.startswith(b"HTTP/1.1 413")
    writer.close()


async def test_an_expired_event_is_neither_delivered_nor_replayed(node: Running) -> None:
    async with node.stream("ann") as stream:
        await stream.ready()
        await node.publish("news", "old", ts="2020-01-01T00:00:00Z", ttl_s=10)
        await node.publish("news", "short", ttl_s=1)
        await node.publish("news", "long")
        assert await stream.messages(2) == ["short", "long"]
    assert node.node.metrics.expired == 1
    await eventually(lambda: time.time() % 1 < 0.05)
    await asyncio.sleep(1.1)  # the time to live itself has to pass
    again = await node.http.get("/v1/events?user=ann&since=1h")
    assert [event["data"]["message"] for event in again.json()["events"]] == ["long"]


async def test_a_producers_own_id_is_taken_once(node: Running) -> None:
    async with node.stream("ann") as stream:
        await stream.ready()
        for _ in range(3):
            await node.publish("news", "once", id="order-1")
        await node.publish("other", "another type", id="order-1")
        assert await stream.messages(2) == ["once", "another type"]
    assert node.node.metrics.repeated == 2


async def test_events_as_json_are_what_the_stream_would_say(node: Running) -> None:
    start = (await node.http.get("/v1/events?user=ann")).json()
    assert start == {"events": [], "position": start["position"], "gap": False, "more": False}
    for number in range(5):
        await node.publish("news", number, "ann" if number % 2 else "all")
    await node.publish("alarm", "other", "bo")
    first = (await node.http.get(f"/v1/events?user=ann&after={start['position']}&limit=3")).json()
    assert [event["data"]["message"] for event in first["events"]] == [0, 1, 2]
    assert first["more"] is True
    assert first["position"] == first["events"][-1]["id"]
    rest = (await node.http.get(f"/v1/events?user=ann&after={first['position']}&types=news")).json()
    assert [event["event"] for event in rest["events"]] == ["news", "news"]
    assert (rest["more"], rest["gap"]) == (False, False)
    assert (await node.http.get("/v1/events?user=ann&after=nonsense")).json()["gap"] is True
    assert (await node.http.get("/v1/events?user=ann&limit=0")).status_code == 400


async def test_preferences_are_read_and_changed_and_bad_ones_named(node: Running) -> None:
    await node.publish("news", 1)
    await node.publish("alarm", 1)
    await node.until_known("news", "alarm")
    reply = await node.http.post("/v1/preferences?user=ann", json={"types": {"alarm": False}})
    assert reply.status_code == 200
    assert [(t["name"], t["enabled"], t["mandatory"]) for t in reply.json()["types"]] == [
        ("news", True, False),
        ("alarm", False, False),
    ]
    assert set(reply.json()["types"][0]) == {
        "name",
        "title",
        "description",
        "category",
        "enabled",
        "mandatory",
    }
    assert (await node.http.get("/v1/preferences?user=ann")).json() == reply.json()
    for body, status, at in (
        ({"types": {"unknown": True}}, 422, "$.types.unknown"),
        ({"types": {"news": "no"}}, 422, "$.types"),
        ({"types": {}, "quiet": True}, 422, "$.quiet"),
        ({}, 422, "$.types"),
    ):
        refused = await node.http.post("/v1/preferences?user=ann", json=body)
        assert refused.status_code == status
        assert refused.json()["errors"][0]["at"].startswith(at)
    assert (await node.http.post("/v1/preferences?user=ann", content=b"{")).status_code == 400


async def test_unknown_paths_and_methods_are_problems_too(node: Running) -> None:
    for reply, status in (
        (await node.http.get("/nowhere"), 404),
        (await node.http.delete("/v1/events"), 405),
        (await node.http.post("/v1/stream"), 405),
    ):
        assert (reply.status_code, reply.headers["content-type"]) == (status, "application/problem+json")


async def test_development_identity_is_for_this_machine_alone(node: Running) -> None:
    for headers in (
        {"X-Forwarded-For": "10.0.0.1"},
        {"Forwarded": "for=10.0.0.1"},
        {"Host": "evil.example"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
    ):
        reply = await node.http.get("/v1/preferences?user=ann", headers=headers)
        assert (reply.status_code, reply.json()["code"]) == (403, "development_only"), headers
    same = {"Origin": node.url}
    assert (await node.http.get("/v1/preferences?user=ann", headers=same)).status_code == 200
    assert (await node.http.get("/v1/preferences?user=a%20b")).status_code == 400


async def test_tokens_say_who_and_what(tmp_path: Path) -> None:
    async with serving(tmp_path, jwt_secret=SECRET) as node:

        async def ask(path: str = "/v1/preferences", **headers: str) -> tuple[int, str]:
            reply = await node.http.get(path, headers=headers)
            return reply.status_code, reply.json().get("code", "")

        def bearer(value: str) -> dict[str, str]:
            return {"Authorization": f"Bearer {value}"}

        assert await ask() == (401, "token_missing")
        assert await ask("/v1/preferences?user=ann") == (401, "token_missing")
        assert await ask(**bearer(token())) == (200, "")
        assert await ask(Cookie=f"__Host-pushsse={token()}") == (200, "")
        # Among others, in quotes, with blanks; of several the last one counts.
        assert await ask(Cookie=f'a; b="c\\";__Host-pushsse=x; __Host-pushsse = "{token()}" ;=') == (200, "")
        for other in ("__host-pushsse={}", "a__Host-pushsse={}", '__Host-pushsse="{}', "__Host-pushsse"):
            assert (await ask(Cookie=other.format(token())))[0] == 401
        assert await ask(**bearer(token(exp=time.time() - 5))) == (401, "token_expired")
        assert await ask(**bearer(token(nbf=time.time() + 50))) == (401, "token_not_yet_valid")
        # The clock of whoever makes tokens may be ahead; an end is an end.
        assert (await ask(**bearer(token(nbf=time.time() + 20, iat=time.time() + 20))))[0] == 200
        assert await ask(**bearer(token(exp=time.time() - 1))) == (401, "token_expired")
        assert await ask(**bearer(token(secret="x" * 40))) == (401, "token_invalid")
        assert await ask(**bearer(token(algorithm="none", secret=""))) == (401, "token_invalid")
        assert await ask(**bearer("nonsense")) == (401, "token_invalid")
        assert await ask(**bearer(jwt.encode({"sub": "ann"}, SECRET))) == (401, "token_invalid")
        assert await ask(**bearer(token(user="a b"))) == (401, "token_invalid")
        assert await ask(Authorization="Basic abc") == (401, "token_missing")
        assert await ask(Authorization="Basic abc", Cookie=f"__Host-pushsse={token()}") == (200, "")
        assert await ask(Authorization="Bearer") == (401, "token_invalid")
        assert await ask(**bearer(token(scope="pushsse:stream"))) == (403, "scope_missing")
        assert await ask(**bearer(token(scp=["pushsse:preferences"]))) == (200, "")
        # A header that is there decides, also when it is wrong and a cookie is right.
        assert (await ask(Authorization="Bearer x", Cookie=f"__Host-pushsse={token()}"))[0] == 401
        refused = await node.http.post("/v1/events", json=EVENT, headers=bearer(token()))
        assert refused.json()["code"] == "scope_missing"
        taken = await node.http.post(
            "/v1/events", json=EVENT, headers=bearer(token(scope="pushsse:publish x"))
        )
        assert taken.status_code == 202


async def test_a_refusal_carries_the_challenge_of_rfc_6750(tmp_path: Path) -> None:
    async with serving(tmp_path, jwt_secret=SECRET, auth_user_claim='na"m\\é') as node:

        async def challenge(**headers: str) -> str:
            reply = await node.http.post("/v1/preferences", json={"types": {}}, headers=headers)
            assert reply.headers["content-type"] == "application/problem+json"
            assert reply.json()["status"] == reply.status_code
            return str(reply.headers["www-authenticate"])

        assert await challenge() == "Bearer"
        assert await challenge(Authorization="Basic abc") == "Bearer"
        expired = f"Bearer {token(exp=time.time() - 5)}"
        said = 'Bearer error="invalid_token", error_description="{}"'
        assert await challenge(Authorization=expired) == said.format("the token has expired")
        assert await challenge(Authorization=f"Bearer {token()}") == said.format(
            "the claim 'na?m???' doesn't name a user"
        )
    async with serving(tmp_path, jwt_secret=SECRET) as node:
        reader = f"Bearer {token(scope='pushsse:stream')}"
        assert await challenge(Authorization=reader) == (
            'Bearer error="insufficient_scope", scope="pushsse:preferences"'
        )


async def test_me_says_who_is_asking(tmp_path: Path) -> None:
    async with serving(tmp_path, jwt_secret=SECRET) as node:
        for given, scope in (
            ("pushsse:publish", "pushsse:publish"),
            ("", "pushsse:stream pushsse:ask pushsse:preferences"),
            ("pushsse:admin pushsse:stream pushsse:nothing", "pushsse:stream pushsse:admin"),
        ):
            headers = {"Authorization": f"Bearer {token(scope=given)}"}
            reply = await node.http.get("/v1/me", headers=headers)
            me = reply.json()
            assert 55 <= me.pop("expires_in_s") <= 60
            assert (reply.status_code, me) == (200, {"user": "ann", "scope": scope})
        assert (await node.http.get("/v1/me")).json()["code"] == "token_missing"
    async with serving(tmp_path) as node:
        me = (await node.http.get("/v1/me?user=bo")).json()
        assert (me["user"], me["expires_in_s"]) == ("bo", None)
        assert me["scope"].split()[-1] == "pushsse:admin"


async def test_a_type_that_is_not_in_the_catalogue_is_refused_where_that_is_set(tmp_path: Path) -> None:
    async with serving(tmp_path, new_types="refuse") as node:
        await eventually(lambda: not node.node.catalogue.admits("news"))
        reply = await node.http.post("/v1/events", json=EVENT)
        assert reply.status_code == 422
        assert "news" in reply.json()["errors"][0]["detail"]


async def test_health_and_metrics(node: Running) -> None:
    assert (await node.http.get("/livez")).json() == {"status": "alive"}
    assert (await node.http.get("/readyz")).json()["status"] == "ready"
    async with node.stream("ann") as stream:
        await stream.ready()
        await node.publish("news", 1)
        await stream.messages(1)
        text = (await node.http.get("/metrics")).text
        for line in (
            "pushsse_connections 1.0",
            "pushsse_deliveries_total 1.0",
            "pushsse_appended_total 1.0",
            'pushsse_resumes_total{outcome="new"} 1.0',
        ):
            assert line in text.splitlines()
    node.node.draining = True
    reply = await node.http.get("/readyz")
    assert (reply.status_code, reply.json()["status"]) == (503, "draining")


async def test_the_page_and_its_files_are_served(node: Running) -> None:
    page = await node.http.get("/")
    assert page.headers["content-type"].startswith("text/html")
    for name in ("main.js", "development.js", "page.css"):
        assert f'"page/{name}"' in page.text
    for path in PAGE | DEVELOPMENT_PAGE:
        reply = await node.http.get(path)
        assert reply.status_code == 200
        # What a script imports is there, too.
        for imported in re.findall(r'from "\./([a-z]+\.js)"', reply.text):
            assert f"/page/{imported}" in PAGE | DEVELOPMENT_PAGE


@pytest.mark.anyio
async def test_a_page_of_this_machine_may_call_in_development_where_it_is_named(tmp_path: Path) -> None:
    here, elsewhere = "http://127.0.0.1:5173", "https://evil.example"
    async with serving(tmp_path, allowed_origins=(here, elsewhere)) as node:
        statuses = [
            (await node.http.get("/v1/preferences?user=ann", headers={"origin": origin})).status_code
            for origin in (here, elsewhere, "http://127.0.0.1:5174", "http://[", "null")
        ]
    assert statuses == [200, 403, 403, 403, 403]
