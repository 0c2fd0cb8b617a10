"""People's switches and quiet hours in the database.

Asked by the dispatcher once per batch, by `people` when streams open, by `Preferences` for changes. One
transaction numbers a person's change and writes it to an outbox, from which `Preferences` publishes it. What
holds for a type: it is on if it is mandatory; else the person's own switch decides, then that of its
category, then the type's default. Deliberate: nothing is cached (guarantee 3). Every call raises
DatabaseUnavailable.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import replace
from tortoise import fields
from tortoise.models import Model

from pushsse.database import Database, Session, Statement, repeated
from pushsse.errors import InvalidInput, Violation
from pushsse.event import Change
from pushsse.position import Mark
from pushsse.preferences import history, quiet
from pushsse.preferences.catalogue import (
    CATALOGUE_LOCK,
    MAX_TYPES,
    REMOVED_REVISION,
    REVISION,
    YIELD_TYPES,
    EventType,
    Languages,
    in_language,
    known_types,
)
from pushsse.preferences.history import CATEGORY, NOBODY, TYPE, Actor, Noted, milliseconds
from pushsse.preferences.quiet import Schedule

_JOINED_AT_ONCE = 100
# For some hundred people.
_LOGGED_S = 10.0
_NOTHING: Mapping[str, bool | None] = {}
# Makes new quiet hours of those that are there.
Reschedule = Callable[[Schedule], Schedule]


class Preference(Struct, frozen=True):
    """One type as a person sees it. `urgent`, where it is there, is true: worth a sound at night, too."""

    name: str
    title: str
    description: str
    category: str
    enabled: bool
    mandatory: bool
    urgent: bool | UnsetType = UNSET


class Settled(Struct, frozen=True):
    """All that a person has chosen or could: the types, the categories that were switched, quiet hours."""

    types: tuple[Preference, ...]
    categories: dict[str, bool]
    schedule: Schedule


class Switches(Struct, frozen=True):
    """A person's switches as committed: the number of the last change, and every type that is off.

    `pending`: a committed change isn't known to be in the log; `logged` is the place of the last one that is.
    `revision` is the catalogue's that `off` follows from; `quiet` the schedule as text.
    """

    version: int
    off: frozenset[str]
    pending: bool
    logged: Mark | None
    revision: int = 0
    quiet: str = ""


class PendingChange(Struct, frozen=True):
    """A committed change that isn't known to be in the log: what it changed, and all that was and is off.

    `revision` is the catalogue's that this follows from. `categories` are those that changed, and `quiet` is
    the new schedule as text; None: it is as before. `waited`: an earlier call has made it.
    """

    user: str
    version: int
    changed: dict[str, bool]
    before: tuple[str, ...]
    after: tuple[str, ...]
    revision: int = 0
    categories: dict[str, bool | None] = {}
    quiet: str | None = None
    waited: bool = False

    @property
    def change(self) -> Change:
        """The change as the log carries it."""
        return Change(self.user, self.version, self.before, self.after, self.revision, self.quiet)


# A type without a row of its own for somebody follows the switch of its category, if that isn't the default.
# SQLite reads the tables of a cross join in this order, where it would go through all types for each person.
_BY_CATEGORY = """
     WHERE t.category = c.category AND c."user" {among[1]} AND c.enabled <> t.default_on
       AND NOT t.mandatory AND NOT EXISTS
       (SELECT 1 FROM pushsse_switch s WHERE s."user" = c."user" AND s.type = t.name)"""
# The empty user marks a type that is off by default; a person's row says the opposite of the default.
_OFF_AMONG = Statement(f"""
    SELECT '', t.name, t.default_on FROM pushsse_event_type t
     WHERE t.name {{among[2]}} AND NOT t.default_on AND NOT t.mandatory
    UNION ALL
    SELECT s."user", s.type, s.enabled
      FROM pushsse_switch s LEFT JOIN pushsse_event_type t ON t.name = s.type
     WHERE s."user" {{among[1]}} AND s.type {{among[2]}}
       AND s.enabled <> coalesce(t.default_on, true) AND NOT coalesce(t.mandatory, false)
    UNION ALL
    SELECT c."user", t.name, c.enabled
      FROM pushsse_event_type t CROSS JOIN pushsse_category_switch c {_BY_CATEGORY}
       AND t.name {{among[2]}} AND t.category <> ''""")  # nosec B608
# Whether one person has one type off, by the same rules; asked for each event that comes by itself.
_IS_OFF = Statement("""
    SELECT 1 FROM (SELECT 1) LEFT JOIN pushsse_event_type t ON t.name = {value[2]}
      LEFT JOIN pushsse_switch s ON s."user" = {value[1]} AND s.type = {value[2]}
      LEFT JOIN pushsse_category_switch c
             ON c."user" = {value[1]} AND c.category = t.category AND t.category <> ''
     WHERE NOT coalesce(s.enabled, c.enabled, t.default_on, true) AND NOT coalesce(t.mandatory, false)""")
_NONE: frozenset[tuple[str, str]] = frozenset()
# The switches of the people among the first parameter, as rows of `SwitchRow`. `people` reads them, joined
# with the open questions. Rows of several kinds make it one statement: the catalogue's revision and a type
# off by default (without a user), a person's numbers and quiet hours, a type chosen otherwise than by
# default, by itself or by its category. Most people have no row of their own.
SWITCHES = f"""
    SELECT 'catalogue', '', '', false, c.revision, 0, '', 0, '' FROM pushsse_catalogue c
    UNION ALL
    SELECT 'default', '', t.name, false, 0, 0, '', 0, '' FROM pushsse_event_type t
     WHERE NOT t.default_on AND NOT t.mandatory
    UNION ALL
    SELECT 'person', p."user", '', false, p.version, p.logged_version, p.logged_epoch, p.logged_number,
           p.quiet FROM pushsse_person p WHERE p."user" {{among[1]}}
    UNION ALL
    SELECT 'chosen', s."user", s.type, s.enabled, 0, 0, '', 0, ''
      FROM pushsse_switch s LEFT JOIN pushsse_event_type t ON t.name = s.type
     WHERE s."user" {{among[1]}}
       AND s.enabled <> coalesce(t.default_on, true) AND NOT coalesce(t.mandatory, false)
    UNION ALL
    SELECT 'chosen', c."user", t.name, c.enabled, 0, 0, '', 0, ''
      FROM pushsse_category_switch c CROSS JOIN pushsse_event_type t {_BY_CATEGORY}"""  # nosec B608
# With the person's switches of types that were removed: they count, and nobody sees them, as of hidden types.
_PREFERENCES = Statement("""
    SELECT t.name, t.title, t.titles, t.description, t.descriptions, t.category, t.default_on, t.mandatory,
           t.hidden, t.urgent, s.enabled, c.enabled, t.place, t.id
      FROM pushsse_event_type t
      LEFT JOIN pushsse_switch s ON s.type = t.name AND s."user" = {value[1]}
      LEFT JOIN pushsse_category_switch c ON c.category = t.category AND c."user" = {value[1]}
    UNION ALL
    SELECT s.type, '', '', '', '', '', true, false, true, false, s.enabled, NULL, 0, s.id
      FROM pushsse_switch s
     WHERE s."user" = {value[1]} AND NOT EXISTS (SELECT 1 FROM pushsse_event_type t WHERE t.name = s.type)
     ORDER BY 13, 14""")
_QUIET = Statement('SELECT quiet FROM pushsse_person WHERE "user" = {value[1]}')
# Makes the person's row, or locks the one that is there: the update changes nothing.
_LOCK_PERSON = Statement("""
    INSERT INTO pushsse_person ("user", version, logged_version) VALUES ({value[1]}, {value[2]}, {value[2]})
    ON CONFLICT ("user") DO UPDATE SET version = pushsse_person.version RETURNING version""")
_LOGGED = Statement("""
    UPDATE pushsse_person SET logged_version = {value[2]}, logged_epoch = {value[3]},
           logged_number = {value[4]}
     WHERE "user" = {value[1]} AND logged_version < {value[2]} RETURNING 1""")
_PUBLISHED = Statement("""
    DELETE FROM pushsse_preference_change WHERE "user" = {value[1]} AND version <= {value[2]} RETURNING 1""")
# The person's row first, as in `change`: one of both waits for the other.
_FORGET = {
    "person": Statement('DELETE FROM pushsse_person WHERE "user" = {value[1]} RETURNING 1'),
    "changes": Statement('DELETE FROM pushsse_preference_change WHERE "user" = {value[1]} RETURNING 1'),
    "switches": Statement('DELETE FROM pushsse_switch WHERE "user" = {value[1]} RETURNING 1'),
}
_FORGET_CATEGORIES = Statement('DELETE FROM pushsse_category_switch WHERE "user" = {value[1]} RETURNING 1')


class _WantedChange(NamedTuple):
    """A change that somebody asks for. Of a type or category None takes the person's choice back."""

    types: Mapping[str, bool | None]
    categories: Mapping[str, bool | None]


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
    quiet: str


