"""The dead-letter topic: records that can't be used, with their bytes as they were and the reason.

Called by `consumer`, which waits for it before it commits. At least once: after a failure a letter may be
there twice. A record that the topic refuses is written in smaller and smaller forms, down to its headers.
"""

import logging
from collections.abc import Sequence
from typing import NamedTuple

from pushsse.kafka import Record
from pushsse.kafka.producer import Outgoing, Producer, RecordRefused
from pushsse.kafka.topics import Topics
from pushsse.metrics import Metrics

logger = logging.getLogger(__name__)
CUT_BYTES = 64 * 1024
SMALL_BYTES = 4 * 1024
MAX_LETTER_BYTES = 960 * 1024
_MAX_ERROR_BYTES = 2048
_SMALL_ERROR_BYTES = 200
_MAX_HEADER_BYTES = 16 * 1024


class Refused(NamedTuple):
    """A record that can't be used, and why: `at` is safe to log, `error` may quote the record."""

    record: Record
    at: str
    error: str


class DeadLetters:
    """Writes dead letters to the topic that `topics` names for theirs.

    A record that the topic takes in no form is logged with its place. With `skip_refused` it is passed over
    then, without it blocks its partition until the topic takes it.
    """

    def __init__(
        self, producer: Producer, *, topics: Topics, metrics: Metrics, skip_refused: bool = True
    ) -> None:
        self.topics = topics
        self._producer = producer
        self._skip_refused = skip_refused
        self._metrics = metrics

    async def write(self, letters: Sequence[Refused]) -> Sequence[Refused]:
        """Returns when they are acknowledged or passed over; those that it returns have to wait.

        All of them are of one partition. Raises KafkaUnavailable.
        """
        topic = self.topics.dead_letters_of(letters[0].record.topic)
        not_taken = await self._producer.send_each(topic, [letter(refused) for refused in letters])
        return [letters[at] for at in not_taken if not await self._write_cut(letters[at], topic)]

    async def _write_cut(self, refused: Refused, topic: str) -> bool:
        """Writes the largest form that the topic takes; False if it has to wait. Raises KafkaUnavailable."""
        reason = RecordRefused()
        for form in (cut(refused, CUT_BYTES), cut(refused, SMALL_BYTES), cut(refused, 0)):
            try:
                await self._producer.send(topic, [form])
            except RecordRefused as error:
                reason = error
            else:
                return True
        self._metrics.dead_letters_refused += 1
        logger.error(
            "%s can't be used, and %s, even without its value: %s. Look at cleanup.policy and"
            " max.message.bytes of that topic; the record itself is still at its offset",
            place_of(refused.record),
            reason,
            "it is skipped" if self._skip_refused else "its partition waits",
            extra={"event": place_of(refused.record)},
        )
        return self._skip_refused


def letter(refused: Refused) -> Outgoing:
    """The record as it was, or the first 64 KiB of its value where it is too large for most topics."""
    record = refused.record
    if len(record.key or b"") + len(record.value or b"") + _MAX_HEADER_BYTES > MAX_LETTER_BYTES:
        return cut(refused, CUT_BYTES)
    headers = _headers(record)
    return Outgoing(
        _key(record), record.value, (*headers, *_own(refused, cut=len(headers) < len(record.headers)))
    )


def cut(refused: Refused, most: int) -> Outgoing:
    """The first `most` bytes of a record's value, with our headers alone; 0: no value at all."""
    record = refused.record
    value = record.value[:most] if record.value is not None else None
    key = _key(record)
    if len(key) > max(most // 4, _SMALL_ERROR_BYTES):
        key = place_of(record).encode()
    longest = _MAX_ERROR_BYTES if most > SMALL_BYTES else _SMALL_ERROR_BYTES
    # An empty value, not none: that would delete in a compacted topic.
    return Outgoing(key, value, _own(refused, cut=True, error_bytes=longest))


def place_of(record: Record) -> str:
    """Where a record is: TOPIC-PARTITION-OFFSET."""
    return f"{record.topic}-{record.partition}-{record.offset}"


def _key(record: Record) -> bytes:
    """The record's own; a compacted topic takes no record without one."""
    return record.key if record.key is not None else place_of(record).encode()


def _own(
    refused: Refused, *, cut: bool, error_bytes: int = _MAX_ERROR_BYTES
) -> tuple[tuple[str, bytes], ...]:
    """Our headers. They come last: readers take the last header of a name."""
    record = refused.record
    return (
        ("error", refused.error.encode("utf-8", "backslashreplace")[:error_bytes]),
        ("topic", record.topic.encode()),
        ("partition", str(record.partition).encode()),
        ("offset", str(record.offset).encode()),
        *((("truncated", b"true"),) if cut else ()),
    )


def _headers(record: Record) -> tuple[tuple[str, bytes], ...]:
    size = sum(len(name.encode()) + len(value or b"") for name, value in record.headers)
    return tuple(record.headers) if size <= _MAX_HEADER_BYTES else ()


def about_dead_letters(found: dict[str, str], topic: str) -> list[str]:
    """What of a dead-letter topic's settings costs dead letters, and what to do."""
    lines = []
    if (most := int(found.get("max.message.bytes") or MAX_LETTER_BYTES + 1)) <= MAX_LETTER_BYTES:
        lines.append(
            f"the topic {topic} takes records of {most} bytes (max.message.bytes): larger dead letters are"
            " cut; 1048588, Kafka's default, holds any"
        )
    if "compact" in found.get("cleanup.policy", ""):
        lines.append(
            f"the topic {topic} is compacted: of dead letters with the same key only the newest stays; set"
            " cleanup.policy=delete"
        )
    return lines
