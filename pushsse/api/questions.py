"""`/v1/questions`: ask, read, cancel; and the answer in the reply, a finite stream.

Raises what `problem` turns into responses. Losing the connection never stops an answer.
"""

import re
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct
from sse_starlette import EventSourceResponse
from starlette.requests import Request
from starlette.responses import Response

from pushsse.api import HttpProblem, Query, json_response, parameter_problem, read_json
from pushsse.api.identity import ASK, Identifier, Identity
from pushsse.api.limits import CallLimit
from pushsse.errors import InvalidInput, Overloaded, Violation
from pushsse.event import Publication, encode
from pushsse.questions import By, Link, Question, Status, TooManyQuestions, UnknownConversation
from pushsse.questions.following import Following, Interrupted
from pushsse.questions.service import Asking, Questions
from pushsse.stream.frame import STREAM_HEADERS as HEADERS
from pushsse.stream.frame import exception
from pushsse.strictjson import shown

MAX_CONTEXT_BYTES = 16 * 1024
LISTED_CHARACTERS = 4_000
_RETRY_AFTER = {"retry-after": "5"}
_ID = re.compile(r"[0-9A-HJKMNP-TV-Z]{26}")
_KEY = re.compile(r"[\x21-\x7e]{1,128}")


class QuestionRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """A question. A further one of the same conversation names it."""

    text: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=4_000,
            pattern=r"\S",
            description="a question: 1–4,000 characters, and not all of them blanks",
            examples=["How do I get a refund?"],
        ),
    ]
    conversation: (
        Annotated[
            str,
            Meta(
                pattern=r"^[A-Za-z0-9._-]{1,64}\Z",
                description="a conversation's name: 1–64 letters (a–z, A–Z), digits, dots, hyphens and "
                "underscores",
                examples=["order-981"],
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
    truncated: Annotated[bool, Meta(description="in the list, texts are cut at 4,000 characters")]


class ErrorView(Struct, frozen=True):
    """Why there is no answer."""

    code: str
    detail: str


class QuestionView(Struct, frozen=True):
    """A question with its answer so far."""

    id: str
    conversation: str
    text: str
    status: Status
    asked_at: datetime
    updated_at: datetime
    context: dict[str, Any] | None
    answer: AnswerView | None
    error: ErrorView | None


class QuestionList(Struct, frozen=True):
    """A person's questions, newest first."""

    questions: tuple[QuestionView, ...]


@dataclass(frozen=True, slots=True)
class QuestionsEndpoint:
    """A person's own questions."""

    identifier: Identifier
    questions: Questions
    reply: "StreamedReply"
    limit: CallLimit

    async def post(self, request: Request) -> Response:
        """Asks: 202, or, for who accepts text/event-stream, the answer in the reply."""
        who = await self.identifier.identify(request, ASK)
        key = _key(request)
        asking = _asking(await read_json(request, QuestionRequest))
        fields = await self.limit.spend(who.user)
        try:
            question = await self.questions.ask(who.user, asking, idempotency_key=key)
        except TooManyQuestions as error:
            self.limit.limited["open_questions"] += 1
            raise HttpProblem(429, "too_many_questions", str(error), {**fields, **_RETRY_AFTER}) from None
        except UnknownConversation:
            raise HttpProblem(404, "not_found", "you have no conversation with this name") from None
        except Overloaded as error:
            raise HttpProblem(503, "overloaded", str(error), _RETRY_AFTER) from None
        headers = {"location": f"/v1/questions/{question.id}", **fields}
        if _wants_stream(request):
            return self.reply.response(question, who, headers)
        return json_response(
            AcceptedQuestion(question.id, question.conversation, question.status), 202, headers
        )

    async def get_all(self, request: Request) -> Response:
        """The newest `limit` questions, before the id `before`."""
        who = await self.identifier.identify(request, ASK)
        query = Query(request)
        limit = query.number("limit", default=50, most=100)
        before = query.get("before")
        if before is not None and not _ID.fullmatch(before):
            raise parameter_problem("before", before, "isn't the id of a question")
        found = await self.questions.page(who.user, limit=limit, before=before)
        views = tuple(_view(question, most=LISTED_CHARACTERS) for question in found)
        return json_response(QuestionList(views))

    async def get(self, request: Request) -> Response:
        """One question with its whole answer so far."""
        who = await self.identifier.identify(request, ASK)
        return json_response(_view(_found(await self.questions.get(who.user, _id(request)))))

    async def cancel(self, request: Request) -> Response:
        """Stops the answer; one that has ended stays as it is."""
        who = await self.identifier.identify(request, ASK)
        return json_response(_view(_found(await self.questions.cancel(who.user, _id(request)))))


def _asking(asked: QuestionRequest) -> Asking:
    if asked.context is not None and (size := len(msgspec.json.encode(asked.context))) > MAX_CONTEXT_BYTES:
        raise InvalidInput(Violation("$.context", f"has {size} bytes, over {MAX_CONTEXT_BYTES}"))
    return Asking(asked.text, asked.conversation, asked.context)


def _key(request: Request) -> str | None:
    key = request.headers.get("idempotency-key")
    if key is not None and not _KEY.fullmatch(key):
        detail = f"isn't 1–128 printable ASCII characters without blanks, such as 7f3c-41, got {shown(key)}"
        raise InvalidInput(Violation("Idempotency-Key", detail))
    return key


def _id(request: Request) -> str:
    given = str(request.path_params["id"])
    if not _ID.fullmatch(given):
        raise _not_found()
    return given


def _found(question: Question | None) -> Question:
    if question is None:
        raise _not_found()
    return question


def _not_found() -> HttpProblem:
    return HttpProblem(404, "not_found", "you have no question with this id")


def _wants_stream(request: Request) -> bool:
    """Whether text/event-stream is named in Accept (RFC 9110, 12.5.1), without q=0."""
    for part in ",".join(request.headers.getlist("accept")).split(","):
        media, *parameters = (piece.strip().lower() for piece in part.split(";"))
        if media == "text/event-stream":
            return not any(re.fullmatch(r"q=0(\.0*)?", parameter) for parameter in parameters)
    return False


def _view(question: Question, *, most: int | None = None) -> QuestionView:
    text = question.answer if most is None else question.answer[:most]
    answer = error = None
    if text or question.status == "answered":
        answer = AnswerView(
            text,
            question.seq,
            question.by,
            question.links,
            question.suggestions,
            truncated=len(text) < len(question.answer),
        )
    if question.error_code:
        error = ErrorView(question.error_code, question.error_detail)
    return QuestionView(
        id=question.id,
        conversation=question.conversation,
        text=question.text,
        status=question.status,
        asked_at=question.asked_at,
        updated_at=question.updated_at,
        context=question.context,
        answer=answer,
        error=error,
    )


_SEND_TIMEOUT_S = 30.0
_PING = b"event: ping\ndata: {}\n\n"


@dataclass(frozen=True, slots=True)
class StreamedReply:
    """Streams an answer in the reply to its question, wherever it is answered."""

    following: Following
    heartbeat_s: float = 15.0

    def response(self, question: Question, who: Identity, headers: Mapping[str, str]) -> Response:
        """The response; when its client leaves, the answer goes on without it."""
        frames = self.frames(question, who)
        return EventSourceResponse(
            frames, headers={**HEADERS, **headers}, ping=0, send_timeout=_SEND_TIMEOUT_S
        )

    async def frames(self, question: Question, who: Identity) -> AsyncGenerator[bytes, None]:
        """The frames: `question`, the answer so far, what is published from then on, and the end.

        Ends with `exception` where the node stops, the token ends, or `who` is kicked.
        """
        wrote = time.monotonic()
        async with aclosing(self.following.heard(question, who)) as all_heard:
            async for heard in all_heard:
                now = time.monotonic()
                if isinstance(heard, Publication):
                    yield _frame(heard)
                elif isinstance(heard, Interrupted):
                    yield _frame(encode("exception", exception(heard.reason), users=None))
                elif now - wrote >= self.heartbeat_s:
                    yield _PING
                else:
                    continue
                wrote = now


def _frame(publication: Publication) -> bytes:
    return publication.frame() + b"\n"
