"""Positions given to nobody, or to somebody else: a gap or the person's own events, and no error."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.hardening.fuzz import fuzz, texts
from tests.serving import LIMIT_S, Running, serving

pytestmark = pytest.mark.anyio
OWN = [f"ann {number}" for number in range(6)]
# Six events of each kind, then from the middle on what a position in the middle has before it.
ALL = [f"all {number}" for number in range(6)]


@dataclass
class Told:
    """What a stream or a poll said: about the position, and every event that came."""

    resume: str
    messages: list[Any]
    took_s: float


@dataclass
class Place:
    """A node with a past, and the positions of ann's and bo's streams after each event of it."""

    node: Running
    own: list[str]
    foreign: list[str]

    async def stream(self, position: str, *, header: bool = False) -> Told:
        """What a stream of ann's at a position begins with, up to what is published once it is open."""
        headers = {"Last_Event_ID": position} if header else {}
        query = "" if header else f"last_event_id={quote(position)}"
        began = time.monotonic()
        async with self.node.stream("ann", query, **headers) as stream:
            assert stream.response.status_code == 200
            ready = await stream.ready()
            took_s = time.monotonic() - began
            end = await self.node.publish("end", "end", "ann")
            found: list[Any] = []
            async with asyncio.timeout(LIMIT_S):
                while True:
                    data = json.loads((await stream.next()).data)
                    if data.get("id") == end:
                        break
                    found.append(data.get("message", data))
        return Told(ready["resume"], found, took_s)

    async def poll(self, position: str) -> Told:
        """The same of a poll, which goes on until there is no more."""
        began = time.monotonic()
        found: list[Any] = []
        gap, more = False, True
        while more:
            reply = await self.node.http.get("/v1/events", params={"user": "ann", "after": position})
            assert reply.status_code == 200
            page = reply.json()
            found += [each["data"].get("message", each["data"]) for each in page["events"]]
            gap, more, position = gap or page["gap"], page["more"], page["position"]
        return Told("gap" if gap else "complete", found, time.monotonic() - began)


@asynccontextmanager
async def past(folder: Path, shards: int) -> AsyncIterator[Place]:
    """ann's and bo's events and everybody's, in turns; bo's hold what ann may never see."""
    async with serving(folder, shards=shards, heartbeat_s=600.0) as node:
        places = Place(node, [], [])
        async with node.stream("ann") as ann, node.stream("bo") as bo:
            for stream, found in ((ann, places.own), (bo, places.foreign)):
                await stream.ready()
                found.append(stream.last_id)
            for own, everybody in zip(OWN, ALL, strict=True):
                await node.publish("news", own, "ann")
                await node.publish("news", f"secret {own}", "bo")
                await node.publish("news", everybody)
                for stream, found in ((ann, places.own), (bo, places.foreign)):
                    await stream.messages(1)
                    found.append(stream.last_id)
                    await stream.messages(1)
                    found.append(stream.last_id)
        yield places


@pytest.fixture(params=[1, 64], ids="{} shards".format)
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    async with past(tmp_path, request.param) as found:
        yield found


def check(told: Told) -> None:
    """Nothing that isn't ann's; and unless a gap is told, of both logs everything from some place on."""
    assert told.resume in ("gap", "complete")
    assert set(told.messages) <= {*OWN, *ALL, "end"}, told
    if told.resume == "complete":
        for log in (OWN, ALL):
            found = [each for each in told.messages if each in log]
            assert found == log[len(log) - len(found) :], told


async def everywhere(place: Place, position: str) -> list[str]:
    """Brings a position to every call that takes one; what each says of it."""
    found = [await place.stream(position), await place.poll(position)]
    if position.isascii() and position.isprintable() and position.strip():
        found.append(await place.stream(position, header=True))
    for told in found:
        check(told)
    return [told.resume for told in found]


