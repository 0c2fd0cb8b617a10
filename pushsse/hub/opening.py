"""Opens streams: finds a person's switches and the position to begin at, and writes `ready`.

A service, called by the endpoints of streams, polls, acks and tickets. A position of another epoch, one that
was trimmed away and one that never existed are gaps, which the client learns in band. Only a log or a
database that doesn't answer is an error. A stream that has something to replay goes to catch-up.
"""

import asyncio
import logging
import random
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import msgspec
from msgspec import Struct

from pushsse.backplane import BROADCAST, Backplane
from pushsse.errors import CloseReason, DatabaseUnavailable
from pushsse.hub.heartbeat import Renew
from pushsse.hub.hub import Hub
from pushsse.hub.log_tail import WAIT_LIMIT_S, LogTail, limited_wait
from pushsse.hub.people import GATHER_S, OPENED_AT_ONCE, People, PersonState, Refresh, Revocations, learn
from pushsse.position import Mark, Position
from pushsse.stream.frame import Resume, chunk, random_retry_ms, service_event
from pushsse.stream.subscriber import Cursor, Expiry, Off, Person, Sink, Subscriber

# Further clients are opened the way that waits.
_MOST_QUEUED = 4096
log = logging.getLogger(__name__)
_json = msgspec.json.Decoder(dict[str, object])


class From(Struct, frozen=True):
    """Where a client asked to begin: after a position, some seconds ago, at a time, or (none of them) now.

    `at_ms` is by the log's clock.
    """

    position: Position | None = None
    unreadable: bool = False
    since_s: float | None = None
    at_ms: int | None = None


class Opening(Struct, frozen=True):
    """A stream that may begin at `cursor`. `open_question`: an answer of the person's may be growing now."""

    cursor: Cursor
    resume: Resume
    open_question: bool


class StreamOptions(Struct, frozen=True):
    """What a client asked of its stream; when its token ends, and when it was issued (seconds since 1970).

    `renew`: asked at its end whether it goes on.
    """

    named: bool = True
    types: frozenset[str] | None = None
    expires_at: float | None = None
    issued_at: float | None = None
    renew: Renew | None = None


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """What this node says in `ready`, and what it allows. A limit of 0 is none."""

    node: str
    heartbeat_s: float
    window_s: int
    send_timeout_s: float
    lifetime_s: float
    most_per_user: int = 0


# Begins a stream on a sink.
Begin = Callable[[Sink], Subscriber]


class Client(Protocol):
    """A client of `Opener.begin_soon`. Neither method may block."""

    def start(self, begin: Begin) -> bool:
        """Begins its stream by `begin`, as `start` of `open_nowait`; whether it did."""
        ...

    def decline(self) -> None:
        """Leaves its stream to `opening`."""
        ...


class _Queued(Struct, frozen=True):
    """A client whose stream is to begin."""

    person: Person
    wish: From
    options: StreamOptions
    since: float
    client: Client


