import asyncio
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Literal

import msgspec
import pytest

from pushsse.backplane import Append, Entry, Receipt, log_of, machine_ms
from pushsse.backplane.limits import NAME, LogAllowance
from pushsse.backplane.memory import MemoryBackplane
from pushsse.database import Database
from pushsse.errors import BackplaneUnavailable, InvalidInput
from pushsse.event import Change
from pushsse.metrics import Metrics
from pushsse.people import StateTable
from pushsse.position import Mark
from pushsse.preferences import Preferences, SwitchLine, Transfer
from pushsse.preferences.catalogue import Catalogue, CatalogueStore, EventType
from pushsse.preferences.history import NOBODY
from pushsse.preferences.store import PersonRow, PreferenceStore, Switch
from tests.serving import serving
from tests.waiting import eventually

pytestmark = pytest.mark.anyio
SHARDS = 4


class Log(MemoryBackplane):
    """A backplane in memory that can be away."""

    def __init__(self) -> None:
        super().__init__(shards=SHARDS, keep_s=600, keep_bytes=1 << 22, metrics=Metrics())
        self.away = False
        self.loses_answers = False

    async def publish(self, calls: Sequence[Append]) -> Receipt:
        if self.away:
            raise BackplaneUnavailable("away")
        receipt = await super().publish(calls)
        if self.loses_answers:
            raise BackplaneUnavailable("no answer")
        return receipt

    async def entries(self, user: str) -> tuple[Entry, ...]:
        return (await self.read({log_of(user, SHARDS): 0}, limit=1000)).entries

    async def changes(self, user: str) -> list[Change]:
        found = [entry.publication.change for entry in await self.entries(user)]
        return [change for change in found if change is not None and change.user == user]


@pytest.fixture
async def log(anyio_backend: str) -> Log:
    return Log()


@pytest.fixture
async def preferences(store: PreferenceStore, log: Log) -> Preferences:
    await store.join(["alarm", "news"], hidden=False)
    return Preferences(store, log)


async def test_a_change_is_in_the_log_when_the_caller_is_answered(
    preferences: Preferences, store: PreferenceStore, log: Log, states: StateTable
) -> None:
    seen = await preferences.change("ann", {"alarm": False}, by=NOBODY)
    assert {p.name: p.enabled for p in seen.types} == {"alarm": False, "news": True}
    [entry] = await log.entries("ann")
    publication = entry.publication
    assert publication.name == "preferences"
    assert publication.body == b'data: {"types":{"alarm":false}}\n'
    assert (publication.users, publication.switchable) == (("ann",), False)
    assert publication.change == Change("ann", 1, (), ("alarm",))
    switches = (await states.read(["ann"]))["ann"]
    assert not switches.pending
    assert switches.logged is not None
    assert switches.logged.number == 1


async def test_a_change_that_changes_nothing_is_not_published(preferences: Preferences, log: Log) -> None:
    await preferences.change("ann", {"alarm": True}, by=NOBODY)
    assert await log.entries("ann") == ()


async def test_a_change_waits_while_the_log_is_away_and_goes_first_afterwards(
    preferences: Preferences, store: PreferenceStore, log: Log, states: StateTable
) -> None:
    log.away = True
    with pytest.raises(BackplaneUnavailable):
        await preferences.change("ann", {"alarm": False}, by=NOBODY)
    assert (await states.read(["ann"]))["ann"].pending
    log.away = False
    await preferences.change("ann", {"news": False}, by=NOBODY)
    assert await log.changes("ann") == [
        Change("ann", 1, (), ("alarm",)),
        Change("ann", 2, ("alarm",), ("alarm", "news")),
    ]
    assert await store.pending("ann") == []


async def test_a_change_repeated_after_a_lost_answer_is_in_the_log_once(
    preferences: Preferences, store: PreferenceStore, log: Log, states: StateTable
) -> None:
    log.loses_answers = True
    with pytest.raises(BackplaneUnavailable):
        await preferences.change("ann", {"alarm": False}, by=NOBODY)
    log.loses_answers = False
    await preferences.change("ann", {"alarm": False}, by=NOBODY)
    assert [change.version for change in await log.changes("ann")] == [1]
    assert not (await states.read(["ann"]))["ann"].pending


async def test_an_opening_stream_settles_what_was_left(
    preferences: Preferences, store: PreferenceStore, log: Log, states: StateTable
) -> None:
    await store.change("ann", {"alarm": False})
    await preferences.settle("ann")
    await preferences.settle("ann")
    assert await log.changes("ann") == [Change("ann", 1, (), ("alarm",))]
    assert not (await states.read(["ann"]))["ann"].pending


