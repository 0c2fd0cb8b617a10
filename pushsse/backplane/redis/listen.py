"""Hears the followed logs over pub/sub, in order and without a hole, and reads what pub/sub dropped.

`RedisBackplane.listen` hands out what `LogListener` yields. All happens in its steps, one after another: what
came is sorted; where a number is missing, the connection is new or the canary says so, all logs are read.
`LogCursors` knows how far each log was heard and does no I/O; `Subscription` is the connection. `Canary`
tries Redis once a second: the canary is a message that Redis sends to this node's own listener, with the
state of the followed logs.
"""

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, cast

from msgspec.structs import replace
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from pushsse.backplane import (
    Entry,
    Followed,
    Gap,
    Heard,
    HeardLive,
    Hearing,
    NoticeListener,
    NoticeTopic,
    codec,
    machine_ms,
    part_of,
)
from pushsse.backplane.redis.commands import (
    Connector,
    LogReader,
    ReadResult,
    RedisConnection,
    Want,
    connect,
    merged,
    script,
    send,
    tail_of,
)
from pushsse.errors import BackplaneUnavailable
from pushsse.metrics import Metrics
from pushsse.position import Mark
from pushsse.retry import Backoff, Outage

TIMEOUT_S = 1.5
SILENT_S = 3.0
_READ_ENTRIES = 2000
# Their tails are read in one script, and nothing else runs in Redis meanwhile.
_FOLLOW_AT_ONCE = 8
_MOST_WAITING_BYTES = 8 * 1024 * 1024
_MESSAGE_BYTES = 100
_MESSAGES_AT_ONCE = 500
_CANARY_EVERY_S = 1.0
_CLOCK_WITHIN_S = 0.25
_ALIVE_MS = 10_000
_CHECK = script("check")
# Counts the time that the machine sleeps, too, where the system has such a clock (Linux).
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
logger = logging.getLogger(__name__)


