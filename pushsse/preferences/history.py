"""Who switched what, and when: which value of a switch held at a moment, and by whom.

The stores of preferences and of the catalogue note each change in its transaction; `explain` asks. A row is
kept for as long as its value holds, and then until `History` deletes it, a service: as long as the log is
kept, which explains the same events. Each row has the value before it, too: what a node of a release without
this table has switched, and what was set before there was one, has its value, and nobody's name.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from msgspec import Struct
from tortoise import fields
from tortoise.indexes import Index
from tortoise.models import Model

from pushsse.database import Database, Session, Statement
from pushsse.retry import hourly

logger = logging.getLogger(__name__)
TYPE, CATEGORY, RULES = "type", "category", "rules"
# Values that no longer hold, of one person: the newest are kept. They are counted each time that so many
# changes have been made.
MOST_EARLIER = 5_000
COUNTED_EVERY = 64
# What a change of the catalogue's is noted under: no person has this name.
_EVERYBODY = ""
# The rules of a type that isn't in the catalogue.
_UNLISTED = "on"
_CHANGES_READ = 1_000
_DELETED_AT_ONCE = 500
_NOTED_AT_ONCE = 100
_NAMES_AT_ONCE = 1_000
_PAUSE_S = 0.1
# Longer than a change takes to be committed, and a batch of events to be published.
_UNCOMMITTED_MS = 10_000

# How somebody came to change it: by themselves, for somebody else, with many others, as whoever is named in
# development, by the settings file of a node.
How = Literal["person", "admin", "import", "development", "settings", ""]
Rule = Literal["mandatory", "type", "category", "default"]


class Actor(Struct, frozen=True):
    """Who changes a switch: how, and the name of the token that did."""

    how: How
    name: str = ""


NOBODY = Actor("")
SETTINGS = Actor("settings")


class Noted(NamedTuple):
    """One value that has changed. Values are `on`, `off` and, where nothing is chosen, empty.

    A type's rules are `on`, `off` or `mandatory`, and its category after a space. `version` is the number of
    the person's change.
    """

    user: str
    kind: str
    name: str
    before: str
    value: str
    version: int = 0


class Held(Struct, frozen=True):
    """Whether a type was on for somebody at a moment, by which rule, and who set that, and when (ms).

    `category` is that whose switch decided. `by` is NOBODY, and `since_ms` None, where it isn't known, or
    nobody has ever set it.
    """

    enabled: bool
    rule: Rule
    category: str = ""
    by: Actor = NOBODY
    since_ms: int | None = None


class Moment(Struct, frozen=True):
    """A moment in time (ms), and in the log: which changes, by their numbers, it has before and after it.

    `was_off`: the database was asked just before it, and had the type off.
    """

    at_ms: int
    before: frozenset[int] = frozenset()
    after: frozenset[int] = frozenset()
    was_off: bool = False


class _ChangeRow(NamedTuple):
    """A row of the table; one with the id 0 is what holds now."""

    id: int
    kind: str
    name: str
    before: str
    value: str
    version: int
    how: How
    who: str
    at_ms: int

    def held(self, moment: Moment) -> bool:
        """Whether it was made before a moment."""
        # Guarantee 3: where the log has the change, its place there decides, as it does for the streams.
        if self.version in moment.before:
            return True
        return self.at_ms <= moment.at_ms and self.version not in moment.after


_STATE = "CASE WHEN {0}.enabled THEN 'on' ELSE 'off' END"
_OF_TYPE = Statement(f"""
    SELECT id, kind, name, before, value, version, how, who, at_ms FROM pushsse_switched
     WHERE "user" = {{value[1]}} AND (kind = 'type' AND name = {{value[2]}} OR kind = 'category')
    UNION ALL
    SELECT id, kind, name, before, value, version, how, who, at_ms FROM pushsse_switched
     WHERE "user" = '' AND name = {{value[2]}}
    UNION ALL
    SELECT 0, 'type', s.type, '', {_STATE.format("s")}, 0, '', '', 0 FROM pushsse_switch s
     WHERE s."user" = {{value[1]}} AND s.type = {{value[2]}}
    UNION ALL
    SELECT 0, 'category', c.category, '', {_STATE.format("c")}, 0, '', '', 0 FROM pushsse_category_switch c
     WHERE c."user" = {{value[1]}}
    UNION ALL
    SELECT 0, 'rules', t.name, '', CASE WHEN t.mandatory THEN 'mandatory' WHEN t.default_on THEN 'on'
           ELSE 'off' END || CASE WHEN t.category = '' THEN '' ELSE ' ' || t.category END, 0, '', '', 0
      FROM pushsse_event_type t WHERE t.name = {{value[2]}}
     ORDER BY 1""")  # nosec B608
_CHANGES = Statement("""
    SELECT DISTINCT version, how, who FROM pushsse_switched
     WHERE "user" = {value[1]} AND version > {value[2]} AND version <= {value[3]}
     ORDER BY version LIMIT {value[4]}""")
# After the new rows are there: each one ends the one before it.
_END = Statement("""
    UPDATE pushsse_switched SET until_ms = {value[3]}
     WHERE until_ms IS NULL AND "user" {among[1]} AND name {among[2]} AND EXISTS
       (SELECT 1 FROM pushsse_switched n
         WHERE n."user" = pushsse_switched."user" AND n.name = pushsse_switched.name
           AND n.kind = pushsse_switched.kind AND n.id > pushsse_switched.id)""")
_BOUND = Statement("""
    DELETE FROM pushsse_switched WHERE "user" = {value[1]} AND until_ms IS NOT NULL AND id <=
       (SELECT id FROM pushsse_switched WHERE "user" = {value[1]} AND until_ms IS NOT NULL
         ORDER BY id DESC LIMIT 1 OFFSET {value[2]})""")
_DELETE_OLD = Statement("""
    DELETE FROM pushsse_switched WHERE id IN
       (SELECT id FROM pushsse_switched WHERE until_ms < {value[1]} LIMIT {value[2]}) RETURNING 1""")
_FORGET = Statement('DELETE FROM pushsse_switched WHERE "user" = {value[1]} RETURNING 1')
_FORGET_NAME = Statement("""
    UPDATE pushsse_switched SET who = '' WHERE id IN
       (SELECT id FROM pushsse_switched WHERE who = {value[1]} LIMIT {value[2]}) RETURNING 1""")


def milliseconds() -> int:
    """This machine's clock."""
    return int(time.time() * 1000)


