"""An event becomes a draft, by one rule whichever way it came in; and the formats of Kafka's records.

Called by the intake from Kafka for every record, and by the one over HTTP. A format is a `Decode`;
`PushsseFormat` is the one where a record's value is the event's own JSON.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from pushsse import event
from pushsse.backplane import Draft, Receipt, Source
from pushsse.errors import InvalidInput, Problem
from pushsse.event import Event
from pushsse.kafka.client import Record
from pushsse.metrics import Metrics


class Dispatcher(Protocol):
    """Takes drafts on; both intakes end in it."""

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
    """Who keeps the catalogue of types."""

    def admits(self, name: str) -> bool:
        """Whether events of this type are taken."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PushsseFormat:
    """The value is the event's JSON. Unknown members are ignored and counted; `types` may refuse a type."""

    metrics: Metrics
    max_age_s: int
    types: AdmitsTypes

    def __call__(self, record: Record, owner: str) -> Draft | None:
        value = record.value
        if value is None:
            return None
        found = event.decode(value, ignored=self._ignored)
        if not self.types.admits(found.type):
            raise InvalidInput(Problem("$.type", f"{found.type!r} isn't in the catalogue"))
        topic, partition, offset, timestamp_ms = (
            record.topic,
            record.partition,
            record.offset,
            record.timestamp,
        )
        publication = event.publication(
            found,
            event_id=found.id or f"{topic}-{partition}-{offset}",
            at=_time(timestamp_ms),
            max_age_s=self.max_age_s,
        )
        return Draft(publication, Source(topic, partition, offset, timestamp_ms, owner), own_name(found))

    def _ignored(self, count: int) -> None:
        self.metrics.unknown_members += count


def own_name(given: Event) -> str:
    """What an event is remembered by for 10 minutes, so that its repeat is left out; "" for not at all.

    Only a producer's own id can come again. A record without one is known by its offset, which is the fence's
    business; an id that was made for an HTTP call is never made twice.
    """
    return f"{given.type}|{given.id}" if given.id else ""


def _time(timestamp_ms: int) -> datetime:
    """A record's time. Producers set it as they like, so it may be none (-1), or no date at all."""
    if timestamp_ms < 0:
        return datetime.now(UTC)
    try:
        return datetime.fromtimestamp(timestamp_ms / 1000, UTC)
    except (OverflowError, ValueError, OSError):
        raise InvalidInput(Problem("$.ts", f"the record's timestamp {timestamp_ms} isn't in ms")) from None
