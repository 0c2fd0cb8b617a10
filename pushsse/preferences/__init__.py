"""Changes of switches on their way from the database into the log: a person's, and many people's at once.

Called by the API, and by opening streams (`settle`); a service. A change is committed, then published to the
person's shard log, then the caller gets its answer. What a crash or an outage leaves unpublished, `run`, the
person's next change or their next stream publishes.

`Transfer` exports and imports in pages, for `pushsse prefs export` and `import`. People are imported some at
a time, in a transaction that numbers each person's change and writes it to the outbox as a change by
themselves would; then the log gets these changes. Importing the same rows again changes nothing.
"""

import asyncio
import logging
import random
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Literal, NamedTuple
from weakref import WeakValueDictionary

import msgspec
from msgspec import Struct

from pushsse import event
from pushsse.backplane import Append, Backplane, Draft, log_of
from pushsse.backplane.limits import LogAllowance
from pushsse.database import Database, Session, Statement, repeated
from pushsse.errors import InvalidInput, Unavailable, Violation
from pushsse.event import TypeName, UserName
from pushsse.preferences import history, quiet
from pushsse.preferences.catalogue import REVISION, Category, Languages
from pushsse.preferences.history import CATEGORY, TYPE, Actor, Noted
from pushsse.preferences.store import (
    CategorySwitch,
    PendingChange,
    PersonRow,
    PreferenceChange,
    PreferenceStore,
    Reschedule,
    Settled,
    Switch,
)
from pushsse.retry import Backoff, Outage

logger = logging.getLogger(__name__)
_RELAY_EVERY_S = 2.0
_RELAY_OLDER_THAN_S = 2.0
# 400 names of 64 characters are about 30 KiB: well inside a frame.
_NAMES_A_FRAME = 400
_CHANGES_AN_APPEND = 100
_NOTHING: Mapping[str, bool | None] = {}


class Preferences:
    """People's switches, as the API changes them."""

    def __init__(
        self, store: PreferenceStore, backplane: Backplane, allowance: LogAllowance | None = None
    ) -> None:
        self._store = store
        self._backplane = backplane
        self._allowance = allowance or LogAllowance(backplane)
        # Those who are changing something here, or wait for their turn to.
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def change(
        self,
        user: str,
        types: Mapping[str, bool | None],
        *,
        by: Actor,
        categories: Mapping[str, bool | None] = _NOTHING,
        schedule: Reschedule | None = None,
        languages: Languages = (),
    ) -> Settled:
        """Changes what a person chose, and returns all of it once the log has the change.

        As `PreferenceStore.change`, whose errors it raises, and BackplaneUnavailable: then the change holds
        already, and is published as soon as the log takes it.
        """
        # Guarantee 3: committed before it is published, and published before the caller is answered. Dispatch
        # reads the table, so an event published after the commit is filtered there; open streams and replays
        # learn of the change from the log, in order with the events.
        await self._publish(
            await self._store.change(user, types, categories=categories, schedule=schedule, by=by)
        )
        return await self._store.preferences(user, languages)

    async def change_own(
        self,
        user: str,
        types: Mapping[str, bool | None],
        *,
        by: Actor,
        categories: Mapping[str, bool | None] = _NOTHING,
        schedule: Reschedule | None = None,
        languages: Languages = (),
    ) -> Settled:
        """`change`, which the person pays for with what the logs take of one. Raises AllowanceSpent, too.

        What it costs shows when it is done: each change carries all that the person has off. So one waits for
        the other here, as it would in the database, and finds what that one has left.
        """
        async with self._turns.setdefault(user, asyncio.Lock()):
            await self._allowance.take(user)
            changes = await self._store.change(user, types, categories=categories, schedule=schedule, by=by)
            # What waited for the log was paid for when it was made.
            made = [draft for change in changes if not change.waited for draft in _drafts(change)]
            self._allowance.owe(user, sum(draft.publication.size for draft in made))
            await self._publish(changes)
        return await self._store.preferences(user, languages)

    async def settle(self, user: str) -> None:
        """Publishes a person's changes that aren't known to be in the log. Raises Unavailable."""
        await self._publish(await self._store.pending(user))

    async def relay(self) -> int:
        """Publishes changes that have waited for over 2 s, of up to 100 people; returns of how many.

        Raises Unavailable.
        """
        users = await self._store.pending_users(older_than_s=_RELAY_OLDER_THAN_S)
        for user in users:
            await self.settle(user)
        return len(users)

    async def run(self) -> None:
        """Relays for ever; where the database or the log is away, it tries again."""
        waiting = Outage("changes of switches wait for the log", logger, Backoff())
        while True:
            # Spread, so that of many nodes one does the work and the others find nothing left.
            await asyncio.sleep(_RELAY_EVERY_S * random.uniform(0.5, 1.5))
            try:
                if count := await self.relay():
                    logger.info("published changes of switches that had waited, of %d people", count)
                waiting.over()
            except Unavailable as error:
                waiting.failed(error)

    async def publish(self, changes: Sequence[PendingChange]) -> None:
        """Publishes changes of many people, each person's in order. Raises Unavailable."""
        drafts: dict[str, list[Draft]] = {}
        for change in changes:
            drafts.setdefault(log_of(change.user, self._backplane.shards), []).extend(_drafts(change))
        if drafts:
            receipt = await self._backplane.publish(
                [Append(log, tuple(some)) for log, some in drafts.items()]
            )
            # Only now, as in `_publish`. The last change of each person counts.
            await self._store.all_logged(
                {
                    change.user: (
                        change.version,
                        receipt.marks[log_of(change.user, self._backplane.shards)],
                    )
                    for change in changes
                }
            )

    async def _publish(self, changes: Sequence[PendingChange]) -> None:
        # Guarantee 3: in the order of their numbers. Two nodes may publish the same change together: `once`
        # keeps the second out of the log, and a stream ignores a change older than what it knows.
        for start in range(0, len(changes), _CHANGES_AN_APPEND):
            part = changes[start : start + _CHANGES_AN_APPEND]
            user = part[0].user
            mark = await self._backplane.publish_to(user, (d for change in part for d in _drafts(change)))
            # Only now: an outbox row that is removed before the log has its change would be lost in a crash.
            await self._store.logged(user, part[-1].version, mark)