async def note(session: Session, noted: Sequence[Noted], by: Actor, at_ms: int) -> None:
    """Notes changes, in the transaction that makes them, which holds a lock on what they are about."""
    if not noted:
        return
    for start in range(0, len(noted), _NOTED_AT_ONCE):
        if start:
            await asyncio.sleep(0)
        some = noted[start : start + _NOTED_AT_ONCE]
        rows = [SwitchedRow(**each._asdict(), how=by.how, who=by.name, at_ms=at_ms) for each in some]
        await SwitchedRow.bulk_create(rows)
    users, names = {each.user for each in noted}, {each.name for each in noted}
    await session.rows(int, _END, list(users), list(names), at_ms)
    for user in {each.user for each in noted if each.version and each.version % COUNTED_EVERY == 0}:
        await session.rows(int, _BOUND, user, MOST_EARLIER)


def rules_noted(name: str, before: tuple[bool, bool, str], after: tuple[bool, bool, str]) -> Noted:
    """A change of a type's default, whether it is mandatory, and its category, which is everybody's."""
    return Noted(_EVERYBODY, RULES, name, _rules(before), _rules(after))


def chosen(value: bool | None) -> str:
    """A choice as a value."""
    return "" if value is None else "on" if value else "off"


async def forget(session: Session, user: str) -> int:
    """Deletes what a person has switched; how many rows."""
    return len(await session.rows(int, _FORGET, user))


async def forget_name(database: Database, user: str) -> None:
    """Takes a person's name from what they switched for others: everybody, where they have imported."""
    while await database.rows(int, _FORGET_NAME, user, _NAMES_AT_ONCE):
        pass


