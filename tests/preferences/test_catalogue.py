"""The catalogue as it is set, and who gets what by it: on both databases."""

import asyncio
import random
from functools import partial
from pathlib import Path

import pytest
from msgspec import UNSET
from msgspec.structs import replace

from deploy.parts import Postgres
from pushsse.backplane.memory import MemoryBackplane
from pushsse.database import Database
from pushsse.errors import InvalidInput, SettingsError
from pushsse.metrics import Metrics
from pushsse.people import StateTable
from pushsse.preferences import Preferences
from pushsse.preferences.catalogue import (
    Catalogue,
    CatalogueFull,
    CatalogueRow,
    CatalogueStore,
    Chosen,
    EventType,
    NamedType,
    TypeInFile,
    TypeRules,
    declared,
)
from pushsse.preferences.quiet import QuietWindow, Schedule
from pushsse.preferences.store import PreferenceStore
from pushsse.settings import load
from pushsse.stream.subscriber import Person
from tests.waiting import eventually

pytestmark = pytest.mark.anyio


@pytest.fixture
def catalogue(database: Database) -> CatalogueStore:
    """With revisions that count from 1."""
    return CatalogueStore(database, numbers_after=lambda: 0)


async def off(states: StateTable, user: str) -> set[str]:
    return set((await states.read([user]))[user].off)


async def test_a_type_is_set_and_set_anew_and_removed(
    catalogue: CatalogueStore, store: PreferenceStore
) -> None:
    texts = {"en": "Alarms", "zh": "警报"}
    assert await catalogue.put(
        "alarm", TypeRules(title=texts, description="loud", category="ops", urgent=True)
    )
    assert await catalogue.put("news", TypeRules(order=-1))
    [news, alarm] = await catalogue.all()
    assert (news.name, alarm.name, alarm.title, alarm.description) == ("news", "alarm", texts, "loud")
    assert (alarm.category, alarm.urgent, alarm.default, alarm.in_file) == ("ops", True, True, False)
    assert [(p.name, p.title, p.urgent) for p in (await store.preferences("ann", ("zh",))).types] == [
        ("news", "news", UNSET),
        ("alarm", "警报", True),
    ]
    # What isn't said is as by default, whatever was before.
    assert not await catalogue.put("alarm", TypeRules(title="Alarm"))
    again = next(one for one in await catalogue.all() if one.name == "alarm")
    assert (again.title, again.description, again.category, again.urgent) == ("Alarm", "", "", False)
    assert await catalogue.remove("alarm")
    assert not await catalogue.remove("alarm")
    assert await store.known() == {"news"}


async def test_what_people_chose_outlasts_a_type_that_goes_and_comes_back(
    catalogue: CatalogueStore, store: PreferenceStore, states: StateTable
) -> None:
    await catalogue.put("news", TypeRules(default=False))
    assert await off(states, "bo") == {"news"}
    await store.change("ann", {"news": True})
    await catalogue.remove("news")
    assert await off(states, "bo") == set()
    await store.join(["news"], hidden=False)
    await store.change("bo", {"news": False})
    await catalogue.remove("news")
    assert await store.off_among(["ann", "bo"], ["news"]) == {("bo", "news")}
    # It counts, and nobody sees it; another change keeps it.
    await store.join(["alarm"], hidden=False)
    *_, change = await store.change("bo", {"alarm": False})
    assert (change.before, change.after) == (("news",), ("alarm", "news"))
    assert await off(states, "bo") == {"alarm", "news"}
    assert [p.name for p in (await store.preferences("bo")).types] == ["alarm"]
    with pytest.raises(InvalidInput):
        await store.change("bo", {"news": True})
    await store.change("bo", {"alarm": True})
    await catalogue.remove("alarm")
    await store.join(["news"], hidden=False)
    assert [p.enabled for p in (await store.preferences("bo")).types] == [False]


