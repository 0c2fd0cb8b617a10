"""`GET /v1/events?wait_s=`: polls that wait, whichever way they are held."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest

from pushsse.backplane import Append, Draft
from pushsse.event import encode
from pushsse.server import Http
from pushsse.stream.handover import HandoverHttp
from pushsse.stream.immediate import ImmediateHttp
from tests.serving import Running, serving
from tests.waiting import eventually

pytestmark = pytest.mark.anyio
SECRET = "a secret of thirty-two bytes and more"


@pytest.fixture(params=[ImmediateHttp, HandoverHttp, "h11"], ids=["immediate", "handover", "h11"])
def http(request: pytest.FixtureRequest) -> Http:
    found: Http = request.param
    return found


@pytest.fixture
async def node(tmp_path: Path, http: Http) -> AsyncIterator[Running]:
    async with serving(tmp_path, http=http) as running:
        yield running


async def now(node: Running, user: str = "ann") -> str:
    return str((await node.http.get(f"/v1/events?user={user}")).json()["position"])


def poll(node: Running, query: str, user: str = "ann") -> "asyncio.Task[httpx.Response]":
    return asyncio.create_task(node.http.get(f"/v1/events?user={user}&{query}"))


async def until_waiting(node: Running, count: int = 1) -> None:
    await eventually(lambda: len(node.node.hub.subscribers) == count)


async def test_a_poll_that_waits_answers_with_the_first_event_and_its_place(node: Running) -> None:
    start = await now(node)
    waiting = poll(node, f"after={start}&wait_s=20")
    await until_waiting(node)
    await node.publish("alarm", "for bo", "bo")
    await node.publish("alarm", {"n": 1}, "ann", id="one")
    reply = await waiting
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["cache-control"] == "no-store"
    found = reply.json()
    [event] = found["events"]
    assert (event["event"], event["data"]["id"], event["data"]["message"]) == ("alarm", "one", {"n": 1})
    assert (found["gap"], found["more"], found["position"]) == (False, False, event["id"])
    # Nothing twice, nothing lost.
    await node.publish("alarm", 2, "ann")
    again = (await node.http.get(f"/v1/events?user=ann&after={found['position']}&wait_s=20")).json()
    assert [each["data"]["message"] for each in again["events"]] == [2]
    await until_waiting(node, 0)


async def test_what_is_there_already_is_answered_at_once_and_a_gap_too(node: Running) -> None:
    start = await now(node)
    await node.publish("alarm", 1)
    began = time.monotonic()
    found = (await node.http.get(f"/v1/events?user=ann&after={start}&wait_s=30")).json()
    assert [each["data"]["message"] for each in found["events"]] == [1]
    assert (await node.http.get("/v1/events?user=ann&after=nonsense&wait_s=30")).json()["gap"]
    assert (await node.http.head("/v1/events?user=ann&wait_s=30")).status_code == 200
    assert time.monotonic() - began < 10


async def test_it_ends_after_its_time_with_the_position(node: Running) -> None:
    start = await now(node)
    began = time.monotonic()
    found = (await node.http.get(f"/v1/events?user=ann&after={start}&wait_s=1")).json()
    assert 0.4 < time.monotonic() - began < 10
    assert found == {"events": [], "position": start, "gap": False, "more": False}
    assert node.node.metrics.endings["waited"] == 1
    for wrong in ("-1", "31", "1.5", "x"):
        reply = await node.http.get(f"/v1/events?user=ann&wait_s={wrong}")
        assert reply.status_code == 400
        assert "wait_s" in reply.json()["detail"]
        assert wrong in reply.json()["detail"]


async def test_pings_pass_a_poll_that_waits_and_keep_its_position_where_the_node_is(
    tmp_path: Path, http: Http
) -> None:
    async with serving(tmp_path, http=http, heartbeat_s=0.2) as node:
        start = await now(node)
        waiting = poll(node, f"after={start}&wait_s=1&types=news")
        await until_waiting(node)
        await node.publish("alarm", 1)
        moved = await now(node)
        found = (await waiting).json()
    assert start != moved
    assert found == {"events": [], "position": moved, "gap": False, "more": False}


async def test_types_limit_and_switches_hold_for_a_poll_that_waits(node: Running) -> None:
    await node.publish("news", 0)
    await node.publish("alarm", 0)
    await node.until_known("news", "alarm")
    start = await now(node)
    waiting = poll(node, f"after={start}&wait_s=20&types=news")
    everything = poll(node, "wait_s=20", "bo")
    await until_waiting(node, 2)
    await node.switch("bo", alarm=False)
    told = (await everything).json()
    assert [each["event"] for each in told["events"]] == ["preferences"]
    everything = poll(node, f"after={told['position']}&wait_s=20", "bo")
    await until_waiting(node, 2)
    await node.publish("alarm", 1)
    await node.publish("news", 2)
    for task in (waiting, everything):
        assert [each["data"]["message"] for each in (await task).json()["events"]] == [2]


async def test_a_batch_over_the_limit_is_cut_and_goes_on_after_its_position(node: Running) -> None:
    start = await now(node)
    waiting = poll(node, f"after={start}&wait_s=20&limit=2")
    await until_waiting(node)
    lines = "".join(json.dumps({"type": "x", "to": "all", "message": n}) + "\n" for n in range(5))
    headers = {"Content-Type": "application/x-ndjson"}
    await node.http.post("/v1/events", content=lines, headers=headers)
    found = (await waiting).json()
    messages = [each["data"]["message"] for each in found["events"]]
    while len(messages) < 5:
        query = f"/v1/events?user=ann&after={found['position']}&wait_s=20&limit=2"
        found = (await node.http.get(query)).json()
        assert 1 <= len(found["events"]) <= 2
        messages += [each["data"]["message"] for each in found["events"]]
    assert messages == [0, 1, 2, 3, 4]


async def test_of_a_burst_each_poll_gets_its_own_number_and_no_more_than_100(tmp_path: Path) -> None:
    async with serving(tmp_path, max_streams_per_user=0) as node:
        start = await now(node)
        limits = (1, 2, 100, 1_000)
        polls = [poll(node, f"after={start}&wait_s=20&limit={limit}") for limit in limits]
        await until_waiting(node, len(limits))
        made = [encode("x", {"id": str(n)}, users=None, switchable=True) for n in range(150)]
        await node.node.backplane.publish([Append("all", tuple(Draft(each) for each in made))])
        for limit, task in zip(limits, polls, strict=True):
            found = (await task).json()
            told = [each["data"]["id"] for each in found["events"]]
            assert told == [str(n) for n in range(min(limit, 100))]
            assert (found["more"], found["position"]) == (True, found["events"][-1]["id"])


async def test_a_client_that_leaves_frees_its_poll_at_once(node: Running) -> None:
    held = await node.connect()
    held.sendall(b"GET /v1/events?user=ann&wait_s=30 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await until_waiting(node)
    held.close()
    await until_waiting(node, 0)
    assert node.node.metrics.endings["disconnected"] == 1
    assert node.node.hub.users() == []


async def test_stop_kick_and_one_too_many_answer_what_waits_with_200_and_the_position(
    tmp_path: Path, http: Http
) -> None:
    async with serving(tmp_path, http=http, max_streams_per_user=2) as node:
        start = await now(node)
        first = poll(node, f"after={start}&wait_s=30")
        await until_waiting(node)
        others = [poll(node, f"after={start}&wait_s=30") for _ in range(2)]
        empty = {"events": [], "position": start, "gap": False, "more": False}
        assert (await first).json() == empty
        await until_waiting(node, 2)
        assert node.node.metrics.limited["streams_per_user"] == 1
        assert (await node.http.post("/v1/users/ann/kick")).status_code == 200
        for other in others:
            assert (await other).json() == empty
        last = poll(node, "wait_s=30", "bo")
        await until_waiting(node)
        node.stop()
        reply = await last
        assert (reply.status_code, reply.json()["events"]) == (200, [])


async def test_a_poll_ends_with_its_token_and_a_full_node_has_no_room_for_one(
    tmp_path: Path, http: Http
) -> None:
    async with serving(tmp_path, http=http, jwt_secret=SECRET, max_streams=1, token_leeway_s=0) as node:

        def bearer(lives_s: float) -> dict[str, str]:
            token = jwt.encode({"sub": "ann", "exp": int(time.time() + lives_s)}, SECRET, "HS256")
            return {"Authorization": f"Bearer {token}"}

        waiting = asyncio.create_task(node.http.get("/v1/events?wait_s=30", headers=bearer(3)))
        await until_waiting(node)
        refused = await node.http.get("/v1/events?wait_s=30", headers=bearer(60))
        assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
        assert 1 <= int(refused.headers["retry-after"]) <= 15
        assert (await node.http.get("/v1/events", headers=bearer(60))).status_code == 200
        began = time.monotonic()
        assert (await waiting).json()["events"] == []
        assert time.monotonic() - began < 15
        assert node.node.metrics.endings["token_expired"] == 1


async def test_answers_that_grow_dont_end_a_wait_and_their_end_does(tmp_path: Path, http: Http) -> None:
    async with serving(tmp_path, http=http) as node:
        start = await now(node)
        waiting = poll(node, f"after={start}&wait_s=30")
        await until_waiting(node)
        asked = await node.http.post("/v1/questions?user=ann", json={"text": "hello?"})
        assert asked.status_code == 202
        names: list[str] = []
        position, task = start, waiting
        while "answer" not in names:
            found: dict[str, Any] = (await task).json()
            names += [each["event"] for each in found["events"]]
            position = found["position"]
            task = poll(node, f"after={position}&wait_s=30")
        task.cancel()
        assert set(names) <= {"question", "answer"}


async def test_many_polls_that_wait_share_one_answer_and_take_no_task(tmp_path: Path) -> None:
    async with serving(tmp_path, http=ImmediateHttp, max_streams_per_user=0) as node:
        connections = [await node.connect() for _ in range(50)]
        before = len(asyncio.all_tasks())
        for connection in connections:
            connection.sendall(b"GET /v1/events?user=ann&wait_s=30 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await until_waiting(node, 50)
        await eventually(lambda: len(asyncio.all_tasks()) <= before)
        await node.publish("x", 1)
        bodies = {await asyncio.to_thread(_rest, connection) for connection in connections}
        assert len(bodies) == 1


def _rest(connection: Any) -> bytes:
    found = b""
    with connection:
        while more := connection.recv(65_536):
            found += more
    assert b"connection: close" in found.lower()
    return found.partition(b"\r\n\r\n")[2]
