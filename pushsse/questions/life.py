"""The steps of a question's life: each is written by the store, then appended to the person's log.

Called by the service, the sweeper and answerers whose answers come from elsewhere; hands to the backplane.
A step whose events didn't get into the log is told again by some node's sweeper: `once` keeps it from being
there twice.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, TypeVar

import msgspec
from msgspec import Meta, Struct

from pushsse.backplane import Backplane, Draft
from pushsse.errors import BackplaneUnavailable, DatabaseUnavailable
from pushsse.event import Publication, encode
from pushsse.metrics import Metrics
from pushsse.questions.question import (
    MAX_ANSWER_CHARACTERS,
    OPEN,
    TOO_LONG,
    Answered,
    By,
    Ending,
    Link,
    Lost,
    Question,
    Status,
    clean,
    units,
)
from pushsse.questions.store import Store

log = logging.getLogger(__name__)
_PUBLISH_S = 5.0


@dataclass(frozen=True, slots=True)
class Pace:
    """How often things happen, in seconds.

    A delta at most every `gather_s`; the answer so far stored every `store_s`; who holds a question renews
    its lease of `lease_s` every `sweep_s`; what isn't in the log after `announce_s` is told by who sweeps.
    """

    gather_s: float = 0.05
    store_s: float = 0.5
    sweep_s: float = 2.0
    lease_s: float = 15.0
    announce_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Life:
    """Writes what happens to questions, and tells their people."""

    store: Store
    backplane: Backplane
    metrics: Metrics
    pace: Pace

    async def begin(self, question: Question) -> Question:
        """pending → answering; one taken over in the middle is that already. Raises Lost."""
        if question.status == "answering":
            return question
        if not await self.store.begin(question.id, question.attempt, announce_s=self.pace.announce_s):
            raise Lost(question.id)
        question = msgspec.structs.replace(question, status="answering")
        await self.announce(question)
        return question

    async def end(self, question_id: str, ending: Ending, *, attempt: int | None = None) -> bool:
        """Ends an open question and tells its person; False if somebody else has ended or taken it."""
        if isinstance(ending, Answered):
            ending = _fitting(ending)
        if not await self.store.end(question_id, ending, attempt=attempt, announce_s=self.pace.announce_s):
            return False
        question = await self.store.one(question_id)
        if question is not None:
            self.metrics.questions[question.status] += 1
            await self.announce(question)
        return True

    async def announce(self, question: Question) -> bool:
        """Appends what a question has come to to its person's log. False: a sweeper will do it later."""
        try:
            async with _in_time():
                await self.backplane.publish_to(question.user, drafts(question))
            await self.store.announced(question)
        except (BackplaneUnavailable, DatabaseUnavailable) as error:
            log.warning("question %s: %s isn't told yet: %s", question.id, question.status, error)
            return False
        return True

    async def live(self, user: str, publication: Publication) -> None:
        """Lets the person's open streams hear a delta. Raises BackplaneUnavailable."""
        async with _in_time():
            await self.backplane.publish_live(user, publication)

    async def find(self, question_id: str) -> Question | None:
        """A question by its id. Raises DatabaseUnavailable."""
        return await self.store.one(question_id)

    async def add(self, question: Question, text: str, seq: int) -> bool:
        """Makes an answer that comes from elsewhere grow by a text, up to the piece numbered `seq`.

        False if the question has ended or has grown otherwise since it was read. Raises DatabaseUnavailable.
        """
        text = clean(text)
        whole = question.answer + text
        if len(whole) > MAX_ANSWER_CHARACTERS:
            return await self.end(question.id, TOO_LONG)
        if not await self.store.grow(question, whole, seq, after=question.seq):
            return False
        try:
            # Stored before it is told, so whoever joins after that finds it stored.
            for delta in deltas(question, text, start=units(question.answer), seq=seq):
                await self.live(question.user, delta)
        except BackplaneUnavailable as error:
            log.warning("question %s: a delta wasn't heard: %s", question.id, error)
        return True


@asynccontextmanager
async def _in_time() -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(_PUBLISH_S):
            yield
    except TimeoutError:
        raise BackplaneUnavailable(f"no answer within {_PUBLISH_S} s") from None


def _fitting(ending: Answered) -> Ending:
    if ending.text is None:
        return ending
    if len(ending.text) > MAX_ANSWER_CHARACTERS:
        return TOO_LONG
    return msgspec.structs.replace(ending, text=clean(ending.text))


class _Place(NamedTuple):
    """A place in the text, in characters and in UTF-16 code units."""

    characters: int = 0
    units: int = 0


class Growing:
    """The text so far, how much of it was told, and how much is stored."""

    def __init__(self, life: Life, question: Question) -> None:
        self.text = ""
        self._life = life
        self._question = question
        self._seq = question.seq
        self._told = _Place()
        self._stored = _Place()
        self._next_store = time.monotonic() + life.pace.store_s
        self._more = asyncio.Event()

    @property
    def too_long(self) -> bool:
        """Whether the answer is over its bound."""
        return len(self.text) > MAX_ANSWER_CHARACTERS

    def add(self, text: str) -> None:
        """A piece more."""
        if text := clean(text):
            self.text += text
            self._more.set()

    async def run(self) -> None:
        """Tells and stores what is there, for ever. Raises Lost when somebody else has the question."""
        while True:
            await self._something()
            self._more.clear()
            await self._tell()
            if time.monotonic() >= self._next_store and self._stored.characters < len(self.text):
                await self._store()
            await asyncio.sleep(self._life.pace.gather_s)

    async def finish(self) -> None:
        """Tells the rest; storing it is the end's."""
        await self._tell()

    async def _something(self) -> None:
        unstored = self._stored.characters < len(self.text)
        wait_s = max(0.0, self._next_store - time.monotonic()) if unstored else None
        try:
            async with asyncio.timeout(wait_s):
                await self._more.wait()
        except TimeoutError:
            pass

    async def _tell(self, *, since: _Place | None = None) -> None:
        if since is None and self._told.characters == len(self.text):
            return
        start = self._stored if since is None else since
        text = self.text[start.characters :]
        unheard = deltas(self._question, text, start=start.units, seq=self._seq + 1)
        try:
            for delta in unheard:
                self._seq += 1
                await self._life.live(self._question.user, delta)
        except BackplaneUnavailable as error:
            # Nothing is lost: the next delta begins where the last one that was heard ended.
            log.warning("question %s: a delta wasn't heard: %s", self._question.id, error)
            return
        self._told = _Place(start.characters + len(text), start.units + units(text))

    async def _store(self) -> None:
        text, before = self.text, self._stored
        self._next_store = time.monotonic() + self._life.pace.store_s
        try:
            if not await self._life.store.grow(self._question, text, self._seq):
                raise Lost(self._question.id)
        except DatabaseUnavailable as error:
            log.warning("question %s: the answer so far isn't stored: %s", self._question.id, error)
            return
        added = text[before.characters :]
        self._stored = _Place(len(text), before.units + units(added))
        await self._tell(since=before)


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
        links, suggestions = _first(question.links), _first(question.suggestions)
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


def _first(values: tuple[T, ...]) -> tuple[T, ...]:
    first = values[:20]
    while first and len(_json.encode(first)) > _MAX_EXTRAS_BYTES:
        first = first[:-1]
    return first
