"""One open stream, the only writer of its state; the person behind it; the cursor of one that is behind.

The opening makes subscribers, delivery and catch-up offer them chunks, a sink reports what its connection
does. A subscriber is in one of four states, and each of these verbs is one atomic step (nothing here awaits):

    state   holds                              left by
    Behind  a cursor, and whether its sink     go_live -> Live, if no gap is owed, the sink has room and
            has room                           the cursor is where the node is; end -> Ended; gone -> Gone
    Live    nothing: it stands where the       paused, owe_gap -> Behind, where the node is;
            node does                          end -> Ended; gone -> Gone
    Ended   the reason: the last frame is      gone -> Gone
            written, and may not have left
    Gone    the reason                         (never)

Guarantee 2 (nothing lost, in order, once) rests on two of them: `go_live` compares the cursor with the node's
position and enters the table of live streams in the same step, and falling behind takes the node's position
in the step that leaves that table. A publication is therefore either below the cursor or delivered live,
never both and never neither. Guarantee 3 rests on the cursor's `off`: the switches as they were at its
position.
"""

import asyncio
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Protocol

from msgspec import Struct

from pushsse.errors import CloseReason
from pushsse.event import Publication
from pushsse.position import Mark, Position
from pushsse.stream.frame import Chunk, chunk, ending

NOTHING_OFF: frozenset[str] = frozenset()


class Sink(Protocol):
    """Where a stream's bytes go. None of the methods blocks or raises.

    `StreamProtocol` (handover), `QueueStream` (portable) and `PollSink` (api/polls) implement it.

    A sink tells its subscriber that it is full (`paused`), that it has room again (`resumed`), and, once,
    that the connection is gone (`gone`), also after `end` and `abort`.
    """

    def write(self, chunk: Chunk) -> None:
        """Takes the whole chunk, also when it is full, and keeps the order."""
        ...

    def end(self, chunk: Chunk) -> None:
        """Takes the last chunk and ends the body cleanly."""
        ...

    def abort(self) -> None:
        """Drops the connection and all that waits in it."""
        ...


class _NoSink:
    """The sink of a stream whose connection is gone."""

    __slots__ = ()

    def write(self, chunk: Chunk) -> None:
        pass

    def end(self, chunk: Chunk) -> None:
        pass

    def abort(self) -> None:
        pass


NO_SINK: Final[Sink] = _NoSink()


class Registry(Protocol):
    """The node's table of streams: the hub. A subscriber calls it in the step that changes its state."""

    def position(self, person: "Person") -> Position:
        """Where the node stands in a person's logs."""
        ...

    def went_live(self, subscriber: "Subscriber") -> None:
        """From now on the subscriber gets what is delivered to its shard."""
        ...

    def fell_behind(self, subscriber: "Subscriber") -> None:
        """From now on the subscriber gets nothing that is delivered; it is to be served from the logs."""
        ...

    def left(self, subscriber: "Subscriber") -> None:
        """The subscriber is over: it is counted under its reason and forgotten."""
        ...


class Off(Struct, frozen=True):
    """The types that are off for somebody at a place in the log, by one revision of the catalogue.

    `version` numbers the change that they follow from, -1 where that isn't known.
    """

    types: frozenset[str] = NOTHING_OFF
    revision: int = 0
    version: int = -1


class Person:
    """Somebody with streams on this node: the switches as the log has told them, and the streams.

    `revision` is the catalogue's that `off` follows from; `quiet` the quiet hours as JSON, empty for none.
    `since_ms` is when the first of the open streams began, by the log's clock.
    """

    __slots__ = ("holds", "log", "name", "off", "quiet", "revision", "since_ms", "subscribers", "version")

    def __init__(self, name: str, log: str) -> None:
        self.name = name
        self.log = log
        self.off = NOTHING_OFF
        self.version = -1
        self.revision = 0
        self.quiet = ""
        self.subscribers: list[Subscriber] = []
        self.holds = 0
        self.since_ms = 0

    def learn(
        self, version: int, off: frozenset[str], *, revision: int = 0, quiet: str | None = None
    ) -> None:
        """Takes the switches as they were after a change; `quiet` None: the quiet hours stay.

        Guarantee 3: the database and the log both tell of changes, in either order; the lower version loses,
        and of one version that of the earlier catalogue.
        """
        if version > self.version or (version == self.version and revision > self.revision):
            self.version = version
            self.revision = revision
            self.off = _shared(off) if off else NOTHING_OFF
            if quiet is not None:
                self.quiet = quiet
            for subscriber in self.subscribers:
                subscriber.refilter()

    @property
    def switches(self) -> Off:
        """The types that are off now, for a cursor that begins here."""
        return Off(self.off, self.revision, self.version)