async def test_only_what_changes_who_gets_events_has_a_revision(catalogue: CatalogueStore) -> None:
    async def revision() -> int:
        return (await catalogue.revised()).revision

    assert await revision() == 0
    await catalogue.put("news", TypeRules(title="News", order=7))
    assert await revision() == 0
    await catalogue.put("news", TypeRules(default=False))
    assert await revision() == 1
    await catalogue.put("news", TypeRules(default=False, description="all that is new"))
    assert await revision() == 1
    await catalogue.put("news", TypeRules(mandatory=True))
    await catalogue.put("news", TypeRules(category="marketing"))
    assert await catalogue.revised() == (3, 0, {"news": 3})
    await catalogue.remove("news")
    assert await catalogue.revised() == (4, 4, {})
    # It may have been on or off before.
    await catalogue.put("news", TypeRules())
    assert await catalogue.revised() == (4, 4, {"news": 4})
    await catalogue.remove("news")
    assert await revision() == 4


async def test_what_people_chose_is_counted(catalogue: CatalogueStore, store: PreferenceStore) -> None:
    assert await catalogue.chosen() == ()
    for name in ("alarm", "news", "promo"):
        await catalogue.put(name, TypeRules())
    await store.change("ann", {"alarm": False, "news": True})
    await store.change("bo", {"alarm": False, "news": False})
    assert await catalogue.chosen() == (Chosen("alarm", 0, 2), Chosen("news", 1, 1))


async def test_a_full_catalogue_takes_no_more(catalogue: CatalogueStore, store: PreferenceStore) -> None:
    await store.join([f"t{i}" for i in range(1000)], hidden=False)
    with pytest.raises(CatalogueFull):
        await catalogue.put("one.more", TypeRules())
    assert not await catalogue.put("t7", TypeRules(title="Seven"))


async def test_a_type_of_the_file_is_the_file_s(catalogue: CatalogueStore) -> None:
    file = [NamedType(name="law", mandatory=True), NamedType(name="news", title={"en": "News", "zh": "新闻"})]
    await catalogue.put("news", TypeRules(title="by hand", default=False))
    assert await catalogue.declare(file) == ["law", "news"]
    assert await catalogue.declare(file) == []
    for call in (catalogue.put("law", TypeRules()), catalogue.remove("law")):
        with pytest.raises(TypeInFile, match="'law'"):
            await call
    # From the other node's file it is gone by now.
    assert await catalogue.declare(file[1:]) == ["law"]
    assert not await catalogue.put("law", TypeRules(mandatory=True, title="Law"))
    assert [(one.name, one.title, one.in_file) for one in await catalogue.all()] == [
        ("news", {"en": "News", "zh": "新闻"}, True),
        ("law", "Law", False),
    ]
    assert await catalogue.declare([]) == ["news"]
    assert await catalogue.declare([]) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[[types]]\nname = "a"\n\n[[types]]\nname = "b c"', r'types 2 in .*: name \(line 5\): .*"b c"'),
        ('[[types]]\ntitle = "no name"', r"types 1 in .*: name \(line 1\): "),
        (
            '[[types]]\nname = "a"\n[[types]]\nname = "a"',
            r"types 2 in .*: name \(line 4\): 'a' is there before",
        ),
        ('[[types]]\nname = "ping"', r"name \(line 2\): 'ping'"),
        ('[[types]]\nname = "a"\nmandatory = "yes"', r"mandatory \(line 3\): "),
        ('[[types]]\nname = "a"\ncolour = "red"', r"colour \(line 3\): "),
        ('[[types]]\nname = "a"\ntitle = { "e n" = "x" }', r'title \(line 3\): .*"e n"'),
        ('[[types]]\nname = "a"\ntitle = {}', r"title \(line 3\): "),
        ('[[types]]\nname = "a"\ncategory = "a/b"', r'category \(line 3\): .*"a/b"'),
        ("\n".join(f'[[types]]\nname = "t{i}"' for i in range(1001)), "1001 types, over 1000"),
    ],
)
def test_what_cannot_be_used_in_the_file_is_named_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "pushsse.toml").write_text(text)
    with pytest.raises(SettingsError, match=said):
        declared(load({}, file=tmp_path / "pushsse.toml").types)


