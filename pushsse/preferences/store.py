"""The catalogue and the switches in the database, with their tables.

Asked by the dispatcher once per batch, by `people` when streams open, by `Preferences` for changes. One
transaction numbers a person's change and writes it to an outbox, from which `Preferences` publishes it.
Deliberate: nothing is cached (guarantee 3). Every call raises DatabaseUnavailable.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace
from tortoise import fields
from tortoise.models import Model

from pushsse.database import Database, Statement
from pushsse.errors import InvalidInput, Violation
from pushsse.event import Change
from pushsse.position import Mark

_JOINED_AT_ONCE = 100


class Preference(Struct, frozen=True):
    """One type as a person sees it."""

    name: str
    title: str
    description: str
    category: str
    enabled: bool
    mandatory: bool


class Switches(Struct, frozen=True):
    """A person's switches as committed: the number of the last change, and every type that is off.

    `pending`: a committed change isn't known to be in the log; `logged` is the place of the last one that is.
    """

    version: int
    off: frozenset[str]
    pending: bool
    logged: Mark | None


class PendingChange(Struct, frozen=True):
    """A committed change that isn't known to be in the log: what it changed, and all that was and is off."""

    user: str
    version: int
    changed: dict[str, bool]
    before: tuple[str, ...]
    after: tuple[str, ...]

    @property
    def change(self) -> Change:
        """The change as the log carries it."""
        return Change(self.user, self.version, self.before, self.after)


class EventType(Model):
    """One type of the catalogue, in the order in which they joined."""

    id = fields.BigIntField(primary_key=True)
    name = fields.CharField(max_length=64, unique=True)
    title = fields.CharField(max_length=200, db_default="")
    description = fields.TextField(db_default="")
    default_on = fields.BooleanField(db_default=True)
    mandatory = fields.BooleanField(db_default=False)
    hidden = fields.BooleanField(db_default=False)
    created_at = fields.DatetimeField(auto_now_add=True)

    class Meta:
        table = "pushsse_event_type"


class Switch(Model):
    """What a person chose for one type. Without a row the type's default holds."""

    id = fields.BigIntField(primary_key=True)
    user = fields.CharField(max_length=128)
    type = fields.CharField(max_length=64)
    enabled = fields.BooleanField()

    class Meta:
        table = "pushsse_switch"
        unique_together = (("user", "type"),)


class PersonRow(Model):
    """A person who has changed a switch: the number of the last change, and of the last one in the log.

    `logged_epoch` and `logged_number` are the place in the person's shard log of the latter.
    """

    user = fields.CharField(max_length=128, primary_key=True)
    version = fields.BigIntField(db_default=0)
    logged_version = fields.BigIntField(db_default=0)
    logged_epoch = fields.CharField(max_length=12, db_default="")
    logged_number = fields.BigIntField(db_default=0)

    class Meta:
        table = "pushsse_person"


class PreferenceChange(Model):
    """A change on its way into the log: written with the switches, removed once the log has it."""

    id = fields.BigIntField(primary_key=True)
    user = fields.CharField(max_length=128)
    version = fields.BigIntField()
    changed: fields.JSONField[dict[str, bool]] = fields.JSONField()
    before: fields.JSONField[list[str]] = fields.JSONField()
    after: fields.JSONField[list[str]] = fields.JSONField()
    created_at = fields.DatetimeField(auto_now_add=True)

    class Meta:
        table = "pushsse_preference_change"
        unique_together = (("user", "version"),)


MAX_TYPES = 1_000
# "pushsse" and a digit in ASCII. Of two nodes that add types, one waits for the other, so that both together
# stay within MAX_TYPES.
_CATALOGUE_LOCK = 0x7075736873736532

# The empty user marks a type that is off by default; a person's row says the opposite of the default.
_OFF_AMONG = Statement("""
    SELECT '', t.name, t.default_on FROM pushsse_event_type t
     WHERE t.name {among[2]} AND NOT t.default_on AND NOT t.mandatory
    UNION ALL
    SELECT s."user", s.type, s.enabled
      FROM pushsse_switch s LEFT JOIN pushsse_event_type t ON t.name = s.type
     WHERE s."user" {among[1]} AND s.type {among[2]}
       AND s.enabled <> coalesce(t.default_on, true) AND NOT coalesce(t.mandatory, false)""")
# The switches of the people among the first parameter, as rows of `SwitchRow`. `people` reads them, joined
# with the open questions. Rows of three kinds make it one statement: a type off by default (without a user),
# a person's numbers, a type chosen otherwise than by default. Most people have no row of their own.
SWITCHES = """
    SELECT 'default', '', t.name, false, 0, 0, '', 0 FROM pushsse_event_type t
     WHERE NOT t.default_on AND NOT t.mandatory
    UNION ALL
    SELECT 'person', p."user", '', false, p.version, p.logged_version, p.logged_epoch, p.logged_number
      FROM pushsse_person p WHERE p."user" {among[1]}
    UNION ALL
    SELECT 'chosen', s."user", s.type, s.enabled, 0, 0, '', 0
      FROM pushsse_switch s LEFT JOIN pushsse_event_type t ON t.name = s.type
     WHERE s."user" {among[1]}
       AND s.enabled <> coalesce(t.default_on, true) AND NOT coalesce(t.mandatory, false)"""
