"""The steps of a question's life: the store writes each, then the person's log gets its events.

Called by the service, by `answering` and by answerers whose answers come from elsewhere; hands publications
to the backplane. Where a step's events didn't reach the log, some node's sweep publishes them again; `once`
keeps them from being there twice. Deliberate: `from` counts UTF-16 code units, as browsers and Java do.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, TypeVar

import msgspec
from msgspec import Meta, Struct

from pushsse.backplane import Append, Backplane, Draft, log_of
from pushsse.errors import BackplaneUnavailable, DatabaseUnavailable, Unavailable
from pushsse.event import Publication, encode
from pushsse.metrics import Metrics
from pushsse.questions import (
    MAX_ANSWER_CHARACTERS,
    NOBODY,
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
from pushsse.questions.conversations import ConversationStore, HandedOverBy
from pushsse.questions.store import QuestionStore

logger = logging.getLogger(__name__)
_PUBLISH_S = 5.0
# What staff get beside the streams' own events. Producers may not use the name.
DESK = "pushsse.desk"
_DESK_CHARACTERS = 200
MAX_REASON = 500
MAX_TEXT_BYTES = 32 * 1024
# JSON may write one byte as six; the frame's 48 KiB hold this, links, suggestions and the rest.
_MAX_ENCODED_BYTES = 38 * 1024
_MAX_EXTRAS_BYTES = 4 * 1024
_DELTA_CHARACTERS = 6_000
_json = msgspec.json.Encoder()
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class QuestionPace:
    """How often things happen, in seconds.

    A delta at most every `delta_s`; the answer so far stored every `store_s`. A node renews its leases of
    `lease_s` every `sweep_s`. What isn't in the log after `announce_s`, a sweep publishes.
    People have a conversation that was handed over to them for `keep_s`; 0: nothing is handed over.
    """

    delta_s: float = 0.05
    store_s: float = 0.5
    sweep_s: float = 2.0
    lease_s: float = 15.0
    announce_s: float = 10.0
    keep_s: float = 3 * 86_400.0


class Life:
    """Writes what happens to questions, and publishes it to their people.

    Whoever only reads asks `store` directly. Every method but `live` raises DatabaseUnavailable.
    """

    def __init__(
        self, store: QuestionStore, backplane: Backplane, metrics: Metrics, pace: QuestionPace
    ) -> None:
        self.pace = pace
        self.store = store
        self.conversations = ConversationStore(store.database)
        self._backplane = backplane
        self._metrics = metrics

    async def ask(
        self, question: Question, *, key: str | None, node: str, leased: bool, digest: str = ""
    ) -> Question:
        """Writes a new question, publishes it, and returns it: handed over, if its conversation is.

        Without a lease another node takes the question at its next sweep. Raises KeyTaken, of two that ask
        together for one; UnknownConversation.
        """
        lease_s = self.pace.lease_s if leased else 0
        question = await self.store.create(
            question, key=key, digest=digest, owner=node, lease_s=lease_s, announce_s=self.pace.announce_s
        )
        self._metrics.questions[question.status] += 1
        await self.announce(question)
        return question

    async def ask_again(
        self, question: Question, *, node: str, leased: bool, timeout_s: float
    ) -> Question | None:
        """Asks an ended question anew, and publishes that. None if it is gone. Raises NotNow."""
        again = await self.store.regenerate(
            question,
            owner=node,
            lease_s=self.pace.lease_s if leased else 0,
            timeout_s=timeout_s,
            announce_s=self.pace.announce_s,
        )
        if again is not None:
            self._metrics.questions[again.status] += 1
            await self.announce(again)
        return again

    async def hand_over(self, question: Question, reason: str) -> bool:
        """People answer in this question's conversation from now on, as its answerer wants it.

        False if it has ended or is another attempt's by now. Where nothing is handed over, it fails.
        """
        if not self.pace.keep_s:
            return await self.end(question.id, NOBODY, attempt=question.attempt)
        try:
            await self.hand_over_conversation(
                question.conversation, by="answerer", reason=reason, question=question
            )
        except Lost:
            return False
        return True

    async def hand_over_conversation(
        self, conversation: str, *, by: HandedOverBy, reason: str, question: Question | None = None
    ) -> None:
        """The same of a whole conversation, which has to be there. Raises Lost with `question`."""
        ids = await self.conversations.hand_over(
            conversation,
            by=by,
            reason=clean(reason)[:MAX_REASON],
            keep_s=self.pace.keep_s,
            announce_s=self.pace.announce_s,
            question=question,
        )
        await self.announce_all(ids)
        if not ids and (found := await self.conversations.one(conversation)) is not None:
            try:
                await self.tell_staff(DeskEvent(conversation, found.user, "waiting", None, ""))
            except Unavailable as error:
                logger.warning("conversation %s: the staff aren't told: %s", conversation, error)

    async def write(self, message: Question) -> bool:
        """Stores a message of staff and publishes it; False if its conversation isn't handed over."""
        if not await self.conversations.write(message, announce_s=self.pace.announce_s):
            return False
        self._metrics.questions[message.status] += 1
        await self.announce(message)
        return True

    async def announce_all(self, ids: Collection[str]) -> None:
        """Publishes the status that some questions have come to."""
        for question_id in ids:
            if (found := await self.store.one(question_id)) is not None:
                self._metrics.questions[found.status] += 1
                await self.announce(found)

    async def tell_staff(self, event: "DeskEvent", once: str = "") -> None:
        """Publishes an event to the staff who asked what waits. Raises BackplaneUnavailable, too."""
        by_log: dict[str, list[str]] = {}
        for user in await self.conversations.staff():
            by_log.setdefault(log_of(user, self._backplane.shards), []).append(user)
        appends = [
            Append(log, (Draft(encode(DESK, event, users=tuple(users)), once=once),))
            for log, users in by_log.items()
        ]
        if appends:
            async with _in_time():
                await self._backplane.publish(appends)

    async def begin(self, question: Question) -> Question:
        """pending → answering; one taken over in the middle is that already. Raises Lost."""
        # Its `question` event is in the log, or a sweep publishes it.
        if question.status == "answering":
            return question
        if not await self.store.begin(question.id, question.attempt, announce_s=self.pace.announce_s):
            raise Lost(question.id)
        question = msgspec.structs.replace(question, status="answering")
        await self.announce(question)
        return question

    async def store_growth(self, question: Question, text: str, seq: int) -> None:
        """Stores the answer so far, up to the delta numbered `seq`. Raises Lost."""
        if not await self.store.grow(question, text, seq):
            raise Lost(question.id)

    async def sent_off(self, question: Question) -> None:
        """The answer comes from elsewhere: no node takes the question over, it can only expire."""
        await self.store.sent_off(question)

    async def end(self, question_id: str, ending: Ending, *, attempt: int | None = None) -> bool:
        """Ends an open question and publishes that; False if it has ended already.

        With `attempt` also False if another node has taken the question over since.
        """
        if isinstance(ending, Answered):
            ending = _fitting(ending)
        # One conditional update decides between an answer, a cancel and a sweep, on all nodes: who gets True
        # publishes the end. If it dies first, a sweep does, by the `announce_by` of the same update.
        if not await self.store.end(question_id, ending, attempt=attempt, announce_s=self.pace.announce_s):
            return False
        question = await self.store.one(question_id)
        if question is not None:
            self._metrics.questions[question.status] += 1
            await self.announce(question)
        return True

    async def announce(self, question: Question) -> bool:
        """Publishes a question's status to its person's log. False: a sweep does it later."""
        try:
            async with _in_time():
                await self._backplane.publish_to(question.user, drafts(question))
            if question.status == "handed_over":
                await self.tell_staff(waits(question), once=f"{_name(question)}:desk")
            # After the log has it: a node that dies in between leaves it to a sweep, whose second append the
            # log drops by `once`. The other way round the status would never be published.
            await self.store.announced(question)
        except (BackplaneUnavailable, DatabaseUnavailable) as error:
            logger.warning(
                "question %s: its status %s isn't published yet, a sweep tries again: %s",
                question.id,
                question.status,
                error,
                extra=question.ids,
            )
            return False
        return True

    async def live(self, user: str, publication: Publication) -> None:
        """Sends a delta to the person's open streams; the log doesn't get it. Raises BackplaneUnavailable."""
        async with _in_time():
            await self._backplane.publish_live(user, publication)

    async def find(self, question_id: str) -> Question | None:
        """A question by its id."""
        return await self.store.one(question_id)

    async def add(self, question: Question, text: str, seq: int) -> bool:
        """Makes an answer that comes from elsewhere grow by a text, up to the piece numbered `seq`.

        False if the question has ended or has grown otherwise since it was read.
        """
        text = clean(text)
        whole = question.answer + text
        if len(whole) > MAX_ANSWER_CHARACTERS:
            return await self.end(question.id, TOO_LONG)
        if not await self.store.grow(question, whole, seq, after=question.seq):
            return False
        try:
            # Stored before it is published: a stream that opens after that reads it in the table.
            for delta in deltas(question, text, start=units(question.answer), seq=seq):
                await self.live(question.user, delta)
        except BackplaneUnavailable as error:
            logger.warning("question %s: no stream got a delta: %s", question.id, error, extra=question.ids)
        return True

    async def take_over(self, question: Question, *, node: str) -> Question | None:
        """Leases an abandoned question to this node; None if another one was first."""
        if not await self.store.take(question, owner=node, lease_s=self.pace.lease_s):
            return None
        return msgspec.structs.replace(question, attempt=question.attempt + 1)

    async def renew(self, question_ids: Collection[str], *, node: str) -> None:
        """Renews the leases that a node has of these questions."""
        await self.store.lease(question_ids, owner=node, lease_s=self.pace.lease_s)

    async def give_up(self, question_ids: Collection[str], *, node: str) -> None:
        """Ends the leases that a node has of these questions: another one takes them at its next sweep."""
        await self.store.lease(question_ids, owner=node, lease_s=0)


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


