"""Where a stream begins: its person's switches, its place in the logs, and the verdict on its position.

Called by the stream and the events endpoint before anything is written. A position of another epoch, one
that was trimmed away or one that never was is a gap, told in band; only a log that can't be asked is an
error.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from pushsse.backplane import BROADCAST, Backplane
from pushsse.errors import BackplaneUnavailable
from pushsse.hub.followed import FollowedLog
from pushsse.hub.hub import Hub
from pushsse.position import Mark, Position
from pushsse.stream.subscriber import Person

PATIENCE_S = 5.0


class Resume(Enum):
    """How a resume went."""

    NEW = "new"
    COMPLETE = "complete"
    GAP = "gap"


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


class Resumer:
    """Finds the beginning of streams on this node."""

    def __init__(
        self,
        hub: Hub,
        backplane: Backplane,
        *,
        switches: Callable[[str], Awaitable[Switches]],
        settle: Callable[[str], Awaitable[None]],
    ) -> None:
        self._hub = hub
        self._backplane = backplane
        self._switches = switches
        self._settle = settle

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
