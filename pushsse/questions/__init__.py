"""A question as a value, the statuses that it goes through, how it can end, and what it says to the log.

Shared by the service, its answerers and the endpoints; `store` makes it out of a row. `life` makes drafts of
its events at each step, and of those for the staff; `following` makes the same events for whoever follows a
question. An event has a frame's room, so a long text is cut in it, and `truncated` says so.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType, structs

from pushsse import strictjson
from pushsse.backplane import Draft
from pushsse.errors import InvalidInput, PushsseError
from pushsse.event import Publication, encode

Status = Literal["pending", "answering", "handed_over", "answered", "failed", "cancelled", "expired"]
# An answerer is at it. A question that is handed over is neither open nor has it ended: people answer it.
OPEN: tuple[Status, ...] = ("pending", "answering")
ENDED: tuple[Status, ...] = ("answered", "failed", "cancelled", "expired")
Rating = Literal["up", "down"]
MAX_ANSWER_CHARACTERS = 200_000
# Of one answer, which keeps no more.
MAX_PARTS = 50


class Link(Struct, frozen=True):
    """Where to read on."""

    title: str
    url: str


class By(Struct, frozen=True):
    """Who answered."""

    kind: Literal["bot", "staff"]
    name: str


class StatusPart(Struct, frozen=True, tag="status"):
    """What is being done for the answer, shown until the next text or part comes. It isn't kept."""

    text: str


class SourcePart(Struct, frozen=True, tag="source"):
    """Where a part of the answer comes from."""

    title: str
    url: str


class DataPart(Struct, frozen=True, tag="data"):
    """A JSON value for the page, by name."""

    name: str
    data: Any


# What pages, and the front ends' protocols, are told of an answer that isn't what it should be: its model had
# come to its limit of tokens, or says why it doesn't answer.
CUT_SHORT = DataPart("ending", {"reason": "length"})
DECLINED = DataPart("ending", {"reason": "refusal"})
Part = StatusPart | SourcePart | DataPart
KeptPart = SourcePart | DataPart


class Turn(Struct, frozen=True):
    """An earlier question of the same conversation, with its answer; a message of staff has no question."""

    question: str
    answer: str


class Question(Struct, frozen=True, kw_only=True):
    """One question with its answer so far; `seq` counts the deltas that the answer has grown by.

    `cut`: a list left the parts out, and the end of a long answer.
    `sent_off`: while it is being answered, the answer comes from elsewhere. `piece` is the number of the last
    piece of such an answer, 0 where none has come, and `piece_attempt` the attempt that its pieces name, 0
    where they name none.
    `turns` are the last turns of its conversation, oldest first; only answerers get them. `attempt` counts
    those who took it to answer it, `first_attempt` is the first since it was last asked anew, and
    `regenerations` says how often that was. A message that staff sent by themselves is the answer to a
    question without text.
    """

    id: str
    user: str
    conversation: str
    text: str
    status: Status
    asked_at: datetime
    updated_at: datetime
    deadline_at: datetime
    attempt: int = 1
    context: dict[str, object] | None = None
    answer: str = ""
    seq: int = 0
    piece: int = 0
    piece_attempt: int = 0
    sent_off: bool = False
    by: By | None = None
    links: tuple[Link, ...] = ()
    suggestions: tuple[str, ...] = ()
    parts: tuple[KeptPart, ...] = ()
    usage: dict[str, int] | None = None
    turns: tuple[Turn, ...] = ()
    error_code: str = ""
    error_detail: str = ""
    regenerations: int = 0
    first_attempt: int = 1
    rating: Rating | None = None
    rating_comment: str = ""
    cut: bool = False

    @property
    def is_open(self) -> bool:
        """Whether an answerer's answer may still come; not where people have taken it over."""
        return self.status in OPEN

    @property
    def has_ended(self) -> bool:
        """Whether there is an answer, or none will come."""
        return self.status in ENDED

    def grown_by(self, attempt: int) -> "Question":
        """The question as pieces that name this attempt let it grow: anew, if it is a later one.

        Whoever answers over again then is another attempt for those who follow the answer, too.
        """
        if attempt <= self.piece_attempt:
            return self
        if not self.piece:
            return structs.replace(self, piece_attempt=attempt)
        return structs.replace(
            self, attempt=self.attempt + 1, answer="", seq=0, parts=(), piece=0, piece_attempt=attempt
        )

    @property
    def ids(self) -> Mapping[str, object]:
        """What lines of the log about it carry."""
        return {"question": self.id, "user": self.user}


