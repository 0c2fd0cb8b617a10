"""A hub on the memory backplane, without HTTP: streams write into lists, and can be made slow."""

import asyncio
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from pushsse.backplane import Append, Draft, Gap, Head, Page, log_of
from pushsse.backplane.answers import SoFar
from pushsse.backplane.memory import MemoryBackplane
from pushsse.errors import BackplaneUnavailable
from pushsse.event import Change, encode
from pushsse.hub import HubParts, assemble_hub
from pushsse.hub.hub import Hub, Rules
from pushsse.hub.opening import From, StreamLimits, StreamOptions
from pushsse.hub.people import PersonState
from pushsse.metrics import Metrics
from pushsse.position import parse
from pushsse.stream.frame import Chunk
from pushsse.stream.subscriber import Behind, Live, Subscriber
from tests.waiting import eventually

SHARDS = 4


@dataclass
class ListSink:
    """Keeps what is written; `pause` and `resume` say what a socket would."""

    subscriber: Subscriber = field(init=False)
    raw: bytes = b""
    ended: bool = False
    aborted: bool = False
    pause_after: int | None = None
    after_end: bytes = b""

    def write(self, chunk: Chunk) -> None:
        if self.ended:
            self.after_end += chunk.raw
            return
        assert chunk.framed == b"%x\r\n%b\r\n" % (len(chunk.raw), chunk.raw)
        self.raw += chunk.raw
        if self.pause_after is not None and not self.full:
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
        self.subscriber.resumed()

    @property
    def full(self) -> bool:
        """Whether it has said that it is full, and not yet that it has room again."""
        return isinstance(self.subscriber.state, Behind) and not self.subscriber.state.room

    @property
    def live(self) -> bool:
        """Whether its stream has caught up."""
        return isinstance(self.subscriber.state, Live)

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
class People:
    """The state of people as a database would have it; who isn't in it has everything on."""

    known: dict[str, PersonState] = field(default_factory=dict)

    async def state(self, user: str) -> PersonState:
        return self.known.get(user, PersonState(0, frozenset(), False, None, False))

    async def states(self, users: Sequence[str]) -> dict[str, PersonState]:
        return {user: await self.state(user) for user in users}

    async def settle(self, _: str) -> None:
        raise AssertionError("nothing is pending here")

    def state_nowait(self, _: str) -> None:
        """Never: these streams are opened the way that waits."""

    async def growing(self, _: str) -> dict[str, SoFar]:
        return {"question": SoFar(1, 3, "so far")}


@dataclass
class RunningHub:
    """One node's hub."""

    backplane: MemoryBackplane
    parts: HubParts
    people: People
    sinks: list[ListSink] = field(default_factory=list)

    @property
    def hub(self) -> Hub:
        return self.parts.hub

    async def open(self, user: str, wish: From | str = "", **options: object) -> ListSink:
        if isinstance(wish, str):
            wish = From(position=parse(wish), unreadable=bool(wish) and parse(wish) is None)
        sink = ListSink()
        async with self.parts.opener.opening(user, wish) as opening:
            sink.subscriber = self.parts.opener.begin(opening, sink, StreamOptions(**options))  # type: ignore[arg-type]
        self.sinks.append(sink)
        return sink

    async def publish(self, name: str, data: object, *users: str, ttl_ms: int = 0) -> None:
        """One publication, to all or to some; it expires in so many milliseconds, or never."""
        expires_ms = self.backplane.now_ms() + ttl_ms if ttl_ms else 0
        made = encode(name, data, users=users or None, switchable=True, expires_ms=expires_ms)
        await self.backplane.publish(appends(made, users))

    async def switch(self, user: str, version: int, before: set[str], after: set[str]) -> None:
        """A change as the log has it, and as the database has it from then on."""
        change = Change(user, version, tuple(sorted(before)), tuple(sorted(after)))
        made = encode("preferences", {}, users=(user,), change=change)
        receipt = await self.backplane.publish(appends(made, (user,)))
        mark = receipt.marks[log_of(user, SHARDS)]
        self.people.known[user] = PersonState(version, frozenset(after), False, mark, False)

    async def heads(self) -> dict[str, Head]:
        """The heads of all logs, as the backplane has them."""
        logs = dict.fromkeys(("all", *map(str, range(SHARDS))), 0)
        return dict((await self.backplane.read(logs, limit=1)).heads)

    def forget_tails(self) -> None:
        """The node forgets what it has heard, as if it had been started since: only the log has it."""
        for tail in (self.hub.broadcast, *(shard.log for shard in self.hub.shards.values())):
            tail.forget(self.backplane.now_ms() + 1)

    def lose(self, log: str, *, epoch: str) -> None:
        """The node hears that a log was lost and goes on in another epoch."""
        tail = self.hub.broadcast if log == "all" else self.hub.shards[log].log
        number = tail.mark.number
        self.parts.delivery.deliver([Gap(log, Head(epoch, number, number + 1, number))])

    async def settled(self) -> None:
        """Waits until everything published was delivered, and every stream with room has caught up."""
        await eventually(self._caught_up)

    async def _caught_up(self) -> bool:
        heads = await self.heads()
        tails = [self.hub.broadcast, *(shard.log for shard in self.hub.shards.values())]
        states = [subscriber.state for subscriber in self.hub.subscribers]
        return all(tail.mark.number == heads[tail.name].number for tail in tails) and not any(
            isinstance(state, Behind) and state.room for state in states
        )


class Reads:
    """A backplane's `read` that waits for `gate` or raises `error`; counts its calls and returns."""

    def __init__(self, backplane: MemoryBackplane, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gate = asyncio.Event()
        self.error: BackplaneUnavailable | None = None
        self.count = 0
        self.returned = 0
        self._read = backplane.read
        monkeypatch.setattr(backplane, "read", self)

    async def __call__(self, after: Mapping[str, int], *, limit: int) -> Page:
        self.count += 1
        if self.error is not None:
            raise self.error
        await self.gate.wait()
        page = await self._read(after, limit=limit)
        self.returned += 1
        return page


def appends(made: object, users: tuple[str, ...]) -> list[Append]:
    """A publication's appends, one a shard."""
    if not users:
        return [Append("all", (Draft(made),))]  # type: ignore[arg-type]
    return [Append(log, (Draft(made),)) for log in sorted({log_of(user, SHARDS) for user in users})]  # type: ignore[arg-type]


@asynccontextmanager
async def running_hub(
    *,
    send_timeout_s: float = 5.0,
    keep_bytes: int = 4 * 1024**2,
    lifetime_s: float = 0.0,
    rules: Rules | None = None,
) -> AsyncIterator[RunningHub]:
    """A node's hub, running."""
    metrics, people = Metrics(), People()
    backplane = MemoryBackplane(shards=SHARDS, keep_s=600, keep_bytes=keep_bytes, metrics=metrics)
    limits = StreamLimits("here", 15, 600, send_timeout_s, lifetime_s)
    parts = assemble_hub(backplane, people, limits=limits, metrics=metrics, rules=rules)
    async with backplane, asyncio.TaskGroup() as tasks:
        services = (parts.catch_up, parts.refresh, parts.opener, parts.feed)
        running = [tasks.create_task(service.run()) for service in services]
        try:
            yield RunningHub(backplane, parts, people)
        finally:
            for task in running:
                task.cancel()
