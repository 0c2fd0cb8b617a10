"""For whoever runs the service: people, the catalogue, everybody's switches, health and metrics.

`/v1/users/USER` and `/v1/presence`: who is there, why somebody got an event or not, a kick, and to forget
somebody; `/v1/types`: the catalogue of types; `/v1/preferences/export` and `/import`: many people's switches
in pages. They raise what `problem` turns into responses, and each leaves an audit line. `/v1/overview`: what
all nodes do. `/livez`, `/readyz` and `/metrics` are for balancers, orchestrators and Prometheus.

Deliberate: a node isn't ready only while it starts, while it drains, or for a fault of its own. A shared
dependency that is away makes no node unready: all of them would leave together.
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, NamedTuple, Protocol
from urllib.parse import unquote

import msgspec
from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response

from pushsse import strictjson
from pushsse.api import HttpProblem, Query, json_response, read_body, read_json
from pushsse.api.identity import ADMIN, Identifier, Identity
from pushsse.errors import InvalidInput
from pushsse.event import TypeName, UserName, is_id, is_user
from pushsse.explain import Explaining
from pushsse.hub.catch_up import ScansBusy
from pushsse.kicks import Kicks, TooManyKicks
from pushsse.overview import Health, Overview
from pushsse.preferences import MOST_ROWS, ExportPlace, SwitchLine, Transfer
from pushsse.preferences.catalogue import (
    Catalogue,
    CatalogueFull,
    CatalogueStore,
    TypeInFile,
    TypeRules,
    TypeView,
    is_reserved,
)
from pushsse.preferences.history import Actor, How
from pushsse.presence import Presence, Whereabouts
from pushsse.retention import Forgetting
from pushsse.stream.limits import ANSWER_HEADERS

MOST_ASKED = 1_000

_MOST_EXPORTED = 1000
# For 500 rows with the longest names; reading far more rows would hold the event loop.
_MOST_BYTES = 384 * 1024
_place = msgspec.json.Decoder(ExportPlace)


class KickView(Struct, frozen=True):
    """A kick: its time (seconds since 1970), and within how many seconds all nodes have acted on it."""

    user: str
    kicked_at: int
    within_s: int


class OnNodeView(Struct, frozen=True):
    """A person's streams on one node, and since when there is one."""

    node: str
    streams: int
    since: datetime


class PersonView(Struct, frozen=True):
    """Where a person is; `last_seen` is null for one who is there, and where it isn't known."""

    user: str
    online: bool
    streams: int
    nodes: tuple[OnNodeView, ...]
    last_seen: datetime | None


class PresenceRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Who is asked about."""

    users: Annotated[tuple[UserName, ...], Meta(min_length=1, max_length=MOST_ASKED)]


class PresenceView(Struct, frozen=True):
    """Where people are, in the order in which they were named."""

    users: tuple[PersonView, ...]


@dataclass(frozen=True, slots=True)
class UsersEndpoint:
    """The calls about people."""

    identifier: Identifier
    presence: Presence
    kicks: Kicks
    forgetting: Forgetting
    explaining: Explaining

    async def get(self, request: Request) -> Response:
        """Where a person is."""
        user = await named_person(request, self.identifier)
        return json_response(_view(user, await self.presence.whereabouts((user,))))

    async def presences(self, request: Request) -> Response:
        """Where many people are."""
        await self.identifier.identify(request, ADMIN)
        asked = tuple(dict.fromkeys((await read_json(request, PresenceRequest)).users))
        found = await self.presence.whereabouts(asked)
        return json_response(PresenceView(tuple(_view(user, found) for user in asked)))

    async def explain(self, request: Request) -> Response:
        """What became of an event for a person."""
        path: bytes = request.scope.get("raw_path") or request.scope["path"].encode()
        event = path.rpartition(b"/")[2]
        user = await named_person(request, self.identifier, below=f"/explain/{event.decode('latin-1')}")
        name = unquote(event, errors="replace")
        if not is_id(name):
            raise HttpProblem(400, "event_invalid", "an event's id has 1–128 printable characters")
        try:
            return json_response(await self.explaining.explain(user, name))
        except ScansBusy as error:
            raise HttpProblem(503, "overloaded", str(error), {"retry-after": "5"}) from None

    async def kick(self, request: Request) -> Response:
        """Ends a person's streams on all nodes, and revokes what was issued to them so far."""
        user = await named_person(request, self.identifier, below="/kick")
        try:
            kicked = await self.kicks.kick(user)
        except TooManyKicks as error:
            raise HttpProblem(409, "too_many_kicks", str(error)) from None
        return json_response(KickView(user, kicked.at, kicked.within_s))

    async def forget(self, request: Request) -> Response:
        """Deletes everything of a person, and ends their streams as a kick does."""
        user = await named_person(request, self.identifier)
        try:
            return json_response(await self.forgetting.forget(user))
        except TooManyKicks as error:
            raise HttpProblem(409, "too_many_kicks", str(error)) from None