class EarlierAnswer(Struct, frozen=True, kw_only=True):
    """What became of a question before it was asked anew; the first such has number 1."""

    number: int
    status: Status
    ended_at: datetime
    answer: str = ""
    by: By | None = None
    links: tuple[Link, ...] = ()
    suggestions: tuple[str, ...] = ()
    parts: tuple[KeptPart, ...] = ()
    error_code: str = ""
    error_detail: str = ""
    rating: Rating | None = None
    rating_comment: str = ""


class Conversation(Struct, frozen=True, kw_only=True):
    """Questions of one person that belong together; `newest` is the id of the newest one.

    It is handed over, to people, until it is released, at `keep_until` at the latest. `waiting` is how many
    of its questions wait for people.
    """

    id: str
    user: str
    title: str
    newest: str
    created_at: datetime
    is_handed_over: bool = False
    handed_over_at: datetime | None = None
    handed_over_by: str = ""
    reason: str = ""
    keep_until: datetime | None = None
    waiting: int = 0


class Answered(Struct, frozen=True):
    """The end of a question that has an answer; `text` None means what it has grown to.

    `usage` is what a model counted, such as tokens, by its own names.
    """

    by: By
    text: str | None = None
    links: tuple[Link, ...] = ()
    suggestions: tuple[str, ...] = ()
    parts: tuple[KeptPart, ...] = ()
    usage: dict[str, int] | None = None


class Unanswered(Struct, frozen=True):
    """The end of a question that has none."""

    status: Literal["failed", "cancelled", "expired"]
    code: str
    detail: str


Ending = Answered | Unanswered
EXPIRED = Unanswered("expired", "expired", "no answer came in time")
STALLED = Unanswered("expired", "stalled", "the answer stopped growing before its end")
ENDLESS = Unanswered("expired", "endless", "the answer came to no end in the time that one may take")
UNAVAILABLE = Unanswered("failed", "answerer_unavailable", "whoever answers can't be reached")
CANCELLED = Unanswered("cancelled", "cancelled", "the question was cancelled")
GIVEN_UP = Unanswered("failed", "gave_up", "answering was begun several times and never came to an end")
NOBODY = Unanswered("failed", "no_answer", "people would have to answer, and nobody does here")
RELEASED = Unanswered("failed", "released", "people have closed the conversation without an answer to this")
TOO_LONG = Unanswered("failed", "too_long", f"the answer has more than {MAX_ANSWER_CHARACTERS} characters")
# Not in an Ending: what whoever answers is told where people have taken the question over.
HANDED_OVER = "handed_over"
# Ends that whoever answers doesn't know of: it is told to stop. Any other it has said itself.
STOPS = frozenset(
    each.code for each in (EXPIRED, STALLED, ENDLESS, UNAVAILABLE, CANCELLED, GIVEN_UP, TOO_LONG)
)


class TooManyQuestions(PushsseError):
    """This person has as many questions without an end as one may have. HTTP 429."""


class NobodyAnswers(PushsseError):
    """Neither an answerer nor people are set up to answer questions. HTTP 503."""


class UnknownConversation(PushsseError):
    """The conversation is somebody else's, which the asker isn't told. HTTP 404."""


class BeingTaken(PushsseError):
    """The same question is being taken just now, by another request with its key. HTTP 409."""

    def __init__(self, after_s: int) -> None:
        super().__init__("a request with the same Idempotency-Key is being served")
        self.after_s = after_s


