"""Who has access: `GET /v1/me` says it, `POST /v1/tickets` gives it to a stream.

A ticket opens the stream of one person, one at a time, by a URL: for EventSource, where a header or cookie
can't go. The backplane keeps it by its SHA-256, so that each node can open it, and nobody reads it there.
`Tickets`, a service, is asked by the stream endpoint; it ends the streams whose ticket was opened once more,
on whatever node that was. Deliberate: no other call takes a ticket.
"""

import asyncio
import logging
import random
import re
import secrets
import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256

from msgspec import Struct
from msgspec.structs import replace
from starlette.requests import Request
from starlette.responses import Response

from pushsse import strictjson
from pushsse.api import CallLimit, HttpProblem, json_response, read_body
from pushsse.api.direct import is_outside
from pushsse.api.identity import (
    ADMIN,
    ANY,
    SCOPE_PREFIX,
    SCOPES,
    STREAM,
    Identifier,
    bearer_token,
    refuse_other_sites,
    unauthorized,
)
from pushsse.backplane import Backplane, NoticeTopic, OpenedTicket, Ticket, TicketLife, TicketRefusal
from pushsse.errors import BackplaneUnavailable, CloseReason
from pushsse.event import UserName
from pushsse.hub.opening import From, Opener, StreamOptions
from pushsse.hub.people import Revocations
from pushsse.logs import note_about
from pushsse.stream.subscriber import Subscriber

# How long a ticket opens a stream by itself.
FRESH_S = 30.0
# How long it goes on for a client with a Last-Event-ID, unless the token that made it ends before.
LIVES_S = 3600.0
# How often a node asks whether a ticket was opened elsewhere, in case a notice got lost.
LOOK_EVERY_S = 15.0
_ASKED_AT_ONCE = 500
_BYTES = 24
_TICKET = re.compile(r"[A-Za-z0-9_-]{32}")
_PARAMETER = b"ticket="
_REFUSALS = {
    TicketRefusal.UNKNOWN: ("ticket_invalid", "there is no such ticket"),
    TicketRefusal.EXPIRED: ("token_expired", "the ticket has ended, or the token that it was made with"),
    TicketRefusal.USED: ("ticket_used", "the ticket no longer opens a stream without a Last-Event-ID"),
}
logger = logging.getLogger(__name__)


def ticket_of(request: Request, allowed_origins: Collection[str]) -> str | None:
    """The ticket in a request's URL, if that says who is asking: a token in the header comes before it.

    Raises HttpProblem 403 for a page of another site: it could read nothing, and end the stream there is.
    """
    if not has_ticket(request) or bearer_token(request) is not None or request.method == "HEAD":
        return None
    ticket = request.query_params.get("ticket", "").strip()
    if ticket:
        refuse_other_sites(request, allowed_origins)
    return ticket or None


def has_ticket(request: Request) -> bool:
    """Whether there may be a ticket in a request's URL."""
    return _PARAMETER in request.scope["query_string"]


class _Openings:
    """One ticket on this node: the number of its newest opening anywhere, and its streams here."""

    __slots__ = ("newest", "streams", "under_way")

    def __init__(self) -> None:
        self.newest = 0
        self.streams: dict[int, Subscriber] = {}
        self.under_way = 0

    def learn(self, number: int) -> None:
        """Somebody has opened the ticket: the streams of earlier openings end."""
        self.newest = max(self.newest, number)
        for earlier in [each for each in self.streams if each < self.newest]:
            self.streams.pop(earlier).end(CloseReason.REPLACED)

    def add(self, number: int, subscriber: Subscriber) -> None:
        """The stream of an opening begins; others may have opened the ticket since."""
        self.streams[number] = subscriber
        self.learn(number)

    def is_over(self) -> bool:
        """Whether nothing here needs it any more; forgets the streams that have ended."""
        self.streams = {number: one for number, one in self.streams.items() if one.is_open}
        return not self.streams and not self.under_way


@dataclass(frozen=True, slots=True)
class TicketOpening:
    """An opening of a ticket, whose stream may begin."""

    ticket: Ticket
    expires_at: float
    _number: int
    _openings: _Openings

    def options(self, asked: StreamOptions) -> StreamOptions:
        """What the client asked for, with the ticket's times."""
        return replace(asked, expires_at=self.expires_at, issued_at=self.ticket.issued_at)

    def begun(self, subscriber: Subscriber) -> Subscriber:
        """The stream has begun: it ends once the ticket is opened again, at once if it was already."""
        self._openings.add(self._number, subscriber)
        return subscriber