class _Choice(NamedTuple):
    """A type, and what one person chose: for the type itself, and for its category."""

    name: str
    title: str
    titles: str
    description: str
    descriptions: str
    category: str
    default_on: bool
    mandatory: bool
    hidden: bool
    urgent: bool
    chosen: bool | None
    by_category: bool | None
    place: int
    id: int

    @property
    def enabled(self) -> bool:
        if self.mandatory:
            return True
        if self.chosen is not None:
            return bool(self.chosen)
        return bool(self.default_on if self.by_category is None else self.by_category)

    def wish(self, wanted: _WantedChange) -> "_Choice":
        """The same after a change."""
        return self._replace(
            chosen=wanted.types.get(self.name, self.chosen),
            by_category=wanted.categories.get(self.category, self.by_category),
        )

    def preference(self, languages: Languages) -> Preference:
        """The type as the person sees it."""
        return Preference(
            name=self.name,
            title=in_language(self.titles, self.title, languages) or self.name,
            description=in_language(self.descriptions, self.description, languages),
            category=self.category,
            enabled=self.enabled,
            mandatory=bool(self.mandatory),
            urgent=True if self.urgent else UNSET,
        )


class PreferenceStore:
    """The tables of the preferences."""

    def __init__(
        self,
        database: Database,
        *,
        now_ms: Callable[[], int] = milliseconds,
        numbers_after: Callable[[], int] | None = None,
    ) -> None:
        """`now_ms`: the log's clock; `numbers_after`: what the number of a change follows at least.

        Deliberate: by default that is the log's clock, too, which all nodes share. Of somebody who is
        forgotten and comes back, or where the database has failed over to a replica that lacks the last
        transactions, the log may have changes that the database doesn't know of. Numbers have to be higher
        than theirs, whichever node has made them: a number that was given is in the log once, and nodes
        ignore a change that is older than what they know.
        """
        self._database = database
        self._now_ms = now_ms
        self._numbers_after = numbers_after or now_ms

    async def off_among(self, users: Sequence[str], types: Sequence[str]) -> frozenset[tuple[str, str]]:
        """Which of these types which of these people have off: by a switch, or by default without one."""
        if not users or not types:
            return frozenset()
        return _off(users, await self._database.read(_pair, _OFF_AMONG, list(users), list(types)))

    def off_among_nowait(self, users: Sequence[str], name: str) -> frozenset[tuple[str, str]] | None:
        """The same of few people and one type, without waiting; None where that can't be: ask `off_among`."""
        if len(users) == 1:
            is_off = self._database.has_row_nowait(_IS_OFF, users[0], name)
            if not is_off:
                return None if is_off is None else _NONE
            return frozenset(((users[0], name),))
        rows = self._database.read_nowait(_pair, _OFF_AMONG, list(users), [name])
        return None if rows is None else _off(users, rows)

    async def known(self) -> frozenset[str]:
        """The names of all types."""
        async with self._database.session():
            return await known_types()

    async def preferences(self, user: str, languages: Languages = ()) -> Settled:
        """What a person has chosen, with the types that aren't hidden, in the catalogue's order.

        `languages`: those that the person reads, the preferred one first.
        """
        rows = await self._database.rows(_Choice, _PREFERENCES, user)
        schedule = await self._database.rows(quiet.decoded, _QUIET, user)
        types: list[Preference] = []
        for row in rows:
            if not row.hidden:
                types.append(row.preference(languages))
                if len(types) % YIELD_TYPES == 0:
                    await asyncio.sleep(0)
        return Settled(
            tuple(types),
            _categories(rows),
            schedule[0] if schedule else Schedule(),
        )

    async def change(
        self,
        user: str,
        types: Mapping[str, bool | None],
        *,
        categories: Mapping[str, bool | None] = _NOTHING,
        schedule: Reschedule | None = None,
        by: Actor = NOBODY,
    ) -> list[PendingChange]:
        """Changes what a person chose, and returns all of their changes that may not be in the log yet.

        Of a type or category None takes the choice back. `schedule` makes the new quiet hours of those that
        are there. `by` is noted. Raises InvalidInput that names every type and category that isn't known,
        mandatory types that were switched off, and what is wrong with the quiet hours.
        """
        wanted = _WantedChange(types, categories)
        async with self._database.transaction() as session:
            # Guarantee 3: the person's row is locked first, so of two changes together the second reads what
            # the first has committed: its number is higher, and its `before` is the first one's `after`.
            numbers = self._numbers_after()
            version: int = (await session.rows(int, _LOCK_PERSON, user, numbers))[0]
            rows = await session.rows(_Choice, _PREFERENCES, user)
            revision = sum(await session.rows(int, REVISION))
            _check(rows, wanted)
            quiet_hours = await _new_schedule(session, user, schedule)
            chosen = [row.wish(wanted) for row in rows]
            await _choose(user, rows, wanted)
            categories = _categories(rows)
            switched = {name: on for name, on in wanted.categories.items() if categories.get(name) != on}
            changed = (new for old, new in zip(rows, chosen, strict=True) if old.enabled != new.enabled)
            change = PendingChange(
                user,
                max(version, numbers) + 1,
                {row.name: row.enabled for row in changed if not row.hidden},
                tuple(sorted(row.name for row in rows if not row.enabled)),
                tuple(sorted(row.name for row in chosen if not row.enabled)),
                revision,
                switched,
                quiet_hours,
            )
            numbered = change.before != change.after or switched or quiet_hours is not None
            if numbered:
                await _number(change)
            noted = _noted(user, rows, wanted, change.version if numbered else 0)
            await history.note(session, noted, by, self._now_ms())
            return await _pending(user, made=change.version if numbered else None)

    @property
    def now_ms(self) -> int:
        """The time by which changes are noted (ms)."""
        return self._now_ms()

    def first_number(self) -> int:
        """What the number of a change follows at least, and that of somebody's first one."""
        return self._numbers_after()

    async def pending(self, *users: str) -> list[PendingChange]:
        """Changes of these people that aren't known to be in the log, each person's in order."""
        async with self._database.session():
            return await _pending(*users)

    async def pending_users(self, *, older_than_s: float, limit: int = 100) -> list[str]:
        """People with changes that have waited for the log for so long, those who wait longest first."""
        before = datetime.now(UTC) - timedelta(seconds=older_than_s)
        async with self._database.session():
            waiting = PreferenceChange.filter(created_at__lt=before).order_by("id").limit(limit)
            return list(dict.fromkeys([row.user for row in await waiting]))

    async def logged(self, user: str, version: int, mark: Mark) -> None:
        """Notes that a person's changes up to `version` are in the log, up to `mark`; never backwards."""
        await self.all_logged({user: (version, mark)})

    async def all_logged(self, done: Mapping[str, tuple[int, Mark]]) -> None:
        """The same of many people."""
        await repeated(lambda: self._note(done))

    async def _note(self, done: Mapping[str, tuple[int, Mark]]) -> None:
        async with self._database.transaction(timeout_s=_LOGGED_S) as session:
            # In order, so that of two such calls one waits for the other.
            for user, (version, mark) in sorted(done.items()):
                # Never backwards: of two nodes that published, the later one may have come first.
                await session.rows(int, _LOGGED, user, version, mark.epoch, mark.number)
                await session.rows(int, _PUBLISHED, user, version)

    async def forget(self, user: str) -> dict[str, int]:
        """Deletes all that is kept of a person: how many rows of each kind."""
        async with self._database.transaction() as session:
            deleted = {kind: len(await session.rows(int, each, user)) for kind, each in _FORGET.items()}
            deleted["switches"] += len(await session.rows(int, _FORGET_CATEGORIES, user))
            deleted["switched"] = await history.forget(session, user)
        await history.forget_name(self._database, user)
        return deleted

    async def join(self, names: Sequence[str], *, hidden: bool) -> frozenset[str]:
        """Adds types to the catalogue, up to 1,000 in all; those that are there stay as they are.

        Returns the names that found no room.
        """
        async with self._database.transaction() as session:
            await session.lock(CATALOGUE_LOCK)
            known = await known_types()
            wanted = [name for name in dict.fromkeys(names) if name not in known]
            # An administrator may have added more than fit.
            room = max(0, MAX_TYPES - len(known))
            if new := wanted[:room]:
                # One of them may have been there before, with rules of its own.
                revision = sum(await session.rows(int, REMOVED_REVISION))
                for start in range(0, len(new), _JOINED_AT_ONCE):
                    if start:
                        await asyncio.sleep(0)
                    names_now = new[start : start + _JOINED_AT_ONCE]
                    await EventType.bulk_create(
                        [EventType(name=name, hidden=hidden, revision=revision) for name in names_now]
                    )
            return frozenset(wanted[room:])