class NotNow(PushsseError):
    """The question or the conversation is in a state in which this can't be done. HTTP 409."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


class Lost(PushsseError):
    """The question has ended, or another node has taken it over: whoever is answering it has to stop."""


def clean(text: str) -> str:
    """What PostgreSQL and UTF-8 can hold: NUL and lone surrogates become U+FFFD."""
    return text.replace("\x00", "\ufffd").encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


_MOST_STATUS = _MOST_TITLE = 200
_MOST_URL = 2_000
_MOST_DATA_BYTES = 16 * 1024
_DATA_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_NO_URL = re.compile(r"[\s\x00-\x1f\x7f]")


def fit(part: Part) -> bytes | str:
    """A part as JSON, or why it can't be in an answer."""
    if why := _unfit(part):
        return why
    try:
        encoded = msgspec.json.encode(part)
        # What passes here is sent to pages and stored: no NUL, no lone surrogate, no depth over 64.
        strictjson.loads(encoded)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        return f"it can't be written as JSON: {error}"
    except InvalidInput as error:
        return str(error)
    if isinstance(part, DataPart) and len(encoded) > _MOST_DATA_BYTES:
        return f"data {part.name!r} has {len(encoded)} bytes as JSON, over {_MOST_DATA_BYTES}"
    return encoded


def _unfit(part: Part) -> str:
    """What of a part's members breaks a rule; empty for nothing."""
    if isinstance(part, StatusPart):
        return "" if len(part.text) <= _MOST_STATUS else f"its status has over {_MOST_STATUS} characters"
    if isinstance(part, DataPart):
        return "" if _DATA_NAME.fullmatch(part.name) else "the name of data isn't [A-Za-z0-9_-]{1,64}"
    if len(part.title) > _MOST_TITLE:
        return f"the title of its source has over {_MOST_TITLE} characters"
    return (
        ""
        if is_url(part.url)
        else f"the URL of its source isn't http, https or relative, or over {_MOST_URL}"
    )


def is_url(url: str) -> bool:
    """Whether a page may link to it: http, https or relative, without blanks, at most 2,000 characters."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    if not url or len(url) > _MOST_URL or _NO_URL.search(url):
        return False
    return parts.scheme in ("http", "https") if parts.scheme or parts.netloc else True


# What staff get beside the streams' own events. Producers may not use the name.
DESK = "pushsse.desk"
MAX_TEXT_BYTES = 32 * 1024
# JSON may write one byte as six; the frame's 48 KiB hold this, links, suggestions and the rest.
_MAX_ENCODED_BYTES = 38 * 1024
_MAX_EXTRAS_BYTES = 4 * 1024
_MAX_PARTS_BYTES = 20 * 1024
# Of an event without its text and the names that people choose.
_REST_BYTES = 200
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


def drafts_of(question: Question) -> tuple[Draft, ...]:
    """What the log gets when a question has come to its present status: that, and the end if it is one."""
    name = once_of(question)
    changed = Draft(status_event(question), once=f"{name}:{question.status}")
    if not question.has_ended:
        return (changed,)
    return changed, Draft(end_event(question), once=f"{name}:end")


def asked_size(text: str, *, user: str, conversation: str | None) -> int:
    """About the bytes of the `question` events that every question leaves: two at once, one at its end."""
    return 3 * (len(_json.encode((text, user, conversation))) + _REST_BYTES)


def said_size(text: str, links: tuple[Link, ...], *, name: str, user: str, conversation: str) -> int:
    """About the bytes of what staff say under a name to a person: a `question` and an `answer`."""
    return len(_json.encode((text, links, name, user, user, conversation))) + 2 * _REST_BYTES


def late_size(question: Question, told: Sequence[Draft]) -> int:
    """The bytes of its events that weren't known when it was asked; none of what staff paid for."""
    if question.by is not None and question.by.kind == "staff":
        return 0
    is_more = question.status == "handed_over"
    sizes = (draft.publication.size for draft in told if is_more or draft.publication.name != "question")
    return sum(sizes)


def status_event(question: Question) -> Publication:
    """The `question` event."""
    data = QuestionEvent(question.id, question.conversation, question.text, question.status)
    return encode("question", data, users=(question.user,), subject=question.id)


def end_event(question: Question) -> Publication:
    """The `answer` or `answer.error` of a question that has ended."""
    data: AnswerEvent | AnswerErrorEvent
    name: Literal["answer", "answer.error"]
    if question.status == "answered":
        links, suggestions = _first(question.links), _first(question.suggestions)
        parts = _first(question.parts, most=MAX_PARTS, most_bytes=_MAX_PARTS_BYTES)
        # What the parts have beyond the room of few is taken from the text.
        text = _cut(question.answer, room=_MAX_ENCODED_BYTES - (len(_json.encode(parts)) if parts else 0))
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


def _cut(text: str, *, room: int = _MAX_ENCODED_BYTES) -> str:
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