@lru_cache(maxsize=64)
def _shared(off: frozenset[str]) -> frozenset[str]:
    """The same set for all who have the same off: what is off by default, thousands have, at 10 KB each."""
    return off


def selects(types: frozenset[str] | None, publication: Publication) -> bool:
    """Whether a stream that was narrowed to `types` (None: it wasn't) gets a publication.

    The service's own events always come.
    """
    return types is None or not publication.switchable or publication.name in types


class Cursor:
    """Where somebody reads a person's logs: a stream that is behind, or one call for events as JSON.

    `off` are the types that were off at `position`. `owes_gap`: events before `position` are lost, and the
    reader hasn't been told so yet.
    """

    __slots__ = ("off", "owes_gap", "person", "position")

    def __init__(self, person: Person, position: Position, off: Off) -> None:
        self.person = person
        self.position = position
        self.off = off
        self.owes_gap = False

    def move(self, log: str, mark: Mark) -> None:
        """Moves to a mark of the person's shard log, or else of the broadcast log."""
        if log == self.person.log:
            self.position = Position(self.position.broadcast, mark)
        else:
            self.position = Position(mark, self.position.shard)

    def skip(self, log: str, mark: Mark) -> None:
        """Moves past events that are lost: the reader is owed a gap."""
        self.move(log, mark)
        self.owes_gap = True

    def switched(self, off: Off) -> None:
        """Passes a change of the person's switches."""
        self.off = off

    def take_gap(self) -> bool:
        """Whether a gap is owed; the caller tells the reader of it at once."""
        owed, self.owes_gap = self.owes_gap, False
        return owed


class Behind:
    """A stream that is served from the logs, at its own pace."""

    __slots__ = ("_changed", "cursor", "room")

    def __init__(self, cursor: Cursor, *, room: bool = True) -> None:
        self.cursor = cursor
        self.room = room
        self._changed: asyncio.Event | None = None

    def fill(self) -> None:
        """Called by the subscriber: its sink is full."""
        self.room = False

    def drain(self) -> None:
        """Called by the subscriber: its sink has room again."""
        self.room = True
        self.wake()

    def wake(self) -> None:
        """Called by the subscriber: its sink has room, or it is over."""
        if self._changed is not None:
            self._changed.set()

    async def changed(self) -> None:
        """Waits for the next `wake`; one task at a time."""
        self._changed = asyncio.Event()
        try:
            await self._changed.wait()
        finally:
            self._changed = None


class Live:
    """A stream that gets what the node delivers, as it delivers it."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Ended:
    """A stream that the server has ended: its last frame is written and may not have left yet."""

    reason: CloseReason


@dataclass(frozen=True, slots=True)
class Gone:
    """A stream whose connection is gone."""

    reason: CloseReason


LIVE: Final = Live()
State = Behind | Live | Ended | Gone


class Renewal(Protocol):
    """Finds out whether a stream may go on after its end."""

    def outcome(self) -> "Expiry | CloseReason | None":
        """A later end, or why it is over; None while that isn't known. Asked at each tick from the end on."""
        ...


class Expiry(Struct, frozen=True):
    """The tick of the node's heartbeat at which a stream ends, why, and who may know of a later end."""

    tick: int
    reason: CloseReason
    renewal: Renewal | None = None


