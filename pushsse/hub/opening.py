"""Opens streams: finds a person's switches and the position to begin at, and writes `ready`.

A service, called by the stream endpoint and the events endpoint. A position of another epoch, one that was
trimmed away and one that never existed are gaps, which the client learns in band. Only a log or a database
that doesn't answer is an error. A stream that has something to replay goes to catch-up.
"""

import asyncio
import random
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from pushsse.backplane import BROADCAST, Backplane
from pushsse.errors import BackplaneUnavailable, CloseReason, Unavailable
from pushsse.event import Publication
from pushsse.hub.hub import Hub
from pushsse.hub.log_tail import FollowedLog
from pushsse.position import Mark, Position
from pushsse.retry import Backoff
from pushsse.stream.frame import Resume, chunk, event, random_retry_ms, with_id
from pushsse.stream.subscriber import Person, Sink, Subscriber

PATIENCE_S = 5.0


class Switches(Protocol):
    """A person's switches as the database has them."""

    @property
    def version(self) -> int:
        """The number of the last change."""
        ...

    @property
    def off(self) -> frozenset[str]:
        """The types that are off."""
        ...

    @property
    def pending(self) -> bool:
        """Whether a change isn't in the log yet."""
        ...

    @property
    def logged(self) -> Mark | None:
        """Where in the person's log the last change is."""
        ...

    @property
    def open_question(self) -> bool:
        """Whether a question of theirs is still to be answered."""
        ...


@dataclass(frozen=True, slots=True)
class From:
    """Where a client asked to begin: after a position, some seconds ago, or (neither) now."""

    position: Position | None = None
    unreadable: bool = False
    since_s: float | None = None


@dataclass(frozen=True, slots=True)
class Opening:
    """A stream that may begin: after `start`, where the types in `held` were off.

    `growing` says that an answer of the person's may be growing just now.
    """

    person: Person
    start: Position
    held: frozenset[str]
    resume: Resume
    growing: bool


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """What a client asked of its stream, and when its token ends (seconds since 1970)."""

    named: bool = True
    types: frozenset[str] | None = None
    expires_at: float | None = None


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """What this node says in `ready`, and what it allows."""

    node: str
    heartbeat_s: float
    window_s: int
    send_timeout_s: float
    lifetime_s: float


