"""`/v1/questions`: ask, read, cancel, ask anew, rate. `/v1/conversations`, to which questions belong: a
person's own, and those that people have taken over, for the staff.

Raises what `problem` turns into responses. Losing the connection never stops an answer. Somebody else's
question or conversation is a 404 everywhere; staff, who have the scope `pushsse:answer`, see the
conversations of all people while they are handed over.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from pushsse import strictjson
from pushsse.api import CallLimit, HttpProblem, Query, json_response, parameter_problem, read_body, read_json
from pushsse.api.identity import ADMIN, ANSWER, ANY, ASK, EVERY_SCOPE, Identifier, Identity
from pushsse.api.replies import ReplyPlace, StreamedReply
from pushsse.errors import InvalidInput, Overloaded, Violation
from pushsse.event import NO_STEP
from pushsse.outcomes import Outcomes
from pushsse.questions import (
    BeingTaken,
    By,
    Conversation,
    EarlierAnswer,
    KeptPart,
    Link,
    NobodyAnswers,
    NotNow,
    Question,
    Rating,
    Status,
    TooManyQuestions,
    UnknownConversation,
)
from pushsse.questions.conversations import Staff
from pushsse.questions.life import MAX_REASON
from pushsse.questions.service import Asking, Desk, Questions, Said
from pushsse.strictjson import shown

MAX_CONTEXT_BYTES = 16 * 1024
LISTED_CHARACTERS = 4_000
_RETRY_AFTER = {"retry-after": "5"}
# Somebody has to change the settings first.
_LONG_RETRY_AFTER = {"retry-after": "300"}
QUESTION_ID = re.compile(r"[0-9A-HJKMNP-TV-Z]{26}")
# A key as it is, or as a string of structured fields (RFC 9651, 3.3.3), as the draft of the header has it.
_KEY = re.compile(r"[\x21\x23-\x7e][\x21-\x7e]{0,127}")
_QUOTED_KEY = re.compile(r'"((?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"')
_MOST_KEY = 128
# Line ends and tabs are fine. A lookahead, so that no text takes more than one pass.
TEXT_PATTERN = r"^(?=\s*\S)[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]+\Z"
_LINE = r"^(?=\s*\S)[^\x00-\x1f\x7f-\x9f]+\Z"
CONVERSATION_PATTERN = rf"{NO_STEP}[A-Za-z0-9._-]{{1,64}}\Z"


class QuestionRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """A question. A further one of the same conversation names it."""

    text: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=8_000,
            pattern=TEXT_PATTERN,
            description="a question: 1–8,000 characters, not all of them blanks, and no control characters "
            "but line ends and tabs",
            examples=["How do I get a refund?"],
        ),
    ]
    conversation: (
        Annotated[
            str,
            Meta(
                pattern=CONVERSATION_PATTERN,
                description="a conversation's name: 1–64 letters (a–z, A–Z), digits, dots, hyphens and "
                "underscores, not . or ..",
                examples=["ann-order-981-8f3a"],
            ),
        ]
        | None
    ) = None
    context: Annotated[dict[str, Any], Meta(description="for the answerer, at most 16 KiB")] | None = None


class AcceptedQuestion(Struct, frozen=True):
    """A question that was taken; its answer comes on the person's streams."""

    id: str
    conversation: str
    status: Status


class AnswerView(Struct, frozen=True):
    """An answer, as far as it is there."""

    text: str
    seq: int
    by: By | None
    links: tuple[Link, ...]
    suggestions: tuple[str, ...]
    truncated: Annotated[
        bool, Meta(description="in the list, texts are cut at 4,000 characters, and parts are left out")
    ]
    parts: tuple[KeptPart, ...]


class ErrorView(Struct, frozen=True):
    """Why there is no answer."""

    code: str
    detail: str


class FeedbackRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """What a person thinks of an answer."""

    rating: Rating
    comment: Annotated[str, Meta(max_length=2_000)] = ""


class FeedbackView(Struct, frozen=True):
    """What a person thinks of an answer."""

    rating: Rating
    comment: str


class EarlierView(Struct, frozen=True):
    """What became of a question before it was asked anew; the first such has number 1."""

    number: int
    status: Status
    ended_at: datetime
    answer: AnswerView | None
    error: ErrorView | None
    feedback: FeedbackView | None


class QuestionView(Struct, frozen=True):
    """A question with its answer so far. A message that staff sent by themselves has no text."""

    id: str
    conversation: str
    text: str
    status: Status
    asked_at: datetime
    updated_at: datetime
    context: dict[str, Any] | None
    answer: AnswerView | None
    error: ErrorView | None
    feedback: FeedbackView | None
    regenerations: Annotated[int, Meta(description="how often it was asked anew")]
    earlier: Annotated[
        tuple[EarlierView, ...] | UnsetType,
        Meta(description="of one question, not in lists: the last answers before, oldest first"),
    ] = UNSET


