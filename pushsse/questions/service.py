"""Questions as the endpoints see them: ask, cancel, read; and the sweeps that keep all questions moving.

Called by api/questions and by `people`; hands new questions to `answering`. `run` is a service of the node.
"""

import asyncio
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from ulid import ULID

from pushsse.backplane import Backplane
from pushsse.errors import DatabaseUnavailable, InvalidInput, Overloaded, Violation
from pushsse.event import Publication
from pushsse.metrics import Metrics
from pushsse.questions import CANCELLED, EXPIRED, GIVEN_UP, Question, TooManyQuestions, UnknownConversation
from pushsse.questions.answerers import Answerer
from pushsse.questions.answering import Answering
from pushsse.questions.life import Life, QuestionPace, deltas, pieces
from pushsse.questions.store import KeyTaken, QuestionStore
from pushsse.retry import Backoff, Outage
from pushsse.strictjson import shown

logger = logging.getLogger(__name__)
MOST_ATTEMPTS = 4
_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class Asking:
    """What a person asks."""

    text: str
    conversation: str | None = None
    context: dict[str, object] | None = None


@dataclass(frozen=True, slots=True)
class Questions:
    """The questions of all people, from this node."""

    life: Life
    answering: Answering
    sweeper: "Sweeper"
    node: str
    timeout_s: float
    most_open: int = 20

    async def run(self) -> None:
        """Answers and sweeps, for ever. Cancellation gives up this node's leases, and it may run again."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.answering.run(), name="answering")
            group.create_task(self.sweeper.run(), name="sweeper")

    async def ask(self, user: str, asking: Asking, *, idempotency_key: str | None = None) -> Question:
        """Takes a question; with a key that the person has used before, returns the first.

        Raises InvalidInput (the key was another question's), UnknownConversation (it is
        somebody else's), TooManyQuestions, Overloaded, DatabaseUnavailable.
        """
        if idempotency_key is not None and (first := await self._first(user, idempotency_key, asking)):
            return first
        # Deliberate: of two people who begin one conversation together, both may be let in. Whoever can guess
        # the other's word, which is theirs alone, gets nothing but a conversation in common.
        if asking.conversation is not None:
            owner = await self.life.store.owner(asking.conversation)
            if owner not in (None, user):
                raise UnknownConversation(asking.conversation)
        await self._admit(user)
        question = self._new(user, asking)
        # An isolated node stores the question without a lease: another node answers it.
        ours = not self.answering.resting
        try:
            await self.life.ask(question, key=idempotency_key, node=self.node, leased=ours)
        except KeyTaken:
            # Asked twice at the same time, and the other one was first.
            if idempotency_key is None or not (first := await self._first(user, idempotency_key, asking)):
                raise
            return first
        if ours:
            # Without room for it now, a sweep takes it over when its lease has lapsed.
            self.answering.put(question)
        return question

    async def cancel(self, user: str, question_id: str) -> Question | None:
        """Ends a person's question if it is open; as it stands after that, None if there is no such one."""
        question = await self.get(user, question_id)
        if question is None or not question.is_open:
            return question
        if await self.life.end(question_id, CANCELLED):
            self.answering.drop(question_id)
        return await self.get(user, question_id)

    async def get(self, user: str, question_id: str) -> Question | None:
        """A person's question; None if there is none, or it is somebody else's."""
        question = await self.life.store.one(question_id)
        return question if question is not None and question.user == user else None

    async def page(
        self, user: str, *, limit: int, before: str | None = None, conversation: str | None = None
    ) -> Sequence[Question]:
        """A person's questions, newest first, those before an id; those of one conversation, or all."""
        return await self.life.store.page(user, limit=limit, before=before, conversation=conversation)

    async def growing(self, user: str) -> Sequence[Publication]:
        """For whoever joins: the answers that are growing for this person, from their beginnings.

        Call it after the stream has begun to hear live publications, so that no delta is missed in between. A
        delta that was heard may then come again, which its `from` makes harmless.
        """
        questions = await self.life.store.answering(user)
        return [delta for question in questions for delta in grown(question)]

    async def _first(self, user: str, key: str, asking: Asking) -> Question | None:
        first = await self.life.store.by_key(user, key)
        if first is None:
            return None
        same = (
            first.text == asking.text
            and first.context == asking.context
            and asking.conversation in (None, first.conversation)
        )
        if not same:
            raise InvalidInput(Violation("Idempotency-Key", f"{shown(key)} was used for another question"))
        return first

    async def _admit(self, user: str) -> None:
        # Deliberate: two calls together may both be admitted. The limits needn't be exact.
        if not self.answering.queue.room:
            raise Overloaded("too many questions wait for their turn")
        if await self.life.store.count_open(user) >= self.most_open:
            raise TooManyQuestions(f"{self.most_open} questions are open, wait for an answer or cancel one")

    def _new(self, user: str, asking: Asking) -> Question:
        now = datetime.now(UTC)
        return Question(
            id=str(ULID()),
            user=user,
            conversation=asking.conversation or str(ULID()),
            text=asking.text,
            context=asking.context,
            status="pending",
            asked_at=now,
            updated_at=now,
            deadline_at=now + timedelta(seconds=self.timeout_s),
        )


def grown(question: Question) -> Sequence[Publication]:
    """An answer's deltas from its beginning, as far as it is stored; the last has the stored `seq`."""
    first = max(0, question.seq - pieces(question.answer) + 1)
    return list(deltas(question, question.answer, start=0, seq=first))


def assemble_questions(
    store: QuestionStore,
    backplane: Backplane,
    answerer: Answerer,
    *,
    node: str,
    timeout_s: float,
    metrics: Metrics,
    pace: QuestionPace | None = None,
) -> Questions:
    """The service of one node; `run` has to be supervised. A question expires after `timeout_s`."""
    life = Life(store, backplane, metrics, pace or QuestionPace())
    answering = Answering(life, answerer, node=node)
    return Questions(life, answering, Sweeper(life, answering, node), node, timeout_s)


@dataclass(frozen=True, slots=True)
class Sweeper:
    """Keeps the questions of all nodes moving: none stays open, unanswered or unpublished for ever.

    Each sweep renews this node's leases, ends what is overdue, takes over what a dead node had, and publishes
    what isn't in the log. Each step is conditional in the database, so several nodes may sweep together.
    """

    life: Life
    answering: Answering
    node: str

    async def run(self) -> None:
        """Sweeps for ever; an absent database is waited for."""
        outage = Outage("sweeps of questions fail", logger, Backoff())
        while True:
            try:
                await self.sweep()
                outage.over()
            except DatabaseUnavailable as error:
                outage.failed(error)
            await asyncio.sleep(self.life.pace.sweep_s * random.uniform(0.75, 1.25))

    async def sweep(self) -> None:
        """One round. Raises DatabaseUnavailable."""
        # First: what follows may take seconds, and other nodes take over what has a lapsed lease.
        await self._renew()
        for question in await self.life.store.overdue(_AT_ONCE):
            # Dropped where this node answers it; another node notices when it renews its leases, or writes.
            if await self.life.end(question.id, EXPIRED):
                self.answering.drop(question.id)
        if room := min(self.answering.queue.room, _AT_ONCE):
            for question in await self.life.store.abandoned(room):
                await self._take_over(question)
        for question in await self.life.store.unannounced(_AT_ONCE):
            if not await self.life.announce(question):
                # A part is away, and each try may take seconds: leases have to be renewed in time.
                break

    async def _renew(self) -> None:
        """Renews this node's leases, and drops the questions that it has lost."""
        leased = self.answering.leased
        if not leased:
            return
        attempts = await self.life.store.attempts(leased)
        for question_id, attempt in leased.items():
            # Compared again: it may have ended here while the database was asked.
            if attempts.get(question_id) != attempt and self.answering.leased.get(question_id) == attempt:
                self.answering.drop(question_id)
        if ours := [each for each, attempt in attempts.items() if attempt == leased[each]]:
            await self.life.renew(ours, node=self.node)

    async def _take_over(self, question: Question) -> None:
        if question.attempt >= MOST_ATTEMPTS:
            # A question that brings down one node after the other must not do so for ever.
            await self.life.end(question.id, GIVEN_UP, attempt=question.attempt)
        elif (taken := await self.life.take_over(question, node=self.node)) is not None:
            logger.info(
                "question %s: this node takes it over, attempt %d", taken.id, taken.attempt, extra=taken.ids
            )
            self.answering.put(taken)
