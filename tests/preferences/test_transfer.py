"""Many people's switches, imported and exported in pages: on both databases."""

import asyncio
import random

import pytest

from pushsse.backplane import log_of
from pushsse.backplane.memory import MemoryBackplane
from pushsse.database import Database
from pushsse.errors import InvalidInput
from pushsse.metrics import Metrics
from pushsse.people import StateTable
from pushsse.preferences import ExportPlace, Imported, Preferences, SwitchLine, Transfer
from pushsse.preferences.catalogue import CatalogueStore, TypeRules
from pushsse.preferences.history import NOBODY
from pushsse.preferences.store import PreferenceStore

pytestmark = pytest.mark.anyio
SHARDS = 4


@pytest.fixture
async def log(anyio_backend: str) -> MemoryBackplane:
    return MemoryBackplane(shards=SHARDS, keep_s=600, keep_bytes=1 << 22, metrics=Metrics())


@pytest.fixture
async def transfer(database: Database, store: PreferenceStore, log: MemoryBackplane) -> Transfer:
    catalogue = CatalogueStore(database)
    await catalogue.put("news", TypeRules())
    await catalogue.put("tips", TypeRules(default=False, category="marketing"))
    await catalogue.put("promo", TypeRules(category="marketing"))
    await catalogue.put("law", TypeRules(mandatory=True))
    await catalogue.put("ghost", TypeRules(hidden=True))
    return Transfer(database, store, Preferences(store, log))


async def everything(transfer: Transfer, *, limit: int) -> list[SwitchLine]:
    found: list[SwitchLine] = []
    place: ExportPlace | None = ExportPlace()
    while place is not None:
        page = await transfer.export(place, limit=limit)
        assert len(page.lines) <= limit
        found += page.lines
        place = page.next
    return found


async def test_an_import_is_as_if_each_person_had_switched(
    transfer: Transfer, store: PreferenceStore, log: MemoryBackplane, states: StateTable
) -> None:
    await store.change("ann", {"news": False})
    lines = [
        SwitchLine("ann", True, type="news"),
        SwitchLine("bo", False, type="news"),
        SwitchLine("bo", False, category="marketing"),
        SwitchLine("cy", True, type="tips"),
        SwitchLine("cy", False, type="tips"),
        SwitchLine("dee", True, type="law"),
    ]
    assert await transfer.import_page(lines, by="root") == Imported(people=4, changed=2)
    found = await states.read(["ann", "bo", "cy", "dee", "eve"])
    assert {user: set(state.off) for user, state in found.items()} == {
        "ann": {"tips"},
        "bo": {"news", "promo", "tips"},
        "cy": {"tips"},
        "dee": {"tips"},
        "eve": {"tips"},
    }
    assert not any(state.pending for state in found.values())
    entries = (await log.read(dict.fromkeys(map(str, range(SHARDS)), 0), limit=100)).entries
    told = [(e.publication.users, e.publication.body, e.publication.change) for e in entries]
    assert [change.version for users, _, change in told if users == ("ann",) and change] == [1, 2]
    [(_, body, change)] = [one for one in told if one[0] == ("bo",)]
    assert body == b'data: {"types":{"news":false,"promo":false},"categories":{"marketing":false}}\n'
    assert change is not None
    assert (change.before, change.after) == (("tips",), ("news", "promo", "tips"))
    assert all(e.log == log_of((e.publication.users or ("",))[0], SHARDS) for e in entries)
    # A choice that is the default counts when that changes.
    assert SwitchLine("cy", False, type="tips") in await everything(transfer, limit=2)
    assert await transfer.import_page(lines, by="root") == Imported(people=4, changed=0)
    assert len((await log.read(dict.fromkeys(map(str, range(SHARDS)), 0), limit=100)).entries) == len(entries)
    assert await store.pending("ann", "bo", "cy", "dee") == []


async def test_what_was_off_of_a_type_that_is_gone_stays_off(
    transfer: Transfer, store: PreferenceStore, database: Database, states: StateTable
) -> None:
    await store.change("ann", {"news": False})
    await CatalogueStore(database).remove("news")
    await transfer.import_page([SwitchLine("ann", False, type="promo")], by="root")
    assert set((await states.read(["ann"]))["ann"].off) == {"news", "promo", "tips"}
    *_, change = await store.change("ann", {"promo": True})
    assert (change.before, change.after) == (("news", "promo", "tips"), ("news", "tips"))


async def test_every_line_that_cannot_be_used_is_named_and_nothing_is_imported(
    transfer: Transfer, store: PreferenceStore
) -> None:
    with pytest.raises(InvalidInput) as caught:
        await transfer.import_page(
            [
                SwitchLine("ann", False, type="news"),
                SwitchLine("ann", False, type="law"),
                SwitchLine("ann", False, type="nope"),
                SwitchLine("ann", False, type="ghost"),
                SwitchLine("ann", False, category="nope"),
                SwitchLine("ann", False),
                SwitchLine("ann", False, type="news", category="marketing"),
            ],
            by="root",
        )
    assert [v.at for v in caught.value.violations] == [
        "$.rows[1].enabled",
        "$.rows[2].type",
        "$.rows[3].type",
        "$.rows[4].category",
        "$.rows[5].type",
        "$.rows[6].type",
    ]
    assert await everything(transfer, limit=10) == []
    assert await store.off_among(["ann"], ["news"]) == frozenset()


async def test_what_is_exported_and_imported_elsewhere_is_the_same(
    transfer: Transfer, store: PreferenceStore, database: Database
) -> None:
    chance = random.Random(5)
    people = [f"{chance.choice('aÄ中-')}{n}" for n in range(40)]
    lines = [
        SwitchLine(user, chance.random() < 0.5, **which)
        for user in people
        for which in ({"type": "news"}, {"type": "promo"}, {"category": "marketing"})
    ]
    await transfer.import_page(lines, by="root")
    for limit in (1, 7, 1000):
        found = await everything(transfer, limit=limit)
        assert sorted(map(repr, found)) == sorted(map(repr, lines))
    for user in people:
        await store.forget(user)
    assert await everything(transfer, limit=50) == []
    assert (await transfer.import_page(found, by="root")).people == 40
    assert await everything(transfer, limit=50) == found


async def test_imports_and_people_s_own_changes_at_once_leave_no_hole(
    transfer: Transfer, store: PreferenceStore, log: MemoryBackplane, states: StateTable
) -> None:
    people = [f"user{n}" for n in range(12)]
    preferences = Preferences(store, log)
    chance = random.Random(3)

    async def imports() -> None:
        for _ in range(4):
            some = chance.sample(people, 8)
            await transfer.import_page(
                [SwitchLine(user, chance.random() < 0.5, type="news") for user in some], by="root"
            )

    async def switches() -> None:
        for _ in range(8):
            await preferences.change(chance.choice(people), {"promo": chance.random() < 0.5}, by=NOBODY)

    await asyncio.gather(imports(), imports(), switches(), switches())
    for user in people:
        entries = (await log.read({log_of(user, SHARDS): 0}, limit=1000)).entries
        changes = [e.publication.change for e in entries if e.publication.users == (user,)]
        versions = [change.version for change in changes if change is not None]
        assert versions == list(range(1, len(versions) + 1))
        state = (await states.read([user]))[user]
        assert state.version == len(versions)
        assert [set(c.after) for c in changes[-1:] if c] == ([set(state.off)] if versions else [])
