"""Switches that follow from one catalogue, and nodes that know another one."""

from dataclasses import dataclass, field

import pytest

from pushsse.backplane import log_of
from pushsse.event import Change, encode
from pushsse.hub.people import PersonState
from tests.waiting import eventually

from .running_hub import SHARDS, RunningHub, appends, running_hub

pytestmark = pytest.mark.anyio


@dataclass
class Catalogue:
    """What a node knows of it: the revision with which each type's rules last changed."""

    revision: int = 0
    types: dict[str, int] = field(default_factory=dict)

    def changed_since(self, name: str, revision: int) -> bool:
        return self.types.get(name, 0) > revision


async def change(w: RunningHub, version: int, after: tuple[str, ...], *, revision: int) -> None:
    made = encode("preferences", {}, users=("p1",), change=Change("p1", version, (), after, revision))
    await w.backplane.publish(appends(made, ("p1",)))


@pytest.mark.parametrize("revision", [0, 1], ids=["older release", "older catalogue"])
async def test_a_change_by_an_older_catalogue_has_the_switches_read_again(revision: int) -> None:
    async with running_hub(rules=Catalogue(2)) as w:
        w.people.known["p1"] = PersonState(0, frozenset({"promo"}), False, None, False, revision=2)
        live = await w.open("p1")
        # What the database says from now on: the type of the category is off, too.
        found = PersonState(1, frozenset({"promo", "news"}), False, None, False, revision=2)
        w.people.known["p1"] = found
        await change(w, 1, ("news",), revision=revision)
        await eventually(lambda: live.subscriber.person.off == {"promo", "news"})
        await w.publish("promo", "off")
        await w.publish("other", "on", "p1")
        await w.settled()
        assert live.data() == ['"on"']


@pytest.mark.parametrize("revision", [2, 3], ids=["the node's own", "newer"])
async def test_a_change_by_as_new_a_catalogue_is_taken_from_the_log_alone(revision: int) -> None:
    async with running_hub(rules=Catalogue(2)) as w:
        live = await w.open("p1")
        w.people.known["p1"] = PersonState(9, frozenset({"everything"}), False, None, False, revision=2)
        await change(w, 1, ("news",), revision=revision)
        await w.publish("news", "off")
        await w.publish("other", "on")
        await w.settled()
        assert live.subscriber.person.off == {"news"}
        assert live.data() == ['"on"']


async def test_what_was_off_by_rules_that_have_changed_is_replayed() -> None:
    rules = Catalogue()
    async with running_hub(rules=rules) as w:
        start = (await w.open("p1")).frames[0][2]
        await w.switch("p1", 1, set(), {"terms", "news"})
        for name in ("terms", "news"):
            await w.publish(name, name)
        await w.switch("p1", 2, {"terms", "news"}, set())
        await w.settled()
        again = await w.open("p1", start)
        await w.settled()
        assert again.data() == []
        # From then on it was mandatory, or on by default.
        rules.types["terms"] = 1
        again = await w.open("p1", start)
        await w.settled()
        assert again.data() == ['"terms"']


async def test_everybody_on_a_node_is_read_again_and_who_is_there_already_isn_t() -> None:
    rules = Catalogue()
    async with running_hub(rules=rules) as w:
        people = [f"p{number}" for number in range(150)]
        streams = {user: await w.open(user) for user in people}
        for user in people:
            w.people.known[user] = PersonState(0, frozenset({"promo"}), False, None, False, revision=1)
        newer = await w.open("late")
        newer.subscriber.person.learn(5, frozenset(), revision=1)
        rules.revision = 1
        concerned = w.hub.people_before(1)
        assert {person.name for person in concerned} == set(people)
        w.parts.refresh.switches(concerned)
        await eventually(lambda: not w.hub.people_before(1))
        await w.publish("promo", 1)
        await w.publish("news", 2, *people)
        await w.settled()
        assert newer.data() == ["1"]
        assert {tuple(stream.data()) for stream in streams.values()} == {("2",)}
        assert len({log_of(user, SHARDS) for user in people}) == SHARDS


async def test_what_is_off_by_default_is_in_memory_once_however_many_people_there_are() -> None:
    async with running_hub() as w:
        names = [f"t{number}" for number in range(200)]
        for user in ("p1", "p2", "p3"):
            # As each statement of the database makes it.
            w.people.known[user] = PersonState(0, frozenset(names), False, None, False)
        one, other, third = [(await w.open(user)).subscriber.person for user in ("p1", "p2", "p3")]
        assert one.off is other.off is third.off
        third.learn(1, frozenset(names[1:]))
        await w.publish("t0", 1)
        await w.publish("t1", 2)
        await w.publish("other", 3)
        await w.settled()
        assert [sink.data() for sink in w.sinks] == [["3"], ["3"], ["1", "3"]]


async def test_an_older_state_that_comes_late_changes_nothing() -> None:
    async with running_hub() as w:
        person = (await w.open("p1")).subscriber.person
        person.learn(4, frozenset({"a"}), revision=7, quiet='{"zone":"UTC"}')
        person.learn(4, frozenset({"b"}), revision=6, quiet="")
        person.learn(3, frozenset({"c"}), revision=9, quiet="")
        assert (set(person.off), person.quiet) == ({"a"}, '{"zone":"UTC"}')
        person.learn(5, frozenset({"d"}), revision=6)
        assert (set(person.off), person.revision, person.quiet) == ({"d"}, 6, '{"zone":"UTC"}')
