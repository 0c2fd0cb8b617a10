"""The answering on this node: which questions it holds, and one task for each that has its turn.

Called by the service, which supervises `run`, and by the sweeper; asks the answerer, hands to `growing` and
`life`. A question that can't be answered just now (a part is away) is taken anew when its lease has lapsed.
"""

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial

import msgspec

from pushsse.errors import Unavailable
from pushsse.questions.answerers import Answerer, Delta, SentOff
from pushsse.questions.life import Growing, Life
from pushsse.questions.question import (
    EXPIRED,
    TOO_LONG,
    Answered,
    Ending,
    Lost,
    Question,
    Unanswered,
)

log = logging.getLogger(__name__)
_FAILED = Unanswered("failed", "answerer_failed", "the answerer failed")
_SILENT = Unanswered("failed", "answerer_failed", "the answerer ended without an answer")
_CLOSE_S = 2.0


class Answering:
    """The questions that this node holds: waiting for their turn, or being answered."""

    def __init__(self, life: Life, answerer: Answerer, turns: "Turns") -> None:
        self.turns = turns
        self._life = life
        self._answerer = answerer
        self._held: dict[str, Question] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._group: asyncio.TaskGroup | None = None

    @property
    def held(self) -> Mapping[str, int]:
        """The ids of the questions that this node holds, each with its taker's number."""
        return {question.id: question.attempt for question in self._held.values()}

    def put(self, question: Question) -> bool:
        """Takes a question on; False if there is no room: another sweep, here or elsewhere, takes it."""
        self.drop(question.id)
        if not self.turns.put(question.user, question.id):
            return False
        self._held[question.id] = question
        self._start()
        return True

    def drop(self, question_id: str) -> None:
        """Stops answering a question, which has ended or is somebody else's."""
        self._held.pop(question_id, None)
        if (task := self._tasks.get(question_id)) is not None:
            task.cancel()

    async def run(self) -> None:
        """Answers, for ever; what is still held at the end is given up, for another node to take at once."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                self._start()
                try:
                    await self._answerer.run(self._life)
                    await asyncio.Event().wait()
                finally:
                    # Before the tasks are cancelled, so that none of them makes room for another.
                    self._group = None
        finally:
            await self._give_up()

    def _start(self) -> None:
        while self._group is not None and (turn := self.turns.next()) is not None:
            user, question_id = turn
            task = self._group.create_task(self._turn(user, question_id), name=f"answer {question_id}")
            task.add_done_callback(partial(self._over, user))

    def _over(self, user: str, _: asyncio.Task[None]) -> None:
        # In a callback, since a task that is cancelled before its first step runs no `finally`.
        self.turns.done(user)
        self._start()

    async def _turn(self, user: str, question_id: str) -> None:
        question = self._held.get(question_id)
        task = asyncio.current_task()
        if question is None or task is None:
            return
        self._tasks[question_id] = task
        try:
            await self._answer(question)
        except Lost:
            log.info("question %s has ended or is somebody else's", question_id)
            self._forget(question)
        except Unavailable as error:
            log.warning("question %s can't be answered just now: %s", question_id, error)
            self._forget(question)
        except Exception:
            # Taken anew when its lease lapses, a few times; it mustn't take node after node down.
            log.exception("question %s: answering failed", question_id)
            self._forget(question)
        finally:
            if self._tasks.get(question_id) is task:
                del self._tasks[question_id]

    async def _answer(self, question: Question) -> None:
        question = await self._life.begin(question)
        left_s = (question.deadline_at - datetime.now(UTC)).total_seconds()
        limit = asyncio.timeout(left_s)
        ending: Ending | SentOff = EXPIRED
        try:
            async with limit:
                ending = await self._grown(question)
        except TimeoutError:
            if not limit.expired():
                raise
        # From here on neither a sweep nor a cancel may stop this task between a step and its telling.
        if not self._forget(question):
            raise Lost(question.id)
        del self._tasks[question.id]
        if isinstance(ending, SentOff):
            await self._life.store.sent_off(question)
        else:
            await self._life.end(question.id, ending, attempt=question.attempt)

    async def _grown(self, question: Question) -> Ending | SentOff:
        growing = Growing(self._life, question)
        try:
            async with asyncio.TaskGroup() as group:
                telling = group.create_task(growing.run(), name=f"tell {question.id}")
                ending = await self._ask(question, growing)
                telling.cancel()
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        await growing.finish()
        if isinstance(ending, Answered) and ending.text is None:
            return msgspec.structs.replace(ending, text=growing.text)
        return ending

    async def _ask(self, question: Question, growing: Growing) -> Ending | SentOff:
        try:
            async with aclosing(self._answerer.answer(question)) as pieces:
                async for piece in pieces:
                    if not isinstance(piece, Delta):
                        return piece
                    growing.add(piece.text)
                    if growing.too_long:
                        return TOO_LONG
        except Unavailable:
            raise
        except Exception:
            # An answerer's bug fails its question, not the node.
            log.exception("question %s: the answerer failed", question.id)
            return _FAILED
        return _SILENT

    def _forget(self, question: Question) -> bool:
        """This node doesn't hold the question any more; False if it didn't, as this taker, before."""
        held = self._held.get(question.id)
        if held is None or held.attempt != question.attempt:
            return False
        del self._held[question.id]
        return True

    async def _give_up(self) -> None:
        given_up = list(self._held)
        self._held.clear()
        if not given_up:
            return
        try:
            async with asyncio.timeout(_CLOSE_S):
                await self._life.store.lease(given_up, 0)
        except (Unavailable, TimeoutError) as error:
            log.warning("%d questions wait for their leases to lapse: %s", len(given_up), error)


@dataclass(slots=True)
class Turns:
    """Questions that wait, by person, and how many of each person are being answered. Bounded."""

    most_running: int = 64
    most_of_one: int = 4
    most_waiting: int = 1_000
    waiting: int = 0
    _lines: dict[str, deque[str]] = field(default_factory=dict)
    _running: Counter[str] = field(default_factory=Counter)

    @property
    def room(self) -> int:
        """How many more questions may wait."""
        return max(0, self.most_waiting - self.waiting)

    def put(self, user: str, question_id: str) -> bool:
        """Lets a question wait; False if there is no room."""
        if not self.room:
            return False
        self._lines.setdefault(user, deque()).append(question_id)
        self.waiting += 1
        return True

    def next(self) -> tuple[str, str] | None:
        """The next person and question, which count as running until `done`; None if nobody may begin."""
        if self._running.total() >= self.most_running:
            return None
        user = next((user for user in self._lines if self._running[user] < self.most_of_one), None)
        if user is None:
            return None
        line = self._lines.pop(user)
        question_id = line.popleft()
        if line:
            self._lines[user] = line
        self.waiting -= 1
        self._running[user] += 1
        return user, question_id

    def done(self, user: str) -> None:
        """A question of this person isn't being answered any more."""
        self._running[user] -= 1
        if not self._running[user]:
            del self._running[user]
