"""`kafka:`: questions go to one topic, keyed by their person; answers come from another, read by any node.

Asked by `answering`, which supervises `run`; hands to Answers what `kafka.consumer` has read. Everything may
come twice: a piece is known by its `seq`. A hole in the seqs is waited for, two seconds. Where a topic isn't
there or Kafka is away, it waits: questions for half a minute, answers for ever.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType, structs

from pushsse import strictjson
from pushsse.errors import InvalidInput, KafkaUnavailable, Violation
from pushsse.kafka import Record, TopicPartition
from pushsse.kafka.consumer import Consumer, ConsumerPace
from pushsse.kafka.dead_letters import Refused
from pushsse.kafka.producer import Outgoing, Producer
from pushsse.metrics import Metrics
from pushsse.questions import (
    Answered,
    By,
    DataPart,
    Ending,
    Part,
    Question,
    SourcePart,
    StatusPart,
    Turn,
    Unanswered,
    fit,
)
from pushsse.questions.answerers import Answers, Delta, Piece, SentOff
from pushsse.retry import Backoff, Outage

logger = logging.getLogger(__name__)
# So that an answer grows at most twenty times a second.
PACE = ConsumerPace(round_s=0.05)
HOLE_S = 2.0
# For how long a question is tried to be sent.
SEND_S = 30.0
# Pieces that wait for earlier ones: of one answer, so that it takes no room of others', and of all together.
MOST_OF_ONE = 1_000
MOST_WAITING = 10_000
_AT_ONCE = 16
_TRIES = 5
_SAYS = ("delta", "text", "error", "status", "source", "data", "handover")


class QuestionRecord(Struct, frozen=True):
    """A question as it is in the topic. `attempt` is higher where it comes again, or was asked anew."""

    id: str
    conversation: str
    user: str
    text: str
    context: dict[str, Any] | None
    asked_at: datetime
    attempt: int
    turns: tuple[Turn, ...]


class CancelRecord(Struct, frozen=True):
    """In the same topic, with the same key: no answer to this question is of use any more."""

    id: str
    conversation: str
    user: str
    code: str
    cancel: bool = True


class SourceRecord(Struct, frozen=True):
    """Where a part of the answer comes from."""

    title: str
    url: str


class DataRecord(Struct, frozen=True):
    """A JSON value for the page, by name."""

    name: str
    data: Any


class AnswerRecord(Struct, frozen=True):
    """A piece of an answer (`delta`, a part), all of it (`text`), or none (`error`, `handover`).

    A part is `status`, `source` or `data`. `text`, `error`, `handover` (true, or why) and `done` end it.
    Pieces are numbered from 1 by `seq`; so is a `done` by itself. `attempt` is that of
    the question which is answered.
    """

    question: Annotated[str, Meta(min_length=1, max_length=64)]
    seq: Annotated[int, Meta(ge=1, le=2_000_000_000)] | UnsetType = UNSET
    delta: str | UnsetType = UNSET
    text: str | UnsetType = UNSET
    error: str | UnsetType = UNSET
    status: str | UnsetType = UNSET
    source: SourceRecord | UnsetType = UNSET
    data: DataRecord | UnsetType = UNSET
    handover: bool | Annotated[str, Meta(max_length=4_000)] | UnsetType = UNSET
    attempt: int | UnsetType = UNSET
    done: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaAnswerer:
    """Sends questions to a topic, and reads the answers, in one consumer group of all nodes.

    Without a committed offset `answers` starts so far back that no older answer belongs to an open question.
    """

    questions: Producer
    questions_topic: str
    consumer: Consumer
    metrics: Metrics
    name: str = "kafka"

    async def answer(self, question: Question) -> AsyncGenerator[Piece, None]:
        """Sends the question. Raises KafkaUnavailable after some tries."""
        record = QuestionRecord(
            question.id,
            question.conversation,
            question.user,
            question.text,
            question.context,
            question.asked_at,
            question.attempt,
            question.turns,
        )
        outgoing = _keyed(question, record)
        outage = Outage(f"question {question.id} can't be sent to Kafka", logger, Backoff(first_s=0.2))
        give_up = time.monotonic() + SEND_S
        while True:
            try:
                await self.questions.send(self.questions_topic, [outgoing])
                break
            except KafkaUnavailable as error:
                # Kafka may have taken it all the same. Then its reader gets it twice, with the same id.
                if time.monotonic() >= give_up:
                    raise
                await asyncio.sleep(outage.failed(error))
        outage.over()
        yield SentOff()

    async def stop(self, question: Question, code: str) -> None:
        """Tells whoever answers, behind the question in its partition. Raises KafkaUnavailable."""
        record = CancelRecord(question.id, question.conversation, question.user, code)
        await self.questions.send(self.questions_topic, [_keyed(question, record)])

    async def run(self, answers: Answers) -> None:
        """Reads answers for ever. Cancellation leaves the group."""
        await self.consumer.run(AnswerHandler(answers, by=self.name, metrics=self.metrics))


def _keyed(question: Question, record: QuestionRecord | CancelRecord) -> Outgoing:
    """Keyed by the person, so that a cancel comes after its question."""
    return Outgoing(question.user.encode(), msgspec.json.encode(record))


class AnswerPiece(NamedTuple):
    """An answer record that was understood, and where it is."""

    record: Record
    says: AnswerRecord

    @property
    def seq(self) -> int:
        """Its number; a text or an error doesn't need one."""
        return self.says.seq or 0

    @property
    def is_end(self) -> bool:
        """Whether it ends the answer whatever came before it."""
        says = self.says
        return not (says.text is UNSET and says.error is UNSET and says.handover is UNSET)

    def is_of(self, question: Question) -> bool:
        """Whether it answers the question as it was asked last; one that says nothing about that does.

        Not where whoever answers has begun again since.
        """
        return self.names(max(question.first_attempt, question.piece_attempt))

    def names(self, attempt: int) -> bool:
        """Whether it belongs to this attempt or a later one, as far as it says."""
        return self.says.attempt is UNSET or self.says.attempt >= attempt

    @property
    def at(self) -> TopicPartition:
        """The partition that it came from."""
        return TopicPartition(self.record.topic, self.record.partition)


