"""One timer wheel for all streams of a node: it pings quiet ones, ends old ones and drops ended ones.

The end of a stream whose session may go on is asked about first.

A service. The hub adds streams; the wheel calls the hub for pings. Deliberate: a write doesn't move a stream
on the wheel. The wheel finds the stream where it was, and moves it to where its silence would now be over, so
a delivery costs the heartbeat nothing but the tick that the subscriber keeps.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from math import ceil
from typing import Protocol

from pushsse.errors import CloseReason, Unavailable
from pushsse.stream.subscriber import Ended, Expiry, Live, Renewal, Subscriber

# How long a client has to read the last frame of a stream that was ended.
LINGER_S = 10.0
# The next tick may be due already, and where the loop was late the one after it comes early.
_EARLY_TICKS = 2
PRUNE_TICKS = 20
# Asks until when a session goes on (seconds since 1970), None if it doesn't. Raises Unavailable, in seconds.
Renew = Callable[[], Awaitable[float | None]]


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
        self._tasks: asyncio.TaskGroup | None = None

    def ticks(self, seconds: float) -> int:
        """The tick so many seconds from now, at least the next one."""
        return self.now + max(1, round(seconds / self.tick_s))

    def after(self, seconds: float) -> int:
        """A tick that comes when so many seconds are over, never before; at most three ticks later."""
        return self.now + (_EARLY_TICKS + ceil(seconds / self.tick_s) if seconds > 0 else 1)

    def left_s(self, tick: int) -> float:
        """Seconds until a tick, at least."""
        return max(0.0, (tick - self.now - _EARLY_TICKS) * self.tick_s)

    def add(self, subscriber: Subscriber) -> None:
        """Schedules a subscriber for when it has been silent for long enough, or is to end."""
        at, expiry = subscriber.wrote + self._period, subscriber.expiry
        if expiry is not None and expiry.tick < at:
            at = expiry.tick
        if at <= self.now:
            at = self.now + 1
        self._wheel.setdefault(at, []).append(subscriber)

    def bury(self, subscriber: Subscriber) -> None:
        """Schedules an ended subscriber: if its client hasn't read the last frame by then, it is dropped."""
        self._wheel.setdefault(self.ticks(LINGER_S), []).append(subscriber)

    def renewal(self, renew: Renew, expiry: Callable[[float], Expiry]) -> Renewal:
        """Asks `renew` when a stream ends; `expiry` makes the new end of a time (seconds since 1970)."""
        return _Renewal(self, renew, expiry)

    def ask(self, renew: Renew) -> "asyncio.Task[float | CloseReason]":
        """Asks whether a session goes on. Called while the wheel turns."""
        assert self._tasks is not None
        return self._tasks.create_task(_ask(renew), name="renewal")

    async def run(self, hub: Pinger) -> None:
        """Turns the wheel, for ever."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        async with asyncio.TaskGroup() as self._tasks:
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
                self._end(subscriber, expiry)
            elif isinstance(state, Live) and self.now - subscriber.wrote >= self._period:
                quiet.append(subscriber)
            else:
                self.add(subscriber)
        hub.ping(quiet)
        for subscriber in quiet:
            self.add(subscriber)
        if self.now % PRUNE_TICKS == 0:
            hub.prune()

    def _end(self, subscriber: Subscriber, expiry: Expiry) -> None:
        """A stream's time is over, unless a renewal says something else."""
        outcome = expiry.reason if expiry.renewal is None else expiry.renewal.outcome()
        if isinstance(outcome, CloseReason):
            subscriber.end(outcome)
            return
        if outcome is not None:
            subscriber.extend(outcome)
        self.add(subscriber)


class _Renewal:
    """The question whether one stream's session goes on, asked each time that its end has come."""

    __slots__ = ("_asking", "_expiry", "_heartbeat", "_renew")

    def __init__(self, heartbeat: Heartbeat, renew: Renew, expiry: Callable[[float], Expiry]) -> None:
        self._heartbeat = heartbeat
        self._renew = renew
        self._expiry = expiry
        self._asking: asyncio.Task[float | CloseReason] | None = None

    def outcome(self) -> Expiry | CloseReason | None:
        """Begins to ask, or says what came of it."""
        if self._asking is None:
            self._asking = self._heartbeat.ask(self._renew)
            return None
        if not self._asking.done():
            return None
        asked, self._asking = self._asking, None
        found = CloseReason.OVERLOADED if asked.cancelled() else asked.result()
        return found if isinstance(found, CloseReason) else self._expiry(found)


async def _ask(renew: Renew) -> float | CloseReason:
    try:
        ends_at = await renew()
    except Unavailable:
        # Nobody knows: the client comes back, and is asked about once more.
        return CloseReason.OVERLOADED
    return CloseReason.TOKEN_EXPIRED if ends_at is None else ends_at
