"""Dead letters: records that can't be used, written with their bytes as they were and the reason, and sent
again.

`consumer` waits for `DeadLetters` before it commits. At least once: after a failure a letter may be there
twice. A record that the topic refuses is written in smaller and smaller forms, down to its headers.

`pushsse dead` looks through a `DeadLetterTopic`, and sends its letters again to where they come from. What
was sent is marked in a consumer group of its own, whose committed offset is the first letter that wasn't, and
whose metadata has the ranges after it that were. At least once, too: the mark follows the letters, so a
process that is killed in between sends up to RESEND_BATCH of them a second time.
"""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError
from aiokafka.structs import OffsetAndMetadata

from pushsse.kafka import Connection, Record, TopicReader, Topics, start, stop
from pushsse.kafka.producer import Outgoing, Producer, RecordRefused
from pushsse.metrics import Metrics

logger = logging.getLogger(__name__)
CUT_BYTES = 64 * 1024
SMALL_BYTES = 4 * 1024
MAX_LETTER_BYTES = 960 * 1024
_MAX_ERROR_BYTES = 2048
_SMALL_ERROR_BYTES = 200
_MAX_HEADER_BYTES = 16 * 1024
RESEND_BATCH = 100
_OURS = frozenset({"error", "topic", "partition", "offset", "truncated"})
_MARK = "pushsse-sent="
# Kafka takes metadata of 4,096 bytes (offset.metadata.max.bytes).
_MAX_RANGES = 150
_RANGE = re.compile(r"(\d{1,18})-(\d{1,18})")
_ASK_S = 10.0


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


class DeadLetter(NamedTuple):
    """A record of a dead-letter topic; `topic` is "" where no consumer of ours has written it."""

    record: Record
    topic: str
    partition: int
    offset: int
    error: str
    truncated: bool

    @property
    def place(self) -> str:
        """Where the record was that couldn't be used."""
        return f"{self.topic}-{self.partition}-{self.offset}" if self.topic else "no dead letter of pushsse"

    @property
    def can_be_sent(self) -> bool:
        """Whether it is the whole record."""
        return bool(self.topic) and not self.truncated

    def again(self, partitions: int) -> Outgoing:
        """The record as it was, for the partition that it was in, if there is such a one."""
        headers = list(self.record.headers)
        while headers and headers[-1][0] in _OURS:
            headers.pop()
        # One without a key was given its place for one, which a compacted topic wants.
        key = None if self.record.key == self.place.encode() else self.record.key
        partition = self.partition if self.partition < partitions else None
        return Outgoing(key, self.record.value, tuple(headers), partition)


def dead_letter(record: Record) -> DeadLetter:
    """What a dead letter says of itself. The last header of a name counts, as it was written."""
    found = {name: content or b"" for name, content in record.headers}
    partition, offset = (found.get(name, b"").decode("latin-1") for name in ("partition", "offset"))
    topic = found.get("topic", b"").decode("utf-8", "replace")
    error = found.get("error", b"").decode("utf-8", "replace")
    if not (partition.isdecimal() and offset.isdecimal() and "error" in found):
        return DeadLetter(record, "", 0, 0, error, truncated=False)
    return DeadLetter(record, topic, int(partition), int(offset), error, truncated="truncated" in found)


