"""`/v1/users/USER` and `/v1/presence`: what administrators ask and do about people.

Who is there, why somebody got an event or not, a kick, and to forget somebody. Raises what `problem` turns
into responses; each call leaves an audit line.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated
from urllib.parse import unquote

from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response

from pushsse.api import HttpProblem, json_response, read_json
from pushsse.api.identity import ADMIN, Identifier
from pushsse.event import UserName, is_id, is_user
from pushsse.explain import Explaining
from pushsse.hub.catch_up import ScansBusy
from pushsse.kicks import Kicks, TooManyKicks
from pushsse.presence import Presence, Whereabouts
from pushsse.retention import Forgetting

MOST_ASKED = 1_000


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
    await identifier.identify(request, ADMIN)
    user = _segment(request, below)
    if not is_user(user):
        raise HttpProblem(400, "user_invalid", "a name is 1–128 characters without white space")
    return user


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
