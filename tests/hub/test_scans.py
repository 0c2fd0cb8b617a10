"""Who goes through much of the log does so in turn: few at a time, person after person, half of the loop."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from pushsse.backplane import BROADCAST, Append, Draft
from pushsse.event import encode
from pushsse.hub.catch_up import MOST_WAITING_EACH, SCANS_AT_ONCE, Scans, ScansBusy
from pushsse.hub.opening import From
from tests.hub.running_hub import running_hub
from tests.serving import LIMIT_S, Running, serving
from tests.waiting import eventually

pytestmark = pytest.mark.anyio
LINES = b'{"type":"t","to":"all","message":1}\n' * 2_000
OLD = "/v1/events?user={}&since=1d&types=nothing"


class Turns:
    """Calls that take a turn each, hold it until they are let go, and say when theirs began."""

    def __init__(self, scans: Scans, tasks: asyncio.TaskGroup) -> None:
        self.scans = scans
        self.began: list[str] = []
        self._tasks = tasks
        self._ends: dict[str, asyncio.Event] = {}

    async def begin(self, name: str) -> "asyncio.Task[None]":
        self._ends[name] = asyncio.Event()
        task = self._tasks.create_task(self._hold(name))
        # One turn of the loop: it has its turn then, or waits for it.
        await asyncio.sleep(0)
        return task

    async def _hold(self, name: str) -> None:
        async with self.scans.turn(name[:3], limit_s=None):
            self.began.append(name)
            await self._ends[name].wait()

    async def end(self, name: str, *, then: int) -> None:
        """Ends one; `then` have begun after that."""
        self._ends[name].set()
        await eventually(lambda: len(self.began) == then)


async def test_one_person_has_one_turn_and_others_come_between_theirs() -> None:
    async with asyncio.TaskGroup() as tasks:
        turns = Turns(Scans(), tasks)
        for name in ("ann1", "ann2", "ann3", "bob1", "cat1", "dan1", "dan2"):
            await turns.begin(name)
        # The second of ann's waits although there was room when it came.
        assert turns.began == ["ann1", "bob1"]
        await turns.end("ann1", then=3)
        await turns.end("ann2", then=4)
        await turns.end("bob1", then=5)
        await turns.end("cat1", then=6)
        await turns.end("dan1", then=7)
        assert turns.began == ["ann1", "bob1", "ann2", "cat1", "dan1", "ann3", "dan2"]
        for name in ("ann3", "dan2"):
            await turns.end(name, then=7)


async def test_a_call_that_leaves_the_line_takes_no_turn() -> None:
    async with asyncio.TaskGroup() as tasks:
        turns = Turns(Scans(), tasks)
        for name in ("ann1", "bob1", "cat1", "dan1"):
            last = await turns.begin(name)
        gone = await turns.begin("eve1")
        gone.cancel()
        # Gives its turn on in the round of the loop in which it would have had it.
        last.cancel()
        await turns.end("ann1", then=3)
        await turns.begin("fay1")
        await turns.end("bob1", then=4)
        assert turns.began == ["ann1", "bob1", "cat1", "fay1"]
        for name in ("cat1", "fay1"):
            await turns.end(name, then=4)
        await eventually(lambda: last.cancelled() and gone.cancelled())
        await turns.begin("dan2")
        await turns.begin("eve2")
        assert turns.began[4:] == ["dan2", "eve2"]
        for name in ("dan2", "eve2"):
            await turns.end(name, then=6)


async def test_so_many_of_one_person_wait_and_for_so_long() -> None:
    async with asyncio.TaskGroup() as tasks:
        turns = Turns(Scans(), tasks)
        await turns.begin("ann0")
        with pytest.raises(ScansBusy, match="within 0 s"):
            async with turns.scans.turn("ann", limit_s=0.01):
                pass
        names = [f"ann{number}" for number in range(1, MOST_WAITING_EACH + 1)]
        for name in names:
            await turns.begin(name)
        with pytest.raises(ScansBusy, match="too many"):
            async with turns.scans.turn("ann", limit_s=LIMIT_S):
                pass
        # Somebody else has a turn at once.
        async with turns.scans.turn("bob", limit_s=LIMIT_S):
            assert turns.began == ["ann0"]
        for number, name in enumerate(["ann0", *names], 1):
            await turns.end(name, then=min(number + 1, len(names) + 1))


async def test_all_scans_together_leave_half_of_the_loop() -> None:
    scans = Scans()
    used_s = 0.0

    async def scan(person: str) -> None:
        nonlocal used_s
        async with scans.turn(person, limit_s=None):
            for _ in range(10):
                async with scans.piece():
                    began = time.thread_time()
                    while time.thread_time() - began < 0.004:
                        pass
                    used_s += time.thread_time() - began

    began = time.monotonic()
    async with asyncio.TaskGroup() as tasks:
        for number in range(4):
            tasks.create_task(scan(f"u{number}"))
    # The last piece needs no rest after it.
    assert time.monotonic() - began > 2 * used_s - 0.02


async def test_streams_that_are_to_get_nothing_of_a_long_log_wait_in_line_and_go_live() -> None:
    async with running_hub() as w, AsyncExitStack() as held:
        drafts = tuple(Draft(encode("t", 1, users=None, switchable=True)) for _ in range(1_000))
        for _ in range(3):
            await w.backplane.publish([Append(BROADCAST, drafts)])
        scans = w.parts.replay.scans
        for number in range(SCANS_AT_ONCE):
            await held.enter_async_context(scans.turn(f"other{number}", limit_s=None))
        nothing = await w.open("p1", From(since_s=60), types=frozenset({"nothing"}))
        whole = await w.open("p2", From(since_s=60))
        # What is slowed down by its socket needs no turn.
        await eventually(lambda: whole.live)
        assert len(whole.data()) == 3_000
        assert not nothing.live
        await held.aclose()
        await eventually(lambda: nothing.live)
        assert nothing.data() == []


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Running]:
    async with serving(tmp_path) as running_node:
        headers = {"Content-Type": "application/x-ndjson"}
        for _ in range(2):
            reply = await running_node.http.post("/v1/events", content=LINES, headers=headers)
            assert reply.json()["accepted"] == 2_000
        yield running_node


async def test_a_call_without_a_turn_is_told_to_come_again_and_others_notice_nothing(
    node: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pushsse.api.polls.SCAN_WAIT_S", 0.05)
    scans = node.node.hub_parts.replay.scans
    async with AsyncExitStack() as held:
        for number in range(SCANS_AT_ONCE):
            await held.enter_async_context(scans.turn(f"other{number}", limit_s=None))
        refused = await node.http.get(OLD.format("ann"))
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "5"
        assert refused.json()["code"] == "overloaded"
        # With something in hand there is an answer, and what comes after it can be asked for.
        found = (await node.http.get("/v1/events?user=ann&since=1d&limit=1000")).json()
        assert found["more"]
        assert 0 < len(found["events"]) <= 500
        # What is read in one piece needs no turn.
        now = (await node.http.get("/v1/events?user=ann")).json()["position"]
        assert (await node.http.get(f"/v1/events?user=ann&after={now}")).json()["events"] == []
        await node.publish("x", 1)
        news = (await node.http.get(f"/v1/events?user=ann&after={now}")).json()
        assert [each["event"] for each in news["events"]] == ["x"]
        assert not news["more"]
    whole = (await node.http.get(OLD.format("ann"))).json()
    assert (whole["events"], whole["more"]) == ([], False)


async def test_many_calls_of_one_person_are_answered_one_after_another(node: Running) -> None:
    replies = await asyncio.gather(*(node.http.get(OLD.format("ann")) for _ in range(MOST_WAITING_EACH)))
    assert {reply.status_code for reply in replies} == {200}
    assert not any(reply.json()["more"] for reply in replies)
