"""Listens to a backplane in a task, and checks what every listener may rely on."""

import asyncio
from collections.abc import Callable
from itertools import count
from types import TracebackType
from typing import Self

from pushsse.backplane import (
    Append,
    Backplane,
    Draft,
    Entry,
    Followed,
    Gap,
    Heard,
    HeardLive,
    Hearing,
    Source,
    log_of,
)
from pushsse.event import Publication

OWNER = "me"
# A node knows Redis's clock but for some milliseconds: on a busy machine for less than this.
CLOCK_MS = 1_000


def publication(body: str, *, user: str = "ann", expires_ms: int = 0) -> Publication:
    return Publication("note", b"data: " + body.encode() + b"\n", (user,), True, expires_ms)


def append(log: str, *bodies: str) -> Append:
    return Append(log, tuple(Draft(publication(body)) for body in bodies))


def user_of(log: str) -> str:
    """Somebody who hashes to a log, of eight shards."""
    return next(user for user in map(str, count()) if log_of(user, 8) == log)


def sourced(log: str, *offsets: int, owner: str = OWNER, partition: int = 0) -> Append:
    """One draft an offset, whose body is the offset and whose record's time is 1,000 more."""
    drafts = [
        Draft(publication(str(offset)), Source("topic", partition, offset, offset + 1000, owner))
        for offset in offsets
    ]
    return Append(log, tuple(drafts))


def bodies(entries: tuple[Entry, ...] | list[Entry]) -> list[str]:
    return [entry.publication.body.decode()[6:-1] for entry in entries]


def after_all(backplane: Backplane) -> int:
    """A time after all that was appended."""
    return backplane.now_ms() + CLOCK_MS


class Ear:
    """Everything heard; an assertion fails in `until` and at the end, if the numbers have a hole."""

    def __init__(self, backplane: Backplane) -> None:
        self.hearings: list[Hearing] = []
        self.entries: list[Entry] = []
        self.live: list[Publication] = []
        self.gaps: list[Gap] = []
        self.followed: dict[str, Followed] = {}
        self.numbers: dict[str, int] = {}
        self.epochs: dict[str, str] = {}
        self.hole = ""
        self.open = asyncio.Event()
        self.open.set()
        self._backplane = backplane
        self._changed = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None
        self._order = 0

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._listen())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait([self._task])
        if not self._task.cancelled():
            self._task.result()
        assert not self.hole or error

    async def follow(self, *logs: str) -> None:
        for log in logs:
            self._backplane.follow(log)
        await self.until(lambda: all(log in self.followed for log in logs))

    async def until(self, reached: Callable[[], bool], *, limit_s: float = 10) -> None:
        async with asyncio.timeout(limit_s), self._changed:
            await self._changed.wait_for(lambda: reached() or bool(self.hole))
        assert not self.hole

    async def until_body(self, body: str, *, limit_s: float = 10) -> None:
        await self.until(lambda: body in bodies(self.entries[-100:]), limit_s=limit_s)

    def of(self, log: str) -> list[str]:
        """The bodies heard of one log, its tail included."""
        followed = self.followed.get(log)
        tail = bodies(followed.tail) if followed else []
        return tail + bodies([entry for entry in self.entries if entry.log == log])

    async def _listen(self) -> None:
        listening = self._backplane.listen()
        try:
            async for hearing in listening:
                await self.open.wait()
                self._take(hearing)
                async with self._changed:
                    self._changed.notify_all()
        finally:
            await listening.aclose()

    def _take(self, hearing: Hearing) -> None:
        self.hearings.append(hearing)
        if isinstance(hearing, Heard):
            for entry in hearing.entries:
                self._entry(entry)
        elif isinstance(hearing, HeardLive):
            self.live.append(hearing.publication)
        elif isinstance(hearing, Followed):
            self.followed[hearing.log] = hearing
            self._begin(hearing.log, hearing.head.epoch, hearing.head.number)
        else:
            self.gaps.append(hearing)
            self._order = 0
            self._begin(hearing.log, hearing.head.epoch, hearing.head.base)

    def _begin(self, log: str, epoch: str, number: int) -> None:
        self.numbers[log] = number
        self.epochs[log] = epoch

    def _entry(self, entry: Entry) -> None:
        if entry.number != self.numbers[entry.log] + 1:
            self.hole = f"log {entry.log}: {entry.number} came after {self.numbers[entry.log]}"
        if entry.order <= self._order:
            self.hole = f"log {entry.log}: order {entry.order} came after {self._order}"
        self._order = entry.order
        self.numbers[entry.log] = entry.number
        self.entries.append(entry)
