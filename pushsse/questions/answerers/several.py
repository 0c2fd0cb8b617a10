"""Answerers in order: the first that is sure answers. `configured` makes it, `answering` asks it.

The next one is asked where one isn't sure, or can't be reached, and has said nothing yet. Where nobody is
sure, neither are they together: what the last one that had something to say instead would say is passed on.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from pushsse.errors import Unavailable
from pushsse.questions import Answered, Question, StatusPart
from pushsse.questions.answerers import Answerer, Answers, HearsStops, NotSure, Piece


@dataclass(frozen=True, slots=True)
class Several:
    """One or more answerers that are one."""

    answerers: Sequence[Answerer]

    async def answer(self, question: Question) -> AsyncGenerator[Piece, None]:
        """What the first that is sure says. Raises Unavailable where one is away and no other has a word."""
        instead: Answered | None = None
        away: Unavailable | None = None
        for answerer in self.answerers:
            said = False
            try:
                async with aclosing(answerer.answer(question)) as pieces:
                    async for piece in pieces:
                        if isinstance(piece, NotSure):
                            instead = piece.instead or instead
                            break
                        # Where another goes on, nobody has to take back what a status has said.
                        said = said or not isinstance(piece, StatusPart)
                        yield piece
                    else:
                        return
            except Unavailable as error:
                if said:
                    raise
                away = error
            if said:
                break
        if away is not None and instead is None:
            raise away
        yield NotSure(instead)

    async def stop(self, question: Question, code: str) -> None:
        """Told to those whose answers come from elsewhere: one of them has it. Raises Unavailable."""
        for answerer in self.answerers:
            if isinstance(answerer, HearsStops):
                await answerer.stop(question, code)

    async def run(self, answers: Answers) -> None:
        """What they do besides."""
        try:
            async with asyncio.TaskGroup() as group:
                for answerer in self.answerers:
                    group.create_task(answerer.run(answers))
        except ExceptionGroup as failed:
            # The others were cancelled because of it.
            raise failed.exceptions[0] from None
