"""The answers so far: what a backplane keeps of each answer while it grows, and the deltas that tell of it.

`questions.life` lets them grow, `hub.growing` and the questions' service read them. `AnswersSoFar` is the
memory backplane's; in Redis scripts/grow.lua does the same, and one test suite tests both.
Deliberate: places count UTF-16 code units on the wire, as browsers and Java do.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from typing import NamedTuple

import msgspec
from msgspec import UNSET, Struct, UnsetType

from pushsse.event import MAX_FRAME_BYTES, Publication, encode

# Renewed by whatever an answer grows by. One that has ended is remembered for as long, without its text, so
# that a node that was paused meanwhile can't begin it again.
ANSWER_KEEP_MS = 600_000
MOST_ANSWERS = 20_000
# The events with which an answer ends.
ENDINGS = frozenset({"answer", "answer.error"})
# The text of one delta, as JSON: beside it the frame has names, ids and its position.
_MOST_TEXT_BYTES = MAX_FRAME_BYTES - 1024
_json = msgspec.json.Encoder()


class LiveDelta(Publication, frozen=True, array_like=True):
    """An `answer.delta`, which the log doesn't have."""


class DeltaData(Struct, frozen=True, rename={"start": "from"}):
    """The data of an `answer.delta`: the answer from `start` on (in UTF-16 code units), or a part (JSON)."""

    question: str
    seq: int
    start: int
    text: str
    part: msgspec.Raw | UnsetType = UNSET


class Place(NamedTuple):
    """How far somebody has an answer: the delta that was the last, and what is there up to it."""

    attempt: int = 0
    seq: int = 0
    characters: int = 0
    units: int = 0
    parts: int = 0

    def after(self, data: DeltaData, *, kept: bool) -> "Place":
        """The place behind the delta that begins here; `kept`: its part is one that is kept."""
        return Place(
            self.attempt,
            data.seq,
            self.characters + len(data.text),
            self.units + units(data.text),
            self.parts + kept,
        )


class Growth(Struct, frozen=True, kw_only=True):
    """What an answer grows by, and the publications that tell of it, in order.

    Its deltas are numbered within the attempt: `after` is the last number before them, `seq` the last of
    them. `parts` (JSON) are kept, `status` (JSON, empty for none) is shown until the next growth. `whole`: it
    is all of the answer, and takes the place of what is there.
    """

    question: str
    user: str
    attempt: int
    after: int
    seq: int
    text: str = ""
    parts: tuple[bytes, ...] = ()
    status: bytes = b""
    publications: tuple[LiveDelta, ...] = ()
    whole: bool = False


class Grew(Enum):
    """What became of a growth."""

    GREW = 1
    # A later attempt has the question, or this one has ended.
    LOST = 0
    # What it grows from isn't there: the backplane has forgotten it.
    MISSING = -1


class SoFar(NamedTuple):
    """An answer so far: up to the delta numbered `seq` of an attempt."""

    attempt: int
    seq: int
    text: str = ""
    parts: tuple[bytes, ...] = ()
    status: bytes = b""


def units(text: str) -> int:
    """Length in UTF-16 code units, as JavaScript, Java and NSString count and cut."""
    return len(text) if text.isascii() else len(text.encode("utf-16-le")) // 2


def delta_of(data: DeltaData, user: str, attempt: int) -> LiveDelta:
    """The publication of a delta. Raises InvalidInput over 48 KiB."""
    made = encode("answer.delta", data, users=(user,), subject=data.question)
    return LiveDelta(made.name, made.body, made.users, subject=made.subject, attempt=attempt)


def framed(text: str) -> Iterator[str]:
    """A text in pieces that each have room in a frame: one, where all has."""
    while text:
        piece = text[:_MOST_TEXT_BYTES]
        while (size := len(_json.encode(piece))) > _MOST_TEXT_BYTES:
            piece = piece[: min(len(piece) - 1, len(piece) * _MOST_TEXT_BYTES // size)]
        yield piece
        text = text[len(piece) :]


def deltas_since(place: Place, so_far: SoFar, *, question: str, user: str) -> Iterator[LiveDelta]:
    """What somebody lacks of an answer who has it up to `place`: the text in one delta, and each part.

    Numbered so that the last has the number of `so_far`. They are never more than those that told of it.
    """
    if place.attempt != so_far.attempt:
        place = Place(so_far.attempt)
    if place.seq >= so_far.seq:
        return
    texts = list(framed(so_far.text[place.characters :]))
    parts = [*so_far.parts[place.parts :], *((so_far.status,) if so_far.status else ())]
    seq, start = so_far.seq - len(texts) - len(parts), place.units
    for text in texts:
        seq += 1
        yield delta_of(DeltaData(question, seq, start, text), user, so_far.attempt)
        start += units(text)
    for part in parts:
        seq += 1
        yield delta_of(DeltaData(question, seq, start, "", msgspec.Raw(part)), user, so_far.attempt)


class AnswersSoFar:
    """The answers so far of one process, at most MOST_ANSWERS: where there are more, the oldest go."""

    def __init__(self) -> None:
        # In the order of their expiry; None for an answer that has ended at this attempt.
        self._kept: OrderedDict[str, tuple[int, SoFar | None, int]] = OrderedDict()

    def grow(self, growth: Growth, now_ms: int) -> tuple[Grew, Sequence[LiveDelta]]:
        """Lets an answer grow, or says why not; what is to be published: nothing if it has grown before."""
        attempt, before = self._before(growth.question, now_ms)
        if attempt > growth.attempt or (attempt == growth.attempt and before is None):
            return Grew.LOST, ()
        if before is not None and attempt == growth.attempt:
            if before.seq >= growth.seq:
                return Grew.GREW, ()
            if before.seq != growth.after and not growth.whole:
                return Grew.MISSING, ()
        elif growth.after and not growth.whole:
            return Grew.MISSING, ()
        if before is None or attempt < growth.attempt or growth.whole:
            before = SoFar(growth.attempt, 0)
        grown = SoFar(
            growth.attempt,
            growth.seq,
            before.text + growth.text,
            (*before.parts, *growth.parts),
            growth.status,
        )
        self._keep(growth.question, growth.attempt, grown, now_ms)
        return Grew.GREW, growth.publications

    def read(self, questions: Iterable[str], now_ms: int) -> dict[str, SoFar]:
        """The answers so far of those that have one and haven't ended."""
        found = {question: self._before(question, now_ms)[1] for question in questions}
        return {question: so_far for question, so_far in found.items() if so_far is not None}

    def end(self, question: str, attempt: int, now_ms: int) -> None:
        """Drops an answer, unless a later attempt has begun it again."""
        if self._before(question, now_ms)[0] <= attempt:
            self._keep(question, attempt, None, now_ms)

    def _before(self, question: str, now_ms: int) -> tuple[int, SoFar | None]:
        attempt, so_far, ends_ms = self._kept.get(question, (0, None, 0))
        return (attempt, so_far) if ends_ms > now_ms else (0, None)

    def _keep(self, question: str, attempt: int, so_far: SoFar | None, now_ms: int) -> None:
        self._kept[question] = (attempt, so_far, now_ms + ANSWER_KEEP_MS)
        self._kept.move_to_end(question)
        # Two at most, so that no growth clears thousands.
        for _ in range(2):
            oldest = next(iter(self._kept))
            if self._kept[oldest][2] > now_ms and len(self._kept) <= MOST_ANSWERS:
                break
            del self._kept[oldest]
