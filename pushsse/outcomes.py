"""What became of events: written, switched off, expired, offline; for each person, to a topic of Kafka.

Dispatcher and hub note outcomes as they come about, `offline` those of people who weren't there; `Outcomes`,
a service, makes records of them and sends them, keyed by person. Of broadcasts there are totals, once a
second. Deliberate: nothing on the path waits for it. While Kafka is away, the newest outcomes are kept, as
far as 32 MiB hold them, and the others are counted as lost. A record may come twice.
"""

import asyncio
import logging
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import NamedTuple

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from pushsse.errors import KafkaUnavailable
from pushsse.event import Publication
from pushsse.kafka.producer import Outgoing, Producer, RecordRefused
from pushsse.retry import Backoff, Outage

logger = logging.getLogger(__name__)
WRITTEN, SWITCHED_OFF, EXPIRED, OFFLINE = "written", "switched_off", "expired", "offline"
RATED = "rated"
_FLUSH_S = 0.1
_TOTALS_S = 1.0
_LAST_S = 1.0
# What has been noted and isn't a record yet: that of a tenth of a second.
MOST_NOTED = 200_000
MOST_BYTES = 32 * 1024 * 1024
_MOST_TOTALS = 10_000
# Records that are made in one turn of the event loop, some 2 ms, and that are sent together.
_AT_ONCE = 500
_SENT_AT_ONCE = 5_000
_SHARES = 10_000
_json = msgspec.json.Encoder()


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


