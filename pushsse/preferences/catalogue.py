"""The catalogue of types, as administrators set it by calls or in the settings file, with texts by language.

`CatalogueStore` is asked by the API and by `Catalogue`, the node's view, which is a service. What changes who
gets events (default, mandatory, category) gets a new revision, by which nodes notice that they have to read
people's switches again. A type of the settings file is the file's: calls neither change nor remove it.

The API reads `Accept-Language` (RFC 9110, 12.5.4) with `accepted_languages`, and the stores choose a text
with `in_language`. A text is looked up as RFC 4647 (3.4) has it: `zh-Hans-CN`, then `zh-Hans`, then `zh`; and
where none of these is there, another kind of the same language (`zh-TW`). Who reads none of them gets the
first one.
"""

import asyncio
import logging
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Annotated, Literal, NamedTuple, Protocol

import msgspec
from msgspec import Meta, Struct
from tortoise import fields
from tortoise.models import Model

from pushsse import strictjson
from pushsse.backplane import Backplane, NoticeTopic
from pushsse.database import Database, Session, Statement
from pushsse.errors import BackplaneUnavailable, InvalidInput, PushsseError, SettingsError, Unavailable
from pushsse.event import RESERVED_TYPES, TypeName
from pushsse.metrics import Metrics
from pushsse.preferences import history
from pushsse.preferences.history import NOBODY, SETTINGS, Actor, Noted, milliseconds, rules_noted
from pushsse.retry import Backoff, Outage
from pushsse.settings import TypeTable

logger = logging.getLogger(__name__)
MAX_TYPES = 1_000
# Types between two yields: to find a text in a new language takes 10 us.
YIELD_TYPES = 200
# "pushsse" and a digit in ASCII. Of two nodes that add types, one waits for the other, so that both together
# stay within MAX_TYPES.
CATALOGUE_LOCK = 0x7075736873736532
REVISION = Statement("SELECT revision FROM pushsse_catalogue")
REMOVED_REVISION = Statement("SELECT removed_revision FROM pushsse_catalogue")
_REFRESH_S = 5.0
# Nodes that hear of a change together don't all read at once.
_SPREAD_S = 0.3
_MOST_LANGUAGES = 40
# Of one header; browsers send up to six.
_MOST_RANGES = 20
_RANGE = re.compile(r"([A-Za-z]{1,8}(?:-[A-Za-z0-9]{1,8})*|\*)(?:\s*;\s*[qQ]\s*=\s*([01](?:\.[0-9]{0,3})?))?")
# In lower case. What is refused (q=0) begins with an exclamation mark.
Languages = tuple[str, ...]
# A column of the table has this length.
Title = Annotated[str, Meta(min_length=1, max_length=200)]
Description = Annotated[str, Meta(min_length=1, max_length=2000)]
Category = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9_.-]{0,64}\Z",
        description="a category: up to 64 letters (a–z, A–Z), digits, dots, hyphens and underscores",
        examples=["marketing"],
    ),
]
LanguageTag = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z]{1,8}(-[A-Za-z0-9]{1,8}){0,4}\Z",
        description="a language such as en or zh-CN",
        examples=["zh"],
    ),
]
_Titles = Annotated[dict[LanguageTag, Title], Meta(min_length=1, max_length=_MOST_LANGUAGES)]
_Descriptions = Annotated[dict[LanguageTag, Description], Meta(min_length=1, max_length=_MOST_LANGUAGES)]
MOST_COUNTED = 200_000
_MOST_PLACE = 1_000_000
# For up to 1,000 types, one after the other.
_DECLARE_S = 30.0


class TypeInFile(PushsseError):
    """A type of the settings file, which calls don't change."""


class CatalogueFull(PushsseError):
    """There is no room for one more type."""


class TypeRules(Struct, frozen=True, forbid_unknown_fields=True):
    """A type as it is set. A text is one for all, or one for each language, whose first is for all others."""

    title: Annotated[str, Meta(max_length=200)] | _Titles = ""
    description: Annotated[str, Meta(max_length=2000)] | _Descriptions = ""
    category: Category = ""
    default: bool = True
    mandatory: bool = False
    order: Annotated[int, Meta(ge=-_MOST_PLACE, le=_MOST_PLACE)] = 0
    urgent: bool = False
    hidden: bool = False


