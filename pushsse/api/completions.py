"""`/v1/chat/completions` and `/v1/models`: questions as clients of OpenAI's interface ask them.

The last message is the question; the turn before it only tells which conversation goes on, where none is
named. A completion's id holds the question's, so that the calls of questions work on it. Deliberate: `user`
and the model's name decide nothing; sampling parameters are the answerer's affair. Statuses, data and
handovers have no place in this protocol, so they are in a member of their own, `pushsse`. A handover is no
text: it would be in a language that nobody chose, and the client would send it back as the answer.
"""

from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Annotated, Literal, NamedTuple

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from pushsse.api import HttpProblem, ProblemResponse, json_response
from pushsse.api.front_ends import (
    MAX_CHAT_BODY,
    MOST_RAW,
    FrontEnd,
    asking,
    event,
    key_of,
    raw_value,
    read,
    rest_of,
    retold,
    text_of,
)
from pushsse.api.identity import Identity
from pushsse.api.questions import idempotency_key
from pushsse.errors import InvalidInput, Violation
from pushsse.questions import CUT_SHORT, KeptPart, Part, Question, SourcePart, StatusPart, Turn
from pushsse.questions.following import Idle, Interrupted, QuestionEnded
from pushsse.questions.service import Asking
from pushsse.strictjson import shown

MODEL = "pushsse"
CONVERSATION_HEADER = "x-conversation-id"
FinishReason = Literal["stop", "length"]
_DONE = b"data: [DONE]\n\n"
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
# Stopped is finished, too, and what people have taken over: they answer on the person's streams.
_FINISHED = ("answered", "cancelled", "handed_over")
# OpenAI's clients try again by themselves after a 5xx, which here would ask once more.
_NO_RETRY = {"x-should-retry": "false"}


class CompletionMessage(Struct, frozen=True, gc=False):
    """A message; only the last one, the user's, is read."""

    role: str
    content: msgspec.Raw | UnsetType = UNSET


class ChatCompletionStreamOptions(Struct, frozen=True):
    """How the stream is."""

    include_usage: bool | None = None


class ResponseFormat(Struct, frozen=True):
    """What an answer is written in."""

    type: str


class CompletionRequest(Struct, frozen=True):
    """A request for a completion. What isn't here is passed over."""

    messages: Annotated[list[CompletionMessage], Meta(min_length=1)]
    # Each chunk of the answer has it.
    model: Annotated[str, Meta(max_length=256)] = MODEL
    stream: bool | None = None
    stream_options: ChatCompletionStreamOptions | None = None
    n: int | None = None
    tools: msgspec.Raw | UnsetType = UNSET
    functions: msgspec.Raw | UnsetType = UNSET
    modalities: msgspec.Raw | UnsetType = UNSET
    response_format: ResponseFormat | None = None
    metadata: msgspec.Raw | UnsetType = UNSET
    conversation: Annotated[str, Meta(description="the conversation that it belongs to")] | None = None


class CompletionUsage(Struct, frozen=True):
    """What the model has counted; zeros where none was asked."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class UrlCitation(Struct, frozen=True):
    """A source."""

    title: str
    url: str
    start_index: int
    end_index: int


class Annotation(Struct, frozen=True):
    """A source, as answers with citations have it."""

    url_citation: UrlCitation
    type: Literal["url_citation"] = "url_citation"


class ChoiceDelta(Struct, frozen=True):
    """What a chunk adds."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    annotations: tuple[Annotation, ...] | UnsetType = UNSET


class ChunkChoice(Struct, frozen=True):
    """The only choice of a chunk."""

    delta: ChoiceDelta
    finish_reason: FinishReason | None = None
    index: int = 0


class Handover(Struct, frozen=True, tag="handover"):
    """People answer this question, and those that follow, on the person's streams."""

    question: str


class ChatCompletionChunk(Struct, frozen=True):
    """A chunk of a streamed completion; `pushsse` is a status, data, or that people answer."""

    id: str
    created: int
    model: str
    choices: tuple[ChunkChoice, ...]
    usage: CompletionUsage | UnsetType | None = UNSET
    pushsse: Part | Handover | UnsetType = UNSET
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"


class AnswerMessage(Struct, frozen=True):
    """The answer."""

    content: str
    annotations: tuple[Annotation, ...] = ()
    refusal: None = None
    role: Literal["assistant"] = "assistant"


class Choice(Struct, frozen=True):
    """The only choice of a completion."""

    message: AnswerMessage
    finish_reason: FinishReason = "stop"
    index: int = 0
    logprobs: None = None


class ChatCompletion(Struct, frozen=True):
    """A whole completion; `pushsse` says that people answer."""

    id: str
    created: int
    model: str
    choices: tuple[Choice, ...]
    usage: CompletionUsage
    pushsse: Handover | UnsetType = UNSET
    object: Literal["chat.completion"] = "chat.completion"


class Model(Struct, frozen=True):
    """Who answers here."""

    id: str
    created: int
    owned_by: str
    object: Literal["model"] = "model"


class ModelList(Struct, frozen=True):
    """All of them: one."""

    data: tuple[Model, ...]
    object: Literal["list"] = "list"


