"""`kafka:`: questions go to one topic, keyed by their person; answers come from another, read by any node.

Asked by `answering`, supervised by it; an answer record is applied here. Where a topic
isn't there or Kafka is away, it waits: questions until their time is over, answers for ever.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, NamedTuple

import msgspec
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, ConsumerRecord, TopicPartition
from aiokafka.errors import (
    CommitFailedError,
    IllegalStateError,
    KafkaError,
    OffsetOutOfRangeError,
    RebalanceInProgressError,
)
from msgspec import UNSET, Meta, Struct, UnsetType, structs

from pushsse import strictjson
from pushsse.errors import InvalidInput, KafkaUnavailable, Problem, Unavailable
from pushsse.kafka.client import cancellation_is_ours, stop
from pushsse.metrics import Metrics
from pushsse.questions.answerers import Answers, Piece, SentOff
from pushsse.questions.question import Answered, By, Question, Unanswered
from pushsse.retry import Backoff

log = logging.getLogger(__name__)
_ROUND_S = 0.05
_POLL_MS = 250
_POLL_LIMIT_S = 2.0
_MOST_RECORDS = 1_000
HOLE_S = 2.0
MOST_WAITING = 10_000
_AT_ONCE = 16
_TRIES = 5

Batch = Mapping[TopicPartition, Sequence["ConsumerRecord[bytes, bytes]"]]
# Writes records that can't be used, each with the reason; raises KafkaUnavailable.
Letters = Callable[[Sequence[tuple["ConsumerRecord[bytes, bytes]", str]]], Awaitable[None]]


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


class AnswerRecord(Struct, frozen=True):
    """A piece of an answer (`delta`), all of it (`text`), or that there is none (`error`).

    `text`, `error` and `done` end it. Pieces are numbered from 1 by `seq`; so is a `done` by itself.
    """

    question: Annotated[str, Meta(min_length=1, max_length=64)]
    seq: Annotated[int, Meta(ge=1, le=2_000_000_000)] | UnsetType = UNSET
    delta: str | UnsetType = UNSET
    text: str | UnsetType = UNSET
    error: str | UnsetType = UNSET
    handover: object = UNSET
    done: bool = False


class AnswerPiece(NamedTuple):
    """A record that was understood, and where it is."""

    record: "ConsumerRecord[bytes, bytes]"
    says: AnswerRecord

    @property
    def seq(self) -> int:
        """Its number; a text or an error doesn't need one."""
        return self.says.seq or 0

    @property
    def is_end(self) -> bool:
        """Whether it ends the answer whatever came before it."""
        return self.says.text is not UNSET or self.says.error is not UNSET


@dataclass(slots=True)
class _Waiting:
    """Pieces of one answer that came before others, by number, and since when."""

    pieces: dict[int, AnswerPiece] = field(default_factory=dict)
    since: float = field(default_factory=time.monotonic)


