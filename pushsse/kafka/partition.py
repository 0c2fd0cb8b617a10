"""A partition while this node has it: from which offset it is read, and whether its topic is still the same.

Called by the consumption for what was newly assigned, and where an offset turned out to be out of range.
Guarantee 1 begins here: claim first, then look at the fence, only then read.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import (
    CommitFailedError,
    GroupAuthorizationFailedError,
    IllegalStateError,
    KafkaError,
    KafkaTimeoutError,
)

from pushsse.errors import SettingsError
from pushsse.kafka.client import Connection, Record, stop
from pushsse.kafka.outage import Outage
from pushsse.metrics import Metrics
from pushsse.retry import Backoff
from pushsse.settings import seconds

log = logging.getLogger(__name__)
_PROBE_S = 5.0
PREFIX = "pushsse-backplane="
_LIMIT_S = 10.0
# Running nodes put an identity that Redis has lost back every two seconds.
_PUT_BACK_S = 6.0
_LOOK_S = 0.5
_REVOKE_S = 2.0
_COMMIT_EVERY_S = 0.25
_COMMIT_TIMEOUT_S = 3.0


class Fences(Protocol):
    """The part of the backplane that keeps Kafka's records from being published twice."""

    async def claim(self, topic: str, partition: int, owner: str) -> None:
        """Makes `owner` the only one whose sources of this partition are taken."""
        ...

    async def identity(self, suggested: str) -> str:
        """The word by which this backplane is known.

        `suggested` becomes it where it has none; "" only asks, and returns "" then.
        """
        ...

    async def claimed(self, topic: str, partition: int) -> bool:
        """Whether anybody has ever claimed this partition."""
        ...

    async def first_start(self, topic: str, offsets: Mapping[int, int]) -> Mapping[int, int]:
        """Where reading began when the topic was first started, by partition.

        The first call for a topic keeps its `offsets`; every later one, by any node, returns what was kept.
        """
        ...

    async def fence(self, topic: str, partition: int) -> tuple[int, int] | None:
        """The highest offset that any log has, with its record's timestamp in ms."""
        ...

    async def reset_fence(self, topic: str, partition: int) -> None:
        """Forgets the fence."""
        ...


@dataclass(slots=True, eq=False)
class Partition:
    """What is known of a partition. `done` is the offset after the last record that is dealt with."""

    at: TopicPartition
    owner: str
    live: bool = True
    ready: bool = False
    held: bool = False
    done: int | None = None
    committed: int | None = None
    not_before: float = 0.0

    @property
    def name(self) -> str:
        """As logs name it."""
        return f"{self.at.topic}-{self.at.partition}"


@dataclass(frozen=True, slots=True)
class Range:
    """The offsets that a partition holds: `first` is the oldest, `end` the next to be written."""

    first: int
    end: int


