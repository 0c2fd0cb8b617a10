"""The steps of a question's life: each is written by the store, then appended to the person's log.

Called by the service, the sweeper and answerers whose answers come from elsewhere; hands to the backplane.
A step whose events didn't get into the log is told again by some node's sweeper: `once` keeps it from being
there twice.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import msgspec

from pushsse.backplane import Backplane
from pushsse.errors import BackplaneUnavailable, DatabaseUnavailable
from pushsse.event import Publication
from pushsse.metrics import Metrics
from pushsse.questions import events
from pushsse.questions.question import (
    MAX_ANSWER_CHARACTERS,
    TOO_LONG,
    Answered,
    Ending,
    Lost,
    Question,
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
            async with _bounded():
                await self.backplane.publish_to(question.user, events.drafts(question))
            await self.store.announced(question)
        except (BackplaneUnavailable, DatabaseUnavailable) as error:
            log.warning("question %s: %s isn't told yet: %s", question.id, question.status, error)
            return False
        return True

    async def live(self, user: str, publication: Publication) -> None:
        """Lets the person's open streams hear a delta. Raises BackplaneUnavailable."""
        async with _bounded():
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
            for delta in events.deltas(question, text, start=units(question.answer), seq=seq):
                await self.live(question.user, delta)
        except BackplaneUnavailable as error:
            log.warning("question %s: a delta wasn't heard: %s", question.id, error)
        return True


@asynccontextmanager
async def _bounded() -> AsyncIterator[None]:
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