@dataclass(slots=True)
class _Early:
    """Pieces of one answer that came before others, by number, and since when."""

    pieces: dict[int, AnswerPiece] = field(default_factory=dict)
    since: float = field(default_factory=time.monotonic)


class AnswerHandler:
    """Puts the pieces of answers in order and lets the answers grow by them; the handler of `answers`."""

    def __init__(self, answers: Answers, *, by: str, metrics: Metrics) -> None:
        self._answers = answers
        self._by = By("bot", by)
        self._metrics = metrics
        self._early: dict[str, _Early] = {}
        self._crowding: frozenset[str] = frozenset()
        self._limit = asyncio.Semaphore(_AT_ONCE)

    def decode(self, record: Record, owner: str) -> AnswerPiece:
        """One record. Raises InvalidInput."""
        return AnswerPiece(record, read(record.value))

    async def apply(self, pieces: Sequence[AnswerPiece]) -> Sequence[Refused]:
        """Lets each answer grow by what is there, or waits for what comes before it. Raises Unavailable."""
        self._crowding = self._those_that_crowd()
        # Those whose hole may be passed over now. The others have nothing new: the database isn't asked.
        answers: dict[str, list[AnswerPiece]] = {
            question: [] for question, early in self._early.items() if self._passes_holes(question, early)
        }
        for piece in pieces:
            answers.setdefault(piece.says.question, []).append(piece)
        # Not a task group: a part that is away is raised as itself, and the others may finish.
        results = await asyncio.gather(
            *(self._one(question, found) for question, found in answers.items()), return_exceptions=True
        )
        refused: list[Refused] = []
        for result in results:
            if isinstance(result, BaseException):
                raise result
            refused += result
        return refused

    def unfinished(self) -> Mapping[TopicPartition, int]:
        """The first offset of each partition whose piece waits for earlier ones: it may not be committed."""
        first: dict[TopicPartition, int] = {}
        for early in self._early.values():
            for piece in early.pieces.values():
                first[piece.at] = min(first.get(piece.at, piece.record.offset), piece.record.offset)
        return first

    def forget(self, partitions: Collection[TopicPartition]) -> None:
        """These partitions are another node's, which reads the waiting pieces again."""
        for question, early in list(self._early.items()):
            early.pieces = {seq: piece for seq, piece in early.pieces.items() if piece.at not in partitions}
            if not early.pieces:
                del self._early[question]

    async def _one(self, question_id: str, pieces: Sequence[AnswerPiece]) -> Sequence[Refused]:
        """Applies what is there of one answer; what it returns can't be used."""
        async with self._limit:
            # Another node, or a cancel, may write between this reading and the adding: then it is read again.
            for _ in range(_TRIES):
                question = await self._answers.find(question_id)
                if question is None:
                    self._early.pop(question_id, None)
                    error = f"$.question: there is no question {question_id!r}"
                    return [Refused(piece.record, "$.question", error) for piece in pieces]
                if not question.is_open:
                    self._early.pop(question_id, None)
                    self._metrics.answers_late += len(pieces)
                    return []
                early = self._early[question_id].pieces.values() if question_id in self._early else ()
                attempt = _attempt([piece for piece in (*early, *pieces) if piece.is_of(question)])
                current = [piece for piece in pieces if piece.is_of(question) and piece.names(attempt)]
                if await self._step(question, current, attempt):
                    self._metrics.answers_late += len(pieces) - len(current)
                    return []
            error = "the question is written by somebody else all the time"
            return [Refused(piece.record, "$", error) for piece in pieces]

    async def _step(self, question: Question, pieces: Sequence[AnswerPiece], attempt: int) -> bool:
        """True when nothing more can be done now; False when the question was changed meanwhile.

        All pieces are of the attempt, or don't say. Where it is a later one, they begin the answer anew.
        Nothing is taken out of `_early` before its effect is stored: what isn't there may be committed.
        """
        early = self._early.get(question.id) or _Early()
        early.pieces = {
            seq: piece
            for seq, piece in early.pieces.items()
            if piece.is_of(question) and piece.names(attempt)
        }
        after = question.grown_by(attempt).piece
        pieces, late_ones = _before_the_end(early.pieces, pieces)
        pending = early.pieces | {piece.seq: piece for piece in reversed(pieces)}
        run: Sequence[AnswerPiece] = ()
        if pieces and pieces[-1].is_end:
            if not await self._end(question, pieces[-1], attempt):
                return False
        elif any(piece.says.done and seq == after for seq, piece in pending.items()):
            # Its last piece was stored before, and whoever stored it came no further.
            await self._answers.end(question.id, Answered(self._by))
        else:
            pending = {seq: piece for seq, piece in sorted(pending.items()) if seq > after}
            over_holes = len(pending) > MOST_OF_ONE or self._passes_holes(question.id, early)
            run = _run(pending, after=after, over_holes=over_holes)
            if run and not await self._grow(question, run, attempt):
                return False
            if not (run and run[-1].says.done):
                self._wait(question.id, early, pending, run)
                self._metrics.answers_late += late_ones
                return True
        self._early.pop(question.id, None)
        self._metrics.answers_late += late_ones
        return True

    async def _end(self, question: Question, piece: AnswerPiece, attempt: int) -> bool:
        """Ends the question as the piece says; False if it was changed meanwhile: it is to be read again."""
        if question.piece and not question.grown_by(attempt).piece:
            # What an attempt before has said isn't kept with this end. Then it is read as it stands.
            await self._answers.add(question, (), 0, attempt)
            return False
        if piece.says.handover is not UNSET:
            why = piece.says.handover
            return await self._answers.hand_over(question, why if isinstance(why, str) else "")
        # Whoever ended it first has won.
        await self._answers.end(question.id, _ending(piece, self._by))
        return True

    def _passes_holes(self, question_id: str, early: _Early) -> bool:
        """Whether what is missing is given up: after a while, or where too much waits for it."""
        return question_id in self._crowding or time.monotonic() - early.since >= HOLE_S

    def _those_that_crowd(self) -> frozenset[str]:
        """The answers with the most pieces, as many as bring all together under the bound; mostly none."""
        sizes = {question: len(early.pieces) for question, early in self._early.items()}
        waiting = sum(sizes.values())
        crowding: list[str] = []
        if waiting >= MOST_WAITING:
            # Guarantee 4: whose answer has few pieces in memory loses none because of others'.
            for question in sorted(sizes, key=sizes.__getitem__, reverse=True):
                if waiting < MOST_WAITING:
                    break
                waiting -= sizes[question]
                crowding.append(question)
        return frozenset(crowding)

    async def _grow(self, question: Question, run: Sequence[AnswerPiece], attempt: int) -> bool:
        """Adds the pieces, and ends the answer where the last one does; False if the question was changed."""
        last = run[-1]
        if last.seq - question.grown_by(attempt).piece > len(run):
            logger.warning(
                "question %s: of its answer in Kafka, pieces before %d never came, and their text is missing",
                question.id,
                last.seq,
                extra=question.ids,
            )
        grown = [found for piece in run if (found := _grown(piece.says)) is not None]
        if not await self._answers.add(question, grown, last.seq, attempt):
            return False
        if last.says.done:
            await self._answers.end(question.id, Answered(self._by))
        return True

    def _wait(
        self,
        question_id: str,
        early: _Early,
        pending: Mapping[int, AnswerPiece],
        run: Sequence[AnswerPiece],
    ) -> None:
        """Keeps the pieces after `run`; the next hole has two seconds of its own."""
        rest = {seq: piece for seq, piece in pending.items() if not run or seq > run[-1].seq}
        if rest:
            self._early[question_id] = _Early(rest, time.monotonic() if run else early.since)
        else:
            self._early.pop(question_id, None)