class Applying:
    """The answers that are growing through this consumer."""

    def __init__(self, answers: Answers, letters: Letters, *, by: str, metrics: Metrics) -> None:
        self.committed: Mapping[TopicPartition, int] = {}
        self._answers = answers
        self._letters = letters
        self._by = By("bot", by)
        self._metrics = metrics
        self._waiting: dict[str, _Waiting] = {}
        self._done: dict[TopicPartition, int] = {}
        self._limit = asyncio.Semaphore(_AT_ONCE)

    @property
    def waiting(self) -> int:
        """Pieces that wait for the ones before them."""
        return sum(len(waiting.pieces) for waiting in self._waiting.values())

    async def apply(self, batch: Batch) -> None:
        """Applies records. Raises Unavailable; it is right to apply the same batch again."""
        refused: list[tuple[ConsumerRecord[bytes, bytes], str]] = []
        answers: dict[str, list[AnswerPiece]] = {question: [] for question in self._waiting}
        for record in (record for records in batch.values() for record in records):
            try:
                says = read(record.value)
            except InvalidInput as error:
                refused.append((record, str(error)))
                continue
            answers.setdefault(says.question, []).append(AnswerPiece(record, says))
        # Not a group: a part that is away is raised as itself, and the others may finish.
        results = await asyncio.gather(
            *(self._one(question, pieces) for question, pieces in answers.items()), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result
            refused += result
        if refused:
            await self._letters(refused)
        self._done |= {at: records[-1].offset + 1 for at, records in batch.items() if records}

    def offsets(self) -> Mapping[TopicPartition, int]:
        """What may be committed: nothing from the first waiting piece on."""
        offsets = dict(self._done)
        for piece in (piece for waiting in self._waiting.values() for piece in waiting.pieces.values()):
            at = TopicPartition(piece.record.topic, piece.record.partition)
            offsets[at] = min(offsets.get(at, piece.record.offset), piece.record.offset)
        return offsets

    def forget(self, partitions: Collection[TopicPartition]) -> None:
        """The partitions are somebody else's: what waits of them is read again there."""
        gone = {(at.topic, at.partition) for at in partitions}
        for question, waiting in list(self._waiting.items()):
            for seq, piece in list(waiting.pieces.items()):
                if (piece.record.topic, piece.record.partition) in gone:
                    del waiting.pieces[seq]
            if not waiting.pieces:
                del self._waiting[question]
        for at in partitions:
            self._done.pop(at, None)
        self.committed = {}

    async def _one(
        self, question_id: str, pieces: Sequence[AnswerPiece]
    ) -> Sequence[tuple["ConsumerRecord[bytes, bytes]", str]]:
        """Applies what is there of one answer; what it returns can't be used."""
        async with self._limit:
            for _ in range(_TRIES):
                question = await self._answers.find(question_id)
                if question is None:
                    self._waiting.pop(question_id, None)
                    return [
                        (piece.record, f"$.question: there is no question {question_id!r}")
                        for piece in pieces
                    ]
                if not question.is_open:
                    self._waiting.pop(question_id, None)
                    self._metrics.answers_late += len(pieces)
                    return []
                if await self._step(question, pieces):
                    return []
            return [
                (piece.record, "the question is written by somebody else all the time") for piece in pieces
            ]

    async def _step(self, question: Question, pieces: Sequence[AnswerPiece]) -> bool:
        """True when nothing more can be done now; False when the question was changed meanwhile."""
        waiting = self._waiting.get(question.id) or _Waiting()
        pieces, late_ones = _before_the_end(waiting.pieces, pieces)
        if pieces and pieces[-1].is_end:
            self._metrics.answers_late += late_ones
            await self._end(question, pieces[-1])
            return True
        self._waiting.pop(question.id, None)
        pending = waiting.pieces | {piece.seq: piece for piece in reversed(pieces)}
        pending = {seq: piece for seq, piece in sorted(pending.items()) if seq > question.seq}
        late = time.monotonic() - waiting.since >= HOLE_S or self.waiting >= MOST_WAITING
        run = _run(pending, after=question.seq, over_holes=late)
        for piece in run:
            del pending[piece.seq]
        if run and late and run[-1].seq - question.seq > len(run):
            log.warning("question %s: pieces before %d never came", question.id, run[-1].seq)
        if pending and not (run and run[-1].says.done):
            since = time.monotonic() if run else waiting.since
            self._waiting[question.id] = _Waiting(pending, since)
        if not run:
            self._metrics.answers_late += late_ones
            return True
        text = "".join(piece.says.delta or "" for piece in run)
        if not await self._answers.add(question, text, run[-1].seq):
            self._waiting[question.id] = _Waiting(
                pending | {piece.seq: piece for piece in run}, waiting.since
            )
            return False
        self._metrics.answers_late += late_ones
        if run[-1].says.done:
            await self._answers.end(question.id, Answered(self._by))
        return True

    async def _end(self, question: Question, piece: AnswerPiece) -> None:
        self._waiting.pop(question.id, None)
        if piece.says.text is not UNSET:
            await self._answers.end(question.id, Answered(self._by, piece.says.text))
        else:
            detail = str(piece.says.error)[:1000]
            await self._answers.end(question.id, Unanswered("failed", "answerer_error", detail))


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


def read(value: bytes | None) -> AnswerRecord:
    """Reads one record; members that it doesn't know are ignored. Raises InvalidInput."""
    says = strictjson.read(value or b"", AnswerRecord)
    given = [name for name in ("delta", "text", "error", "handover") if getattr(says, name) is not UNSET]
    if len(given) > 1:
        raise InvalidInput(Problem("$", f"has {' and '.join(given)}, and may have one of them"))
    if given == ["handover"]:
        raise InvalidInput(Problem("$.handover", "isn't possible yet"))
    if not given and not says.done:
        raise InvalidInput(Problem("$", "has neither delta, text, error nor done"))
    if says.seq is UNSET and given not in (["text"], ["error"]):
        raise InvalidInput(Problem("$.seq", "is required"))
    return says


def _before_the_end(
    waiting: Mapping[int, AnswerPiece], pieces: Sequence[AnswerPiece]
) -> tuple[Sequence[AnswerPiece], int]:
    """The pieces that count, in the order of their records, and how many come too late.

    The first end wins. After a text or an error nothing counts; after a `done`, which may wait for pieces
    before it, only those pieces do.
    """
    done = next((piece for piece in waiting.values() if piece.says.done), None)
    found: list[AnswerPiece] = []
    for at, piece in enumerate(pieces):
        if done is None:
            found.append(piece)
            if piece.is_end:
                return found, len(pieces) - at - 1
            done = piece if piece.says.done else None
        elif piece.seq < done.seq and not piece.is_end:
            found.append(piece._replace(says=structs.replace(piece.says, done=False)))
    return found, len(pieces) - len(found)


def _run(pending: Mapping[int, AnswerPiece], *, after: int, over_holes: bool) -> Sequence[AnswerPiece]:
    """The pieces that follow each other, up to the one that is the last."""
    run: list[AnswerPiece] = []
    for seq, piece in pending.items():
        if seq != after + 1 and not over_holes:
            break
        run.append(piece)
        after = seq
        if piece.says.done:
            break
    return run