class Subscriber:
    """One stream. Everybody may read its attributes; only its own methods write them.

    `unfiltered`: it takes whatever its shard gets, since the person has no type off, it was opened for all
    types, and its events have names. `wrote` is the tick of the node's heartbeat at the last write.
    `issued_at` is when the token was issued (seconds since 1970), None if that isn't known.
    Deliberate: no queue, task or timer; only a stream that is behind has a task, and catch-up owns that.
    """

    __slots__ = (
        "_registry", "expiry", "id", "issued_at", "named", "person", "sink", "state", "types", "unfiltered",
        "wrote",
    )  # fmt: skip

    def __init__(
        self,
        sink: Sink,
        registry: Registry,
        *,
        id: str,
        cursor: Cursor,
        named: bool = True,
        types: frozenset[str] | None = None,
        expiry: Expiry | None = None,
        issued_at: float | None = None,
        tick: int = 0,
    ) -> None:
        self.person = cursor.person
        self.sink = sink
        self.id = id
        self.named = named
        self.types = types
        self.expiry = expiry
        self.issued_at = issued_at
        self.wrote = tick
        self.state: State = Behind(cursor)
        self._registry = registry
        self.unfiltered = False
        self.refilter()

    @property
    def position(self) -> Position:
        """Where it stands; for one that is over, where the node does."""
        state = self.state
        return state.cursor.position if isinstance(state, Behind) else self._registry.position(self.person)

    @property
    def is_open(self) -> bool:
        """Whether it is behind or live."""
        return isinstance(self.state, (Behind, Live))

    def refilter(self) -> None:
        """Works out `unfiltered` again: called by the person when the switches change."""
        self.unfiltered = self.named and self.types is None and not self.person.off

    def offer(self, chunk: Chunk, tick: int) -> None:
        """Writes a chunk at a tick of the heartbeat. The caller knows that the stream is open."""
        # Every delivery passes here. `tick` is positional: CPython 3.11 is slower at keyword arguments.
        self.wrote = tick
        self.sink.write(chunk)

    def go_live(self) -> bool:
        """Goes live if nothing is left to replay, to tell or to drain; whether it did."""
        state = self.state
        if not isinstance(state, Behind) or not state.room or state.cursor.owes_gap:
            return False
        # Guarantee 2: no await may come between this comparison and `went_live`, or what is delivered
        # meanwhile is neither replayed nor written live.
        if state.cursor.position != self._registry.position(self.person):
            return False
        self.state = LIVE
        self._registry.went_live(self)
        return True

    def owe_gap(self, log: str, mark: Mark) -> None:
        """A log was lost: the stream goes on from `mark` of it, once its client has been told of the gap."""
        state = self.state
        if isinstance(state, Live):
            state = self._fall_behind(room=True)
        if isinstance(state, Behind):
            state.cursor.skip(log, mark)

    def extend(self, expiry: Expiry) -> None:
        """Moves the stream's end."""
        self.expiry = expiry

    def end(self, reason: CloseReason, *, retry_ms: int | None = None) -> None:
        """Ends the stream for a reason, which the client learns in band; does nothing if it is over."""
        if not self.is_open:
            return
        state = self.state
        # Guarantee 2: a cursor that owes a gap is past it by now. A client that resumed there would never be
        # told, so the last frame has no id, and the client's own one is from before the gap.
        owes_gap = isinstance(state, Behind) and state.cursor.owes_gap
        last = chunk(ending(reason, None if owes_gap else self.position, retry_ms=retry_ms))
        self._leave(Ended(reason))
        self.sink.end(last)

    # From the sink

    def paused(self) -> None:
        """The sink is full."""
        state = self.state
        if isinstance(state, Live):
            self._fall_behind(room=False)
        elif isinstance(state, Behind):
            state.fill()

    def resumed(self) -> None:
        """The sink has room again."""
        if isinstance(self.state, Behind):
            self.state.drain()

    def gone(self) -> None:
        """The connection is gone."""
        state = self.state
        if isinstance(state, Ended):
            self.state = Gone(state.reason)
        elif not isinstance(state, Gone):
            self._leave(Gone(CloseReason.DISCONNECTED))
        # The heartbeat's wheel keeps the subscriber some seconds more, but not what its connection was.
        self.sink = NO_SINK

    def _fall_behind(self, *, room: bool) -> Behind:
        # Guarantee 2: everything up to the node's position has been written. A sink that fills up says so
        # within the write of a batch, which is the stream's only write of it, after the logs have moved past
        # it. Guarantee 3: for the same reason the person's switches are those that held at that position.
        cursor = Cursor(self.person, self._registry.position(self.person), self.person.switches)
        self.state = behind = Behind(cursor, room=room)
        self._registry.fell_behind(self)
        return behind

    def _leave(self, state: Ended | Gone) -> None:
        before, self.state = self.state, state
        self._registry.left(self)
        if isinstance(before, Behind):
            before.wake()
