"""One person who changes switches, or asks, without a pause: at one node, and at several with one Redis."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from pushsse.errors import DatabaseUnavailable
from pushsse.questions.service import Questions
from tests.backplane.redis_server import RedisServer
from tests.serving import Running, serving
from tests.waiting import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.slow]
# Within less than a minute on a busy machine, too: after that there is room for more.
FLIPS = 144
# More at a time, and a busy machine has no time for all of them: they get a 503.
AT_ONCE = 12
LEFT = re.compile(r'"(\w+)";r=(\d+);t=(\d+)')


@asynccontextmanager
async def listed(folder: Path, **options: Any) -> AsyncIterator[Running]:
    """A node with a type to switch."""
    async with serving(folder, **options) as node:
        await node.publish("news", 1)
        await node.until_known("news")
        yield node


async def flip(node: Running, number: int = 0, user: str = "ann") -> httpx.Response:
    return await node.http.post(f"/v1/preferences?user={user}", json={"types": {"news": bool(number % 2)}})


async def ask(node: Running, text: str = "How?", user: str = "ann", **headers: str) -> httpx.Response:
    return await node.http.post(f"/v1/questions?user={user}", json={"text": text}, headers=headers)


def left(reply: httpx.Response) -> tuple[str, int, int]:
    """The name of the limit, what is left of it, and the seconds until it is whole again."""
    found = LEFT.fullmatch(reply.headers["ratelimit"])
    assert found is not None, reply.headers
    return found[1], int(found[2]), int(found[3])


async def test_a_flood_of_flips_is_refused_above_the_limit_and_others_go_on(tmp_path: Path) -> None:
    async with listed(tmp_path) as node:
        replies: list[httpx.Response] = []
        for start in range(0, FLIPS, AT_ONCE):
            numbers = range(start, min(start + AT_ONCE, FLIPS))
            replies += await asyncio.gather(*(flip(node, number) for number in numbers))
            if start == AT_ONCE * 8:
                other = await flip(node, user="bo")
        taken = [reply for reply in replies if reply.status_code == 200]
        refused = [reply for reply in replies if reply.status_code == 429]
        assert (len(taken), len(taken) + len(refused)) == (60, FLIPS)
        assert {reply.headers["ratelimit-policy"] for reply in replies} == {'"switches";q=60;w=60'}
        assert sorted(left(reply)[1] for reply in taken) == list(range(60))
        for reply in refused:
            name, more, seconds = left(reply)
            assert (name, more) == ("switches", 0)
            assert reply.headers["retry-after"] == str(seconds)
            assert 1 <= seconds <= 60
            assert reply.headers["content-type"] == "application/problem+json"
            assert (reply.json()["code"], reply.json()["status"]) == ("rate_limited", 429)
        assert other.status_code == 200
        assert left(other)[1] == 59
        metrics = (await node.http.get("/metrics")).text
        assert f'pushsse_limited_total{{limit="switches"}} {len(refused)}.0' in metrics
        # Reading isn't counted.
        assert (await node.http.get("/v1/preferences?user=ann")).status_code == 200


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
async def test_questions_above_the_limit_are_refused_whichever_way_they_are_asked(
    accept: str, tmp_path: Path
) -> None:
    async with serving(tmp_path, questions_per_minute=3) as node:
        replies = [await ask(node, f"How? {n}", Accept=accept) for n in range(5)]
        taken = 202 if accept == "application/json" else 200
        assert [reply.status_code for reply in replies] == [taken] * 3 + [429] * 2
        assert [left(reply)[:2] for reply in replies] == [("questions", n) for n in (2, 1, 0, 0, 0)]
        assert {reply.headers["ratelimit-policy"] for reply in replies} == {'"questions";q=3;w=60'}
        assert (await ask(node, user="bo")).status_code == 202
        assert 'pushsse_limited_total{limit="questions"} 2.0' in (await node.http.get("/metrics")).text
        assert len((await node.http.get("/v1/questions?user=ann")).json()["questions"]) == 3


async def test_ratings_above_the_limit_are_refused_and_change_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path, feedback_per_minute=2) as node:
        asked = (await ask(node, "How do I get a refund?", Accept="text/event-stream")).headers["location"]
        replies = [
            await node.http.post(f"{asked}/feedback?user=ann", json={"rating": rating})
            for rating in ("up", "down", "up")
        ]
        assert [reply.status_code for reply in replies] == [200, 200, 429]
        assert [left(reply)[:2] for reply in replies] == [("feedback", n) for n in (1, 0, 0)]
        assert (await node.http.get(f"{asked}?user=ann")).json()["feedback"]["rating"] == "down"
        assert 'pushsse_limited_total{limit="feedback"} 1.0' in (await node.http.get("/metrics")).text


async def test_too_many_open_questions_are_counted_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nobody answers.
    monkeypatch.setattr(Questions, "run", lambda _: asyncio.Event().wait())
    async with serving(tmp_path, questions_per_minute=0) as node:
        replies = [await ask(node, f"How? {n}") for n in range(21)]
        assert [reply.status_code for reply in replies] == [202] * 20 + [429]
        assert replies[-1].json()["code"] == "too_many_questions"
        assert "ratelimit" not in replies[-1].headers
        assert 'pushsse_limited_total{limit="open_questions"} 1.0' in (await node.http.get("/metrics")).text


async def test_what_never_reaches_a_switch_is_not_counted(tmp_path: Path) -> None:
    async with listed(tmp_path, switches_per_minute=1) as node:
        for body in ("{", '{"types": 1}'):
            reply = await node.http.post("/v1/preferences?user=ann", content=body)
            assert reply.status_code in (400, 422)
        assert (await flip(node)).status_code == 200
        assert (await flip(node)).status_code == 429


@pytest.mark.real
async def test_nodes_count_together_and_go_on_without_redis(
    tmp_path: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = {"redis_url": redis_server.url, "database_url": f"sqlite://{tmp_path}/both.db"}
    options: dict[str, Any] = {**where, "switches_per_minute": 10, "questions_per_minute": 4}
    async with (
        listed(tmp_path, node="one", **options) as one,
        serving(tmp_path, node="two", **options) as two,
    ):
        await eventually(lambda: one.node.backplane.available and two.node.backplane.available)
        nodes = (one, two)
        flips = [await flip(nodes[number % 2], number) for number in range(14)]
        assert [reply.status_code for reply in flips] == [200] * 10 + [429] * 4
        assert [left(reply)[1] for reply in flips] == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0, 0, 0, 0]
        redis_server.kill()
        # The questions' table is there, and so questions are taken: each node counts by itself.
        await eventually(lambda: not one.node.backplane.available)
        asked = [await ask(one, f"How? {number}") for number in range(5)]
        assert [reply.status_code for reply in asked] == [202] * 4 + [429]
        assert (await ask(two)).status_code == 202
        monkeypatch.setattr(type(one.node.preference_store), "change", _away)
        # Not refused for the sake of a count.
        assert (await flip(one)).status_code == 503


async def _away(*_: object, **__: object) -> None:
    raise DatabaseUnavailable("away")