async def named_person(request: Request, identifier: Identifier, *, below: str = "") -> str:
    """Whom an administrator's call is about; `below` is what follows in the path. Raises HttpProblem."""
    return (await named(request, identifier, below=below)).user


class Named(NamedTuple):
    """Which administrator calls, and about whom."""

    by: Identity
    user: str


async def named(request: Request, identifier: Identifier, *, below: str = "") -> Named:
    """As `named_person`, with who calls. Raises HttpProblem."""
    by = await identifier.identify(request, ADMIN)
    user = _segment(request, below)
    if not is_user(user):
        raise HttpProblem(400, "user_invalid", "a name is 1–128 characters without white space")
    return Named(by, user)


def acting(who: Identity, how: How) -> Actor:
    """Who changes a switch, as it is noted."""
    return Actor("development" if who.in_development and how != "import" else how, who.user)


def _view(user: str, found: Mapping[str, Whereabouts]) -> PersonView:
    where = found[user]
    nodes = tuple(OnNodeView(*one) for one in where.nodes)
    return PersonView(user, bool(nodes), where.streams, nodes, where.last_seen)


def _segment(request: Request, below: str) -> str:
    """The person in the path, who is one segment of it as it was sent. Raises HttpProblem 404.

    A slash in a name is written %2F. With any other, another path would be a name: one with dot segments,
    which a proxy may have understood differently, or `ann/kick` where the method is wrong.
    """
    path: bytes = request.scope.get("raw_path") or request.scope["path"].encode()
    rest, end = path.partition(b"/v1/users/")[2], below.encode()
    segment = rest.removesuffix(end)
    # What follows counts as it was sent, too: `x%2Fkick` is a name, and no kick of anybody.
    if not rest.endswith(end) or not segment or b"/" in segment or segment in (b".", b".."):
        raise HttpProblem(404, "not_found", "there is no such path")
    return unquote(segment, errors="replace")


class TypeList(Struct, frozen=True):
    """All types of the catalogue, in its order."""

    types: tuple[TypeView, ...]