class CompletionError(Struct, frozen=True):
    """What is wrong, as OpenAI's clients read it."""

    message: str
    type: str
    param: str | None
    code: str


class CompletionProblem(Struct, frozen=True):
    """A refusal, or what a stream ends with where there is no answer."""

    error: CompletionError


@dataclass(frozen=True, slots=True)
class CompletionsEndpoint:
    """Completions, each of which is a question."""

    front: FrontEnd

    async def post(self, request: Request) -> Response:
        """Asks; the answer in one piece, or streamed."""
        who = await self.front.identify(request)
        wanted = await _wanted(request)
        with self.front.holding(who) as place:
            question, fields = await self.front.ask(who, wanted.asking, key=wanted.key)
            headers = {"location": f"/v1/questions/{question.id}", **fields}
            if not wanted.streams:
                return await self._whole(request, question, who, wanted.model, headers)
            teller = CompletionTeller(wanted.model, with_usage=wanted.with_usage)
            return self.front.stream(question, who, teller, place, headers)

    async def models(self, request: Request) -> Response:
        """Who answers."""
        await self.front.identify(request)
        return json_response(ModelList((_MODEL,)))

    async def _whole(
        self,
        request: Request,
        question: Question,
        who: Identity,
        model: str,
        headers: Mapping[str, str],
    ) -> Response:
        async with aclosing(self.front.following.updates(question, who)) as updates:
            async for update in updates:
                match update:
                    case Interrupted(reason):
                        raise HttpProblem(503, reason.code, reason.detail, {**headers, **_NO_RETRY})
                    case QuestionEnded(ended) if ended.status in _FINISHED:
                        return json_response(_completion(ended, model), headers=headers)
                    case QuestionEnded(ended):
                        detail = ended.error_detail
                        raise HttpProblem(502, ended.error_code, detail, {**headers, **_NO_RETRY})
                    case Idle() if await request.is_disconnected():
                        # No server cancels a call whose client has left: it would keep its place to the end.
                        raise ClientDisconnect
        raise AssertionError("updates end with QuestionEnded or Interrupted")


_MODEL = Model(MODEL, 1_767_225_600, MODEL)


def told(problem: ProblemResponse) -> Response:
    """A refusal as OpenAI's clients read it."""
    param = problem.violations[0].at.removeprefix("$.") if problem.violations else None
    where = "; ".join(f"{violation.at}: {violation.detail}" for violation in problem.violations)
    fallback = "server_error" if problem.status_code >= 500 else "invalid_request_error"
    kind = _TYPES.get(problem.status_code, fallback)
    error = CompletionError(where or problem.detail, kind, param, problem.code)
    return retold(problem, CompletionProblem(error))


class _CompletionCall(NamedTuple):
    """What is left of a request while its answer is followed: not its messages, which may be very many."""

    asking: Asking
    key: str | None
    model: str
    streams: bool
    with_usage: bool


async def _wanted(request: Request) -> _CompletionCall:
    """Reads a request. Raises HttpProblem, InvalidInput."""
    body = await read(request, CompletionRequest)
    _refuse_others(body)
    key = idempotency_key(request)
    given = _asking(body, request.headers.get(CONVERSATION_HEADER))
    if given.conversation is None:
        # Most clients name none, and send what was said instead.
        given = replace(given, after=_last_turn(body.messages))
    options = body.stream_options or ChatCompletionStreamOptions()
    return _CompletionCall(
        given,
        None if key is None else key_of("completions", key),
        body.model,
        bool(body.stream),
        bool(options.include_usage),
    )


def _refuse_others(body: CompletionRequest) -> None:
    """Raises InvalidInput for what would be another kind of answer than there is."""
    if body.n not in (None, 1):
        raise InvalidInput(Violation("$.n", f"there is one answer, got {body.n}"))
    for name, raw in (("tools", body.tools), ("functions", body.functions)):
        if raw is not UNSET and raw_value(raw, at=f"$.{name}"):
            raise InvalidInput(Violation(f"$.{name}", "isn't taken: the answerer has its own"))
    modalities = raw_value(body.modalities, at="$.modalities")
    if modalities not in (None, ["text"]):
        raise InvalidInput(Violation("$.modalities", f"answers are text, got {shown(modalities)}"))
    if body.response_format is not None and body.response_format.type != "text":
        got = shown(body.response_format.type)
        raise InvalidInput(Violation("$.response_format.type", f"answers are text, got {got}"))


def _asking(body: CompletionRequest, header: str | None) -> Asking:
    index = len(body.messages) - 1
    at = f"$.messages[{index}]"
    message = body.messages[index]
    if message.role != "user":
        detail = f"isn't user: the last message is the question, got {shown(message.role)}"
        raise InvalidInput(Violation(f"{at}.role", detail))
    text = text_of(raw_value(message.content, at=f"{at}.content"), at=f"{at}.content")
    metadata = raw_value(body.metadata, at="$.metadata")
    named = metadata.get("conversation") if isinstance(metadata, dict) else None
    if named is not None and not isinstance(named, str):
        raise InvalidInput(Violation("$.metadata.conversation", f"isn't a text, got {shown(named)}"))
    for conversation, where in (
        (body.conversation, "$.conversation"),
        (named, "$.metadata.conversation"),
        (header, CONVERSATION_HEADER),
    ):
        if conversation is not None:
            return asking(text, at=f"{at}.content", conversation=conversation, conversation_at=where)
    return asking(text, at=f"{at}.content", conversation=None, conversation_at="$")