def read(value: bytes | None) -> AnswerRecord:
    """Reads one record; members that it doesn't know are ignored. Raises InvalidInput."""
    says = strictjson.read(value or b"", AnswerRecord)
    given = [name for name in _SAYS if getattr(says, name) is not UNSET]
    if len(given) > 1:
        raise InvalidInput(Violation("$", f"has {' and '.join(given)}, and may have one of them"))
    if says.handover is False:
        raise InvalidInput(Violation("$.handover", "is neither true nor a reason"))
    if not given and not says.done:
        raise InvalidInput(Violation("$", "has neither delta, text, error, a part nor done"))
    if (part := _part(says)) is not None and isinstance(why := fit(part), str):
        raise InvalidInput(Violation(f"$.{given[0]}", why))
    if says.seq is UNSET and given not in (["text"], ["error"], ["handover"]):
        raise InvalidInput(Violation("$.seq", "is required"))
    return says


def _part(says: AnswerRecord) -> Part | None:
    """The part that a record is; None if it is none."""
    if says.status is not UNSET:
        return StatusPart(says.status)
    if says.source is not UNSET:
        return SourcePart(says.source.title, says.source.url)
    return DataPart(says.data.name, says.data.data) if says.data is not UNSET else None


def _grown(says: AnswerRecord) -> Delta | Part | None:
    """What an answer grows by with a record; None for a `done` by itself."""
    return Delta(says.delta) if says.delta else _part(says)


def _attempt(pieces: Sequence[AnswerPiece]) -> int:
    """The latest attempt that these pieces name; 0 where none names one."""
    return max((piece.says.attempt for piece in pieces if piece.says.attempt is not UNSET), default=0)


def _ending(piece: AnswerPiece, by: By) -> Ending:
    """How a piece that is a whole text or an error ends its question."""
    if piece.says.text is not UNSET:
        return Answered(by, piece.says.text)
    return Unanswered("failed", "answerer_error", str(piece.says.error)[:1000])


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
