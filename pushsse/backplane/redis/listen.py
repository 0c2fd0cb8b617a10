"""Hears the followed logs over pub/sub, in order and without a hole, and reads what pub/sub dropped.

`listen` is called by the backplane's only listener. All happens in its steps, one after another: what came
is sorted, and where a number is missing, the connection is new or the canary says so, all logs are read.
"""

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from pushsse.backplane import Entry, Followed, Gap, Heard, HeardLive, Hearing, codec
from pushsse.backplane.redis.connection import Connector, connect
from pushsse.backplane.redis.read import Found, LogReader, Want, merged, tail_of
from pushsse.errors import BackplaneUnavailable
from pushsse.metrics import Metrics
from pushsse.position import Mark
from pushsse.retry import Backoff

TIMEOUT_S = 1.5
_CATCH_UP = 2000
SILENT_S = 3.0
_FOLLOW_AT_ONCE = 8
_MOST_WAITING_BYTES = 8 * 1024 * 1024
_MESSAGE_BYTES = 100
_AT_ONCE = 500
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

    async def _open(self, tasks: asyncio.TaskGroup) -> "Subscription":
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

    async def _ask(self, subscription: "Subscription") -> None:
        wanted = self._places.names
        for logs, end in ((subscription.sent - wanted, True), (wanted - subscription.sent, False)):
            if logs:
                channels = [self._channel + log.encode() for log in logs]
                await subscription.subscribe(channels, timeout_s=TIMEOUT_S, end=end)
                subscription.sent ^= logs

    # What came

    def _sort(self, subscription: "Subscription") -> list[Hearing]:
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


class Place:
    """How far one log was heard; no epoch until it was read for the first time."""

    __slots__ = ("at_ms", "epoch", "number")

    def __init__(self) -> None:
        self.epoch = ""
        self.number = 0
        self.at_ms = 0


class Reading:
    """What is to be read at one moment: all logs from their places on, and the tails of some new ones."""

    __slots__ = ("_followed", "new", "places")

    def __init__(self, places: dict[str, Place], new: dict[str, Place]) -> None:
        self.places = places
        self.new = new
        self._followed = [Want(log, place.epoch, place.number, place.at_ms) for log, place in places.items()]

    @property
    def wants(self) -> list[Want]:
        """In the order in which `split` expects what was found."""
        return [*self._followed, *map(tail_of, self.new)]

    def went_back(self, found: Sequence[Found]) -> list[Want]:
        """The places that are no longer in their logs."""
        return [want for want, one in zip(self._followed, found, strict=False) if one.went_back]

    def split(self, found: Sequence[Found]) -> tuple[Sequence[Found], Sequence[Found]]:
        """What was found in the logs, and the tails."""
        return found[: len(self._followed)], found[len(self._followed) :]


class Places:
    """The followed logs. `behind`: something is missing, and will be read; until then nothing is taken."""

    def __init__(self, metrics: Metrics) -> None:
        self.behind = False
        self.left = False  # a log was left since this was last set to False
        self._metrics = metrics
        self._places: dict[str, Place] = {}
        self._new: dict[str, None] = {}

    @property
    def names(self) -> set[str]:
        """All logs that are asked for."""
        return set(self._places)

    @property
    def followed(self) -> list[str]:
        """Those that are followed by now."""
        return [log for log, place in self._places.items() if place.epoch]

    @property
    def is_incomplete(self) -> bool:
        """Whether something is to be read."""
        return self.behind or bool(self._new)

    def add(self, log: str) -> bool:
        """A log is asked for; whether that is new."""
        if log in self._places:
            return False
        self._places[log] = Place()
        self._new[log] = None
        return True

    def remove(self, log: str) -> bool:
        """A log is left; whether it was asked for."""
        self._new.pop(log, None)
        found = self._places.pop(log, None) is not None
        self.left = self.left or found
        return found

    def reset(self) -> None:
        """Every log is to be followed anew."""
        self._places = {log: Place() for log in self._places}
        self._new = dict.fromkeys(self._places)

    def mark(self, log: str) -> Mark | None:
        """How far a log was heard; None before it is followed."""
        place = self._places.get(log)
        return Mark(place.epoch, place.number) if place is not None and place.epoch else None

    def take(self, log: str, message: codec.Appended) -> Sequence[Entry]:
        """What of a message goes on from where the log was heard."""
        place = self._places[log]
        if message.epoch != place.epoch or message.first > place.number + 1:
            self.behind = True
        if self.behind or message.last <= place.number:
            # Behind: it will be read, in its order with what is missing.
            return ()
        skip = place.number + 1 - message.first
        place.number = message.last
        place.at_ms = message.at_ms
        return tuple(_entries(log, message))[skip:]

    def check(self, canary: bytes) -> None:
        """How the logs stand by what came before the canary: log, epoch, number a line."""
        for line in canary.decode().splitlines():
            log, epoch, number = line.split(" ")
            mark = self.mark(log)
            if mark is not None and mark != (epoch, int(number)):
                self.behind = True

    # What is missing

    def reading(self) -> Reading:
        """What to read next."""
        followed = {log: place for log, place in self._places.items() if place.epoch}
        return Reading(followed, {log: self._places[log] for log in list(self._new)[:_FOLLOW_AT_ONCE]})

    def apply(self, reading: Reading, every: Sequence[Found]) -> Iterator[Hearing]:
        """Takes what was read; what was left or followed anew meanwhile is passed over."""
        found, tails = reading.split(every)
        for one in found:
            yield from self._lost(one, reading.places[one.log])
        entries, self.behind = merged(found)
        kept = tuple(entry for entry in entries if self._is(entry.log, reading.places[entry.log]))
        for entry in kept:
            place = reading.places[entry.log]
            place.number, place.at_ms = entry.number, entry.at_ms
        if kept:
            self._metrics.gaps_filled += 1
            yield Heard(kept)
        for one in () if self.behind else tails:
            place = reading.new[one.log]
            if self._is(one.log, place):
                place.epoch, place.number, place.at_ms = one.head.epoch, one.head.number, one.at_ms
                del self._new[one.log]
                yield Followed(one.log, one.head, one.entries)

    def still(self, hearing: Hearing) -> Hearing | None:
        """What of a hearing is still followed."""
        if not isinstance(hearing, Heard):
            return hearing if self.mark(hearing.log) is not None else None
        entries = tuple(entry for entry in hearing.entries if self.mark(entry.log) is not None)
        return Heard(entries) if entries else None

    def _lost(self, one: Found, place: Place) -> Iterator[Hearing]:
        if not self._is(one.log, place):
            return
        if one.head.epoch != place.epoch or one.start > place.number:
            _log.warning("log %s: what came after %s-%d is lost", one.log, place.epoch, place.number)
            place.epoch, place.number, place.at_ms = one.head.epoch, one.start, 0
            yield Gap(one.log, one.head._replace(base=one.start))

    def _is(self, log: str, place: Place) -> bool:
        return self._places.get(log) is place