class Opener:
    """Finds where streams of this node begin, and begins them."""

    def __init__(
        self,
        hub: Hub,
        backplane: Backplane,
        people: People,
        *,
        limits: StreamLimits,
        revocations: Revocations,
        refresh: Refresh,
    ) -> None:
        self._hub = hub
        self._backplane = backplane
        self._people = people
        self._limits = limits
        self._revocations = revocations
        self._refresh = refresh
        # In the order of their coming; whoever leaves is found.
        self._queue: OrderedDict[Client, _Queued] = OrderedDict()
        self._queued = asyncio.Event()

    async def run(self) -> None:
        """Opens what is queued, for ever."""
        while True:
            await self._queued.wait()
            await asyncio.sleep(GATHER_S if len(self._queue) < OPENED_AT_ONCE else 0)
            first = min(OPENED_AT_ONCE, len(self._queue))
            batch = [self._queue.popitem(last=False)[1] for _ in range(first)]
            if not self._queue:
                self._queued.clear()
            # All may have left meanwhile.
            if batch:
                await self._open(batch)

    @asynccontextmanager
    async def opening(self, user: str, wish: From) -> AsyncIterator[Opening]:
        """An opening; while the context lasts the node follows the person's logs.

        Raises BackplaneUnavailable, DatabaseUnavailable.
        """
        person = self._hub.hold(user)
        try:
            # Guarantee 3: the log is followed before the switches are read, so that a change that is
            # committed after the reading is heard.
            await self._hub.followed(person)
            open_question = await self._learn(person)
            # Guarantee 3: the switches at the position are looked up once that is fixed.
            start, resume = await self._start(person, wish)
            cursor = Cursor(person, start, await self._off_at(person, start.shard.number))
            yield Opening(cursor, resume, open_question)
        finally:
            self._hub.release(person)

    def open_nowait(
        self, user: str, wish: From, options: StreamOptions, start: Callable[[Begin], bool]
    ) -> bool:
        """`opening` and `begin` without waiting; False: something has to be waited for, and nothing was done.

        `start` gives the function that it is called with a sink, or returns False.
        """
        person = self._hub.hold(user)
        try:
            # Guarantee 3: as in `opening`, and nothing is awaited from here until the stream is live.
            state = self._people.state_nowait(user) if self._hub.follows(person) else None
            opening = self._found_nowait(person, wish, state)
            return opening is not None and start(lambda sink: self.begin(opening, sink, options))
        finally:
            self._hub.release(person)

    def poll_nowait(
        self,
        user: str,
        wish: From,
        start: Callable[[Begin], bool],
        begin: Callable[[Opening, Sink], Subscriber],
    ) -> bool:
        """As `open_nowait`, of a poll that `begin` begins. False also where there is something to tell."""
        person = self._hub.hold(user)
        try:
            # Guarantee 3: as in `opening`, and nothing is awaited from here until the poll is live.
            state = self._people.state_nowait(user) if self._hub.follows(person) else None
            opening = self._found_nowait(person, wish, state)
            if opening is None or opening.resume is Resume.GAP:
                return False
            found = opening
            # Guarantee 2: what lies behind the cursor is read, and answered, by whoever may wait.
            is_current = found.cursor.position == self._hub.position(person)
            return is_current and start(lambda sink: begin(found, sink))
        finally:
            self._hub.release(person)

    @property
    def may_queue(self) -> bool:
        """Whether there is room for one more client of `begin_soon`."""
        return len(self._queue) < _MOST_QUEUED

    def begin_soon(self, user: str, wish: From, options: StreamOptions, client: Client) -> None:
        """Queues a client, whose stream begins together with others' if there is nothing to wait for.

        Otherwise it is declined. One that has left (`leave`) is neither started nor declined.
        """
        # Held from now on: by its turn the node follows the person's logs.
        person = self._hub.hold(user)
        self._queue[client] = _Queued(person, wish, options, time.monotonic(), client)
        self._queued.set()

    def leave(self, client: Client) -> None:
        """A client of the queue has gone: its place is free. Does nothing once it has had its turn."""
        # Those of the batch that is being opened aren't in the queue any more, and are released there.
        queued = self._queue.pop(client, None)
        if queued is not None:
            self._hub.release(queued.person)

    async def _open(self, batch: Sequence[_Queued]) -> None:
        """Begins the streams of queued clients; declines those that would have to wait further."""
        # Guarantee 3: as in `opening`, the state is read of people alone whose logs are followed by now.
        followed = {queued.person.name: None for queued in batch if self._hub.follows(queued.person)}
        states: Mapping[str, PersonState] = {}
        # Where the database is slow, all the others wait in line with patience.
        if time.monotonic() - batch[0].since < WAIT_LIMIT_S:
            try:
                states = await self._people.states(list(followed))
            except DatabaseUnavailable as error:
                log.info("%d queued streams are opened one by one: %s", len(batch), error)
        for queued in batch:
            try:
                self._begin_queued(queued, states.get(queued.person.name))
            except Exception:
                log.exception("a queued stream can't begin with others, and is opened by itself")
                queued.client.decline()
            finally:
                self._hub.release(queued.person)

    def _begin_queued(self, queued: _Queued, state: PersonState | None) -> None:
        opening = self._found_nowait(queued.person, queued.wish, state)
        if opening is None or not queued.client.start(lambda sink: self.begin(opening, sink, queued.options)):
            queued.client.decline()

    def _found_nowait(self, person: Person, wish: From, state: PersonState | None) -> Opening | None:
        """Where a stream begins, if that needs no waiting. `state` was read while the logs were followed."""
        if state is None or state.pending or wish.since_s is not None or wish.at_ms is not None:
            return None
        log, wanted = self._hub.log(person), wish.position
        if wanted is not None and not (
            self._hub.broadcast.covers(wanted.broadcast) and log.covers(wanted.shard)
        ):
            return None
        if state.logged is not None and state.logged.epoch == log.mark.epoch and not log.has(state.logged):
            return None
        learn(person, state)
        if wanted is None:
            # Nothing is replayed: what was off before doesn't matter.
            resume = Resume.GAP if wish.unreadable else Resume.NEW
            cursor = Cursor(person, self._hub.position(person), person.switches)
            return Opening(cursor, resume, state.open_question)
        cursor = Cursor(person, wanted, _off_in_tail(log, person, wanted.shard.number))
        return Opening(cursor, Resume.COMPLETE, state.open_question)

    def begin(self, opening: Opening, sink: Sink, options: StreamOptions) -> Subscriber:
        """Begins a stream with its `ready`. It goes live in this call if there is nothing to replay."""
        subscriber = self._subscriber(opening, sink, options, self._expiry(options))
        try:
            self._hub.metrics.resumes[opening.resume] += 1
            sink.write(chunk(self.ready(subscriber, opening.resume)))
            # Guarantee 2: after `ready`, which is the first frame and carries the position that the rest
            # follows.
            self._join(subscriber, options)
            if opening.open_question:
                self._refresh.answers(subscriber.person.name)
        except BaseException:
            # Whoever has the connection closes it, and doesn't know the subscriber yet.
            subscriber.gone()
            raise
        return subscriber

    def begin_poll(
        self,
        opening: Opening,
        sink: Sink,
        options: StreamOptions,
        *,
        wait_s: float,
        begun: Callable[[Subscriber], object],
    ) -> Subscriber:
        """Begins a stream without `ready` for a poll, which ends at the latest after `wait_s`.

        Its subscriber is told to `begun` before anything is written.
        """
        heartbeat = self._hub.heartbeat
        expiry = Expiry(heartbeat.ticks(wait_s), CloseReason.WAITED)
        if options.expires_at is not None:
            expiry = self._until(options.expires_at, expiry, None)
        subscriber = self._subscriber(opening, sink, options, expiry)
        try:
            begun(subscriber)
            self._join(subscriber, options)
        except BaseException:
            subscriber.gone()
            raise
        return subscriber

    def _subscriber(
        self, opening: Opening, sink: Sink, options: StreamOptions, expiry: Expiry | None
    ) -> Subscriber:
        """A new stream in the hub's table, still behind."""
        subscriber = Subscriber(
            sink,
            self._hub,
            id=f"{random.getrandbits(48):012x}",
            cursor=opening.cursor,
            named=options.named,
            types=options.types,
            expiry=expiry,
            issued_at=options.issued_at,
            tick=self._hub.heartbeat.now,
        )
        self._hub.add(subscriber)
        return subscriber

    def _join(self, subscriber: Subscriber, options: StreamOptions) -> None:
        """A new stream goes live or to catch-up; ends one too many, and one that was revoked meanwhile."""
        if not subscriber.go_live():
            self._hub.fell_behind(subscriber)
        # The new one is counted, and holds the person by now.
        if 0 < self._limits.most_per_user < len(subscriber.person.subscribers):
            self._hub.metrics.limited["streams_per_user"] += 1
            subscriber.person.subscribers[0].end(CloseReason.TOO_MANY_STREAMS)
        # The token was checked before the opening waited. A kick since then is known here, or it finds the
        # stream in the hub: `Kicks` first learns of a kick, and ends streams then.
        if self._revocations.refuses(subscriber.person.name, options.issued_at):
            subscriber.end(CloseReason.REVOKED)

    def ready(self, subscriber: Subscriber, resume: Resume) -> bytes:
        """The frame of `ready` at the subscriber's position: its first frame, and what tells of a gap."""
        heartbeat, expiry = self._hub.heartbeat, subscriber.expiry
        data: dict[str, object] = {
            "user": subscriber.person.name,
            "node": self._limits.node,
            "stream": subscriber.id,
            "resume": resume,
            "heartbeat_s": self._limits.heartbeat_s,
            "expires_in_s": None if expiry is None else int(heartbeat.left_s(expiry.tick)),
            "window_s": self._limits.window_s,
        }
        if subscriber.person.quiet:
            data |= _json.decode(subscriber.person.quiet)
        return service_event("ready", data, subscriber.position, retry_ms=random_retry_ms())

    async def _learn(self, person: Person) -> bool:
        """Reads the person's state into `person`; returns whether a question is open."""
        state = await self._people.state(person.name)
        if state.pending:
            async with limited_wait():
                while state.pending:
                    await self._people.settle(person.name)
                    state = await self._people.state(person.name)
        log = self._hub.log(person)
        if state.logged is not None and await self._is_ahead(log, state.logged):
            # Guarantee 3: a node that hasn't heard the change yet would hear it after events that are newer
            # than the state that it already acts on.
            await log.heard(state.logged)
        learn(person, state)
        return state.open_question

    async def _is_ahead(self, log: LogTail, logged: Mark) -> bool:
        """Whether the log has a place that the node hasn't heard yet.

        A log that has lost it, after a failover or an older state of Redis, may not have it for days.
        """
        if logged.epoch != log.mark.epoch or log.has(logged):
            return False
        head = (await self._backplane.read({log.name: logged.number}, limit=1)).heads[log.name]
        return head.epoch == logged.epoch and head.number >= logged.number

    async def _start(self, person: Person, wish: From) -> tuple[Position, Resume]:
        """The position to begin at, and what `ready` says of the one that was asked for."""
        if wish.unreadable:
            return self._hub.position(person), Resume.GAP
        if wish.since_s is not None:
            return await self._since(person, self._backplane.now_ms() - int(wish.since_s * 1000))
        if wish.at_ms is not None:
            return await self._since(person, wish.at_ms)
        if wish.position is None:
            return self._hub.position(person), Resume.NEW
        broadcast, lost_b = await self._resolve(self._hub.broadcast, wish.position.broadcast)
        shard, lost_s = await self._resolve(self._hub.log(person), wish.position.shard)
        return Position(broadcast, shard), Resume.GAP if lost_b or lost_s else Resume.COMPLETE

    async def _since(self, person: Person, at_ms: int) -> tuple[Position, Resume]:
        """The position of a time in the past; a gap where something later than that has been trimmed away."""
        log = self._hub.log(person)
        numbers = await self._backplane.since((BROADCAST, log.name), at_ms)
        start = Position(
            Mark(self._hub.broadcast.mark.epoch, min(numbers[BROADCAST], self._hub.broadcast.mark.number)),
            Mark(log.mark.epoch, min(numbers[log.name], log.mark.number)),
        )
        after = {BROADCAST: start.broadcast.number, log.name: start.shard.number}
        heads = (await self._backplane.read(after, limit=1)).heads
        trimmed = any(head.trimmed_ms >= at_ms for head in heads.values())
        return start, Resume.GAP if trimmed else Resume.COMPLETE

    async def _resolve(self, log: LogTail, wanted: Mark) -> tuple[Mark, bool]:
        """Where to begin in one log, and whether something between that and `wanted` is lost."""
        # The usual case, and what makes a storm of reconnecting clients cheap: answered from memory.
        if log.covers(wanted):
            return wanted, False
        head = (await self._backplane.read({log.name: wanted.number}, limit=1)).heads[log.name]
        # Another epoch, or a number that the log never had: a forged position, or a log that was restored.
        if head.epoch != wanted.epoch or head.number < wanted.number:
            return log.mark, True
        # Guarantee 2: the log has the position, so this node is behind the client. That isn't a gap.
        await log.heard(wanted)
        if head.first > wanted.number + 1:
            return Mark(head.epoch, head.first - 1), True
        return wanted, False

    async def _off_at(self, person: Person, number: int) -> Off:
        """The types that were off at a number of the person's shard log: those before the next change."""
        log = self._hub.log(person)
        if log.reaches(number):
            return _off_in_tail(log, person, number)
        off_now = person.switches
        change = await self._backplane.first_change(log.name, person.name, number)
        return off_now if change is None else Off(frozenset(change.before), change.revision)

    def _expiry(self, options: StreamOptions) -> Expiry | None:
        """When a stream ends at the latest, and why; None for never."""
        last = None
        if self._limits.lifetime_s:
            # Random, so that streams that began together don't come back together.
            in_s = self._limits.lifetime_s * (0.8 + 0.2 * random.random())
            last = Expiry(self._hub.heartbeat.after(in_s), CloseReason.LIFETIME)
        if options.expires_at is None:
            return last
        return self._until(options.expires_at, last, options.renew)

    def _until(self, expires_at: float, last: Expiry | None, renew: Renew | None) -> Expiry:
        """The end of a token or session, unless `last` comes before it."""
        heartbeat = self._hub.heartbeat
        # Never before: a client that comes back with a token that still counts would be ended once more.
        tick = heartbeat.after(expires_at - time.time())
        if last is not None and last.tick < tick:
            return last
        later = partial(self._until, last=last, renew=renew)
        renewal = None if renew is None else heartbeat.renewal(renew, later)
        return Expiry(tick, CloseReason.TOKEN_EXPIRED, renewal)


def _off_in_tail(log: LogTail, person: Person, number: int) -> Off:
    """The types that were off at a number that a log's tail reaches back to."""
    for entry in log.changes_after(number):
        change = entry.publication.change
        if change is not None and change.user == person.name:
            return Off(frozenset(change.before), change.revision)
    return person.switches
