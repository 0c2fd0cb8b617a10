"""What the protocols of others' front ends share: a question is taken, followed, and told in their own words.

`chat` (the AI SDK), `agui` and `completions` (OpenAI's) are made of it; each brings a `Teller`, which writes
the frames. Leaving a response never stops an answer.
"""

import hashlib
import re
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, aclosing
from dataclasses import dataclass
from typing import Protocol, TypeVar

import msgspec
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from pushsse import strictjson
from pushsse.api import CallLimit, HttpProblem, ProblemResponse, read_body
from pushsse.api.identity import ASK, Identifier, Identity
from pushsse.api.questions import (
    CONVERSATION_PATTERN,
    MAX_CONTEXT_BYTES,
    QUESTION_ID,
    QuestionRequest,
    refusing,
)
from pushsse.api.replies import FollowedReply, Replies, ReplyPlace
from pushsse.errors import CloseReason, InvalidInput, Violation
from pushsse.questions import DataPart, KeptPart, Part, Question, SourcePart, StatusPart
from pushsse.questions.following import (
    Following,
    Grown,
    Idle,
    Interrupted,
    Parted,
    QuestionEnded,
    Restarted,
    Update,
)
from pushsse.questions.service import Asking, Questions
from pushsse.strictjson import shown

T = TypeVar("T")
# Front ends send a whole conversation with each question, unless they are told not to.
MAX_CHAT_BODY = 1024 * 1024
# Codes of interruptions after which the same answer can be followed again at once.
RESTARTED = "restarted"
RESUMABLE = frozenset({RESTARTED, CloseReason.SHUTDOWN.code})
# The header fields of a response with nothing in it.
NO_CONTENT = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
KEEPALIVE = b": \n\n"
_BLANKS = bytes.maketrans(b"\r\n", b"  ")
# The longest question, each of whose characters is written as two escapes.
MOST_RAW = 100 * 1024
# So many questions of a conversation are looked at for one that is open.
_NEWEST = 20


class Teller(Protocol):
    """Tells one response what becomes of a question; each method returns the frames, and may return none.

    `begun` comes first, then any number of `grown`, `parted` and `restarted`, then `ended` or `interrupted`.
    """

    def begun(self, question: Question) -> bytes:
        """The answer begins."""
        ...

    def grown(self, text: str) -> bytes:
        """The answer goes on with this text, which isn't empty."""
        ...

    def parted(self, part: Part) -> bytes:
        """The answer gets a part."""
        ...

    def restarted(self) -> bytes | None:
        """All text and parts before are void. None: the protocol can't say that, `interrupted` has to."""
        ...

    def ended(self, question: Question) -> bytes:
        """The question has ended, or people have taken it over."""
        ...

    def interrupted(self, code: str, detail: str) -> bytes:
        """Nothing more is said here, while the question goes on."""
        ...


def event(value: object) -> bytes:
    """A value as one event of a stream, with the line ends that all these clients read."""
    line = msgspec.json.encode(value)
    if b"\n" in line or b"\r" in line:
        # What a client has sent may have them between its values, where a blank is the same (RFC 8259, 2).
        line = line.translate(_BLANKS)
    return b"data: " + line + b"\n\n"


@dataclass(frozen=True, slots=True)
class NamedQuestion:
    """A question as a client names it: by its id, or by the key and the text that it was asked with."""

    id: str
    key: str | None = None
    text: str = ""


