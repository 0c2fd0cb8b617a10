"""The backplane of many nodes: logs in Redis, written by one script and heard over pub/sub.

`build` makes it; `Backplane` says who calls it and what it promises. The parts: `commands` runs scripts and
reads, `listen` hears and watches, scripts/ is what runs inside Redis, and what each key holds is in its
meta.lua. Deliberate: one connection publishes, so that appends keep the order in which they were asked for.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Self, cast

import msgspec

from pushsse.backplane import (
    BROADCAST,
    BROADCAST_SHARE,
    ENDED_MS,
    PRESENCE_AT_ONCE,
    PRESENCE_KEEP_MS,
    PRESENCE_LEASE_MS,
    REMEMBER_MOST,
    REMEMBER_MS,
    UNOPENED_MS,
    Append,
    Backplane,
    Draft,
    Hearing,
    NoticeListener,
    NoticeTopic,
    OpenedTicket,
    Page,
    Receipt,
    Search,
    Spent,
    Stay,
    Ticket,
    TicketLife,
    TicketRefusal,
    Uses,
    codec,
    fresh_word,
    log_of,
    raise_refused,
)
from pushsse.backplane.answers import ANSWER_KEEP_MS, Grew, Growth, SoFar
from pushsse.backplane.limits import Allowances, Windows
from pushsse.backplane.redis.commands import (
    Connector,
    Growths,
    LogReader,
    RedisConnection,
    Want,
    merged,
    script,
)
from pushsse.backplane.redis.listen import TIMEOUT_S, Canary, LogListener
from pushsse.errors import BackplaneUnavailable
from pushsse.event import Change
from pushsse.metrics import Metrics
from pushsse.position import Mark

_READ_TIMEOUT_S = 3.0
# A call waits for it, and can do without.
_COUNT_TIMEOUT_S = 0.5
_MOST_DRAFTS = 1000
_MOST_BYTES = 1024 * 1024
_MOST_NAMES = 1000  # 3–5 ms of Redis
_FIRST_BLOB = 7  # of the script's arguments, which Lua counts from 1
_ACCEPTED, _FOREIGN, _UNCLAIMED = 1, 0, -1  # what publish.lua replies first
_PUBLISH, _KEEP_TICKET, _OPEN_TICKET = (script(name) for name in ("publish", "keep_ticket", "open_ticket"))
_USE, _SPEND = script("use"), script("spend")
_TELL_PRESENCE, _END_PRESENCE = script("tell_presence"), script("end_presence")
_PRESENCE, _DUTY = script("presence"), script("duty")
_REPORT, _REPORTS = script("report"), script("reports")
_SO_FAR, _END_ANSWER = (script(name) for name in ("so_far", "end_answer"))


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
        # With the database's number, since a Redis has its channels in common for all databases.
        database = str(connector.database or "")
        self.channel = f"{self._names}live{database}:"
        canary_channel = f"{self._names}canary{database}:{node}".encode()
        self._notices = f"{self._names}notices{database}"
        self._published: dict[str, Mark] = {}
        # By place, of which a node has one: how often it was told of.
        self._tellings: dict[str, int] = {}
        self._publishing = RedisConnection(connector, "publishing", timeout_s=TIMEOUT_S)
        self._reading = RedisConnection(connector, "reading", timeout_s=_READ_TIMEOUT_S)
        # Of its own: a count must not wait for a replay, and a publication not for a count.
        self._counting = RedisConnection(connector, "counting", timeout_s=_COUNT_TIMEOUT_S)
        # Over the connection that publishes: a delta stays between the events before and after it.
        self._growths = Growths(self._publishing, names=self._names, channel=self._channel_of)
        self._windows = Windows()
        self._allowances = Allowances()
        self._checking = RedisConnection(connector, "canary", timeout_s=TIMEOUT_S)
        self._reader = LogReader(self._reading, names=self._names)
        self._listener = LogListener(
            connector,
            self._reader,
            channel=self.channel,
            notices=self._notices.encode(),
            canary=canary_channel,
            metrics=metrics,
        )
        self._canary = Canary(self._checking, self._listener, names=self._names, channel=canary_channel)
        self._tasks = asyncio.TaskGroup()
        self._canary_task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        self._growths.tasks = self._tasks
        self._canary_task = self._tasks.create_task(self._canary.run(), name="backplane canary")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._canary_task is not None:
            self._canary_task.cancel()
        await self._listener.close()
        for connection in (self._publishing, self._reading, self._counting, self._checking):
            await connection.close()
        if isinstance(error, asyncio.CancelledError):
            # It may come from the group, whose task has failed: the group knows, and raises that error.
            await self._tasks.__aexit__(kind, error, trace)
        else:
            await self._tasks.__aexit__(None, None, None)

    # Publishing

    def _channel_of(self, user: str) -> str:
        return self.channel + log_of(user, self.shards)

    async def publish(self, appends: Sequence[Append]) -> Receipt:
        """Appends one after the other, several in one run of the script.

        What it publishes comes back on each node in `LogListener._sort`.
        """
        receipt = Receipt()
        refused: list[int] = []
        for run in self._runs(appends):
            replies = await self._publishing.run(
                _PUBLISH,
                self._names,
                self._keep_ms,
                REMEMBER_MS,
                REMEMBER_MOST,
                fresh_word(),
                self.channel,
                codec.pack(run.appends),
                *run.blobs,
            )
            for log, reply in zip(run.logs, cast(list[list[int | bytes]], replies), strict=True):
                accepted = cast(int, reply[0])
                if accepted == _ACCEPTED:
                    self._receive(log, reply, receipt)
                else:
                    refused.append(accepted)
        receipt.count(self._metrics)
        raise_refused(foreign=refused.count(_FOREIGN), unclaimed=refused.count(_UNCLAIMED), of=len(appends))
        return receipt

    async def grow(self, growth: Growth) -> Grew:
        """Lets an answer grow, in one run of a script. Raises BackplaneUnavailable."""
        return await self._growths.grow(growth)

    async def so_far(self, questions: Sequence[str]) -> Mapping[str, SoFar]:
        """The answers so far of those questions that have one. Raises BackplaneUnavailable."""
        found: dict[str, SoFar] = {}
        for question in questions:
            # One by one: nothing else runs in Redis meanwhile, and an answer may have 800 kB.
            reply = await self._reading.run(_SO_FAR, self._names, question)
            if reply is not None:
                attempt, seq, status, text, parts = cast(tuple[int, int, bytes, bytes, list[bytes]], reply)
                found[question] = SoFar(attempt, seq, text.decode(), tuple(parts), status)
        return found

    async def end_answers(self, ended: Mapping[str, int]) -> None:
        """Drops answers so far, all in one round trip. Raises BackplaneUnavailable."""
        runs = [(self._names, question, attempt, ANSWER_KEEP_MS) for question, attempt in ended.items()]
        if runs:
            await self._reading.run_many(_END_ANSWER, runs)

    def _runs(self, appends: Sequence[Append]) -> Iterator["ScriptRun"]:
        """Divides appends into runs of the script that Redis's other clients can bear.

        Guarantee 1: between appends, never within one, since each is atomic.
        """
        run = ScriptRun()
        for append in appends:
            keep_bytes = self._keep_bytes * (BROADCAST_SHARE if append.log == BROADCAST else 1)
            # Looked up here, and so after the replies to earlier runs: they may have brought a new epoch.
            run.add(append, self._known(append.log), keep_bytes=keep_bytes)
            if run.is_full:
                yield run
                run = ScriptRun()
        if run.logs:
            yield run

    def _known(self, log: str) -> Mark:
        """The furthest place in a log that this node knows of.

        Guarantee 2: the script gives a new epoch to a log that is behind it, since Redis has an older state.
        """
        published, heard = self._published.get(log), self._listener.mark(log)
        if published is None or heard is None:
            return published or heard or Mark("", 0)
        return heard if heard.epoch == published.epoch and heard.number > published.number else published

    def _receive(self, log: str, reply: list[int | bytes], receipt: Receipt) -> None:
        """Adds a reply of the script to the receipt."""
        _, epoch, number, appended, fenced, repeated, expired = reply
        mark = Mark(cast(bytes, epoch).decode(), cast(int, number))
        self._published[log] = receipt.marks[log] = mark
        receipt.appended += cast(int, appended)
        receipt.fenced += cast(int, fenced)
        receipt.repeated += cast(int, repeated)
        receipt.expired += cast(int, expired)

    # Listening

    def listen(self) -> AsyncGenerator[Hearing, None]:
        """Yields what is appended to the followed logs, for ever."""
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

    # Notices and tickets

    async def notify(self, topic: NoticeTopic, text: str) -> None:
        """Tells all nodes that listen now. Raises BackplaneUnavailable."""
        await self._checking.call("PUBLISH", self._notices, codec.encode_notice(topic, text))

    def hear_notices(self, topic: NoticeTopic, listener: NoticeListener) -> None:
        """Has the notices of a topic told to this listener."""
        self._listener.notice_listeners[topic] = listener

    async def keep_ticket(self, name: str, ticket: Ticket, life: TicketLife) -> None:
        """Keeps a ticket. Raises BackplaneUnavailable."""
        issued = "" if ticket.issued_at is None else ticket.issued_at
        await self._reading.run(
            _KEEP_TICKET, self._names, name, ticket.user, issued, life.fresh_ms, life.lives_ms, UNOPENED_MS
        )

    async def open_ticket(self, name: str, *, resumes: bool) -> OpenedTicket | TicketRefusal:
        """Opens a ticket once more. Raises BackplaneUnavailable."""
        notice = codec.encode_notice(NoticeTopic.TICKET, name)
        reply = await self._reading.run(
            _OPEN_TICKET, self._names, name, int(resumes), ENDED_MS, self._notices, notice
        )
        refusal, user, issued, number, left_ms = cast(tuple[bytes, bytes, bytes, int, int], reply)
        if refusal:
            return TicketRefusal(refusal.decode())
        ticket = Ticket(user.decode(), int(issued) if issued else None)
        return OpenedTicket(ticket, number, left_ms)

    async def ticket_openings(self, names: Sequence[str]) -> Mapping[str, int]:
        """How often each of these tickets was opened. Raises BackplaneUnavailable."""
        commands = [("HMGET", f"{self._names}ticket:{name}", "user", "opened") for name in names]
        found = cast(list[list[bytes | None]], await self._reading.pipeline(commands) if commands else [])
        pairs = zip(names, found, strict=True)
        return {name: int(opened or 0) for name, (user, opened) in pairs if user is not None}

    # Presence

    async def tell_presence(
        self,
        place: str,
        stays: Mapping[str, Stay | None],
        *,
        anew: bool = False,
        lease_ms: int = PRESENCE_LEASE_MS,
    ) -> bool:
        """Says who is at a place, in one run of a script. Raises BackplaneUnavailable."""
        people: list[str] = []
        for user, stay in stays.items():
            people += (user, "" if stay is None else f"{stay.streams} {stay.since_ms} {stay.left_ms}")
        number = 1 if anew else self._tellings.get(place, 0) + 1
        told = await self._checking.run(
            _TELL_PRESENCE, self._names, place, lease_ms, PRESENCE_KEEP_MS, int(anew), number, *people
        )
        if told == 1:
            self._tellings[place] = number
        else:
            self._tellings.pop(place, None)
        return told == 1

    async def end_presence(self, place: str) -> None:
        """Ends the lease of a place now. Raises BackplaneUnavailable."""
        await self._checking.run(_END_PRESENCE, self._names, place)
        self._tellings.pop(place, None)

    async def presence(self, users: Sequence[str]) -> Mapping[str, Mapping[str, Stay]]:
        """Where people are, some hundreds of them in each run of a script. Raises BackplaneUnavailable."""
        found: dict[str, dict[str, Stay]] = {}
        for start in range(0, len(users), PRESENCE_AT_ONCE):
            asked = users[start : start + PRESENCE_AT_ONCE]
            reply = await self._reading.run(_PRESENCE, self._names, codec.pack(asked))
            now, *places = cast(list[bytes | list[bytes | None]], reply)
            for at in range(0, len(places), 3):
                place, ends_ms = cast(bytes, places[at]).decode(), int(cast(bytes, places[at + 1]))
                for user, told in zip(asked, cast(list[bytes | None], places[at + 2]), strict=True):
                    if told:
                        stay = Stay(*map(int, told.split()))
                        if ends_ms <= int(cast(bytes, now)):
                            stay = stay.ended(ends_ms - PRESENCE_LEASE_MS)
                        found.setdefault(user, {})[place] = stay
        return found

    async def missed(self, after: Mapping[str, Mark], *, before_ms: int, away_ms: int, limit: int) -> Search:
        """Events of whose people somebody was away, in one run of a script. Raises BackplaneUnavailable."""
        return await self._reader.missed(after, before_ms=before_ms, away_ms=away_ms, limit=limit)

    # Reports

    async def report(self, node: str, text: bytes, *, lease_ms: int) -> None:
        """Keeps what a node says about itself. Raises BackplaneUnavailable."""
        await self._checking.run(_REPORT, self._names, node, lease_ms, text)

    async def end_report(self, node: str) -> None:
        """Forgets what a node has said about itself. Raises BackplaneUnavailable."""
        await self._checking.run(_REPORT, self._names, node, 0, b"")

    async def reports(self) -> Mapping[str, bytes]:
        """What the nodes say about themselves. Raises BackplaneUnavailable."""
        found = cast(list[bytes], await self._reading.run(_REPORTS, self._names))
        return {node.decode(): text for node, text in zip(found[::2], found[1::2], strict=True)}

    # Duties

    async def duty(
        self, name: str, node: str, done: Mapping[str, Mark], *, lease_ms: int
    ) -> Mapping[str, Mark] | None:
        """Takes or keeps a duty, in one run of a script. Raises BackplaneUnavailable."""
        marks: list[str] = []
        for log, mark in done.items():
            marks += (log, f"{mark.epoch} {mark.number}")
        reply = cast(
            list[bytes] | None, await self._checking.run(_DUTY, self._names, name, node, lease_ms, *marks)
        )
        if reply is None:
            return None
        found: dict[str, Mark] = {}
        for log_name, told in zip(reply[::2], reply[1::2], strict=True):
            epoch, _, number = told.decode().rpartition(" ")
            found[log_name.decode()] = Mark(epoch, int(number))
        return found

    # Kafka's partitions

    async def claim(self, topic: str, partition: int, owner: str) -> None:
        """Accepts a partition's sources from `owner` alone from now on. Raises BackplaneUnavailable."""
        await self._publishing.call("HSET", f"{self._names}owner", f"{topic}/{partition}", owner)

    async def identity(self, suggested: str) -> str:
        """The word by which this Redis and prefix are known. Raises BackplaneUnavailable."""
        key = f"{self._names}identity"
        commands: list[tuple[str, ...]] = [("SET", key, suggested, "NX")] if suggested else []
        found = (await self._publishing.pipeline([*commands, ("GET", key)]))[-1]
        return cast(bytes, found).decode() if found else ""

    async def claimed(self, topic: str, partition: int) -> bool:
        """Whether anybody has ever claimed a partition. Raises BackplaneUnavailable."""
        return bool(await self._publishing.call("HEXISTS", f"{self._names}owner", f"{topic}/{partition}"))

    async def first_start(self, topic: str, offsets: Mapping[int, int]) -> Mapping[int, int]:
        """Where reading began when a topic was first started. Raises BackplaneUnavailable."""
        key, mine = f"{self._names}starts", msgspec.json.encode(dict(offsets))
        # Guarantee 1: HSETNX decides between nodes that start at the same time. With two starts, records
        # between them would be skipped.
        _, first = await self._publishing.pipeline([("HSETNX", key, topic, mine), ("HGET", key, topic)])
        found: dict[int, int] = msgspec.json.decode(cast(bytes, first), type=dict[int, int])
        return found

    async def fence(self, topic: str, partition: int) -> tuple[int, int] | None:
        """The highest offset of a partition in any log, and its time. Raises BackplaneUnavailable."""
        field = f"{topic}/{partition}"
        found = await self._publishing.pipeline(
            [("HGET", f"{self._names}fence:{log}", field) for log in self._logs]
        )
        fences = [cast(bytes, one).split(b":") for one in found if one is not None]
        return max(((int(offset), int(at_ms)) for offset, at_ms in fences), default=None)

    async def reset_fence(self, topic: str, partition: int) -> None:
        """Forgets the fence of a partition. Raises BackplaneUnavailable."""
        field = f"{topic}/{partition}"
        await self._publishing.pipeline([("HDEL", f"{self._names}fence:{log}", field) for log in self._logs])

    # Uses

    async def use(self, name: str, *, window_ms: int) -> Uses:
        """Counts one use of `name` in its window: in Redis, or here while that doesn't answer."""
        if self._canary.available:
            try:
                reply = await self._counting.run(_USE, self._names, name, window_ms)
            except BackplaneUnavailable:
                # The connection has logged it. To refuse calls because of it would make the outage theirs.
                pass
            else:
                seen, left_ms = cast(list[int], reply)
                return Uses(seen, left_ms)
        return self._windows.use(name, window_ms=window_ms)

    async def spend(self, name: str, ms: int, *, most_ms: int | None) -> Spent:
        """Takes from an allowance: in Redis, or here while that doesn't answer."""
        if self._canary.available:
            try:
                reply = await self._counting.run(
                    _SPEND, self._names, name, ms, -1 if most_ms is None else most_ms
                )
            except BackplaneUnavailable:
                # As for a use.
                pass
            else:
                taken, whole_ms = cast(list[int], reply)
                return Spent(bool(taken), whole_ms)
        return self._allowances.spend(name, ms, most_ms=most_ms)

    def now_ms(self) -> int:
        """Redis's clock."""
        return self._canary.now_ms()

    @property
    def hears(self) -> bool:
        """Whether Redis answers, and this node's canary has come over the connection that listens."""
        return self._canary.available and self._listener.hears

    @property
    def available(self) -> bool:
        """Whether Redis answered a moment ago."""
        return self._canary.available


