"""`/v1/chat`: questions as the AI SDK asks them (`useChat` with DefaultChatTransport, versions 5, 6 and 7).

A chat is a conversation, and the answer's message has the id of its question. Deliberate: no chunk has a
member that version 5.0.0 doesn't know, since versions 5 and 6 end the stream at it. The body's messages but
the last aren't read: the history is the server's. `reset=1` says that the client knows `reset-step`
(version 7); for all others a text that has become void can only be an error, after which a resume is right.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from pushsse.api import Query, json_response
from pushsse.api.front_ends import (
    NO_CONTENT,
    RESUMABLE,
    FrontEnd,
    NamedQuestion,
    asking,
    context_of,
    conversation_of,
    event,
    key_of,
    raw_value,
    read,
    rest_of,
    text_of,
)
from pushsse.api.questions import before
from pushsse.errors import InvalidInput, Violation
from pushsse.questions import KeptPart, Part, Question, SourcePart, StatusPart
from pushsse.questions.service import Asking
from pushsse.strictjson import shown

HEADERS = {"x-vercel-ai-ui-message-stream": "v1"}
DONE = b"data: [DONE]\n\n"
MOST_LISTED = 100
# Answers may be long: the list ends before their texts have more characters than this.
MOST_LISTED_CHARACTERS = 1_000_000
_FINISH = event({"type": "finish-step"}) + event({"type": "finish"}) + DONE
_TEXT = "text"
# What the id of a question's message has, after the question's, in the list of messages.
_QUESTION = ".question"


class ChatMessage(Struct, frozen=True, gc=False):
    """A message of a chat (UIMessage). Of a user's all parts have to be texts."""

    role: Literal["system", "user", "assistant"]
    id: str = ""
    parts: msgspec.Raw | UnsetType = UNSET


class ChatRequest(Struct, frozen=True):
    """What `useChat` sends; `context` is an object for the answerer. Other members are passed over."""

    id: Annotated[str, Meta(description="the chat, whose id is that of the conversation")]
    messages: list[ChatMessage]
    trigger: Literal["submit-message", "regenerate-message"] = "submit-message"
    messageId: str | None = None
    context: Annotated[msgspec.Raw, Meta(description="for the answerer, at most 16 KiB")] | UnsetType = UNSET


class ChatMessageView(Struct, frozen=True):
    """A message as `useChat` keeps it."""

    id: str
    role: Literal["user", "assistant"]
    parts: tuple[dict[str, Any], ...]


class ChatMessages(Struct, frozen=True):
    """The messages of a chat, oldest first; `more`: there are older ones, before the id `before`."""

    messages: tuple[ChatMessageView, ...]
    more: bool
    before: str | None


@dataclass(frozen=True, slots=True)
class ChatEndpoint:
    """A person's chats."""

    front: FrontEnd

    async def post(self, request: Request) -> Response:
        """Asks, or answers again, and streams the answer."""
        who = await self.front.identify(request)
        resets = Query(request).flag("reset", default=False)
        body = await read(request, ChatRequest)
        given = _asking(body) if body.trigger != "regenerate-message" else None
        with self.front.holding(who) as place:
            if given is None:
                question, fields = await self.front.ask_again(who, body.id, _named(body))
            else:
                question, fields = await self.front.ask(who, given, key=_key(body, given))
            return self.front.stream(question, who, ChatTeller(resets=resets), place, {**HEADERS, **fields})

    async def resume(self, request: Request) -> Response:
        """The answer that is running, from its beginning; 204 if none is."""
        who = await self.front.identify(request)
        resets = Query(request).flag("reset", default=False)
        chat = conversation_of(request)
        with self.front.holding(who) as place:
            # Also of a chat in which nothing was asked yet: `useChat` resumes whenever its page opens.
            found = await self.front.newest(who, chat)
            running = next((question for question in found if question.is_open), None)
            if running is None:
                return Response(status_code=204, headers=NO_CONTENT)
            return self.front.stream(running, who, ChatTeller(resets=resets), place, HEADERS)

    async def stop(self, request: Request) -> Response:
        """Stops what is running; the stream then says `abort`."""
        who = await self.front.identify(request)
        await self.front.stop(who, conversation_of(request))
        return Response(status_code=204, headers=NO_CONTENT)

    async def messages(self, request: Request) -> Response:
        """The chat's messages, without the answer that is running."""
        who = await self.front.identify(request)
        query, chat = Query(request), conversation_of(request)
        limit = query.number("limit", default=50, most=MOST_LISTED)
        older_than = before(query)
        found, more = await self.front.questions.whole_page(
            who.user, chat, limit=limit, before=older_than, most_characters=MOST_LISTED_CHARACTERS
        )
        if not found:
            await self.front.refuse_others(who, chat)
        listed: list[ChatMessageView] = []
        for question in found:
            listed += reversed(_views(question))
        oldest = found[-1].id if more and found else None
        return json_response(ChatMessages(tuple(reversed(listed)), more, oldest))


