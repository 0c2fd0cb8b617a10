"""The dead-letter topic: records that can't be used, with their bytes as they were and the reason.

Called by the Kafka intake. At least once: a failure half-way may write a letter twice, never not at all.
"""

from collections.abc import Sequence

from pushsse.intake.decode import Record, Refused
from pushsse.intake.producer import Outgoing, Producer, RecordTooLarge

KEPT_BYTES = 64 * 1024
MAX_LETTER_BYTES = 960 * 1024
_MAX_ERROR_BYTES = 2048
_MAX_HEADER_BYTES = 16 * 1024


class DeadLetters:
    """Writes dead letters to their topic."""

    def __init__(self, producer: Producer, *, topic: str) -> None:
        self.topic = topic
        self._producer = producer

    async def write(self, letters: Sequence[Refused]) -> None:
        """Returns when all are acknowledged. Raises KafkaUnavailable."""
        try:
            await self._producer.send(self.topic, [letter(refused) for refused in letters])
        except RecordTooLarge:
            # The topic takes less than usual: all of this run are cut, since Kafka doesn't say which it was.
            await self._producer.send(self.topic, [letter(refused, most=KEPT_BYTES) for refused in letters])


def letter(refused: Refused, *, most: int = MAX_LETTER_BYTES) -> Outgoing:
    """The record as it was, or the first 64 KiB of its value where it has more than `most` bytes in all."""
    record = refused.record
    own = (
        ("error", _text(refused.error)),
        ("topic", record.topic.encode()),
        ("partition", str(record.partition).encode()),
        ("offset", str(record.offset).encode()),
    )
    headers = _headers(record)
    cut = len(headers) < len(record.headers)
    if len(record.key or b"") + len(record.value or b"") + _MAX_HEADER_BYTES > most:
        cut = True
        headers = ()
        key, value = _first(record.key, KEPT_BYTES // 4), _first(record.value, KEPT_BYTES)
    else:
        key, value = record.key, record.value
    # Ours come last: readers take the last header of a name.
    return Outgoing(key, value, (*headers, *own, *((("truncated", b"true"),) if cut else ())))


def _headers(record: Record) -> tuple[tuple[str, bytes], ...]:
    size = sum(len(name.encode()) + len(value or b"") for name, value in record.headers)
    return tuple(record.headers) if size <= _MAX_HEADER_BYTES else ()


def _first(part: bytes | None, most: int) -> bytes | None:
    return part if part is None else part[:most]


def _text(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")[:_MAX_ERROR_BYTES]