async def test_own_positions_have_all_that_came_after_them(place: Place) -> None:
    for at, position in enumerate(place.own):
        for told in (await place.stream(position), await place.poll(position)):
            check(told)
            assert told.resume == "complete"
            assert len([each for each in told.messages if each != "end"]) == len(OWN) + len(ALL) - at


GARBAGE = (
    *("x", "0", "-", ".", "a-1.b", "a-1.b-", "aaaa-1.bbbb-1x", "*", "$", ">", "0-0", "(1-1", "-1.-1", "null"),
    *("aaaa--1.bbbb-1", "AAAA-1.BBBB-1", "aaaa-1\n.bbbb-1", "aaaa-٣.bbbb-١", "\x00", "' OR 1=1 --"),
    *("aaaa-9999999999999999.bbbb-1", "aaaa-1.bbbb-1,aaaa-1.bbbb-1x", "\ufeffaaaa-1.bbbb-1"),
    *("x" * 10_000, f"aaaa-{'9' * 10_000}.bbbb-1"),
)


async def test_garbage_is_a_gap(place: Place) -> None:
    for garbage in GARBAGE:
        assert set(await everywhere(place, garbage)) == {"gap"}, garbage[:50]


async def test_another_persons_positions_lead_to_ones_own_events_alone(place: Place) -> None:
    for position in place.foreign:
        await everywhere(place, position)


async def test_the_future_is_a_gap_at_once(place: Place) -> None:
    took_s = []
    for broadcast, shard in ((0, 1), (1, 0), (1, 1)):
        # By one call alone: each stream here ends with an event, and then this is the past.
        now = (await place.node.http.get("/v1/events?user=ann")).json()["position"]
        told = await place.poll(moved(now, broadcast, shard))
        check(told)
        assert told.resume == "gap"
        took_s.append(told.took_s)
    # The node doesn't wait for what may come yet: that would be 5 s each time.
    assert min(took_s) < 4
    for broadcast, shard in ((1000, 1000), (10**6, 0), (0, 10**6), (10**14, 10**14)):
        assert set(await everywhere(place, moved(place.own[0], broadcast, shard))) == {"gap"}


async def test_another_epoch_is_a_gap(place: Place) -> None:
    for position in place.own[::6]:
        broadcast, shard = (mark.rpartition("-") for mark in position.split("."))
        for other in (
            f"aaaa-{broadcast[2]}.aaaa-{shard[2]}",
            f"aaaa-{broadcast[2]}.{shard[0]}-{shard[2]}",
            f"{broadcast[0]}-{broadcast[2]}.aaaa-{shard[2]}",
            f"{shard[0]}-{shard[2]}.{broadcast[0]}-{broadcast[2]}",
        ):
            assert set(await everywhere(place, other)) == {"gap"}, other


def moved(position: str, broadcast: int, shard: int) -> str:
    """A position further on, or back."""
    found = []
    for mark, by in zip(position.split("."), (broadcast, shard), strict=True):
        epoch, _, number = mark.rpartition("-")
        found.append(f"{epoch}-{max(0, int(number) + by)}")
    return ".".join(found)


def test_generated_positions_bring_nothing_foreign(tmp_path: Path) -> None:
    resumes: Counter[str] = Counter()
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        place: Place = runner.run(stack.enter_async_context(past(tmp_path, 64)))
        known = st.sampled_from([*place.own, *place.foreign])
        step = st.integers(-12, 3)
        marks = st.builds(lambda one, two: f"{one.split('.')[0]}.{two.split('.')[1]}", known, known)
        cut = st.builds(
            lambda one, at, more: one[:at] + more + one[at:], known, st.integers(0, 30), texts(2, sound=True)
        )

        @fuzz(30)
        @given(st.builds(moved, marks, step, step) | marks | cut)
        def try_out(position: str) -> None:
            resumes.update(runner.run(everywhere(place, position)))

        try:
            try_out()
        finally:
            runner.run(stack.aclose())
    assert resumes["gap"] > 10
    assert resumes["complete"] > 10
