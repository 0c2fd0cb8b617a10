"""What a question says to the log: its events, and those for the staff.

`life` makes drafts of them at each step; `following` makes the same events for whoever follows a question.
An event has a frame's room, so a long text is cut in it, and `truncated` says so.
"""

from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from pushsse.backplane import Draft
from pushsse.event import Publication, encode
from pushsse.questions import By, KeptPart, Link, Part, Question, Status
from pushsse.questions.pieces import MAX_PARTS

# What staff get beside the streams' own events. Producers may not use the name.
DESK = "pushsse.desk"
MAX_TEXT_BYTES = 32 * 1024
# JSON may write one byte as six; the frame's 48 KiB hold this, links, suggestions and the rest.
_MAX_ENCODED_BYTES = 38 * 1024
_MAX_EXTRAS_BYTES = 4 * 1024
_MAX_PARTS_BYTES = 20 * 1024
_json = msgspec.json.Encoder()
T = TypeVar("T")


class QuestionEvent(Struct, frozen=True):
    """`question`: asked, and at each change of status."""

    id: str
    conversation: str
    text: str
    status: Status


class DeltaEvent(Struct, frozen=True, rename={"start": "from"}):
    """`answer.delta`: the answer from `from` on is this text. A client does text = text[:from] + delta.

    `from` is in UTF-16 code units: where what was sent before ends, or 0 where another attempt begins. `seq`
    counts from 1 within an attempt. With `part` the text is empty.
    """

    question: str
    seq: int
    start: int
    text: str
    part: Part | UnsetType = UNSET


class AnswerEvent(Struct, frozen=True):
    """`answer`: the whole text and the parts that are kept; with `truncated` what a frame has room for."""

    question: str
    text: str
    by: By
    links: tuple[Link, ...]
    suggestions: tuple[str, ...]
    truncated: Annotated[bool, Meta(description="GET /v1/questions/ID has all of it")]
    parts: tuple[KeptPart, ...] = ()


class AnswerErrorEvent(Struct, frozen=True):
    """`answer.error`: no answer will come."""

    question: str
    code: str
    detail: str


class DeskEvent(Struct, frozen=True):
    """`pushsse.desk`, to staff: something happened in a conversation that people have taken over.

    `question` is null where it isn't about one question. Deliberate: no text, and nobody's name. Streams ask
    for no scope of staff, and the log keeps the event when the person is forgotten; the calls have the rest.
    """

    conversation: str
    status: Literal["waiting", "answered", "released"]
    question: str | None


def drafts(question: Question) -> tuple[Draft, ...]:
    """What the log gets when a question has come to its present status: that, and the end if it is one."""
    name = once_of(question)
    changed = Draft(status_changed(question), once=f"{name}:{question.status}")
    if not question.has_ended:
        return (changed,)
    return changed, Draft(ended(question), once=f"{name}:end")


def status_changed(question: Question) -> Publication:
    """The `question` event."""
    data = QuestionEvent(question.id, question.conversation, question.text, question.status)
    return encode("question", data, users=(question.user,), subject=question.id)


def ended(question: Question) -> Publication:
    """The `answer` or `answer.error` of a question that has ended."""
    data: AnswerEvent | AnswerErrorEvent
    name: Literal["answer", "answer.error"]
    if question.status == "answered":
        links, suggestions = _first(question.links), _first(question.suggestions)
        parts = _first(question.parts, most=MAX_PARTS, most_bytes=_MAX_PARTS_BYTES)
        # What the parts have beyond the room of few is taken from the text.
        text = cut(question.answer, room=_MAX_ENCODED_BYTES - (len(_json.encode(parts)) if parts else 0))
        by = question.by or By("bot", "")
        truncated = (text, parts) != (question.answer, question.parts)
        data = AnswerEvent(question.id, text, by, links, suggestions, truncated, parts)
        name = "answer"
    else:
        data = AnswerErrorEvent(question.id, question.error_code, question.error_detail[:1000])
        name = "answer.error"
    # So that a late one ends no answer that has begun since.
    made = encode(name, data, users=(question.user,), subject=question.id)
    return msgspec.structs.replace(made, attempt=question.attempt)


def cut(text: str, *, room: int = _MAX_ENCODED_BYTES) -> str:
    """The beginning of a text, within 32 KiB of UTF-8 and so many bytes of JSON; no character is split."""
    text = text.encode()[:MAX_TEXT_BYTES].decode(errors="ignore")
    while (encoded := len(_json.encode(text))) > room:
        text = text[: min(len(text) - 1, len(text) * room // encoded)]
    return text


def once_of(question: Question) -> str:
    """What `once` begins with: another one each time that the question is asked anew."""
    again = f":{question.regenerations}" if question.regenerations else ""
    return f"question:{question.id}{again}"


def _first(values: tuple[T, ...], *, most: int = 20, most_bytes: int = _MAX_EXTRAS_BYTES) -> tuple[T, ...]:
    room, count = most_bytes, 0
    for value in values[:most]:
        room -= len(_json.encode(value)) + 1
        if room < 0:
            break
        count += 1
    return values[:count]
