"""Acks: what is read on one device is read on all, in replays and polls, too. What is unread is counted."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from deploy.parts import Redis
from pushsse.api import acks
from tests.serving import Running, serving
from tests.waiting import eventually

pytestmark = pytest.mark.anyio


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Running]:
    async with serving(tmp_path) as running:
        yield running


async def ack(node: Running, user: str = "ann", **body: object) -> None:
    reply = await node.http.post(f"/v1/acks?user={user}", json=body)
    assert (reply.status_code, reply.content) == (204, b""), reply.text


async def unread(node: Running, user: str = "ann", query: str = "") -> dict[str, Any]:
    reply = await node.http.get(f"/v1/unread?user={user}&{query}")
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


async def test_an_ack_reaches_all_devices_in_its_place_live_in_replays_and_in_polls(node: Running) -> None:
    start = (await node.http.get("/v1/events?user=ann")).json()["position"]
    async with node.stream("ann") as phone, node.stream("ann", "types=news") as desk, node.stream("bo") as bo:
        for stream in (phone, desk, bo):
            await stream.ready()
        one = await node.publish("news", 1)
        two = await node.publish("news", 2, "ann")
        await ack(node, ids=[one, two, one], state="read")
        await node.publish("news", 3)
        for stream in (phone, desk):
            events = [await stream.next() for _ in range(4)]
            assert [event.event for event in events] == ["news", "news", "ack", "news"]
            assert json.loads(events[2].data) == {"state": "read", "ids": [one, two]}
        assert await bo.messages(2) == [1, 3]
        assert b"event: ack" not in bo.raw
    async with node.stream("ann", Last_Event_ID=start) as tablet:
        await tablet.ready()
        assert [(await tablet.next()).event for _ in range(4)] == ["news", "news", "ack", "news"]
    found = (await node.http.get(f"/v1/events?user=ann&after={start}&types=alarm")).json()
    assert [(each["event"], each["data"]["ids"]) for each in found["events"]] == [("ack", [one, two])]
    waiting = asyncio.create_task(node.http.get(f"/v1/events?user=ann&after={found['position']}&wait_s=20"))
    await ack(node, up_to=start, state="read")
    assert [each["data"] for each in (await waiting).json()["events"]] == [{"state": "read", "up_to": start}]


@pytest.mark.parametrize(
    ("body", "at", "shown"),
    [
        ({"state": "read"}, "$", "ids or up_to"),
        ({"state": "read", "ids": ["a"], "up_to": "aaaa-1.bbbb-2"}, "$", "ids or up_to"),
        ({"state": "seen", "ids": ["a"]}, "$.state", "seen"),
        ({"state": "clicked", "up_to": "aaaa-1.bbbb-2"}, "$.state", "clicked"),
        ({"state": "read", "up_to": "yesterday"}, "$.up_to", "yesterday"),
        ({"state": "read", "ids": []}, "$.ids", ""),
        ({"state": "read", "ids": ["x"] * 101}, "$.ids", ""),
        ({"state": "read", "ids": ["a", "b\n"]}, "$.ids[1]", ""),
        ({"state": "read", "ids": [f"{n:0128}" for n in range(100)]}, "$.ids", "12800"),
        ({"state": "read", "ids": ["a"], "more": 1}, "$.more", "1"),
        ({"ids": ["a"]}, "$.state", "required"),
    ],
)
async def test_a_wrong_ack_is_told_where_and_why(
    node: Running, body: dict[str, object], at: str, shown: str
) -> None:
    reply = await node.http.post("/v1/acks?user=ann", json=body)
    assert reply.status_code == 422, reply.text
    [error] = reply.json()["errors"]
    assert error["at"].startswith(at)
    assert shown in error["detail"]
    assert (await node.http.get("/v1/events?user=ann&since=1m")).json()["events"] == []


async def test_acks_are_limited_by_the_minute(tmp_path: Path) -> None:
    async with serving(tmp_path, acks_per_minute=2) as node:
        for _ in range(2):
            await ack(node, ids=["a"], state="read")
        refused = await node.http.post("/v1/acks?user=ann", json={"ids": ["a"], "state": "read"})
        assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert refused.headers["ratelimit-policy"] == '"acks";q=2;w=60'
        await ack(node, "bo", ids=["a"], state="read")


async def test_unread_is_what_came_and_was_neither_read_nor_clicked(node: Running) -> None:
    before = await unread(node)
    assert (before["unread"], before["types"], before["complete"]) == (0, {}, True)
    one = await node.publish("news", 1)
    two = await node.publish("alarm", 2, "ann")
    three = await node.publish("alarm", 3, ["ann", "bo"])
    await node.publish("alarm", 4, "bo")
    await node.until_known("news", "alarm")
    await ack(node, ids=[one, two], state="received")
    assert (await unread(node))["types"] == {"alarm": 2, "news": 1}
    assert (await unread(node, query="types=news"))["unread"] == 1
    await ack(node, ids=[one], state="read")
    await ack(node, ids=[three, "no such"], state="clicked")
    found = await unread(node)
    assert (found["unread"], found["types"]) == (1, {"alarm": 1})
    assert (await unread(node, "bo"))["types"] == {"alarm": 2, "news": 1}
    # Nothing is missed between the count and what follows it.
    await node.publish("news", 5)
    later = (await node.http.get(f"/v1/events?user=ann&after={found['position']}")).json()
    assert [each["data"]["message"] for each in later["events"]] == [5]
    await node.switch("ann", news=False)
    assert (await unread(node))["types"] == {"alarm": 1}


async def test_up_to_reads_both_logs_as_far_as_the_position_and_no_further(node: Running) -> None:
    async with node.stream("ann") as stream:
        await stream.ready()
        await node.publish("news", 1)
        await node.publish("alarm", 2, "ann")
        await stream.messages(2)
        read = stream.last_id
        await node.publish("news", 3)
        await node.publish("alarm", 4, "ann")
        await stream.messages(2)
    await ack(node, up_to=read, state="read")
    assert (await unread(node))["types"] == {"alarm": 1, "news": 1}
    # A place that nobody has been at reads nothing that comes later.
    forged = read.split("-")[0] + "-999999." + read.split(".")[1].split("-")[0] + "-999999"
    await ack(node, up_to=forged, state="read")
    assert (await unread(node))["unread"] == 0
    await node.publish("news", 5)
    await ack(node, up_to="zzzzzzzz-999999.zzzzzzzz-999999", state="read")
    assert (await unread(node))["types"] == {"news": 1}


async def test_a_long_log_is_counted_from_its_newest_entries_and_says_since_when(
    node: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acks, "MAX_COUNTED", 1_000)
    lines = "".join(json.dumps({"type": "x", "to": "all", "message": n}) + "\n" for n in range(1_500))
    headers = {"Content-Type": "application/x-ndjson"}
    whole = await unread(node)
    for _ in range(2):
        assert (await node.http.post("/v1/events", content=lines, headers=headers)).status_code == 202
    found: dict[str, Any] = {}

    async def counted() -> bool:
        # The node may not have heard all of it yet.
        found.update(await unread(node))
        return bool(found["unread"] >= 1_000)

    await eventually(counted)
    assert whole["complete"]
    assert not found["complete"]
    assert found["unread"] < 3_000
    assert found["since"] > whole["since"]


async def test_a_log_that_lost_acks_doesnt_count_what_they_were_about(tmp_path: Path) -> None:
    async with serving(tmp_path, log_keep_bytes=65_536) as node:
        one = await node.publish("news", 1)
        await ack(node, ids=[one], state="read")
        # Fills ann's own log, whose share is the smaller one, until the ack is gone.
        for number in range(40):
            await node.publish("alarm", "x" * 4_000, "ann", id=str(number))
        found = await unread(node)
        assert not found["complete"]
        assert "news" not in found["types"]
        assert 0 < found["types"]["alarm"] < 40


@pytest.mark.real
async def test_what_is_read_at_one_node_is_read_at_the_other(tmp_path: Path, redis_part: Redis) -> None:
    options: dict[str, Any] = {"redis_url": redis_part.url, "redis_prefix": "acks:"}
    async with serving(tmp_path, node="a", **options) as a, serving(tmp_path, node="b", **options) as b:
        async with a.stream("ann") as phone, b.stream("ann") as desk:
            await phone.ready()
            await desk.ready()
            one = await a.publish("news", 1)
            two = await b.publish("alarm", 2, "ann")
            for stream in (phone, desk):
                assert await stream.messages(2) == [1, 2]
            await ack(b, ids=[one], state="read")
            await ack(a, ids=[two], state="clicked")
            for stream in (phone, desk):
                states = [json.loads((await stream.until("ack")).data)["state"] for _ in range(2)]
                assert states == ["read", "clicked"]
        for node in (a, b):
            assert (await unread(node))["unread"] == 0
        assert (await unread(a, "bo"))["types"] == {"news": 1}


@pytest.mark.real
async def test_a_page_rendered_after_a_position_and_a_stream_from_it_have_no_hole(
    tmp_path: Path, redis_part: Redis
) -> None:
    """Writers change a table and then publish; a page is a snapshot of the table, and a stream behind it."""
    options: dict[str, Any] = {
        "redis_url": redis_part.url,
        "redis_prefix": "place:",
        "max_streams_per_user": 0,
        "tickets_per_minute": 0,
    }
    table: set[int] = set()
    async with serving(tmp_path, node="a", **options) as a, serving(tmp_path, node="b", **options) as b:

        async def write(start: int) -> None:
            for number in range(start, start + 60):
                table.add(number)
                await a.publish("row", number, "all" if number % 2 else "ann")

        async def page(asked: str) -> None:
            if asked == "ticket":
                reply = await b.http.post("/v1/tickets?user=ann")
            else:
                reply = await b.http.get("/v1/events?user=ann")
            position = reply.json()["position"]
            # Read after the position: what isn't in it yet is published later than that.
            shown = set(table)
            async with b.stream("ann", f"last_event_id={position}") as stream:
                assert (await stream.ready())["resume"] == "complete"
                while len(shown) < 180:
                    shown.update(await stream.messages(1))

        writers = [asyncio.create_task(write(start)) for start in (0, 60, 120)]
        pages: list[asyncio.Task[None]] = []
        for number in range(10):
            # Each in the middle of the writing, at another place.
            await eventually(lambda least=number * 17: len(table) > least)  # type: ignore[misc]
            pages.append(asyncio.create_task(page("ticket" if number % 2 else "events")))
        await asyncio.gather(*writers, *pages)
        assert table == set(range(180))
