"""The backplane of many nodes: logs in Redis, written by one script, heard by pub/sub, read where that drops.

Called by whoever publishes; `listen` is the listener's. Deliberate: one connection publishes, so that what
is published one after another is appended in that order, and a publish is a run of the script, or few.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Self, cast

import msgspec

from pushsse.backplane import (
    BROADCAST,
    BROADCAST_SHARE,
    REMEMBER_MOST,
    REMEMBER_MS,
    Append,
    Backplane,
    Draft,
    Hearing,
    Page,
    Receipt,
    codec,
    fresh_word,
    log_of,
)
from pushsse.backplane.redis.canary import Watch
from pushsse.backplane.redis.connection import Connector, Link, script
from pushsse.backplane.redis.listen import TIMEOUT_S, Listener
from pushsse.backplane.redis.read import LogReader, Want, merged
from pushsse.errors import NotOwner
from pushsse.event import Change, Publication
from pushsse.metrics import Metrics
from pushsse.position import Mark

_READ_TIMEOUT_S = 3.0
_MOST_DRAFTS = 1000
_MOST_BYTES = 1024 * 1024
_MOST_NAMES = 1000  # 3–5 ms of Redis
_FIRST_BLOB = 7  # of the script's arguments, which Lua counts from 1
_PUBLISH = script("publish")


class RedisBackplane(Backplane):
    """Keeps the contract of `Backplane`. All keys begin with the prefix and the number of shards."""

    def __init__(
        self,
        url: str,
        *,
        prefix: str,
        node: str,
        shards: int,
        keep_s: float,
        keep_bytes: int,
        metrics: Metrics,
    ) -> None:
        connector = Connector(url, timeout_s=TIMEOUT_S)
        self.shards = shards
        self._names = f"{prefix}{shards}:"
        self._logs = (BROADCAST, *map(str, range(shards)))
        self._keep_ms = int(keep_s * 1000)
        self._keep_bytes = keep_bytes
        self._metrics = metrics
        # Channels are shared by all databases of a Redis.
        database = str(connector.database or "")
        self._channel = f"{self._names}live{database}:"
        canary = f"{self._names}canary{database}:{node}".encode()
        self._published: dict[str, Mark] = {}
        self._publisher = Link(connector, "publishing", timeout_s=TIMEOUT_S)
        self._reads = Link(connector, "reading", timeout_s=_READ_TIMEOUT_S)
        self._looks = Link(connector, "canary", timeout_s=TIMEOUT_S)
        self._reader = LogReader(self._reads, names=self._names)
        self._listener = Listener(
            connector, self._reader, channel=self._channel, canary=canary, metrics=metrics
        )
        self._watch = Watch(self._looks, names=self._names, canary=canary, logs=self._listener.logs)
        self._tasks = asyncio.TaskGroup()
        self._watching: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        self._watching = self._tasks.create_task(self._watch.run(), name="backplane canary")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._watching is not None:
            self._watching.cancel()
        await self._listener.close()
        for link in (self._publisher, self._reads, self._looks):
            await link.close()
        if isinstance(error, asyncio.CancelledError):
            # Perhaps the group's own: it knows, and raises what ended its task.
            await self._tasks.__aexit__(kind, error, trace)
        else:
            await self._tasks.__aexit__(None, None, None)

    # Publishing

    async def publish(self, calls: Sequence[Append]) -> Receipt:
        """Appends, call by call. Raises BackplaneUnavailable; NotOwner once the other calls are in."""
        receipt = Receipt()
        refused = 0
        for portion in self._portions(calls):
            replies = await self._publisher.run(
                _PUBLISH,
                self._names,
                self._keep_ms,
                REMEMBER_MS,
                REMEMBER_MOST,
                fresh_word(),
                self._channel,
                codec.pack(portion.calls),
                *portion.blobs,
            )
            for log, reply in zip(portion.logs, cast(list[list[int | bytes]], replies), strict=True):
                refused += not self._receive(log, reply, receipt)
        receipt.count(self._metrics)
        if refused:
            raise NotOwner(f"{refused} of {len(calls)} calls come from partitions with another owner")
        return receipt

    async def publish_live(self, user: str, publication: Publication) -> None:
        """Sends one person's followers what the log never holds. Raises BackplaneUnavailable."""
        channel = self._channel + log_of(user, self.shards)
        await self._publisher.call("PUBLISH", channel, codec.live(publication))

    def _portions(self, calls: Sequence[Append]) -> Iterator["Portion"]:
        """As many calls at once as one run of the script should take."""
        portion = Portion()
        for call in calls:
            keep_bytes = self._keep_bytes * (BROADCAST_SHARE if call.log == BROADCAST else 1)
            portion.add(call, self._known(call.log), keep_bytes=keep_bytes)
            if portion.is_full:
                yield portion
                portion = Portion()
        if portion.logs:
            yield portion

    def _known(self, log: str) -> Mark:
        """The furthest place of a log that this node knows of: a log that is behind it has gone back."""
        published, heard = self._published.get(log), self._listener.mark(log)
        if published is None or heard is None:
            return published or heard or Mark("", 0)
        return heard if heard.epoch == published.epoch and heard.number > published.number else published

    def _receive(self, log: str, reply: list[int | bytes], receipt: Receipt) -> bool:
        taken, epoch, number, appended, fenced, repeated, expired = reply
        if not taken:
            return False
        mark = Mark(cast(bytes, epoch).decode(), cast(int, number))
        self._published[log] = receipt.marks[log] = mark
        receipt.appended += cast(int, appended)
        receipt.fenced += cast(int, fenced)
        receipt.repeated += cast(int, repeated)
        receipt.expired += cast(int, expired)
        return True

    # Listening

    def listen(self) -> AsyncGenerator[Hearing, None]:
        """What is published to the followed logs, for ever."""
        return self._listener.listen(self._tasks)

    def follow(self, log: str) -> None:
        """Asks for a log to be followed."""
        self._listener.follow(log)

    def unfollow(self, log: str) -> None:
        """Ends following a log."""
        self._listener.unfollow(log)

    # Reading

    async def read(self, after: Mapping[str, int], *, limit: int) -> Page:
        """What the logs hold after these numbers. Raises BackplaneUnavailable."""
        wants = [Want(log, number=number) for log, number in after.items()]
        found = await self._reader.read(wants, limit=limit)
        entries, more = merged(found)
        heads = {one.log: one.head for one in found}
        return Page(entries[:limit], heads, more or len(entries) > limit)

    async def since(self, logs: Iterable[str], at_ms: int) -> Mapping[str, int]:
        """For each log the number before its first entry at or after a time. Raises BackplaneUnavailable."""
        return await self._reader.since(tuple(logs), at_ms)

    async def first_change(self, log: str, user: str, after: int) -> Change | None:
        """The first change of a person's switches in a log after a number. Raises BackplaneUnavailable."""
        return await self._reader.first_change(log, user, after)

    # Kafka's partitions

    async def claim(self, topic: str, partition: int, owner: str) -> None:
        """Makes `owner` the only one whose sources of a partition are taken. Raises BackplaneUnavailable."""
        await self._publisher.call("HSET", f"{self._names}owner", f"{topic}/{partition}", owner)

    async def identity(self, suggested: str) -> str:
        """The word by which this Redis and prefix are known. Raises BackplaneUnavailable."""
        key = f"{self._names}identity"
        commands: list[tuple[str, ...]] = [("SET", key, suggested, "NX")] if suggested else []
        found = (await self._publisher.pipeline([*commands, ("GET", key)]))[-1]
        return cast(bytes, found).decode() if found else ""

    async def claimed(self, topic: str, partition: int) -> bool:
        """Whether anybody has ever claimed a partition. Raises BackplaneUnavailable."""
        return bool(await self._publisher.call("HEXISTS", f"{self._names}owner", f"{topic}/{partition}"))

    async def first_start(self, topic: str, offsets: Mapping[int, int]) -> Mapping[int, int]:
        """Where reading began when a topic was first started. Raises BackplaneUnavailable."""
        key, mine = f"{self._names}starts", msgspec.json.encode(dict(offsets))
        # HSETNX decides between nodes that start at the same time.
        _, kept = await self._publisher.pipeline([("HSETNX", key, topic, mine), ("HGET", key, topic)])
        found: dict[int, int] = msgspec.json.decode(cast(bytes, kept), type=dict[int, int])
        return found

    async def fence(self, topic: str, partition: int) -> tuple[int, int] | None:
        """The highest offset of a partition that any log has, and its time. Raises BackplaneUnavailable."""
        field = f"{topic}/{partition}"
        found = await self._publisher.pipeline(
            [("HGET", f"{self._names}fence:{log}", field) for log in self._logs]
        )
        fences = [cast(bytes, one).split(b":") for one in found if one is not None]
        return max(((int(offset), int(at_ms)) for offset, at_ms in fences), default=None)

    async def reset_fence(self, topic: str, partition: int) -> None:
        """Forgets the fence of a partition. Raises BackplaneUnavailable."""
        field = f"{topic}/{partition}"
        await self._publisher.pipeline([("HDEL", f"{self._names}fence:{log}", field) for log in self._logs])

    def now_ms(self) -> int:
        """Redis's clock."""
        return self._watch.now_ms()

    @property
    def hears(self) -> bool:
        """Whether Redis answers, and this node's canary has come over the connection that listens."""
        return self._watch.available and self._listener.hears

    @property
    def available(self) -> bool:
        """Whether Redis answered a moment ago."""
        return self._watch.available