@dataclass(slots=True)
class SameBackplane:
    """What this node's backplane is known by, once `check` has returned."""

    connection: Connection
    fences: Fences
    topic: str
    group: str
    identity: str = field(default="", init=False)

    async def check(self) -> None:
        """Returns when the group's offsets are this backplane's, or nobody's.

        Raises SettingsError where they are another's; KafkaError, BackplaneUnavailable, TimeoutError.
        """
        found = await self._committed_by()
        self.identity = await self.fences.identity(self.identity)
        if not self.identity and found:
            self.identity = await self._adopted(found)
        elif not self.identity:
            self.identity = await self.fences.identity(secrets.token_hex(8))
        if found - {self.identity}:
            raise SettingsError(
                f"PUSHSSE_KAFKA_GROUP: the group {self.group!r} reads {self.topic} for another backplane"
                " (another Redis, or a node without one). Set PUSHSSE_REDIS_URL to the Redis of its nodes,"
                " or PUSHSSE_KAFKA_GROUP to a group of this deployment's own"
            )

    async def keep(self) -> None:
        """Puts the identity back where Redis has lost it. Raises BackplaneUnavailable."""
        if self.identity:
            await self.fences.identity(self.identity)

    def marked(self, offsets: Mapping[TopicPartition, int]) -> dict[TopicPartition, tuple[int, str]]:
        """Offsets as they are committed, with the identity as metadata."""
        return {at: (offset, PREFIX + self.identity) for at, offset in offsets.items()}

    async def _adopted(self, found: set[str]) -> str:
        """The identity of a Redis that has none: new, or emptied, or restored from before it had one."""
        until = time.monotonic() + self.connection.session_timeout_ms / 1000 + _PUT_BACK_S
        while others := await self._members():
            # They put it back if this is their Redis; a member that was killed is one until its session ends.
            if identity := await self.fences.identity(""):
                return identity
            if time.monotonic() > until:
                log.warning("the group %s has %d members at another backplane", self.group, others)
                return await self.fences.identity(secrets.token_hex(8))
            await asyncio.sleep(_LOOK_S)
        log.warning(
            "the backplane knows nothing of the offsets that the group %s has committed: it is new, or was"
            " emptied. The group has no other member, so this node goes on from them",
            self.group,
        )
        return await self.fences.identity(min(found))

    async def _committed_by(self) -> set[str]:
        """The identities of the backplanes whose nodes committed the group's offsets of this topic."""
        async with asyncio.timeout(_LIMIT_S), self.connection.admin() as admin:
            offsets = await admin.list_consumer_group_offsets(self.group)
        words = {each.metadata for at, each in offsets.items() if at.topic == self.topic and each.metadata}
        return {word.removeprefix(PREFIX) for word in words if word.startswith(PREFIX)}

    async def _members(self) -> int:
        """How many members the group has; 0 where that may not be asked."""
        try:
            async with asyncio.timeout(_LIMIT_S), self.connection.admin() as admin:
                answers = await admin.describe_consumer_groups([self.group])
        except GroupAuthorizationFailedError:
            return 0
        return sum(len(members) for answer in answers for _, _, _, _, _, members, *_ in answer.groups)


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """Claims partitions, and decides where reading starts."""

    connection: Connection
    fences: Fences
    start: str
    same: SameBackplane

    async def prepare(self, consumer: AIOKafkaConsumer, partitions: Sequence[Partition]) -> None:
        """Makes partitions ready to be read, and points the consumer at their first record.

        Raises KafkaError (CommitFailedError, IllegalStateError: they are somebody else's by now) and
        BackplaneUnavailable; it is right to call it again.
        """
        ats = [partition.at for partition in partitions]
        ranges = await _ranges(consumer, ats)
        offsets = {
            each.at: each.done if each.done is not None else await consumer.committed(each.at)
            for each in partitions
        }
        first = await self._first_offsets(consumer, [at for at, offset in offsets.items() if offset is None])
        wanted = {
            at: first[at] if offset is None else _within(at, offset, ranges[at])
            for at, offset in offsets.items()
        }
        # A commit proves that the group still counts us in: only then may another owner's claim be undone.
        await consumer.commit(self.same.marked(wanted))
        for partition in partitions:
            await self.fences.claim(partition.at.topic, partition.at.partition, partition.owner)
        anew = await self._made_anew(consumer, partitions)
        for partition in partitions:
            if partition.live:
                partition.committed = wanted[partition.at]
                partition.done = anew.get(partition.at, wanted[partition.at])
                consumer.seek(partition.at, partition.done)
                partition.ready = True
                log.info("%s is read from offset %d on", partition.name, partition.done)

    async def _first_offsets(
        self, consumer: AIOKafkaConsumer, ats: Sequence[TopicPartition]
    ) -> dict[TopicPartition, int]:
        """Where to begin with partitions for which the group has no offset.

        `start` is for a topic that the group has never read. Its offsets are decided once, for all of the
        topic's partitions, by whichever node is first, and kept in the backplane. A partition that appears
        later, or whose offsets Kafka has lost, begins at its beginning: nobody meant to pass it over.
        """
        found: dict[TopicPartition, int] = {}
        for topic in sorted({at.topic for at in ats}):
            mine = [at for at in ats if at.topic == topic]
            every = [TopicPartition(topic, n) for n in sorted(consumer.partitions_for_topic(topic) or ())]
            ranges = await _ranges(consumer, sorted({*mine, *every}))
            kept = await self.fences.first_start(topic, await self._start_offsets(consumer, every, ranges))
            for at in mine:
                begun = await self.fences.claimed(topic, at.partition)
                offset = None if begun else kept.get(at.partition)
                found[at] = ranges[at].first if offset is None else _within(at, offset, ranges[at])
        return found

    async def _start_offsets(
        self,
        consumer: AIOKafkaConsumer,
        ats: Sequence[TopicPartition],
        ranges: Mapping[TopicPartition, Range],
    ) -> Mapping[int, int]:
        """What `start` means for all partitions of a topic just now; nothing where the group has begun it."""
        for at in ats:
            if await consumer.committed(at) is not None:
                return {}
        if self.start == "earliest":
            return {at.partition: ranges[at].first for at in ats}
        if self.start == "latest":
            return {at.partition: ranges[at].end for at in ats}
        since_ms = max(0, int((time.time() - seconds(self.start)) * 1000))
        found = await consumer.offsets_for_times(dict.fromkeys(ats, since_ms))
        return {at.partition: ranges[at].end if found[at] is None else int(found[at].offset) for at in ats}

    async def _made_anew(
        self, consumer: AIOKafkaConsumer, partitions: Sequence[Partition]
    ) -> Mapping[TopicPartition, int]:
        """The partitions that aren't those whose records the log has, and where they begin; resets fences."""
        fences: dict[TopicPartition, tuple[int, int]] = {}
        for at in [partition.at for partition in partitions]:
            if (fence := await self.fences.fence(at.topic, at.partition)) is not None:
                fences[at] = fence
        # Only now, after the claims: the owner before us may have published what an earlier look missed.
        ranges = await _ranges(consumer, list(fences))
        to_read = {at: fences[at][0] for at, held in ranges.items() if held.first <= fences[at][0] < held.end}
        found = await self._timestamps_ms(to_read)
        anew: dict[TopicPartition, int] = {}
        for at, (offset, timestamp_ms) in fences.items():
            if offset < ranges[at].end and found.get(at) in (None, timestamp_ms):
                continue
            await self.fences.reset_fence(at.topic, at.partition)
            anew[at] = ranges[at].first
            log.warning(
                "%s-%d was made anew: offset %d %s. Its fence starts over, and it is read from the beginning",
                at.topic,
                at.partition,
                offset,
                "is another record than the one published" if at in to_read else "is beyond the end",
            )
        return anew

    async def _timestamps_ms(self, offsets: Mapping[TopicPartition, int]) -> Mapping[TopicPartition, int]:
        """The timestamps of the records at these offsets, where there are any.

        By a consumer without a group, so that the group's own isn't moved. Raises KafkaError.
        """
        if not offsets:
            return {}
        probe = self.connection.consumer(None)
        found: dict[TopicPartition, int] = {}
        try:
            await probe.start()
            for at, offset in offsets.items():
                record = await _record(probe, at, offset)
                if record is not None:
                    found[at] = record.timestamp
        finally:
            await stop(probe)
        return found


