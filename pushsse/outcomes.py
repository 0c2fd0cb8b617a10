"""What became of events: written, switched off, expired, offline; for each person, to a topic of Kafka.

Dispatcher and hub note outcomes as they come about, `presence` those of people who weren't there; `Outcomes`
makes records of some hundred notes at once, and, a service, sends them, keyed by person. Of broadcasts there
are totals, once a second. Deliberate: nothing on the path waits for Kafka. While it is away, the newest
outcomes are kept, as far as 32 MiB hold them, without their events, and the others are counted as lost. A
record may come twice.
"""

import asyncio
import logging
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType
from msgspec.structs import replace

from pushsse.errors import KafkaUnavailable
from pushsse.event import Publication
from pushsse.kafka.producer import Outgoing, Packed, Producer, RecordRefused
from pushsse.retry import Backoff, Outage, Seldom

logger = logging.getLogger(__name__)
WRITTEN, SWITCHED_OFF, EXPIRED, OFFLINE = "written", "switched_off", "expired", "offline"
RATED = "rated"
# To send takes a millisecond, however little there is.
_FLUSH_S = 0.5
_TOTALS_S = 1.0
_LAST_S = 1.0
MOST_BYTES = 32 * 1024 * 1024
# Of one partition, to Kafka at once: each batch has a price of its own.
OUTCOME_BATCH_BYTES = 256 * 1024
_MOST_TOTALS = 10_000
# Records that are made in one turn of the event loop, where somebody waits for them; as many are a portion.
_AT_ONCE = 500
_SENT_AT_ONCE = 10
# What a record takes beside its value.
_RECORD_BYTES = 250
_MOST_TYPES = 1_000
_SHARES = 10_000
_json = msgspec.json.Encoder()
# A publication, a person, what became of it, and when.
_Noted = tuple[Publication, str, str, int]


class Outcome(Struct, frozen=True, omit_defaults=True):
    """A record of the topic. One about a person is keyed by it; one with `count` is about a broadcast.

    `data` is what a stream would have got, for somebody who was offline. `question` and `rating` are those of
    an answer that was rated.
    """

    outcome: str
    node: str
    at: datetime
    event: str = ""
    type: str = ""
    user: str = ""
    count: int = 0
    campaign: str = ""
    traceparent: str = ""
    data: Raw | UnsetType = UNSET
    question: str = ""
    rating: str = ""
    comment: str = ""


@dataclass(slots=True)
class _Portion:
    """Records that came one after the other, and how much they take."""

    records: list[Packed]
    size: int


class _Total:
    """What became of a broadcast on this node since the last record about it."""

    __slots__ = ("counts", "publication")

    def __init__(self, publication: Publication) -> None:
        self.publication = publication
        self.counts: dict[str, int] = {}


