"""What every node does for all questions, every two seconds: none stays open, unanswered or untold for ever.

Run by the service. Renews this node's leases, ends what is overdue, takes over what a dead node held, and
tells what didn't get into the log. All steps are conditional in the database, so several nodes may do them at
once.
"""

import asyncio
import logging
import random
from dataclasses import dataclass

import msgspec

from pushsse.errors import DatabaseUnavailable
from pushsse.questions.answering import Answering
from pushsse.questions.life import Life
from pushsse.questions.question import EXPIRED, GIVEN_UP, Question

log = logging.getLogger(__name__)
MOST_ATTEMPTS = 4
_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class Sweeper:
    """Keeps the questions of all nodes moving."""

    life: Life
    answering: Answering
    node: str

    async def run(self) -> None:
        """Sweeps for ever; an absent database is waited for."""
        while True:
            try:
                await self.sweep()
            except DatabaseUnavailable as error:
                log.warning("no sweep: %s", error)
            await asyncio.sleep(self.life.pace.sweep_s * random.uniform(0.75, 1.25))

    async def sweep(self) -> None:
        """One round. Raises DatabaseUnavailable."""
        await self._keep()
        for question in await self.life.store.overdue(_AT_ONCE):
            if await self.life.end(question.id, EXPIRED):
                self.answering.drop(question.id)
        if room := min(self.answering.turns.room, _AT_ONCE):
            for question in await self.life.store.abandoned(room):
                await self._take(question)
        for question in await self.life.store.unannounced(_AT_ONCE):
            if not await self.life.announce(question):
                # A part is away, and each try may take seconds: leases have to be renewed meanwhile.
                break

    async def _keep(self) -> None:
        """Renews the leases of what this node holds, and drops what it holds no more."""
        mine = self.answering.held
        if not mine:
            return
        takers = await self.life.store.held(mine)
        for question_id, attempt in mine.items():
            # Compared again: it may have come to its end here while the database was asked.
            if takers.get(question_id) != attempt and self.answering.held.get(question_id) == attempt:
                self.answering.drop(question_id)
        if kept := [question_id for question_id in takers if takers[question_id] == mine[question_id]]:
            await self.life.store.lease(kept, self.life.pace.lease_s)

    async def _take(self, question: Question) -> None:
        if question.attempt >= MOST_ATTEMPTS:
            # What brings node after node down must not do so for ever.
            await self.life.end(question.id, GIVEN_UP, attempt=question.attempt)
        elif await self.life.store.take(question, owner=self.node, lease_s=self.life.pace.lease_s):
            log.info("question %s is taken over, attempt %d", question.id, question.attempt + 1)
            self.answering.put(msgspec.structs.replace(question, attempt=question.attempt + 1))
