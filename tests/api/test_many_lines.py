"""Bodies that are large in some way: what is passed on exactly, what is told of them, who waits."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.serving import Running, serving
from tests.waiting import eventually

pytestmark = pytest.mark.anyio
NDJSON = {"content-type": "application/x-ndjson"}
EXACT = (
    '{"amount": 0.1000, "big": 1234567890.123456789, "e": [1e3, -0, 1E+2], "many": 12345678901234567890123}'
)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Running]:
    async with serving(tmp_path) as running:
        yield running


async def test_numbers_are_exact_on_every_way(node: Running) -> None:
    event = b'{"type": "news", "to": {"users": ["ann"]}, "message": ' + EXACT.encode() + b"}"
    async with node.stream("ann") as stream:
        position = (await stream.next()).id
        assert (await node.http.post("/v1/events", content=event)).status_code == 202
        assert (await node.http.post("/v1/events", content=event, headers=NDJSON)).status_code == 202
        spread = event.replace(b", ", b",\r\n")
        assert (await node.http.post("/v1/events", content=spread)).status_code == 202
        assert EXACT in (await stream.next()).data
        assert EXACT in (await stream.next()).data
        assert EXACT.replace(", ", ",  ") in (await stream.next()).data
    async with node.stream("ann", f"last_event_id={position}") as stream:
        await stream.ready()
        assert EXACT in (await stream.next()).data
    reply = await node.http.get(f"/v1/events?user=ann&after={position}")
    assert reply.text.count(EXACT) == 2


async def test_of_many_bad_lines_a_hundred_are_listed(node: Running) -> None:
    good = b'{"type": "news", "to": "all", "message": 1}\n'
    reply = await node.http.post("/v1/events", content=b"1\n" * 500 + good, headers=NDJSON)
    answer = reply.json()
    assert (reply.status_code, answer["accepted"]) == (202, 1)
    assert [each["line"] for each in answer["rejected"]] == list(range(1, 101))
    assert answer["unlisted"] == 400
    reply = await node.http.post("/v1/events", content=b"1\n" * 500, headers=NDJSON)
    assert reply.status_code == 422
    assert len(reply.json()["errors"]) == 100
    reply = await node.http.post("/v1/events", content=good, headers=NDJSON)
    assert "unlisted" not in reply.json()


@pytest.mark.parametrize("kind", ["application/x-ndjson", "application/json"])
async def test_more_lines_than_there_can_be_events_are_a_413(node: Running, kind: str) -> None:
    reply = await node.http.post("/v1/events", content=b"1\n" * 30_001, headers={"content-type": kind})
    assert reply.status_code == 413
    assert reply.json()["code"] == "too_many_lines"


async def test_others_are_served_while_a_body_of_many_lines_is_read(node: Running) -> None:
    line = b'{"type": "news", "to": {"users": ["ann"]}, "message": 1}\n'
    posting = asyncio.create_task(node.http.post("/v1/events", content=line * 15_000, headers=NDJSON))
    turns = 0
    while not posting.done():
        await asyncio.sleep(0)
        turns += 1
    assert posting.result().json()["accepted"] == 15_000
    # Each portion of the work is some milliseconds; at least so many times others had the loop.
    assert turns > 30
    await eventually(lambda: node.node.hub_parts.feed.waiting == 0)


async def test_a_long_member_of_an_error_is_cut(node: Running) -> None:
    line = json.dumps({"type": "news", "to": "all", "message": 1, "x" * 60_000: 1})
    reply = await node.http.post("/v1/events", content=line)
    assert reply.status_code == 422
    assert len(reply.text) < 2_000