def _last(body: ChatRequest) -> tuple[ChatMessage, str]:
    """The message that is the question, and where it stands."""
    index = len(body.messages) - 1
    at = f"$.messages[{index}]"
    if index < 0:
        raise InvalidInput(Violation("$.messages", "is empty: the last message is the question"))
    if body.messages[index].role != "user":
        role = shown(body.messages[index].role)
        raise InvalidInput(
            Violation(f"{at}.role", f"isn't user: the last message is the question, got {role}")
        )
    return body.messages[index], at


def _asking(body: ChatRequest) -> Asking:
    message, at = _last(body)
    parts = raw_value(message.parts, at=f"{at}.parts")
    if not isinstance(parts, list):
        raise InvalidInput(Violation(f"{at}.parts", f"isn't a list of parts, got {shown(parts)}"))
    text = text_of(parts, at=f"{at}.parts")
    return asking(
        text, at=f"{at}.parts", conversation=body.id, conversation_at="$.id", context=context_of(body.context)
    )


def _key(body: ChatRequest, given: Asking) -> str | None:
    """One message is one question, however often it is sent; with another text it is another."""
    message, _ = _last(body)
    return key_of("chat", message.id, given.digest) if message.id else None


def _named(body: ChatRequest) -> NamedQuestion | None:
    """The question that is to be answered again; None: the newest.

    A user's message has an id of the page, or the one that the list of messages gives it; in the body it is
    the last one then.
    """
    if body.messageId is None:
        return None
    name = body.messageId.removesuffix(_QUESTION)
    try:
        given = _asking(body)
    except InvalidInput:
        return NamedQuestion(name)
    message, _ = _last(body)
    # Only of the message that is named: another one's question is not meant.
    return (
        NamedQuestion(name, _key(body, given), given.text)
        if message.id == body.messageId
        else NamedQuestion(name)
    )


def _views(question: Question) -> list[ChatMessageView]:
    views = []
    # Staff may send a message that answers no question.
    if question.text:
        asked: tuple[dict[str, Any], ...] = ({"type": "text", "text": question.text},)
        views.append(ChatMessageView(question.id + _QUESTION, "user", asked))
    if not question.has_ended:
        return views
    names = _PartNames()
    parts = [names.chunk(part) for part in (*question.parts, *rest_of(question, question.parts))]
    if question.answer:
        parts.insert(0, {"type": "text", "text": question.answer, "state": "done"})
    if parts:
        views.append(ChatMessageView(question.id, "assistant", tuple(parts)))
    return views


class _PartNames:
    """Names the parts of a message in their order: the same ones in every replay."""

    def __init__(self) -> None:
        self._said = 0

    def chunk(self, part: KeptPart) -> dict[str, Any]:
        """A part as a chunk of the stream, which is also how a message has it."""
        self._said += 1
        name = f"part-{self._said}"
        if isinstance(part, SourcePart):
            return {"type": "source-url", "sourceId": name, "url": part.url, "title": part.title}
        return {"type": f"data-{part.name}", "id": name, "data": part.data}


class ChatTeller:
    """Tells an answer in chunks of a UI message stream; `resets`: the client knows `reset-step`."""

    def __init__(self, *, resets: bool) -> None:
        self._resets = resets
        self._in_text = False
        self._part_names = _PartNames()
        self._said: list[KeptPart] = []

    def begun(self, question: Question) -> bytes:
        """`start`, with an id that stays the same whenever the answer is followed."""
        return event({"type": "start", "messageId": question.id}) + event({"type": "start-step"})

    def grown(self, text: str) -> bytes:
        """A piece of the one text."""
        start = b"" if self._in_text else event({"type": "text-start", "id": _TEXT})
        self._in_text = True
        return start + event({"type": "text-delta", "id": _TEXT, "delta": text})

    def parted(self, part: Part) -> bytes:
        """A source, data, or a status, which `onData` hears and the message doesn't keep."""
        if isinstance(part, StatusPart):
            return event({"type": "data-status", "data": {"text": part.text}, "transient": True})
        self._said.append(part)
        return event(self._part_names.chunk(part))

    def restarted(self) -> bytes | None:
        """The step is emptied, where the client knows that."""
        if not self._resets:
            return None
        self._in_text, self._part_names, self._said = False, _PartNames(), []
        return event({"type": "reset-step"})

    def ended(self, question: Question) -> bytes:
        """`finish`, `abort` or `error`."""
        if question.status == "cancelled":
            return self._text_end() + event({"type": "abort"}) + DONE
        if question.status == "handed_over":
            told = event({"type": "data-handover", "id": "handover", "data": {"question": question.id}})
            return self._text_end() + told + _FINISH
        if question.status != "answered":
            return _error(f"{question.error_code}: {question.error_detail}")
        rest = b"".join(self.parted(part) for part in rest_of(question, self._said))
        return self._text_end() + rest + _FINISH

    def interrupted(self, code: str, detail: str) -> bytes:
        """An error that begins with `interrupted:` where a resume is what helps."""
        return _error(f"interrupted: {detail}" if code in RESUMABLE else f"{code}: {detail}")

    def _text_end(self) -> bytes:
        return event({"type": "text-end", "id": _TEXT}) if self._in_text else b""


def _error(text: str) -> bytes:
    return event({"type": "error", "errorText": text}) + DONE
