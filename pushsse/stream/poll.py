"""A poll that waits: a stream in all but its body, which is one JSON answer with the first events.

`PollSink` stands between a subscriber and the sink of its connection. It is offered the same chunks as every
other stream of its shard, so that a poll costs the hub what a stream does, and answers with what is in the
first chunk that holds an event. Then the poll ends, as it does for any other reason: with the events that
there are, and the position. `PollAnswers` makes the answer once for all polls that get the same chunk.

Deliberate: a chunk is read back from its frames. The hub's path to a stream knows nothing of polls.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import msgspec

from pushsse.errors import CloseReason
from pushsse.stream.frame import Chunk, chunk
from pushsse.stream.subscriber import Sink, Subscriber

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