_PREFERENCES = Statement("""
    SELECT t.name, t.title, t.description, t.default_on, t.mandatory, t.hidden, s.enabled
      FROM pushsse_event_type t LEFT JOIN pushsse_switch s ON s.type = t.name AND s."user" = {value[1]}
     ORDER BY t.id""")
# Makes the person's row, or locks the one that is there: the update changes nothing.
_LOCK_PERSON = Statement("""
    INSERT INTO pushsse_person ("user", version, logged_version) VALUES ({value[1]}, {value[2]}, {value[2]})
    ON CONFLICT ("user") DO UPDATE SET version = pushsse_person.version RETURNING version""")
# The person's row first, as in `change`: one of both waits for the other.
_FORGET = {
    "person": Statement('DELETE FROM pushsse_person WHERE "user" = {value[1]} RETURNING 1'),
    "changes": Statement('DELETE FROM pushsse_preference_change WHERE "user" = {value[1]} RETURNING 1'),
    "switches": Statement('DELETE FROM pushsse_switch WHERE "user" = {value[1]} RETURNING 1'),
}


class SwitchRow(NamedTuple):
    """A row of `SWITCHES`. `people` adds rows of a kind of its own, which `switches_of` passes over."""

    kind: str
    user: str
    type: str
    enabled: bool
    version: int
    logged_version: int
    logged_epoch: str
    logged_number: int


class _Choice(NamedTuple):
    name: str
    title: str
    description: str
    default_on: bool
    mandatory: bool
    hidden: bool
    chosen: bool | None

    @property
    def enabled(self) -> bool:
        return bool(self.mandatory or (self.default_on if self.chosen is None else self.chosen))


def _milliseconds() -> int:
    return int(time.time() * 1000)


class PreferenceStore:
    """The tables of the preferences."""

    def __init__(self, database: Database, *, numbers_after: Callable[[], int] = _milliseconds) -> None:
        """`numbers_after`: what the number of a person's first change follows.

        Deliberate: the time. Of somebody who is forgotten and comes back, the log may still have changes, and
        these numbers have to be higher than theirs: nodes ignore a change that is older than what they know.
        """
        self._database = database
        self._numbers_after = numbers_after

    async def off_among(self, users: Sequence[str], types: Sequence[str]) -> frozenset[tuple[str, str]]:
        """Which of these types which of these people have off: by a switch, or by default without one."""
        if not users or not types:
            return frozenset()
        return _off(users, await self._database.read(_pair, _OFF_AMONG, list(users), list(types)))

    def off_among_nowait(
        self, users: Sequence[str], types: Sequence[str]
    ) -> frozenset[tuple[str, str]] | None:
        """The same of few people, read without waiting; None where that can't be: then ask `off_among`."""
        rows = self._database.read_nowait(_pair, _OFF_AMONG, list(users), list(types))
        return None if rows is None else _off(users, rows)

    async def known(self) -> frozenset[str]:
        """The names of all types."""
        async with self._database.session():
            return await _known()

    async def preferences(self, user: str) -> tuple[Preference, ...]:
        """The types that aren't hidden as this person has them, in the catalogue's order."""
        rows = await self._database.rows(_Choice, _PREFERENCES, user)
        return tuple(
            Preference(
                name=row.name,
                title=row.title or row.name,
                description=row.description,
                category="",
                enabled=row.enabled,
                mandatory=bool(row.mandatory),
            )
            for row in rows
            if not row.hidden
        )

    async def change(self, user: str, wanted: Mapping[str, bool]) -> list[PendingChange]:
        """Switches types on and off, and returns all of the person's changes that may not be in the log yet.

        Raises InvalidInput that names every type that isn't known, or is mandatory and was switched off.
        """
        async with self._database.transaction() as session:
            # Guarantee 3: the person's row is locked first, so of two changes together the second reads what
            # the first has committed: no number is left out, and its `before` is the first one's `after`.
            version: int = (await session.rows(int, _LOCK_PERSON, user, self._numbers_after()))[0]
            rows = await session.rows(_Choice, _PREFERENCES, user)
            _check({row.name: row for row in rows if not row.hidden}, wanted)
            await _choose(
                user, [row for row in rows if wanted.get(row.name, row.chosen) != row.chosen], wanted
            )
            changed = {row.name: wanted[row.name] for row in rows if _differs(row, wanted)}
            if changed:
                before = {row.name for row in rows if not row.enabled}
                after = {name for name in before if name not in changed} | {
                    n for n, on in changed.items() if not on
                }
                await _number(user, version + 1, changed, before, after)
            return await _pending(user)

    async def pending(self, user: str) -> list[PendingChange]:
        """A person's changes that aren't known to be in the log, in order."""
        async with self._database.session():
            return await _pending(user)

    async def pending_users(self, *, older_than_s: float, limit: int = 100) -> list[str]:
        """People with changes that have waited for the log for so long, those who wait longest first."""
        before = datetime.now(UTC) - timedelta(seconds=older_than_s)
        async with self._database.session():
            waiting = PreferenceChange.filter(created_at__lt=before).order_by("id").limit(limit)
            return list(dict.fromkeys([row.user for row in await waiting]))

    async def logged(self, user: str, version: int, mark: Mark) -> None:
        """Notes that a person's changes up to `version` are in the log, up to `mark`; never backwards."""
        async with self._database.transaction():
            # Never backwards: of two nodes that published, the later one may have come first.
            await PersonRow.filter(user=user, logged_version__lt=version).update(
                logged_version=version, logged_epoch=mark.epoch, logged_number=mark.number
            )
            await PreferenceChange.filter(user=user, version__lte=version).delete()

    async def forget(self, user: str) -> dict[str, int]:
        """Deletes all that is kept of a person: how many rows of each kind."""
        async with self._database.transaction() as session:
            return {kind: len(await session.rows(int, each, user)) for kind, each in _FORGET.items()}

    async def join(self, names: Sequence[str], *, hidden: bool) -> frozenset[str]:
        """Adds types to the catalogue, up to 1,000 in all; those that are there stay as they are.

        Returns the names that found no room.
        """
        async with self._database.transaction() as session:
            await session.lock(_CATALOGUE_LOCK)
            known = await _known()
            wanted = [name for name in dict.fromkeys(names) if name not in known]
            # An administrator may have added more than fit.
            room = max(0, MAX_TYPES - len(known))
            if new := wanted[:room]:
                for start in range(0, len(new), _JOINED_AT_ONCE):
                    if start:
                        await asyncio.sleep(0)
                    names_now = new[start : start + _JOINED_AT_ONCE]
                    await EventType.bulk_create([EventType(name=name, hidden=hidden) for name in names_now])
            return frozenset(wanted[room:])