def test_a_variable_has_them_as_json() -> None:
    [one] = declared(load({"PUSHSSE_TYPES": '[{"name": "a", "title": {"en": "A", "zh": "甲"}}]'}).types)
    assert one == NamedType(name="a", title={"en": "A", "zh": "甲"})
    with pytest.raises(SettingsError, match=r"types 1 of PUSHSSE_TYPES: category: .*a/b"):
        declared(load({"PUSHSSE_TYPES": '[{"name": "a", "category": "a/b"}]'}).types)
    with pytest.raises(SettingsError, match="PUSHSSE_TYPES: 'news' can't be used: it isn't a JSON list"):
        load({"PUSHSSE_TYPES": "news"})


async def test_a_switch_outweighs_that_of_its_category_and_that_the_default(
    catalogue: CatalogueStore, store: PreferenceStore, states: StateTable
) -> None:
    for name, rules in {
        "promo": TypeRules(category="marketing"),
        "tips": TypeRules(category="marketing", default=False),
        "law": TypeRules(category="marketing", mandatory=True),
        "news": TypeRules(),
    }.items():
        await catalogue.put(name, rules)
    assert await off(states, "ann") == {"tips"}
    [change] = await store.change("ann", {}, categories={"marketing": False})
    assert (change.changed, change.categories) == ({"promo": False}, {"marketing": False})
    assert (change.before, change.after) == (("tips",), ("promo", "tips"))
    assert await off(states, "ann") == {"promo", "tips"}
    # Its own switch, also where that is the default.
    await store.change("ann", {"promo": True})
    assert await off(states, "ann") == {"tips"}
    await store.change("ann", {"tips": False}, categories={"marketing": True})
    assert await off(states, "ann") == {"tips"}
    assert await store.off_among(["ann", "bo"], ["promo", "tips", "law"]) == {("ann", "tips"), ("bo", "tips")}
    # Taken back: what the category says, then the default.
    *_, change = await store.change("ann", {"tips": None})
    assert change.changed == {"tips": True}
    *_, change = await store.change("ann", {}, categories={"marketing": None})
    assert (change.changed, change.categories) == ({"tips": False}, {"marketing": None})
    settled = await store.preferences("ann")
    assert settled.categories == {}
    assert {p.name for p in settled.types if not p.enabled} == {"tips"}
    for wanted in ({"orders": False}, {"": True}):
        with pytest.raises(InvalidInput) as caught:
            await store.change("ann", {}, categories=wanted)
        assert [v.at for v in caught.value.violations] == [f"$.categories.{name}" for name in wanted]


