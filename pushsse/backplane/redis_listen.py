"""Hears the followed logs over pub/sub, in order and without a hole, and reads what pub/sub dropped.

`listen` is called by the backplane's only listener. All happens in its steps, one after another: what came
is sorted, and where a number is missing, the connection is new or the canary says so, all logs are read.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterable
from functools import partial

from redis.exceptions import RedisError

from pushsse.backoff import Backoff
from pushsse.backplane import codec
from pushsse.backplane.base import Entry, Heard, HeardLive, Hearing
from pushsse.backplane.redis_link import Connector
from pushsse.backplane.redis_places import Places
from pushsse.backplane.redis_read import LogReader
from pushsse.backplane.redis_subscription import Subscription
from pushsse.errors import BackplaneUnavailable
from pushsse.metrics import Metrics
from pushsse.position import Mark

TIMEOUT_S = 1.5
_CATCH_UP = 2000
_log = logging.getLogger(__name__)


class Listener:
    """Keeps in step with the followed logs, and finds the way back into step after anything."""

    def __init__(
        self, connector: Connector, reader: LogReader, *, channel: str, canary: bytes, metrics: Metrics
    ) -> None:
        self._connector = connector
        self._reader = reader
        self._channel = channel.encode()
        self._canary = canary
        self._metrics = metrics
        self._places = Places(metrics)
        self._subscription: Subscription | None = None
        self._wake = asyncio.Event()
        self._backoff = Backoff(first_s=0.05, most_s=1.0)
        self._listening = False
        self._trouble = False

    def follow(self, log: str) -> None:
        """Asks for a log."""
        if self._places.add(log):
            self._wake.set()

    def unfollow(self, log: str) -> None:
        """Nothing of the log is yielded from now on."""
        if self._places.remove(log):
            self._wake.set()

    def mark(self, log: str) -> Mark | None:
        """How far a log was heard; None before it is followed."""
        return self._places.mark(log)

    @property
    def hears(self) -> bool:
        """Whether the connection that listens is whole, and has brought the canary."""
        subscription = self._subscription
        return subscription is not None and subscription.has_heard and not subscription.broken

    def logs(self) -> Iterable[str]:
        """The logs that are followed by now."""
        return self._places.followed

    async def listen(self, tasks: asyncio.TaskGroup) -> AsyncGenerator[Hearing, None]:
        """For ever. Whoever ends it may begin anew: everything that is asked for is then followed anew."""
        if self._listening:
            raise RuntimeError("the backplane has a listener already")
        self._listening = True
        try:
            while True:
                for step in (partial(self._hear, tasks), self._catch_up):
                    self._places.left = False
                    for hearing in await step():
                        heard = self._places.still(hearing) if self._places.left else hearing
                        if heard is not None:
                            yield heard
        finally:
            self._listening = False
            await self.close()
            self._places.reset()

    async def close(self) -> None:
        """Drops the connection."""
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await subscription.close()

    # The connection

    async def _hear(self, tasks: asyncio.TaskGroup) -> list[Hearing]:
        """Waits until something came, or is to be read."""
        try:
            subscription = self._subscription or await self._open(tasks)
            if subscription.broken:
                raise ConnectionError(subscription.broken)
            await self._ask(subscription)
            if not subscription.has_waiting and not self._must_read():
                await self._wake.wait()
            self._wake.clear()
        except (RedisError, OSError, TimeoutError) as error:
            await self._lose_connection(error)
            return []
        return self._sort(subscription)

    async def _open(self, tasks: asyncio.TaskGroup) -> Subscription:
        subscription = Subscription(self._connector.connection(), canary=self._canary, wake=self._wake)
        self._subscription = subscription
        await subscription.open(tasks, timeout_s=TIMEOUT_S)
        self._places.behind = True
        if self._trouble:
            _log.info("listening to Redis again")
            self._metrics.backplane_reconnects += 1
            self._trouble = False
        return subscription

    async def _lose_connection(self, error: Exception) -> None:
        if not self._trouble:
            _log.warning("the connection that listens to Redis is lost: %s", str(error) or "no answer")
            self._trouble = True
        await self.close()
        await asyncio.sleep(self._backoff.next_s())

    async def _ask(self, subscription: Subscription) -> None:
        wanted = self._places.names
        for logs, end in ((subscription.sent - wanted, True), (wanted - subscription.sent, False)):
            if logs:
                channels = [self._channel + log.encode() for log in logs]
                await subscription.subscribe(channels, timeout_s=TIMEOUT_S, end=end)
                subscription.sent ^= logs

    # What came

    def _sort(self, subscription: Subscription) -> list[Hearing]:
        hearings: list[Hearing] = []
        entries: list[Entry] = []
        for kind, channel, payload in subscription.take():
            log = channel[len(self._channel) :].decode()
            if isinstance(payload, int):
                subscription.confirm(kind, log)
            elif channel == self._canary:
                self._places.check(payload)
            elif self._places.mark(log) is not None:
                message = codec.message(payload)
                if isinstance(message, codec.Appended):
                    entries += self._places.take(log, message)
                elif message is not None:
                    if entries:
                        hearings.append(Heard(tuple(entries)))
                        entries = []
                    hearings.append(HeardLive(log, message))
        if entries:
            hearings.append(Heard(tuple(entries)))
        return hearings

    # What is missing

    def _must_read(self) -> bool:
        """Whether to read now: only once Redis sends all that comes after the reading."""
        subscription = self._subscription
        if subscription is None or not self._places.is_incomplete:
            return False
        return subscription.sent == self._places.names and subscription.sent <= subscription.confirmed

    async def _catch_up(self) -> list[Hearing]:
        """Reads all followed logs at one moment, and with them the tails of some new ones."""
        if not self._must_read():
            return []
        reading = self._places.reading()
        try:
            found = await self._reader.read(reading.wants, limit=_CATCH_UP)
            if back := reading.went_back(found):
                for want in back:
                    await self._reader.renew(want)
                found = await self._reader.read(reading.wants, limit=_CATCH_UP)
        except BackplaneUnavailable:
            # Logged by the link. What comes meanwhile is in the log as well.
            await asyncio.sleep(self._backoff.next_s())
            return []
        self._backoff.reset()
        return list(self._places.apply(reading, found))