def switches_of(users: Sequence[str], rows: Sequence[SwitchRow]) -> dict[str, Switches]:
    """What the rows of `SWITCHES` say of each of `users`."""
    default_off = frozenset(row.type for row in rows if row.kind == "default")
    unchanged = Switches(version=0, off=default_off, pending=False, logged=None)
    found = dict.fromkeys(users, unchanged)
    for row in rows:
        if row.kind == "person":
            found[row.user] = replace(
                found[row.user],
                version=row.version,
                pending=row.version > row.logged_version,
                logged=Mark(row.logged_epoch, row.logged_number) if row.logged_epoch else None,
            )
        elif row.kind == "chosen":
            off = found[row.user].off
            off = off - {row.type} if row.enabled else off | {row.type}
            found[row.user] = replace(found[row.user], off=off)
    return found


def _pair(user: str, name: str, enabled: bool) -> tuple[str, str, bool]:
    return user, name, enabled


def _off(users: Sequence[str], rows: Sequence[tuple[str, str, bool]]) -> frozenset[tuple[str, str]]:
    """What is off, by the rows of _OFF_AMONG."""
    if not rows:
        return frozenset()
    off = {(user, name) for user, name, enabled in rows if user and not enabled}
    if default_off := [name for user, name, _ in rows if not user]:
        on = {(user, name) for user, name, enabled in rows if user and enabled}
        off.update(pair for name in default_off for user in users if (pair := (user, name)) not in on)
    return frozenset(off)


async def _known() -> frozenset[str]:
    # Names alone: to make a model of each of 1,000 rows holds the event loop for 30 ms.
    return frozenset([str(name) for (name,) in await EventType.all().values_list("name")])


def _check(known: Mapping[str, _Choice], wanted: Mapping[str, bool]) -> None:
    violations = []
    for name, on in wanted.items():
        at = f"$.types.{name}"
        if name not in known:
            violations.append(Violation(at, f"{name!r} is not a type of the catalogue"))
        elif known[name].mandatory and not on:
            violations.append(Violation(at, f"{name!r} is mandatory and can't be switched off, got false"))
    if violations:
        raise InvalidInput(*violations)


def _differs(row: _Choice, wanted: Mapping[str, bool]) -> bool:
    return row.name in wanted and wanted[row.name] != row.enabled


async def _choose(user: str, rows: Sequence[_Choice], wanted: Mapping[str, bool]) -> None:
    """Writes what was chosen, also where it is the default: the default may change."""
    if rows:
        chosen = [Switch(user=user, type=row.name, enabled=wanted[row.name]) for row in rows]
        await Switch.bulk_create(chosen, on_conflict=("user", "type"), update_fields=("enabled",))


async def _number(
    user: str, version: int, changed: dict[str, bool], before: set[str], after: set[str]
) -> None:
    # Guarantee 3: number, switches and outbox in one transaction. What dispatch reads and what the log will
    # tell can't come apart.
    await PersonRow.filter(user=user).update(version=version)
    await PreferenceChange.create(
        user=user, version=version, changed=changed, before=sorted(before), after=sorted(after)
    )


async def _pending(user: str) -> list[PendingChange]:
    rows = await PreferenceChange.filter(user=user).order_by("version")
    return [PendingChange(r.user, r.version, r.changed, tuple(r.before), tuple(r.after)) for r in rows]