class Outcomes:
    """Notes what becomes of people's events, and sends it.

    `share` of the events, chosen by their ids, are noted: of each all outcomes or none.
    """

    def __init__(
        self, producer: Producer, *, topic: str, node: str, now_ms: Callable[[], int], share: float = 1.0
    ) -> None:
        self._producer = producer
        self._topic = topic
        self._node = node
        self._now_ms = now_ms
        self._limit = round(share * _SHARES)
        self._totals: dict[int, _Total] = {}
        self._noted: list[_Noted] = []
        self._open: list[Packed] = []
        self._waiting: deque[_Portion] = deque()
        self._waiting_bytes = 0
        self._types: dict[str, bytes] = {}
        self._place = f',"node":{_json.encode(node).decode()},"at":'.encode()
        self._losing = Outage(f"the oldest records for {topic} are lost", logger, Backoff())
        self._refusing = Seldom(f"the topic {topic} doesn't take some records, which are lost", logger)
        self.sent = 0
        self.lost = 0

    # Called on the path: a note is a tuple there, and a record later. Who calls knows the time, `at_ms`.

    def note(self, publication: Publication, user: str, outcome: str, at_ms: int) -> None:
        """Notes what became of a publication for one person; of one that isn't a person's event, nothing."""
        if publication.switchable:
            noted = self._noted
            noted.append((publication, user, outcome, at_ms))
            if len(noted) >= _AT_ONCE:
                self._close()

    def note_all(self, publication: Publication, users: Iterable[str], outcome: str, at_ms: int) -> None:
        """The same for several people."""
        for user in users:
            self.note(publication, user, outcome, at_ms)

    def count(self, publication: Publication, outcome: str, count: int = 1) -> None:
        """Adds to what became of a broadcast."""
        if not publication.switchable or not count:
            return
        total = self._totals.get(id(publication))
        if total is None:
            if len(self._totals) >= _MOST_TOTALS:
                self.lost += 1
                return
            # It holds the publication, so that its id stays its own.
            total = self._totals[id(publication)] = _Total(publication)
        total.counts[outcome] = total.counts.get(outcome, 0) + count

    def reached(self, publication: Publication, user: str, outcome: str, at_ms: int) -> None:
        """What became of a publication for one person who has streams, be it a broadcast or not."""
        if publication.users is None:
            self.count(publication, outcome)
        else:
            self.note(publication, user, outcome, at_ms)

    # Called by calls

    def acked(self, user: str, events: Iterable[str], state: str) -> None:
        """A person has received, read or clicked events."""
        at, key = datetime.now(UTC), user.encode()
        for name in events:
            if self._is_chosen(name):
                outcome = Outcome(state, self._node, at, event=name, user=user)
                self._keep((key, _json.encode(outcome)))

    def rated(self, user: str, question: str, rating: str, comment: str) -> None:
        """A person has rated an answer."""
        at = datetime.now(UTC)
        record = Outcome(RATED, self._node, at, user=user, question=question, rating=rating, comment=comment)
        self._keep((user.encode(), _json.encode(record)))

    # The service

    async def run(self) -> None:
        """Sends records, for ever; at its end what there is, for a second."""
        try:
            async with asyncio.TaskGroup() as tasks:
                # Beside each other: totals hold publications, and a Kafka that doesn't answer may not keep
                # them in memory.
                tasks.create_task(self._total_all(), name="totals of outcomes")
                tasks.create_task(self._send_all(), name="outcomes")
        finally:
            self._take_totals()
            try:
                async with asyncio.timeout(_LAST_S):
                    await self._send()
            except (KafkaUnavailable, TimeoutError) as error:
                logger.warning(
                    "%d records for %s are lost, since this process ends: %s",
                    sum(len(portion.records) for portion in self._waiting),
                    self._topic,
                    str(error) or f"no answer within {_LAST_S:g} s",
                )

    async def _total_all(self) -> None:
        while True:
            await asyncio.sleep(_TOTALS_S)
            self._take_totals()
            self._make()

    async def _send_all(self) -> None:
        outage = Outage("what became of events can't be written", logger, Backoff())
        while True:
            await asyncio.sleep(_FLUSH_S)
            try:
                await self._send()
            except KafkaUnavailable as error:
                await asyncio.sleep(outage.failed(error))
            else:
                outage.over()

    async def send(self, noted: Sequence[tuple[Publication, str, str]], at_ms: int) -> None:
        """Sends outcomes: of which publication, for whom, which. Returns when Kafka has them.

        With `data` where somebody was offline. Raises KafkaUnavailable.
        """
        records: list[Packed] = []
        for start in range(0, len(noted), _AT_ONCE):
            records += self._made([(*each, at_ms) for each in noted[start : start + _AT_ONCE]])
            await asyncio.sleep(0)
        for start in range(0, len(records), _AT_ONCE * _SENT_AT_ONCE):
            await self._send_each(records[start : start + _AT_ONCE * _SENT_AT_ONCE])

    def _lose(self, count: int) -> None:
        if count:
            self._losing.failed(f"over {MOST_BYTES // 1024**2} MiB wait for Kafka, which takes too few")
        self.lost += count

    async def _send(self) -> None:
        self._close()
        while self._waiting:
            portions = [self._waiting[at] for at in range(min(_SENT_AT_ONCE, len(self._waiting)))]
            # A copy: the oldest may be lost meanwhile.
            await self._send_each([record for each in portions for record in each.records])
            for portion in portions:
                if self._waiting and self._waiting[0] is portion:
                    self._waiting_bytes -= self._waiting.popleft().size
        self._losing.over()

    async def _send_each(self, records: Sequence[Packed]) -> None:
        refused: Mapping[int, RecordRefused] = {}
        try:
            await self._producer.send_packed(self._topic, records)
        except RecordRefused:
            # One by one, since one that the topic never takes would hold the others for ever.
            refused = await self._producer.send_each(self._topic, [Outgoing(*each) for each in records])
            if refused:
                self._refusing.failed(
                    f"{len(refused)} at once: {next(iter(refused.values()))}."
                    " See its max.message.bytes and cleanup.policy"
                )
        self.lost += len(refused)
        self.sent += len(records) - len(refused)

    # Records are put together from bytes, as `Outcome` describes them: to encode one costs three times more.

    def _make(self) -> None:
        """Makes records of what was noted, which hold no event. One by one, on the path, they cost more."""
        if noted := self._noted:
            self._noted = []
            self._open += self._made(noted)

    def _made(self, noted: Iterable[_Noted]) -> list[Packed]:
        records: list[Packed] = []
        add, encode, join = records.append, _json.encode, b"".join
        types, whole = self._types, self._limit >= _SHARES
        # What the last record said, since the next one mostly says much of the same.
        last: Publication | None = None
        at, became = -1, ""
        begin = event = about = end = b""
        for publication, user, outcome, at_ms in noted:
            if at_ms != at or outcome != became:
                if outcome != became:
                    # Somebody who was offline is told more of it.
                    last = None
                at, became = at_ms, outcome
                begin = self._beginning(outcome, at_ms)
            if publication is not last:
                last = publication
                if is_chosen := whole or self._is_chosen(publication.event_id):
                    event = publication.event_id_json
                    about = types.get(publication.name) or self._about(publication.name)
                    end = _end(publication, outcome)
            if is_chosen:
                add((user.encode(), join((begin, event, about, encode(user), end))))
        return records

    def _beginning(self, outcome: str, at_ms: int) -> bytes:
        at = _json.encode(datetime.fromtimestamp(at_ms / 1000, UTC))
        return b'{"outcome":"%b"%b%b,"event":' % (outcome.encode(), self._place, at)

    def _about(self, name: str) -> bytes:
        if len(self._types) >= _MOST_TYPES:
            self._types.clear()
        about = self._types[name] = b',"type":"%b","user":' % name.encode()
        return about

    def _take_totals(self) -> None:
        totals, self._totals = self._totals, {}
        at = datetime.fromtimestamp(self._now_ms() / 1000, UTC)
        for total in totals.values():
            publication = total.publication
            if self._is_chosen(name := publication.event_id):
                about = Outcome("", self._node, at, event=name, type=publication.name)
                about = replace(about, campaign=publication.campaign, traceparent=publication.trace)
                for outcome, count in total.counts.items():
                    self._keep((None, _json.encode(replace(about, outcome=outcome, count=count))))

    def _keep(self, record: Packed) -> None:
        """Keeps a record until it is sent, after those of what was noted before."""
        self._make()
        self._open.append(record)
        if len(self._open) >= _AT_ONCE:
            self._close()

    def _close(self) -> None:
        """Lets what has come be sent, and loses the oldest records where they are too many."""
        self._make()
        if records := self._open:
            self._open = []
            self._waiting.append(_Portion(records, _size(records)))
            self._waiting_bytes += self._waiting[-1].size
        while self._waiting_bytes > MOST_BYTES:
            self._waiting_bytes -= self._lose_of(self._waiting[0], self._waiting_bytes - MOST_BYTES)

    def _lose_of(self, portion: _Portion, size: int) -> int:
        """Loses the oldest records of the oldest portion until they are so many bytes; how many they were."""
        count = lost = 0
        for record in portion.records:
            if lost >= size:
                break
            lost += _size([record])
            count += 1
        self._lose(count)
        self._waiting.popleft()
        if count < len(portion.records):
            # Another one: the one that is there may be on its way.
            self._waiting.appendleft(_Portion(portion.records[count:], portion.size - lost))
        return lost

    def _is_chosen(self, name: str) -> bool:
        return self._limit >= _SHARES or zlib.crc32(name.encode()) % _SHARES < self._limit


def _end(publication: Publication, outcome: str) -> bytes:
    if outcome != OFFLINE and not publication.campaign and not publication.trace:
        return b"}"
    end = b""
    if publication.campaign:
        end += b',"campaign":' + _json.encode(publication.campaign)
    if publication.trace:
        end += b',"traceparent":' + _json.encode(publication.trace)
    if outcome == OFFLINE:
        end += b',"data":' + publication.data
    return end + b"}"


def _size(records: Sequence[Packed]) -> int:
    return sum([len(value) for _, value in records]) + len(records) * _RECORD_BYTES