def _last_turn(messages: list[CompletionMessage]) -> Turn | None:
    """The question and the answer before the last message; None where there is none that is a text.

    Of an answer that was stopped before its first word, or that people give, clients have an empty message,
    or null, or none.
    """
    before = messages[-3:-1]
    answer = before.pop() if before and before[-1].role == "assistant" else None
    if not before or before[-1].role != "user":
        return None
    try:
        return Turn(_text_in(before[-1]), "" if answer is None else _text_in(answer))
    except InvalidInput:
        return None


def _text_in(message: CompletionMessage) -> str:
    # Answers may be longer than questions; a list of so many parts would hold the event loop.
    is_text = message.content is not UNSET and bytes(memoryview(message.content)[:1]) == b'"'
    content = raw_value(message.content, at="$", most=MAX_CHAT_BODY if is_text else MOST_RAW)
    return "" if content is None else text_of(content, at="$")


def _completion(question: Question, model: str) -> ChatCompletion:
    parts = (*question.parts, *rest_of(question, question.parts))
    annotations = tuple(_annotation(part, 0) for part in parts if isinstance(part, SourcePart))
    message = AnswerMessage(question.answer, annotations)
    return ChatCompletion(
        id=_id(question),
        created=int(question.asked_at.timestamp()),
        model=model,
        choices=(Choice(message, _finish(question)),),
        usage=_usage(question),
        pushsse=Handover(question.id) if question.status == "handed_over" else UNSET,
    )


def _finish(question: Question) -> FinishReason:
    return "length" if CUT_SHORT in question.parts else "stop"


def _id(question: Question) -> str:
    return f"chatcmpl-{question.id}"


def _usage(question: Question) -> CompletionUsage:
    counted = question.usage or {}
    prompt, completion = counted.get("prompt_tokens", 0), counted.get("completion_tokens", 0)
    return CompletionUsage(prompt, completion, counted.get("total_tokens", prompt + completion))


def _annotation(part: SourcePart, at: int) -> Annotation:
    return Annotation(UrlCitation(part.title, part.url, at, at))


class CompletionTeller:
    """Tells an answer in chunks of a completion."""

    def __init__(self, model: str, *, with_usage: bool) -> None:
        self._model = model
        self._with_usage = with_usage
        self._id = ""
        self._created = 0
        self._characters = 0
        self._said: list[KeptPart] = []

    def begun(self, question: Question) -> bytes:
        """The first chunk, which says who speaks."""
        self._id, self._created = _id(question), int(question.asked_at.timestamp())
        return self._chunk(ChoiceDelta(role="assistant", content=""))

    def grown(self, text: str) -> bytes:
        """A piece of the text."""
        self._characters += len(text)
        return self._chunk(ChoiceDelta(content=text))

    def parted(self, part: Part) -> bytes:
        """A source as an annotation; the rest in a member of its own."""
        if not isinstance(part, StatusPart):
            self._said.append(part)
        if not isinstance(part, SourcePart):
            return self._chunk(ChoiceDelta(), part=part)
        return self._chunk(ChoiceDelta(annotations=(_annotation(part, self._characters),)))

    def restarted(self) -> bytes | None:
        """This protocol can't take text back."""
        return None

    def ended(self, question: Question) -> bytes:
        """The last chunk with its reason, the usage if it was asked for; or an error."""
        if question.status not in _FINISHED:
            return _error(question.error_code, question.error_detail)
        rest = b"".join(self.parted(part) for part in rest_of(question, self._said))
        if question.status == "handed_over":
            rest += self._chunk(ChoiceDelta(), part=Handover(question.id))
        end = self._chunk(ChoiceDelta(), finish=_finish(question))
        usage = event(self._made((), usage=_usage(question))) if self._with_usage else b""
        return rest + end + usage + _DONE

    def interrupted(self, code: str, detail: str) -> bytes:
        """An error."""
        return _error(code, detail)

    def _chunk(
        self,
        delta: ChoiceDelta,
        *,
        finish: FinishReason | None = None,
        part: Part | Handover | UnsetType = UNSET,
    ) -> bytes:
        choice = ChunkChoice(delta, finish)
        return event(self._made((choice,), usage=None if self._with_usage else UNSET, part=part))

    def _made(
        self,
        choices: tuple[ChunkChoice, ...],
        *,
        usage: CompletionUsage | UnsetType | None,
        part: Part | Handover | UnsetType = UNSET,
    ) -> ChatCompletionChunk:
        return ChatCompletionChunk(self._id, self._created, self._model, choices, usage, part)


def _error(code: str, detail: str) -> bytes:
    return event(CompletionProblem(CompletionError(detail, "server_error", None, code))) + _DONE
