"""Collapse and withdraw: a replay has the newest event of each key, whichever way it is read.

The model: of the events behind a position, those that no later one for the same audience has the key of.
"""

import asyncio
import json
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pushsse import event
from pushsse.backplane import BROADCAST, Entry
from pushsse.event import WITHDRAW, Publication
from pushsse.hub import log_tail
from pushsse.hub.log_tail import Ahead, Newest
from tests.hub.running_hub import ListSink, RunningHub, appends, running_hub

pytestmark = pytest.mark.anyio
PEOPLE = ("p1", "p2")


@dataclass(frozen=True)
class Given:
    """One event: its key, whom it is for (nobody: everybody), and whether it takes others away."""

    key: str
    users: tuple[str, ...]
    withdraws: bool
    type: str = "news"

    def publication(self, number: int) -> Publication:
        to: object = {"users": list(self.users)} if self.users else "all"
        members: dict[str, object] = {"type": self.type, "to": to, "message": number}
        if self.key:
            members["withdraw" if self.withdraws else "collapse"] = self.key
        made = event.from_json(members)
        return event.publication(made, event_id=str(number), at=datetime.now(UTC), max_age_s=600)


def left(events: list[Given], user: str, start: int) -> list[str]:
    """The ids that a replay behind the first `start` events has for a person."""
    theirs = [
        (n, each) for n, each in enumerate(events) if n >= start and (not each.users or user in each.users)
    ]
    return [
        str(n)
        for n, each in theirs
        if not each.key
        or not any(m > n and (bool(e.users), e.key) == (bool(each.users), each.key) for m, e in theirs)
    ]


def ids(sink: ListSink) -> list[str]:
    return [json.loads(data)["id"] for name, data, _ in sink.frames if name in ("news", "alarm", WITHDRAW)]


EVENTS = st.lists(
    st.builds(
        Given,
        key=st.sampled_from(["", "a", "b"]),
        users=st.sampled_from([(), ("p1",), ("p2",), PEOPLE]),
        withdraws=st.booleans(),
    ),
    max_size=14,
)


async def publish(hub: RunningHub, number: int, each: Given) -> None:
    made = each.publication(number)
    if len(each.users) < 2:
        await hub.backplane.publish(appends(made, each.users))
        return
    # As the dispatcher does it: each shard's log has its own people.
    for user in each.users:
        await hub.backplane.publish(appends(msgspec.structs.replace(made, users=(user,)), (user,)))


@pytest.mark.parametrize("source", ["tail", "log", "log before the node's time"])
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(events=EVENTS, data=st.data())
def test_a_replay_has_the_newest_of_each_key_in_order_whatever_it_is_read_from(
    source: str, events: list[Given], data: st.DataObject
) -> None:
    async def run() -> None:
        async with running_hub() as hub:
            follower = {user: await hub.open(user) for user in PEOPLE}
            places = []
            for number, each in enumerate(events):
                places.append(
                    {user: str(hub.hub.position(follower[user].subscriber.person)) for user in PEOPLE}
                )
                await publish(hub, number, each)
                await hub.settled()
            # Live, everything comes.
            for user in PEOPLE:
                got = [str(n) for n, each in enumerate(events) if not each.users or user in each.users]
                assert ids(follower[user]) == got
            if source != "tail":
                hub.forget_tails()
            if source == "log before the node's time":
                for tail in (hub.hub.broadcast, *(shard.log for shard in hub.hub.shards.values())):
                    tail.newest.clear()
            if not events:
                return
            start = data.draw(st.integers(0, len(events) - 1))
            for user in PEOPLE:
                sink = await hub.open(user, places[start][user])
                await hub.settled()
                assert ids(sink) == left(events, user, start)
                # In between: what came before isn't taken back, and places stay in order.
                frames = sink.frames
                for count, (_, _, place) in enumerate(frames[1:], 1):
                    again = await hub.open(user, place)
                    await hub.settled()
                    assert ids(again) == ids(sink)[count:]

    asyncio.run(run())


@settings(max_examples=15, deadline=None)
@given(events=EVENTS)
def test_a_slow_streams_backlog_is_collapsed_and_what_it_wrote_before_stays(events: list[Given]) -> None:
    async def run() -> None:
        async with running_hub() as hub:
            sink = await hub.open("p1")
            sink.pause_after = 1
            for number, each in enumerate(events):
                await publish(hub, number, each)
            await hub.settled()
            before = ids(sink)
            sink.resume()
            await hub.settled()
            start = int(before[-1]) + 1 if before else len(events)
            assert ids(sink) == before + left(events, "p1", start)

    asyncio.run(run())


