"""Follows one question from wherever it stands to its end, for whoever shows its answer as it grows.

Called by the reply to `POST /v1/questions` (`heard`) and by the protocols of others' front ends (`updates`).
It hears what the hub delivers about the question, whichever node answers. Every 2 s it also looks whether
the question is still open, so that it can't miss the end: what the hub hears live isn't in the log, and the
backplane may be away. All followers on a node share these looks: one statement for 64 questions.
"""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import msgspec
from msgspec import UNSET, Struct
from msgspec.structs import replace

from pushsse.backplane.answers import ENDINGS, Place, SoFar, deltas_since, units
from pushsse.errors import CloseReason, DatabaseUnavailable, Unavailable
from pushsse.event import Publication
from pushsse.questions import (
    AnswerErrorEvent,
    AnswerEvent,
    DeltaEvent,
    KeptPart,
    Part,
    Question,
    QuestionEvent,
    StatusPart,
    end_event,
    status_event,
)
from pushsse.questions.service import Questions

_LOOK_S = 2.0
# Looked at together. Those whose turn comes within half of that time are looked at with the others.
_TOGETHER = 64
_TICK_S = 0.5
# How often, and for how long, the end is looked for that was heard: the database may be away just then.
_END_LOOKS = 4
_END_LOOK_S = 0.25
_delta = msgspec.json.Decoder(DeltaEvent)
_question = msgspec.json.Decoder(QuestionEvent)
_answer = msgspec.json.Decoder(AnswerEvent)
_error = msgspec.json.Decoder(AnswerErrorEvent)


class Grown(Struct, frozen=True):
    """The answer grows: `text` follows all that came since the beginning or since the last Restarted."""

    text: str


class Restarted(Struct, frozen=True):
    """All text and parts before it are void: another attempt answers from the beginning."""


class Parted(Struct, frozen=True):
    """The answer gets a part."""

    part: Part


class QuestionEnded(Struct, frozen=True):
    """The question has ended as `question` says, or people have taken it over; the last update.

    If it is answered, the Grown since the last Restarted are exactly `question.answer`.
    """

    question: Question


class Interrupted(Struct, frozen=True):
    """Nothing more is said here, and the question goes on; the last update."""

    reason: CloseReason


class Idle(Struct, frozen=True):
    """About half a second has passed in which nothing came: whoever sends keepalives may send one."""


Update = Grown | Restarted | Parted | QuestionEnded | Interrupted | Idle


class Access(Protocol):
    """Who follows, and until when they may. `Identity` is such a one."""

    @property
    def user(self) -> str:
        """Whose question it is."""
        ...

    @property
    def issued_at(self) -> float | None:
        """When the proof of it was issued, in seconds since 1970; None where that isn't known."""
        ...

    @property
    def has_expired(self) -> bool:
        """Whether it has ended since it was checked."""
        ...


class HearsPublications(Protocol):
    """Where the publications about one question are heard; the hub does it."""

    def publications(
        self, user: str, subject: str
    ) -> AbstractAsyncContextManager[AsyncIterator[Publication]]:
        """All to this person about this question, from when the context is entered. Raises Unavailable.

        What was there of the answer before comes after `learn`, and nothing of it comes twice.
        """
        ...

    def learn(self, question: str, user: str, so_far: SoFar | None, *, since: float) -> None:
        """Takes an answer so far that was read from a time on (monotonic)."""
        ...


class Drains(Protocol):
    """Says whether the node is about to stop; the node does it."""

    @property
    def draining(self) -> bool:
        """Whether replies have to end."""
        ...


class Refuses(Protocol):
    """Knows which tokens were revoked."""

    def refuses(self, user: str, issued_at: float | None) -> bool:
        """Whether what was issued to a person at a time (None: unknown) was revoked."""
        ...


