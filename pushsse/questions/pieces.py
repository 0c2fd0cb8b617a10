"""An answer while it grows: pieces go in, and growths come out, which are told and stored in time.

`answering` makes a `Growing` for each question of this node, `life` a `Pieces` for what comes from elsewhere;
both hand growths to the backplane. Deliberate: a growth that may not have arrived is sent again as it was,
before anything else of the answer, so that no delta is missing and none has another's number.
"""

import asyncio
import logging
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import msgspec
from msgspec import Raw

from pushsse.backplane.answers import DeltaData, Grew, Growth, LiveDelta, delta_of, framed, units
from pushsse.errors import DatabaseUnavailable, Unavailable
from pushsse.questions import (
    MAX_ANSWER_CHARACTERS,
    MAX_PARTS,
    KeptPart,
    Lost,
    Part,
    Question,
    StatusPart,
    clean,
    fit,
)
from pushsse.questions.answerers import Delta

logger = logging.getLogger(__name__)
# Parts that are left out of one answer and are logged: an answerer may send them without end.
_MOST_REFUSALS = 10
# Of one growth: nothing else runs in Redis meanwhile.
_MOST_DELTAS = 8
_RETRY_S = 0.5


class _Waiting(NamedTuple):
    """A piece that isn't told yet: a text, or a part and its JSON."""

    text: str = ""
    part: Part | None = None
    encoded: bytes = b""


class Pieces:
    """The pieces of one attempt at an answer, in their order and numbered as deltas."""

    def __init__(self, question: Question) -> None:
        """Continues where the question stands."""
        self.seq = question.seq
        self._question = question
        self._text = [question.answer]
        self._units = units(question.answer)
        self._parts: list[KeptPart] = list(question.parts)
        self._encoded = [msgspec.json.encode(part) for part in question.parts]
        self._characters = len(question.answer)
        self._kept = len(self._parts)
        self._refused = 0
        self._waiting: list[_Waiting] = []

    @property
    def too_long(self) -> bool:
        """Whether the answer is over its bound."""
        return self._characters > MAX_ANSWER_CHARACTERS

    @property
    def told(self) -> Question:
        """The question with the answer as far as there are growths of it."""
        if len(self._text) > 1:
            self._text = ["".join(self._text)]
        return msgspec.structs.replace(
            self._question, answer=self._text[0], seq=self.seq, parts=tuple(self._parts)
        )

    @property
    def text(self) -> str:
        """All of the text."""
        return self.told.answer + "".join(waiting.text for waiting in self._waiting)

    @property
    def parts(self) -> tuple[KeptPart, ...]:
        """All parts that are kept."""
        waiting = (each.part for each in self._waiting)
        return (
            *self._parts,
            *(part for part in waiting if part is not None and not isinstance(part, StatusPart)),
        )

    def add(self, piece: Delta | Part) -> None:
        """Appends a piece. A part that breaks a rule is left out, which is logged; the answer goes on."""
        if isinstance(piece, Delta):
            text, room = clean(piece.text), max(0, MAX_ANSWER_CHARACTERS - self._characters)
            self._characters += len(text)
            # One piece may be far longer than an answer.
            if text := text[:room]:
                self._push(_Waiting(text))
            return
        encoded = fit(piece)
        if isinstance(encoded, str):
            self._refuse(encoded)
        elif isinstance(piece, StatusPart):
            self._push(_Waiting(part=piece, encoded=encoded))
        elif self._kept >= MAX_PARTS:
            self._refuse(f"it is one too many: {MAX_PARTS} are kept")
        else:
            self._kept += 1
            # As it comes back from the database, whatever the answerer has put into it.
            self._push(_Waiting(part=msgspec.json.decode(encoded, type=KeptPart), encoded=encoded))

    def _push(self, piece: _Waiting) -> None:
        last = self._waiting[-1] if self._waiting else None
        # A status lasts until the next piece: one that nobody has heard of needn't be told any more.
        if last is not None and isinstance(last.part, StatusPart):
            self._waiting.pop()
            last = self._waiting[-1] if self._waiting else None
        if last is not None and last.text and piece.text:
            self._waiting[-1] = _Waiting(last.text + piece.text)
        else:
            self._waiting.append(piece)

    def _refuse(self, why: str) -> None:
        self._refused += 1
        if self._refused > _MOST_REFUSALS:
            return
        logger.warning(
            "question %s: a part is left out of the answer: %s",
            self._question.id,
            why,
            extra=self._question.ids,
        )

    def growths(self) -> Iterator[Growth]:
        """Takes what waits, as few growths as there may be."""
        after, text, parts, status = self.seq, "", [], b""
        deltas: list[LiveDelta] = []
        for waiting in self._taken():
            start = self._units
            status = b""
            if waiting.part is None:
                text += waiting.text
                self._text.append(waiting.text)
                self._units += units(waiting.text)
            elif isinstance(waiting.part, StatusPart):
                status = waiting.encoded
            else:
                parts.append(waiting.encoded)
                self._parts.append(waiting.part)
                self._encoded.append(waiting.encoded)
            self.seq += 1
            data = DeltaData(self._question.id, self.seq, start, waiting.text)
            if waiting.part is not None:
                data = msgspec.structs.replace(data, part=Raw(waiting.encoded))
            deltas.append(delta_of(data, self._question.user, self._question.attempt))
            if len(deltas) == _MOST_DELTAS:
                yield self._growth(after, self.seq, text, parts, status, deltas)
                after, text, parts, deltas = self.seq, "", [], []
        if deltas:
            yield self._growth(after, self.seq, text, parts, status, deltas)

    def _taken(self) -> Iterator[_Waiting]:
        """What waits, each with room in a frame; what is taken doesn't wait any more."""
        while self._waiting:
            first = self._waiting.pop(0)
            if first.part is not None:
                yield first
                continue
            piece = next(framed(first.text))
            if rest := first.text[len(piece) :]:
                self._waiting.insert(0, _Waiting(rest))
            yield _Waiting(piece)

    def _growth(
        self,
        after: int,
        seq: int,
        text: str,
        parts: Sequence[bytes],
        status: bytes,
        deltas: Sequence[LiveDelta],
    ) -> Growth:
        return Growth(
            question=self._question.id,
            user=self._question.user,
            attempt=self._question.attempt,
            after=after,
            seq=seq,
            text=text,
            parts=tuple(parts),
            status=status,
            publications=tuple(deltas),
        )

    def whole(self, untold: Sequence[Growth]) -> Growth:
        """All of the answer, in place of the last growths: what they grow from isn't there any more."""
        return msgspec.structs.replace(
            untold[-1],
            text=self.told.answer,
            parts=tuple(self._encoded),
            publications=tuple(delta for growth in untold for delta in growth.publications),
            whole=True,
        )