@dataclass(frozen=True, slots=True)
class TypesEndpoint:
    """The catalogue's types: all of them, set one, remove one."""

    identifier: Identifier
    store: CatalogueStore
    catalogue: Catalogue

    async def get(self, request: Request) -> Response:
        """All types, with every language."""
        await self.identifier.identify(request, ADMIN)
        return json_response(TypeList(await self.store.all()))

    async def put(self, request: Request) -> Response:
        """Sets a type; all nodes act on it within seconds."""
        by, name = await self._name(request)
        rules = await read_json(request, TypeRules)
        try:
            is_new = await self.store.put(name, rules, by=by)
        except TypeInFile as error:
            raise HttpProblem(409, "type_in_file", str(error)) from None
        except CatalogueFull as error:
            raise HttpProblem(409, "catalogue_full", str(error)) from None
        await self.catalogue.announce()
        view = msgspec.convert(msgspec.to_builtins(rules) | {"name": name, "in_file": False}, TypeView)
        return json_response(view, 201 if is_new else 200)

    async def delete(self, request: Request) -> Response:
        """Removes a type. The next event of it brings it back, unless new types are refused."""
        by, name = await self._name(request)
        try:
            was_there = await self.store.remove(name, by=by)
        except TypeInFile as error:
            raise HttpProblem(409, "type_in_file", str(error)) from None
        if not was_there:
            raise HttpProblem(404, "type_unknown", "there is no such type in the catalogue")
        await self.catalogue.announce()
        return Response(status_code=204)

    async def _name(self, request: Request) -> tuple[Actor, str]:
        who = await self.identifier.identify(request, ADMIN)
        name: str = request.path_params["type"]
        try:
            strictjson.convert(name, TypeName)
        except InvalidInput as error:
            raise HttpProblem(400, "type_invalid", error.violations[0].detail) from None
        if is_reserved(name):
            raise HttpProblem(400, "type_invalid", f"{name!r} is a name that pushsse itself uses")
        return acting(who, "admin"), name


class ExportView(Struct, frozen=True):
    """Some rows, and what `after` of the next call is; null at the end."""

    rows: tuple[SwitchLine, ...]
    next: str | None


class ImportRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Rows of which each is about one type or one category."""

    rows: Annotated[tuple[SwitchLine, ...], Meta(min_length=1, max_length=MOST_ROWS)]


@dataclass(frozen=True, slots=True)
class OverviewEndpoint:
    """What all nodes do."""

    identifier: Identifier
    overview: Overview

    async def get(self, request: Request) -> Response:
        """All of it."""
        await self.identifier.identify(request, ADMIN)
        return json_response(await self.overview.view())


@dataclass(frozen=True, slots=True)
class TransferEndpoint:
    """Everybody's switches."""

    identifier: Identifier
    transfer: Transfer

    async def get(self, request: Request) -> Response:
        """A page of them."""
        await self.identifier.identify(request, ADMIN)
        query = Query(request)
        limit = query.number("limit", default=_MOST_EXPORTED, most=_MOST_EXPORTED)
        page = await self.transfer.export(_read_place(query.get("after")), limit=limit)
        return json_response(ExportView(page.lines, None if page.next is None else _written(page.next)))

    async def post(self, request: Request) -> Response:
        """Imports a page; nothing of it where a row can't be used."""
        who = await self.identifier.identify(request, ADMIN)
        wanted = strictjson.read(await read_body(request, _MOST_BYTES), ImportRequest)
        return json_response(await self.transfer.import_page(wanted.rows, by=who.user))


def _written(place: ExportPlace) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(place)).decode()


def _read_place(text: str | None) -> ExportPlace:
    if text is None:
        return ExportPlace()
    try:
        return _place.decode(base64.urlsafe_b64decode(text))
    except (ValueError, binascii.Error, msgspec.DecodeError):
        raise HttpProblem(400, "parameter_invalid", "after= is no place of an export") from None


class ServesHealth(Health, Protocol):
    """The same, and its metrics."""

    async def exposition(self) -> bytes:
        """Its metrics, or those of all workers, in Prometheus' text format 0.0.4.

        Raises Unavailable where those of the other workers can't be had.
        """
        ...


@dataclass(frozen=True, slots=True)
class HealthEndpoint:
    """The calls about the node itself."""

    node: ServesHealth

    async def live(self, _: Request) -> Response:
        """The event loop runs."""
        return json_response({"status": "alive"})

    async def ready(self, _: Request) -> Response:
        """Whether to send streams here. The parts are there for people to read; they don't decide."""
        reason = self.node.unready()
        body = {"status": reason or "ready", "parts": self.node.available()}
        return json_response(body, 503 if reason else 200)

    async def metrics(self, _: Request) -> Response:
        """The metrics of this process, or of all workers, never a part: counters don't go back."""
        kind = "text/plain; version=0.0.4; charset=utf-8"
        return Response(await self.node.exposition(), headers=ANSWER_HEADERS, media_type=kind)