async def test_the_relay_publishes_what_a_crash_left(
    preferences: Preferences, store: PreferenceStore, log: Log
) -> None:
    await store.change("ann", {"alarm": False})
    await store.change("bo", {"news": False})

    async def nothing_waits() -> bool:
        return await store.pending_users(older_than_s=-60) == []

    running = asyncio.create_task(preferences.run())
    await eventually(nothing_waits)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert await log.changes("ann") == [Change("ann", 1, (), ("alarm",))]


async def test_changes_of_a_person_at_once_are_in_the_log_in_order(
    preferences: Preferences, store: PreferenceStore, log: Log, states: StateTable
) -> None:
    await asyncio.gather(*(preferences.change("ann", {"alarm": i % 2 == 0}, by=NOBODY) for i in range(20)))
    versions = [change.version for change in await log.changes("ann")]
    assert versions == list(range(1, (await states.read(["ann"]))["ann"].version + 1))
    assert await store.pending("ann") == []


@pytest.mark.parametrize("way", ["change", "import"])
async def test_a_change_after_the_database_has_lost_one_is_in_the_log_and_newer(
    database: Database, log: Log, way: Literal["change", "import"]
) -> None:
    """It has failed over to a replica that lacks the last transaction."""
    store = PreferenceStore(database, numbers_after=count(1_000, 10).__next__)
    await store.join(["alarm", "news"], hidden=False)
    preferences = Preferences(store, log)
    await preferences.change("ann", {"alarm": False}, by=NOBODY)
    async with database.session():
        before = await PersonRow.get(user="ann")
        kept = (before.version, before.logged_version)
    await preferences.change("ann", {"news": False}, by=NOBODY)
    async with database.session():
        await PersonRow.filter(user="ann").update(version=kept[0], logged_version=kept[1])
        await Switch.filter(user="ann", type="news").delete()
    if way == "change":
        await preferences.change("ann", {"news": False}, by=NOBODY)
    else:
        transfer = Transfer(database, store, preferences)
        await transfer.import_page([SwitchLine("ann", False, type="news")], by="root")
    changes = await log.changes("ann")
    assert [change.after for change in changes] == [("alarm",), ("alarm", "news"), ("alarm", "news")]
    versions = [change.version for change in changes]
    assert sorted(set(versions)) == versions
    assert await store.pending("ann") == []


async def test_numbers_follow_the_clock_that_all_nodes_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change on a node whose own clock is ahead, and that the database lost, isn't newer than the next."""
    ahead_ms = 3_600_000
    monkeypatch.setattr(MemoryBackplane, "now_ms", staticmethod(lambda: machine_ms() + ahead_ms))
    async with serving(tmp_path) as node:
        began = node.node.backplane.now_ms()
        made = await node.http.put("/v1/types/news?user=root", json={"default": False})
        assert made.status_code == 201
        assert node.node.catalogue.revision > began
        await node.switch("ann", news=True)
        log = log_of("ann", node.node.backplane.shards)
        [entry] = (await node.node.backplane.read({log: 0}, limit=10)).entries
        assert entry.publication.change is not None
        assert entry.publication.change.version > began


async def test_what_waited_for_the_log_is_paid_for_once(store: PreferenceStore, log: Log) -> None:
    quota, names = 20_000, [f"type-{number}" for number in range(100)]
    await store.join(names, hidden=False)
    preferences = Preferences(store, log, LogAllowance(log, quota=quota))
    began = time.monotonic()
    log.away = True
    # A client tries again what was refused.
    for _ in range(3):
        with pytest.raises(BackplaneUnavailable):
            await preferences.change_own("ann", dict.fromkeys(names, False), by=NOBODY)
    log.away = False
    await preferences.change_own("ann", dict.fromkeys(names, True), by=NOBODY)
    # What is owed is taken with the next call.
    await preferences.change_own("ann", {}, by=NOBODY)
    entries = await log.entries("ann")
    assert len(entries) == 2
    cost_ms = sum(entry.publication.size for entry in entries) * 60_000 / quota
    left_ms = (await log.spend(f"{NAME}:ann", 0, most_ms=None)).whole_ms
    refilled_ms = (time.monotonic() - began) * 1000
    assert cost_ms - refilled_ms - 10 < left_ms < cost_ms + 10


async def test_a_thousand_long_names_fit_into_frames(store: PreferenceStore, log: Log) -> None:
    names = [f"{i:04d}".ljust(64, "x") for i in range(1000)]
    await store.join(names, hidden=False)
    await Preferences(store, log).change("ann", dict.fromkeys(names, False), by=NOBODY)
    entries = await log.entries("ann")
    told: dict[str, bool] = {}
    for entry in entries:
        told |= msgspec.json.decode(entry.publication.body.removeprefix(b"data: "))["types"]
    assert told == dict.fromkeys(names, False)
    assert len(entries) == 3
    # Once: it has all names of the catalogue twice.
    first, *others = (entry.publication.change for entry in entries)
    assert first is not None
    assert first.after == tuple(names)
    assert others == [None, None]