class LogListener:
    """Keeps in step with the followed logs, and finds the way back into step after any outage."""

    def __init__(
        self,
        connector: Connector,
        reader: LogReader,
        *,
        channel: str,
        notices: bytes,
        canary: bytes,
        metrics: Metrics,
    ) -> None:
        self.notice_listeners: dict[NoticeTopic, NoticeListener] = {}
        self._connector = connector
        self._reader = reader
        self._channel = channel.encode()
        self._notices = notices
        self._canary = canary
        self._metrics = metrics
        self._decoder = reader.decoder
        self._cursors = LogCursors(metrics, self._decoder)
        self._subscription: Subscription | None = None
        self._wake = asyncio.Event()
        self._outage = Outage("listening to Redis", logger, Backoff(first_s=0.05, most_s=1.0))
        self._reading = Backoff(first_s=0.05, most_s=1.0)
        self._listening = False

    def follow(self, log: str) -> None:
        """Asks for a log."""
        if self._cursors.add(log):
            self._wake.set()

    def unfollow(self, log: str) -> None:
        """Leaves a log: nothing of it is yielded from now on."""
        if self._cursors.remove(log):
            self._wake.set()

    def mark(self, log: str) -> Mark | None:
        """How far a log was heard; None before it is followed."""
        return self._cursors.mark(log)

    @property
    def hears(self) -> bool:
        """Whether the connection is whole, and has brought the canary."""
        subscription = self._subscription
        return subscription is not None and subscription.has_heard and not subscription.broken

    def followed(self) -> Sequence[str]:
        """The logs that are followed by now."""
        return self._cursors.followed

    async def listen(self, tasks: asyncio.TaskGroup) -> AsyncGenerator[Hearing, None]:
        """Yields for ever. After it was closed another may begin, and follows all logs anew."""
        if self._listening:
            raise RuntimeError("the backplane has a listener already")
        self._listening = True
        try:
            while True:
                for step in (partial(self._hear, tasks), self._read_missing):
                    self._cursors.left = False
                    for hearing in await step():
                        # A log may be left between two yields: what is said of it must not come after that.
                        heard = part_of(hearing, self._is_followed) if self._cursors.left else hearing
                        if heard is not None:
                            yield heard
        finally:
            self._listening = False
            await self.close()
            self._cursors.reset()

    def _is_followed(self, log: str) -> bool:
        return self._cursors.mark(log) is not None

    async def close(self) -> None:
        """Drops the connection."""
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await subscription.close()

    # The connection

    async def _hear(self, tasks: asyncio.TaskGroup) -> list[Hearing]:
        """Waits until something came or is to be read, and sorts what came."""
        try:
            subscription = self._subscription or await self._open(tasks)
            if subscription.broken:
                raise ConnectionError(subscription.broken)
            await self._ask(subscription)
            if not subscription.has_waiting and not self._may_read():
                await self._wake.wait()
            # No await between this and the sorting: a message that came in between would have woken nobody.
            self._wake.clear()
        except (RedisError, OSError, TimeoutError) as error:
            await self.close()
            await asyncio.sleep(self._outage.failed(str(error) or "no answer"))
            return []
        return self._sort(subscription)

    async def _open(self, tasks: asyncio.TaskGroup) -> "Subscription":
        subscription = Subscription(self._connector.connection(), canary=self._canary, wake=self._wake)
        self._subscription = subscription
        await subscription.open(tasks, self._notices, timeout_s=TIMEOUT_S)
        # Guarantee 2: what was published while there was no connection is in the log alone.
        self._cursors.incomplete = True
        self._cursors.unsure = True
        return subscription

    async def _ask(self, subscription: "Subscription") -> None:
        """Subscribes to the channels of new logs, and leaves those of logs that were left."""
        wanted = self._cursors.names
        for logs, end in ((subscription.sent - wanted, True), (wanted - subscription.sent, False)):
            if logs:
                channels = [self._channel + log.encode() for log in logs]
                await subscription.subscribe(channels, timeout_s=TIMEOUT_S, end=end)
                subscription.sent ^= logs

    # What came

    def _sort(self, subscription: "Subscription") -> list[Hearing]:
        """What came, as hearings, in the order in which it came."""
        hearings: list[Hearing] = []
        entries: list[Entry] = []
        for kind, channel, payload in subscription.take():
            log = channel[len(self._channel) :].decode()
            if isinstance(payload, int):
                subscription.confirm(kind, log)
            elif channel == self._canary:
                # Guarantee 2: in its order among the messages. All that it says was appended came before it,
                # so a log that is further than its cursor has a hole.
                self._cursors.check(payload)
            elif channel == self._notices:
                self._tell(payload)
            elif self._cursors.mark(log) is not None:
                message = self._decoder.message(payload)
                if isinstance(message, codec.Appended):
                    entries += self._cursors.take(log, message)
                elif message is not None:
                    # A delta must not overtake the entries that came before it.
                    if entries:
                        hearings.append(Heard(tuple(entries)))
                        entries = []
                    hearings.append(HeardLive(log, message))
        if entries:
            hearings.append(Heard(tuple(entries)))
        return hearings

    def _tell(self, payload: bytes) -> None:
        """Tells a notice to who listens for its topic."""
        notice = codec.decode_notice(payload)
        listener = None if notice is None else self.notice_listeners.get(notice.topic)
        if notice is not None and listener is not None:
            listener(notice.text)

    # What is missing

    def _may_read(self) -> bool:
        """Whether something is to be read, and may be.

        Guarantee 2: only after Redis has confirmed every channel. What is published between an earlier read
        and the confirmation would come by neither way, and be missing until the next canary.
        """
        subscription = self._subscription
        if subscription is None or not self._cursors.needs_read:
            return False
        return subscription.sent == self._cursors.names and subscription.sent <= subscription.confirmed

    async def _read_missing(self) -> list[Hearing]:
        """Reads all followed logs as they are at one moment, and with them the tails of some new ones."""
        if not self._may_read():
            return []
        read = self._cursors.next_read()
        try:
            if self._cursors.unsure:
                # Guarantee 2: clients may come back to these logs, too, and no canary tells of them.
                await self._reader.renew(self._cursors.heard_before)
                self._cursors.unsure = False
            found = await self._reader.read(read.wants, limit=_READ_ENTRIES)
            if back := read.went_back(found):
                # Guarantee 2: a new epoch before anything of it is heard. In the old one the numbers that
                # Redis lost are given again, and a client that has seen them would take the new entries for
                # old ones.
                await self._reader.renew(back)
                found = await self._reader.read(read.wants, limit=_READ_ENTRIES)
        except BackplaneUnavailable:
            # The connection has logged it. What comes meanwhile is in the log as well.
            await asyncio.sleep(self._reading.next_s())
            return []
        self._reading.reset()
        # Only here: a connection that opens and breaks at once, again and again, is one outage.
        if self._outage.over():
            self._metrics.backplane_reconnects += 1
        return list(self._cursors.apply(read, found))


