"""Questions and answers as publications for the person's log and streams.

Called by `life` and, for who joins in the middle, by the service; hands to the backplane. Deliberate: `from`
counts UTF-16 code units, so that browsers, Java and Swift cut with what they have.
"""

from collections.abc import Iterator
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from pushsse.backplane import Draft
from pushsse.event import Publication, encode
from pushsse.questions.question import OPEN, By, Link, Question, Status, units

MAX_TEXT_BYTES = 32 * 1024
# JSON may write one byte as six; the frame's 48 KiB hold this, links, suggestions and the rest.
_MAX_ENCODED_BYTES = 38 * 1024
_MAX_EXTRAS_BYTES = 4 * 1024
_DELTA_CHARACTERS = 6_000
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

    `from` is in UTF-16 code units, never beyond what was sent before, and may reach back into it.
    """

    question: str
    seq: int
    start: int
    text: str


class AnswerEvent(Struct, frozen=True):
    """`answer`: the whole text, or, with `truncated`, its first 32 KiB."""

    question: str
    text: str
    by: By
    links: tuple[Link, ...]
    suggestions: tuple[str, ...]
    truncated: Annotated[bool, Meta(description="GET /v1/questions/ID has all of it")]


class AnswerErrorEvent(Struct, frozen=True):
    """`answer.error`: no answer will come."""

    question: str
    code: str
    detail: str


def status_changed(question: Question) -> Publication:
    """The `question` event."""
    data = QuestionEvent(question.id, question.conversation, question.text, question.status)
    return encode("question", data, users=(question.user,), subject=question.id)


def ended(question: Question) -> Publication:
    """The `answer` or `answer.error` of a question that has ended."""
    data: AnswerEvent | AnswerErrorEvent
    name: Literal["answer", "answer.error"]
    if question.status == "answered":
        text = cut(question.answer)
        links, suggestions = _bounded(question.links), _bounded(question.suggestions)
        by = question.by or By("bot", "")
        data = AnswerEvent(question.id, text, by, links, suggestions, len(text) < len(question.answer))
        name = "answer"
    else:
        data = AnswerErrorEvent(question.id, question.error_code, question.error_detail[:1000])
        name = "answer.error"
    return encode(name, data, users=(question.user,), subject=question.id)


def drafts(question: Question) -> tuple[Draft, ...]:
    """What the log gets when a question has come to its present status: that, and the end if it is one."""
    changed = Draft(status_changed(question), once=f"question:{question.id}:{question.status}")
    if question.status in OPEN:
        return (changed,)
    return changed, Draft(ended(question), once=f"question:{question.id}:end")


def deltas(question: Question, text: str, *, start: int, seq: int) -> Iterator[Publication]:
    """`answer.delta` for a text that begins at `start`; a long one in several, `seq` counting up."""
    for at in range(0, len(text), _DELTA_CHARACTERS):
        piece = text[at : at + _DELTA_CHARACTERS]
        data = DeltaEvent(question.id, seq, start, piece)
        yield encode("answer.delta", data, users=(question.user,), subject=question.id)
        start += units(piece)
        seq += 1


def pieces(text: str) -> int:
    """How many deltas a text takes."""
    return -(-len(text) // _DELTA_CHARACTERS)


def cut(text: str) -> str:
    """The beginning of a text, within 32 KiB of UTF-8 and a frame's room; no character is split."""
    text = text.encode()[:MAX_TEXT_BYTES].decode(errors="ignore")
    while (encoded := len(_json.encode(text))) > _MAX_ENCODED_BYTES:
        text = text[: min(len(text) - 1, len(text) * _MAX_ENCODED_BYTES // encoded)]
    return text


def _bounded(values: tuple[T, ...]) -> tuple[T, ...]:
    kept = values[:20]
    while kept and len(_json.encode(kept)) > _MAX_EXTRAS_BYTES:
        kept = kept[:-1]
    return kept
