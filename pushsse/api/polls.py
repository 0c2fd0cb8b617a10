"""`GET /v1/events`: a person's events as JSON, read through the same replay as a stream's, with its filter.

With `wait_s` a call that finds nothing waits for the first event: its connection is handed over as a stream's
is, and what waits is a subscriber: a stream in all but its body, which is one JSON answer. `PollSink` stands
between that subscriber and the sink of its connection. It is offered the same chunks as every other stream of
its shard, so that a poll costs the hub what a stream does, and answers with what is in the first chunk that
holds an event. Then the poll ends, as it does for any other reason: with the events that there are, and the
position. `PollAnswers` makes the answer once for all polls that get the same chunk.

Deliberate:
- A wait has no task, timer or queue of its own. The heartbeat's wheel ends it, and a node with no room for a
  stream has none for a poll that waits.
- A chunk is read back from its frames. The hub's path to a stream knows nothing of polls.
"""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import NamedTuple, Self

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pushsse.api import HttpProblem, Query, direct, json_response
from pushsse.api.identity import STREAM, Identifier, Identity
from pushsse.api.stream import HasRoom, wished
from pushsse.errors import CloseReason
from pushsse.hub.catch_up import SCAN_ENTRIES, Replay, ScansBusy
from pushsse.hub.opening import From, Opener, Opening, StreamOptions
from pushsse.stream.frame import BUSY_RETRY_MS, Chunk, Resume, chunk
from pushsse.stream.handover import offered
from pushsse.stream.immediate import TAKEN_OVER, Answer, Reply
from pushsse.stream.limits import ANSWER_HEADERS
from pushsse.stream.portable import CLOSE, QueueStream, WakeQueue, head_bytes, start, start_nowait
from pushsse.stream.subscriber import Sink, Subscriber

# Entries of the log that one call goes through; then its answer says `more`, also where it holds no event.
MAX_LOOKED_AT = SCAN_ENTRIES
# How long a call waits for its turn to go through the log.
SCAN_WAIT_S = 5.0
# Below what proxies wait for an answer by themselves: nginx 60 s, others 30 s.
MAX_WAIT_S = 30
RETRY_AFTER = {"retry-after": "5"}
_HEAD = [
    (b"content-type", b"application/json"),
    *((name.encode(), value.encode()) for name, value in ANSWER_HEADERS.items()),
]
_HEAD_BYTES = head_bytes((*_HEAD, CLOSE))
# Events that end a wait together, at most: in a burst each poll could ask for another number of them.
MOST_TOLD = 100
_NAME, _DATA, _ID = b"event: ", b"data: ", b"id: "
# A ping says nothing, and pieces of an answer aren't in the log.
_PASSED_OVER = frozenset({"ping", "answer.delta"})


class EventView(msgspec.Struct, frozen=True):
    """One event as JSON, as the stream would have had it."""

    event: str
    data: msgspec.Raw
    id: str


class Events(msgspec.Struct, frozen=True):
    """A person's events after a position; `more` if it is worth asking again at once."""

    events: tuple[EventView, ...]
    position: str
    gap: bool
    more: bool


class _Frame(NamedTuple):
    name: str
    data: bytes
    position: str


class PollAnswers:
    """Makes the answers of polls: one for all that get the same chunk, and as many events of it."""

    def __init__(self) -> None:
        self._chunk: Chunk | None = None
        self._frames: list[_Frame] = []
        self._made: dict[int, Chunk] = {}

    def of(self, given: Chunk, limit: int) -> Chunk | None:
        """The answer with at most `limit` events; None for a chunk that holds nothing to tell of."""
        if self._chunk is not given:
            self._chunk, self._frames = given, list(islice(_told(given.raw), MOST_TOLD + 1))
            self._made.clear()
        if not self._frames:
            return None
        limit = min(limit, MOST_TOLD)
        if (made := self._made.get(limit)) is None:
            made = self._made[limit] = _answer(self._frames, limit)
        return made