class LogCursor:
    """How far one log was heard; without an epoch until it is followed."""

    __slots__ = ("at_ms", "epoch", "number")

    def __init__(self) -> None:
        self.epoch = ""
        self.number = 0
        self.at_ms = 0


class NextRead:
    """What is read at one moment: the followed logs from their cursors on, and the tails of some new ones."""

    __slots__ = ("_followed", "cursors", "new")

    def __init__(self, cursors: dict[str, LogCursor], new: dict[str, LogCursor]) -> None:
        self.cursors = cursors
        self.new = new
        self._followed = [Want(log, one.epoch, one.number, one.at_ms) for log, one in cursors.items()]

    @property
    def wants(self) -> list[Want]:
        """What to ask the reader for; the other methods expect the results in this order."""
        return [*self._followed, *map(tail_of, self.new)]

    def went_back(self, results: Sequence[ReadResult]) -> list[Want]:
        """The logs that are no longer those in which their cursors stood: Redis has an older state."""
        return [want for want, one in zip(self._followed, results, strict=False) if one.went_back]

    def split(self, results: Sequence[ReadResult]) -> tuple[Sequence[ReadResult], Sequence[ReadResult]]:
        """The results of the followed logs, and the tails."""
        return results[: len(self._followed)], results[len(self._followed) :]