def _drafts(change: PendingChange) -> list[Draft]:
    """The `preferences` event of a change, in as many frames as its names need.

    The first one carries the change itself, which holds from there on: all frames together may be smaller.
    """
    told: list[dict[str, object]]
    schedule = {} if change.quiet is None else msgspec.to_builtins(quiet.decoded(change.quiet))
    if len(change.changed) + len(change.categories) <= _NAMES_A_FRAME:
        categories = {"categories": change.categories} if change.categories else {}
        told = [{"types": change.changed} | categories | schedule]
    else:
        told = [{"types": part} for part in _portions(change.changed)]
        told += [{"types": {}, "categories": part} for part in _portions(change.categories)]
        told[-1] |= schedule
    return [
        Draft(
            event.encode("preferences", data, users=(change.user,), change=None if part else change.change),
            once=f"switch:{change.user}:{change.version}" + (f":{part}" if part else ""),
        )
        for part, data in enumerate(told)
    ]


def _portions(values: Mapping[str, object]) -> list[dict[str, object]]:
    names = list(values)
    return [
        {name: values[name] for name in names[start : start + _NAMES_A_FRAME]}
        for start in range(0, len(names), _NAMES_A_FRAME)
    ]


MOST_ROWS = 500
# In one transaction, during which nobody else writes to SQLite.
_PEOPLE_AT_ONCE = 50
_IMPORT_S = 10.0
# People between two yields, of whom each may have chosen something for all types.
_YIELD_PEOPLE = 5


