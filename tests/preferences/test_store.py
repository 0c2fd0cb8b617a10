import asyncio
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
from msgspec.structs import replace

from pushsse.database import Database, Session, Statement
from pushsse.database.connection import Reader
from pushsse.errors import InvalidInput
from pushsse.people import StateTable
from pushsse.position import Mark
from pushsse.preferences.catalogue import EventType
from pushsse.preferences.store import PreferenceStore

pytestmark = pytest.mark.anyio


async def add_types(database: Database, **types: Mapping[str, Any]) -> None:
    async with database.session():
        for name, given in types.items():
            await EventType.create(name=name, **given)


@contextmanager
def counted() -> Iterator[list[Statement]]:
    """The statements that reach the database inside the block."""
    asked: list[Statement] = []
    real, really = Session.rows, Reader.rows

    def rows(self, make, statement, *values):  # type: ignore[no-untyped-def]
        asked.append(statement)
        return real(self, make, statement, *values)

    def read(self, make, statement, values):  # type: ignore[no-untyped-def]
        found = really(self, make, statement, values)
        if found is not None:
            asked.append(statement)
        return found

    with patch.object(Session, "rows", rows), patch.object(Reader, "rows", read):
        yield asked


async def test_nobody_has_anything_off_at_first(store: PreferenceStore, states: StateTable) -> None:
    assert await store.off_among(["ann"], ["alarm"]) == frozenset()
    switches = (await states.read(["ann"]))["ann"]
    assert (switches.version, switches.off, switches.pending, switches.logged) == (
        0,
        frozenset(),
        False,
        None,
    )
    assert switches.open_question is False


async def test_a_switch_is_off_until_it_is_switched_on_again(
    store: PreferenceStore, states: StateTable
) -> None:
    await store.join(["alarm", "news"], hidden=False)
    [first] = await store.change("ann", {"alarm": False})
    assert (first.version, first.changed, first.before, first.after) == (1, {"alarm": False}, (), ("alarm",))
    assert (await states.read(["ann"]))["ann"].off == {"alarm"}
    assert await store.off_among(["ann", "bo"], ["alarm", "news"]) == {("ann", "alarm")}
    changes = await store.change("ann", {"alarm": True, "news": True})
    assert [c.version for c in changes] == [1, 2]
    assert (changes[1].changed, changes[1].before, changes[1].after) == ({"alarm": True}, ("alarm",), ())
    assert await store.off_among(["ann"], ["alarm", "news"]) == frozenset()


async def test_what_changes_nothing_has_no_number_and_still_names_what_is_left(
    store: PreferenceStore, states: StateTable
) -> None:
    await store.join(["alarm", "news"], hidden=False)
    assert await store.change("ann", {"alarm": True}) == []
    [left] = await store.change("ann", {"alarm": False})
    assert not left.waited
    assert await store.change("ann", {"alarm": False}) == [replace(left, waited=True)]
    assert (await states.read(["ann"]))["ann"].version == 1


async def test_a_choice_stays_when_the_default_changes(
    store: PreferenceStore, database: Database, states: StateTable
) -> None:
    await store.join(["alarm"], hidden=False)
    await store.change("ann", {"alarm": True})
    async with database.session():
        await EventType.filter(name="alarm").update(default_on=False)
    assert await store.off_among(["ann", "bo"], ["alarm"]) == {("bo", "alarm")}
    assert (await states.read(["ann"]))["ann"].off == frozenset()
    assert (await states.read(["bo"]))["bo"].off == {"alarm"}


async def test_all_that_is_wrong_with_a_change_is_said_at_once(
    store: PreferenceStore, database: Database, states: StateTable
) -> None:
    await add_types(database, alarm={}, law={"mandatory": True}, secret={"hidden": True})
    with pytest.raises(InvalidInput) as caught:
        await store.change("ann", {"alarm": False, "law": False, "secret": False, "nope": True})
    assert [p.at for p in caught.value.violations] == ["$.types.law", "$.types.secret", "$.types.nope"]
    assert (await states.read(["ann"]))["ann"].version == 0
    assert (await states.read(["ann"]))["ann"].off == frozenset()


async def test_a_mandatory_type_is_never_off(
    store: PreferenceStore, database: Database, states: StateTable
) -> None:
    await add_types(database, law={"default_on": False, "mandatory": True}, alarm={})
    await store.change("ann", {"alarm": False})
    async with database.session():
        await EventType.filter(name="alarm").update(mandatory=True)
    assert await store.off_among(["ann"], ["law", "alarm"]) == frozenset()
    assert (await states.read(["ann"]))["ann"].off == frozenset()
    assert [(p.name, p.enabled, p.mandatory) for p in (await store.preferences("ann")).types] == [
        ("law", True, True),
        ("alarm", True, True),
    ]