def switches_of(users: Sequence[str], rows: Sequence[SwitchRow]) -> dict[str, Switches]:
    """What the rows of `SWITCHES` say of each of `users`."""
    default_off = frozenset(row.type for row in rows if row.kind == "default")
    revision = sum(row.version for row in rows if row.kind == "catalogue")
    unchanged = Switches(version=0, off=default_off, pending=False, logged=None, revision=revision)
    found = dict.fromkeys(users, unchanged)
    for row in rows:
        if row.kind == "person":
            found[row.user] = replace(
                found[row.user],
                version=row.version,
                pending=row.version > row.logged_version,
                logged=Mark(row.logged_epoch, row.logged_number) if row.logged_epoch else None,
                quiet=row.quiet,
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


def _categories(rows: Sequence[_Choice]) -> dict[str, bool]:
    """The categories that a person has switched."""
    return {row.category: bool(row.by_category) for row in rows if row.by_category is not None}


def _check(rows: Sequence[_Choice], wanted: _WantedChange) -> None:
    known = {row.name: row for row in rows if not row.hidden}
    categories = {row.category for row in rows if row.category and not row.hidden}
    violations = []
    for name, on in wanted.types.items():
        at = f"$.types.{name}"
        if name not in known:
            violations.append(Violation(at, f"{name!r} is not a type of the catalogue"))
        elif known[name].mandatory and on is False:
            violations.append(Violation(at, f"{name!r} is mandatory and can't be switched off, got false"))
    for name in wanted.categories:
        if name not in categories:
            violations.append(
                Violation(f"$.categories.{name}", f"{name!r} is no category of the catalogue's types")
            )
    if violations:
        raise InvalidInput(*violations)


async def _new_schedule(session: Session, user: str, schedule: Reschedule | None) -> str | None:
    """The quiet hours as text, if they change. Raises InvalidInput."""
    if schedule is None:
        return None
    [before] = await session.rows(str, _QUIET, user)
    after = quiet.encoded(quiet.checked(schedule(quiet.decoded(before))))
    return None if after == before else after


async def _choose(user: str, rows: Sequence[_Choice], wanted: _WantedChange) -> None:
    """Writes what was chosen, also where it is the default: the default may change."""
    chosen = [
        Switch(user=user, type=row.name, enabled=on)
        for row in rows
        if (on := wanted.types.get(row.name)) is not None and on != row.chosen
    ]
    if chosen:
        await Switch.bulk_create(chosen, on_conflict=("user", "type"), update_fields=("enabled",))
    if taken_back := [name for name, on in wanted.types.items() if on is None]:
        await Switch.filter(user=user, type__in=taken_back).delete()
    categories = [
        CategorySwitch(user=user, category=name, enabled=on)
        for name, on in wanted.categories.items()
        if on is not None
    ]
    if categories:
        await CategorySwitch.bulk_create(
            categories, on_conflict=("user", "category"), update_fields=("enabled",)
        )
    if taken_back := [name for name, on in wanted.categories.items() if on is None]:
        await CategorySwitch.filter(user=user, category__in=taken_back).delete()


def _noted(user: str, rows: Sequence[_Choice], wanted: _WantedChange, version: int) -> list[Noted]:
    """What somebody chose otherwise than before."""
    before: dict[str, Mapping[str, bool | None]] = {
        TYPE: {row.name: row.chosen for row in rows},
        CATEGORY: _categories(rows),
    }
    return [
        Noted(user, kind, name, history.chosen(before[kind].get(name)), history.chosen(on), version)
        for kind, choices in ((TYPE, wanted.types), (CATEGORY, wanted.categories))
        for name, on in choices.items()
        if before[kind].get(name) != on
    ]


async def _number(change: PendingChange) -> None:
    # Guarantee 3: number, switches and outbox in one transaction. What dispatch reads and what the log will
    # tell can't come apart.
    values: dict[str, int | str] = {"version": change.version}
    if change.quiet is not None:
        values["quiet"] = change.quiet
    await PersonRow.filter(user=change.user).update(**values)
    await PreferenceChange.create(
        user=change.user,
        version=change.version,
        changed=change.changed,
        before=list(change.before),
        after=list(change.after),
        revision=change.revision,
        told=change.categories or None,
        quiet=change.quiet,
    )


async def _pending(*users: str, made: int | None = None) -> list[PendingChange]:
    """People's changes that may not be in the log yet; the call has made the one numbered `made`."""
    return [
        PendingChange(
            r.user,
            r.version,
            r.changed,
            tuple(r.before),
            tuple(r.after),
            r.revision,
            r.told or {},
            r.quiet,
            waited=r.version != made,
        )
        for r in await PreferenceChange.filter(user__in=users).order_by("user", "version")
    ]


class Switch(Model):
    """What a person chose for one type. Without a row the type's default holds."""

    id = fields.BigIntField(primary_key=True)
    user = fields.CharField(max_length=128)
    type = fields.CharField(max_length=64)
    enabled = fields.BooleanField()

    class Meta:
        table = "pushsse_switch"
        unique_together = (("user", "type"),)


class CategorySwitch(Model):
    """What a person chose for the types of a category that have no switch of their own."""

    id = fields.BigIntField(primary_key=True)
    user = fields.CharField(max_length=128)
    category = fields.CharField(max_length=64)
    enabled = fields.BooleanField()

    class Meta:
        table = "pushsse_category_switch"
        unique_together = (("user", "category"),)


class PersonRow(Model):
    """A person who has changed a switch: the number of the last change, and of the last one in the log.

    `logged_epoch` and `logged_number` are the place in the person's shard log of the latter. `quiet` is the
    schedule of quiet hours as text.
    """

    user = fields.CharField(max_length=128, primary_key=True)
    version = fields.BigIntField(db_default=0)
    logged_version = fields.BigIntField(db_default=0)
    logged_epoch = fields.CharField(max_length=12, db_default="")
    logged_number = fields.BigIntField(db_default=0)
    quiet = fields.TextField(db_default="")

    class Meta:
        table = "pushsse_person"


class PreferenceChange(Model):
    """A change on its way into the log: written with the switches, removed once the log has it.

    `told` are the categories that changed.
    """

    id = fields.BigIntField(primary_key=True)
    user = fields.CharField(max_length=128)
    version = fields.BigIntField()
    changed: fields.JSONField[dict[str, bool]] = fields.JSONField()
    before: fields.JSONField[list[str]] = fields.JSONField()
    after: fields.JSONField[list[str]] = fields.JSONField()
    created_at = fields.DatetimeField(auto_now_add=True)
    revision = fields.BigIntField(db_default=0)
    told: fields.JSONField[dict[str, bool | None]] = fields.JSONField(null=True)
    quiet = fields.TextField(null=True)

    class Meta:
        table = "pushsse_preference_change"
        unique_together = (("user", "version"),)