class Noted(NamedTuple):
    """An outcome that is no record yet."""

    publication: Publication
    user: str
    outcome: str
    at_ms: int


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
        self._noted: list[Noted] = []
        self._totals: dict[int, _Total] = {}
        self._waiting: deque[Outgoing] = deque()
        self._waiting_bytes = 0
        self.sent = 0
        self.lost = 0

    # Called on the path: each costs well under a microsecond.

    def note(self, publication: Publication, user: str, outcome: str) -> None:
        """Notes what became of a publication for one person; of one that isn't a person's event, nothing."""
        if not publication.switchable:
            return
        if len(self._noted) < MOST_NOTED:
            self._noted.append(Noted(publication, user, outcome, self._now_ms()))
        else:
            self._lose(1)

    def note_all(self, publication: Publication, users: Iterable[str], outcome: str) -> None:
        """The same for several people."""
        for user in users:
            self.note(publication, user, outcome)

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

    def reached(self, publication: Publication, user: str, outcome: str) -> None:
        """What became of a publication for one person who has streams, be it a broadcast or not."""
        if publication.users is None:
            self.count(publication, outcome)
        else:
            self.note(publication, user, outcome)

    # Called by calls

    def acked(self, user: str, events: Iterable[str], state: str) -> None:
        """A person has received, read or clicked events."""
        at = datetime.now(UTC)
        for name in events:
            if self._is_chosen(name):
                self._add(user.encode(), Outcome(state, self._node, at, event=name, user=user))

    def rated(self, user: str, question: str, rating: str, comment: str) -> None:
        """A person has rated an answer."""
        at = datetime.now(UTC)
        record = Outcome(RATED, self._node, at, user=user, question=question, rating=rating, comment=comment)
        self._add(user.encode(), record)

    # The service

    async def run(self) -> None:
        """Makes records and sends them, for ever; at its end what there is, for a second."""
        try:
            async with asyncio.TaskGroup() as tasks:
                # Beside each other: a Kafka that doesn't answer may not keep publications in memory, which
                # are larger than their records.
                tasks.create_task(self._make_all(), name="records of outcomes")
                tasks.create_task(self._send_all(), name="outcomes")
        finally:
            self._take_totals()
            await self._make_records()
            try:
                async with asyncio.timeout(_LAST_S):
                    await self._send()
            except (KafkaUnavailable, TimeoutError) as error:
                logger.warning(
                    "what became of events: %d records are lost at the end: %s",
                    len(self._waiting),
                    str(error) or "no answer in time",
                )

    async def _make_all(self) -> None:
        loop = asyncio.get_running_loop()
        totals_at = 0.0
        while True:
            await asyncio.sleep(_FLUSH_S)
            if loop.time() >= totals_at:
                self._take_totals()
                totals_at = loop.time() + _TOTALS_S
            await self._make_records()

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

    async def send(self, noted: Sequence[Noted]) -> None:
        """Sends these outcomes, and returns when Kafka has them. Raises KafkaUnavailable."""
        records: list[Outgoing] = []
        for start in range(0, len(noted), _AT_ONCE):
            records += self._records(noted[start : start + _AT_ONCE])
            await asyncio.sleep(0)
        for start in range(0, len(records), _SENT_AT_ONCE):
            await self._send_each(records[start : start + _SENT_AT_ONCE])

    async def _make_records(self) -> None:
        noted, self._noted = self._noted, []
        for start in range(0, len(noted), _AT_ONCE):
            for record in self._records(noted[start : start + _AT_ONCE]):
                self._keep(record)
            await asyncio.sleep(0)
        lost = 0
        while self._waiting_bytes > MOST_BYTES:
            self._waiting_bytes -= _size(self._waiting.popleft())
            lost += 1
        self._lose(lost)

    def _lose(self, count: int) -> None:
        if count and not self.lost:
            logger.warning("what became of events: more than can be kept, some records are lost")
        self.lost += count

    async def _send(self) -> None:
        while self._waiting:
            records = list(islice(self._waiting, _SENT_AT_ONCE))
            await self._send_each(records)
            # Some may have been lost meanwhile, from the same end.
            for record in records:
                if self._waiting and self._waiting[0] is record:
                    self._waiting_bytes -= _size(self._waiting.popleft())

    async def _send_each(self, records: Sequence[Outgoing]) -> None:
        refused: Mapping[int, RecordRefused] = {}
        try:
            await self._producer.send_packed(self._topic, records)
        except RecordRefused:
            # One by one, since one that the topic never takes would hold the others for ever.
            refused = await self._producer.send_each(self._topic, records)
            for error in refused.values():
                logger.warning("a record of what became of an event is lost: %s", error)
                break
        self.lost += len(refused)
        self.sent += len(records) - len(refused)

    def _records(self, noted: Iterable[Noted]) -> list[Outgoing]:
        made = []
        for publication, user, outcome, at_ms in noted:
            name = publication.event_id
            if not self._is_chosen(name):
                continue
            data: Raw | UnsetType = UNSET
            if outcome == OFFLINE:
                data = Raw(publication.data)
            made.append(
                Outgoing(user.encode(), self._record(name, publication, outcome, at_ms, user=user, data=data))
            )
        return made

    def _take_totals(self) -> None:
        totals, self._totals = self._totals, {}
        now_ms = self._now_ms()
        for total in totals.values():
            name = total.publication.event_id
            for outcome, count in total.counts.items() if self._is_chosen(name) else ():
                record = self._record(name, total.publication, outcome, now_ms, count=count)
                self._keep(Outgoing(None, record))

    def _add(self, key: bytes, outcome: Outcome) -> None:
        self._keep(Outgoing(key, _json.encode(outcome)))

    def _keep(self, record: Outgoing) -> None:
        self._waiting.append(record)
        self._waiting_bytes += _size(record)

    def _record(
        self,
        name: str,
        publication: Publication,
        outcome: str,
        at_ms: int,
        *,
        user: str = "",
        count: int = 0,
        data: Raw | UnsetType = UNSET,
    ) -> bytes:
        return _json.encode(
            Outcome(
                outcome,
                self._node,
                datetime.fromtimestamp(at_ms / 1000, UTC),
                event=name,
                type=publication.name,
                user=user,
                count=count,
                campaign=publication.campaign,
                traceparent=publication.trace,
                data=data,
            )
        )

    def _is_chosen(self, name: str) -> bool:
        return self._limit >= _SHARES or zlib.crc32(name.encode()) % _SHARES < self._limit


def _size(record: Outgoing) -> int:
    return len(record.key or b"") + len(record.value or b"") + 200
