"""Who switched what, and when: which value held at a moment, on both databases."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pushsse.backplane.memory import MemoryBackplane
from pushsse.database import Database, Statement
from pushsse.explain import Explaining, _Seen
from pushsse.hub.catch_up import Scans
from pushsse.metrics import Metrics
from pushsse.outcomes import SWITCHED_OFF, Outcome
from pushsse.preferences import Preferences, SwitchLine, Transfer
from pushsse.preferences.catalogue import CatalogueStore, NamedType, TypeRules
from pushsse.preferences.history import (
    COUNTED_EVERY,
    MOST_EARLIER,
    NOBODY,
    SETTINGS,
    Actor,
    Held,
    History,
    Moment,
    Noted,
    _ChangeRow,
    _value,
    note,
)
from pushsse.preferences.store import PreferenceStore

pytestmark = pytest.mark.anyio
ANN, CARL, ROOT = Actor("person", "ann"), Actor("admin", "carl"), Actor("admin", "root")
KEEP_S = 100.0
COUNT = Statement('SELECT count(*) FROM pushsse_switched WHERE "user" = {value[1]}')
OTHER_RELEASE = Statement('UPDATE pushsse_switch SET enabled = {value[1]} WHERE "user" = {value[2]}')


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now_ms = 1_000

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(database: Database, clock: Clock) -> PreferenceStore:
    return PreferenceStore(database, numbers_after=lambda: 0, now_ms=clock)


@pytest.fixture
def catalogue(database: Database, clock: Clock) -> CatalogueStore:
    return CatalogueStore(database, now_ms=clock)


@pytest.fixture
def history(database: Database, clock: Clock) -> History:
    return History(database, now_ms=clock, keep_s=KEEP_S)


@pytest.fixture
async def transfer(database: Database, store: PreferenceStore, anyio_backend: str) -> Transfer:
    log = MemoryBackplane(shards=4, keep_s=600, keep_bytes=1 << 22, metrics=Metrics())
    return Transfer(database, store, Preferences(store, log))


def at(ms: int) -> Moment:
    return Moment(ms)


async def test_each_value_is_told_with_who_set_it_also_after_it_was_switched_again(
    store: PreferenceStore, catalogue: CatalogueStore, history: History, clock: Clock, transfer: Transfer
) -> None:
    await catalogue.put("news", TypeRules(), by=ROOT)
    clock.now_ms = 2_000
    await store.change("ann", {"news": False}, by=ANN)
    clock.now_ms = 3_000
    await store.change("ann", {"news": True}, by=CARL)
    clock.now_ms = 4_000
    await transfer.import_page([SwitchLine("ann", False, type="news")], by="carl")
    clock.now_ms = 5_000
    await store.change("ann", {"news": None}, by=Actor("development", "ann"))
    assert await history.held("ann", "news", at(1_999)) == Held(True, "default")
    assert await history.held("ann", "news", at(2_000)) == Held(False, "type", by=ANN, since_ms=2_000)
    assert await history.held("ann", "news", at(3_999)) == Held(True, "type", by=CARL, since_ms=3_000)
    imported = Held(False, "type", by=Actor("import", "carl"), since_ms=4_000)
    assert await history.held("ann", "news", at(4_500)) == imported
    assert await history.held("ann", "news", at(9_000)) == Held(True, "default")
    # Somebody else's are their own.
    assert await history.held("bo", "news", at(4_500)) == Held(True, "default")
    made = await history.changes("ann", [1, 2, 3, 4, 7])
    assert made == {
        1: ANN, 2: CARL, 3: Actor("import", "carl"), 4: Actor("development", "ann"),
    }  # fmt: skip


async def test_who_made_the_newest_of_very_many_changes_is_told(
    database: Database, history: History, clock: Clock
) -> None:
    made = range(1, 2_402)
    noted = [Noted("ann", "type", "news", "", "off", number) for number in made]
    async with database.transaction() as session:
        await note(session, noted, ANN, clock())
    assert await history.changes("ann", list(made)) == dict.fromkeys(made, ANN)
    assert await history.changes("ann", [2_401, 7, 9_999]) == {7: ANN, 2_401: ANN}
    assert await history.changes("bo", list(made)) == {}


async def test_what_is_set_as_it_is_leaves_who_set_it(
    store: PreferenceStore, catalogue: CatalogueStore, history: History, clock: Clock, transfer: Transfer
) -> None:
    await catalogue.put("news", TypeRules())
    await store.change("ann", {"news": False}, by=ANN)
    clock.now_ms = 2_000
    await store.change("ann", {"news": False}, by=CARL)
    await transfer.import_page([SwitchLine("ann", False, type="news")], by="carl")
    assert await history.held("ann", "news", at(3_000)) == Held(False, "type", by=ANN, since_ms=1_000)


async def test_a_category_s_switch_and_its_types_rules_are_told_as_they_were(
    store: PreferenceStore, catalogue: CatalogueStore, history: History, clock: Clock
) -> None:
    await catalogue.put("promo", TypeRules(category="marketing"), by=ROOT)
    clock.now_ms = 2_000
    await store.change("ann", {}, categories={"marketing": False}, by=ANN)
    clock.now_ms = 3_000
    await catalogue.put("promo", TypeRules(category="marketing", mandatory=True), by=CARL)
    clock.now_ms = 4_000
    await catalogue.put("promo", TypeRules(default=False), by=ROOT)
    clock.now_ms = 5_000
    assert await catalogue.remove("promo", by=CARL)
    assert await history.held("ann", "promo", at(999)) == Held(True, "default")
    assert await history.held("ann", "promo", at(1_000)) == Held(True, "default", by=ROOT, since_ms=1_000)
    off = Held(False, "category", "marketing", by=ANN, since_ms=2_000)
    assert await history.held("ann", "promo", at(2_500)) == off
    assert await history.held("ann", "promo", at(3_000)) == Held(True, "mandatory", by=CARL, since_ms=3_000)
    assert await history.held("ann", "promo", at(4_000)) == Held(False, "default", by=ROOT, since_ms=4_000)
    assert await history.held("ann", "promo", at(5_000)) == Held(True, "default", by=CARL, since_ms=5_000)


async def test_the_settings_file_is_named(catalogue: CatalogueStore, history: History, clock: Clock) -> None:
    await catalogue.declare([NamedType(name="law", mandatory=True), NamedType(name="tips", default=False)])
    found = await history.held("ann", "law", at(1_000))
    assert found == Held(True, "mandatory", by=SETTINGS, since_ms=1_000)
    assert await history.held("ann", "tips", at(1_000)) == Held(False, "default", by=SETTINGS, since_ms=1_000)
    # Twice changes nothing.
    clock.now_ms = 2_000
    await catalogue.declare([NamedType(name="law", mandatory=True)])
    assert await history.held("ann", "law", at(2_000)) == found


async def test_the_log_decides_what_came_first_where_it_has_the_change(
    store: PreferenceStore, catalogue: CatalogueStore, history: History
) -> None:
    await catalogue.put("news", TypeRules())
    [change] = await store.change("ann", {"news": False}, by=ANN)
    one = frozenset({change.version})
    # Clocks of nodes may differ from the log's.
    assert await history.held("ann", "news", Moment(999, before=one)) == Held(
        False, "type", by=ANN, since_ms=1_000
    )
    assert await history.held("ann", "news", Moment(2_000, after=one)) == Held(True, "default")


async def test_a_change_that_was_not_committed_yet_is_not_what_held_an_event_back(
    store: PreferenceStore, catalogue: CatalogueStore, history: History, clock: Clock
) -> None:
    await catalogue.put("news", TypeRules(category="press"))
    await store.change("ann", {"news": False}, by=ANN)
    await store.change("bo", {}, categories={"press": False}, by=CARL)
    clock.now_ms = 20_000
    await store.change("ann", {"news": True}, by=CARL)
    await store.change("bo", {"news": True}, by=ROOT)
    off = Held(False, "type", by=ANN, since_ms=1_000)
    assert await history.held("ann", "news", Moment(20_003, was_off=True)) == off
    assert (await history.held("bo", "news", Moment(20_003, was_off=True))).category == "press"
    # Long after the change it isn't that, and of somebody who has switched nothing nothing is known.
    assert (await history.held("ann", "news", Moment(30_000, was_off=True))).enabled
    assert (await history.held("cy", "news", Moment(20_003, was_off=True))).rule == "default"
    # What was published was let through.
    assert (await history.held("ann", "news", Moment(20_003))).enabled


async def test_the_switch_of_an_event_that_was_held_back_is_explained_as_off(
    store: PreferenceStore, catalogue: CatalogueStore, history: History, clock: Clock
) -> None:
    await catalogue.put("news", TypeRules())
    await store.change("ann", {"news": False}, by=ANN)
    clock.now_ms = 2_000
    await store.change("ann", {"news": True}, by=CARL)
    log = MemoryBackplane(shards=4, keep_s=600, keep_bytes=1 << 22, metrics=Metrics())
    explaining = Explaining(log, Scans(), None, history, 600)
    noted = datetime.fromtimestamp(2.004, UTC)
    told = [Outcome(SWITCHED_OFF, "node-1", noted, "e-1", "news", "ann")]
    [step] = await explaining._switches(_Seen("ann", "e-1"), told)
    assert (step.what, step.detail, step.by) == ("switch", "news off, its own switch", "ann")


async def test_what_another_release_has_switched_is_told_without_a_name(
    database: Database, store: PreferenceStore, catalogue: CatalogueStore, history: History, clock: Clock
) -> None:
    await catalogue.put("news", TypeRules())
    await store.change("ann", {"news": False}, by=ANN)
    await database.rows(int, OTHER_RELEASE, True, "ann")
    assert await history.held("ann", "news", at(1_500)) == Held(True, "type")
    clock.now_ms = 2_000
    await store.change("ann", {"news": False}, by=CARL)
    assert await history.held("ann", "news", at(1_500)) == Held(True, "type")
    assert await history.held("ann", "news", at(2_000)) == Held(False, "type", by=CARL, since_ms=2_000)


async def test_a_value_is_kept_while_it_holds_and_then_for_as_long_as_the_log(
    database: Database, store: PreferenceStore, catalogue: CatalogueStore, history: History, clock: Clock
) -> None:
    await catalogue.put("news", TypeRules())
    for on in (False, True, False):
        clock.now_ms += 1_000
        await store.change("ann", {"news": on}, by=ANN)
    clock.now_ms = 4_000 + int(KEEP_S * 1000)
    assert await history.sweep() == 1
    # The last one before the oldest moment that the log has.
    assert await history.held("ann", "news", at(3_500)) == Held(True, "type", by=ANN, since_ms=3_000)
    clock.now_ms *= 10
    assert await history.sweep() == 1
    assert await history.held("ann", "news", at(clock.now_ms)) == Held(False, "type", by=ANN, since_ms=4_000)
    assert await database.rows(int, COUNT, "ann") == [1]


async def test_somebody_who_switches_for_ever_is_kept_within_a_bound(
    database: Database, store: PreferenceStore, history: History
) -> None:
    many = [Noted("ann", "type", f"t{number % 900}", "", "on", 1) for number in range(MOST_EARLIER + 2_000)]
    async with database.transaction(timeout_s=30) as session:
        for start in range(0, len(many), 500):
            await note(session, many[start : start + 500], ANN, start)
    assert await database.rows(int, COUNT, "ann") == [len(many)]
    async with database.transaction(timeout_s=30) as session:
        await note(session, [Noted("ann", "type", "t1", "on", "off", COUNTED_EVERY)], ANN, 10_000)
    # With the 900 that hold.
    assert await database.rows(int, COUNT, "ann") == [MOST_EARLIER + 900]


async def test_of_somebody_who_is_forgotten_no_name_is_left(
    store: PreferenceStore, catalogue: CatalogueStore, history: History, database: Database
) -> None:
    await catalogue.put("news", TypeRules())
    await store.change("ann", {"news": False}, by=ANN)
    await store.change("bo", {"news": False}, by=CARL)
    assert (await store.forget("ann"))["switched"] == 1
    assert await history.held("ann", "news", at(2_000)) == Held(True, "default")
    # An administrator, too: what they did for others stays, without their name.
    assert (await store.forget("carl"))["switched"] == 0
    assert await history.held("bo", "news", at(2_000)) == Held(
        False, "type", by=Actor("admin"), since_ms=1_000
    )
    names = Statement("SELECT count(*) FROM pushsse_switched WHERE who <> '' OR \"user\" = 'ann'")
    assert await database.rows(int, names) == [0]


async def test_others_write_while_the_name_of_who_has_imported_is_taken_from_many_rows(
    store: PreferenceStore, catalogue: CatalogueStore, database: Database
) -> None:
    await catalogue.put("news", TypeRules())
    noted = [Noted(f"u{number}", "type", "news", "", "off", 1) for number in range(5_000)]
    async with database.transaction(timeout_s=30) as session:
        for start in range(0, len(noted), 500):
            await note(session, noted[start : start + 500], Actor("import", "root"), 1_000)
    signed = Statement("SELECT count(*) FROM pushsse_switched WHERE who = 'root'")
    left: list[int] = []
    forgetting = asyncio.create_task(store.forget("root"))
    while not forgetting.done():
        await store.change("ann", {"news": len(left) % 2 == 0}, by=ANN)
        left += await database.rows(int, signed)
    await forgetting
    assert {count for count in left if 0 < count < len(noted)}
    assert await database.rows(int, signed) == [0]


async def test_a_change_that_fails_is_not_noted(
    database: Database, store: PreferenceStore, catalogue: CatalogueStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await catalogue.put("news", TypeRules())

    def fails() -> int:
        raise RuntimeError("no time")

    failing: Callable[[], int] = fails
    with pytest.raises(RuntimeError):
        await PreferenceStore(database, now_ms=failing).change("ann", {"news": False}, by=ANN)
    assert await database.rows(int, COUNT, "ann") == [0]
    assert await store.off_among(["ann"], ["news"]) == frozenset()


@settings(max_examples=200)
@given(st.lists(st.tuples(st.sampled_from(("on", "off", "")), st.integers(0, 3)), max_size=12), st.data())
def test_a_value_at_any_moment_is_that_of_the_last_change_before_it(
    changes: list[tuple[str, int]], data: st.DataObject
) -> None:
    rows: list[_ChangeRow] = []
    now, clock = "", 0
    for number, (value, after_ms) in enumerate(changes, 1):
        clock += after_ms
        rows.append(_ChangeRow(number, "type", "news", now, value, number, "person", f"p{number}", clock))
        now = value
    moment = data.draw(st.integers(-1, clock + 1))
    found = _value([_ChangeRow(0, "type", "news", "", now, 0, "", "", 0), *rows], Moment(moment))
    last = [row for row in rows if row.at_ms <= moment]
    if last:
        assert found == (last[-1].value, Actor("person", last[-1].who), last[-1].at_ms)
    else:
        assert found == ("", NOBODY, None)