class QuestionList(Struct, frozen=True):
    """A person's questions, newest first; with `more` there are older ones."""

    questions: tuple[QuestionView, ...]
    more: bool


class SaidLink(Struct, frozen=True, forbid_unknown_fields=True):
    """Where to read on."""

    title: Annotated[
        str,
        Meta(
            max_length=200,
            pattern=_LINE,
            description="a title: 1–200 characters, not all of them blanks, without control characters",
            examples=["Invoices"],
        ),
    ]
    url: Annotated[
        str,
        Meta(
            max_length=2_000,
            pattern=r"^(https?://|/)[^\s\x00-\x1f\x7f-\x9f]*\Z",
            description="a URL that begins with https://, http:// or /",
            examples=["/account/invoices"],
        ),
    ]


class SaidRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """What a member of staff says; `name` is what the person sees of him, by default the user's name."""

    text: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=20_000,
            pattern=TEXT_PATTERN,
            description="a text: 1–20,000 characters, not all of them blanks, and no control characters "
            "but line ends and tabs",
            examples=["Your refund is on its way."],
        ),
    ]
    links: Annotated[tuple[SaidLink, ...], Meta(max_length=20)] = ()
    name: (
        Annotated[
            str,
            Meta(
                max_length=128,
                pattern=_LINE,
                description="a name: 1–128 characters, not all of them blanks, without control characters",
                examples=["Sam"],
            ),
        ]
        | None
    ) = None

    def by(self, who: Identity) -> Said:
        """The same, said by somebody."""
        return Said(
            self.text, self.name or who.user, tuple(Link(link.title, link.url) for link in self.links)
        )


@dataclass(frozen=True, slots=True)
class QuestionsEndpoint:
    """A person's own questions, and those that staff answer."""

    identifier: Identifier
    questions: Questions
    reply: StreamedReply
    limit: CallLimit
    rating: CallLimit
    desk: Desk
    outcomes: Outcomes | None = None

    async def post(self, request: Request) -> Response:
        """Asks: 202, or, for who accepts text/event-stream, the answer in the reply."""
        who = await self.identifier.identify(request, ASK)
        key = idempotency_key(request)
        asking = _asking(await read_json(request, QuestionRequest))
        with self._holding(request, who) as place:
            fields = await self.limit.count(who.user)
            with self.refusing(fields):
                question = await self.questions.ask(who.user, asking, idempotency_key=key)
            return self._accepted(question, who, fields, place)

    async def get_all(self, request: Request) -> Response:
        """The newest `limit` questions, before the id `before`, of one conversation or all.

        Staff see other people's, of one conversation that is handed over.
        """
        who = await self.identifier.identify(request, ANY)
        query = Query(request)
        conversation = query.get("conversation")
        if conversation is not None and not re.fullmatch(CONVERSATION_PATTERN, conversation):
            raise parameter_problem("conversation", conversation, "isn't the name of a conversation")
        user = who.user
        if conversation is not None and ANSWER in who.scopes | _of_admin(who):
            found = await self.desk.read(who.user, conversation)
            user = user if found is None else found.user
        if user == who.user:
            who.require(ASK)
            if conversation is not None and await self.questions.conversation(user, conversation) is None:
                raise HttpProblem(404, "not_found", "you have no conversation with this name")
        limit = query.number("limit", default=50, most=100)
        found_ones = await self.questions.page(
            user,
            limit=limit + 1,
            before=before(query),
            conversation=conversation,
            characters=LISTED_CHARACTERS,
        )
        views = tuple(view(question) for question in found_ones[:limit])
        return json_response(QuestionList(views, len(found_ones) > limit))

    async def get(self, request: Request) -> Response:
        """One question with its whole answer so far, and what it was answered before it was asked anew."""
        who = await self.identifier.identify(request, ASK)
        question = found(await self.questions.get(who.user, question_id(request)))
        question = await self.questions.life.as_grown(question)
        earlier = await self.questions.life.store.earlier_answers(question)
        return json_response(msgspec.structs.replace(view(question), earlier=tuple(map(_earlier, earlier))))

    async def cancel(self, request: Request) -> Response:
        """Stops the answer; one that has ended stays as it is."""
        who = await self.identifier.identify(request, ASK)
        return json_response(view(found(await self.questions.cancel(who.user, question_id(request)))))

    async def regenerate(self, request: Request) -> Response:
        """Asks an ended question anew: as `post`."""
        who = await self.identifier.identify(request, ASK)
        with self._holding(request, who) as place:
            fields = await self.limit.count(who.user)
            with self.refusing(fields):
                question = found(await self.questions.regenerate(who.user, question_id(request)))
            return self._accepted(question, who, fields, place)

    async def feedback(self, request: Request) -> Response:
        """What the person thinks of the answer; a second call replaces the first."""
        who = await self.identifier.identify(request, ASK)
        given = await read_json(request, FeedbackRequest)
        asked = question_id(request)
        fields = await self.rating.count(who.user)
        with self.refusing(fields):
            question = await self.questions.rate(who.user, asked, given.rating, given.comment)
        if self.outcomes is not None and question is not None:
            self.outcomes.rated(who.user, asked, given.rating, given.comment)
        return json_response(view(found(question)), headers=fields)

    async def answer(self, request: Request) -> Response:
        """A member of staff answers a question of a conversation that is handed over."""
        who = await self.identifier.identify(request, ANSWER)
        said = (await read_json(request, SaidRequest)).by(who)
        asked = question_id(request)
        with self.refusing({}):
            question = await self.desk.answer(who.user, asked, said)
        if question is None:
            raise HttpProblem(404, "not_found", "no conversation that is handed over has this question")
        return json_response(view(question))

    def refusing(self, fields: Mapping[str, str]) -> AbstractContextManager[None]:
        """Turns what asking raises into problems; their responses get `fields`, too."""
        return refusing(self.limit, fields)

    def _holding(self, request: Request, who: Identity) -> "AbstractContextManager[ReplyPlace | None]":
        """Room for the answer in the reply, where it is wanted there. Raises HttpProblem 429 and 503."""
        return self.reply.replies.hold(who.user) if _wants_stream(request) else nullcontext()

    def _accepted(
        self, question: Question, who: Identity, fields: Mapping[str, str], place: ReplyPlace | None
    ) -> Response:
        headers = {"location": f"/v1/questions/{question.id}", **fields}
        if place is not None:
            return self.reply.response(question, who, place, headers)
        return json_response(
            AcceptedQuestion(question.id, question.conversation, question.status), 202, headers
        )


