"""Questions as the endpoints see them: ask, cancel, read; what staff do; and the sweeps that keep all moving.

Called by `api/questions`, `api/front_ends`, `questions/following` and `people`; hands new questions to
`answering`. `run` is a service of the node.

`Desk` is what staff see of the conversations that people have taken over: what waits, answers, messages,
release. Called by `api/questions`. Whoever calls has checked that it is staff: these calls know all
people's conversations, but only while they are handed over. Each of them raises DatabaseUnavailable.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256

import msgspec
from ulid import ULID

from pushsse.backplane import Backplane, NoticeTopic
from pushsse.backplane.answers import SoFar
from pushsse.backplane.limits import LogAllowance
from pushsse.errors import DatabaseUnavailable, InvalidInput, Overloaded, Unavailable, Violation
from pushsse.metrics import Metrics
from pushsse.questions import (
    CANCELLED,
    GIVEN_UP,
    Answered,
    BeingTaken,
    By,
    Conversation,
    DeskEvent,
    Link,
    NobodyAnswers,
    NotNow,
    Question,
    Rating,
    TooManyQuestions,
    Turn,
    asked_size,
    clean,
    said_size,
)
from pushsse.questions.answerers import Answerer
from pushsse.questions.answering import Answering
from pushsse.questions.conversations import Staff
from pushsse.questions.life import Life, QuestionPace
from pushsse.questions.store import KeyTaken, NoRoom, QuestionStore, Unended
from pushsse.retry import Backoff, Outage
from pushsse.strictjson import shown

logger = logging.getLogger(__name__)
MOST_ATTEMPTS = 4
KEY_S = 86_400
# What it may take to write a question: until then a second request with its key is told to come later.
_CLAIM_S = 5
_AT_ONCE = 100
# So many of a person's questions are looked at for the turn that another one follows.
_NEWEST = 10


@dataclass(frozen=True, slots=True)
class Asking:
    """What a person asks.

    `after` is the turn that it follows, as its client has it: where no conversation is named, that turn's.
    """

    text: str
    conversation: str | None = None
    context: dict[str, object] | None = None
    after: Turn | None = None

    @property
    def digest(self) -> str:
        """The same for the same question, whatever the order of its context's members.

        It is of what was sent: the conversation that a turn was found in may be another one the next time.
        """
        said: tuple[object, ...] = (self.text, self.conversation, self.context)
        if self.after is not None:
            said = (*said, self.after)
        return sha256(msgspec.json.encode(said, order="deterministic")).hexdigest()


@dataclass(frozen=True, slots=True)
class Questions:
    """The questions of all people, from this node."""

    life: Life
    answering: Answering
    sweeper: "Sweeper"
    uses: Backplane
    node: str
    timeout_s: float
    most_open: int = 20
    most_handed_over: int = 100
    has_answerer: bool = True

    async def run(self) -> None:
        """Answers and sweeps, for ever. Cancellation gives up this node's leases, and it may run again."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.answering.run(), name="answering")
            group.create_task(self.sweeper.run(), name="sweeper")

    async def ask(self, user: str, asking: Asking, *, idempotency_key: str | None = None) -> Question:
        """Takes a question; with a key that the person has used within a day, returns the first.

        Where people have taken the conversation over, it is handed over from the beginning. Raises
        InvalidInput (the key was another question's), BeingTaken (another request with it is being served),
        UnknownConversation (it is somebody else's), TooManyQuestions, AllowanceSpent, Overloaded,
        NobodyAnswers, DatabaseUnavailable.
        """
        unended: Unended | None = None
        if idempotency_key is not None:
            # In one statement, since most keys are new.
            unended = await self.life.store.unended_unless_keyed(user, idempotency_key)
            if unended is None and (first := await self._first(user, idempotency_key, asking)):
                return first
        self._admit_waiting()
        if idempotency_key is not None:
            # Before the key is claimed: who has no room may come again with it at once.
            self._admit(unended if unended is not None else await self.life.store.count_unended(user))
        await self.life.allowance.take(
            user, asked_size(asking.text, user=user, conversation=asking.conversation)
        )
        if idempotency_key is not None and (first := await self._claim(user, idempotency_key, asking)):
            return first
        conversation = asking.conversation
        if conversation is None and asking.after is not None:
            conversation = await self._conversation_of(user, asking.after)
        question = self._new(user, asking, conversation)
        # An isolated node stores the question without a lease: another node answers it.
        ours = not self.answering.resting
        with self.answering.slot(user) as slot:
            if slot is not None:
                question = msgspec.structs.replace(question, status="answering")
            stored = await self._stored(question, asking, idempotency_key, leased=ours)
            if stored.id != question.id:
                return stored
            if slot is not None and stored.is_open:
                slot.begin(stored)
            elif ours and stored.is_open:
                # Without room for it now, a sweep takes it over when its lease has lapsed.
                self.answering.put(stored)
        # What its person is told first, also where it is being answered already.
        return msgspec.structs.replace(stored, status="pending") if stored.is_open else stored

    async def _stored(self, question: Question, asking: Asking, key: str | None, *, leased: bool) -> Question:
        """Stores a question and tells of it; returns it, or the one that was asked with its key before."""
        digest = "" if key is None else asking.digest
        for _ in range(2):
            try:
                return await self.life.ask(
                    question, key=key, digest=digest, node=self.node, leased=leased, most=self._most
                )
            except NoRoom as error:
                raise self._too_many(error.unended) from None
            except KeyTaken:
                # Asked twice at the same time, and the other one was first; or its day is over.
                if key is None:
                    raise
                if first := await self._first(question.user, key, asking):
                    return first
                await self.life.store.free_key(question.user, key, before=key_since())
        raise BeingTaken(_CLAIM_S)

    async def regenerate(self, user: str, question_id: str) -> Question | None:
        """Asks a person's ended question anew; None if there is no such one. The old answer is kept.

        Raises NotNow (it has no end yet, or is a message of staff), TooManyQuestions, AllowanceSpent,
        Overloaded, NobodyAnswers, DatabaseUnavailable.
        """
        question = await self.get(user, question_id)
        if question is None:
            return None
        if not question.text:
            raise NotNow("no_question", "this is a message, which answers no question")
        if not question.has_ended:
            raise NotNow("not_ended", "the question has no end yet, cancel it first")
        self._admit_waiting()
        self._admit(await self.life.store.count_unended(user))
        await self.life.allowance.take(
            user, asked_size(question.text, user=user, conversation=question.conversation)
        )
        ours = not self.answering.resting
        again = await self.life.ask_again(question, node=self.node, leased=ours, timeout_s=self.timeout_s)
        if again is not None and ours and again.is_open:
            self.answering.put(again)
        return again

    async def rate(self, user: str, question_id: str, rating: Rating, comment: str) -> Question | None:
        """Stores what a person thinks of an answer; None if there is no such question. Raises NotNow."""
        if not await self.life.store.rate(user, question_id, rating, clean(comment)):
            if await self.get(user, question_id) is None:
                return None
            raise NotNow("not_ended", "the question has no end yet")
        return await self.get(user, question_id)

    async def conversation(self, user: str, conversation: str) -> Conversation | None:
        """A person's conversation; None if there is none, or it is somebody else's."""
        found = await self.life.conversations.one(conversation)
        return found if found is not None and found.user == user else None

    async def hand_over(self, user: str, conversation: str, reason: str) -> Conversation | None:
        """People answer in a person's conversation from now on, as he wants it; None if there is none.

        Raises NotNow where nothing is handed over here, AllowanceSpent.
        """
        if await self.conversation(user, conversation) is None:
            return None
        # What waits in it is told to its person and to the staff, once for each of these calls.
        await self.life.allowance.take(user)
        if not self.life.pace.keep_s:
            raise NotNow("no_people", "nobody takes conversations over here")
        await self.life.hand_over_conversation(conversation, by="person", reason=reason)
        return await self.conversation(user, conversation)

    async def cancel(self, user: str, question_id: str) -> Question | None:
        """Ends a person's question if it has no end; as it stands then, None if there is no such one."""
        question = await self.get(user, question_id)
        if question is None or question.has_ended:
            return question
        await self.life.end(question_id, CANCELLED)
        return await self.get(user, question_id)

    async def get(self, user: str, question_id: str) -> Question | None:
        """A person's question; None if there is none, or it is somebody else's."""
        question = await self.life.store.one(question_id)
        return question if question is not None and question.user == user else None

    async def keyed(self, user: str, key: str) -> Question | None:
        """The question that a person has asked with an idempotency key, however long ago; None for none."""
        found = await self.life.store.by_key(user, key, since=datetime.fromtimestamp(0, UTC))
        return None if found is None else found[0]

    async def page(
        self,
        user: str,
        *,
        limit: int,
        before: str | None = None,
        conversation: str | None = None,
        characters: int = 0,
    ) -> Sequence[Question]:
        """A person's questions, in one conversation or all, newest first, those before an id.

        With so many characters of each answer, and without parts: `get` and `whole_page` have all of them.
        """
        return await self.life.store.page(
            user, limit=limit, before=before, conversation=conversation, characters=characters
        )

    async def whole_page(
        self, user: str, conversation: str, *, limit: int, before: str | None, most_characters: int
    ) -> tuple[Sequence[Question], bool]:
        """A page of a conversation with whole answers, as many as have so few characters together, or one.

        With it comes whether there are older ones.
        """
        return await self.life.store.whole_page(
            user, conversation, limit=limit, before=before, most_characters=most_characters
        )

    async def growing(self, user: str) -> Mapping[str, SoFar]:
        """For whoever joins: the answers that are growing for this person, by question.

        Call it after the stream has begun to hear deltas, so that none is missed in between.
        """
        return await self.life.so_far(await self.life.store.answering(user))

    async def _first(self, user: str, key: str, asking: Asking) -> Question | None:
        found = await self.life.store.by_key(user, key, since=key_since())
        if found is None:
            return None
        first, digest = found
        # A node of the version before stores no digest.
        same = (
            digest == asking.digest
            if digest
            else (first.text, first.context) == (asking.text, asking.context)
        )
        if not same:
            raise InvalidInput(Violation("Idempotency-Key", f"{shown(key)} was used for another question"))
        return first

    async def _claim(self, user: str, key: str, asking: Asking) -> Question | None:
        """Returns None to the first of those who ask with a key at once, the question where it is there now.

        Raises BeingTaken. The unique constraint is what decides where the backplane is away.
        """
        name = sha256(msgspec.json.encode((user, key))).hexdigest()
        seen, left_ms = await self.uses.use(f"idempotency:{name}", window_ms=_CLAIM_S * 1000)
        if seen == 1:
            return None
        if first := await self._first(user, key, asking):
            return first
        raise BeingTaken(-(-left_ms // 1000))

    def _admit_waiting(self) -> None:
        if not self.has_answerer:
            raise NobodyAnswers("nobody answers questions here at present")
        if not self.answering.queue.room:
            raise Overloaded("too many questions wait for their turn")

    def _admit(self, unended: Unended) -> None:
        if not unended.leaves_room(self._most):
            raise self._too_many(unended)

    @property
    def _most(self) -> Unended:
        # People may take days, and answer several with one message: far more of these may wait.
        # Deliberate: two calls together may both be admitted. The limits needn't be exact.
        return Unended(self.most_open, self.most_handed_over)

    def _too_many(self, unended: Unended) -> TooManyQuestions:
        if unended.open >= self.most_open:
            return TooManyQuestions(f"{self.most_open} questions are open, wait for an answer or cancel one")
        return TooManyQuestions(
            f"{self.most_handed_over} questions wait for people, wait for an answer or cancel one"
        )

    async def _conversation_of(self, user: str, turn: Turn) -> str | None:
        """The conversation of the newest question that is this turn's; None if none of the last few is.

        A client may have a part of the answer alone: it has stopped reading, or people have answered since.
        """
        asked, said = turn.question.strip(), turn.answer.strip()
        for listed in await self.page(user, limit=_NEWEST):
            if not asked or listed.text.strip() != asked:
                continue
            # A list has no answers.
            if (question := await self.get(user, listed.id)) is None:
                continue
            stored = question.answer.strip()
            # Until it is answered, what is stored may be behind what was streamed.
            is_behind = question.status != "answered" and said.startswith(stored)
            # What people say takes the place of what an answerer had begun.
            by_people = question.by is not None and question.by.kind == "staff"
            if stored.startswith(said) or is_behind or by_people:
                return question.conversation
        return None

    def _new(self, user: str, asking: Asking, conversation: str | None) -> Question:
        now, question_id = datetime.now(UTC), str(ULID())
        return Question(
            id=question_id,
            user=user,
            # The same id says that the conversation begins with this question.
            conversation=conversation or question_id,
            text=asking.text,
            context=asking.context,
            status="pending",
            asked_at=now,
            updated_at=now,
            deadline_at=now + timedelta(seconds=self.timeout_s),
        )


def key_since() -> datetime:
    """Idempotency keys that were used before are free."""
    return datetime.now(UTC) - timedelta(seconds=KEY_S)


def assemble_questions(
    store: QuestionStore,
    backplane: Backplane,
    answerer: Answerer,
    *,
    node: str,
    timeout_s: float,
    metrics: Metrics,
    pace: QuestionPace | None = None,
    unsure_hands_over: bool = False,
    has_answerer: bool = True,
    allowance: LogAllowance | None = None,
) -> Questions:
    """The service of one node; `run` has to be supervised. A question expires after `timeout_s`."""
    life = Life(store, backplane, metrics, pace or QuestionPace(), allowance)
    answering = Answering(life, answerer, node=node, unsure_hands_over=unsure_hands_over)
    life.hear_stops(answering.stop)
    backplane.hear_notices(NoticeTopic.ENDED, answering.hear_end)
    sweeper = Sweeper(life, answering, node)
    return Questions(life, answering, sweeper, backplane, node, timeout_s, has_answerer=has_answerer)


@dataclass(frozen=True, slots=True)
class Sweeper:
    """Keeps the questions of all nodes moving: none stays open, unanswered or unpublished for ever.

    Each sweep ends what is overdue, takes over what a dead node had, and publishes what isn't in the log.
    Each step is conditional in the database, so several nodes may sweep together. This node's leases are
    renewed meanwhile: a sweep may take longer than they last, and take over what this node is answering.
    """

    life: Life
    answering: Answering
    node: str

    async def run(self) -> None:
        """Sweeps and renews for ever; an absent database is waited for."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._again(self.renew, "leases of questions can't be renewed"))
            group.create_task(self._again(self.sweep, "sweeps of questions fail"))

    async def _again(self, step: Callable[[], Awaitable[None]], fails: str) -> None:
        outage = Outage(fails, logger, Backoff())
        while True:
            try:
                await step()
                outage.over()
            except DatabaseUnavailable as error:
                outage.failed(error)
            await asyncio.sleep(self.life.pace.sweep_s * random.uniform(0.75, 1.25))

    async def sweep(self) -> None:
        """One round. Raises DatabaseUnavailable."""
        await self.life.store_announced()
        await self.life.drop_over()
        if overdue := await self.life.store.overdue(_AT_ONCE):
            await self.life.expire(overdue)
        await self.life.conversations.lapse()
        if room := min(self.answering.queue.room, _AT_ONCE):
            for question in await self.life.store.abandoned(room):
                await self._take_over(question)
        for question in await self.life.store.unannounced(_AT_ONCE):
            if not await self.life.publish(question):
                # The backplane is away, and each try may take seconds.
                break

    async def renew(self) -> None:
        """Renews this node's leases, and drops the questions that it has lost. Raises DatabaseUnavailable."""
        leased = self.answering.leased
        if not leased:
            return
        attempts = await self.life.store.attempts(leased)
        for question_id, attempt in leased.items():
            # Compared again: it may have ended here while the database was asked.
            if attempts.get(question_id) != attempt and self.answering.leased.get(question_id) == attempt:
                self.answering.lose(question_id)
        if ours := [each for each, attempt in attempts.items() if attempt == leased[each]]:
            await self.life.renew(ours, node=self.node)

    async def _take_over(self, question: Question) -> None:
        if question.attempt - question.first_attempt + 1 >= MOST_ATTEMPTS:
            # A question that brings down one node after the other must not do so for ever.
            await self.life.close(question, GIVEN_UP, attempt=question.attempt)
        elif (taken := await self.life.take_over(question, node=self.node)) is not None:
            logger.info(
                "question %s: this node takes it over, attempt %d", taken.id, taken.attempt, extra=taken.ids
            )
            self.answering.put(taken)


@dataclass(frozen=True, slots=True)
class Said:
    """What a member of staff says; `name` is what the person sees of him."""

    text: str
    name: str
    links: tuple[Link, ...] = ()

    @property
    def by(self) -> By:
        """Who says it."""
        return By("staff", self.name)


@dataclass(frozen=True, slots=True)
class Desk:
    """What staff do, on any node."""

    life: Life

    async def waiting(self, staff: Staff, *, limit: int, before: str | None) -> Sequence[Conversation]:
        """What is handed over, the newest question first.

        For an hour, but no longer than the asker's token is good, the asker's streams tell that more comes.
        """
        await self.life.conversations.staff_asked(staff)
        return await self.life.conversations.handed_over(limit=limit, before=before)

    async def conversation(self, conversation: str) -> Conversation | None:
        """One that is handed over; None for any other."""
        found = await self.life.conversations.one(conversation)
        return found if found is not None and found.is_handed_over else None

    async def read(self, staff: str, conversation: str) -> Conversation | None:
        """The same, for a member of staff who is to see its questions: that leaves a line in the log."""
        if (found := await self.conversation(conversation)) is not None and found.user != staff:
            logger.info("conversation %s: %s reads it", conversation, staff, extra={"user": found.user})
        return found

    async def answer(self, staff: str, question_id: str, said: Said) -> Question | None:
        """Answers a question of such a conversation. None if there is none; raises NotNow if it has ended.

        Of two that answer at once the first one wins, on all nodes. Raises AllowanceSpent.
        """
        question = await self.life.find(question_id)
        if question is None or await self.conversation(question.conversation) is None:
            return None
        await self._pay(staff, said, user=question.user, conversation=question.conversation)
        if not await self.life.end(question_id, Answered(said.by, said.text, said.links)):
            raise NotNow("already_ended", "the question has an answer already, or has ended otherwise")
        logger.info("question %s: %s has answered it", question_id, staff, extra=question.ids)
        await self._said(question, staff)
        return await self.life.find(question_id)

    async def write(
        self, staff: str, conversation: str, said: Said, *, idempotency_key: str | None = None
    ) -> Question | None:
        """Sends a further message, as the answer to a question without text. None if it isn't handed over.

        With a key that this member of staff has used here within a day, returns the first. Raises
        InvalidInput (that had another text), BeingTaken (it is being written), AllowanceSpent.
        """
        if (found := await self.conversation(conversation)) is None:
            return None
        key = None if idempotency_key is None else _message_key(staff, conversation, idempotency_key)
        if key is not None and (first := await self._first(found.user, key, said)) is not None:
            return first
        await self._pay(staff, said, user=found.user, conversation=conversation)
        now = datetime.now(UTC)
        message = Question(
            id=str(ULID()),
            user=found.user,
            conversation=conversation,
            text="",
            status="answered",
            asked_at=now,
            updated_at=now,
            deadline_at=now,
            answer=clean(said.text),
            by=said.by,
            links=said.links,
        )
        if not await self.life.write(message, key=key):
            return None
        logger.info("conversation %s: %s has sent a message", conversation, staff, extra=message.ids)
        await self._said(message, staff)
        return message

    async def _first(self, user: str, key: str, said: Said) -> Question | None:
        since = key_since()
        await self.life.store.free_key(user, key, before=since)
        if (found := await self.life.store.by_key(user, key, since=since)) is None:
            return None
        first, _ = found
        if (first.answer, first.links, first.by) != (clean(said.text), said.links, said.by):
            raise InvalidInput(Violation("Idempotency-Key", "was used for another message"))
        return first

    async def release(self, conversation: str, *, by: str) -> Conversation | None:
        """Answerers have the conversation again; what still waits fails. None if it isn't handed over."""
        ids = await self.life.conversations.release(conversation, by=by, announce_s=self.life.pace.announce_s)
        found = await self.life.conversations.one(conversation) if ids is not None else None
        if ids is None or found is None:
            return None
        logger.info("conversation %s: %s has released it, %d questions end", conversation, by, len(ids))
        await self.life.announce_all(ids)
        await self.life.tell_staff(DeskEvent(conversation, "released", None), by=by)
        return found

    async def _pay(self, staff: str, said: Said, *, user: str, conversation: str) -> None:
        size = said_size(said.text, said.links, name=said.name, user=user, conversation=conversation)
        await self.life.allowance.take(staff, size)

    async def _said(self, question: Question, staff: str) -> None:
        """The conversation's time begins anew, and other staff are told; if not, what was said stays."""
        try:
            await self.life.conversations.keep(question.conversation, keep_s=self.life.pace.keep_s)
        except Unavailable as error:
            logger.warning(
                "conversation %s stays with the staff for no longer than before this answer: %s",
                question.conversation,
                error,
            )
        await self.life.tell_staff(DeskEvent(question.conversation, "answered", question.id), by=staff)


def _message_key(staff: str, conversation: str, key: str) -> str:
    """The key of a message among those of its person, none of whose own begins like that."""
    return "\x01" + sha256(msgspec.json.encode((staff, conversation, key))).hexdigest()