class Portion:
    """Calls for one run of the script."""

    __slots__ = ("_bytes", "_drafts", "_names", "blobs", "calls", "logs")

    def __init__(self) -> None:
        self.logs: list[str] = []
        self.calls: list[tuple[object, ...]] = []
        self.blobs: list[bytes] = []
        self._bytes = 0
        self._drafts = 0
        self._names = 0

    @property
    def is_full(self) -> bool:
        """Whether one run of the script should take no more: nothing else runs in Redis meanwhile."""
        return self._drafts >= _MOST_DRAFTS or self._bytes >= _MOST_BYTES or self._names >= _MOST_NAMES

    def add(self, call: Append, known: Mark, *, keep_bytes: int) -> None:
        """A call, with what this node knows of its log."""
        sources: dict[tuple[str, str], int] = {}
        drafts = [self._draft(call.log, draft, sources) for draft in call.drafts]
        self._drafts += len(drafts)
        self.logs.append(call.log)
        self.calls.append((call.log, known.epoch, known.number, keep_bytes, tuple(sources), drafts))

    def _draft(self, log: str, draft: Draft, sources: dict[tuple[str, str], int]) -> tuple[object, ...]:
        publication, source, _ = draft
        which, offset, at_ms = 0, 0, 0
        if source is not None:
            partition = (f"{source.topic}/{source.partition}", source.owner)
            which = sources.setdefault(partition, len(sources) + 1)
            offset, at_ms = source.offset, source.timestamp_ms
        entry = self._blob(codec.encode(publication))
        names = draft.names(log)
        self._names += len(names)
        # One recipient is a repeat or none: only several may have to be taken apart.
        begin, end = codec.users_of(publication) if len(names) > 1 else (0, 0)
        had = self._blob(b"".join(names)) if names else 0
        packed = (entry, publication.expires_ms, had, which, offset, at_ms, begin, end)
        change = publication.change
        return packed if change is None else (*packed, change.user, self._blob(codec.encode_change(change)))

    def _blob(self, blob: bytes) -> int:
        self.blobs.append(blob)
        self._bytes += len(blob)
        return len(self.blobs) + _FIRST_BLOB - 1
