"""Hands a batch on, and doesn't let go of it before the log and the dead-letter topic have it.

Called by the consumption with decoded records; calls the dispatcher and the dead-letter topic.
Deliberate: a partition with dead letters to write is paused, alone, until they are acknowledged. What came
after them in the same batch is dispatched already but not committed; the fence skips it if it is read again.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import NamedTuple

from pushsse.backoff import Backoff
from pushsse.backplane import Draft
from pushsse.errors import KafkaUnavailable, NotOwner, Unavailable
from pushsse.intake.assignment import Assignment
from pushsse.intake.base import Dispatch
from pushsse.intake.deadletter import DeadLetters
from pushsse.intake.decode import Refused
from pushsse.intake.outage import Outage
from pushsse.intake.partition import Partition
from pushsse.metrics import Metrics

log = logging.getLogger(__name__)
_LETTERS_AT_ONCE = 100
_LOST_S = 4.0
RECHECK_AFTER_S = 5.0


class Work(NamedTuple):
    """One partition's part of a batch; `end` is the offset after its last record."""

    partition: Partition
    drafts: list[Draft]
    refused: list[Refused]
    end: int


class Onward:
    """Dispatches and dead-letters what was read, and marks it as done."""

    def __init__(
        self, assignment: Assignment, *, dispatch: Dispatch, letters: DeadLetters, metrics: Metrics
    ) -> None:
        self._assignment = assignment
        self._dispatch = dispatch
        self._letters = letters
        self._metrics = metrics
        self._outage = Outage("publishing what came from Kafka", log, Backoff())
        self._dlq_outage = Outage(f"dead-letter topic {letters.topic}", log, Backoff(first_s=0.25))
        self._writing: set[asyncio.Task[None]] = set()

    async def hand_on(self, batch: Sequence[Work], tasks: asyncio.TaskGroup) -> None:
        """Returns when the batch is dispatched, or its partitions are gone; dead letters may take longer."""
        for work in await self._dispatched(batch):
            if not work.refused:
                work.partition.done = work.end
                continue
            work.partition.done = work.refused[0].record.offset
            self._assignment.hold(work.partition)
            writing = tasks.create_task(self._write(work))
            self._writing.add(writing)
            writing.add_done_callback(self._writing.discard)

    def cancel(self) -> None:
        """Gives up what is being written to the dead-letter topic: its offsets aren't committed."""
        for writing in self._writing:
            writing.cancel()

    async def _dispatched(self, batch: Sequence[Work]) -> Sequence[Work]:
        """The same records again until they are in the log; what isn't ours any more is left out."""
        while live := [work for work in batch if work.partition.live]:
            drafts = [draft for work in live for draft in work.drafts]
            try:
                if drafts:
                    await self._dispatch(drafts)
            except NotOwner:
                return await self._without_the_lost(live)
            except Unavailable as error:
                await self._assignment.pause(self._outage.hit(error))
            else:
                if self._outage.over() > RECHECK_AFTER_S:
                    # Nothing was fetched for a while, and a topic made anew meanwhile would go unnoticed.
                    self._assignment.withhold_all()
                return [work for work in live if work.partition.live]
        return []

    async def _without_the_lost(self, batch: Sequence[Work]) -> Sequence[Work]:
        """Finds out whose partition has a newer owner, one by one; the log skips what it has already."""
        if len(batch) > 1:
            return [kept for work in batch for kept in await self._dispatched([work])]
        [work] = batch
        partition = work.partition
        log.warning("%s has a newer owner; its records in hand are dropped", partition.name)
        # If the group takes it from us, that comes within a heartbeat or two. If not, it is claimed anew.
        partition.done = None
        self._assignment.withhold(partition, for_s=_LOST_S)
        return []

    async def _write(self, work: Work) -> None:
        """Writes dead letters until they are acknowledged, then lets their partition go on."""
        partition, left = work.partition, work.refused
        log.warning(
            "%s: %d of the records up to %d can't be used, first offset %d (%s); they go to %s",
            partition.name,
            len(left),
            work.end - 1,
            left[0].record.offset,
            left[0].at,
            self._letters.topic,
        )
        while left and partition.live:
            now, later = left[:_LETTERS_AT_ONCE], left[_LETTERS_AT_ONCE:]
            try:
                held = await self._letters.write(now)
            except KafkaUnavailable as error:
                await self._assignment.pause(self._dlq_outage.hit(f"{error}; {partition.name} is held up"))
                continue
            self._metrics.dead_letters += len(now) - len(held)
            # What is written isn't written again because of what is held beside it.
            left = [*held, *later]
            if held:
                await self._assignment.pause(self._dlq_outage.hit(f"{partition.name} is held up"))
            else:
                self._dlq_outage.over()
        if partition.live:
            partition.done = work.end
            self._assignment.release(partition)
