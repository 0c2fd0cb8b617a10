"""Replies that stream an answer while it grows, and the room for them.

Whoever answers with an answer that grows holds a place among `Replies` meanwhile, which this process counts.
A `FollowedReply` is made of the place; `StreamedReply` is the one of `/v1/questions`, `front_ends` has the
others.
"""

import random
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass

from sse_starlette import EventSourceResponse
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pushsse.api import HttpProblem
from pushsse.api.identity import Identity
from pushsse.errors import CloseReason
from pushsse.event import Publication, encode
from pushsse.questions import Question
from pushsse.questions.following import Following, Interrupted
from pushsse.stream.frame import BUSY_RETRY_MS, STREAM_HEADERS, exception

_PING = b"event: ping\ndata: {}\n\n"
_SEND_TIMEOUT_S = 30.0
_REPLIES_RETRY_S = 5


class Replies:
    """The replies of this process in which an answer is followed to its end, and the room for them.

    At most `per_user` of one person (0: no limit); at most `most` together with the open `streams` (0: no
    limit). `limited` counts those above it.
    """

    def __init__(
        self,
        *,
        per_user: int = 0,
        most: int = 0,
        streams: Callable[[], int] = lambda: 0,
        limited: Counter[str],
    ) -> None:
        self._per_user = per_user
        self._most = most
        self._streams = streams
        self._limited = limited
        self._held: Counter[str] = Counter()
        self.count = 0

    @contextmanager
    def hold(self, user: str) -> "Iterator[ReplyPlace]":
        """Room for one more while the context lasts, or longer where a `FollowedReply` is made of it.

        Enter it before anything is looked up or asked. Raises HttpProblem 429 and 503.
        """
        if 0 < self._most <= self.count + self._streams():
            self._limited["streams"] += 1
            reason = CloseReason.OVERLOADED
            # Spread, as streams that find no room are.
            wait_s = -(-random.randint(*BUSY_RETRY_MS) // 1000)
            raise HttpProblem(503, reason.code, reason.detail, {"retry-after": str(wait_s)})
        if 0 < self._per_user <= self._held[user]:
            self._limited["replies_per_user"] += 1
            detail = f"you follow {self._per_user} answers here already, close one of these replies"
            headers = {"retry-after": str(_REPLIES_RETRY_S)}
            raise HttpProblem(429, CloseReason.TOO_MANY_STREAMS.code, detail, headers)
        self._held[user] += 1
        self.count += 1
        place = ReplyPlace(self, user)
        try:
            yield place
        finally:
            if not place.streams:
                place.free()

    def free(self, user: str) -> None:
        """One of this person's has ended; `ReplyPlace` says so, once."""
        self.count -= 1
        self._held[user] -= 1
        if not self._held[user]:
            del self._held[user]


class ReplyPlace:
    """The room that one reply has."""

    def __init__(self, replies: Replies, user: str) -> None:
        self._replies = replies
        self._user = user
        self._is_free = False
        # A response goes on after the call that made it: it frees the place then.
        self.streams = False

    def free(self) -> None:
        """Gives the room to the next one."""
        if not self._is_free:
            self._is_free = True
            self._replies.free(self._user)


class FollowedReply(EventSourceResponse):
    """A reply that streams an answer, and frees its place when it has ended or its client has left."""

    def __init__(
        self, frames: AsyncGenerator[bytes, None], place: ReplyPlace, headers: Mapping[str, str]
    ) -> None:
        super().__init__(frames, headers={**STREAM_HEADERS, **headers}, ping=0, send_timeout=_SEND_TIMEOUT_S)
        self._place = place
        place.streams = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._place.free()


@dataclass(frozen=True, slots=True)
class StreamedReply:
    """Streams an answer in the reply to its question, wherever it is answered."""

    following: Following
    replies: Replies
    heartbeat_s: float = 15.0

    def response(
        self, question: Question, who: Identity, place: ReplyPlace, headers: Mapping[str, str]
    ) -> Response:
        """The response; when its client leaves, the answer goes on without it."""
        return FollowedReply(self.frames(question, who), place, headers)

    async def frames(self, question: Question, who: Identity) -> AsyncGenerator[bytes, None]:
        """The frames: `question`, the answer so far, what is published from then on, and the end.

        Ends with `exception` where the node stops, the token ends, or `who` is kicked.
        """
        wrote = time.monotonic()
        async with aclosing(self.following.heard(question, who)) as all_heard:
            async for heard in all_heard:
                now = time.monotonic()
                if isinstance(heard, Publication):
                    yield _frame(heard)
                elif isinstance(heard, Interrupted):
                    yield _frame(encode("exception", exception(heard.reason), users=None))
                elif now - wrote >= self.heartbeat_s:
                    yield _PING
                else:
                    continue
                wrote = now


def _frame(publication: Publication) -> bytes:
    return publication.frame() + b"\n"