def _asking(asked: QuestionRequest) -> Asking:
    if asked.context is not None and (size := len(msgspec.json.encode(asked.context))) > MAX_CONTEXT_BYTES:
        raise InvalidInput(Violation("$.context", f"has {size} bytes, over {MAX_CONTEXT_BYTES}"))
    return Asking(asked.text, asked.conversation, asked.context)


@contextmanager
def refusing(limit: CallLimit, fields: Mapping[str, str]) -> Iterator[None]:
    """Turns what asking raises into problems; their responses get `fields`, too."""
    try:
        yield
    except TooManyQuestions as error:
        limit.limited["open_questions"] += 1
        raise HttpProblem(429, "too_many_questions", str(error), {**fields, **_RETRY_AFTER}) from None
    except UnknownConversation:
        raise HttpProblem(404, "not_found", "you have no conversation with this name") from None
    except Overloaded as error:
        raise HttpProblem(503, "overloaded", str(error), _RETRY_AFTER) from None
    except NobodyAnswers as error:
        raise HttpProblem(503, "no_answerer", str(error), _LONG_RETRY_AFTER) from None
    except BeingTaken as error:
        headers = {**fields, "retry-after": str(error.after_s)}
        raise HttpProblem(409, "being_taken", str(error), headers) from None
    except NotNow as error:
        raise HttpProblem(409, error.code, str(error), fields) from None


def idempotency_key(request: Request) -> str | None:
    """The key of the request (draft-ietf-httpapi-idempotency-key-header); None for none.

    Raises InvalidInput. Quoted or not, it is the same key.
    """
    given = request.headers.getlist("idempotency-key")
    if not given:
        return None
    key = given[0].strip()
    if len(given) == 1 and (quoted := _QUOTED_KEY.fullmatch(key)):
        key = re.sub(r"\\(.)", r"\1", quoted[1])
        if 0 < len(key) <= _MOST_KEY:
            return key
    elif len(given) == 1 and _KEY.fullmatch(key):
        return key
    detail = (
        "isn't 1–128 printable ASCII characters without blanks, such as 7f3c-41, or a string of them in "
        f"quotes, got {shown(', '.join(given))}"
    )
    raise InvalidInput(Violation("Idempotency-Key", detail))


def question_id(request: Request) -> str:
    """The id in the path. Raises HttpProblem 404."""
    given = str(request.path_params["id"])
    if not QUESTION_ID.fullmatch(given):
        raise _not_found()
    return given