class Opener:
    """Finds the beginning of streams on this node, and begins them."""

    def __init__(
        self,
        hub: Hub,
        backplane: Backplane,
        *,
        limits: StreamLimits,
        serve: Callable[[Subscriber], None],
        switches: Callable[[str], Awaitable[Switches]],
        settle: Callable[[str], Awaitable[None]],
        so_far: Callable[[str], Awaitable[Sequence[Publication]]],
    ) -> None:
        self._hub = hub
        self._backplane = backplane
        self._limits = limits
        self._serve = serve
        self._switches = switches
        self._settle = settle
        self._so_far = so_far
        self._tasks: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Lives as long as the node does, and its tasks with it."""
        async with asyncio.TaskGroup() as self._tasks:
            await asyncio.Event().wait()

    @asynccontextmanager
    async def opening(self, user: str, wish: From) -> AsyncIterator[Opening]:
        """A beginning, valid while the context lasts and the node isn't waited for in it.

        Raises BackplaneUnavailable, DatabaseUnavailable.
        """
        person = self._hub.hold(user)
        try:
            if not self._hub.follows(person):
                async with _patience():
                    await self._hub.followed(person)
            growing = await self._learn(person)
            start, resume = await self._start(person, wish)
            held = await self._held(person, start.shard.number)
            yield Opening(person, start, held, resume, growing)
        finally:
            self._hub.release(person)

    def begin(self, opening: Opening, sink: Sink, options: StreamOptions) -> Subscriber:
        """Begins a stream with its `ready`. It is live at once if there is nothing to replay."""
        person, start = opening.person, opening.start
        subscriber = Subscriber(
            person,
            sink,
            self._hub,
            id=secrets.token_hex(6),
            position=start,
            held=opening.held,
            named=options.named,
            types=options.types,
        )
        self._limit_life(subscriber, options.expires_at)
        self._hub.add(subscriber)
        self._hub.metrics.resumes[opening.resume.value] += 1
        sink.write(chunk(self.ready(subscriber, opening.resume, start)))
        if start == self._hub.place(person) and subscriber.room:
            self._hub.go_live(subscriber)
        else:
            self._serve(subscriber)
        if opening.growing:
            assert self._tasks is not None
            self._tasks.create_task(self._tell_growing(subscriber), name=f"so far {subscriber.id}")
        return subscriber

    def ready(self, subscriber: Subscriber, resume: Resume, position: Position) -> bytes:
        heartbeat = self._hub.heartbeat
        left_s = int((subscriber.ends_at - heartbeat.now) * heartbeat.tick_s) if subscriber.ends_at else None
        data = {
            "user": subscriber.person.name,
            "node": self._limits.node,
            "stream": subscriber.id,
            "resume": resume.value,
            "heartbeat_s": self._limits.heartbeat_s,
            "expires_in_s": left_s,
            "window_s": self._limits.window_s,
        }
        return event("ready", data, position, retry_ms=random_retry_ms())

    def refresh(self, people: Sequence[Person]) -> None:
        """Reads the switches of people anew, because changes of them may have been lost with a log."""
        assert self._tasks is not None
        self._tasks.create_task(self._refresh(people), name="refresh switches")

    async def _learn(self, person: Person) -> bool:
        """Reads the switches; from the place where the person was held on, the log tells of changes."""
        switches = await self._switches(person.name)
        if switches.pending:
            async with _patience():
                while switches.pending:
                    await self._settle(person.name)
                    switches = await self._switches(person.name)
        log = self._hub.log(person)
        if switches.logged is not None and switches.logged.epoch == log.mark.epoch:
            await _reach(log, switches.logged)
        person.learn(switches.version, switches.off)
        return switches.open_question

    async def _start(self, person: Person, wish: From) -> tuple[Position, Resume]:
        if wish.unreadable:
            return self._hub.place(person), Resume.GAP
        if wish.since_s is not None:
            return await self._since(person, wish.since_s)
        if wish.position is None:
            return self._hub.place(person), Resume.NEW
        broadcast, lost_b = await self._resolve(self._hub.broadcast, wish.position.broadcast)
        shard, lost_s = await self._resolve(self._hub.log(person), wish.position.shard)
        return Position(broadcast, shard), Resume.GAP if lost_b or lost_s else Resume.COMPLETE

    async def _since(self, person: Person, since_s: float) -> tuple[Position, Resume]:
        log = self._hub.log(person)
        at_ms = self._backplane.now_ms() - int(since_s * 1000)
        numbers = await self._backplane.since((BROADCAST, log.name), at_ms)
        start = Position(
            Mark(self._hub.broadcast.mark.epoch, min(numbers[BROADCAST], self._hub.broadcast.mark.number)),
            Mark(log.mark.epoch, min(numbers[log.name], log.mark.number)),
        )
        heads = (
            await self._backplane.read(
                {BROADCAST: start.broadcast.number, log.name: start.shard.number}, limit=1
            )
        ).heads
        trimmed = any(head.trimmed_ms >= at_ms for head in heads.values())
        return start, Resume.GAP if trimmed else Resume.COMPLETE

    async def _resolve(self, log: FollowedLog, wanted: Mark) -> tuple[Mark, bool]:
        """Where to begin in one log, and whether something is lost before that."""
        now = log.mark
        if wanted.epoch == now.epoch and wanted.number <= now.number and log.reaches(wanted.number):
            return wanted, False
        head = (await self._backplane.read({log.name: wanted.number}, limit=1)).heads[log.name]
        if head.epoch != wanted.epoch or head.number < wanted.number:
            return log.mark, True
        await _reach(log, wanted)
        if head.first > wanted.number + 1:
            return Mark(head.epoch, head.first - 1), True
        return wanted, False

    async def _held(self, person: Person, after: int) -> frozenset[str]:
        """The types that were off at a place of the person's log."""
        log, known = self._hub.log(person), person.off
        if not log.reaches(after):
            change = await self._backplane.first_change(log.name, person.name, after)
            return known if change is None else frozenset(change.before)
        for entry in log.changes_after(after):
            change = entry.publication.change
            if change is not None and change.user == person.name:
                return frozenset(change.before)
        return known

    async def _tell_growing(self, subscriber: Subscriber) -> None:
        """The answers that are growing, from their beginnings; read once their next pieces are heard."""
        try:
            so_far = await self._so_far(subscriber.person.name)
        except Unavailable:
            # The next piece but few reaches back, and the whole answer comes at the end.
            return
        if so_far and subscriber.reason is None:
            position = self._hub.position(subscriber)
            frames = [with_id(publication, position) for publication in so_far]
            self._hub.write(subscriber, b"".join(frames), events=len(frames))

    async def _refresh(self, people: Sequence[Person]) -> None:
        backoff = Backoff()
        for person in people:
            while person.subscribers:
                try:
                    switches = await self._switches(person.name)
                except Unavailable:
                    await asyncio.sleep(backoff.next_s())
                    continue
                person.learn(switches.version, switches.off)
                break

    def _limit_life(self, subscriber: Subscriber, expires_at: float | None) -> None:
        ends_in_s: list[tuple[float, CloseReason]] = []
        if expires_at is not None:
            ends_in_s.append((max(0.0, expires_at - time.time()), CloseReason.TOKEN_EXPIRED))
        if self._limits.lifetime_s:
            ends_in_s.append((self._limits.lifetime_s * random.uniform(0.8, 1.0), CloseReason.LIFETIME))
        if ends_in_s:
            seconds, subscriber.ends_for = min(ends_in_s, key=lambda end: end[0])
            subscriber.ends_at = self._hub.heartbeat.ticks(seconds)


async def _reach(log: FollowedLog, wanted: Mark) -> None:
    """Waits until the node has heard a log up to a mark."""
    if not log.has(wanted):
        async with _patience():
            while not log.has(wanted):
                log.advanced.clear()
                await log.advanced.wait()


@asynccontextmanager
async def _patience() -> AsyncIterator[None]:
    """A limit where there is something to wait for: a timer for each stream would cost a tenth of it."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            yield
    except TimeoutError:
        raise BackplaneUnavailable(f"the node didn't hear in {PATIENCE_S:.0f} s what it was to") from None