def _within(at: TopicPartition, offset: int, held: Range) -> int:
    """The offset, or the oldest one where Kafka doesn't hold it (any more, or yet)."""
    if held.first <= offset <= held.end:
        return offset
    log.warning(
        "%s-%d: offset %d is out of range (%d to %d), starting at the earliest",
        at.topic,
        at.partition,
        offset,
        held.first,
        held.end,
    )
    return held.first


async def _record(probe: AIOKafkaConsumer, at: TopicPartition, offset: int) -> Record | None:
    """The record at an offset; None where there is none now (compacted, or a transaction's marker)."""
    probe.assign([at])
    probe.seek(at, offset)
    until = time.monotonic() + _PROBE_S
    while time.monotonic() < until:
        found: Mapping[TopicPartition, Sequence[Record]] = await probe.getmany(
            at, timeout_ms=500, max_records=1
        )
        if found:
            return found[at][0] if found[at][0].offset == offset else None
        if await probe.position(at) > offset:
            return None
    raise KafkaTimeoutError(f"{at.topic}-{at.partition}: the record at {offset} couldn't be read")


async def _ranges(
    consumer: AIOKafkaConsumer, ats: Sequence[TopicPartition]
) -> Mapping[TopicPartition, Range]:
    if not ats:
        return {}
    first, end = await asyncio.gather(consumer.beginning_offsets(ats), consumer.end_offsets(ats))
    return {at: Range(first[at], end[at]) for at in ats}


