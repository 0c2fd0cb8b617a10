"""How many calls of a kind one person may make in a minute, what responses say about it; and how many
answers one may follow in replies at a time.

The endpoints of questions and switches call `CallLimit.spend`; the backplane counts, for all nodes together.
Whoever answers with an answer that grows holds a place among `Replies` meanwhile, which this process counts.
The fields are those of draft-ietf-httpapi-ratelimit-headers-10: structured fields (RFC 9651), in which `q` is
the quota, `w` the window in seconds, `r` what remains, and `t` the seconds until the quota is whole again.
"""

import random
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from sse_starlette import EventSourceResponse
from starlette.types import Receive, Scope, Send

from pushsse.api import HttpProblem
from pushsse.backplane import Backplane
from pushsse.errors import CloseReason
from pushsse.stream.frame import BUSY_RETRY_MS, STREAM_HEADERS

WINDOW_S = 60
_SEND_TIMEOUT_S = 30.0
_REPLIES_RETRY_S = 5
# The header fields, for the document.
FIELDS = {
    "RateLimit-Policy": "how many calls (q) a person may make in how many seconds (w); with `qu` "
    "content-bytes, how many bytes they may add to the log",
    "RateLimit": "how many are left (r), and in how many seconds (t) all of them are again",
}


@dataclass(frozen=True, slots=True)
class CallLimit:
    """At most `quota` calls a minute by one person; 0: no limit. `limited` counts those above it."""

    name: str
    quota: int
    what: str
    uses: Backplane
    limited: Counter[str]

    async def spend(self, user: str) -> Mapping[str, str]:
        """Counts a call, and returns the header fields of its response. Raises HttpProblem 429.

        Deliberate: a call that is refused counts, too, but makes the wait no longer. The window ends a minute
        after it began.
        """
        if not self.quota:
            return {}
        seen, left_ms = await self.uses.use(f"{self.name}:{user}", window_ms=WINDOW_S * 1000)
        # Rounded up: whoever comes after so many seconds finds a new window.
        left_s = -(-left_ms // 1000)
        fields = {
            "ratelimit-policy": f'"{self.name}";q={self.quota};w={WINDOW_S}',
            "ratelimit": f'"{self.name}";r={max(0, self.quota - seen)};t={left_s}',
        }
        if seen <= self.quota:
            return fields
        self.limited[self.name] += 1
        detail = f"you may {self.what} {self.quota} times a minute, try again in {left_s} s"
        raise HttpProblem(429, "rate_limited", detail, {**fields, "retry-after": str(left_s)})


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
