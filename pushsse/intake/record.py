"""One Kafka record to one draft. Called by the intake for every record; what it refuses is a dead letter.

A format is a `Decode`; `PushsseFormat` is the one where the value is the event's own JSON.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple, Protocol

from pushsse import event
from pushsse.backplane import Draft, Source
from pushsse.errors import InvalidInput, Problem
from pushsse.kafka.client import Record
from pushsse.kafka.dead_letters import Refused
from pushsse.metrics import Metrics

# How long a run of records may hold the event loop.
_TURN_S = 0.005


class Decode(Protocol):
    """A format: reads one record, for the owner of its partition.

    Pure and quick: it is called for thousands of records in a row. The draft's source is the record.
    """

    def __call__(self, record: Record, owner: str) -> Draft | None:
        """None skips the record. Raises InvalidInput (NotJson is one) where it can't be used."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PushsseFormat:
    """The value is the event's JSON. Unknown members are ignored and counted; `admits` refuses types."""

    metrics: Metrics
    max_age_s: int
    admits: Callable[[str], bool]

    def __call__(self, record: Record, owner: str) -> Draft | None:
        value = record.value
        if value is None:
            return None
        found = event.decode(value, ignored=self._ignored)
        if not self.admits(found.type):
            raise InvalidInput(Problem("$.type", f"{found.type!r} isn't in the catalogue"))
        topic, partition, offset, timestamp_ms = (
            record.topic,
            record.partition,
            record.offset,
            record.timestamp,
        )
        own_id = found.id or ""
        publication = event.publication(
            found,
            event_id=own_id or f"{topic}-{partition}-{offset}",
            at=_time(timestamp_ms),
            max_age_s=self.max_age_s,
        )
        # Without an id of its own a record is known by its offset alone, and that is the fence's business.
        once = f"{found.type}|{own_id}" if own_id else ""
        return Draft(publication, Source(topic, partition, offset, timestamp_ms, owner), once)

    def _ignored(self, count: int) -> None:
        self.metrics.unknown_members += count


class Decoded(NamedTuple):
    """What became of a run of records of one partition, in order."""

    drafts: list[Draft]
    refused: list[Refused]


async def decode_all(decode: Decode, records: Sequence[Record], owner: str) -> Decoded:
    """Decodes a run of records; none can stop the others. Gives way to others in between."""
    drafts: list[Draft] = []
    refused: list[Refused] = []
    loop = asyncio.get_running_loop()
    until = loop.time() + _TURN_S
    for record in records:
        if loop.time() > until:
            await asyncio.sleep(0)
            until = loop.time() + _TURN_S
        try:
            draft = decode(record, owner)
        except InvalidInput as error:
            refused.append(Refused(record, error.problems[0].at, str(error)))
        except Exception as error:  # noqa: BLE001 - a record that trips a bug must not stop its partition for ever
            refused.append(Refused(record, "$", f"the decoder failed: {type(error).__name__}: {error}"))
        else:
            if draft is not None:
                drafts.append(draft)
    return Decoded(drafts, refused)


def _time(timestamp_ms: int) -> datetime:
    """A record's time. Producers set it as they like, so it may be none (-1), or no date at all."""
    if timestamp_ms < 0:
        return datetime.now(UTC)
    try:
        return datetime.fromtimestamp(timestamp_ms / 1000, UTC)
    except (OverflowError, ValueError, OSError):
        raise InvalidInput(Problem("$.ts", f"the record's timestamp {timestamp_ms} isn't in ms")) from None