@dataclass(frozen=True, slots=True)
class Following:
    """Follows questions on this node.

    Each call is one follower, and there may be any number of one question, on any nodes: a node looks at it
    every 2 s, together with others, however many they are. A follower that is closed or cancelled leaves the
    question as it is: the answer goes on. Nothing is raised but what cancels.
    """

    questions: Questions
    hub: HearsPublications
    node: Drains
    revocations: Refuses
    _looks: "dict[str, _Looks]" = field(default_factory=dict, init=False, repr=False)

    async def updates(self, question: Question, who: Access) -> AsyncGenerator[Update, None]:
        """What becomes of the answer, typed, from its beginning to its end.

        Contract: whoever begins in the middle gets the text so far first (one Grown, or several) and the
        parts that it has by then, then the rest, without a gap and without a repeat. Joined since the last
        Restarted, the Grown are the answer so far. After an answer that came in one piece, or that nobody
        heard grow, the whole of it still comes as Grown before QuestionEnded. Exactly one QuestionEnded or
        Interrupted comes, and nothing after it. `question` may be as old as one likes; it is read again
        first.

        Interrupted: SHUTDOWN while the node stops (another node goes on), TOKEN_EXPIRED and REVOKED where
        `who` may hear no more; it comes within half a second of that. Idle comes after each half second of
        silence. Close the generator (`aclosing`) when the client leaves.
        """
        answer, joined = _Answer(), time.monotonic()
        async with AsyncExitStack() as stack:
            looks = stack.enter_context(self._looking(question))
            all_heard = await stack.enter_async_context(aclosing(self.heard(question, who)))
            async for heard in all_heard:
                if isinstance(heard, (Idle, Interrupted)):
                    yield heard
                elif heard.name == "answer.delta":
                    for update in answer.grow(_delta.decode(heard.data)):
                        yield update
                elif heard.name in ENDINGS:
                    last = await _end(question, heard, looks, joined)
                    for update in answer.finish(last):
                        yield update
                    yield QuestionEnded(last)
                    return
                elif _is_handed_over(heard):
                    yield QuestionEnded(await looks.look(joined) or replace(question, status="handed_over"))
                    return

    async def heard(
        self, question: Question, who: Access
    ) -> AsyncGenerator[Publication | Interrupted | Idle, None]:
        """The publications about a question as streams get them: `question`, the answer so far, and the rest.

        Ends after `answer` or `answer.error`, after the `question` that says that it is handed over, or after
        Interrupted. Idle as in `updates`.
        """
        async with AsyncExitStack() as stack:
            looks = stack.enter_context(self._looking(question))
            publications: AsyncIterator[Publication] | None = None
            try:
                publications = await stack.enter_async_context(
                    self.hub.publications(question.user, question.id)
                )
            except Unavailable:
                # The question is stored: without the backplane its end is found by looking.
                publications = None
            # Read after the hub is heard: what grows later is heard, so no delta is missed in between.
            since = time.monotonic()
            now = await looks.look(since) or question
            first = status_event(now)
            yield first
            if now.has_ended:
                yield end_event(now)
            if not now.is_open:
                return
            if (so_far := (await self.questions.life.so_far((now,))).get(now.id)) is None:
                pass
            elif publications is not None:
                self.hub.learn(now.id, now.user, so_far, since=since)
            else:
                for delta in deltas_since(Place(), so_far, question=now.id, user=now.user):
                    yield delta
            async with aclosing(self._rest(who, publications, now, looks, since)) as rest:
                async for heard in rest:
                    yield heard

    async def _rest(
        self,
        who: Access,
        heard: AsyncIterator[Publication] | None,
        question: Question,
        looks: "_Looks",
        joined: float,
    ) -> AsyncGenerator[Publication | Interrupted | Idle, None]:
        """What comes after the status of the question that was said first, which may be heard once more."""
        first = status_event(question)
        looked = time.monotonic()
        async with aclosing(_ticking(heard)) as ticks:
            async for publication in ticks:
                # Before anything more is said to somebody who may no longer hear it.
                if (reason := self._lost_access(who)) is not None:
                    yield Interrupted(reason)
                    return
                if publication is not None:
                    # Heard and read: it was published between the subscription and the first look.
                    if (publication.name, publication.body) == (first.name, first.body):
                        continue
                    # The end of the answer before the question was asked anew, which comes late.
                    if publication.name in ENDINGS and 0 < publication.attempt < question.first_attempt:
                        continue
                    yield publication
                    if publication.name in ENDINGS or _is_handed_over(publication):
                        return
                # After what was heard, which may be the end. An answer that flows is never silent.
                if self.node.draining:
                    yield Interrupted(CloseReason.SHUTDOWN)
                    return
                # Not at each publication: another follower may have found the end that is still heard here.
                if publication is None or time.monotonic() - looked >= _LOOK_S:
                    looked = time.monotonic()
                    found = await looks.now_and_then(joined)
                    if found is not None and not found.is_open:
                        yield status_event(found)
                        if found.has_ended:
                            yield end_event(found)
                        return
                if publication is None:
                    yield Idle()

    def _lost_access(self, who: Access) -> CloseReason | None:
        if self.revocations.refuses(who.user, who.issued_at):
            return CloseReason.REVOKED
        return CloseReason.TOKEN_EXPIRED if who.has_expired else None

    @contextmanager
    def _looking(self, question: Question) -> "Iterator[_Looks]":
        """What the followers of a question share while there are any."""
        if (looks := self._looks.get(question.id)) is None:
            looks = self._looks[question.id] = _Looks(self.questions, question, self._looks)
        looks.followers += 1
        try:
            yield looks
        finally:
            looks.followers -= 1
            if not looks.followers:
                del self._looks[question.id]