class SwitchLine(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a person chose for one type or, where there is no type, one category."""

    user: UserName
    enabled: bool
    type: TypeName | Literal[""] = ""
    category: Category = ""


class ExportPlace(NamedTuple):
    """Where an export goes on: after one line of the types', or of the categories'."""

    kind: Literal["type", "category"] = "type"
    user: str = ""
    name: str = ""


class ExportPage(NamedTuple):
    """Some lines, in the order of people's names, and where the rest begins."""

    lines: tuple[SwitchLine, ...]
    next: ExportPlace | None


class Imported(Struct, frozen=True):
    """How many people a page was about, and how many of them it changed something for."""

    people: int
    changed: int


_TYPES = Statement("""
    SELECT "user", type, enabled FROM pushsse_switch
     WHERE ("user", type) > ({value[1]}, {value[2]}) ORDER BY "user", type LIMIT {value[3]}""")
_CATEGORIES = Statement("""
    SELECT "user", category, enabled FROM pushsse_category_switch
     WHERE ("user", category) > ({value[1]}, {value[2]}) ORDER BY "user", category LIMIT {value[3]}""")
_RULES = Statement("SELECT name, category, default_on, mandatory, hidden FROM pushsse_event_type")
# Changes nothing: whoever changes one of these people's switches waits until this transaction has ended.
_LOCK = Statement("""
    UPDATE pushsse_person SET version = version WHERE "user" {among[1]} RETURNING "user", version""")
_CHOSEN = Statement('SELECT "user", type, enabled FROM pushsse_switch WHERE "user" {among[1]}')
_CHOSEN_CATEGORIES = Statement(
    'SELECT "user", category, enabled FROM pushsse_category_switch WHERE "user" {among[1]}'
)
_NEXT = Statement("""
    UPDATE pushsse_person SET version = CASE WHEN version < {value[2]} THEN {value[2]} ELSE version END + 1
     WHERE "user" {among[1]} RETURNING version""")


class _Rule(NamedTuple):
    name: str
    category: str
    default_on: bool
    mandatory: bool
    hidden: bool


class _Line(NamedTuple):
    user: str
    name: str
    enabled: bool


class _Choices:
    """What one person chose, by type and by category."""

    def __init__(self) -> None:
        self.types: dict[str, bool] = {}
        self.categories: dict[str, bool] = {}

    def with_(self, other: "_Choices") -> "_Choices":
        """Both, of which the other counts where both say something."""
        made = _Choices()
        made.types = self.types | other.types
        made.categories = self.categories | other.categories
        return made


class _Rules:
    """The catalogue's rules, by which choices become what is off."""

    def __init__(self, rules: Iterable[_Rule]) -> None:
        self.by_name = {rule.name: rule for rule in rules}
        self.by_category: dict[str, list[str]] = {}
        for rule in self.by_name.values():
            if rule.category and not rule.mandatory:
                self.by_category.setdefault(rule.category, []).append(rule.name)
        self._default_off = {
            rule.name for rule in self.by_name.values() if not rule.default_on and not rule.mandatory
        }
        self.categories = {rule.category for rule in self.by_name.values() if not rule.hidden}

    def off(self, choices: _Choices) -> set[str]:
        """The types that are off by somebody's choices."""
        off = set(self._default_off)
        for category, on in choices.categories.items():
            (off.difference_update if on else off.update)(self.by_category.get(category, ()))
        for name, on in choices.types.items():
            rule = self.by_name.get(name)
            # That of a type which was removed counts, too.
            if rule is None or not rule.mandatory:
                (off.discard if on else off.add)(name)
        return off

    def fault(self, line: SwitchLine) -> tuple[str, str] | None:
        """The member of a line that can't be used, and why."""
        if bool(line.type) == bool(line.category):
            return "type", "a line has either a type or a category"
        if line.category:
            known = line.category in self.categories
            return (
                None if known else ("category", f"{line.category!r} is no category of the catalogue's types")
            )
        rule = self.by_name.get(line.type)
        if rule is None or rule.hidden:
            return "type", f"{line.type!r} is not a type of the catalogue"
        if rule.mandatory and not line.enabled:
            return "enabled", f"{line.type!r} is mandatory and can't be switched off, got false"
        return None


class Transfer:
    """Exports and imports. Everything raises DatabaseUnavailable."""

    def __init__(self, database: Database, store: PreferenceStore, preferences: Preferences) -> None:
        self._database = database
        self._store = store
        self._preferences = preferences

    async def export(self, after: ExportPlace, *, limit: int) -> ExportPage:
        """The lines after a place: all of types, then all of categories."""
        is_type = after.kind == "type"
        statement = _TYPES if is_type else _CATEGORIES
        found = await self._database.rows(_Line, statement, after.user, after.name, limit)
        lines = tuple(
            SwitchLine(user, bool(on), type=name) if is_type else SwitchLine(user, bool(on), category=name)
            for user, name, on in found
        )
        if len(found) == limit:
            return ExportPage(lines, ExportPlace(after.kind, found[-1].user, found[-1].name))
        return ExportPage(lines, ExportPlace("category") if is_type else None)

    async def import_page(self, lines: Sequence[SwitchLine], *, by: str) -> Imported:
        """Imports some lines, of which the last one counts where several are about the same.

        `by`: the name of whoever imports.

        Raises InvalidInput that names every line that can't be used; then nothing of the page is imported.
        And Unavailable: then a part is, and is published as soon as the log takes it.
        """
        rules = _Rules(await self._database.rows(_Rule, _RULES))
        faults = [(place, rules.fault(line)) for place, line in enumerate(lines)]
        if violations := [Violation(f"$.rows[{at}].{what[0]}", what[1]) for at, what in faults if what]:
            raise InvalidInput(*violations)
        wanted: dict[str, _Choices] = {}
        for line in lines:
            choices = wanted.setdefault(line.user, _Choices())
            if line.type:
                choices.types[line.type] = line.enabled
            else:
                choices.categories[line.category] = line.enabled
        changed, users = 0, list(wanted)
        for start in range(0, len(users), _PEOPLE_AT_ONCE):
            some = users[start : start + _PEOPLE_AT_ONCE]
            # Somebody may change their own switches meanwhile, or another page be about the same people.
            part = {user: wanted[user] for user in some}
            changed += await repeated(partial(self._write, part, Actor("import", by)))
            await self._preferences.publish(await self._store.pending(*some))
        return Imported(len(users), changed)

    async def _write(self, wanted: Mapping[str, _Choices], by: Actor) -> int:
        """Writes choices, and a change for each person whom they change something for; how many those are."""
        users = sorted(wanted)
        async with self._database.transaction(timeout_s=_IMPORT_S) as session:
            # Guarantee 3: as in `PreferenceStore.change`, people's rows are locked before anything is read.
            numbers = self._store.first_number()
            new = [PersonRow(user=user, version=numbers, logged_version=numbers) for user in users]
            await PersonRow.bulk_create(new, ignore_conflicts=True)
            versions = dict(await session.rows(_pair, _LOCK, users))
            rules = _Rules(await session.rows(_Rule, _RULES))
            revision = sum(await session.rows(int, REVISION))
            before = await _choices(session, users)
            changes: dict[str, PreferenceChange] = {}
            for number, user in enumerate(users, 1):
                if number % _YIELD_PEOPLE == 0:
                    await asyncio.sleep(0)
                made = _change(
                    user,
                    max(versions[user], numbers) + 1,
                    rules,
                    before[user],
                    before[user].with_(wanted[user]),
                )
                if made is not None:
                    changes[user] = PreferenceChange(**made, revision=revision)
            await _store(wanted, before)
            if changes:
                await session.rows(int, _NEXT, list(changes), numbers)
                await PreferenceChange.bulk_create(changes.values())
            numbered = {user: change.version for user, change in changes.items()}
            await history.note(session, _noted(wanted, before, numbered), by, self._store.now_ms)
            return len(changes)


async def _choices(session: Session, users: Sequence[str]) -> dict[str, _Choices]:
    found = {user: _Choices() for user in users}
    for line in await session.rows(_Line, _CHOSEN, list(users)):
        found[line.user].types[line.name] = bool(line.enabled)
    for line in await session.rows(_Line, _CHOSEN_CATEGORIES, list(users)):
        found[line.user].categories[line.name] = bool(line.enabled)
    return found


def _change(
    user: str, version: int, rules: _Rules, before: _Choices, after: _Choices
) -> dict[str, object] | None:
    """The values of a change's row; None where nothing changes."""
    off_before, off_after = rules.off(before), rules.off(after)
    changed = {name: name not in off_after for name in sorted(off_before ^ off_after)}
    told = {name: on for name, on in after.categories.items() if before.categories.get(name) != on}
    if not changed and not told:
        return None
    return {
        "user": user,
        "version": version,
        "changed": {name: on for name, on in changed.items() if not rules.by_name[name].hidden},
        "before": sorted(off_before),
        "after": sorted(off_after),
        "told": told or None,
    }


async def _store(wanted: Mapping[str, _Choices], before: Mapping[str, _Choices]) -> None:
    types = [
        Switch(user=user, type=name, enabled=on)
        for user, choices in wanted.items()
        for name, on in choices.types.items()
        if before[user].types.get(name) != on
    ]
    categories = [
        CategorySwitch(user=user, category=name, enabled=on)
        for user, choices in wanted.items()
        for name, on in choices.categories.items()
        if before[user].categories.get(name) != on
    ]
    if types:
        await Switch.bulk_create(types, on_conflict=("user", "type"), update_fields=("enabled",))
    if categories:
        await CategorySwitch.bulk_create(
            categories, on_conflict=("user", "category"), update_fields=("enabled",)
        )


def _noted(
    wanted: Mapping[str, _Choices], before: Mapping[str, _Choices], numbered: Mapping[str, int]
) -> list[Noted]:
    """What people have chosen otherwise than before; `numbered` are their changes."""
    return [
        Noted(user, kind, name, history.chosen(was.get(name)), history.chosen(on), numbered.get(user, 0))
        for user, choices in wanted.items()
        for kind, was, chosen in (
            (TYPE, before[user].types, choices.types),
            (CATEGORY, before[user].categories, choices.categories),
        )
        for name, on in chosen.items()
        if was.get(name) != on
    ]


def _pair(user: str, version: int) -> tuple[str, int]:
    return user, version