class History:
    """What was switched. Everything raises DatabaseUnavailable."""

    def __init__(self, database: Database, *, now_ms: Callable[[], int], keep_s: float) -> None:
        """`keep_s`: for how long a value is kept after it was changed."""
        self._database = database
        self._now_ms = now_ms
        self._keep_ms = int(keep_s * 1000)

    async def held(self, user: str, name: str, moment: Moment) -> Held:
        """Whether a type was on for a person, and why."""
        found: dict[tuple[str, str], list[_ChangeRow]] = {}
        for number, row in enumerate(await self._database.rows(_ChangeRow, _OF_TYPE, user, name)):
            found.setdefault((row.kind, row.name), []).append(row)
            if number % _DELETED_AT_ONCE == 0:
                await asyncio.sleep(0)
        held = _held(found, name, moment)
        if not moment.was_off or not held.enabled:
            return held
        # A change is noted before it is committed: one that was noted by then may not have been there yet.
        noted = {row.at_ms for rows in found.values() for row in rows if row.id}
        for at_ms in sorted(noted, reverse=True):
            if moment.at_ms - _UNCOMMITTED_MS < at_ms <= moment.at_ms:
                earlier = _held(found, name, Moment(at_ms - 1))
                if not earlier.enabled:
                    return earlier
        return held

    async def changes(self, user: str, numbers: Sequence[int]) -> Mapping[int, Actor]:
        """Who made changes of a person's switches, by their numbers, as far as that is known."""
        if not numbers:
            return {}
        wanted, after, last = set(numbers), min(numbers) - 1, max(numbers)
        made: dict[int, Actor] = {}
        while True:
            page = await self._database.rows(_change, _CHANGES, user, after, last, _CHANGES_READ)
            made |= {number: by for number, by in page if number in wanted}
            if len(page) < _CHANGES_READ:
                return made
            after, _ = page[-1]

    async def sweep(self) -> int:
        """Deletes what hasn't held for long enough; how many rows."""
        deleted, before = 0, self._now_ms() - self._keep_ms
        while found := len(await self._database.rows(int, _DELETE_OLD, before, _DELETED_AT_ONCE)):
            deleted += found
            await asyncio.sleep(_PAUSE_S)
        return deleted

    async def run(self) -> None:
        """Deletes for ever, some minutes after the start and then each hour."""
        await hourly(self.sweep, "what was switched long ago can't be deleted", logger)


def _held(found: Mapping[tuple[str, str], Sequence[_ChangeRow]], name: str, moment: Moment) -> Held:
    """Whether a type was on at a moment, and why, by the rows of each switch that may decide."""
    rules = _value(found.get((RULES, name), ()), moment, unset=_UNLISTED)
    state, _, category = rules.value.partition(" ")
    if state == "mandatory":
        return Held(True, "mandatory", by=rules.by, since_ms=rules.since_ms)
    own = _value(found.get((TYPE, name), ()), moment)
    if own.value:
        return Held(own.value == "on", "type", by=own.by, since_ms=own.since_ms)
    if category:
        by_category = _value(found.get((CATEGORY, category), ()), moment)
        if by_category.value:
            on = by_category.value == "on"
            return Held(on, "category", category, by_category.by, by_category.since_ms)
    return Held(state != "off", "default", by=rules.by, since_ms=rules.since_ms)


class _Value(NamedTuple):
    value: str
    by: Actor = NOBODY
    since_ms: int | None = None


def _value(rows: Sequence[_ChangeRow], moment: Moment, *, unset: str = "") -> _Value:
    """What a switch said at a moment, by its rows in order: what holds now first, if anything does."""
    now = next((row.value for row in rows if not row.id), unset)
    made = [row for row in rows if row.id]
    count = sum(row.held(moment) for row in made)
    # What the next one found counts, which another release may have written.
    value = made[count].before if count < len(made) else now
    last = made[count - 1] if count else None
    if last is None or last.value != value:
        return _Value(value)
    return _Value(value, Actor(last.how, last.who), last.at_ms)


def _rules(effect: tuple[bool, bool, str]) -> str:
    default_on, mandatory, category = effect
    state = "mandatory" if mandatory else "on" if default_on else "off"
    return f"{state} {category}" if category else state


def _change(version: int, how: How, who: str) -> tuple[int, Actor]:
    return version, Actor(how, who)


class SwitchedRow(Model):
    """A value that a switch, a category's switch or a type's rules got, and by whom.

    `until_ms` is when another one took its place. Times by the backplane's clock.
    """

    id = fields.BigIntField(primary_key=True)
    user = fields.CharField(max_length=128, db_default="")
    kind = fields.CharField(max_length=16)
    name = fields.CharField(max_length=64)
    before = fields.CharField(max_length=80, db_default="")
    value = fields.CharField(max_length=80, db_default="")
    version = fields.BigIntField(db_default=0)
    how = fields.CharField(max_length=16, db_default="")
    who = fields.CharField(max_length=128, db_default="")
    at_ms = fields.BigIntField()
    until_ms = fields.BigIntField(null=True)

    class Meta:
        table = "pushsse_switched"
        indexes = (Index(fields=["user", "name"]), Index(fields=["until_ms"]), Index(fields=["who"]))