class LogCursors:
    """The cursors of all logs asked for. `incomplete`: something may be missing and has to be read.

    `unsure`: the logs that were left may have gone back since, as Redis may be another one.
    """

    def __init__(self, metrics: Metrics, decoder: codec.Decoder) -> None:
        self.incomplete = False
        self.unsure = False
        self.left = False  # a log was left since this was last set to False
        self._metrics = metrics
        self._decoder = decoder
        self._cursors: dict[str, LogCursor] = {}
        self._new: dict[str, None] = {}
        self._heard_before: dict[str, Want] = {}

    @property
    def names(self) -> set[str]:
        """All logs that are asked for."""
        return set(self._cursors)

    @property
    def followed(self) -> list[str]:
        """Those that are followed by now."""
        return [log for log, cursor in self._cursors.items() if cursor.epoch]

    @property
    def heard_before(self) -> list[Want]:
        """How far each of the logs was heard that aren't followed any more."""
        return list(self._heard_before.values())

    @property
    def needs_read(self) -> bool:
        """Whether something is to be read."""
        return self.incomplete or bool(self._new)

    def add(self, log: str) -> bool:
        """A log is asked for; whether that is new."""
        if log in self._cursors:
            return False
        self._cursors[log] = LogCursor()
        self._new[log] = None
        return True

    def remove(self, log: str) -> bool:
        """A log is left; whether it was asked for."""
        self._new.pop(log, None)
        cursor = self._cursors.pop(log, None)
        if cursor is None:
            return False
        self.left = True
        if cursor.epoch:
            self._heard_before[log] = Want(log, cursor.epoch, cursor.number, cursor.at_ms)
        return True

    def reset(self) -> None:
        """Every log is to be followed anew."""
        self._cursors = {log: LogCursor() for log in self._cursors}
        self._new = dict.fromkeys(self._cursors)

    def mark(self, log: str) -> Mark | None:
        """How far a log was heard; None before it is followed."""
        cursor = self._cursors.get(log)
        return Mark(cursor.epoch, cursor.number) if cursor is not None and cursor.epoch else None

    def take(self, log: str, message: codec.Appended) -> Sequence[Entry]:
        """The entries of a message that continue a log; none if there is a hole before them."""
        cursor = self._cursors[log]
        if message.epoch != cursor.epoch or message.first > cursor.number + 1:
            self.incomplete = True
        # Guarantee 2: while one log has a hole, nothing is taken of any, and no cursor moves. A later
        # broadcast would overtake the missing personal events; the read merges both by their order.
        if self.incomplete or message.last <= cursor.number:
            return ()
        skip = cursor.number + 1 - message.first
        cursor.number = message.last
        cursor.at_ms = message.at_ms
        return tuple(_entries(log, message, self._decoder))[skip:]

    def check(self, canary: bytes) -> None:
        """Compares the cursors with the state of the logs: a line is a log, its epoch and its number."""
        for line in canary.decode().splitlines():
            log, epoch, number = line.split(" ")
            mark = self.mark(log)
            # Guarantee 2: a lower number counts, too. Redis has an older state, and nothing else would show
            # it.
            if mark is not None and mark != Mark(epoch, int(number)):
                self.incomplete = True

    # What is missing

    def next_read(self) -> NextRead:
        """What to read next."""
        followed = {log: cursor for log, cursor in self._cursors.items() if cursor.epoch}
        return NextRead(followed, {log: self._cursors[log] for log in list(self._new)[:_FOLLOW_AT_ONCE]})

    def apply(self, read: NextRead, results: Sequence[ReadResult]) -> Iterator[Hearing]:
        """Moves the cursors over what was read. What was left or followed anew meanwhile is passed over."""
        found, tails = read.split(results)
        # Guarantee 2: before the entries, which continue after the gap.
        for one in found:
            yield from self._gap(one, read.cursors[one.log])
        entries, self.incomplete = merged(found)
        current = tuple(entry for entry in entries if self._is_current(entry.log, read.cursors[entry.log]))
        for entry in current:
            cursor = read.cursors[entry.log]
            cursor.number, cursor.at_ms = entry.number, entry.at_ms
        if current:
            self._metrics.gaps_filled += 1
            yield Heard(current)
        # Guarantee 2: a tail only after all logs are as far as the moment of this read. Otherwise the new log
        # is ahead of what the others still lack, and its entries overtake theirs.
        for one in () if self.incomplete else tails:
            cursor = read.new[one.log]
            if self._is_current(one.log, cursor):
                cursor.epoch, cursor.number, cursor.at_ms = one.head.epoch, one.head.number, one.at_ms
                del self._new[one.log]
                self._heard_before.pop(one.log, None)
                yield Followed(one.log, one.head, one.entries)

    def _gap(self, one: ReadResult, cursor: LogCursor) -> Iterator[Hearing]:
        if not self._is_current(one.log, cursor):
            return
        if one.head.epoch != cursor.epoch or one.start > cursor.number:
            logger.warning(
                "log %s: what came after %s-%d is lost, and clients are told a gap. Redis was emptied or came"
                " back with an older state, or the log was trimmed before this node had read it",
                one.log,
                cursor.epoch,
                cursor.number,
            )
            cursor.epoch, cursor.number, cursor.at_ms = one.head.epoch, one.start, 0
            yield Gap(one.log, replace(one.head, base=one.start))

    def _is_current(self, log: str, cursor: LogCursor) -> bool:
        """Whether a log still has this cursor; it gets another when it is left and followed anew."""
        return self._cursors.get(log) is cursor


def _entries(log: str, message: codec.Appended, decoder: codec.Decoder) -> Iterator[Entry]:
    for i, blob in enumerate(message.blobs):
        yield Entry(log, message.first + i, message.order + i, message.at_ms, decoder.entry(blob))


class Message(NamedTuple):
    """What came: its kind, its channel, and the payload; that of a confirmation is a count."""

    kind: bytes
    channel: bytes
    payload: bytes | int


