"""`/v1/agui`: questions as AG-UI asks them (`HttpAgent`, CopilotKit).

A thread is a conversation; a run is a question, and a run that is sent again is followed from its beginning.
The answer's message has the id of its question. Deliberate: what the client has of it already, from a stream
that broke or an attempt that became void, goes by a snapshot of the messages that the client has sent.
"""

from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from pushsse.api import ProblemResponse, read_body
from pushsse.api.front_ends import (
    MAX_CHAT_BODY,
    NO_CONTENT,
    FrontEnd,
    asking,
    conversation_of,
    event,
    key_of,
    raw_value,
    rest_of,
    retold,
    text_of,
)
from pushsse.errors import InvalidInput, Violation
from pushsse.questions import DataPart, KeptPart, Part, Question, StatusPart
from pushsse.strictjson import BOM, peek, refuse


class RunMessage(Struct, frozen=True, gc=False):
    """A message of a thread; only the user's last one is read."""

    role: str
    id: str = ""
    content: msgspec.Raw | UnsetType = UNSET


class RunRequest(Struct, frozen=True, rename="camel"):
    """AG-UI's RunAgentInput. `state`, `tools`, `context` and `forwardedProps` are passed over."""

    thread_id: Annotated[str, Meta(description="the thread, whose id is that of the conversation")]
    run_id: Annotated[str, Meta(min_length=1, max_length=256)]
    messages: list[RunMessage]


class RunError(Struct, frozen=True, tag="RUN_ERROR", tag_field="type"):
    """The event RUN_ERROR, which is also how a run is refused."""

    message: str
    code: str


class _Messages(Struct, frozen=True):
    messages: list[msgspec.Raw]


class _Name(Struct, frozen=True, gc=False):
    id: str = ""


class _Names(Struct, frozen=True):
    messages: list[_Name]


@dataclass(frozen=True, slots=True)
class AguiEndpoint:
    """A person's threads."""

    front: FrontEnd

    async def post(self, request: Request) -> Response:
        """Runs: asks, or follows the run that has this id already."""
        who = await self.front.identify(request)
        given = (await read_body(request, MAX_CHAT_BODY)).removeprefix(BOM)
        body = peek(given, RunRequest)
        try:
            # What isn't read may be sent back.
            given.decode()
        except UnicodeDecodeError as error:
            refuse(given, error)
        message, at = _question(body)
        text = text_of(raw_value(message.content, at=at), at=at)
        wanted = asking(text, at=at, conversation=body.thread_id, conversation_at="$.threadId")
        key = key_of("agui", body.thread_id, body.run_id, text)
        with self.front.holding(who) as place:
            question, fields = await self.front.ask(who, wanted, key=key)
            return self.front.stream(question, who, AguiTeller(given, body), place, fields)

    async def stop(self, request: Request) -> Response:
        """Stops what runs in a thread; its stream then ends with RUN_FINISHED."""
        who = await self.front.identify(request)
        await self.front.stop(who, conversation_of(request))
        return Response(status_code=204, headers=NO_CONTENT)


def told(problem: ProblemResponse) -> Response:
    """A refusal as `HttpAgent` reads it: its error's `payload` is this event."""
    where = "; ".join(f"{violation.at}: {violation.detail}" for violation in problem.violations)
    error = RunError(where or problem.detail, problem.code)
    return retold(problem, error)


def _question(body: RunRequest) -> tuple[RunMessage, str]:
    """The user's last message, and where its content stands. Later ones are what a broken stream left."""
    for index in range(len(body.messages) - 1, -1, -1):
        message = body.messages[index]
        if message.role == "tool":
            raise InvalidInput(Violation(f"$.messages[{index}]", "isn't taken: there are no tools here"))
        if message.role == "user":
            return message, f"$.messages[{index}].content"
    raise InvalidInput(Violation("$.messages", "has no message of the user's"))


class AguiTeller:
    """Tells an answer in AG-UI's events, to the client that has sent `body`.

    It holds the body alone for as long as the answer takes: as objects the messages may be ten times as much.
    """

    def __init__(self, body: bytes, run: RunRequest) -> None:
        self._body = body
        self._names = {"threadId": run.thread_id, "runId": run.run_id}
        self._message = ""
        self._in_text = False
        self._said: list[KeptPart] = []

    def begun(self, question: Question) -> bytes:
        """RUN_STARTED, and which question it is."""
        self._message = question.id
        names = {"id": question.id, "conversation": question.conversation}
        has_some = question.id.encode() in self._body and any(name.id == question.id for name in self._sent())
        snapshot = self._snapshot() if has_some else b""
        return self._event("RUN_STARTED", **self._names) + _custom("question", names) + snapshot

    def grown(self, text: str) -> bytes:
        """A piece of the one message."""
        start = b""
        if not self._in_text:
            self._in_text = True
            start = self._event("TEXT_MESSAGE_START", messageId=self._message, role="assistant")
        return start + self._event("TEXT_MESSAGE_CONTENT", messageId=self._message, delta=text)

    def parted(self, part: Part) -> bytes:
        """A custom event with the name of its kind."""
        if isinstance(part, StatusPart):
            return _custom("status", {"text": part.text})
        self._said.append(part)
        if isinstance(part, DataPart):
            return _custom("data", {"name": part.name, "data": part.data})
        return _custom("source", {"title": part.title, "url": part.url})

    def restarted(self) -> bytes:
        """The messages as they were before the answer, and a word for those who keep the custom events."""
        end, self._said = self._text_end(), []
        return end + self._snapshot() + _custom("restarted", {"id": self._message})

    def ended(self, question: Question) -> bytes:
        """RUN_FINISHED, whose result says how; RUN_ERROR where there is no answer."""
        if question.status not in ("answered", "cancelled", "handed_over"):
            return self._text_end() + event(RunError(question.error_detail, question.error_code))
        rest = b"".join(self.parted(part) for part in rest_of(question, self._said))
        if question.status == "handed_over":
            rest += _custom("handover", {"id": question.id})
        result = {"question": question.id, "status": question.status}
        return self._text_end() + rest + self._event("RUN_FINISHED", **self._names, result=result)

    def interrupted(self, code: str, detail: str) -> bytes:
        """RUN_ERROR; the same run may be sent again."""
        return self._text_end() + event(RunError(detail, code))

    def _event(self, kind: str, **members: object) -> bytes:
        return event({"type": kind, **members})

    def _text_end(self) -> bytes:
        if not self._in_text:
            return b""
        self._in_text = False
        return self._event("TEXT_MESSAGE_END", messageId=self._message)

    def _snapshot(self) -> bytes:
        whole = msgspec.json.decode(self._body, type=_Messages).messages
        others = [raw for raw, name in zip(whole, self._sent(), strict=True) if name.id != self._message]
        return self._event("MESSAGES_SNAPSHOT", messages=others)

    def _sent(self) -> list[_Name]:
        return msgspec.json.decode(self._body, type=_Names).messages


def _custom(name: str, value: object) -> bytes:
    return event({"type": "CUSTOM", "name": name, "value": value})
