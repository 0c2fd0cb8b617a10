"""One answer while it grows on this node: pieces are gathered into deltas, and now and then stored.

Made by `answering` for each question of this node; hands deltas to `life`. Deliberate: whoever joins reads
what is stored, so each delta begins where the last storing ended, and the first after a storing where the one
before it ended. Whenever somebody joins, the next delta goes on from what he has.
"""

import asyncio
import logging
import time
from typing import NamedTuple

from pushsse.errors import BackplaneUnavailable, DatabaseUnavailable
from pushsse.questions import events
from pushsse.questions.life import Life
from pushsse.questions.question import MAX_ANSWER_CHARACTERS, Lost, Question, clean, units

log = logging.getLogger(__name__)


class _Place(NamedTuple):
    """A place in the text, in characters and in UTF-16 code units."""

    characters: int = 0
    units: int = 0


class Growing:
    """The text so far, how much of it was told, and how much is stored."""

    def __init__(self, life: Life, question: Question) -> None:
        self.text = ""
        self._life = life
        self._question = question
        self._seq = question.seq
        self._told = _Place()
        self._stored = _Place()
        self._next_store = time.monotonic() + life.pace.store_s
        self._more = asyncio.Event()

    @property
    def too_long(self) -> bool:
        """Whether the answer is over its bound."""
        return len(self.text) > MAX_ANSWER_CHARACTERS

    def add(self, text: str) -> None:
        """A piece more."""
        if text := clean(text):
            self.text += text
            self._more.set()

    async def run(self) -> None:
        """Tells and stores what is there, for ever. Raises Lost when somebody else has the question."""
        while True:
            await self._something()
            self._more.clear()
            await self._tell()
            if time.monotonic() >= self._next_store and self._stored.characters < len(self.text):
                await self._store()
            await asyncio.sleep(self._life.pace.gather_s)

    async def finish(self) -> None:
        """Tells the rest; storing it is the end's."""
        await self._tell()

    async def _something(self) -> None:
        unstored = self._stored.characters < len(self.text)
        wait_s = max(0.0, self._next_store - time.monotonic()) if unstored else None
        try:
            async with asyncio.timeout(wait_s):
                await self._more.wait()
        except TimeoutError:
            pass

    async def _tell(self, *, since: _Place | None = None) -> None:
        if since is None and self._told.characters == len(self.text):
            return
        start = self._stored if since is None else since
        text = self.text[start.characters :]
        deltas = events.deltas(self._question, text, start=start.units, seq=self._seq + 1)
        try:
            for delta in deltas:
                self._seq += 1
                await self._life.live(self._question.user, delta)
        except BackplaneUnavailable as error:
            # Nothing is lost: the next delta begins where the last one that was heard ended.
            log.warning("question %s: a delta wasn't heard: %s", self._question.id, error)
            return
        self._told = _Place(start.characters + len(text), start.units + units(text))

    async def _store(self) -> None:
        text, before = self.text, self._stored
        self._next_store = time.monotonic() + self._life.pace.store_s
        try:
            if not await self._life.store.grow(self._question, text, self._seq):
                raise Lost(self._question.id)
        except DatabaseUnavailable as error:
            log.warning("question %s: the answer so far isn't stored: %s", self._question.id, error)
            return
        added = text[before.characters :]
        self._stored = _Place(len(text), before.units + units(added))
        await self._tell(since=before)