async def test_what_a_person_doesnt_get_replaces_nothing() -> None:
    async with running_hub() as hub:
        first = await hub.open("p1")
        start = str(hub.hub.position(first.subscriber.person))
        await publish(hub, 0, Given("a", (), False, "news"))
        await publish(hub, 1, Given("a", (), False, "alarm"))
        await hub.settled()
        assert ids(await settled(hub, start)) == ["1"]
        assert ids(await settled(hub, start, types=frozenset({"news"}))) == ["0"]
        await hub.switch("p1", 1, set(), {"alarm"})
        await hub.settled()
        assert ids(await settled(hub, start)) == ["0"]
        # What takes away comes whatever is switched off, and however narrow the stream is.
        await publish(hub, 2, Given("a", (), True, "alarm"))
        await hub.settled()
        assert ids(await settled(hub, start, types=frozenset({"other"}))) == ["2"]


@pytest.mark.parametrize("source", ["tail", "log"])
@pytest.mark.parametrize("newer", ["news", "alarm"])
async def test_what_came_while_its_type_was_off_replaces_nothing(source: str, newer: str) -> None:
    async with running_hub() as hub:
        follower = await hub.open("p1")
        start = str(hub.hub.position(follower.subscriber.person))
        await publish(hub, 0, Given("a", (), False))
        await publish(hub, 1, Given("b", ("p1",), False))
        await hub.switch("p1", 1, set(), {newer})
        await publish(hub, 2, Given("a", (), False, newer))
        await publish(hub, 3, Given("b", ("p1",), False, newer))
        await hub.switch("p1", 2, {newer}, set())
        await hub.settled()
        assert ids(follower) == ["0", "1"]
        if source == "log":
            hub.forget_tails()
        # As live: what the person got is still the newest for them, though the type is on again.
        assert ids(await settled(hub, start)) == ["0", "1"]
        # From here on the switches stay as they are, and the newest counts alone.
        await publish(hub, 4, Given("a", (), False))
        await publish(hub, 5, Given("a", (), False))
        await hub.settled()
        assert ids(await settled(hub, follower.frames[-2][2])) == ["5"]


async def settled(hub: RunningHub, start: str, **options: object) -> ListSink:
    sink = await hub.open("p1", start, **options)
    await hub.settled()
    return sink


async def test_another_epoch_of_a_log_forgets_what_was_replaced_in_the_one_before() -> None:
    async with running_hub() as hub:
        first = await hub.open("p1")
        for number in range(3):
            await publish(hub, number, Given("a", (), False))
        await hub.settled()
        [entry] = hub.hub.broadcast.after(0, 1)
        assert hub.hub.broadcast.newest.is_replaced(entry, "p1", lambda _: True)
        hub.lose("all", epoch="another1")
        assert not hub.hub.broadcast.newest.is_replaced(entry, "p1", lambda _: True)
        assert first.subscriber.is_open


def entry(number: int, *users: str, key: str = "a", name: str = "news") -> Entry:
    made = event.encode(name, {}, users=users or None, switchable=True, collapse=key)
    return Entry("1" if users else BROADCAST, number, number, 0, made)


def test_the_newest_are_bounded_and_the_oldest_forgotten_first() -> None:
    known = Newest(most=3)
    for number, key in enumerate("abcabd", 1):
        known.note(entry(number, key=key))
    replaced = {key for key in "abcd" if known.is_replaced(entry(0, key=key), "ann", lambda _: True)}
    assert replaced == {"a", "b", "d"}
    # Read once more, an older one takes nothing back.
    known.note(entry(1, key="b"))
    assert known.is_replaced(entry(4, key="b"), "ann", lambda _: True)


def test_what_is_for_very_many_people_is_looked_for_in_the_piece_that_was_read() -> None:
    known, many = Newest(most=10_000), tuple(f"p{n}" for n in range(log_tail.MOST_NOTED + 1))
    entries = [entry(1, "p1"), entry(2, *many), entry(3, "p2")]
    for each in entries:
        known.note(each)
    assert not known.is_replaced(entries[0], "p1", lambda _: True)
    ahead = Ahead(entries, "p1", lambda _: True)
    assert [ahead.replaces(index, each.publication) for index, each in enumerate(entries)] == [
        True,
        False,
        False,
    ]