@dataclass(slots=True)
class Sent:
    """The letters of one partition that were sent: all below `below`, and some after it."""

    below: int = 0
    ranges: list[tuple[int, int]] = field(default_factory=list)

    def __contains__(self, offset: int) -> bool:
        return offset < self.below or any(first <= offset <= last for first, last in self.ranges)

    def add(self, offset: int) -> None:
        """One more. Raises OSError where the gaps between those sent are too many to remember."""
        merged: list[tuple[int, int]] = []
        for first, last in sorted([*self.ranges, (offset, offset)]):
            if merged and first <= merged[-1][1] + 1:
                merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
            else:
                merged.append((first, last))
        if len(merged) > _MAX_RANGES:
            raise OSError(
                f"more than {_MAX_RANGES} gaps between the letters sent: send those in between first"
            )
        self.ranges = merged

    def begin(self, first: int) -> None:
        """Moves up to the first letter that wasn't sent; the topic holds none before `first`."""
        self.below = max(self.below, first)
        while self.ranges and self.ranges[0][0] <= self.below:
            self.below = max(self.below, self.ranges.pop(0)[1] + 1)

    @property
    def metadata(self) -> str:
        """The ranges, as they are committed."""
        return _MARK + ",".join(f"{first}-{last}" for first, last in self.ranges)


@dataclass(frozen=True, slots=True)
class DeadLetterTopic:
    """One dead-letter topic; `source` alone, where it is that of several. Its calls raise OSError."""

    connection: Connection
    reader: TopicReader
    topic: str
    group: str
    source: str | None = None

    async def sent(self) -> dict[int, Sent]:
        """What was sent before, by partition."""
        try:
            async with asyncio.timeout(_ASK_S), self.connection.admin() as admin:
                committed = await admin.list_consumer_group_offsets(self.group)
        except (KafkaError, TimeoutError) as error:
            raise OSError(f"the group {self.group} can't be asked: {error}") from error
        found: dict[int, Sent] = {}
        for partition, available in (await self.reader.ranges(self.topic)).items():
            mark = committed.get(TopicPartition(self.topic, partition))
            sent = Sent()
            if mark is not None and mark.offset >= 0:
                sent = Sent(mark.offset, [(int(a), int(b)) for a, b in _RANGE.findall(mark.metadata or "")])
            sent.begin(available.first)
            found[partition] = sent
        return found

    async def letters(
        self, sent: dict[int, Sent], *, partition: int | None = None, offset: int | None = None
    ) -> AsyncIterator[DeadLetter]:
        """Those that weren't sent, partition by partition, each in its order."""
        for number, available in (await self.reader.ranges(self.topic)).items():
            if partition not in (None, number):
                continue
            start = max(available.first, sent[number].below, offset or 0)
            async for record in self.reader.forward(self.topic, number, start, available.end):
                if record.offset in sent[number]:
                    continue
                letter = dead_letter(record)
                if self.source in (None, letter.topic):
                    yield letter

    async def send(self, letters: Sequence[DeadLetter], sent: dict[int, Sent], producer: Producer) -> None:
        """Sends letters of one partition again, in their order, and marks them. Raises Unavailable, too."""
        sizes: dict[str, int] = {}
        for letter in letters:
            if letter.topic not in sizes:
                sizes[letter.topic] = len(await self.reader.ranges(letter.topic))
                if not sizes[letter.topic]:
                    raise OSError(f"there is no topic {letter.topic!r}, from which {letter.place} comes")
        number = letters[0].record.partition
        for letter in letters:
            sent[number].add(letter.record.offset)
        # Order: what is next to each other goes to one topic in one call, and each call is waited for.
        for topic, run in groupby(letters, key=lambda letter: letter.topic):
            await producer.send(topic, [letter.again(sizes[topic]) for letter in run])
        await self._mark(number, sent[number])

    async def _mark(self, partition: int, sent: Sent) -> None:
        sent.begin(sent.below)
        at = TopicPartition(self.topic, partition)
        consumer = self.connection.consumer(self.group)
        try:
            async with asyncio.timeout(_ASK_S):
                consumer.assign([at])
                await start(consumer)
                await consumer.commit({at: OffsetAndMetadata(sent.below, sent.metadata)})
        except (KafkaError, TimeoutError) as error:
            raise OSError(
                f"what was sent of {self.topic}-{partition} can't be marked in the group {self.group}:"
                f" {error}. If it is sent again, it comes a second time"
            ) from error
        finally:
            await stop(consumer)
