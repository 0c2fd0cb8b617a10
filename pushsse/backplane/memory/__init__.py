"""The backplane of a single process: logs in memory, without outages, and a file that the next start reads.

`build` makes it; `Backplane` says who calls it and what it promises. In `logs` are logs, fences and names,
`writer` is the thread that writes the file, and `store` the file. Deliberate: `publish` waits while the
listener is MOST_WAITING entries behind, so that what waits for it has a bound.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from heapq import merge
from itertools import islice
from types import TracebackType
from typing import Self

from pushsse.backplane import (
    BROADCAST,
    BROADCAST_SHARE,
    PRESENCE_LEASE_MS,
    Append,
    Backplane,
    Draft,
    Entry,
    Followed,
    Heard,
    HeardLive,
    Hearing,
    Missed,
    NoticeListener,
    NoticeTopic,
    NowaitListener,
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
    fresh_word,
    log_of,
    machine_ms,
    part_of,
    raise_refused,
)
from pushsse.backplane.answers import AnswersSoFar, Grew, Growth, SoFar
from pushsse.backplane.limits import Allowances, Windows
from pushsse.backplane.memory.logs import (
    LogSnapshot,
    LogUpdate,
    MemoryLog,
    MemoryPlaces,
    MemoryTickets,
    Partitions,
    SeenNames,
    Snapshot,
    recipients,
)
from pushsse.backplane.memory.store import (
    delete_fences,
    set_identity,
    set_owner,
    set_start,
)
from pushsse.backplane.memory.writer import LogWriter
from pushsse.event import Change, Publication
from pushsse.metrics import Metrics
from pushsse.position import Mark

MOST_WAITING = 10_000  # entries
# Recipients whose names are remembered, or who are looked for, between two yields: 3 to 8 ms of the loop.
_YIELD_RECIPIENTS = 2_000
# What a name takes while it waits to be written.
_NAME_BYTES = 64


class MemoryBackplane(Backplane):
    """Keeps the contract of `Backplane`. `keep_bytes` bounds a shard's log; the broadcast log has more."""

    def __init__(
        self,
        *,
        shards: int,
        keep_s: float,
        keep_bytes: int,
        metrics: Metrics,
        writer: LogWriter | None = None,
    ) -> None:
        self.shards = shards
        self._keep_ms = int(keep_s * 1000)
        self._keep_bytes = keep_bytes
        self._metrics = metrics
        self._writer = writer
        # A log's epoch is this word and the log's name: no position in one log fits another.
        self._word = fresh_word()
        self._identity = ""
        self._logs: dict[str, MemoryLog] = {}
        self._order = 0
        self._partitions = Partitions()
        self._seen = SeenNames()
        self._tickets = MemoryTickets()
        self._notice_listeners: dict[NoticeTopic, NoticeListener] = {}
        self._windows = Windows()
        self._allowances = Allowances()
        self._places = MemoryPlaces()
        # By node: its report, and when its lease ends.
        self._reports: dict[str, tuple[bytes, int]] = {}
        # By duty and log: how far it has got.
        self._duties: dict[str, dict[str, Mark]] = {}
        self._answers = AnswersSoFar()
        self._asked: dict[str, None] = {}
        self._listening = False
        self._waiting: deque[Hearing] = deque()
        self._unheard = 0
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._nowait_listener: NowaitListener | None = None

    async def __aenter__(self) -> Self:
        """Continues where the file ends. Raises SettingsError where another process uses it."""
        if self._writer is not None:
            writer = self._writer
            snapshot = await writer.open(self)
            self._order, self._word, self._identity = snapshot.order, snapshot.word, snapshot.identity
            self._partitions.restore(snapshot)
            self._seen.restore(snapshot)
            # In a thread: it walks all entries.
            self._logs = await asyncio.to_thread(self._restored, snapshot)
            self._metrics.gauge(
                "log_kept", "least", "Whether the embedded log is on disk", lambda: writer.on_disk
            )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            await self._writer.close()
        self._logs.clear()

    def _restored(self, snapshot: Snapshot) -> dict[str, MemoryLog]:
        logs: dict[str, MemoryLog] = {}
        for name, saved in snapshot.logs.items():
            log = logs[name] = self._new_log(name, saved.epoch)
            log.restore(saved.number, saved.trimmed_ms, saved.entries)
        return logs

    def snapshot(self) -> Snapshot:
        """A copy of all there is."""
        snapshot = Snapshot(self._word, identity=self._identity)
        self._partitions.save_to(snapshot)
        self._seen.save_to(snapshot)
        for name, log in self._logs.items():
            head = log.head
            snapshot.logs[name] = LogSnapshot(head.epoch, head.number, head.trimmed_ms, log.entries())
        return snapshot

    # Publishing

    async def publish(self, appends: Sequence[Append]) -> Receipt:
        """Appends one after the other, with a pause for others between appends for many recipients.

        An append is atomic because nothing in it awaits.
        """
        await self._wait_for_room()
        receipt = Receipt()
        heard: list[Entry] = []
        foreign = unclaimed = 0
        weight = 0
        has_sources = False
        for append in appends:
            if self._partitions.is_foreign(append):
                foreign += 1
                continue
            if self._partitions.is_unclaimed(append):
                unclaimed += 1
                continue
            if weight >= _YIELD_RECIPIENTS:
                # Guarantee 2: before the pause, in which another publisher's entries get a higher order.
                self._queue_entries(heard)
                heard, weight = [], 0
                await asyncio.sleep(0)
            sourced = any(draft.source is not None for draft in append.drafts)
            has_sources = has_sources or sourced
            appended = self._append(append, receipt, sourced=sourced)
            weight += sum(recipients(draft.publication) for draft in append.drafts)
            if self._listening and append.log in self._asked:
                heard += appended
        self._queue_entries(heard)
        receipt.count(self._metrics)
        if self._writer is not None and has_sources:
            # Guarantee 1: the caller commits their offsets next, and then Kafka never sends them again.
            await self._writer.flush()
        raise_refused(foreign=foreign, unclaimed=unclaimed, of=len(appends))
        return receipt

    def publish_nowait(self, appends: Sequence[Append]) -> Receipt | None:
        """`publish` for a few drafts without sources; None while the listener is far behind."""
        if self._unheard >= MOST_WAITING:
            return None
        receipt = Receipt()
        heard: list[Entry] = []
        for append in appends:
            appended = self._append(append, receipt, sourced=False)
            if self._listening and append.log in self._asked:
                heard += appended
        receipt.count(self._metrics)
        if heard:
            hearing = Heard(tuple(heard))
            # Guarantee 2: what waits was appended earlier, and must be heard first.
            if self._waiting or self._nowait_listener is None or not self._nowait_listener.hear(hearing):
                self._queue(hearing)
        return receipt

    async def grow(self, growth: Growth) -> Grew:
        """Lets an answer grow in memory alone: a restart forgets it."""
        await self._wait_for_room()
        grew, news = self._answers.grow(growth, self.now_ms())
        log = log_of(growth.user, self.shards)
        if self._listening and log in self._asked:
            for publication in news:
                self._queue(HeardLive(log, publication))
        return grew

    async def so_far(self, questions: Sequence[str]) -> Mapping[str, SoFar]:
        """The answers so far of those questions that have one."""
        return self._answers.read(questions, self.now_ms())

    async def end_answers(self, ended: Mapping[str, int]) -> None:
        """Drops answers so far."""
        for question, attempt in ended.items():
            self._answers.end(question, attempt, self.now_ms())

    def _append(self, append: Append, receipt: Receipt, *, sourced: bool) -> list[Entry]:
        """Appends the drafts that are neither fenced, expired nor repeated; returns their entries.

        `sourced` says whether any of them has a source.
        """
        log = self._log(append.log)
        now_ms = self.now_ms()
        drafts: Sequence[Draft] = append.drafts
        if sourced:
            drafts = self._partitions.unfenced(append)
            receipt.fenced += len(append.drafts) - len(drafts)
        appended: list[Entry] = []
        seen: list[bytes] = []
        appended_bytes = log.appended_bytes
        for draft in drafts:
            publication: Publication | None = (given := draft.publication)
            # Before the names: an expired draft must not use up the name of a later one with the same id.
            if 0 < given.expires_ms <= now_ms:
                receipt.expired += 1
                continue
            if draft.once:
                names = draft.names(append.log)
                seen += names
                publication = self._seen.unrepeated(given, names, now_ms)
                receipt.repeated += recipients(given) - recipients(publication)
            if publication is not None:
                self._order += 1
                appended.append(log.append(self._order, now_ms, publication))
        receipt.appended += len(appended)
        receipt.marks[append.log] = end = log.end
        # Also without a file, or they would pile up.
        dropped = log.take_dropped()
        if self._writer is not None and append.drafts:
            fences = self._partitions.fences_of(append) if sourced else ()
            remembered = self._seen.times_of(seen) if seen else ()
            size = log.appended_bytes - appended_bytes + _NAME_BYTES * len(remembered)
            self._writer.add(
                LogUpdate(append.log, end, log.trimmed_ms, appended, dropped, fences, remembered, size)
            )
        return appended

    def _log(self, name: str) -> MemoryLog:
        log = self._logs.get(name)
        if log is None:
            log = self._logs[name] = self._new_log(name, self._word + name)
        return log

    def _new_log(self, name: str, epoch: str) -> MemoryLog:
        share = BROADCAST_SHARE if name == BROADCAST else 1
        return MemoryLog(name, epoch, keep_ms=self._keep_ms, keep_bytes=self._keep_bytes * share)

    # Listening

    async def listen(self) -> AsyncGenerator[Hearing, None]:
        """Yields what is appended to the followed logs from now on, for ever."""
        if self._listening:
            raise RuntimeError("the backplane has a listener already")
        self._listening = True
        for log in self._asked:
            self._begin(log)
        try:
            while True:
                while self._waiting:
                    heard = self._waiting.popleft()
                    self._unheard -= _weight(heard)
                    if self._unheard < MOST_WAITING:
                        self._room.set()
                    yield heard
                self._wake.clear()
                await self._wake.wait()
        finally:
            self._listening = False
            self._waiting.clear()
            self._unheard = 0
            self._room.set()

    def listen_nowait(self, listener: NowaitListener | None) -> None:
        """From now on `publish_nowait` asks this listener first."""
        self._nowait_listener = listener

    def follow(self, log: str) -> None:
        """Takes effect within the call: what is appended after it is heard."""
        if log in self._asked:
            return
        self._asked[log] = None
        if self._listening:
            self._begin(log)

    def unfollow(self, log: str) -> None:
        """Takes effect within the call: what waits for the listener of this log is dropped."""
        if self._asked.pop(log, log) is None:
            parts = (part_of(heard, lambda name: name != log) for heard in self._waiting)
            others = [part for part in parts if part is not None]
            self._waiting = deque(others)
            self._unheard = sum(map(_weight, others))
            # Nothing may be left for the listener to hear, and it is what wakes publishers otherwise.
            if self._unheard < MOST_WAITING:
                self._room.set()

    def _begin(self, name: str) -> None:
        log = self._trimmed(name)
        self._queue(Followed(name, log.head, log.tail()))

    def _trimmed(self, name: str) -> MemoryLog:
        log = self._log(name)
        log.trim(self.now_ms())
        return log

    def _queue_entries(self, heard: Sequence[Entry]) -> None:
        if heard:
            self._queue(Heard(tuple(heard)))

    def _queue(self, heard: Hearing) -> None:
        self._waiting.append(heard)
        self._unheard += _weight(heard)
        self._wake.set()

    async def _wait_for_room(self) -> None:
        while self._unheard >= MOST_WAITING:
            self._room.clear()
            await self._room.wait()

    # Reading

    async def read(self, after: Mapping[str, int], *, limit: int) -> Page:
        """Up to `limit` entries after these numbers."""
        logs = {name: self._trimmed(name) for name in after}
        found = [logs[name].after(number, limit + 1) for name, number in after.items()]
        filled = [entries for entries in found if entries]
        # Most often one log has all: the broadcasts', which is long.
        merging = filled[0] if len(filled) == 1 else merge(*filled, key=_order)
        entries = tuple(islice(merging, limit))
        heads = {name: log.head for name, log in logs.items()}
        return Page(entries, heads, more=sum(map(len, found)) > limit)

    async def since(self, logs: Iterable[str], at_ms: int) -> Mapping[str, int]:
        """For each log the number before its first entry at or after a time."""
        return {name: self._trimmed(name).before(at_ms) for name in logs}

    async def first_change(self, log: str, user: str, after: int) -> Change | None:
        """The first change of a person's switches in a log after a number."""
        return self._trimmed(log).first_change(user, after)

    # Notices and tickets

    async def notify(self, topic: NoticeTopic, text: str) -> None:
        """Tells the listener of this topic, within the call."""
        self._tell(topic, text)

    def hear_notices(self, topic: NoticeTopic, listener: NoticeListener) -> None:
        """Has the notices of a topic told to this listener."""
        self._notice_listeners[topic] = listener

    async def keep_ticket(self, name: str, ticket: Ticket, life: TicketLife) -> None:
        """Keeps a ticket in memory alone: a restart forgets it."""
        self._tickets.keep(name, ticket, life, self.now_ms())

    async def open_ticket(self, name: str, *, resumes: bool) -> OpenedTicket | TicketRefusal:
        """Opens a ticket once more."""
        found = self._tickets.open(name, self.now_ms(), resumes=resumes)
        if isinstance(found, OpenedTicket):
            self._tell(NoticeTopic.TICKET, f"{name} {found.number}")
        return found

    async def ticket_openings(self, names: Sequence[str]) -> Mapping[str, int]:
        """How often each of these tickets was opened."""
        return self._tickets.openings(names)

    def _tell(self, topic: NoticeTopic, text: str) -> None:
        listener = self._notice_listeners.get(topic)
        if self._listening and listener is not None:
            listener(text)

    # Presence

    async def tell_presence(
        self,
        place: str,
        stays: Mapping[str, Stay | None],
        *,
        anew: bool = False,
        lease_ms: int = PRESENCE_LEASE_MS,
    ) -> bool:
        """Says who is at a place."""
        return self._places.tell(place, stays, self.now_ms(), lease_ms, anew=anew)

    async def end_presence(self, place: str) -> None:
        """Ends the lease of a place now."""
        self._places.end(place, self.now_ms())

    async def presence(self, users: Sequence[str]) -> Mapping[str, Mapping[str, Stay]]:
        """Where people are."""
        return self._places.presence(users, self.now_ms())

    async def missed(self, after: Mapping[str, Mark], *, before_ms: int, away_ms: int, limit: int) -> Search:
        """Events of whose people somebody was away; others run between logs with many recipients."""
        found: list[Missed] = []
        marks: dict[str, Mark] = {}
        left, more = limit, False
        pause_at = limit - _YIELD_RECIPIENTS
        for at, (name, mark) in enumerate(after.items()):
            if left <= pause_at:
                pause_at = left - _YIELD_RECIPIENTS
                await asyncio.sleep(0)
            log = self._trimmed(name)
            head = log.head
            number = mark.number if mark.epoch in ("", head.epoch) else head.base
            number = min(max(number, head.first - 1), head.number)
            share = max(1, left // (len(after) - at))
            for entry in log.after(number, share):
                if entry.at_ms > before_ms or share <= 0:
                    more = more or entry.at_ms <= before_ms
                    break
                number = entry.number
                users = (entry.publication.users or ()) if entry.publication.switchable else ()
                share, left = share - 1 - len(users), left - 1 - len(users)
                if away := self._away(users, entry.at_ms, away_ms):
                    found.append(Missed(entry, away))
            else:
                more = more or number < head.number
            marks[name] = Mark(head.epoch, number)
        return Search(tuple(found), marks, more)

    def _away(self, users: Sequence[str], at_ms: int, away_ms: int) -> tuple[str, ...]:
        """Who had no stream from a time on."""
        stays = self._places.presence(users, self.now_ms()) if users else {}
        return tuple(
            user
            for user in users
            if not any(stay.was_there(at_ms, away_ms) for stay in stays.get(user, {}).values())
        )

    # Reports

    async def report(self, node: str, text: bytes, *, lease_ms: int) -> None:
        """Keeps what a node says about itself."""
        self._reports[node] = text, self.now_ms() + lease_ms

    async def end_report(self, node: str) -> None:
        """Forgets what a node has said about itself."""
        self._reports.pop(node, None)

    async def reports(self) -> Mapping[str, bytes]:
        """What the nodes say about themselves."""
        now_ms = self.now_ms()
        self._reports = {node: told for node, told in self._reports.items() if told[1] > now_ms}
        return {node: text for node, (text, _) in self._reports.items()}

    # Duties

    async def duty(
        self, name: str, node: str, done: Mapping[str, Mark], *, lease_ms: int
    ) -> Mapping[str, Mark] | None:
        """Takes a duty, which no other node can have; a restart forgets how far it had got."""
        marks = self._duties.setdefault(name, {})
        marks.update(done)
        return dict(marks)

    # Kafka's partitions

    async def claim(self, topic: str, partition: int, owner: str) -> None:
        """Accepts a partition's sources from `owner` alone from now on."""
        self._partitions.claim(topic, partition, owner)
        if self._writer is not None:
            self._writer.add(set_owner(topic, partition, owner))

    async def identity(self, suggested: str) -> str:
        """The word by which this backplane is known, `suggested` where it has none."""
        if not self._identity and suggested:
            self._identity = suggested
            if self._writer is not None:
                self._writer.add(set_identity(suggested))
                # Offsets are committed under this word: a start after a kill must know it.
                await self._writer.flush()
        return self._identity

    async def claimed(self, topic: str, partition: int) -> bool:
        """Whether anybody has ever claimed a partition."""
        return self._partitions.is_claimed(topic, partition)

    async def first_start(self, topic: str, offsets: Mapping[int, int]) -> Mapping[int, int]:
        """Where reading began when a topic was first started, by partition."""
        first = self._partitions.first_start(topic, offsets)
        if self._writer is not None:
            self._writer.add(set_start(topic, first))
            # Guarantee 1: before anything is read. Otherwise a start after a kill would begin at the topic's
            # end of that time, and skip what came in between.
            await self._writer.flush()
        return first

    async def fence(self, topic: str, partition: int) -> tuple[int, int] | None:
        """The highest offset that any log has of this partition, with its record's timestamp in ms."""
        return self._partitions.fence(topic, partition)

    async def reset_fence(self, topic: str, partition: int) -> None:
        """Forgets the fence of a partition."""
        self._partitions.reset_fence(topic, partition)
        if self._writer is not None:
            self._writer.add(delete_fences(topic, partition))

    async def use(self, name: str, *, window_ms: int) -> Uses:
        """Counts one use of `name` in its window."""
        return self._windows.use(name, window_ms=window_ms)

    async def spend(self, name: str, ms: int, *, most_ms: int | None) -> Spent:
        """Takes from an allowance."""
        return self._allowances.spend(name, ms, most_ms=most_ms)

    # This machine's clock: asked three times for an event, and so without a call in between.
    now_ms = staticmethod(machine_ms)

    @property
    def hears(self) -> bool:
        """Always."""
        return True

    @property
    def available(self) -> bool:
        """Always: it is in this process."""
        return True


def _weight(heard: Hearing) -> int:
    return len(heard.entries) if isinstance(heard, Heard) else 1


def _order(entry: Entry) -> int:
    return entry.order
