"""`kafka:`: questions go to one topic, keyed by their person; answers come from another, read by any node.

Asked by `answering`, supervised by it; what an answer record does is `kafka_answers`' business. Where a topic
isn't there or Kafka is away, it waits: questions until their time is over, answers for ever.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import (
    CommitFailedError,
    IllegalStateError,
    KafkaError,
    OffsetOutOfRangeError,
    RebalanceInProgressError,
)
from msgspec import Struct

from pushsse.backoff import Backoff
from pushsse.errors import KafkaUnavailable, Unavailable
from pushsse.kafka import cancellation_is_ours, stop
from pushsse.metrics import Metrics
from pushsse.questions.answerers.base import Answers, Piece, SentOff
from pushsse.questions.answerers.kafka_answers import Applying, Batch, Letters
from pushsse.questions.question import Question

log = logging.getLogger(__name__)
_ROUND_S = 0.05
_POLL_MS = 250
_POLL_LIMIT_S = 2.0
_MOST_RECORDS = 1_000

# Sends one record (key, value) to the questions' topic; raises KafkaUnavailable.
Send = Callable[[bytes, bytes], Awaitable[None]]


class QuestionRecord(Struct, frozen=True):
    """A question as it is in the topic."""

    id: str
    conversation: str
    user: str
    text: str
    context: dict[str, Any] | None
    asked_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaAnswerer:
    """Sends questions off and takes answers in.

    `consumer` makes one that isn't started, in the group of all nodes, without auto-commit; without a
    committed offset reading starts `start_age_s` ago: an older answer can't belong to an open question.
    """

    send: Send
    consumer: Callable[[], AIOKafkaConsumer]
    topic: str
    letters: Letters
    start_age_s: float
    metrics: Metrics
    name: str = "kafka"

    async def answer(self, question: Question) -> AsyncGenerator[Piece, None]:
        """Sends the question; its service ends the tries when its time is over."""
        record = QuestionRecord(
            question.id,
            question.conversation,
            question.user,
            question.text,
            question.context,
            question.asked_at,
        )
        backoff = Backoff(first_s=0.2)
        while True:
            try:
                await self.send(question.user.encode(), msgspec.json.encode(record))
                break
            except KafkaUnavailable as error:
                log.warning("question %s can't be sent off: %s", question.id, error)
                await asyncio.sleep(backoff.next_s())
        yield SentOff()

    async def run(self, answers: Answers) -> None:
        """Reads answers for ever, with a new consumer where the old one can't go on."""
        backoff = Backoff(first_s=0.5, most_s=10.0)
        while True:
            applying = Applying(answers, self.letters, by=self.name, metrics=self.metrics)
            consumer = self.consumer()
            try:
                await consumer.start()
                assignment = _Assignment(consumer, applying, self.start_age_s)
                consumer.subscribe([self.topic], listener=assignment)
                await _consume(consumer, applying, assignment, backoff)
            except KafkaError as error:
                log.warning("answers from %s: %r; trying again", self.topic, error)
                await asyncio.sleep(backoff.next_s())
            except asyncio.CancelledError:
                if cancellation_is_ours():
                    raise
                log.warning("answers from %s: the client gave up; trying again", self.topic)
                await asyncio.sleep(backoff.next_s())
            finally:
                await stop(consumer)


async def _consume(
    consumer: AIOKafkaConsumer, applying: Applying, assignment: "_Assignment", backoff: Backoff
) -> None:
    """Rounds of: take what is there, apply it, commit. Raises KafkaError."""
    while True:
        began = time.monotonic()
        await assignment.prepare()
        found = await _read(consumer, assignment)
        backoff.reset()
        # What was fetched before its partition was assigned anew is read again from where it should be.
        batch: Batch = {at: records for at, records in found.items() if at not in assignment.unready}
        await _apply(applying, batch)
        if batch or applying.waiting:
            await _commit(consumer, applying)
        # One round gathers what comes within 50 ms, so that an answer grows at most twenty times a second.
        await asyncio.sleep(max(0.0, _ROUND_S - (time.monotonic() - began)))


async def _read(consumer: AIOKafkaConsumer, assignment: "_Assignment") -> Batch:
    try:
        # getmany alone waits without an end while the group is busy with itself.
        async with asyncio.timeout(_POLL_LIMIT_S):
            found: Batch = await consumer.getmany(timeout_ms=_POLL_MS, max_records=_MOST_RECORDS)
            return found
    except TimeoutError:
        return {}
    except OffsetOutOfRangeError as error:
        log.warning("answers: %s is out of range, starting at the earliest", error)
        await consumer.seek_to_beginning(*error.args[0])
        return {}


async def _apply(applying: Applying, batch: Batch) -> None:
    """Applies a batch; a part that is away is waited for, with the same batch."""
    backoff = Backoff()
    while True:
        try:
            await applying.apply(batch)
            return
        except Unavailable as error:
            log.warning("answers wait: %s", error)
            await asyncio.sleep(backoff.next_s())


async def _commit(consumer: AIOKafkaConsumer, applying: Applying) -> None:
    mine = consumer.assignment()
    offsets = {at: offset for at, offset in applying.offsets().items() if at in mine}
    if not offsets or offsets == applying.committed:
        return
    try:
        await consumer.commit(offsets)
        applying.committed = offsets
    except (CommitFailedError, IllegalStateError, RebalanceInProgressError) as error:
        # Somebody else's by now: repeats are known by their seq.
        log.info("answers: offsets aren't committed: %r", error)


class _Assignment(ConsumerRebalanceListener):  # type: ignore[misc]
    """Where reading of a partition begins, and what is forgotten when it goes.

    Deliberate: a rebalance only notes and pauses what is assigned, and gives it some position, so that the
    consumer doesn't look for one by itself; `prepare` finds the right one.
    """

    def __init__(self, consumer: AIOKafkaConsumer, applying: Applying, start_age_s: float) -> None:
        self.unready: set[TopicPartition] = set()
        self._consumer = consumer
        self._applying = applying
        self._start_age_s = start_age_s

    def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """Another node reads them from what was committed."""
        self._applying.forget(revoked)
        self.unready -= set(revoked)

    def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """They are ours, and not read yet."""
        for at in assigned:
            self._consumer.pause(at)
            self._consumer.seek(at, 0)
            self.unready.add(at)

    async def prepare(self) -> None:
        """From what was committed, else from as far back as an open question may reach. Raises KafkaError."""
        for at in tuple(self.unready):
            offset = await self._consumer.committed(at)
            if offset is None:
                offset = await self._beginning(at)
            if at in self.unready:
                self._consumer.seek(at, offset)
                self._consumer.resume(at)
                self.unready.discard(at)

    async def _beginning(self, at: TopicPartition) -> int:
        since_ms = int((time.time() - self._start_age_s) * 1000)
        found = (await self._consumer.offsets_for_times({at: since_ms}))[at]
        if found is not None:
            return int(found.offset)
        return int((await self._consumer.end_offsets([at]))[at])