def before(query: Query) -> str | None:
    """The id before which a page begins. Raises HttpProblem 400."""
    given = query.get("before")
    if given is not None and not QUESTION_ID.fullmatch(given):
        raise parameter_problem("before", given, "isn't the id of a question")
    return given


def found(question: Question | None) -> Question:
    """The question. Raises HttpProblem 404."""
    if question is None:
        raise _not_found()
    return question


def _not_found() -> HttpProblem:
    return HttpProblem(404, "not_found", "you have no question with this id")


def _of_admin(who: Identity) -> frozenset[str]:
    return EVERY_SCOPE if ADMIN in who.scopes else frozenset()


def _wants_stream(request: Request) -> bool:
    """Whether text/event-stream is named in Accept (RFC 9110, 12.5.1), without q=0."""
    for part in ",".join(request.headers.getlist("accept")).split(","):
        media, *parameters = (piece.strip().lower() for piece in part.split(";"))
        if media == "text/event-stream":
            return not any(re.fullmatch(r"q=0(\.0*)?", parameter) for parameter in parameters)
    return False


def view(question: Question) -> QuestionView:
    """A question as calls show it."""
    return QuestionView(
        id=question.id,
        conversation=question.conversation,
        text=question.text,
        status=question.status,
        asked_at=question.asked_at,
        updated_at=question.updated_at,
        context=question.context,
        answer=_answer(question),
        error=ErrorView(question.error_code, question.error_detail) if question.error_code else None,
        feedback=_feedback(question),
        regenerations=question.regenerations,
    )


def _answer(given: Question | EarlierAnswer) -> AnswerView | None:
    if not given.answer and not given.parts and given.status != "answered":
        return None
    return AnswerView(
        given.answer,
        given.seq if isinstance(given, Question) else 0,
        given.by,
        given.links,
        given.suggestions,
        truncated=isinstance(given, Question) and given.cut,
        parts=given.parts,
    )


def _feedback(given: Question | EarlierAnswer) -> FeedbackView | None:
    return None if given.rating is None else FeedbackView(given.rating, given.rating_comment)


def _earlier(earlier: EarlierAnswer) -> EarlierView:
    error = ErrorView(earlier.error_code, earlier.error_detail) if earlier.error_code else None
    return EarlierView(
        earlier.number, earlier.status, earlier.ended_at, _answer(earlier), error, _feedback(earlier)
    )


# Conversations


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
        views = tuple(map(_conversation_view, found[:limit]))
        return json_response(ConversationList(views, len(found) > limit))

    async def hand_over(self, request: Request) -> Response:
        """The person wants people to answer from now on."""
        who = await self.identifier.identify(request, ASK)
        body = await read_body(request)
        wanted = strictjson.convert(strictjson.loads(body or b"{}"), HandoverRequest)
        fields = await self.limit.count(who.user)
        try:
            found = await self.questions.hand_over(who.user, _conversation_name(request), wanted.reason)
        except NotNow as error:
            raise HttpProblem(409, error.code, str(error), fields) from None
        return json_response(_conversation_view(_found_conversation(found)), headers=fields)

    async def release(self, request: Request) -> Response:
        """Answerers answer again: a member of staff says so, or the person."""
        who = await self.identifier.identify(request, ANY)
        name = _conversation_name(request)
        own = await self.questions.conversation(who.user, name) if ASK in who.scopes else None
        if own is None:
            if ASK in who.scopes and not who.scopes & {ANSWER, ADMIN}:
                raise _no_conversation()
            who.require(ANSWER)
        return json_response(
            _conversation_view(_found_conversation(await self.desk.release(name, by=who.user)))
        )

    async def write(self, request: Request) -> Response:
        """A member of staff sends a message."""
        who = await self.identifier.identify(request, ANSWER)
        key = idempotency_key(request)
        said = (await read_json(request, SaidRequest)).by(who)
        try:
            message = await self.desk.write(who.user, _conversation_name(request), said, idempotency_key=key)
        except BeingTaken as error:
            headers = {"retry-after": str(error.after_s)}
            raise HttpProblem(409, "being_taken", str(error), headers) from None
        if message is None:
            raise _no_conversation()
        return json_response(view(message), 201, {"location": f"/v1/questions/{message.id}"})


def _conversation_name(request: Request) -> str:
    given = str(request.path_params["id"])
    if not re.fullmatch(CONVERSATION_PATTERN, given):
        raise _no_conversation()
    return given


def _found_conversation(conversation: Conversation | None) -> Conversation:
    if conversation is None:
        raise _no_conversation()
    return conversation


def _no_conversation() -> HttpProblem:
    return HttpProblem(404, "not_found", "there is no such conversation here")


def _conversation_view(found: Conversation) -> ConversationView:
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
