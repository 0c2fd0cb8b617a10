"""Answers the questions that are leased to this node, each in a task of its own.

The service supervises `run` and queues questions, its sweeps queue and drop them. The answerer is asked, and
`life` writes and publishes what it says. Where the database is away, a question is dropped: a node takes it
over when its lease has lapsed.
"""

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial

import msgspec

from pushsse.errors import Unavailable
from pushsse.questions import (
    ENDLESS,
    EXPIRED,
    HANDED_OVER,
    STALLED,
    STOPS,
    TOO_LONG,
    UNAVAILABLE,
    Answered,
    DataPart,
    Ending,
    Lost,
    Question,
    SourcePart,
    StatusPart,
    Unanswered,
)
from pushsse.questions.answerers import Answerer, Delta, HandOver, HearsStops, NotSure, SentOff
from pushsse.questions.life import Life
from pushsse.questions.pieces import Growing

logger = logging.getLogger(__name__)
_FAILED = Unanswered("failed", "answerer_failed", "the answerer failed")
_SILENT = Unanswered("failed", "answerer_failed", "the answerer ended without an answer")
_NO_ANSWER = Unanswered("failed", "no_answer", "no answerer has an answer")
_CLOSE_S = 2.0
_STOP_S = 10.0


class Answering:
    """The questions that are leased to this node: they wait for their turn, or are being answered."""

    def __init__(self, life: Life, answerer: Answerer, *, node: str, unsure_hands_over: bool = False) -> None:
        self.queue = FairQueue()
        # It has given up its leases, until it runs again.
        self.resting = False
        self._life = life
        self._answerer = answerer
        self._node = node
        self._unsure_hands_over = unsure_hands_over
        self._leased: dict[str, Question] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._group: asyncio.TaskGroup | None = None

    @property
    def leased(self) -> Mapping[str, int]:
        """The ids of this node's questions, each with the number of its attempt."""
        return {question.id: question.attempt for question in self._leased.values()}

    def put(self, question: Question) -> bool:
        """Queues a question; False if there is no room: another sweep, here or elsewhere, takes it over."""
        # This node may take over a question whose earlier attempt it is still answering.
        self.drop(question.id)
        if not self.queue.put(question):
            return False
        self._leased[question.id] = question
        self._start()
        return True

    @contextmanager
    def slot(self, user: str) -> "Iterator[Slot | None]":
        """Room to answer a question of a person at once, kept while it is being stored; None: no room.

        It overtakes no other question: one that waits is over a limit that leaves no room here either.
        """
        if self._group is None or not self.queue.take(user):
            yield None
            return
        slot = Slot(self, user)
        try:
            yield slot
        finally:
            if not slot.has_begun:
                self._over(user)

    def begin(self, question: Question) -> None:
        """Answers a question that has a slot; `Slot` calls it."""
        if self._group is None:
            # It has stopped meanwhile: as any other question it waits until this node runs again.
            self.queue.done(question.user)
            self.put(question)
            return
        self._leased[question.id] = question
        self._begin(question, self._group)

    def drop(self, question_id: str) -> None:
        """Stops answering a question, which has ended or is another node's."""
        self._leased.pop(question_id, None)
        if (task := self._tasks.get(question_id)) is not None:
            task.cancel()

    def hear_end(self, notice: str) -> None:
        """Takes the notice that a question has ended elsewhere: this node stops answering it."""
        question_id, _, attempt = notice.partition(" ")
        leased = self._leased.get(question_id)
        # Asked anew since then, it isn't the question that has ended.
        if leased is not None and attempt.isdecimal() and leased.attempt <= int(attempt):
            self.lose(question_id)

    def lose(self, question_id: str) -> None:
        """Stops answering a question, which has ended or is another node's; tells whoever answers it."""
        question = self._leased.get(question_id)
        is_asked = question_id in self._tasks
        self.drop(question_id)
        # Who ended it has told that, too, but perhaps before this node's record with the question was there.
        if question is not None and is_asked and self._group is not None:
            self._group.create_task(self._tell_ended(question))

    def stop(self, question: Question, code: str) -> None:
        """A question has ended for another reason than its answerer: this node and whoever has it stop."""
        leased = self._leased.get(question.id)
        # Asked anew since then, it isn't the question that has ended.
        if leased is not None and leased.attempt <= question.attempt:
            self.drop(question.id)
        # Whether or not it was sent off: that is stored after it is so, and one that nobody has does no harm.
        if isinstance(self._answerer, HearsStops) and self._group is not None:
            self._group.create_task(self._tell_stop(self._answerer, question, code))

    async def _tell_ended(self, question: Question) -> None:
        """Tells whoever answers of an end that this node has only heard of, if it has ended so."""
        if not isinstance(self._answerer, HearsStops):
            return
        try:
            now = await self._life.find(question.id)
        except Unavailable as error:
            logger.info("question %s: it isn't known how it has ended: %s", question.id, error)
            return
        if now is None:
            return
        code = HANDED_OVER if now.status == "handed_over" else now.error_code
        if code == HANDED_OVER or code in STOPS:
            await self._tell_stop(self._answerer, now, code)

    async def _tell_stop(self, answerer: HearsStops, question: Question, code: str) -> None:
        try:
            async with asyncio.timeout(_STOP_S):
                await answerer.stop(question, code)
        except (Unavailable, TimeoutError) as error:
            logger.warning(
                "question %s: whoever answers isn't told that it has ended: %s",
                question.id,
                str(error) or f"no answer within {_STOP_S:g} s",
                extra=question.ids,
            )
        except Exception:
            # In the group of all answers: an answerer's bug ends none of them.
            logger.exception("question %s: its answerer can't be stopped", question.id, extra=question.ids)

    async def run(self) -> None:
        """Answers, for ever; at the end it gives up its leases, so that another node goes on at once."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                self.resting = False
                self._start()
                try:
                    await self._answerer.run(self._life)
                    await asyncio.Event().wait()
                finally:
                    # Before the tasks are cancelled, so that none of them makes room for another.
                    self._group = None
                    self.resting = True
        finally:
            await self._give_up()

    def _start(self) -> None:
        while self._group is not None and (question := self.queue.next()) is not None:
            self._begin(question, self._group)

    def _begin(self, question: Question, group: asyncio.TaskGroup) -> None:
        task = group.create_task(self._turn(question), name=f"answer {question.id}")
        task.add_done_callback(partial(self._over, question.user))

    def _over(self, user: str, _: asyncio.Task[None] | None = None) -> None:
        # In a callback, since a task that is cancelled before its first step runs no `finally`.
        self.queue.done(user)
        self._start()

    async def _turn(self, question: Question) -> None:
        task = asyncio.current_task()
        # Compared now: it may have been dropped while it waited, or taken over again, for a turn of its own.
        if self._leased.get(question.id) is not question or task is None:
            return
        self._tasks[question.id] = task
        try:
            await self._answer(question)
        except Lost:
            logger.info(
                "question %s: it has ended, or another node has taken it over",
                question.id,
                extra=question.ids,
            )
            self._forget(question)
        except Unavailable as error:
            logger.warning(
                "question %s: not answered now, a node tries again after its lease: %s",
                question.id,
                error,
                extra=question.ids,
            )
            self._forget(question)
        except Exception:
            # Taken over when its lease lapses, a few times: a bug may not bring down node after node.
            logger.exception("question %s: answering failed", question.id, extra=question.ids)
            self._forget(question)
        finally:
            if self._tasks.get(question.id) is task:
                del self._tasks[question.id]

    async def _answer(self, question: Question) -> None:
        question = await self._life.begin(question)
        # Which bears the name of its first question, where that didn't give it one.
        if question.conversation != question.id:
            turns = await self._life.store.turns(question.conversation, before=question.id)
            question = msgspec.structs.replace(question, turns=turns)
        left_s = (question.deadline_at - datetime.now(UTC)).total_seconds()
        ends_at = asyncio.get_running_loop().time() + self._life.pace.longest_s
        limit = asyncio.timeout(left_s)
        growing = self._life.growing(question)
        ending: Ending | SentOff | HandOver
        try:
            async with limit:
                ending = await self._grown(question, growing, limit, ends_at)
        except TimeoutError:
            if not limit.expired():
                raise
            ending = STALLED if growing.has_begun else EXPIRED
            if growing.has_begun and asyncio.get_running_loop().time() >= ends_at:
                ending = ENDLESS
        # Only now: two tasks that tell would send the same growth twice.
        await growing.tell()
        if isinstance(ending, Answered):
            parts = (*growing.pieces.parts, *ending.parts)
            text = growing.pieces.text if ending.text is None else ending.text
            ending = msgspec.structs.replace(ending, text=text, parts=parts)
        elif growing.has_begun:
            await growing.store()
        # Before the end is written: from here on neither a sweep nor a cancel may stop this task between the
        # database's step and the log's. What was dropped meanwhile isn't ended here.
        if not self._forget(question):
            raise Lost(question.id)
        del self._tasks[question.id]
        if isinstance(ending, SentOff):
            if not await self._life.sent_off(question):
                await self._tell_ended(question)
        elif isinstance(ending, HandOver):
            await self._life.hand_over(question, ending.reason)
        else:
            await self._life.end(question.id, ending, attempt=question.attempt, question=question)

    async def _grown(
        self, question: Question, growing: Growing, limit: asyncio.Timeout, ends_at: float
    ) -> Ending | SentOff | HandOver:
        try:
            async with asyncio.TaskGroup() as group:
                telling = _Telling(growing, group)
                ending = await self._ask(question, telling, limit, ends_at)
                telling.end()
        except ExceptionGroup as failed:
            # Either task may fail, and the other is cancelled then: one exception says all.
            raise failed.exceptions[0] from None
        return ending

    async def _ask(
        self, question: Question, telling: "_Telling", limit: asyncio.Timeout, ends_at: float
    ) -> Ending | SentOff | HandOver:
        clock = asyncio.get_running_loop().time
        try:
            async with aclosing(self._answerer.answer(question)) as pieces:
                async for piece in pieces:
                    if isinstance(piece, NotSure):
                        ending = self._unsure(piece)
                        if isinstance(ending, Answered) and ending.text and not telling.growing.pieces.text:
                            telling.add(Delta(ending.text))
                        return ending
                    if not isinstance(piece, (Delta, StatusPart, SourcePart, DataPart)):
                        return piece
                    telling.add(piece)
                    # Whoever says something is alive, but may not go on for ever.
                    limit.reschedule(min(clock() + self._life.pace.stall_s, ends_at))
                    if telling.growing.pieces.too_long:
                        return TOO_LONG
        except Unavailable as error:
            # It has tried for as long as it does.
            logger.warning(
                "question %s: the answerer can't be reached: %s", question.id, error, extra=question.ids
            )
            return UNAVAILABLE
        except Exception:
            # An answerer's bug fails its question, not the node.
            logger.exception("question %s: the answerer failed", question.id, extra=question.ids)
            return _FAILED
        return _SILENT

    def _unsure(self, piece: NotSure) -> Ending | HandOver:
        if self._unsure_hands_over:
            return HandOver("no answerer is sure")
        return piece.instead or _NO_ANSWER

    def _forget(self, question: Question) -> bool:
        """Ends the lease on this node; False if it had none for this attempt."""
        leased = self._leased.get(question.id)
        if leased is None or leased.attempt != question.attempt:
            return False
        del self._leased[question.id]
        return True

    async def _give_up(self) -> None:
        given_up = list(self._leased)
        # First: a sweep that runs meanwhile must not renew them.
        self._leased.clear()
        if not given_up:
            return
        try:
            async with asyncio.timeout(_CLOSE_S):
                await self._life.give_up(given_up, node=self._node)
        except (Unavailable, TimeoutError) as error:
            logger.warning(
                "%d questions weren't given up and wait for their leases to lapse: %s", len(given_up), error
            )


class _Telling:
    """An answer that grows, and the task that tells it, from its first piece on: many have none."""

    def __init__(self, growing: Growing, group: asyncio.TaskGroup) -> None:
        self.growing = growing
        self._group = group
        self._task: asyncio.Task[None] | None = None

    def add(self, piece: Delta | StatusPart | SourcePart | DataPart) -> None:
        """Appends a piece."""
        self.growing.add(piece)
        if self._task is None:
            self._task = self._group.create_task(self.growing.run(), name="tell an answer")

    def end(self) -> None:
        """Tells no more."""
        if self._task is not None:
            self._task.cancel()


class Slot:
    """Room for one question of a person to be answered."""

    def __init__(self, answering: Answering, user: str) -> None:
        self._answering = answering
        self._user = user
        self.has_begun = False

    def begin(self, question: Question) -> None:
        """Answers the question, which has been stored."""
        self.has_begun = True
        self._answering.begin(question)


@dataclass(slots=True)
class FairQueue:
    """The questions that wait: people take turns, so that nobody holds up somebody else (guarantee 4).

    Bounded. Deliberate: plain functions, so that nothing comes between a look and a step.
    """

    most_running: int = 256
    most_of_one: int = 4
    most_waiting: int = 1_000
    waiting: int = 0
    running: int = 0
    _waiting: dict[str, deque[Question]] = field(default_factory=dict)
    _running: Counter[str] = field(default_factory=Counter)

    @property
    def room(self) -> int:
        """How many more questions may wait."""
        return max(0, self.most_waiting - self.waiting)

    def put(self, question: Question) -> bool:
        """Lets a question wait; False if there is no room."""
        if not self.room:
            return False
        self._waiting.setdefault(question.user, deque()).append(question)
        self.waiting += 1
        return True

    def take(self, user: str) -> bool:
        """A question of this person counts as running until `done`, if one more may run."""
        if self.running >= self.most_running or self._running[user] >= self.most_of_one:
            return False
        self._running[user] += 1
        self.running += 1
        return True

    def next(self) -> Question | None:
        """The next question, which counts as running until `done`; None if none may begin."""
        if self.running >= self.most_running:
            return None
        user = next((user for user in self._waiting if self._running[user] < self.most_of_one), None)
        if user is None:
            return None
        # Back to the end of the line, which is the order of the dictionary.
        own = self._waiting.pop(user)
        question = own.popleft()
        if own:
            self._waiting[user] = own
        self.waiting -= 1
        self._running[user] += 1
        self.running += 1
        return question

    def done(self, user: str) -> None:
        """A question of this person isn't being answered any more."""
        self.running -= 1
        self._running[user] -= 1
        if not self._running[user]:
            del self._running[user]