class Grows(Protocol):
    """Takes growths, and stores. `Life` does."""

    async def grow(self, growth: Growth) -> Grew:
        """Lets an answer grow in the backplane. Raises BackplaneUnavailable."""
        ...

    async def store_growth(self, question: Question) -> None:
        """Stores the answer so far. Raises Lost, DatabaseUnavailable."""
        ...


class Growing:
    """One answer while it grows on this node: told at most every `delta_s`, stored every `store_s`."""

    def __init__(self, life: Grows, question: Question, *, delta_s: float, store_s: float) -> None:
        # Every attempt begins anew.
        question = msgspec.structs.replace(question, answer="", seq=0, parts=())
        self.pieces = Pieces(question)
        self._life = life
        self._question = question
        self._delta_s = delta_s
        self._store_s = store_s
        self._untold: Growth | None = None
        self._growths: Iterator[Growth] = iter(())
        self._unstored = False
        self._next_store = time.monotonic() + store_s
        self._more = asyncio.Event()
        self._away = False

    @property
    def has_begun(self) -> bool:
        """Whether anything has come."""
        return self._unstored or self.pieces.seq > 0

    def add(self, piece: Delta | Part) -> None:
        """Appends a piece."""
        self.pieces.add(piece)
        # Also where the piece was left out: whoever answers is alive, and the deadline moves.
        self._unstored = True
        self._more.set()

    async def run(self) -> None:
        """Tells and stores what is added, for ever. Raises Lost when another node has the question."""
        while True:
            await self._wait()
            self._more.clear()
            await self.tell()
            if self._unstored and time.monotonic() >= self._next_store:
                await self.store()
            await asyncio.sleep(self._delta_s)

    async def tell(self) -> None:
        """Tells what isn't told yet; while the backplane is away it waits for the next call. Raises Lost."""
        while True:
            if self._untold is None:
                self._untold = next(self._growths, None)
            if self._untold is None:
                self._growths = self.pieces.growths()
                self._untold = next(self._growths, None)
            if self._untold is None:
                return
            try:
                grew = await self._life.grow(self._untold)
                if grew is Grew.MISSING:
                    # Only where the question is still this node's: it may have ended and been forgotten.
                    await self._life.store_growth(self.pieces.told)
                    grew = await self._life.grow(self.pieces.whole((self._untold,)))
            except Unavailable as error:
                self._failed(error)
                return
            self._away = False
            if grew is not Grew.GREW:
                raise Lost(self._question.id)
            self._untold = None

    async def store(self) -> None:
        """Stores the answer so far. Raises Lost."""
        self._next_store = time.monotonic() + self._store_s
        self._unstored = False
        try:
            await self._life.store_growth(self.pieces.told)
        except DatabaseUnavailable as error:
            self._unstored = True
            logger.warning(
                "question %s: the answer so far isn't stored yet: %s",
                self._question.id,
                error,
                extra=self._question.ids,
            )

    async def _wait(self) -> None:
        """Returns when something was added, or when something has to be told again or stored."""
        at = [self._next_store] if self._unstored else []
        if self._untold is not None:
            at.append(time.monotonic() + _RETRY_S)
        if not at:
            await self._more.wait()
            return
        try:
            async with asyncio.timeout(max(0.0, min(at) - time.monotonic())):
                await self._more.wait()
        except TimeoutError:
            pass

    def _failed(self, error: Unavailable) -> None:
        if not self._away:
            self._away = True
            logger.warning(
                "question %s: its deltas wait until they can be told: %s",
                self._question.id,
                error,
                extra=self._question.ids,
            )