@dataclass(frozen=True, slots=True)
class FrontEnd:
    """Takes questions for protocols of others, and follows them."""

    identifier: Identifier
    questions: Questions
    following: Following
    limit: CallLimit
    replies: Replies
    heartbeat_s: float = 15.0

    async def identify(self, request: Request) -> Identity:
        """Who is asking. Raises HttpProblem, Unavailable."""
        return await self.identifier.identify(request, ASK)

    def holding(self, who: Identity) -> AbstractContextManager[ReplyPlace]:
        """Room for one more followed answer, to be asked for first. Raises HttpProblem 429 and 503."""
        return self.replies.hold(who.user)

    async def ask(
        self, who: Identity, asking: Asking, *, key: str | None = None
    ) -> tuple[Question, Mapping[str, str]]:
        """Takes a question, or finds the one with this key; and the header fields of the limit.

        Raises HttpProblem 404, 409, 429 and 503, InvalidInput, Unavailable.
        """
        fields = await self.limit.count(who.user)
        with refusing(self.limit, fields):
            return await self.questions.ask(who.user, asking, idempotency_key=key), fields

    async def ask_again(
        self, who: Identity, conversation: str, named: NamedQuestion | None
    ) -> tuple[Question, Mapping[str, str]]:
        """Asks a question of a conversation anew, or its newest; one that is being answered is stopped first.

        Raises HttpProblem 404, 409, 429 and 503, Unavailable.
        """
        fields = await self.limit.count(who.user)
        found = None
        # PostgreSQL doesn't hold all that a text of JSON may have.
        is_name = re.fullmatch(CONVERSATION_PATTERN, conversation)
        if is_name and named is not None:
            found = await self._find(who, conversation, named)
        elif is_name:
            asked = (question for question in await self.newest(who, conversation) if question.text)
            found = next(asked, None)
        if found is None or found.conversation != conversation:
            raise HttpProblem(404, "not_found", "you have no such question in this conversation")
        if found.is_open:
            await self.questions.cancel(who.user, found.id)
        with refusing(self.limit, fields):
            again = await self.questions.regenerate(who.user, found.id)
        return again or found, fields

    async def _find(self, who: Identity, conversation: str, named: NamedQuestion) -> Question | None:
        found = None
        if QUESTION_ID.fullmatch(named.id):
            found = await self.questions.get(who.user, named.id)
        if found is None and named.key is not None:
            found = await self.questions.keyed(who.user, named.key)
        if found is None and named.text:
            # Its context may be another one by now, and is a part of the key. Of two, none is meant for sure.
            asked = [each for each in await self.newest(who, conversation) if each.text == named.text]
            found = asked[0] if len(asked) == 1 else None
        return found

    async def newest(self, who: Identity, conversation: str) -> Sequence[Question]:
        """A person's newest questions in a conversation, newest first; none of one that isn't there yet.

        They come without answers. Raises HttpProblem 404 where it is somebody else's.
        """
        found = await self.questions.page(who.user, limit=_NEWEST, conversation=conversation)
        if not found:
            await self.refuse_others(who, conversation)
        return found

    async def refuse_others(self, who: Identity, conversation: str) -> None:
        """Raises HttpProblem 404 where a conversation is somebody else's."""
        found = await self.questions.life.conversations.one(conversation)
        if found is not None and found.user != who.user:
            raise HttpProblem(404, "not_found", "you have no conversation with this name")

    async def stop(self, who: Identity, conversation: str) -> None:
        """Cancels what is open in a person's conversation. Raises HttpProblem 404."""
        for question in await self.newest(who, conversation):
            if question.is_open:
                await self.questions.cancel(who.user, question.id)

    def stream(
        self, question: Question, who: Identity, teller: Teller, place: ReplyPlace, headers: Mapping[str, str]
    ) -> Response:
        """The response that follows a question to its end."""
        return FollowedReply(self.frames(question, who, teller), place, headers)

    async def frames(self, question: Question, who: Identity, teller: Teller) -> AsyncGenerator[bytes, None]:
        """What the teller says, with a comment where nothing was said for as long as a heartbeat."""
        yield teller.begun(question)
        wrote = time.monotonic()
        async with aclosing(continued(self.following.updates(question, who))) as updates:
            async for update in updates:
                now = time.monotonic()
                told = _told(teller, update)
                if told is None:
                    detail = "the answer begins again, in other words: what has come so far is void"
                    yield teller.interrupted(RESTARTED, detail)
                    return
                if not told and isinstance(update, Idle) and now - wrote >= self.heartbeat_s:
                    told = KEEPALIVE
                if told:
                    yield told
                    wrote = now


def _told(teller: Teller, update: Update) -> bytes | None:
    match update:
        case Grown(text):
            return teller.grown(text)
        case Parted(part):
            return teller.parted(part)
        case Restarted():
            return teller.restarted()
        case QuestionEnded(question):
            return teller.ended(question)
        case Interrupted(reason):
            return teller.interrupted(*_said(reason))
        case _:
            return b""


def _said(reason: CloseReason) -> tuple[str, str]:
    return reason.code, reason.detail


async def continued(updates: AsyncGenerator[Update, None]) -> AsyncGenerator[Update, None]:
    """Updates for clients that can't take back what they have: Restarted comes only where it has to.

    An attempt that begins again often says the same as the one before. While its text is the beginning of
    what the client has, nothing is said; once it goes beyond that, what is new comes as Grown. Only a text
    that differs is a Restarted, followed by all of it. A part that came already doesn't come twice.
    """
    shown_so_far = _Shown()
    async with aclosing(updates):
        async for update in updates:
            for each in shown_so_far.take(update):
                yield each


