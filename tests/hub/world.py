"""A hub on the memory backplane, without HTTP: streams write into lists, and can be made slow."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from pushsse.backplane import Append, Draft, log_of
from pushsse.backplane.memory import MemoryBackplane
from pushsse.event import Change, Publication, encode
from pushsse.hub import Inside, inside
from pushsse.hub.hub import Hub
from pushsse.hub.opening import From, StreamLimits, StreamOptions
from pushsse.metrics import Metrics
from pushsse.people import PersonState
from pushsse.position import parse
from pushsse.stream.frame import Chunk
from pushsse.stream.subscriber import Subscriber

SHARDS = 4
LIMIT_S = 10.0


@dataclass
class ListSink:
    """Keeps what is written; `pause` and `resume` say what a socket would."""

    subscriber: Subscriber | None = None
    raw: bytes = b""
    ended: bool = False
    aborted: bool = False
    pause_after: int | None = None

    def write(self, chunk: Chunk) -> None:
        assert not self.ended
        assert chunk.framed == b"%x\r\n%b\r\n" % (len(chunk.raw), chunk.raw)
        self.raw += chunk.raw
        if self.pause_after is not None and self.subscriber is not None and self.subscriber.room:
            self.pause_after -= 1
            if self.pause_after <= 0:
                self.subscriber.paused()

    def end(self, chunk: Chunk) -> None:
        self.write(chunk)
        self.ended = True

    def abort(self) -> None:
        self.aborted = True

    def resume(self, *, pause_after: int | None = None) -> None:
        self.pause_after = pause_after
        assert self.subscriber is not None
        self.subscriber.resumed()

    @property
    def frames(self) -> list[tuple[str, str, str]]:
        """Event, data and id of each."""
        pattern = rb"(?:retry: \d+\n)?(?:event: (.*)\n)?data: (.*)\nid: (.*)\n\n"
        found = re.findall(pattern, self.raw)
        return [(name.decode(), data.decode(), place.decode()) for name, data, place in found]

    def data(self, *names: str) -> list[str]:
        """The data of the events of these names; of all but the service's own without."""
        own = {"ready", "ping", "exception", "preferences"}
        return [data for name, data, _ in self.frames if (name in names if names else name not in own)]


@dataclass
class World:
    """One node's inside."""

    backplane: MemoryBackplane
    inside: Inside
    switched: dict[str, PersonState] = field(default_factory=dict)
    sinks: list[ListSink] = field(default_factory=list)

    @property
    def hub(self) -> Hub:
        return self.inside.hub

    async def open(self, user: str, wish: From | str = "", **options: object) -> ListSink:
        if isinstance(wish, str):
            wish = From(position=parse(wish), unreadable=bool(wish) and parse(wish) is None)
        sink = ListSink()
        async with self.inside.opener.opening(user, wish) as opening:
            sink.subscriber = self.inside.opener.begin(opening, sink, StreamOptions(**options))  # type: ignore[arg-type]
        self.sinks.append(sink)
        return sink

    async def publish(self, name: str, data: object, *users: str, ttl_ms: int = 0) -> None:
        """One publication, to all or to some; it expires in so many milliseconds, or never."""
        expires_ms = self.backplane.now_ms() + ttl_ms if ttl_ms else 0
        made = encode(name, data, users=users or None, switchable=True, expires_ms=expires_ms)
        await self.backplane.publish(calls(made, users))

    async def switch(self, user: str, version: int, before: set[str], after: set[str]) -> None:
        """A change as the log has it, and as the database has it from then on."""
        change = Change(user, version, tuple(sorted(before)), tuple(sorted(after)))
        made = encode("preferences", {}, users=(user,), change=change)
        receipt = await self.backplane.publish(calls(made, (user,)))
        mark = receipt.marks[log_of(user, SHARDS)]
        self.switched[user] = PersonState(version, frozenset(after), False, mark, False)

    async def settled(self) -> None:
        """Waits until everything published was delivered to everybody who takes it."""

        def done() -> bool:
            hub = self.hub
            waiting = [s for s in hub.subscribers if s.room and not s.live]
            heads = {log: kept.head.number for log, kept in self.backplane._logs.items()}
            here = all(shard.log.mark.number == heads.get(name, 0) for name, shard in hub.shards.items())
            return here and hub.broadcast.mark.number == heads.get("all", 0) and not waiting

        async with asyncio.timeout(LIMIT_S):
            while not done() or self.inside.feed.waiting:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.002)


def calls(made: object, users: tuple[str, ...]) -> list[Append]:
    """A publication's calls, one a shard."""
    if not users:
        return [Append("all", (Draft(made),))]  # type: ignore[arg-type]
    return [Append(log, (Draft(made),)) for log in sorted({log_of(user, SHARDS) for user in users})]  # type: ignore[arg-type]


@asynccontextmanager
async def world(*, send_timeout_s: float = 5.0, keep_bytes: int = 4 * 1024**2) -> AsyncIterator[World]:
    """A node's inside, running."""
    metrics = Metrics()
    switched: dict[str, PersonState] = {}

    async def switches(user: str) -> PersonState:
        return switched.get(user, PersonState(0, frozenset(), False, None, False))

    async def settle(_: str) -> None:
        raise AssertionError("nothing is pending here")

    backplane = MemoryBackplane(shards=SHARDS, keep_s=600, keep_bytes=keep_bytes, metrics=metrics)

    async def so_far(_: str) -> list[Publication]:
        return [encode("answer.delta", "so far", users=())]

    limits = StreamLimits("here", 15, 600, send_timeout_s, 0)
    made = inside(
        backplane,
        limits=limits,
        switches=switches,
        settle=settle,
        so_far=so_far,
        metrics=metrics,
    )
    async with backplane, asyncio.TaskGroup() as tasks:
        running = [
            tasks.create_task(made.catch_up.run()),
            tasks.create_task(made.opener.run()),
            tasks.create_task(made.feed.run()),
        ]
        try:
            yield World(backplane, made, switched)
        finally:
            for task in running:
                task.cancel()