@pytest.mark.usefixtures("patient_reader")
async def test_who_gets_what_agrees_with_a_model_of_it(
    catalogue: CatalogueStore, store: PreferenceStore, states: StateTable, server: Postgres | None
) -> None:
    chance = random.Random(13)
    rules = {
        f"t{i}": TypeRules(
            default=chance.random() < 0.6,
            mandatory=chance.random() < 0.2,
            category=chance.choice(["", "a", "b"]),
        )
        for i in range(9)
    }
    for name, rule in rules.items():
        await catalogue.put(name, rule)
    users = [f"user{i}" for i in range(20)]
    types: dict[tuple[str, str], bool] = {}
    categories: dict[tuple[str, str], bool] = {}
    for user in users:
        for name in chance.sample(sorted(rules), chance.randint(0, 4)):
            on = chance.random() < 0.5 or rules[name].mandatory
            await store.change(user, {name: on})
            types[user, name] = on
        for name in chance.sample(["a", "b"], chance.randint(0, 2)):
            categories[user, name] = chance.random() < 0.5
            await store.change(user, {}, categories={name: categories[user, name]})
    for round_ in range(2):
        if round_:
            # Somebody changes the catalogue: older choices count by the new rules.
            for name in chance.sample(sorted(rules), 4):
                rules[name] = TypeRules(default=chance.random() < 0.5, category=chance.choice(["", "a", "b"]))
                await catalogue.put(name, rules[name])
        everybody = [*users, "stranger"]
        expected = {
            (user, name)
            for user in everybody
            for name, rule in rules.items()
            if not rule.mandatory
            and not types.get((user, name), categories.get((user, rule.category), rule.default))
        }
        assert await store.off_among(everybody, [*rules, "unknown"]) == expected
        for user in everybody:
            wanted = {name for who, name in expected if who == user}
            assert await store.off_among([user], list(rules)) == {(user, name) for name in wanted}
            for name in [*rules, "unknown"]:
                # On SQLite one person's is a question of its own.
                for some in ([user], everybody):
                    wanted_now = {(who, name) for who in some} & expected
                    assert store.off_among_nowait(some, name) == (wanted_now if server is None else None)
            assert await off(states, user) == wanted
            seen = (await store.preferences(user)).types
            assert {p.name for p in seen if not p.enabled} == wanted


async def test_quiet_hours_are_kept_changed_and_told(
    store: PreferenceStore, states: StateTable, database: Database
) -> None:
    night = Schedule(quiet=(QuietWindow(start="22:00", end="07:00"),), zone="Asia/Shanghai")
    [change] = await store.change("ann", {}, schedule=lambda _: night)
    assert change.quiet is not None
    assert (change.changed, change.after) == ({}, ())
    assert (await store.preferences("ann")).schedule == night
    assert (await states.read(["ann"]))["ann"].quiet == change.quiet
    assert await store.change("ann", {}, schedule=lambda before: before) == [replace(change, waited=True)]
    with pytest.raises(InvalidInput, match="Asia/Shangai"):
        await store.change("ann", {}, schedule=lambda before: Schedule(before.quiet, "Asia/Shangai"))
    log = MemoryBackplane(shards=1, keep_s=60, keep_bytes=1 << 20, metrics=Metrics())
    await Preferences(store, log).settle("ann")
    [entry] = (await log.read({"0": 0}, limit=10)).entries
    assert entry.publication.body == (
        b'data: {"types":{},"quiet":[{"from":"22:00","to":"07:00","days":'
        b'["mon","tue","wed","thu","fri","sat","sun"]}],"zone":"Asia/Shanghai","paused_until":null}\n'
    )
    assert entry.publication.change is not None
    assert entry.publication.change.quiet == change.quiet
    assert (await store.forget("ann"))["person"] == 1


async def test_a_node_learns_what_another_one_has_set_and_has_switches_read_again(
    database: Database, store: PreferenceStore, catalogue: CatalogueStore
) -> None:
    metrics = Metrics()
    log = MemoryBackplane(shards=1, keep_s=60, keep_bytes=1 << 20, metrics=metrics)
    file = [NamedType(name="law", mandatory=True)]
    seen = Catalogue(store, catalogue, new_types="refuse", metrics=metrics, backplane=log, declared=file)
    revisions: list[int] = []
    seen.on_revision(lambda: revisions.append(seen.revision))
    running = asyncio.create_task(seen.run())
    await eventually(lambda: revisions == [1])
    assert seen.admits("law")
    assert not seen.admits("news")
    await catalogue.put("news", TypeRules(default=False))
    await seen.announce()
    await eventually(lambda: revisions == [1, 2])
    assert seen.admits("news")
    assert seen.changed_since("news", 1)
    assert not seen.changed_since("news", 2)
    assert not seen.changed_since("law", 1)
    assert not seen.changed_since("never.there", 0)
    await catalogue.remove("news")
    await seen.announce()
    await eventually(lambda: revisions == [1, 2, 3])
    assert seen.changed_since("news", 2)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