class ScriptRun:
    """Appends as one run of publish.lua takes them.

    The numbers and places are in MessagePack (`appends`); entries, names and changes are `blobs` beside it,
    so that Redis copies them as they are.
    """

    __slots__ = ("_bytes", "_drafts", "_names", "appends", "blobs", "logs")

    def __init__(self) -> None:
        self.logs: list[str] = []
        self.appends: list[tuple[object, ...]] = []
        self.blobs: list[bytes] = []
        self._bytes = 0
        self._drafts = 0
        self._names = 0

    @property
    def is_full(self) -> bool:
        """Whether the script should take no more: nothing else runs in Redis meanwhile."""
        return self._drafts >= _MOST_DRAFTS or self._bytes >= _MOST_BYTES or self._names >= _MOST_NAMES

    def add(self, append: Append, known: Mark, *, keep_bytes: int) -> None:
        """Adds an append, with what this node knows of its log."""
        sources: dict[tuple[str, str], int] = {}
        drafts = [self._draft(append.log, draft, sources) for draft in append.drafts]
        self._drafts += len(drafts)
        self.logs.append(append.log)
        self.appends.append((append.log, known.epoch, known.number, keep_bytes, tuple(sources), drafts))

    def _draft(self, log: str, draft: Draft, sources: dict[tuple[str, str], int]) -> tuple[object, ...]:
        publication, source = draft.publication, draft.source
        which, offset, at_ms = 0, 0, 0
        if source is not None:
            partition = (f"{source.topic}/{source.partition}", source.owner)
            which = sources.setdefault(partition, len(sources) + 1)
            offset, at_ms = source.offset, source.timestamp_ms
        entry = self._blob(codec.encode(publication))
        names = draft.names(log)
        self._names += len(names)
        # A draft for one has one name: it is a repeat or it is not. Only one for several may have to be cut.
        begin, end = codec.users_of(publication) if len(names) > 1 else (0, 0)
        names_at = self._blob(b"".join(names)) if names else 0
        packed = (entry, publication.expires_ms, names_at, which, offset, at_ms, begin, end)
        change = publication.change
        return packed if change is None else (*packed, change.user, self._blob(codec.encode_change(change)))

    def _blob(self, blob: bytes) -> int:
        """Adds a blob, and returns its place in the script's ARGV."""
        self.blobs.append(blob)
        self._bytes += len(blob)
        return len(self.blobs) + _FIRST_BLOB - 1
