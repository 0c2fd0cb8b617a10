"""`/v1/conversations`: a person's own, and those that people have taken over, for the staff.

Raises what `problem` turns into responses. Somebody else's conversation is a 404 everywhere; staff, who have
the scope `pushsse:answer`, see those of all people while they are handed over.
"""

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response

from pushsse import strictjson
from pushsse.api import CallLimit, HttpProblem, Query, json_response, parameter_problem, read_body, read_json
from pushsse.api.identity import ADMIN, ANSWER, ANY, ASK, Identifier
from pushsse.api.questions import SaidRequest, before, idempotency_key, view
from pushsse.questions import BeingTaken, Conversation, NotNow
from pushsse.questions.conversations import Staff
from pushsse.questions.life import MAX_REASON
from pushsse.questions.service import Desk, Questions

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


class HandoverRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """That a person wants to talk to people, and why."""

    reason: Annotated[str, Meta(max_length=MAX_REASON)] = ""


class HandedOver(Struct, frozen=True):
    """Since when, why and until when people answer; `waiting` is how many questions wait for them."""

    at: datetime | None
    by: Annotated[str, Meta(description="person or answerer")]
    reason: str
    until: datetime | None
    waiting: int


class ConversationView(Struct, frozen=True):
    """A conversation; its `title` is the beginning of its first question.

    `newest` is the id of its newest question: `before` of the next page.
    """

    id: str
    user: str
    title: str
    status: Annotated[str, Meta(description="open or handed_over")]
    created_at: datetime
    newest: str
    handed_over: HandedOver | None


class ConversationList(Struct, frozen=True):
    """Conversations, the one with the newest question first; with `more` there are older ones."""

    conversations: tuple[ConversationView, ...]
    more: bool


@dataclass(frozen=True, slots=True)
class ConversationsEndpoint:
    """A person's conversations, and what staff do."""

    identifier: Identifier
    questions: Questions
    desk: Desk
    limit: CallLimit

    async def get_all(self, request: Request) -> Response:
        """A person's own; with `status=handed_over` all people's that wait, for staff."""
        query = Query(request)
        status = query.get("status")
        who = await self.identifier.identify(request, ASK if status is None else ANSWER)
        if status not in (None, "handed_over"):
            raise parameter_problem("status", str(status), "isn't handed_over")
        limit = query.number("limit", default=50, most=100)
        if status is None:
            store = self.questions.life.conversations
            found = await store.page(who.user, limit=limit + 1, before=before(query))
        else:
            staff = Staff(who.user, who.expires_at, who.issued_at)
            found = await self.desk.waiting(staff, limit=limit + 1, before=before(query))
        views = tuple(map(_view, found[:limit]))
        return json_response(ConversationList(views, len(found) > limit))

    async def hand_over(self, request: Request) -> Response:
        """The person wants people to answer from now on."""
        who = await self.identifier.identify(request, ASK)
        body = await read_body(request)
        wanted = strictjson.convert(strictjson.loads(body or b"{}"), HandoverRequest)
        fields = await self.limit.spend(who.user)
        try:
            found = await self.questions.hand_over(who.user, _name(request), wanted.reason)
        except NotNow as error:
            raise HttpProblem(409, error.code, str(error), fields) from None
        return json_response(_view(_found(found)), headers=fields)

    async def release(self, request: Request) -> Response:
        """Answerers answer again: a member of staff says so, or the person."""
        who = await self.identifier.identify(request, ANY)
        name = _name(request)
        own = await self.questions.conversation(who.user, name) if ASK in who.scopes else None
        if own is None:
            if ASK in who.scopes and not who.scopes & {ANSWER, ADMIN}:
                raise _not_found()
            who.require(ANSWER)
        return json_response(_view(_found(await self.desk.release(name, by=who.user))))

    async def write(self, request: Request) -> Response:
        """A member of staff sends a message."""
        who = await self.identifier.identify(request, ANSWER)
        key = idempotency_key(request)
        said = (await read_json(request, SaidRequest)).by(who)
        try:
            message = await self.desk.write(who.user, _name(request), said, idempotency_key=key)
        except BeingTaken as error:
            headers = {"retry-after": str(error.after_s)}
            raise HttpProblem(409, "being_taken", str(error), headers) from None
        if message is None:
            raise _not_found()
        return json_response(view(message), 201, {"location": f"/v1/questions/{message.id}"})


def _name(request: Request) -> str:
    given = str(request.path_params["id"])
    if not _NAME.fullmatch(given):
        raise _not_found()
    return given


def _found(conversation: Conversation | None) -> Conversation:
    if conversation is None:
        raise _not_found()
    return conversation


def _not_found() -> HttpProblem:
    return HttpProblem(404, "not_found", "there is no such conversation here")


def _view(found: Conversation) -> ConversationView:
    handed_over = HandedOver(
        found.handed_over_at, found.handed_over_by, found.reason, found.keep_until, found.waiting
    )
    return ConversationView(
        id=found.id,
        user=found.user,
        title=found.title,
        status="handed_over" if found.is_handed_over else "open",
        created_at=found.created_at,
        newest=found.newest,
        handed_over=handed_over if found.is_handed_over else None,
    )