@pytest.mark.parametrize("noticed", [True, False], ids=["before the next change", "after it"])
async def test_switches_are_read_again_where_the_database_has_lost_a_change_of_the_catalogue(
    database: Database, store: PreferenceStore, states: StateTable, noticed: bool
) -> None:
    """It has failed over to a replica that lacks the last transaction."""
    catalogue = CatalogueStore(database)
    log = MemoryBackplane(shards=1, keep_s=60, keep_bytes=1 << 20, metrics=Metrics())
    seen = Catalogue(store, catalogue, new_types="list", metrics=Metrics(), backplane=log)
    person = Person("ann", "0")
    told: list[int] = []
    seen.on_revision(lambda: told.append(seen.revision))

    async def off_after_refresh() -> frozenset[str]:
        """What a stream of hers filters by: who is known by an earlier revision is read again."""
        told.clear()
        await seen.refresh()
        if told and person.revision < told[-1]:
            state = (await states.read(["ann"]))["ann"]
            person.learn(state.version, state.off, revision=state.revision)
        return frozenset(person.off)

    await catalogue.put("news", TypeRules(default=False))
    await catalogue.put("promo", TypeRules(default=False))
    assert await off_after_refresh() == {"news", "promo"}
    async with database.session():
        kept = (await CatalogueRow.get(id=1)).revision
    await catalogue.put("news", TypeRules(mandatory=True))
    assert await off_after_refresh() == {"promo"}
    async with database.session():
        await CatalogueRow.filter(id=1).update(revision=kept)
        await EventType.filter(name="news").update(default_on=False, mandatory=False, revision=kept)
    if noticed:
        assert await off_after_refresh() == {"news", "promo"}
    await catalogue.put("promo", TypeRules(default=True))
    assert await off_after_refresh() == {"news"}


async def test_each_node_answers_a_catalogue_that_went_back_at_most_once_whatever_its_clock(
    database: Database, store: PreferenceStore, caplog: pytest.LogCaptureFixture
) -> None:
    nodes = []
    # The last change was made by the clock of the first.
    for number in (1_000_000, 5_000, 0):
        types = CatalogueStore(database, numbers_after=partial(int, number))
        log = MemoryBackplane(shards=1, keep_s=60, keep_bytes=1 << 20, metrics=Metrics())
        nodes.append((types, Catalogue(store, types, new_types="list", metrics=Metrics(), backplane=log)))
    await nodes[0][0].put("news", TypeRules(default=False))
    for _, node in nodes:
        await node.refresh()
    lost = nodes[0][1].revision
    async with database.session():
        await CatalogueRow.filter(id=1).update(revision=7)
    for round_ in range(4):
        for _, node in reversed(nodes):
            await node.refresh()
        if round_ == 1:
            settled = [node.revision for _, node in nodes]
    assert [node.revision for _, node in nodes] == settled
    assert set(settled) == {max(settled)}
    assert max(settled) > lost
    assert caplog.text.count("older state") <= len(nodes)


@pytest.mark.parametrize("turns", range(8))
async def test_a_catalogue_that_is_told_to_end_while_it_is_told_of_a_change_ends(
    catalogue: CatalogueStore, store: PreferenceStore, turns: int
) -> None:
    log = MemoryBackplane(shards=1, keep_s=60, keep_bytes=1 << 20, metrics=Metrics())
    seen = Catalogue(store, catalogue, new_types="list", metrics=Metrics(), backplane=log)
    await catalogue.put("news", TypeRules())
    running = asyncio.create_task(seen.run())
    await eventually(lambda: seen.size == 1)
    await asyncio.sleep(0.01)
    seen.notice(["alarm"])
    for _ in range(turns):
        await asyncio.sleep(0)
    running.cancel()
    _, left = await asyncio.wait([running], timeout=5)
    assert not left