class PollSink:
    """The sink of a poll's subscriber, which it ends with the first events. `sink` is the connection's."""

    __slots__ = ("_answers", "_limit", "_made", "_sink", "_subscriber")

    def __init__(self, sink: Sink, answers: PollAnswers, *, limit: int) -> None:
        self._sink = sink
        self._answers = answers
        self._limit = limit
        self._made: Chunk | None = None
        self._subscriber: Subscriber | None = None

    def attach(self, subscriber: Subscriber) -> Subscriber:
        """Called before anything is written: the subscriber that this ends."""
        self._subscriber = subscriber
        return subscriber

    def write(self, chunk: Chunk) -> None:
        """Answers, and ends the subscriber, if there is an event in it, or word of a gap."""
        made = self._answers.of(chunk, self._limit)
        subscriber = self._subscriber
        if made is not None and subscriber is not None:
            self._made = made
            subscriber.end(CloseReason.ANSWERED)

    def end(self, chunk: Chunk) -> None:
        """Takes the last frame. Where nothing was answered, only the position is told, and a gap."""
        # The subscriber holds this object: without a cycle both go with the connection.
        subscriber, self._subscriber = self._subscriber, None
        made, self._made = self._made, None
        if made is None:
            assert subscriber is not None
            [last] = _frames(chunk.raw)
            # Guarantee 2: the last frame has no place where a gap wasn't told yet.
            made = nothing(last.position or str(subscriber.position), gap=not last.position)
        self._sink.end(made)

    def abort(self) -> None:
        """Drops the connection."""
        self._sink.abort()