class _Shown:
    """What a client has, and, after a restart, what the new attempt has said up to now."""

    def __init__(self) -> None:
        self._text = ""
        self._parts: list[KeptPart] = []
        self._again: tuple[str, list[KeptPart]] | None = None

    def take(self, update: Update) -> Iterator[Update]:
        """What is passed on of an update."""
        match update:
            case Restarted():
                self._again = ("", []) if self._text or self._parts else None
            case Grown(text):
                yield from self._grow(text)
            case Parted(part) if not isinstance(part, StatusPart):
                if self._again is not None:
                    self._again[1].append(part)
                if part not in self._parts:
                    self._parts.append(part)
                    yield update
            case QuestionEnded(question):
                if question.status == "answered" and self._again is not None:
                    yield from self._replace(*self._again)
                yield update
            case _:
                yield update

    def _grow(self, text: str) -> Iterator[Update]:
        if self._again is None:
            self._text += text
            yield Grown(text)
            return
        self._again = (self._again[0] + text, self._again[1])
        new = self._again[0]
        if new.startswith(self._text):
            more = new[len(self._text) :]
            self._text, self._again = new, None
            if more:
                yield Grown(more)
        elif not self._text.startswith(new):
            yield from self._replace(*self._again)

    def _replace(self, text: str, parts: list[KeptPart]) -> Iterator[Update]:
        self._again = None
        if text == self._text:
            return
        self._text, self._parts = text, list(parts)
        yield Restarted()
        if text:
            yield Grown(text)
        for part in parts:
            yield Parted(part)


def rest_of(question: Question, said: Sequence[KeptPart]) -> Sequence[KeptPart]:
    """What an answer has beside its text that wasn't said yet; where to read on, and what else to ask."""
    rest = [part for part in question.parts if part not in said]
    urls = {part.url for part in (*said, *rest) if isinstance(part, SourcePart)}
    rest += [SourcePart(link.title, link.url) for link in question.links if link.url not in urls]
    if question.suggestions:
        rest.append(DataPart("suggestions", list(question.suggestions)))
    return rest


async def read(request: Request, to: type[T]) -> T:
    """The body of a call; members that the type has as Raw are still to be read. Raises as `read_json`."""
    return strictjson.peek(await read_body(request, MAX_CHAT_BODY), to)


def conversation_of(request: Request) -> str:
    """The conversation in a call's path. Raises HttpProblem 404 for what can't be one's name."""
    given = str(request.path_params["id"])
    if not re.fullmatch(CONVERSATION_PATTERN, given):
        raise HttpProblem(404, "not_found", "you have no conversation with this name")
    return given


def text_of(content: object, *, at: str) -> str:
    """The text of a message: a text, or parts that are texts. Raises InvalidInput for any other part."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidInput(Violation(at, f"is neither a text nor a list of parts, got {shown(content)}"))
    texts = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else part
        if kind != "text":
            detail = f"isn't taken: a question has parts of type text alone, got {shown(kind)}"
            raise InvalidInput(Violation(f"{at}[{index}]", detail))
        text = part.get("text")
        if not isinstance(text, str):
            raise InvalidInput(Violation(f"{at}[{index}].text", f"isn't a text, got {shown(text)}"))
        texts.append(text)
    return "\n".join(texts)


def raw_value(raw: msgspec.Raw | UnsetType, *, at: str, most: int = MOST_RAW) -> object:
    """A member that was left as it was; None if there is none. Raises InvalidInput that names the member."""
    if raw is UNSET:
        return None
    # What is longer would hold the event loop while it is read.
    if (size := len(memoryview(raw))) > most:
        raise InvalidInput(Violation(at, f"has {size} bytes, over {most}"))
    try:
        return strictjson.loads(bytes(raw))
    except InvalidInput as error:
        raise InvalidInput(*(_moved(violation, "$", at) for violation in error.violations)) from None


def context_of(raw: msgspec.Raw | UnsetType) -> dict[str, object] | None:
    """The `context` of a body. Raises InvalidInput."""
    found = raw_value(raw, at="$.context", most=MAX_CONTEXT_BYTES)
    if found is None or isinstance(found, dict):
        return found
    raise InvalidInput(Violation("$.context", f"isn't an object, got {shown(found)}"))


def asking(
    text: str,
    *,
    at: str,
    conversation: str | None,
    conversation_at: str,
    context: dict[str, object] | None = None,
) -> Asking:
    """What is asked, within the bounds of all questions. Raises InvalidInput that names where it stood."""
    given = {"text": text} if conversation is None else {"text": text, "conversation": conversation}
    try:
        found = strictjson.convert(given, QuestionRequest)
    except InvalidInput as error:
        named = (_moved(violation, "$.text", at) for violation in error.violations)
        raise InvalidInput(*(_moved(each, "$.conversation", conversation_at) for each in named)) from None
    return Asking(found.text, found.conversation, context)


def _moved(violation: Violation, before: str, at: str) -> Violation:
    if not violation.at.startswith(before):
        return violation
    return Violation(at + violation.at.removeprefix(before), violation.detail)


def key_of(*names: str) -> str:
    """An idempotency key made of what names a question in a protocol."""
    return hashlib.sha256("\0".join(names).encode("utf-8", "replace")).hexdigest()


def retold(problem: ProblemResponse, body: object) -> Response:
    """A problem in the words of a protocol: the same status and header fields, with another body."""
    kept = {
        name: value
        for name, value in problem.headers.items()
        if name not in ("content-type", "content-length")
    }
    return Response(msgspec.json.encode(body), problem.status_code, kept, "application/json")