class _Offset(NamedTuple):
    """A place in the text, in characters and in UTF-16 code units."""

    characters: int = 0
    units: int = 0


class Growing:
    """One answer while it grows on this node: pieces become deltas, and the text is stored now and then.

    Made by `answering` for each question of this node. Deliberate: a stream that opens reads what is stored,
    so each delta begins where the last storing ended, and the first one after a storing begins where the
    storing before it ended. Whatever of the two texts a stream has read, the next delta continues it.
    """

    def __init__(self, life: Life, question: Question) -> None:
        self.text = ""
        self._life = life
        self._question = question
        self._seq = question.seq
        self._published = _Offset()
        self._stored = _Offset()
        self._next_store = time.monotonic() + life.pace.store_s
        self._more = asyncio.Event()

    @property
    def too_long(self) -> bool:
        """Whether the answer is over its bound."""
        return len(self.text) > MAX_ANSWER_CHARACTERS

    def add(self, text: str) -> None:
        """Appends a piece."""
        if text := clean(text):
            self.text += text
            self._more.set()

    async def run(self) -> None:
        """Publishes and stores what is added, for ever. Raises Lost when another node has the question."""
        while True:
            await self._wait()
            self._more.clear()
            await self._publish()
            if time.monotonic() >= self._next_store and self._stored.characters < len(self.text):
                await self._store()
            await asyncio.sleep(self._life.pace.delta_s)

    async def finish(self) -> None:
        """Publishes the rest; `Life.end` stores it."""
        await self._publish()

    async def _wait(self) -> None:
        """Returns when something was added, or when what was added before has to be stored."""
        unstored = self._stored.characters < len(self.text)
        wait_s = max(0.0, self._next_store - time.monotonic()) if unstored else None
        try:
            async with asyncio.timeout(wait_s):
                await self._more.wait()
        except TimeoutError:
            pass

    async def _publish(self, *, since: _Offset | None = None) -> None:
        if since is None and self._published.characters == len(self.text):
            return
        start = self._stored if since is None else since
        text = self.text[start.characters :]
        try:
            for delta in deltas(self._question, text, start=start.units, seq=self._seq + 1):
                self._seq += 1
                await self._life.live(self._question.user, delta)
        except BackplaneUnavailable as error:
            # Nothing is lost: the next delta begins where the last one that was published ended.
            logger.warning(
                "question %s: no stream got a delta, the next one repeats it: %s",
                self._question.id,
                error,
                extra=self._question.ids,
            )
            return
        self._published = _Offset(start.characters + len(text), start.units + units(text))

    async def _store(self) -> None:
        text, before = self.text, self._stored
        self._next_store = time.monotonic() + self._life.pace.store_s
        try:
            await self._life.store_growth(self._question, text, self._seq)
        except DatabaseUnavailable as error:
            logger.warning(
                "question %s: the answer so far isn't stored yet: %s",
                self._question.id,
                error,
                extra=self._question.ids,
            )
            return
        added = text[before.characters :]
        self._stored = _Offset(len(text), before.units + units(added))
        # Deltas up to now began at the storing before. This one does too, so a stream that read that one
        # continues; the next ones begin at the new one.
        await self._publish(since=before)


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


class DeskEvent(Struct, frozen=True):
    """`pushsse.desk`, to staff: something happened in a conversation that people have taken over.

    `question` is null where it isn't about one question.
    """

    conversation: str
    user: str
    status: Literal["waiting", "answered", "released"]
    question: str | None
    text: Annotated[str, Meta(description="the beginning of the question")]


def waits(question: Question) -> DeskEvent:
    """The event that a question waits for people."""
    return DeskEvent(question.conversation, question.user, "waiting", question.id, begins_with(question))


def begins_with(question: Question) -> str:
    """As much of a question as staff are told."""
    return question.text[:_DESK_CHARACTERS]


def drafts(question: Question) -> tuple[Draft, ...]:
    """What the log gets when a question has come to its present status: that, and the end if it is one."""
    name = _name(question)
    changed = Draft(status_changed(question), once=f"{name}:{question.status}")
    if not question.has_ended:
        return (changed,)
    return changed, Draft(ended(question), once=f"{name}:end")


def _name(question: Question) -> str:
    """What `once` begins with: another one each time that the question is asked anew."""
    again = f":{question.regenerations}" if question.regenerations else ""
    return f"question:{question.id}{again}"


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
