"""One timer wheel for all streams of a node: it pings quiet ones, ends old ones and drops ended ones.

A service. The hub adds streams; the wheel calls the hub for pings. Deliberate: a write doesn't move a stream
on the wheel. The wheel finds the stream where it was, and moves it to where its silence would now be over, so
a delivery costs the heartbeat nothing but the tick that the subscriber keeps.
"""

import asyncio
from collections.abc import Iterable
from typing import Protocol

from pushsse.stream.subscriber import Ended, Live, Subscriber

# How long a client has to read the last frame of a stream that was ended.
LINGER_S = 10.0
PRUNE_TICKS = 20


class Pinger(Protocol):
    """What the wheel calls: the hub."""

    def ping(self, subscribers: Iterable[Subscriber]) -> None:
        """Pings live subscribers."""
        ...

    def prune(self) -> None:
        """Forgets what nobody has needed for a while."""
        ...


class Heartbeat:
    """Counts ticks of at most half a second; `now` is the present one."""

    def __init__(self, *, heartbeat_s: float) -> None:
        self.tick_s = min(0.5, heartbeat_s / 4)
        self.now = 0
        self._period = max(1, round(heartbeat_s / self.tick_s))
        self._wheel: dict[int, list[Subscriber]] = {}

    def ticks(self, seconds: float) -> int:
        """The tick so many seconds from now, at least the next one."""
        return self.now + max(1, round(seconds / self.tick_s))

    def add(self, subscriber: Subscriber) -> None:
        """Schedules a subscriber for when it has been silent for long enough, or is to end."""
        at = max(subscriber.wrote + self._period, self.now + 1)
        if subscriber.expiry is not None:
            at = max(self.now + 1, min(at, subscriber.expiry.tick))
        self._wheel.setdefault(at, []).append(subscriber)

    def bury(self, subscriber: Subscriber) -> None:
        """Schedules an ended subscriber: if its client hasn't read the last frame by then, it is dropped."""
        self._wheel.setdefault(self.ticks(LINGER_S), []).append(subscriber)

    async def run(self, hub: Pinger) -> None:
        """Turns the wheel, for ever."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            due = max(due + self.tick_s, loop.time() - self.tick_s)
            await asyncio.sleep(max(0.0, due - loop.time()))
            self.turn(hub)

    def turn(self, hub: Pinger) -> None:
        """One tick."""
        self.now += 1
        quiet: list[Subscriber] = []
        for subscriber in self._wheel.pop(self.now, ()):
            state, expiry = subscriber.state, subscriber.expiry
            if isinstance(state, Ended):
                # Guarantee 4: whoever doesn't read the last frame doesn't keep a connection.
                subscriber.sink.abort()
            elif not subscriber.is_open:
                continue
            elif expiry is not None and expiry.tick <= self.now:
                subscriber.end(expiry.reason)
            elif isinstance(state, Live) and self.now - subscriber.wrote >= self._period:
                quiet.append(subscriber)
            else:
                self.add(subscriber)
        hub.ping(quiet)
        for subscriber in quiet:
            self.add(subscriber)
        if self.now % PRUNE_TICKS == 0:
            hub.prune()
