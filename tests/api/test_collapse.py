"""`collapse` and `withdraw` of an event: what is taken, what clients get, what is replayed in each way."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from deploy.parts import Redis
from pushsse.backplane import codec
from pushsse.event import Publication, encode
from tests.serving import Running, serving

pytestmark = pytest.mark.anyio


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Running]:
    async with serving(tmp_path) as running:
        yield running


async def post(node: Running, **event: object) -> str:
    reply = await node.http.post("/v1/events", json=event)
    assert reply.status_code == 202, reply.text
    return str(reply.json()["ids"][0])


async def polled(node: Running, query: str, user: str = "ann") -> list[tuple[str, Any]]:
    reply = await node.http.get(f"/v1/events?user={user}&{query}")
    assert reply.status_code == 200, reply.text
    return [(each["event"], each["data"]) for each in reply.json()["events"]]


async def test_live_all_come_and_say_their_key_and_a_replay_has_the_newest(node: Running) -> None:
    start = (await node.http.get("/v1/events?user=ann")).json()["position"]
    ann = {"users": ["ann"]}
    async with node.stream("ann") as stream:
        await stream.ready()
        await post(node, type="paid", to=ann, message=1, collapse="order-981", id="one")
        await post(node, type="sent", to=ann, message=2, collapse="order-981", desc="on its way")
        await post(node, type="sale", to="all", message=3, collapse="order-981")
        await post(node, type="plain", to="all", message=4)
        events = [await stream.next() for _ in range(4)]
        data = [json.loads(event.data) for event in events]
        assert [event.event for event in events] == ["paid", "sent", "sale", "plain"]
        assert list(data[0]) == ["id", "type", "message", "desc", "ts", "collapse"]
        assert [each.get("collapse") for each in data] == ["order-981"] * 3 + [None]
        # Clients keep the keys of both audiences apart.
        assert [each.get("to") for each in data] == [None, None, "all", None]
        assert list(data[3]) == ["id", "type", "message", "desc", "ts"]
        # In between: what comes behind a place is what wasn't replaced behind it.
        assert [name for name, _ in await polled(node, f"after={events[0].id}")] == ["sent", "sale", "plain"]
    assert [name for name, _ in await polled(node, f"after={start}")] == ["sent", "sale", "plain"]
    assert (await node.http.get("/v1/unread?user=ann")).json()["types"] == {"plain": 1, "sale": 1, "sent": 1}
    assert node.node.metrics.replaced > 0


async def test_what_is_withdrawn_isnt_replayed_and_clients_are_told(node: Running) -> None:
    start = (await node.http.get("/v1/events?user=ann")).json()["position"]
    async with node.stream("ann", "types=paid&named=0") as stream:
        await stream.ready()
        await post(node, type="paid", to="all", message=1, collapse="a", id="same")
        await post(node, type="paid", to={"users": ["ann"]}, message=2, collapse="a")
        # It may have the id of what it takes away, and a message that nobody needs.
        gone = await post(
            node,
            type="paid",
            to="all",
            withdraw="a",
            id="same",
            message="why",
            ts="2026-11-28T08:00:00Z",
            ttl_s=10**7,
        )
        assert gone == "same"
        assert await stream.messages(2) == [1, 2]
        event = await stream.next()
        assert event.event == "pushsse.withdraw"
        assert json.loads(event.data) == {
            "id": "same", "type": "paid", "withdraw": "a", "to": "all", "ts": "2026-11-28T08:00:00Z"
        }  # fmt: skip
        behind = event.id
    expected = [("paid", 2), ("pushsse.withdraw", None)]
    assert [(name, data.get("message")) for name, data in await polled(node, f"after={start}")] == expected
    assert (await node.http.get("/v1/unread?user=ann")).json()["types"] == {"paid": 1}
    # It may come back, and then nobody needs to be told that it was away.
    await post(node, type="paid", to="all", message=3, collapse="a")
    assert [data["message"] for _, data in await polled(node, f"after={start}")] == [2, 3]
    assert [data["message"] for _, data in await polled(node, f"after={behind}")] == [3]
    # No type of that name is switched on and off.
    await node.until_known("paid")
    names = {each["name"] for each in (await node.http.get("/v1/preferences?user=ann")).json()["types"]}
    assert names == {"paid"}


@pytest.mark.parametrize(
    ("more", "at", "shown"),
    [
        ({"message": 1, "collapse": ""}, "$.collapse", "a key"),
        ({"message": 1, "collapse": "x" * 129}, "$.collapse", "a key"),
        ({"message": 1, "collapse": "a\u200bb"}, "$.collapse", "a key"),
        ({"message": 1, "collapse": 5}, "$.collapse", "5"),
        ({"withdraw": "a\nb"}, "$.withdraw", "a key"),
        ({"withdraw": "a", "collapse": "a"}, "$.withdraw", "collapse"),
        ({"collapse": "a"}, "$.message", "is required"),
        ({}, "$.message", "is required"),
    ],
)
async def test_a_wrong_key_is_told_where_and_why(
    node: Running, more: dict[str, object], at: str, shown: str
) -> None:
    reply = await node.http.post("/v1/events", json={"type": "x", "to": "all", **more})
    assert reply.status_code == 422, reply.text
    [error] = reply.json()["errors"]
    assert error["at"] == at
    assert shown in error["detail"]


async def test_a_log_that_was_read_back_from_its_file_is_collapsed_as_before(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        start = (await node.http.get("/v1/events?user=ann")).json()["position"]
        for number in range(3):
            await post(node, type="x", to="all", message=number, collapse="a")
            await post(node, type="x", to={"users": ["ann"]}, message=number, collapse="b")
        await post(node, type="x", to={"users": ["ann"]}, withdraw="b")
    async with serving(tmp_path) as node:
        found = [(name, data.get("message")) for name, data in await polled(node, f"after={start}")]
        assert found == [("x", 2), ("pushsse.withdraw", None)]


@pytest.mark.real
async def test_through_redis_each_node_replays_the_newest(tmp_path: Path, redis_part: Redis) -> None:
    options: dict[str, Any] = {"redis_url": redis_part.url, "redis_prefix": "collapse:"}
    async with serving(tmp_path, node="a", **options) as a:
        start = (await a.http.get("/v1/events?user=ann")).json()["position"]
        lines = [{"type": "x", "to": "all", "message": n, "collapse": f"k{n % 7}"} for n in range(2_000)]
        lines += [
            {"type": "x", "to": {"users": ["ann"]}, "withdraw": "k0"},
            {"type": "x", "to": "all", "withdraw": "k1"},
        ]
        body = "\n".join(map(json.dumps, lines))
        headers = {"Content-Type": "application/x-ndjson"}
        assert (await a.http.post("/v1/events", content=body, headers=headers)).status_code == 202
        expected = [n for n in range(1_993, 2_000) if n % 7 != 1]

        async def messages(node: Running) -> list[Any]:
            found: list[Any] = []
            position, more = start, True
            while more:
                reply = (await node.http.get(f"/v1/events?user=ann&after={position}&limit=1000")).json()
                position, more = reply["position"], reply["more"]
                found += [
                    each["data"].get("message", each["data"].get("withdraw")) for each in reply["events"]
                ]
            return found

        assert await messages(a) == [*expected, "k0", "k1"]
        async with serving(tmp_path, node="b", **options) as b:
            # It began to listen later: further back than it knows, it looks ahead within what it reads.
            found = await messages(b)
            assert found[-len(expected) - 2 :] == [*expected, "k0", "k1"]
            assert len(found) < 60


def test_an_entry_of_a_release_without_keys_is_read_and_one_with_a_key_by_such_a_release() -> None:
    made = encode("x", {"id": "1"}, users=("ann",), switchable=True, collapse="k")
    blob = codec.encode(made)
    items: list[object] = msgspec.msgpack.decode(blob[1:])
    at = items.index("k")
    older = blob[:1] + msgspec.msgpack.encode(items[:at])
    assert codec.Decoder().entry(older) == msgspec.structs.replace(made, collapse="")
    assert codec.Decoder().entry(blob) == made
    assert isinstance(codec.Decoder().entry(blob), Publication)
