"""An event becomes a draft, by one rule whichever way it came in; from Kafka, in the format of its topic.

`kafka.consumer` calls `EventHandler` with the topic's records, and the intake over HTTP calls `Drafter`; both
hand drafts to the dispatcher. A format is a `Decode`; `PushsseFormat` is the one where a record's value is
the event's own JSON.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from pushsse import event
from pushsse.backplane import Draft, Receipt, Source
from pushsse.errors import InvalidInput, Violation
from pushsse.event import Event
from pushsse.kafka import Record, TopicPartition
from pushsse.kafka.dead_letters import Refused
from pushsse.metrics import Metrics


class Dispatches(Protocol):
    """Where both intakes end: the dispatcher."""

    async def dispatch(self, drafts: Sequence[Draft]) -> Receipt:
        """Returns once the log has the drafts. Raises Unavailable (try the same drafts again), NotOwner."""
        ...


class Decode(Protocol):
    """A format: reads one record of the partition that is claimed under `owner`.

    Pure and quick: it is called for thousands of records in a row. The draft's source is the record.
    """

    def __call__(self, record: Record, owner: str) -> Draft | None:
        """None skips the record. Raises InvalidInput (NotJson is one) where it can't be used."""
        ...


class AdmitsTypes(Protocol):
    """The catalogue, as far as it says which types of events are accepted."""

    def admits(self, name: str) -> bool:
        """Whether events of this type are accepted."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Drafter:
    """Makes events drafts, by one rule for every intake. One without `ttl_s` expires after `max_age_s`."""

    types: AdmitsTypes
    max_age_s: int

    def draft(self, given: Event, *, event_id: str, at: datetime, source: Source | None = None) -> Draft:
        """`event_id` is its own id, else a made one; `at` is its time where it has none.

        Raises InvalidInput for a type that isn't admitted, a frame over 48 KiB and a time out of range.
        """
        if not self.types.admits(given.type):
            raise InvalidInput(Violation("$.type", f"{given.type!r} isn't in the catalogue"))
        publication = event.publication(given, event_id=event_id, at=at, max_age_s=self.max_age_s)
        # The log remembers this for 10 minutes and leaves repeats out. Only a producer's own id can come
        # again: a record without one is known by its offset, which the fence looks at, and an id made for an
        # HTTP call is never made twice.
        once = f"{given.type}|{given.id}" if given.id else ""
        return Draft(publication, source, once)


@dataclass(frozen=True, slots=True)
class EventHandler:
    """Events from Kafka. Dispatches a batch, of all partitions together: the database is asked once."""

    decode: Decode
    dispatcher: Dispatches

    async def apply(self, drafts: Sequence[Draft]) -> Sequence[Refused]:
        """Returns once the log has them; none is refused. Raises Unavailable, NotOwner."""
        if drafts:
            # Guarantee 1: awaited, not started as a task. The consumer may commit once this has returned.
            await self.dispatcher.dispatch(drafts)
        return ()

    def unfinished(self) -> Mapping[TopicPartition, int]:
        """Nothing: what was dispatched is in the log, all of it."""
        return {}

    def forget(self, partitions: Collection[TopicPartition]) -> None:
        """Nothing is kept that would have to be forgotten."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PushsseFormat:
    """The value is the event's JSON. Unknown members are ignored and counted."""

    metrics: Metrics
    drafter: Drafter

    def __call__(self, record: Record, owner: str) -> Draft | None:
        value = record.value
        if value is None:
            return None
        found = event.decode(value, ignored=self._ignored)
        topic, partition, offset, timestamp_ms = (
            record.topic,
            record.partition,
            record.offset,
            record.timestamp,
        )
        return self.drafter.draft(
            found,
            event_id=found.id or f"{topic}-{partition}-{offset}",
            at=_time(timestamp_ms),
            source=Source(topic, partition, offset, timestamp_ms, owner),
        )

    def _ignored(self, count: int) -> None:
        self.metrics.unknown_members += count


def _time(timestamp_ms: int) -> datetime:
    """A record's time. Producers set it as they like, so it may be none (-1), or no date at all."""
    if timestamp_ms < 0:
        return datetime.now(UTC)
    try:
        return datetime.fromtimestamp(timestamp_ms / 1000, UTC)
    except (OverflowError, ValueError, OSError):
        raise InvalidInput(Violation("$.ts", f"the record's timestamp {timestamp_ms} isn't in ms")) from None