class _Looks:
    """One question as its followers on this node read it: together, and never twice at a time.

    Whoever wants to know first reads for all. `joined` is when a follower began (monotonic): what was read
    before isn't for it, since the question may have been asked anew in between. `all_of_them` are those of
    all questions that are followed here, the one that was looked at longest ago first.
    """

    def __init__(self, questions: Questions, question: Question, all_of_them: "dict[str, _Looks]") -> None:
        self.followers = 0
        self._all = all_of_them
        self._questions = questions
        self._question = question
        self._began = -math.inf
        self._found: Question | None = None
        self._reading: asyncio.Event | None = None

    async def look(self, joined: float) -> Question | None:
        """As it is from now on, or as it has ended since `joined`; None while the database is away."""
        now = time.monotonic()
        while self._began < now and not self._is_over(joined):
            if self._reading is None:
                await self._read()
            else:
                await self._reading.wait()
        return self._known(joined)

    async def now_and_then(self, joined: float) -> Question | None:
        """As it was at most 2 s ago; None where that isn't known yet, since somebody else is reading."""
        if self._is_due and self._found is not None and self._found.is_open:
            await self._look_together()
        # It isn't open any more, or wasn't known.
        if self._is_due:
            await self._read()
        return self._known(joined)

    @property
    def _is_due(self) -> bool:
        return self._reading is None and time.monotonic() - self._began >= _LOOK_S

    def _known(self, joined: float) -> Question | None:
        return self._found if self._began >= joined else None

    def _is_over(self, joined: float) -> bool:
        found = self._known(joined)
        return found is not None and not found.is_open

    async def _look_together(self) -> None:
        """Looks which questions are still open, of those whose turn has come; any other is read by itself."""
        began, reading = time.monotonic(), asyncio.Event()
        together = {self._question.id: self}
        for name, looks in self._all.items():
            if len(together) == _TOGETHER or began - looks._began < _LOOK_S / 2:
                break
            if looks._reading is None and looks._found is not None and looks._found.is_open:
                together[name] = looks
        for looks in together.values():
            looks._reading = reading
        try:
            still_open = await self._questions.life.store.open_among(list(together))
            for name, looks in together.items():
                if name in still_open:
                    looks._looked(began, looks._found)
                else:
                    looks._looked(-math.inf, None)
        except DatabaseUnavailable:
            for looks in together.values():
                looks._looked(began, None)
        finally:
            # Also where this follower leaves while it looks: the next of those that are due looks then.
            for looks in together.values():
                looks._reading = None
            reading.set()

    def _looked(self, began: float, found: Question | None) -> None:
        """It was looked at from a time on."""
        self._began, self._found = began, found
        # Others may follow it by now, or nobody.
        if self._all.get(self._question.id) is self:
            self._all[self._question.id] = self._all.pop(self._question.id)

    async def _read(self) -> None:
        began, self._reading = time.monotonic(), asyncio.Event()
        try:
            self._looked(began, await self._questions.get(self._question.user, self._question.id))
        except DatabaseUnavailable:
            self._looked(began, None)
        finally:
            # Also where this follower leaves while it reads: the next of those who wait reads then.
            self._reading.set()
            self._reading = None


