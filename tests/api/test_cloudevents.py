"""CloudEvents by POST /v1/events: structured, binary and in batches, as the SDK sends them."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cloudevents.core.bindings import http
from cloudevents.core.v1.event import CloudEvent

from pushsse.api.events import MAX_LINES
from tests.serving import Running, serving

pytestmark = pytest.mark.anyio
BATCH = {"content-type": "application/cloudevents-batch+json"}
WHOLE = {
    "specversion": "1.0",
    "type": "order",
    "source": "/shop",
    "id": "1",
    "pushsseto": "ann",
    "data": {"n": 1},
}


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Running]:
    async with serving(tmp_path) as running:
        yield running


async def post(node: Running, message: http.HTTPMessage, query: str = "") -> Any:
    reply = await node.http.post(f"/v1/events{query}", content=message.body, headers=message.headers)
    return reply.status_code, reply.json()


def sent(number: int, **more: Any) -> CloudEvent:
    attributes = {"type": "order", "source": "/shop", "id": str(number), "pushsseto": "ann"} | more
    return CloudEvent({name: each for name, each in attributes.items() if each is not None}, {"n": number})


async def test_what_the_sdk_sends_reaches_the_stream_once_in_each_mode(node: Running) -> None:
    async with node.stream("ann") as stream:
        await stream.ready()
        status, answer = await post(node, http.to_structured_event(sent(1, subject='Grüße, "ann" 100%')))
        assert (status, answer["ids"]) == (202, ["/shop|1"])
        status, answer = await post(node, http.to_binary_event(sent(2, subject='Grüße, "ann" 100%')))
        assert (status, answer["ids"]) == (202, ["/shop|2"])
        for number in (1, 2):
            found = json.loads((await stream.next()).data)
            assert (found["id"], found["message"]) == (f"/shop|{number}", {"n": number})
            assert found["desc"] == 'Grüße, "ann" 100%'
        # The same source and id: the same event, in whatever mode and of whatever type.
        status, answer = await post(node, http.to_binary_event(sent(1, type="other")))
        assert (status, answer["repeated"]) == (202, 1)


async def test_a_batch_is_taken_one_by_one(node: Running) -> None:
    events = [WHOLE | {"id": "1"}, WHOLE | {"id": None}, 7, WHOLE | {"id": "3"}]
    async with node.stream("ann") as stream:
        await stream.ready()
        reply = await node.http.post("/v1/events", content=json.dumps(events), headers=BATCH)
        answer = reply.json()
        assert (reply.status_code, answer["ids"]) == (202, ["/shop|1", "/shop|3"])
        assert [(each["line"], each["errors"][0]["at"]) for each in answer["rejected"]] == [
            (2, "$.id"),
            (3, "$"),
        ]
        assert json.loads((await stream.next()).data)["id"] == "/shop|1"
        assert json.loads((await stream.next()).data)["id"] == "/shop|3"


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"{}", 422), (b"[", 400), (b"[" + b"0," * 200_000 + b"0]", 422), (b"[]", 422), (b"[1]", 422)],
)
async def test_what_is_no_batch_is_refused(node: Running, body: bytes, status: int) -> None:
    reply = await node.http.post("/v1/events", content=body, headers=BATCH)
    assert reply.status_code == status
    assert reply.json()["errors"]


async def test_a_batch_has_a_bound_as_lines_have(node: Running) -> None:
    for one in (b"0", b"{}"):
        body = b"[" + b",".join([one] * (MAX_LINES + 1)) + b"]"
        reply = await node.http.post("/v1/events", content=body, headers=BATCH)
        assert (reply.status_code, reply.json()["code"]) == (413, "too_many_lines")


async def test_a_missing_attribute_is_named_by_its_field(node: Running) -> None:
    message = http.to_binary_event(sent(1))
    del message.headers["ce-source"]
    status, answer = await post(node, message)
    assert (status, answer["errors"][0]["at"]) == (422, "header ce-source")
    status, answer = await post(node, http.to_binary_event(sent(1, pushsseto=None)))
    assert (status, answer["errors"][0]["at"]) == (422, "header ce-pushsseto")


@pytest.mark.parametrize("name", ["time", "expirytime"])
@pytest.mark.parametrize("at", ["0001-01-01T00:00:00Z", "1969-12-31T23:59:59Z"])
async def test_a_time_before_1970_is_named_by_its_field(node: Running, name: str, at: str) -> None:
    message = http.to_binary_event(sent(1))
    message.headers[f"ce-{name}"] = at
    status, answer = await post(node, message)
    assert (status, answer["errors"][0]["at"]) == (422, f"header ce-{name}")
    assert at[:19] in answer["errors"][0]["detail"]


async def test_one_without_an_audience_is_for_whom_the_url_says(node: Running) -> None:
    async with node.stream("bo") as stream:
        await stream.ready()
        status, _ = await post(node, http.to_binary_event(sent(1, pushsseto=None)), "?to=bo")
        assert status == 202
        assert json.loads((await stream.next()).data)["message"] == {"n": 1}


async def test_an_event_of_ours_isnt_taken_for_one(node: Running) -> None:
    event = b'{"type": "news", "to": "all", "message": 1}'
    headers = {"content-type": "application/json", "ce-other": "1"}
    assert (await node.http.post("/v1/events", content=event, headers=headers)).status_code == 202


async def test_a_long_batch_lets_others_in_between(node: Running) -> None:
    events = [WHOLE | {"id": str(number), "pushsseto": f"user-{number}"} for number in range(6_000)]
    body = json.dumps(events).encode()
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            before = time.thread_time()
            await asyncio.sleep(0)
            longest = max(longest, time.thread_time() - before)

    watching = asyncio.create_task(watch())
    try:
        reply = await node.http.post("/v1/events", content=body, headers=BATCH)
    finally:
        watching.cancel()
    assert reply.json()["accepted"] == 6_000
    assert longest < 0.2
