"""One wheel for the whole node: pings for the quiet, ends for streams whose time has come, burials.

A service; the hub adds subscribers. Deliberate: a subscriber that was written to isn't moved at once, the
wheel finds it where it was, and puts it where its silence would now be over.
"""

import asyncio
from collections.abc import Iterable
from typing import Protocol

from pushsse.errors import CloseReason
from pushsse.stream.subscriber import Subscriber

LINGER_S = 10.0
PRUNE_TICKS = 20


class Beaten(Protocol):
    """Whoever acts on what the wheel finds: the hub."""

    def ping(self, subscribers: Iterable[Subscriber]) -> None:
        """Writes a ping to each."""
        ...

    def end(self, subscriber: Subscriber, reason: CloseReason) -> None:
        """Ends a stream."""
        ...

    def prune(self) -> None:
        """Gives up what nobody has needed for a while."""
        ...


class Heartbeat:
    """Counts ticks; `now` is the present one."""

    def __init__(self, *, heartbeat_s: float) -> None:
        self.tick_s = min(0.5, heartbeat_s / 4)
        self.now = 0
        self._period = max(1, round(heartbeat_s / self.tick_s))
        self._wheel: dict[int, list[Subscriber]] = {}

    def ticks(self, seconds: float) -> int:
        """A tick so many seconds from now."""
        return self.now + max(1, round(seconds / self.tick_s))

    def add(self, subscriber: Subscriber) -> None:
        """A subscriber to look at when it has been silent long enough, or when it is to end."""
        subscriber.wrote = self.now
        self._schedule(subscriber)

    def bury(self, subscriber: Subscriber) -> None:
        """A subscriber that was ended: whoever doesn't read its last words is dropped in a while."""
        self._wheel.setdefault(self.ticks(LINGER_S), []).append(subscriber)

    async def run(self, hub: Beaten) -> None:
        """Turns the wheel, for ever."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            due = max(due + self.tick_s, loop.time() - self.tick_s)
            await asyncio.sleep(max(0.0, due - loop.time()))
            self.turn(hub)

    def turn(self, hub: Beaten) -> None:
        """One tick."""
        self.now += 1
        quiet: list[Subscriber] = []
        for subscriber in self._wheel.pop(self.now, ()):
            if subscriber.reason is not None:
                subscriber.sink.abort()
            elif subscriber.ends_at and subscriber.ends_at <= self.now:
                hub.end(subscriber, subscriber.ends_for)
            else:
                if subscriber.live and self.now - subscriber.wrote >= self._period:
                    quiet.append(subscriber)
                    subscriber.wrote = self.now
                self._schedule(subscriber)
        hub.ping(quiet)
        if self.now % PRUNE_TICKS == 0:
            hub.prune()

    def _schedule(self, subscriber: Subscriber) -> None:
        at = max(subscriber.wrote + self._period, self.now + 1)
        if subscriber.ends_at:
            at = max(self.now + 1, min(at, subscriber.ends_at))
        self._wheel.setdefault(at, []).append(subscriber)