async def test_preferences_come_in_the_order_of_the_catalogue_without_hidden_ones(
    store: PreferenceStore, database: Database
) -> None:
    await store.join(["zebra"], hidden=False)
    await store.join(["ghost"], hidden=True)
    await add_types(database, ant={"title": "Ants", "description": "small", "default_on": False})
    await store.join(["zebra", "ant", "bee"], hidden=False)
    seen = [
        (p.name, p.title, p.description, p.category, p.enabled)
        for p in (await store.preferences("ann")).types
    ]
    assert seen == [
        ("zebra", "zebra", "", "", True),
        ("ant", "Ants", "small", "", False),
        ("bee", "bee", "", "", True),
    ]
    assert await store.known() == {"zebra", "ghost", "ant", "bee"}


async def test_the_catalogue_ends_at_a_thousand_types(store: PreferenceStore) -> None:
    await asyncio.gather(
        *(
            store.join([f"t{i}" for i in range(start, start + 400)], hidden=False)
            for start in (0, 300, 600, 900)
        )
    )
    assert len(await store.known()) == 1000
    await store.join(["one.more"], hidden=False)
    assert len(await store.known()) == 1000


async def test_changes_at_once_are_numbered_without_a_hole_and_chain(
    store: PreferenceStore, states: StateTable
) -> None:
    names = [f"t{i}" for i in range(6)]
    await store.join(names, hidden=False)
    chance = random.Random(7)
    wanted = [{name: chance.random() < 0.5 for name in chance.sample(names, 3)} for _ in range(40)]
    await asyncio.gather(*(store.change("ann", one) for one in wanted))
    changes = await store.pending("ann")
    assert [c.version for c in changes] == list(range(1, len(changes) + 1))
    off: tuple[str, ...] = ()
    for change in changes:
        assert change.before == off
        assert change.changed
        expected = set(off) | {n for n, on in change.changed.items() if not on}
        expected -= {n for n, on in change.changed.items() if on}
        assert set(change.after) == expected != set(off)
        off = change.after
    assert (await states.read(["ann"]))["ann"].off == set(off)
    assert (await states.read(["ann"]))["ann"].version == len(changes)


async def test_first_changes_of_many_people_at_once(store: PreferenceStore, states: StateTable) -> None:
    await store.join(["alarm"], hidden=False)
    people = [f"user{i}" for i in range(20)] * 2
    await asyncio.gather(*(store.change(user, {"alarm": False}) for user in people))
    assert {(await states.read([user]))[user].version for user in people} == {1}


async def test_what_is_logged_is_forgotten_and_never_goes_back(
    store: PreferenceStore, states: StateTable
) -> None:
    await store.join(["alarm"], hidden=False)
    for on in (False, True, False):
        await store.change("ann", {"alarm": on})
    assert (await states.read(["ann"]))["ann"].pending
    assert await store.pending_users(older_than_s=0) == ["ann"]
    assert await store.pending_users(older_than_s=60) == []
    await store.logged("ann", 2, Mark("abcd", 5))
    assert [c.version for c in await store.pending("ann")] == [3]
    assert (await states.read(["ann"]))["ann"].logged == Mark("abcd", 5)
    assert (await states.read(["ann"]))["ann"].pending
    await store.logged("ann", 3, Mark("efgh", 1))
    await store.logged("ann", 2, Mark("abcd", 5))
    switches = (await states.read(["ann"]))["ann"]
    assert (switches.pending, switches.logged, await store.pending("ann")) == (False, Mark("efgh", 1), [])


async def test_off_among_agrees_with_a_model_of_it(
    store: PreferenceStore, database: Database, states: StateTable
) -> None:
    chance = random.Random(11)
    types = {
        f"t{i}": {"default_on": chance.random() < 0.6, "mandatory": chance.random() < 0.2} for i in range(8)
    }
    await add_types(database, **types)
    users = [f"user{i}" for i in range(30)]
    chosen: dict[tuple[str, str], bool] = {}
    for user in users:
        for name in chance.sample(sorted(types), chance.randint(0, 5)):
            on = chance.random() < 0.5 or types[name]["mandatory"]
            await store.change(user, {name: on})
            chosen[user, name] = on
    for _ in range(40):
        some = chance.sample([*users, "stranger"], chance.randint(1, 31))
        asked = chance.sample([*types, "unknown"], chance.randint(1, 9))
        off = {
            (user, name)
            for user in some
            for name in asked
            if name in types
            and not types[name]["mandatory"]
            and not chosen.get((user, name), types[name]["default_on"])
        }
        assert await store.off_among(some, asked) == off
    for user in users:
        expected = {n for n in types if (user, n) in await store.off_among([user], list(types))}
        assert (await states.read([user]))[user].off == expected


async def test_dispatch_and_an_opening_stream_ask_one_question_each(
    store: PreferenceStore, states: StateTable
) -> None:
    await store.join(["alarm"], hidden=False)
    await store.change("ann", {"alarm": False})
    with counted() as asked:
        await store.off_among([f"user{i}" for i in range(20_000)] + ["ann"], ["alarm", "news"])
    assert len(asked) == 1
    with counted() as asked:
        await states.read(["ann"])
    assert len(asked) == 1