class NamedType(TypeRules, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A type of the settings file."""

    name: TypeName


class TypeView(TypeRules, frozen=True, kw_only=True):
    """A type as administrators see it; `in_file`: it is set in the settings file."""

    name: str
    in_file: bool


class Chosen(Struct, frozen=True):
    """How many people have switched a type on or off; all others have its default, or its category's."""

    name: str
    on: int
    off: int


class Revised(NamedTuple):
    """The node's copy of the catalogue: each type with the revision of its rules."""

    revision: int = 0
    removed: int = 0
    types: Mapping[str, int] = {}


def declared(tables: Sequence[TypeTable]) -> tuple[NamedType, ...]:
    """The types of the settings file. Raises SettingsError that names the table, its key and the value."""
    found: dict[str, NamedType] = {}
    for table in tables:
        said = msgspec.to_builtins(table)
        try:
            one = strictjson.convert({key: said[key] for key in NamedType.__struct_fields__}, NamedType)
        except InvalidInput as error:
            [violation] = error.violations
            key = violation.at.removeprefix("$.").partition("[")[0]
            raise SettingsError(f"{table.at(key)}: {violation.detail}") from None
        if one.name in found:
            raise SettingsError(f"{table.at('name')}: {one.name!r} is there before")
        if is_reserved(one.name):
            raise SettingsError(f"{table.at('name')}: {one.name!r} is a name that pushsse itself uses")
        found[one.name] = one
    if len(found) > MAX_TYPES:
        raise SettingsError(f"types: {len(found)} types, over {MAX_TYPES}")
    return tuple(found.values())


def is_reserved(name: str) -> bool:
    """Whether no event can have this type."""
    return name in RESERVED_TYPES or name.startswith("pushsse.")


# In the order in which people see them.
_ALL = Statement("""
    SELECT name, title, titles, description, descriptions, category, default_on, mandatory, place, urgent,
           hidden, from_file FROM pushsse_event_type ORDER BY place, id""")
_ONE = Statement("""
    SELECT name, title, titles, description, descriptions, category, default_on, mandatory, place, urgent,
           hidden, from_file FROM pushsse_event_type WHERE name = {value[1]}""")
# The empty name is the catalogue's own row.
_REVISED = Statement("""
    SELECT '', revision, removed_revision FROM pushsse_catalogue
    UNION ALL SELECT name, revision, 0 FROM pushsse_event_type""")
# Of all switches, or of MOST_COUNTED, so that it takes a tenth of a second at most.
_CHOSEN = Statement("""
    SELECT type, sum(CASE WHEN enabled THEN 1 ELSE 0 END), sum(CASE WHEN enabled THEN 0 ELSE 1 END)
      FROM (SELECT type, enabled FROM pushsse_switch LIMIT {value[1]}) AS one GROUP BY type ORDER BY type""")
_NEXT_REVISION = Statement("""
    INSERT INTO pushsse_catalogue (id, revision, removed_revision) VALUES (1, {value[1]}, 0)
    ON CONFLICT (id) DO UPDATE
       SET revision = CASE WHEN pushsse_catalogue.revision < {value[1]} THEN {value[1]}
                           ELSE pushsse_catalogue.revision + 1 END
    RETURNING revision""")
_REMOVED = Statement("UPDATE pushsse_catalogue SET removed_revision = revision RETURNING revision")
_RELEASE = Statement("""
    UPDATE pushsse_event_type SET from_file = false
     WHERE from_file AND NOT (name {among[1]}) RETURNING name""")


class _Row(NamedTuple):
    name: str
    title: str
    titles: str
    description: str
    descriptions: str
    category: str
    default_on: bool
    mandatory: bool
    place: int
    urgent: bool
    hidden: bool
    from_file: bool

    @property
    def effect(self) -> tuple[bool, bool, str]:
        """What decides who gets its events."""
        return bool(self.default_on), bool(self.mandatory), self.category

    def view(self) -> TypeView:
        return TypeView(
            name=self.name,
            title=_texts(self.titles) or self.title,
            description=_texts(self.descriptions) or self.description,
            category=self.category,
            default=bool(self.default_on),
            mandatory=bool(self.mandatory),
            order=self.place,
            urgent=bool(self.urgent),
            hidden=bool(self.hidden),
            in_file=bool(self.from_file),
        )


def _row(name: str, rules: TypeRules, *, from_file: bool) -> _Row:
    title, titles = _columns(rules.title)
    description, descriptions = _columns(rules.description)
    return _Row(
        name,
        title,
        titles,
        description,
        descriptions,
        rules.category,
        rules.default,
        rules.mandatory,
        rules.order,
        rules.urgent,
        rules.hidden,
        from_file,
    )


def _columns(text: str | Mapping[str, str]) -> tuple[str, str]:
    """A text for all, and its languages as JSON."""
    if isinstance(text, str):
        return text, ""
    return next(iter(text.values())), msgspec.json.encode(text).decode()


_by_language = msgspec.json.Decoder(dict[str, str])


def _texts(text: str) -> dict[str, str]:
    return _by_language.decode(text) if text else {}


# Of a type that isn't in the catalogue: it is on.
_UNLISTED = (True, False, "")


class CatalogueStore:
    """The catalogue's tables. Everything raises DatabaseUnavailable."""

    def __init__(
        self,
        database: Database,
        *,
        now_ms: Callable[[], int] = milliseconds,
        numbers_after: Callable[[], int] | None = None,
    ) -> None:
        """`now_ms`: the log's clock; `numbers_after`: what a new revision follows at least.

        Deliberate: by default the log's clock, as for the numbers of changes. Where the database has failed
        over to a replica that lacks the last transactions, nodes know people by revisions that the database
        doesn't know of.
        """
        self._database = database
        self._now_ms = now_ms
        self._numbers_after = numbers_after or now_ms

    async def all(self) -> tuple[TypeView, ...]:
        """All types, in the catalogue's order."""
        found: list[TypeView] = []
        for row in await self._database.rows(_Row, _ALL):
            found.append(row.view())
            if len(found) % YIELD_TYPES == 0:
                await asyncio.sleep(0)
        return tuple(found)

    async def chosen(self) -> tuple[Chosen, ...]:
        """How many people have switched each type on or off, of MOST_COUNTED switches at most."""
        return tuple(await self._database.rows(Chosen, _CHOSEN, MOST_COUNTED))

    async def put(self, name: str, rules: TypeRules, *, by: Actor = NOBODY) -> bool:
        """Sets a type; whether it is new. `by` is noted. Raises TypeInFile, CatalogueFull."""
        async with self._database.transaction() as session:
            await session.lock(CATALOGUE_LOCK)
            found = await session.rows(_Row, _ONE, name)
            if found and found[0].from_file:
                raise TypeInFile(f"{name!r} is set in the settings file of a node")
            if not found and len(await known_types()) >= MAX_TYPES:
                raise CatalogueFull(f"the catalogue has {MAX_TYPES} types, which is all that it holds")
            row = _row(name, rules, from_file=False)
            writing = _Writing(session, self._numbers_after() + 1)
            await writing.write(row, found[0] if found else None)
            await history.note(session, writing.noted, by, self._now_ms())
            return not found

    async def remove(self, name: str, *, by: Actor = NOBODY) -> bool:
        """Removes a type; whether it was there. What people chose for it stays, for when it comes back.

        Raises TypeInFile.
        """
        async with self._database.transaction() as session:
            await session.lock(CATALOGUE_LOCK)
            found = await session.rows(_Row, _ONE, name)
            if not found:
                return False
            if found[0].from_file:
                raise TypeInFile(f"{name!r} is set in the settings file of a node")
            await EventType.filter(name=name).delete()
            if found[0].effect != _UNLISTED:
                await session.rows(int, _NEXT_REVISION, self._numbers_after() + 1)
                await session.rows(int, _REMOVED)
                noted = rules_noted(name, found[0].effect, _UNLISTED)
                await history.note(session, [noted], by, self._now_ms())
            return True

    async def declare(self, types: Sequence[NamedType]) -> list[str]:
        """Writes the types of the settings file, as far as they differ; the names of those that did.

        Those that were the file's before and aren't in it any more stay, and are anybody's from now on.
        """
        rows = [_row(one.name, one, from_file=True) for one in types]
        there = await self._database.rows(_Row, _ALL)
        if {row for row in there if row.from_file} == set(rows):
            # As with every start but the first: nothing is locked.
            return []
        async with self._database.transaction(timeout_s=_DECLARE_S) as session:
            await session.lock(CATALOGUE_LOCK)
            before = {row.name: row for row in await session.rows(_Row, _ALL)}
            writing = _Writing(session, self._numbers_after() + 1)
            changed = [row for row in rows if before.get(row.name) != row]
            for row in changed:
                await writing.write(row, before.get(row.name))
            await history.note(session, writing.noted, SETTINGS, self._now_ms())
            # With an empty list all are released.
            released = await session.rows(str, _RELEASE, [row.name for row in rows])
            return [*(row.name for row in changed), *released]

    async def revised(self) -> Revised:
        """All names, with the revisions of their rules."""
        rows = await self._database.rows(_named, _REVISED)
        own = [row for row in rows if not row[0]]
        types = {name: revision for name, revision, _ in rows if name}
        return Revised(*(own[0][1:] if own else (0, 0)), types)

    async def renew(self, *, after: int) -> None:
        """Gives the catalogue a new revision, higher than `after`, by which all switches are read again."""
        await self._database.rows(int, _NEXT_REVISION, max(self._numbers_after(), after) + 1)


class _Writing:
    """Types that are written in one transaction, and the one revision that they get."""

    def __init__(self, session: Session, at_least: int) -> None:
        """`at_least`: the revision, unless the catalogue is further."""
        self._session = session
        self._at_least = at_least
        self.noted: list[Noted] = []
        self._revision: int | None = None

    async def write(self, row: _Row, before: _Row | None) -> None:
        """Writes a type; with the new revision where that changes who gets its events."""
        values = row._asdict()
        effect = _UNLISTED if before is None else before.effect
        if row.effect != effect:
            self.noted.append(rules_noted(row.name, effect, row.effect))
            if self._revision is None:
                [self._revision] = await self._session.rows(int, _NEXT_REVISION, self._at_least)
            values["revision"] = self._revision
        elif before is None:
            # It may have been there before, with other rules.
            values["revision"] = sum(await self._session.rows(int, REMOVED_REVISION))
        if before is None:
            await EventType.create(**values)
        else:
            await EventType.filter(name=row.name).update(**values)


def _named(name: str, revision: int, removed: int) -> tuple[str, int, int]:
    return name, revision, removed


async def known_types() -> frozenset[str]:
    """The names of all types, in the session of the caller."""
    # Names alone: to make a model of each of 1,000 rows holds the event loop for 30 ms.
    return frozenset([str(name) for (name,) in await EventType.all().values_list("name")])


@lru_cache(maxsize=256)
def accepted_languages(header: str) -> Languages:
    """The languages of a header, the preferred one first; what can't be read in it is passed over."""
    found: list[tuple[float, str]] = []
    for part in header[:1000].split(",")[:_MOST_RANGES]:
        match = _RANGE.fullmatch(part.strip())
        if match is not None:
            found.append((float(match[2] or 1), match[1].lower()))
    # Among those of one weight the order of the header stays.
    wanted = [name for weight, name in sorted(found, key=lambda one: -one[0]) if weight > 0]
    refused = [f"!{name}" for weight, name in found if weight == 0]
    return tuple(dict.fromkeys([*wanted, *refused]))


@lru_cache(maxsize=4096)
def in_language(texts: str, otherwise: str, languages: Languages) -> str:
    """The text of the preferred language, of JSON by language; `otherwise` without one."""
    if not texts or not languages:
        return otherwise
    found = {name.lower(): text for name, text in _by_language.decode(texts).items()}
    refused = {language[1:] for language in languages if language.startswith("!")}
    usable = {name: text for name, text in found.items() if not _is_refused(name, refused)}
    for language in languages:
        if language == "*" and usable:
            # Whatever is there: of all languages, the first one.
            return otherwise if otherwise in usable.values() else next(iter(usable.values()))
        if (name := _looked_up(language, usable)) is not None:
            return usable[name]
    return otherwise


def _is_refused(name: str, refused: set[str]) -> bool:
    return any(name == each or name.startswith(f"{each}-") for each in refused)


def _looked_up(language: str, there: dict[str, str]) -> str | None:
    """A language's name among those that are there: itself, its shorter forms, another kind of it."""
    name = language
    while name:
        if name in there:
            return name
        name = name.rpartition("-")[0]
    main = language.partition("-")[0] + "-"
    return next((each for each in there if each.startswith(main)), None)


class EventType(Model):
    """One type of the catalogue, in the order in which they joined.

    `titles` and `descriptions` are JSON by language, empty where there is one text for all; the text for
    everybody else is in `title` and `description`. `place` comes before the order of joining. `revision` is
    the catalogue's with which default, mandatory or category last changed.
    """

    id = fields.BigIntField(primary_key=True)
    name = fields.CharField(max_length=64, unique=True)
    title = fields.CharField(max_length=200, db_default="")
    description = fields.TextField(db_default="")
    default_on = fields.BooleanField(db_default=True)
    mandatory = fields.BooleanField(db_default=False)
    hidden = fields.BooleanField(db_default=False)
    created_at = fields.DatetimeField(auto_now_add=True)
    titles = fields.TextField(db_default="")
    descriptions = fields.TextField(db_default="")
    category = fields.CharField(max_length=64, db_default="")
    place = fields.IntField(db_default=0)
    urgent = fields.BooleanField(db_default=False)
    from_file = fields.BooleanField(db_default=False)
    revision = fields.BigIntField(db_default=0)

    class Meta:
        table = "pushsse_event_type"


class CatalogueRow(Model):
    """The one row of the catalogue: the revision of its rules, and that of the last removal of a type."""

    id = fields.SmallIntField(primary_key=True)
    revision = fields.BigIntField(db_default=0)
    removed_revision = fields.BigIntField(db_default=0)

    class Meta:
        table = "pushsse_catalogue"


class JoinsTypes(Protocol):
    """`PreferenceStore`, as far as types join the catalogue by themselves."""

    async def join(self, names: Sequence[str], *, hidden: bool) -> frozenset[str]:
        """Adds types; returns the names that found no room. Raises DatabaseUnavailable."""
        ...


class Catalogue:
    """The types that this node knows: which are listed, which new ones are on their way, whose rules changed.

    The drafter asks `admits`, and the dispatcher calls `notice`, for every event and without waiting; `run`
    reads and writes the database. While the database answers, the view is a few seconds old at most. A full
    catalogue takes no more types. Their events are delivered all the same, since nobody can switch off what
    isn't listed; that is logged once, and counted. The hub asks for the rules (`hub.Rules`).
    """

    def __init__(
        self,
        store: "JoinsTypes",
        catalogue: CatalogueStore,
        *,
        new_types: Literal["list", "hide", "refuse"],
        metrics: Metrics,
        backplane: Backplane,
        declared: Sequence[NamedType] = (),
    ) -> None:
        """`declared`: the types of the settings file, which are written before anything is read."""
        self._store = store
        self._catalogue = catalogue
        self._new_types = new_types
        self._metrics = metrics
        self._backplane = backplane
        self._declared = declared
        self._declares = True
        self._warned_full = False
        self._known: Revised | None = None
        self._new: dict[str, None] = {}
        self._noticed = asyncio.Event()
        self._refreshing = asyncio.Lock()
        self._on_revision: Callable[[], None] = _nobody
        backplane.hear_notices(NoticeTopic.CATALOGUE, self._hear)

    def on_revision(self, call: Callable[[], None]) -> None:
        """Has this called when the rules have changed: whoever keeps people's switches reads them again."""
        self._on_revision = call

    def admits(self, name: str) -> bool:
        """Whether events of this type are accepted. Before the catalogue was read once, all are."""
        return self._new_types != "refuse" or self._known is None or name in self._known.types

    @property
    def size(self) -> int:
        """How many types there are, as far as this node knows."""
        return len(self._known.types) if self._known is not None else 0

    @property
    def revision(self) -> int:
        """Rises when the rules of types change; as far as this node knows."""
        return self._known.revision if self._known is not None else 0

    def changed_since(self, name: str, revision: int) -> bool:
        """Whether the rules of a type have changed since a revision."""
        known = self._known
        return known is not None and known.types.get(name, known.removed) > revision

    def notice(self, names: Iterable[str]) -> None:
        """Remembers new types, so that `run` adds them to the catalogue, as far as there is room."""
        if self._new_types == "refuse":
            return
        known = self._known.types if self._known is not None else {}
        for name in names:
            if name in known or name in self._new:
                continue
            if len(known) + len(self._new) < MAX_TYPES:
                self._new[name] = None
                self._noticed.set()
            elif self._known is not None:
                self._overflow(name)

    async def announce(self) -> None:
        """Has all nodes read the catalogue, which was just changed: this one before it returns.

        Other nodes that miss the notice find the change within 5 s.
        """
        await self._tell()
        try:
            await self.refresh()
        except Unavailable:
            self._noticed.set()

    async def _tell(self) -> None:
        try:
            await self._backplane.notify(NoticeTopic.CATALOGUE, "changed")
        except BackplaneUnavailable as error:
            logger.info("other nodes find the changed catalogue by themselves: %s", error)

    async def refresh(self) -> None:
        """Adds the new types and reads the catalogue. Raises DatabaseUnavailable."""
        # One after the other: what was read first must not be taken for the newest.
        async with self._refreshing:
            await self._refresh()

    async def _refresh(self) -> None:
        # Before the names are read: one that is noticed from here on sets it again.
        self._noticed.clear()
        if self._declares:
            if changed := await self._catalogue.declare(self._declared):
                logger.info("types of the settings file that were set: %s", ", ".join(changed))
                await self._tell()
            self._declares = False
        if self._new:
            # A copy, removed after the write: what is noticed during the write waits for the next round, and
            # what a failed write leaves is tried again.
            names = list(self._new)
            left_out = await self._store.join(names, hidden=self._new_types == "hide")
            for name in names:
                self._new.pop(name, None)
            if joined := [name for name in names if name not in left_out]:
                logger.info("types that joined the catalogue: %s", ", ".join(joined))
            for name in left_out:
                # Other nodes have filled it in the meantime.
                self._overflow(name)
        before, known = self.revision, await self._catalogue.revised()
        if known.revision < before:
            # Guarantee 3: who is known by a revision that is lost would never be read again.
            await self._catalogue.renew(after=before)
            # Not before: a replica that isn't the primary yet takes no revision, and is asked each second.
            logger.warning(
                "the catalogue of types is an older state: the database has failed over, or was restored."
                " What was set since is lost, and the switches of open streams are read again"
            )
            known = await self._catalogue.revised()
        self._known = known
        if self.size < MAX_TYPES:
            self._warned_full = False
        # Guarantee 3: after the rules are known. A stream whose switches were read before them is found.
        if self.revision != before:
            self._on_revision()

    def _hear(self, _: str) -> None:
        asyncio.get_running_loop().call_later(random.uniform(0, _SPREAD_S), self._noticed.set)

    def _overflow(self, name: str) -> None:
        """Counts a type without room. Deliberate: it isn't listed, since names with ids in them never end."""
        self._metrics.types_left_out += 1
        if not self._warned_full:
            self._warned_full = True
            logger.warning(
                "the catalogue is full (%d types): the type %s isn't listed, nor are further new ones; their"
                " events are delivered, and nobody can switch them off. Keep ids out of the names of types,"
                " remove types that are no longer used, or set PUSHSSE_NEW_TYPES=refuse",
                MAX_TYPES,
                name,
            )

    async def run(self) -> None:
        """Reads the catalogue every 5 s, and when a new type is noticed, for ever."""
        outage = Outage("the catalogue of types can't be read or written", logger, Backoff(1.0, 1.0))
        while True:
            try:
                await self.refresh()
                outage.over()
            except Unavailable as error:
                await asyncio.sleep(outage.failed(error))
            with suppress(TimeoutError):
                async with asyncio.timeout(_REFRESH_S):
                    await self._noticed.wait()


def _nobody() -> None:
    """Keeps no switches."""
