"""Where a stream goes on from, however a client says it; and queries as real clients write them."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from pushsse.api import parameters
from tests.serving import LIMIT_S, Running, serving

pytestmark = pytest.mark.anyio


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Running]:
    async with serving(tmp_path) as running:
        yield running


@given(st.text("user=&%2b+;? \xe4\xff", max_size=20).map(lambda text: text.encode("latin-1")))
def test_a_query_reads_as_starlette_reads_it(query: bytes) -> None:
    request = Request({"type": "http", "query_string": query, "headers": []})
    assert parameters(request) == request.query_params.multi_items()


async def before(node: Running) -> tuple[str, str]:
    """Two places: before a first event, and after it, before a second one."""
    async with node.stream("ann") as stream:
        first = (await stream.next()).id
        await node.publish("news", 1)
        await stream.messages(1)
        await node.publish("news", 2)
        return first, stream.last_id


SPELLINGS = [
    "lastEventId", "lasteventid", "LASTEVENTID", "Last-Event-ID", "last-event-id", "last_event_id",
    "evs_last_event_id", "lastEventID",
]  # fmt: skip


@pytest.mark.parametrize("name", SPELLINGS)
async def test_a_place_in_the_query_resumes_however_its_name_is_spelt(node: Running, name: str) -> None:
    place, _ = await before(node)
    async with node.stream("ann", f"{name}={place}") as stream:
        assert (await stream.ready())["resume"] == "complete"
        assert await stream.messages(2) == [1, 2]
    async with node.stream("ann", f"{name}=%20{place}%20&evs_preamble=2049") as stream:
        assert (await stream.ready())["resume"] == "complete"
    async with node.stream("ann", f"{name}=what+is+this") as stream:
        assert (await stream.ready())["resume"] == "gap"
    async with node.stream("ann", f"{name}=") as stream:
        assert (await stream.ready())["resume"] == "new"


async def test_a_place_that_a_polyfill_appends_wins_over_the_one_of_the_page(node: Running) -> None:
    old, new = await before(node)
    async with node.stream("ann", f"last_event_id={old}&lastEventId={new}") as stream:
        assert await stream.messages(1) == [2]
    async with node.stream("ann", f"lastEventId={new}", Last_Event_ID=old) as stream:
        assert await stream.messages(2) == [1, 2]


async def raw_ready(node: Running, headers: Sequence[str]) -> dict[str, object]:
    """The `ready` of a stream that is asked for with these lines."""
    reader, writer = await asyncio.open_connection("localhost", node.port)
    lines = ["GET /v1/stream?user=ann HTTP/1.1", "Host: localhost", *headers, "", ""]
    writer.write("\r\n".join(lines).encode())
    async with asyncio.timeout(LIMIT_S):
        await reader.readuntil(b"event: ready\ndata: ")
        found: dict[str, object] = json.loads(await reader.readline())
    writer.close()
    return found


async def test_blanks_around_a_header_and_a_second_value_are_borne(node: Running) -> None:
    old, new = await before(node)
    for headers, resume in (
        ([f"Last-Event-ID:   {new}\t "], "complete"),
        ([f"last-event-id:{new}"], "complete"),
        ([f"Last-Event-ID: {old}", f"Last-Event-ID: {new}"], "complete"),
        ([f"Last-Event-ID: {old}, {new}"], "complete"),
        ([f"Last-Event-ID: {old}", "Last-Event-ID: "], "complete"),
        ([f"Last-Event-ID: {old}", "Last-Event-ID: unreadable"], "complete"),
        (["Last-Event-ID: unreadable", "Last-Event-ID: neither"], "gap"),
        (["Last-Event-ID: "], "new"),
        (["Last-Event-ID: \u0661\u0662"], "gap"),
    ):
        assert (await raw_ready(node, headers))["resume"] == resume, headers


async def test_a_poll_takes_the_same_and_after_wins(node: Running) -> None:
    old, new = await before(node)

    async def poll(query: str) -> tuple[list[object], bool]:
        reply = (await node.http.get(f"/v1/events?user=ann&{query}")).json()
        return [event["data"]["message"] for event in reply["events"]], reply["gap"]

    assert await poll(f"after={old}") == ([1, 2], False)
    assert await poll(f"lastEventId={new}") == ([2], False)
    assert await poll(f"lastEventId={old}&after=%20{new}") == ([2], False)
    assert await poll("after=unreadable") == ([], True)
    assert await poll("after=") == ([], False)


QUERIES = [
    ("types=news,%20offer", [1, 2]),
    ("types=news&types=offer", [1, 2]),
    ("types=news,,&types=", [1]),
    ("types=", [1, 2, 3]),
    ("types=,", [1, 2, 3]),
    ("types=%20news%20", [1]),
    ("named=&since=", [1, 2, 3]),
    ("named=true&named=%201", [1, 2, 3]),
    ("since=30M&types=alarm", [3]),
    ("since=%205m%20", [1, 2, 3]),
    ("unknown=1&_=17000000", [1, 2, 3]),
]


@pytest.mark.parametrize(("query", "wanted"), QUERIES)
async def test_a_query_that_can_only_mean_one_thing_is_borne(
    node: Running, query: str, wanted: list[int]
) -> None:
    async with node.stream("ann", query) as stream:
        await stream.ready()
        for number, type_ in enumerate(("news", "offer", "alarm"), 1):
            await node.publish(type_, number)
        assert await stream.messages(len(wanted)) == wanted
