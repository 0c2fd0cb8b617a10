"""The contract of an answerer: it takes a question and yields its answer piece by piece, or sends it off.

`answering` asks it, in one task a question, and supervises its `run`.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from msgspec import Struct

from pushsse.questions import Answered, Ending, Part, Question, Unanswered


class Delta(Struct, frozen=True):
    """The answer grows by this text."""

    text: str


class SentOff(Struct, frozen=True):
    """The answer comes from elsewhere, through Answers; the last piece."""


class NotSure(Struct, frozen=True):
    """This answerer has no answer that it is sure of; `instead` is what is said if no other has one."""

    instead: Answered | None = None


class HandOver(Struct, frozen=True):
    """People have to answer."""

    reason: str = ""


Piece = Delta | Part | Answered | Unanswered | SentOff | NotSure | HandOver


class Answers(Protocol):
    """Takes answers that come from elsewhere, on any node. `Life` implements it."""

    async def find(self, question_id: str) -> Question | None:
        """A question as it stands; None if there is none. Raises DatabaseUnavailable."""
        ...

    async def add(
        self, question: Question, pieces: Sequence[Delta | Part], piece: int, attempt: int = 0
    ) -> bool:
        """The answer grows by some pieces; `piece` is the number of the last. Raises DatabaseUnavailable.

        `attempt` is the highest that a piece names: where it is a later one than before, the pieces begin the
        answer anew, numbered from 1.
        False if the question has changed since it was read: it is right to read it again.
        """
        ...

    async def hand_over(self, question: Question, reason: str) -> bool:
        """People answer it, and what else is asked in its conversation. Raises DatabaseUnavailable.

        False if the question has changed since it was read.
        """
        ...

    async def end(self, question_id: str, ending: Ending) -> bool:
        """The answer is there, or won't come; False if the question has ended before."""
        ...


class Answerer(Protocol):
    """Answers questions. One that sends them off may be a HearsStops, too."""

    def answer(self, question: Question) -> AsyncGenerator[Piece, None]:
        """Yields Delta and parts any number of times, then exactly one of the others, which ends it.

        A NotSure comes before any Delta: `Several` asks the next answerer then, and nobody has read anything.
        Is closed or cancelled at any point when the question is cancelled or its time is over. Raises
        Unavailable where it can't be reached, after tries that have an end; any exception makes the question
        fail.
        A question may come twice, when the node that answered it died: the answer then starts over.
        """
        ...

    async def run(self, answers: Answers) -> None:
        """What the answerer does besides, for ever; returns immediately if that is nothing."""
        ...


@runtime_checkable
class HearsStops(Protocol):
    """An answerer whose answers come from elsewhere, where somebody can be told to stop."""

    async def stop(self, question: Question, code: str) -> None:
        """A question has ended without its answer, for this reason. Raises Unavailable.

        It may not have been sent off at all, and this may come twice.
        """
        ...


# How long pieces that are all there may follow each other before others get the event loop.
_TURN_S = 0.005


@dataclass(slots=True)
class Turns:
    """Lets others have the event loop: an async generator whose pieces are there never waits by itself."""

    _since: float = field(default_factory=time.monotonic)

    async def give_way(self) -> None:
        """Returns at once, or after one turn of the loop where this one has taken long."""
        if time.monotonic() - self._since > _TURN_S:
            await asyncio.sleep(0)
            self._since = time.monotonic()
