"""One person who puts all that they can into the log, through each door at its largest.

A log keeps 4 MiB, which all people share who hash to it. Whoever was away meanwhile resumes without a gap,
and the calls above the allowance are refused. The other limits are off: this one holds by itself.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from pushsse.preferences.history import NOBODY
from pushsse.questions import Question
from tests.serving import Running, serving

pytestmark = [pytest.mark.anyio, pytest.mark.slow]
WINDOW = 4 * 1024**2
ALLOWED = 256 * 1024
NO_OTHERS: dict[str, Any] = {
    "questions_per_minute": 0,
    "acks_per_minute": 0,
    "switches_per_minute": 0,
}
# Four bytes each, and as many as a question may have.
LONG = "𝄞" * 8_000
# A body has 64 KiB.
SAID = "𝄞" * 15_000
ANSWER = "漢" * 10_900
POLICY = f'"log_bytes";q={ALLOWED};qu="content-bytes";w=60'
TYPES = [f"{number:04}".ljust(64, "x") for number in range(1_000)]
STAFF = [f"{number:03}".ljust(120, "s") for number in range(100)]


class Door(NamedTuple):
    """How to make one call, how many bytes it puts into the log at least, and how many are made at once."""

    call: Callable[[int], Awaitable[httpx.Response]]
    size: int
    at_once: int = 16


Opened = Callable[[Running], Awaitable[Door]]


async def answer(question: Question) -> AsyncIterator[str]:
    """Long answers to short questions."""
    yield ANSWER if len(question.text) < 100 else "Yes."


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.real)])
def backplane(request: pytest.FixtureRequest) -> dict[str, str]:
    """The settings of either."""
    if request.param == "memory":
        return {}
    return {"redis_url": request.getfixturevalue("redis_server").url}


async def questions(node: Running) -> Door:
    """The text is in the log at each change of status."""

    async def call(number: int) -> httpx.Response:
        # Ended when the reply is, so that no other limit counts.
        headers = {"Accept": "text/event-stream"}
        return await node.http.post("/v1/questions?user=ann", json={"text": LONG}, headers=headers)

    return Door(call, len(LONG) * 4 * 3)


async def chat(node: Running) -> Door:
    """The same as the AI SDK asks."""

    async def call(number: int) -> httpx.Response:
        message = {"role": "user", "id": f"m{number}", "parts": [{"type": "text", "text": LONG}]}
        return await node.http.post("/v1/chat?user=ann", json={"id": f"c{number}", "messages": [message]})

    return Door(call, len(LONG) * 4 * 3)


async def regenerated(node: Running) -> Door:
    """A question of long ago, again and again."""
    headers = {"Accept": "text/event-stream"}
    asked = await node.http.post("/v1/questions?user=ann", json={"text": LONG}, headers=headers)

    async def call(number: int) -> httpx.Response:
        return await node.http.post(f"{asked.headers['location']}/regenerate?user=ann", headers=headers)

    # It has to have ended.
    return Door(call, len(LONG) * 4 * 3, at_once=1)


async def answers(node: Running) -> Door:
    """A short question gets a long answer, whose length nobody knows before."""

    async def call(number: int) -> httpx.Response:
        return await node.http.post(
            "/v1/questions?user=ann", json={"text": "How?"}, headers={"Accept": "text/event-stream"}
        )

    return Door(call, len(ANSWER) * 3)


async def acks(node: Running) -> Door:
    """As many ids as a call may have, as long as they may be."""

    async def call(number: int) -> httpx.Response:
        ids = [f"{number}-{place:02}".ljust(81, "x") for place in range(100)]
        return await node.http.post("/v1/acks?user=ann", json={"ids": ids, "state": "read"})

    return Door(call, 8_000)


async def switches(node: Running) -> Door:
    """Each change carries all that the person has off, and here that is a whole catalogue."""
    await node.node.preference_store.join(TYPES, hidden=False)
    await node.node.preferences.change("ann", dict.fromkeys(TYPES, False), by=NOBODY)

    async def call(number: int) -> httpx.Response:
        body = {"types": {TYPES[number % 1_000]: True}}
        return await node.http.post("/v1/preferences?user=ann", json=body)

    return Door(call, 2 * 64 * 900)


async def handovers(node: Running) -> Door:
    """Each one tells all staff who wait."""
    asked = await node.http.post(
        "/v1/questions?user=ann",
        json={"text": "How?", "conversation": "c"},
        headers={"Accept": "text/event-stream"},
    )
    assert asked.status_code == 200
    waiting = "/v1/conversations?status=handed_over&user="
    await asyncio.gather(*(node.http.get(waiting + name) for name in STAFF))

    async def call(number: int) -> httpx.Response:
        return await node.http.post("/v1/conversations/c/handover?user=ann")

    return Door(call, 120 * 100)


async def staff(node: Running) -> Door:
    """A member of staff who sends messages to a person."""
    await node.http.post(
        "/v1/questions?user=ann",
        json={"text": "How?", "conversation": "c"},
        headers={"Accept": "text/event-stream"},
    )
    await node.http.post("/v1/conversations/c/handover?user=ann")

    async def call(number: int) -> httpx.Response:
        return await node.http.post("/v1/conversations/c/messages?user=sam", json={"text": SAID})

    return Door(call, 32 * 1024)


@asynccontextmanager
async def one_log(folder: Path, **options: Any) -> AsyncIterator[Running]:
    """A node where all people share one log."""
    answerer = "python:tests.hardening.test_log_shared:answer"
    async with serving(folder, answerer=answerer, shards=1, **NO_OTHERS, **options) as node:
        yield node


@pytest.mark.parametrize(
    "opened",
    [
        questions,
        chat,
        regenerated,
        answers,
        acks,
        switches,
        pytest.param(handovers, marks=pytest.mark.long),
        staff,
    ],
    ids=lambda opened: opened.__name__,
)
async def test_a_flood_through_one_door_pushes_out_nothing_of_others(
    opened: Opened, backplane: dict[str, str], tmp_path: Path
) -> None:
    async with one_log(tmp_path, **backplane) as node:
        door = await opened(node)
        async with node.stream("bo") as before:
            await before.ready()
            await node.publish("news", "before", "bo")
            await before.until("news")
        flood = await flooded(door, WINDOW + WINDOW // 4)
        await node.publish("news", "after", "bo")
        async with node.stream("bo", Last_Event_ID=before.last_id) as after:
            assert (await after.ready())["resume"] == "complete"
            assert await after.messages(1) == ["after"]
        refused = [reply for reply in flood if reply.status_code == 429]
        assert refused
        for reply in refused:
            assert reply.headers["ratelimit-policy"] == POLICY
            assert re.fullmatch(r'"log_bytes";r=0;t=\d+', reply.headers["ratelimit"])
            assert int(reply.headers["retry-after"]) >= 1
        metrics = (await node.http.get("/metrics")).text
        assert f'pushsse_limited_total{{limit="log_bytes"}} {len(refused)}.0' in metrics
        # Whoever has put nothing there asks as ever.
        assert (await node.http.post("/v1/questions?user=bo", json={"text": "How?"})).status_code == 202


async def flooded(door: Door, wanted: int) -> list[httpx.Response]:
    """As many calls as would put so many bytes into the log, some at a time."""
    replies: list[httpx.Response] = []
    for start in range(0, -(-wanted // door.size), door.at_once):
        replies += await asyncio.gather(*map(door.call, range(start, start + door.at_once)))
    known = {200, 201, 202, 204, 429}
    assert {reply.status_code for reply in replies} <= known, next(
        reply.text for reply in replies if reply.status_code not in known
    )
    return replies