@dataclass(frozen=True, slots=True)
class PollEndpoint:
    """An ASGI endpoint, since a poll that waits takes the connection over."""

    identifier: Identifier
    opener: Opener
    replay: Replay
    node: HasRoom
    backlog_bytes: int
    limited: Counter[str]
    answers: PollAnswers = field(default_factory=PollAnswers)
    wake_queue: WakeQueue = field(default_factory=WakeQueue)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI: events after a position, or since some time ago; neither: none, and now's position."""
        request = Request(scope, receive)
        response = await self._answer(request, send)
        if isinstance(response, QueueStream):
            direct.respond_later(scope, partial(response, scope, receive, send))
        elif response is not None:
            await response(scope, receive, send)

    async def _answer(self, request: Request, send: Send) -> Response | None:
        """The response that is still to be sent; None where the connection was handed over."""
        who = await self.identifier.identify(request, STREAM)
        asked = _PollRequest.of(request, who)
        async with self.opener.opening(who.user, asked.wish) as opening:
            reading = _Reading(self.replay, opening, asked.options.types, asked.limit)
            while reading.goes_on and not reading.looked_at:
                await reading.step()
            if reading.goes_on:
                # What lies in one piece is read at once; a whole log only in turn.
                await self._scan(reading, who.user)
            if not asked.wait_s or reading.has_something or request.method == "HEAD":
                return json_response(reading.answer())
            # Guarantee 2: what comes from here on lies behind the cursor, and a subscriber that isn't where
            # the node is begins behind.
            return await self._wait(request.scope, send, opening, asked)

    def waiting(self, request: Request) -> Answer | None:
        """Begins to wait without ASGI, where there is nothing to tell yet; None where that can't be.

        Raises what `__call__` answers with.
        """
        if b"wait_s=" not in request.scope["query_string"] or not self.node.has_room():
            return None
        who = self.identifier.identify_nowait(request, STREAM)
        if who is None:
            return None
        asked = _PollRequest.of(request, who)

        def answer(body: bytes) -> Reply | None:
            if body or not asked.wait_s:
                return None
            begun = self.opener.poll_nowait(
                who.user,
                asked.wish,
                lambda begin: start_nowait(
                    begin, offered(request.scope), backlog_bytes=self.backlog_bytes, head=_HEAD_BYTES
                ),
                lambda opening, sink: self._begin(opening, sink, asked),
            )
            return TAKEN_OVER if begun else None

        return answer

    async def _scan(self, reading: "_Reading", user: str) -> None:
        """Reads on in the person's turn. Raises HttpProblem 503 where none comes and nothing was found."""
        scans = self.replay.scans
        try:
            async with scans.turn(user, limit_s=SCAN_WAIT_S):
                while reading.goes_on:
                    async with scans.piece():
                        await reading.step()
        except ScansBusy as error:
            if not reading.found:
                raise HttpProblem(503, "overloaded", str(error), RETRY_AFTER) from None

    async def _wait(
        self, scope: Scope, send: Send, opening: Opening, asked: "_PollRequest"
    ) -> Response | None:
        """Begins to wait. Raises HttpProblem 503 where there is no room."""
        offer = offered(scope)
        if offer is not None:
            # As for a stream: a client that reads nothing of its earlier answers gets no further one.
            await offer.drained()
        if not self.node.has_room():
            self.limited["streams"] += not self.node.isolated
            reason = CloseReason.OVERLOADED
            # Spread, as streams that find no room are.
            retry_s = -(-random.randint(*BUSY_RETRY_MS) // 1000)
            raise HttpProblem(503, reason.code, reason.detail, {"retry-after": str(retry_s)})
        return await start(
            lambda sink: self._begin(opening, sink, asked),
            scope,
            send,
            wake_queue=self.wake_queue,
            backlog_bytes=self.backlog_bytes,
            head=_HEAD,
            refusal=nothing(str(opening.cursor.position)).raw,
        )

    def _begin(self, opening: Opening, sink: Sink, asked: "_PollRequest") -> Subscriber:
        """Begins to wait on a connection."""
        # Guarantee 5: the node may have closed a moment ago, and nobody else would end this one. It is asked
        # before the poll itself takes room.
        has_room = self.node.has_room()
        poll = PollSink(sink, self.answers, limit=asked.limit)
        subscriber = self.opener.begin_poll(
            opening, poll, asked.options, wait_s=asked.wait_s, begun=poll.attach
        )
        if not has_room:
            subscriber.end(CloseReason.OVERLOADED)
        return subscriber


class _PollRequest(NamedTuple):
    """What a call asks for."""

    wish: From
    options: StreamOptions
    limit: int
    wait_s: int

    @classmethod
    def of(cls, request: Request, who: Identity) -> Self:
        """Raises HttpProblem 400."""
        query = Query(request)
        limit = query.number("limit", default=100, most=1000)
        wait_s = query.number("wait_s", default=0, least=0, most=MAX_WAIT_S)
        options = StreamOptions(types=query.types(), expires_at=who.expires_at, issued_at=who.issued_at)
        return cls(wished(query, also="after"), options, limit, wait_s)


@dataclass(slots=True)
class _Reading:
    """One call for events as far as it has got; `more` until nothing was left to read."""

    replay: Replay
    opening: Opening
    types: frozenset[str] | None
    limit: int
    gap: bool = False
    more: bool = True
    looked_at: int = 0
    # With the time after which each may no longer be told.
    found: list[tuple[int, EventView]] = field(default_factory=list)

    @property
    def goes_on(self) -> bool:
        """Whether there is something to read, and room for it."""
        return self.more and len(self.found) < self.limit and self.looked_at < MAX_LOOKED_AT

    @property
    def has_something(self) -> bool:
        """Whether there is anything to tell by now."""
        return bool(self.found) or self.has_gap or self.more

    @property
    def has_gap(self) -> bool:
        """Whether something is lost."""
        return self.gap or self.opening.resume is Resume.GAP

    async def step(self) -> None:
        """Reads one piece. Raises Unavailable."""
        cursor = self.opening.cursor
        entries = await self.replay.entries(cursor)
        # Guarantee 2: a log that was lost while it was read is told as a gap, as on a stream.
        if cursor.take_gap():
            self.gap = True
            return
        # The cursor also moves past what is filtered, so `position` never brings that again.
        passed = self.replay.advance(cursor, entries, types=self.types, most=self.limit - len(self.found))
        self.looked_at += passed.looked_at
        self.more = bool(entries) and not self.replay.is_current(cursor)
        for publication, position in passed.found:
            data = msgspec.Raw(publication.data)
            self.found.append((publication.expires_ms, EventView(publication.name, data, str(position))))

    def answer(self) -> Events:
        """What was found."""
        # Several reads may lie between the first event and now: what was found first may have expired.
        fresh = tuple(each for expires_ms, each in self.found if not self.replay.expired(expires_ms))
        return Events(fresh, str(self.opening.cursor.position), self.has_gap, self.more)


def nothing(position: str, *, gap: bool = False) -> Chunk:
    """The answer without events."""
    return chunk(msgspec.json.encode(Events((), position, gap, more=False)))


def _frames(raw: bytes) -> Iterator[_Frame]:
    """The frames of a chunk for a stream with names, whose data is one line each; some have no place."""
    start = 0
    while (end := raw.find(b"\n\n", start)) >= 0:
        block, start = raw[start:end], end + 2
        head, _, rest = block.partition(b"\n" + _DATA)
        data, _, position = rest.partition(b"\n" + _ID)
        yield _Frame(head.rpartition(_NAME)[2].decode(), data, position.decode())


def _told(raw: bytes) -> Iterator[_Frame]:
    """The frames that a poll is told of."""
    return (frame for frame in _frames(raw) if frame.name not in _PASSED_OVER)


def _answer(frames: Sequence[_Frame], limit: int) -> Chunk:
    # In the middle of a stream `ready` tells of a gap; what follows it comes with the next poll.
    gap = frames[0].name == "ready"
    told = frames[:limit] if not gap else ()
    views = tuple(EventView(frame.name, msgspec.Raw(frame.data), frame.position) for frame in told)
    last = told[-1] if told else frames[0]
    return chunk(
        msgspec.json.encode(Events(views, last.position, gap, more=not gap and len(told) < len(frames)))
    )
