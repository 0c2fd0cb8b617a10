"""Hears the followed logs over pub/sub, in order and without a hole, and reads what pub/sub dropped.

`listen` is called by the backplane's only listener. All happens in its steps, one after another: what came
is sorted, and where a number is missing, the connection is new or the canary says so, all logs are read.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterable, Sequence

from redis.exceptions import RedisError

from pushsse.backoff import Backoff
from pushsse.backplane import codec
from pushsse.backplane.base import Entry, Followed, Heard, HeardLive, Hearing, Lost
from pushsse.backplane.redis_link import Connector
from pushsse.backplane.redis_read import Found, LogReader, Want, merged, tail_of
from pushsse.backplane.redis_subscription import Subscription
from pushsse.errors import BackplaneUnavailable
from pushsse.metrics import Metrics
from pushsse.position import Mark

TIMEOUT_S = 1.5
_CATCH_UP = 2000
_FOLLOW_AT_ONCE = 8
_log = logging.getLogger(__name__)


class Place:
    """How far one followed log was heard; no epoch until it was read for the first time."""

    __slots__ = ("at_ms", "epoch", "number")

    def __init__(self) -> None:
        self.epoch = ""
        self.number = 0
        self.at_ms = 0


class Listener:
    """The followed logs, and the way back into step after anything."""

    def __init__(
        self, connector: Connector, reader: LogReader, *, channel: str, canary: bytes, metrics: Metrics
    ) -> None:
        self._connector = connector
        self._reader = reader
        self._channel = channel.encode()
        self._canary = canary
        self._metrics = metrics
        self._places: dict[str, Place] = {}
        self._new: dict[str, None] = {}
        self._left = False
        self._subscription: Subscription | None = None
        self._wake = asyncio.Event()
        self._backoff = Backoff(first_s=0.05, most_s=1.0)
        self._behind = False
        self._listening = False
        self._trouble = False

    def follow(self, log: str) -> None:
        """Asks for a log."""
        if log not in self._places:
            self._places[log] = Place()
            self._new[log] = None
            self._wake.set()

    def unfollow(self, log: str) -> None:
        """Nothing of the log is yielded from now on."""
        if self._places.pop(log, None) is not None:
            self._new.pop(log, None)
            self._left = True
            self._wake.set()

    def mark(self, log: str) -> Mark | None:
        """How far a log was heard; None before it is followed."""
        place = self._places.get(log)
        return Mark(place.epoch, place.number) if place is not None and place.epoch else None

    def logs(self) -> Iterable[str]:
        """The logs that are followed by now."""
        return [log for log, place in self._places.items() if place.epoch]

    async def listen(self, tasks: asyncio.TaskGroup) -> AsyncGenerator[Hearing, None]:
        """For ever. Whoever ends it may begin anew: everything that is asked for is then followed anew."""
        if self._listening:
            raise RuntimeError("the backplane has a listener already")
        self._listening = True
        try:
            while True:
                self._left = False
                for hearing in await self._step(tasks):
                    heard = self._still_followed(hearing) if self._left else hearing
                    if heard is not None:
                        yield heard
        finally:
            self._listening = False
            await self.close()
            self._places = {log: Place() for log in self._places}
            self._new = dict.fromkeys(self._places)

    async def close(self) -> None:
        """Drops the connection."""
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await subscription.close()

    async def _step(self, tasks: asyncio.TaskGroup) -> list[Hearing]:
        try:
            subscription = self._subscription or await self._open(tasks)
            if subscription.broken:
                raise ConnectionError(subscription.broken)
            await self._ask(subscription)
            if not self._must_read(subscription):
                await self._wake.wait()
                self._wake.clear()
        except (RedisError, OSError, TimeoutError) as error:
            await self._lose_connection(error)
            return []
        hearings = self._sort(subscription)
        if self._must_read(subscription):
            try:
                hearings += await self._read()
            except BackplaneUnavailable:
                # Logged by the link. What comes meanwhile is in the log as well.
                await asyncio.sleep(self._backoff.next_s())
        return hearings

    # The connection

    async def _open(self, tasks: asyncio.TaskGroup) -> Subscription:
        subscription = Subscription(self._connector.connection(), canary=self._canary, wake=self._wake)
        self._subscription = subscription
        await subscription.open(tasks, timeout_s=TIMEOUT_S)
        self._behind = True
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
        wanted = self._places.keys()
        if wanted == subscription.sent:
            return
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
            place = self._places.get(log)
            if channel == self._canary:
                self._check(payload)
            elif isinstance(payload, int):
                subscription.confirm(kind, log)
            elif place is not None and place.epoch:
                message = codec.message(payload)
                if isinstance(message, codec.Appended):
                    entries += self._entries(log, place, message)
                elif message is not None:
                    if entries:
                        hearings.append(Heard(tuple(entries)))
                        entries = []
                    hearings.append(HeardLive(log, message))
        if entries:
            hearings.append(Heard(tuple(entries)))
        return hearings

    def _entries(self, log: str, place: Place, message: codec.Appended) -> list[Entry]:
        """What of a message goes on from where the log was heard; a hole puts the node behind."""
        if message.epoch != place.epoch or message.first > place.number + 1:
            self._behind = True
        if self._behind or message.last <= place.number:
            # Behind: it will be read, in its order with what is missing.
            return []
        entries = [
            Entry(log, number, message.order + i, message.at_ms, codec.decode(blob))
            for i, blob in enumerate(message.blobs)
            if (number := message.first + i) > place.number
        ]
        place.number = message.last
        place.at_ms = message.at_ms
        return entries

    def _check(self, canary: bytes | int) -> None:
        for line in canary.decode().splitlines() if isinstance(canary, bytes) else ():
            log, epoch, number = line.split(" ")
            place = self._places.get(log)
            if place is not None and place.epoch and (epoch, int(number)) != (place.epoch, place.number):
                self._behind = True

    # What is missing

    def _must_read(self, subscription: Subscription) -> bool:
        if not self._behind and not self._new:
            return False
        return subscription.sent == self._places.keys() and subscription.sent <= subscription.confirmed

    async def _read(self) -> list[Hearing]:
        """Reads all followed logs at one moment, and with them the tails of some new ones."""
        places = {log: place for log, place in self._places.items() if place.epoch}
        wants = [Want(log, place.epoch, place.number, place.at_ms) for log, place in places.items()]
        new = {log: self._places[log] for log in list(self._new)[:_FOLLOW_AT_ONCE]}
        every = await self._reader.read([*wants, *map(tail_of, new)], limit=_CATCH_UP)
        found, tails = every[: len(wants)], every[len(wants) :]
        back = [want for want, one in zip(wants, found, strict=True) if one.went_back]
        for want in back:
            await self._reader.renew(want)
        if back:
            self._behind = True
            return []
        self._backoff.reset()
        hearings = self._lost(found, places)
        entries, self._behind = merged(found)
        hearings += self._missed(entries, places)
        if not self._behind:
            hearings += self._begin(tails, new)
        return hearings

    def _lost(self, found: Sequence[Found], places: dict[str, Place]) -> list[Hearing]:
        hearings: list[Hearing] = []
        for one in found:
            place = places[one.log]
            if self._places.get(one.log) is not place:
                continue
            if one.head.epoch == place.epoch and one.start <= place.number:
                continue
            _log.warning("log %s: what came after %s-%d is lost", one.log, place.epoch, place.number)
            place.epoch, place.number, place.at_ms = one.head.epoch, one.start, 0
            hearings.append(Lost(one.log, one.head._replace(base=one.start)))
        return hearings

    def _missed(self, entries: Sequence[Entry], places: dict[str, Place]) -> list[Hearing]:
        kept = tuple(entry for entry in entries if self._places.get(entry.log) is places[entry.log])
        for entry in kept:
            places[entry.log].number = entry.number
            places[entry.log].at_ms = entry.at_ms
        if not kept:
            return []
        self._metrics.gaps_filled += 1
        return [Heard(kept)]

    def _begin(self, tails: Sequence[Found], new: dict[str, Place]) -> list[Hearing]:
        hearings: list[Hearing] = []
        for one in tails:
            place = new[one.log]
            if self._places.get(one.log) is place:
                place.epoch, place.number, place.at_ms = one.head.epoch, one.head.number, one.at_ms
                del self._new[one.log]
                hearings.append(Followed(one.log, one.head, one.entries))
        return hearings

    def _still_followed(self, hearing: Hearing) -> Hearing | None:
        if not isinstance(hearing, Heard):
            return hearing if self.mark(hearing.log) is not None else None
        entries = tuple(entry for entry in hearing.entries if self.mark(entry.log) is not None)
        return Heard(entries) if entries else None