async def _end(question: Question, heard: Publication, looks: _Looks, joined: float) -> Question:
    """The question as it ended; where the database is away, as the event says, which may cut the text."""
    for again in range(_END_LOOKS):
        found = await looks.look(joined)
        if found is not None and not found.is_open:
            return found
        await asyncio.sleep(_END_LOOK_S * again)
    if heard.name == "answer":
        said = _answer.decode(heard.data)
        return replace(
            question,
            status="answered",
            answer=said.text,
            by=said.by,
            links=said.links,
            suggestions=said.suggestions,
            parts=said.parts,
        )
    error = _error.decode(heard.data)
    return replace(question, status="failed", error_code=error.code, error_detail=error.detail)


class _Answer:
    """An answer as one follower has it: makes updates of deltas by the rule text[:from] + delta."""

    def __init__(self) -> None:
        self._text = ""
        self._units = 0
        self._seq = 0
        self._parts: list[KeptPart] = []
        # Parts that come once more, because the text did.
        self._known = 0

    def grow(self, delta: DeltaEvent) -> Iterator[Update]:
        """The updates of one delta; none of one that begins beyond what is there, which another one heals."""
        if delta.start > self._units:
            return
        if delta.start == 0 and delta.seq == 1 and self._seq:
            yield self._restart()
        if delta.part is UNSET:
            if delta.start < self._units:
                self._known = len(self._parts)
            yield from self._become(_first_units(self._text, delta.start) + delta.text)
        elif isinstance(delta.part, StatusPart):
            yield Parted(delta.part)
        elif self._known:
            self._known -= 1
        else:
            self._parts.append(delta.part)
            yield Parted(delta.part)
        self._seq = delta.seq

    def finish(self, question: Question) -> Iterator[Update]:
        """What is missing at the end of the question."""
        if question.status != "answered":
            return
        if list(question.parts[: len(self._parts)]) != self._parts:
            yield self._restart()
        yield from self._become(question.answer)
        for part in question.parts[len(self._parts) :]:
            yield Parted(part)

    def _restart(self) -> Restarted:
        self._text, self._units, self._parts, self._known = "", 0, [], 0
        return Restarted()

    def _become(self, text: str) -> Iterator[Update]:
        before = self._text
        if not text.startswith(before):
            yield self._restart()
            before = ""
        self._text, self._units = text, units(text)
        if text != before:
            yield Grown(text[len(before) :])


def _is_handed_over(publication: Publication) -> bool:
    """Whether people answer from now on, which may take days."""
    return publication.name == "question" and _question.decode(publication.data).status == "handed_over"


def _first_units(text: str, count: int) -> str:
    """The first so many UTF-16 code units of a text."""
    if text.isascii():
        return text[:count]
    return text.encode("utf-16-le")[: 2 * count].decode("utf-16-le", "ignore")


async def _ticking(heard: AsyncIterator[Publication] | None) -> AsyncGenerator[Publication | None, None]:
    """What is heard, and None whenever that was nothing for half a second."""
    waiting: asyncio.Task[Publication | None] | None = None
    try:
        while True:
            if waiting is None:
                # A task that outlives the wait: a timeout that cancels `anext` would end the generator.
                waiting = asyncio.create_task(_next(heard))
            done, _ = await asyncio.wait((waiting,), timeout=_TICK_S)
            if not done:
                yield None
                continue
            publication, waiting = waiting.result(), None
            if publication is None:
                heard = None
            yield publication
    finally:
        if waiting is not None:
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)


async def _next(heard: AsyncIterator[Publication] | None) -> Publication | None:
    if heard is None:
        await asyncio.Event().wait()
        return None
    return await anext(heard, None)