class Subscription:
    """One pub/sub connection: a task that only reads and queues, and breaks when the canary falls silent.

    `sent` is what Redis was asked for, `confirmed` what it has taken up. Deliberate: nothing here reconnects.
    redis-py would do so by itself, and nobody would know that something is missing.
    """

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

    async def open(self, tasks: asyncio.TaskGroup, *channels: bytes, timeout_s: float) -> None:
        """Connects, and begins to read the canary and these channels.

        Raises RedisError, OSError, TimeoutError.
        """
        async with asyncio.timeout(timeout_s):
            await connect(self._connection)
            await self._send("SUBSCRIBE", (self._canary, *channels))
        self._task = tasks.create_task(self._run(), name="backplane subscription")

    async def close(self) -> None:
        """Ends reading, and drops the connection."""
        if self._task is not None:
            self._task.cancel()
        await self._connection.disconnect(nowait=True)

    async def subscribe(self, channels: Iterable[bytes], *, timeout_s: float, end: bool = False) -> None:
        """Asks for channels, or ends them; the confirmations come as messages.

        Raises RedisError, OSError, TimeoutError.
        """
        async with asyncio.timeout(timeout_s):
            await self._send("UNSUBSCRIBE" if end else "SUBSCRIBE", channels)

    @property
    def has_waiting(self) -> bool:
        """Whether messages wait to be taken."""
        return bool(self._waiting)

    def take(self) -> list[Message]:
        """The oldest messages that wait; only so many that sorting them never holds the event loop."""
        taken = self._waiting[:_MESSAGES_AT_ONCE]
        del self._waiting[:_MESSAGES_AT_ONCE]
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
        await send(self._connection, packed)

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
                # The confirmation of its subscription comes on the same channel, and is no canary.
                self.has_heard = self.has_heard or message.kind == b"message"
                silence.reschedule(loop.time() + SILENT_S)
            # Guarantee 2: one queue for confirmations, canary and messages. Their order is what tells a hole.
            self._waiting.append(message)
            self._wake.set()
            if type(message.payload) is bytes:
                self._bytes += len(message.payload) + _MESSAGE_BYTES
            if self._bytes > _MOST_WAITING_BYTES:
                # The listener is slow, so Redis has to wait. If that is too long, it cuts this connection
                # (client-output-buffer-limit), and what was missed is read from the log.
                silence.reschedule(None)
                self._room.clear()
                await self._room.wait()
                silence.reschedule(loop.time() + SILENT_S)


def elapsed_s() -> float:
    """Seconds on a clock that never jumps, and goes on while the process is stopped or the machine sleeps.

    With it the node knows Redis's time as soon as it wakes, before Redis answers: what expired meanwhile must
    not be written.
    """
    return time.clock_gettime(_CLOCK)


class Canary:
    """Sends the canary, and knows Redis's clock and whether Redis answered a moment ago."""

    def __init__(
        self, connection: RedisConnection, listener: LogListener, *, names: str, channel: bytes
    ) -> None:
        self.available = False
        self._connection = connection
        self._listener = listener
        self._names = names
        self._channel = channel
        self._ahead_ms: float | None = None  # of `elapsed_s`

    def now_ms(self) -> int:
        """Redis's clock, as far as known; until Redis has answered once, this machine's."""
        if self._ahead_ms is None:
            return machine_ms()
        return int(elapsed_s() * 1000 + self._ahead_ms)

    async def run(self) -> None:
        """Sends one a second, for ever."""
        while True:
            try:
                await self._send()
                # A replica, or a Redis without memory, publishes and answers, but takes no write.
                await self._connection.call("SET", f"{self._names}alive", "1", "PX", _ALIVE_MS)
                self.available = True
            except BackplaneUnavailable:
                self.available = False
            await asyncio.sleep(_CANARY_EVERY_S)

    async def _send(self) -> None:
        # Guarantee 2: the logs and the publishing are one script. Were the state read first, and published by
        # another command, entries in between would come before the canary and look like a log that went back.
        asked = elapsed_s()
        logs = self._listener.followed()
        time_ms = cast(int, await self._connection.run(_CHECK, self._names, self._channel, *logs))
        took = elapsed_s() - asked
        if took < _CLOCK_WITHIN_S or self._ahead_ms is None:
            self._ahead_ms = time_ms - (asked + took / 2) * 1000