async def test_an_unknown_type_is_refused_and_nothing_is_published(
    preferences: Preferences, log: Log
) -> None:
    with pytest.raises(InvalidInput):
        await preferences.change("ann", {"alarm": False, "nope": False}, by=NOBODY)
    assert await log.entries("ann") == ()


def catalogue_of(
    database: Database,
    log: Log,
    metrics: Metrics | None = None,
    new_types: Literal["list", "hide", "refuse"] = "list",
) -> Catalogue:
    return Catalogue(
        PreferenceStore(database),
        CatalogueStore(database),
        new_types=new_types,
        metrics=metrics or Metrics(),
        backplane=log,
    )


@pytest.mark.parametrize(("new_types", "hidden"), [("list", False), ("hide", True)])
async def test_a_new_type_joins_in_the_background(
    store: PreferenceStore,
    database: Database,
    log: Log,
    new_types: Literal["list", "hide"],
    hidden: bool,
) -> None:
    catalogue = catalogue_of(database, log, new_types=new_types)
    running = asyncio.create_task(catalogue.run())
    catalogue.notice(["alarm", "alarm", "news"])
    assert catalogue.admits("alarm")

    async def both_joined() -> bool:
        return len(await store.known()) == 2

    await eventually(both_joined)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    async with database.session():
        types = await EventType.all().order_by("id")
    assert [(each.name, each.hidden) for each in types] == [("alarm", hidden), ("news", hidden)]


async def test_unknown_types_are_refused_once_the_catalogue_was_read(
    store: PreferenceStore, database: Database, log: Log
) -> None:
    async with database.session():
        await EventType.create(name="alarm")
    catalogue = catalogue_of(database, log, new_types="refuse")
    assert catalogue.admits("nope")
    catalogue.notice(["nope"])
    await catalogue.refresh()
    assert catalogue.admits("alarm")
    assert not catalogue.admits("nope")
    assert await store.known() == {"alarm"}


@pytest.mark.parametrize("new_types", ["list", "hide"])
async def test_more_types_than_fit_are_said_once_and_counted(
    store: PreferenceStore,
    database: Database,
    log: Log,
    new_types: Literal["list", "hide"],
    caplog: pytest.LogCaptureFixture,
) -> None:
    metrics = Metrics()
    catalogue = catalogue_of(database, log, metrics, new_types)
    await catalogue.refresh()
    catalogue.notice([f"t{i}" for i in range(1500)])
    await catalogue.refresh()
    assert (len(await store.known()), catalogue.size) == (1000, 1000)
    for _ in range(3):
        catalogue.notice(["another", "t1"])
        await catalogue.refresh()
    assert len(await store.known()) == 1000
    assert catalogue.admits("another")
    assert metrics.types_left_out == 500 + 3
    assert [r.levelname for r in caplog.records if "catalogue is full" in r.message] == ["WARNING"]


async def test_a_catalogue_that_other_nodes_have_filled_is_said_too(
    store: PreferenceStore, database: Database, log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = Metrics()
    catalogue = catalogue_of(database, log, metrics)
    await store.join([f"t{i}" for i in range(999)], hidden=False)
    with caplog.at_level("INFO"):
        catalogue.notice(["first", "second"])
        await catalogue.refresh()
    assert "second isn't listed" in caplog.text
    assert "joined the catalogue: first" in caplog.text
    assert "first, second" not in caplog.text
    assert metrics.types_left_out == 1


async def test_after_there_was_room_again_a_full_catalogue_is_said_again(
    store: PreferenceStore, database: Database, log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    catalogue = catalogue_of(database, log)
    await catalogue.refresh()
    catalogue.notice([f"t{i}" for i in range(1001)])
    await catalogue.refresh()
    async with database.session():
        await EventType.filter(name="t3").delete()
    await catalogue.refresh()
    catalogue.notice(["new", "newer"])
    await catalogue.refresh()
    assert "new" in await store.known()
    assert caplog.text.count("catalogue is full") == 2


async def test_a_catalogue_with_more_types_than_fit_takes_no_more(
    store: PreferenceStore, database: Database
) -> None:
    async with database.session():
        await EventType.bulk_create([EventType(name=f"t{i}") for i in range(1002)])
    assert await store.join(["new", "t1"], hidden=False) == {"new"}
    assert len(await store.known()) == 1002


async def test_the_mark_of_a_repeated_change_is_a_place_at_or_after_it(
    preferences: Preferences, store: PreferenceStore, log: Log, states: StateTable
) -> None:
    await preferences.change("ann", {"alarm": False}, by=NOBODY)
    first = (await states.read(["ann"]))["ann"].logged
    await preferences.change("ann", {"alarm": True}, by=NOBODY)
    second = (await states.read(["ann"]))["ann"].logged
    assert first is not None
    assert second == Mark(first.epoch, 2)
