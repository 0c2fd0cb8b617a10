"""A question as a value, the statuses that it goes through, and how it can end.

Shared by the service, its answerers and the endpoints; `store` makes it out of a row.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from msgspec import Struct

from pushsse.errors import PushsseError

Status = Literal["pending", "answering", "answered", "failed", "cancelled", "expired"]
OPEN: tuple[Status, ...] = ("pending", "answering")
MAX_ANSWER_CHARACTERS = 200_000


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


Part = StatusPart | SourcePart | DataPart
KeptPart = SourcePart | DataPart


class Turn(Struct, frozen=True):
    """An earlier question of the same conversation, with its answer."""

    question: str
    answer: str


class Question(Struct, frozen=True, kw_only=True):
    """One question with its answer so far; `seq` counts the pieces that the answer has grown by.

    `turns` are the last turns of its conversation, oldest first; only answerers get them.
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
    by: By | None = None
    links: tuple[Link, ...] = ()
    suggestions: tuple[str, ...] = ()
    parts: tuple[KeptPart, ...] = ()
    usage: dict[str, int] | None = None
    turns: tuple[Turn, ...] = ()
    error_code: str = ""
    error_detail: str = ""

    @property
    def is_open(self) -> bool:
        """Whether an answer may still come."""
        return self.status in OPEN

    @property
    def ids(self) -> Mapping[str, object]:
        """What lines of the log about it carry."""
        return {"question": self.id, "user": self.user}


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
CANCELLED = Unanswered("cancelled", "cancelled", "the question was cancelled")
GIVEN_UP = Unanswered("failed", "gave_up", "answering was begun several times and never came to an end")
TOO_LONG = Unanswered("failed", "too_long", f"the answer has more than {MAX_ANSWER_CHARACTERS} characters")


class TooManyQuestions(PushsseError):
    """This person has as many open questions as one may have. HTTP 429."""


class UnknownConversation(PushsseError):
    """The conversation is somebody else's, which the asker isn't told. HTTP 404."""


class Lost(PushsseError):
    """The question has ended, or another node has taken it over: whoever is answering it has to stop."""


def clean(text: str) -> str:
    """What PostgreSQL and UTF-8 can hold: NUL and lone surrogates become U+FFFD."""
    return text.replace("\x00", "\ufffd").encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def units(text: str) -> int:
    """Length in UTF-16 code units, as JavaScript, Java and NSString count and cut."""
    return len(text) if text.isascii() else len(text.encode("utf-16-le")) // 2