def _entries(log: str, message: codec.Appended) -> Iterator[Entry]:
    for i, blob in enumerate(message.blobs):
        yield Entry(log, message.first + i, message.order + i, message.at_ms, codec.decode(blob))


class Message(NamedTuple):
    """What came: of which kind, on which channel; the payload of a subscription is a count."""

    kind: bytes
    channel: bytes
    payload: bytes | int


class Subscription:
    """What was asked for (`sent`), what Redis confirmed, and what waits to be taken."""

    def __init__(self, connection: AbstractConnection, *, canary: bytes, wake: asyncio.Event) -> None:
        self.broken = ""
        self.has_heard = False
        self.sent: set[str] = set()
        self.confirmed: set[str] = set()
        self._connection = connection
        self._canary = canary
        self._wake = wake
        self._waiting: list[Message] = []
        self._bytes = 0
        self._room = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def open(self, tasks: asyncio.TaskGroup, *, timeout_s: float) -> None:
        """Connects, and begins to read. Raises RedisError, OSError, TimeoutError."""
        async with asyncio.timeout(timeout_s):
            await connect(self._connection)
            await self._send("SUBSCRIBE", (self._canary,))
        self._task = tasks.create_task(self._run(), name="backplane subscription")

    async def close(self) -> None:
        """Ends reading, and drops the connection."""
        if self._task is not None:
            self._task.cancel()
        await self._connection.disconnect(nowait=True)

    async def subscribe(self, channels: Iterable[bytes], *, timeout_s: float, end: bool = False) -> None:
        """Asks for channels, or ends them; the confirmations come as messages."""
        async with asyncio.timeout(timeout_s):
            await self._send("UNSUBSCRIBE" if end else "SUBSCRIBE", channels)

    @property
    def has_waiting(self) -> bool:
        """Whether something waits to be taken."""
        return bool(self._waiting)

    def take(self) -> list[Message]:
        """What has come, oldest first; not all at once, so that taking never stops everything else."""
        taken = self._waiting[:_AT_ONCE]
        del self._waiting[:_AT_ONCE]
        if not self._waiting:
            self._bytes = 0
            self._room.set()
        return taken

    def confirm(self, kind: bytes, log: str) -> None:
        """Redis has taken up a channel, or ended it."""
        if kind == b"subscribe":
            self.confirmed.add(log)
        else:
            self.confirmed.discard(log)

    async def _send(self, command: str, channels: Iterable[bytes]) -> None:
        packed = self._connection.pack_commands([(command, *channels)])
        await self._connection.send_packed_command(packed, check_health=False)

    async def _run(self) -> None:
        try:
            async with asyncio.timeout(SILENT_S) as silence:
                await self._read(silence)
        except TimeoutError:
            self.broken = f"no canary for {SILENT_S:g} s"
        except (RedisError, OSError) as error:
            self.broken = str(error) or type(error).__name__
        finally:
            self._wake.set()

    async def _read(self, silence: asyncio.Timeout) -> None:
        loop = asyncio.get_running_loop()
        read = self._connection.read_response
        while True:
            message = Message(*await read(timeout=math.inf, disconnect_on_error=False))
            if message.channel == self._canary:
                # Its confirmation comes on the same channel.
                self.has_heard = self.has_heard or message.kind == b"message"
                silence.reschedule(loop.time() + SILENT_S)
            self._waiting.append(message)
            self._wake.set()
            if type(message.payload) is bytes:
                self._bytes += len(message.payload) + _MESSAGE_BYTES
            if self._bytes > _MOST_WAITING_BYTES:
                # Redis waits now, and cuts this connection if that is for too long: then it is read again.
                silence.reschedule(None)
                self._room.clear()
                await self._room.wait()
                silence.reschedule(loop.time() + SILENT_S)