class Assignment(ConsumerRebalanceListener):  # type: ignore[misc]
    """What this consumer may read. `idle` is set while no batch is in hand, `ended` when it is gone."""

    def __init__(self, consumer: AIOKafkaConsumer, same: SameBackplane, metrics: Metrics) -> None:
        self.partitions: dict[TopicPartition, Partition] = {}
        self.idle = asyncio.Event()
        self.idle.set()
        self.ended = asyncio.Event()
        self._consumer = consumer
        self._same = same
        self._metrics = metrics
        self._commit_at = 0.0
        self._outage = Outage("committing offsets", log, Backoff(first_s=0.5))

    def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """A share is ours: nothing of it is read before it is prepared."""
        self.ended = asyncio.Event()
        for at in sorted(assigned):
            self.partitions[at] = Partition(at, secrets.token_hex(8))
            self._consumer.pause(at)
            # Any position will do: without one aiokafka asks for a committed offset, and raises without it.
            self._consumer.seek(at, 0)
        log.info("assigned: %s", ", ".join(each.name for each in self.partitions.values()) or "nothing")

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """Our share ends: the batch in hand has 2 s to get through, else somebody else reads it again."""
        try:
            async with asyncio.timeout(_REVOKE_S):
                await self.idle.wait()
        except TimeoutError:
            log.warning("the batch in hand is given up with its partitions: %s", len(revoked))
        await self.commit()
        self.end()

    def end(self) -> None:
        """Forgets this share."""
        for partition in self.partitions.values():
            partition.live = partition.ready = False
            self._metrics.lag.pop((partition.at.topic, str(partition.at.partition)), None)
        self.partitions.clear()
        self.ended.set()

    def withhold(self, partition: Partition, *, for_s: float = 0.0) -> None:
        """Reads nothing of a partition until it has been prepared anew, at the earliest after a while."""
        partition.ready = False
        partition.not_before = time.monotonic() + for_s
        if partition.live:
            self._consumer.pause(partition.at)

    def withhold_all(self) -> None:
        """The same for the whole share."""
        for partition in self.partitions.values():
            if partition.ready:
                self.withhold(partition)

    def hold(self, partition: Partition) -> None:
        """Reads nothing of a partition while it waits for the dead-letter topic."""
        partition.held = True
        if partition.live:
            self._consumer.pause(partition.at)

    def release(self, partition: Partition) -> None:
        """Goes on with a partition, if it is ours and prepared."""
        partition.held = False
        if partition.live and partition.ready:
            self._consumer.resume(partition.at)

    async def pause(self, for_s: float) -> None:
        """Waits between two tries, no longer than this share lasts."""
        try:
            async with asyncio.timeout(for_s):
                await self.ended.wait()
        except TimeoutError:
            pass

    async def commit_due(self) -> None:
        """Commits now and then: a commit costs a round trip, and the fence skips what is read again."""
        if time.monotonic() >= self._commit_at:
            await self.commit()

    async def commit(self) -> None:
        """Commits what is done, within bounded time. A failure is made good by the next commit."""
        self._commit_at = time.monotonic() + _COMMIT_EVERY_S
        due = {
            partition.at: partition.done
            for partition in self.partitions.values()
            if partition.ready and partition.done is not None and partition.done != partition.committed
        }
        if not due:
            return
        try:
            async with asyncio.timeout(_COMMIT_TIMEOUT_S):
                await self._consumer.commit(self._same.marked(due))
        except (CommitFailedError, IllegalStateError) as error:
            log.info("offsets not committed, the partitions are somebody else's by now: %s", error)
            return
        except (KafkaError, TimeoutError) as error:
            self._commit_at = time.monotonic() + self._outage.hit(error)
            return
        self._outage.over()
        for at, done in due.items():
            if at in self.partitions:
                self.partitions[at].committed = done