class Tickets:
    """Makes tickets and opens them; of each ticket the newest stream alone stays open."""

    def __init__(self, backplane: Backplane, revocations: Revocations) -> None:
        self._backplane = backplane
        self._revocations = revocations
        self._here: dict[str, _Openings] = {}
        backplane.hear_notices(NoticeTopic.TICKET, self._hear)

    async def make(self, user: str, *, issued_at: float | None, lives_s: float) -> str:
        """A new ticket for a person; what it is made with was issued at `issued_at`.

        Raises BackplaneUnavailable.
        """
        ticket = secrets.token_urlsafe(_BYTES)
        life = TicketLife(int(FRESH_S * 1000), int(lives_s * 1000))
        issued = None if issued_at is None else int(issued_at)
        await self._backplane.keep_ticket(_name(ticket), Ticket(user, issued), life)
        return ticket

    @asynccontextmanager
    async def opening(self, ticket: str, *, resumes: bool) -> AsyncIterator[TicketOpening]:
        """Opens a ticket, and with that ends its stream elsewhere; the context lasts until its stream begins.

        Raises HttpProblem 401, BackplaneUnavailable.
        """
        if not _TICKET.fullmatch(ticket):
            raise _refused(TicketRefusal.UNKNOWN)
        name = _name(ticket)
        # Before the ticket is opened: from then on others may open it, and this node has to notice.
        openings = self._here.setdefault(name, _Openings())
        openings.under_way += 1
        try:
            found = await self._backplane.open_ticket(name, resumes=resumes)
            if not isinstance(found, OpenedTicket):
                raise _refused(found)
            openings.learn(found.number)
            who = found.ticket
            if self._revocations.refuses(who.user, who.issued_at):
                raise unauthorized("token_revoked", "the ticket is older than a kick of this person")
            yield TicketOpening(who, time.time() + found.left_ms / 1000, found.number, openings)
        finally:
            openings.under_way -= 1
            if openings.is_over():
                self._here.pop(name, None)

    async def run(self) -> None:
        """Looks after the tickets that have streams here, for ever."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S * random.uniform(0.75, 1.25))
            try:
                await self._look()
            except BackplaneUnavailable as error:
                logger.info(
                    "a stream whose ticket is opened elsewhere just now may go on until Redis answers: %s",
                    error,
                )

    async def _look(self) -> None:
        for name in [name for name, openings in self._here.items() if openings.is_over()]:
            del self._here[name]
        names = list(self._here)
        for start in range(0, len(names), _ASKED_AT_ONCE):
            found = await self._backplane.ticket_openings(names[start : start + _ASKED_AT_ONCE])
            for name, number in found.items():
                self._learn(name, number)

    def _hear(self, text: str) -> None:
        name, _, number = text.partition(" ")
        if number.isdigit() and len(number) < 12:
            self._learn(name, int(number))

    def _learn(self, name: str, number: int) -> None:
        openings = self._here.get(name)
        if openings is not None:
            openings.learn(number)


def _name(ticket: str) -> str:
    return sha256(ticket.encode()).hexdigest()


def _refused(refusal: TicketRefusal) -> HttpProblem:
    return unauthorized(*_REFUSALS[refusal])


class TicketRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Whom a ticket is for; without `user`, the caller."""

    user: UserName | None = None


class TicketView(Struct, frozen=True):
    """A ticket, for how long it opens a stream by itself, now's place of the person, and who that is."""

    ticket: str
    expires_in_s: int
    position: str
    user: str


class Me(Struct, frozen=True):
    """Who is asking: his scopes, with blanks between them, and for how many seconds his token is good."""

    user: str
    scope: str
    expires_in_s: int | None


@dataclass(frozen=True, slots=True)
class AccessEndpoint:
    """Who is asking, and tickets."""

    identifier: Identifier
    opener: Opener
    tickets: Tickets
    limit: CallLimit

    async def me(self, request: Request) -> Response:
        """Who is asking."""
        who = await self.identifier.identify(request, ANY)
        scope = " ".join(SCOPE_PREFIX + each for each in SCOPES if each in who.scopes)
        left_s = None if who.expires_at is None else max(0, int(who.expires_at - time.time()))
        return json_response(Me(who.user, scope, left_s))

    async def ticket(self, request: Request) -> Response:
        """Makes a ticket for the caller; for somebody else with the scope of an admin."""
        who = await self.identifier.identify(request, STREAM)
        body = await read_body(request)
        wanted = strictjson.convert(strictjson.loads(body or b"{}"), TicketRequest)
        now = time.time()
        user, issued_at = who.user, who.issued_at
        if wanted.user is not None and wanted.user != user:
            note_about(wanted.user)
            who.require(ADMIN)
            if is_outside(request.scope):
                raise HttpProblem(403, "internal_only", "a ticket for somebody else is made inside")
            user, issued_at = wanted.user, now
        headers = await self.limit.count(user)
        # The place before the ticket: a stream that begins at it has all that comes after this call.
        async with self.opener.opening(user, From()) as opening:
            position = str(opening.cursor.position)
        lives_s = LIVES_S if who.expires_at is None else max(0.0, min(LIVES_S, who.expires_at - now))
        ticket = await self.tickets.make(user, issued_at=issued_at, lives_s=lives_s)
        view = TicketView(ticket, int(min(FRESH_S, lives_s)), position, user)
        return json_response(view, headers=headers)
