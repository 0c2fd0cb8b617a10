"""Catch-up reads what a stream missed from the log where the node's memory doesn't reach back that far."""

from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from pushsse.backplane import Page
from pushsse.errors import BackplaneUnavailable, CloseReason
from pushsse.hub.catch_up import Replay
from pushsse.position import parse
from pushsse.stream.subscriber import Behind, Cursor, Off
from tests.hub.running_hub import Reads, RunningHub, running_hub
from tests.waiting import eventually

pytestmark = pytest.mark.anyio


async def missed_by_p1(w: RunningHub) -> str:
    """A position before three events that the node has forgotten and the log has."""
    start = (await w.open("p1")).frames[0][2]
    for number in range(3):
        await w.publish("news", number, *(["p1"] if number == 1 else []))
    await w.settled()
    w.forget_tails()
    return start


async def test_what_the_node_has_forgotten_is_read_from_the_log() -> None:
    async with running_hub() as w:
        again = await w.open("p1", await missed_by_p1(w))
        await w.settled()
        assert again.data() == ["0", "1", "2"]
        assert again.live


async def test_a_stream_that_ends_while_its_log_is_read_gets_nothing_after_its_last_frame(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running_hub() as w:
        sink = await w.open("p1", await missed_by_p1(w))
        reads = Reads(w.backplane, monkeypatch)
        await eventually(lambda: reads.count == 1)
        sink.subscriber.end(CloseReason.LIFETIME)
        reads.gate.set()
        await eventually(lambda: reads.returned == 1)
        assert [name for name, _, _ in sink.frames] == ["ready", "exception"]
        assert not sink.after_end


async def test_a_log_that_is_lost_while_it_is_read_is_told_before_anything_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running_hub() as w:
        sink = await w.open("p1", await missed_by_p1(w))
        reads = Reads(w.backplane, monkeypatch)
        await eventually(lambda: reads.count == 1)
        for log in ("all", sink.subscriber.person.log):
            w.lose(log, epoch="another1")
        reads.gate.set()
        await eventually(lambda: sink.live)
        assert [name for name, _, _ in sink.frames] == ["ready", "ready"]
        assert '"resume":"gap"' in sink.frames[1][1]
        assert sink.frames[1][2] == str(w.hub.position(sink.subscriber.person))


async def test_a_stream_is_served_once_the_backplane_answers_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_hub() as w:
        sink = await w.open("p1", await missed_by_p1(w))
        reads = Reads(w.backplane, monkeypatch)
        reads.gate.set()
        reads.error = BackplaneUnavailable("away")
        await eventually(lambda: reads.count >= 2)
        assert isinstance(sink.subscriber.state, Behind)
        reads.error = None
        await eventually(lambda: sink.live)
        assert sink.data() == ["0", "1", "2"]


async def test_entries_of_an_epoch_that_the_node_has_not_heard_of_wait_until_it_has() -> None:
    async with running_hub() as w:
        start = parse(await missed_by_p1(w))
        assert start is not None
        person = w.hub.hold("p1")

        class Flushed:
            """The broadcast log begins anew, as after a flush of Redis, and the node doesn't know it yet."""

            async def read(self, after: Mapping[str, int], *, limit: int) -> Page:
                page = await w.backplane.read(after, limit=limit)
                lost = msgspec.structs.replace(page.heads["all"], epoch="another1")
                return page._replace(heads={**page.heads, "all": lost})

        flushed: Any = Flushed()
        entries = await Replay(w.hub, flushed).entries(Cursor(person, start, Off()))
        assert [entry.log for entry in entries] == [person.log]
        w.hub.release(person)
