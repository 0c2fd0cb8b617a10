"""An answer in the reply to its question: a finite stream that ends with `answer` or `answer.error`.

Called by `api/questions`; hears what the hub delivers for the question, on whichever node it is answered. Now
and then it also looks at the question itself, so that an end can't be missed.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass

from sse_starlette import EventSourceResponse
from starlette.responses import Response

from pushsse.errors import CloseReason, DatabaseUnavailable, Unavailable
from pushsse.event import Publication, encode
from pushsse.questions import events
from pushsse.questions.question import Question
from pushsse.questions.service import Questions, grown
from pushsse.stream.frame import STREAM_HEADERS as HEADERS

# Every publication of one question of a person's, from the moment that the context is entered.
Watch = Callable[[str, str], AbstractAsyncContextManager[AsyncIterator[Publication]]]
ENDINGS = frozenset({"answer", "answer.error"})
_LOOK_S = 2.0
_TICK_S = 0.5
_SEND_TIMEOUT_S = 30.0
_PING = b"event: ping\ndata: {}\n\n"


@dataclass(frozen=True, slots=True)
class Reply:
    """Streams answers. `stopping` says whether the node is about to leave."""

    questions: Questions
    watch: Watch
    stopping: Callable[[], bool]
    heartbeat_s: float = 15.0

    def response(self, question: Question, headers: Mapping[str, str]) -> Response:
        """The response; when its client leaves, the answer goes on without it."""
        frames = self.frames(question)
        return EventSourceResponse(
            frames, headers={**HEADERS, **headers}, ping=0, send_timeout=_SEND_TIMEOUT_S
        )

    async def frames(self, question: Question) -> AsyncGenerator[bytes, None]:
        """`question`, the answer so far, what is heard, and the end."""
        async with AsyncExitStack() as stack:
            heard: AsyncIterator[Publication] | None = None
            try:
                heard = await stack.enter_async_context(self.watch(question.user, question.id))
            except Unavailable:
                # The question is taken: without the backplane its end is found by looking.
                heard = None
            now = await self._look(question) or question
            yield _frame(events.status_changed(now))
            if not now.is_open:
                yield _frame(events.ended(now))
                return
            for delta in grown(now):
                yield _frame(delta)
            async for frame in self._rest(question, heard, _frame(events.status_changed(now))):
                yield frame

    async def _rest(
        self, question: Question, heard: AsyncIterator[Publication] | None, first: bytes
    ) -> AsyncGenerator[bytes, None]:
        """What comes after the `question` that was sent `first`, which may be heard once more."""
        wrote = looked = time.monotonic()
        async for publication in _ticking(heard):
            now = time.monotonic()
            if publication is not None:
                if _frame(publication) == first:
                    continue
                yield _frame(publication)
                wrote = now
                if publication.name in ENDINGS:
                    return
            elif self.stopping():
                yield _leaving()
                return
            if now - looked >= _LOOK_S:
                looked = now
                found = await self._look(question)
                if found is not None and not found.is_open:
                    yield _frame(events.status_changed(found))
                    yield _frame(events.ended(found))
                    return
            if now - wrote >= self.heartbeat_s:
                yield _PING
                wrote = now

    async def _look(self, question: Question) -> Question | None:
        try:
            return await self.questions.get(question.user, question.id)
        except DatabaseUnavailable:
            return None


async def _ticking(heard: AsyncIterator[Publication] | None) -> AsyncGenerator[Publication | None, None]:
    """What is heard, and None whenever that was nothing for half a second."""
    waiting: asyncio.Task[Publication | None] | None = None
    try:
        while True:
            if waiting is None:
                waiting = asyncio.create_task(_next(heard))
            done, _ = await asyncio.wait((waiting,), timeout=_TICK_S)
            if not done:
                yield None
                continue
            publication, waiting = waiting.result(), None
            if publication is None:
                heard = None
            yield publication
    finally:
        if waiting is not None:
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)


async def _next(heard: AsyncIterator[Publication] | None) -> Publication | None:
    if heard is None:
        await asyncio.Event().wait()
        return None
    return await anext(heard, None)


def _frame(publication: Publication) -> bytes:
    return publication.frame() + b"\n"


def _leaving() -> bytes:
    reason = CloseReason.SHUTDOWN
    data = {"code": reason.code, "detail": reason.detail, "retry": reason.retry}
    return _frame(encode("exception", data, users=None))
