"""One open stream, and the person behind it.

The hub offers chunks to live subscribers; one whose sink is full falls behind and is served from the log
until it has caught up. Deliberate: no queue, task or timer here; a subscriber that isn't behind has none.
"""

import asyncio
from typing import Protocol

from pushsse.errors import CloseReason
from pushsse.position import Position
from pushsse.stream.frame import Chunk

NOTHING_OFF: frozenset[str] = frozenset()


class Sink(Protocol):
    """Where a stream's bytes go. It tells its subscriber when it is full (`paused`), has room again
    (`resumed`) and is gone (`gone`, once, also after `end`). None of its methods blocks or raises."""

    def write(self, chunk: Chunk) -> None:
        """Takes a chunk whole, also when full; order is kept."""
        ...

    def end(self, chunk: Chunk) -> None:
        """Takes the last chunk and ends the body cleanly."""
        ...

    def abort(self) -> None:
        """Drops the connection with all that waits in it."""
        ...


class Person:
    """Somebody with streams on this node: his switches as the log has told them, and his streams."""

    __slots__ = ("holds", "log", "name", "off", "subscribers", "version")

    def __init__(self, name: str, log: str) -> None:
        self.name = name
        self.log = log
        self.off = NOTHING_OFF
        self.version = -1
        self.subscribers: list[Subscriber] = []
        self.holds = 0

    def learn(self, version: int, off: frozenset[str]) -> None:
        """Takes the switches as they were after a change; an older one never overtakes a newer one."""
        if version > self.version:
            self.version = version
            self.off = off or NOTHING_OFF
            for subscriber in self.subscribers:
                subscriber.reckon()


class Attendant(Protocol):
    """Who looks after subscribers: the hub."""

    def fell_behind(self, subscriber: "Subscriber") -> None:
        """The sink of a live subscriber is full."""
        ...

    def left(self, subscriber: "Subscriber") -> None:
        """The sink is gone."""
        ...


class Subscriber:
    """One stream. `position` is where it stands while it isn't live; a live one stands where the node does.

    `gap`: it is owed a `ready` with `gap`. `plain`: it takes whatever its shard gets, since no type is off,
    none was selected, and names are on.
    `over`: its connection is gone. `wrote` and `ends_at` are ticks of the node's heartbeat.
    """

    __slots__ = (
        "attendant", "ends_at", "ends_for", "gap", "held", "id", "live", "named", "over", "person",
        "plain", "position", "reason", "room", "sink", "types", "wake", "wrote",
    )  # fmt: skip

    def __init__(
        self,
        person: Person,
        sink: Sink,
        attendant: Attendant,
        *,
        id: str,
        position: Position,
        held: frozenset[str],
        named: bool = True,
        types: frozenset[str] | None = None,
    ) -> None:
        self.person = person
        self.sink = sink
        self.attendant = attendant
        self.id = id
        self.position: Position | None = position
        self.held = held
        self.named = named
        self.types = types
        self.gap = False
        self.live = False
        self.over = False
        self.room = True
        self.plain = False
        self.wrote = 0
        self.ends_at = 0
        self.ends_for = CloseReason.LIFETIME
        self.reason: CloseReason | None = None
        self.wake: asyncio.Event | None = None
        self.reckon()

    def reckon(self) -> None:
        """Works out again whether the stream takes everything."""
        self.plain = self.named and self.types is None and not self.person.off

    def wants(self, name: str, switchable: bool) -> bool:
        """Whether the stream was opened for events of this name; the service's own always come."""
        return not switchable or self.types is None or name in self.types

    def paused(self) -> None:
        """From the sink: it is full."""
        self.room = False
        if self.live:
            self.attendant.fell_behind(self)

    def resumed(self) -> None:
        """From the sink: there is room again."""
        self.room = True
        if self.wake is not None:
            self.wake.set()

    def gone(self) -> None:
        """From the sink: nobody is there any more."""
        self.over = True
        self.reason = self.reason or CloseReason.DISCONNECTED
        self.attendant.left(self)
        if self.wake is not None:
            self.wake.set()
