"""The partitions that the group has assigned to one member: getting them ready, and committing their offsets.

`consumer` makes an `Assignment` for each of its members; aiokafka calls it at each rebalance. Before anything
of a partition is read it asks its `Ownership` whose the partition is, where reading starts, and whether its
topic is still the same one. Guarantee 1 begins here: claim first, then look at the fence, only then read.
`Fenced` is for records that must not be applied twice, `Unfenced` for those whose second time does no harm.
Deliberate: a rebalance only notes what is assigned and pauses it. Claims and fences need other parts, which
may be slow, and a listener that is slow costs the membership.
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

from pushsse.errors import SettingsError, Unavailable
from pushsse.kafka import Connection, Range, Record, Topics, ranges, start, stop
from pushsse.metrics import Metrics
from pushsse.retry import Backoff, Outage
from pushsse.settings import seconds

logger = logging.getLogger(__name__)
METADATA_PREFIX = "pushsse-backplane="
_ADMIN_S = 10.0
_PROBE_S = 5.0
# Running nodes put an identity that Redis has lost back every two seconds.
_PUT_BACK_S = 6.0
_LOOK_S = 0.5
_REVOKE_S = 2.0
_COMMIT_EVERY_S = 0.25
_COMMIT_LIMIT_S = 3.0
_PREPARE_LIMIT_S = 20.0
_PREPARED_AT_ONCE = 100
_NOT_OURS_S = 2.0


@dataclass(slots=True, eq=False)
class Partition:
    """A partition while it is assigned to this member, which claims it under `owner`.

    `ready` once reading stands at the right offset; `blocked` while it waits for the dead-letter topic.
    `next_offset` is the one after the last record that is dealt with.
    """

    at: TopicPartition
    owner: str
    assigned: bool = True
    ready: bool = False
    blocked: bool = False
    next_offset: int | None = None
    committed: int | None = None
    prepare_at: float = 0.0

    @property
    def name(self) -> str:
        """As logs name it."""
        return f"{self.at.topic}-{self.at.partition}"


class Fences(Protocol):
    """The part of `pushsse.backplane.Backplane` that knows Kafka's partitions; its contract is there.

    Repeated here because nothing in `kafka` imports the backplane: other topics are read without one.
    """

    async def claim(self, topic: str, partition: int, owner: str) -> None: ...
    async def identity(self, suggested: str) -> str: ...
    async def claimed(self, topic: str, partition: int) -> bool: ...
    async def first_start(self, topic: str, offsets: Mapping[int, int]) -> Mapping[int, int]: ...
    async def fence(self, topic: str, partition: int) -> tuple[int, int] | None: ...
    async def reset_fence(self, topic: str, partition: int) -> None: ...


class Ownership(Protocol):
    """What a member settles, beside its assignment by the group, before it reads.

    All of it raises KafkaError and Unavailable, and may be called again.
    """

    @property
    def metadata(self) -> str:
        """What is committed beside each offset."""
        ...

    async def check(self) -> None:
        """Returns when this process may join the group. Raises SettingsError where it never may."""
        ...

    async def renew(self) -> None:
        """What has to be done again every few seconds."""
        ...

    async def first_offsets(
        self, consumer: AIOKafkaConsumer, ats: Sequence[TopicPartition]
    ) -> Mapping[TopicPartition, int]:
        """Where to begin with partitions for which the group has no offset."""
        ...

    async def claim(self, owners: Mapping[TopicPartition, str]) -> None:
        """Makes each owner the only one whose records of its partition are taken."""
        ...

    async def recreated(
        self, consumer: AIOKafkaConsumer, ats: Sequence[TopicPartition]
    ) -> Mapping[TopicPartition, int]:
        """The partitions that aren't the ones read before, though named like them, and where they begin."""
        ...


@dataclass(frozen=True, slots=True)
class Unfenced:
    """The group's assignment is enough. `late` topics begin at their beginning."""

    topics: Topics
    late: Collection[str] = ()
    metadata: str = ""

    async def check(self) -> None:
        """Anybody may join."""

    async def renew(self) -> None:
        """Nothing."""

    async def first_offsets(
        self, consumer: AIOKafkaConsumer, ats: Sequence[TopicPartition]
    ) -> Mapping[TopicPartition, int]:
        """What their topic's start means for each partition just now."""
        found: dict[TopicPartition, int] = {}
        for topic, of_it in _by_topic(ats).items():
            start = "earliest" if topic in self.late else self.topics.start_of(topic)
            found |= await _start_offsets(consumer, of_it, start)
        return found

    async def claim(self, owners: Mapping[TopicPartition, str]) -> None:
        """Nothing here refuses an earlier owner's records."""

    async def recreated(
        self, consumer: AIOKafkaConsumer, ats: Sequence[TopicPartition]
    ) -> Mapping[TopicPartition, int]:
        """Without fences there is nothing to compare."""
        return {}


@dataclass(slots=True)
class Fenced:
    """The backplane keeps claims and fences, and its identity is committed beside the group's offsets.

    Two backplanes in one group would each publish only the records of their own nodes' partitions: half of
    the people would get nothing, and no log would say so. `identity` tells them apart; "" until `check`
    returned. Topics that are `late`, because they weren't there at first, begin at their beginning.
    """

    connection: Connection
    fences: Fences
    topics: Topics
    group: str
    late: Collection[str] = ()
    identity: str = field(default="", init=False)

    @property
    def metadata(self) -> str:
        """The backplane's identity."""
        return METADATA_PREFIX + self.identity

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
                f"PUSHSSE_KAFKA_GROUP: the group {self.group!r} reads {self.topics.name} for another"
                " backplane (another Redis, or a node without one). Set PUSHSSE_REDIS_URL to the Redis of its"
                " nodes, or PUSHSSE_KAFKA_GROUP to a group of this deployment's own"
            )

    async def renew(self) -> None:
        """Puts the identity back where Redis has lost it. Raises BackplaneUnavailable."""
        if self.identity:
            await self.fences.identity(self.identity)

    async def claim(self, owners: Mapping[TopicPartition, str]) -> None:
        """From here on the backplane refuses what an owner before has read and not published yet."""
        for at, owner in owners.items():
            await self.fences.claim(at.topic, at.partition, owner)

    async def first_offsets(
        self, consumer: AIOKafkaConsumer, ats: Sequence[TopicPartition]
    ) -> Mapping[TopicPartition, int]:
        """Its start for a topic that the group has never read, else the beginning.

        The offsets of a start are decided once, for all of the topic's partitions, by whichever node is
        first, and kept in the backplane. A partition that appears later, or whose offsets Kafka has lost,
        begins at its beginning: nobody meant to pass it over.
        """
        if not ats:
            return {}
        available = await ranges(consumer, ats)
        found: dict[TopicPartition, int] = {}
        for topic, of_it in _by_topic(ats).items():
            every = [TopicPartition(topic, n) for n in consumer.partitions_for_topic(topic) or ()]
            begun = await self.fences.first_start(topic, await self._first_start(consumer, topic, every))
            for at in of_it:
                # Claimed, but without a committed offset: Kafka has lost it. The fence skips what the log
                # has.
                lost = await self.fences.claimed(at.topic, at.partition)
                offset = None if lost else begun.get(at.partition)
                found[at] = available[at].first if offset is None else within(at, offset, available[at])
        return found

    async def recreated(
        self, consumer: AIOKafkaConsumer, ats: Sequence[TopicPartition]
    ) -> Mapping[TopicPartition, int]:
        """Compares the record that is now at each fence with the one that was published; resets fences.

        To be called after `claim`: the owner before us may publish until then, and move the fence.

        Deliberate: a partition that has lost its end (an unclean leader election) is taken for one that was
        made again. The topic's id would tell them apart, and aiokafka doesn't ask for it (Metadata before
        version 10). To read too much is a repeat; to keep the fence would lose what has the old offsets now.
        """
        fences: dict[TopicPartition, tuple[int, int]] = {}
        for at in ats:
            if (fence := await self.fences.fence(at.topic, at.partition)) is not None:
                fences[at] = fence
        available = await ranges(consumer, list(fences))
        to_read = {
            at: offset
            for at, (offset, _) in fences.items()
            if available[at].first <= offset < available[at].end
        }
        found = await self._timestamps_ms(to_read)
        recreated: dict[TopicPartition, int] = {}
        for at, (offset, timestamp_ms) in fences.items():
            # No record where the fence is: trimmed or compacted away, so nothing speaks against the topic.
            if offset < available[at].end and found.get(at) in (None, timestamp_ms):
                continue
            # Before anything is read: a fence of the old topic would skip the new one's records as known.
            await self.fences.reset_fence(at.topic, at.partition)
            recreated[at] = available[at].first
            logger.warning(
                "%s-%d was deleted and made again: offset %d %s. Its fence starts over, and it is read from"
                " its beginning",
                at.topic,
                at.partition,
                offset,
                "is another record than the one published" if at in to_read else "is beyond the end",
            )
        return recreated

    async def _first_start(
        self, consumer: AIOKafkaConsumer, topic: str, ats: Sequence[TopicPartition]
    ) -> Mapping[int, int]:
        """What its start means for all partitions of the topic now; nothing where the group has begun it."""
        for at in ats:
            if await consumer.committed(at) is not None:
                return {}
        start = "earliest" if topic in self.late else self.topics.start_of(topic)
        found = await _start_offsets(consumer, ats, start)
        return {at.partition: offset for at, offset in found.items()}

    async def _timestamps_ms(self, offsets: Mapping[TopicPartition, int]) -> Mapping[TopicPartition, int]:
        """The timestamps of the records at these offsets, where there are any.

        By a consumer without a group, so that the group's own isn't moved. Raises KafkaError.
        """
        if not offsets:
            return {}
        probe = self.connection.consumer(None)
        found: dict[TopicPartition, int] = {}
        try:
            await start(probe)
            for at, offset in offsets.items():
                record = await _record(probe, at, offset)
                if record is not None:
                    found[at] = record.timestamp
        finally:
            await stop(probe)
        return found

    async def _adopted(self, found: set[str]) -> str:
        """The identity of a Redis that has none: new, or emptied, or restored from before it had one."""
        until = time.monotonic() + self.connection.session_timeout_ms / 1000 + _PUT_BACK_S
        while others := await self._members():
            # They put it back if this is their Redis; a member that was killed is one until its session ends.
            if identity := await self.fences.identity(""):
                return identity
            if time.monotonic() > until:
                logger.warning("the group %s has %d members at another backplane", self.group, others)
                return await self.fences.identity(secrets.token_hex(8))
            await asyncio.sleep(_LOOK_S)
        logger.warning(
            "the backplane knows nothing of the offsets that the group %s has committed: it is new, or was"
            " emptied. The group has no other member, so this node goes on from them",
            self.group,
        )
        return await self.fences.identity(min(found))

    async def _committed_by(self) -> set[str]:
        """The identities of the backplanes whose nodes committed the group's offsets of these topics."""
        async with asyncio.timeout(_ADMIN_S), self.connection.admin() as admin:
            offsets = await admin.list_consumer_group_offsets(self.group)
        metadata = {
            each.metadata
            for at, each in offsets.items()
            if self.topics.group_of(at.topic) is not None and each.metadata
        }
        return {each.removeprefix(METADATA_PREFIX) for each in metadata if each.startswith(METADATA_PREFIX)}

    async def _members(self) -> int:
        """How many members the group has; 0 where that may not be asked."""
        try:
            async with asyncio.timeout(_ADMIN_S), self.connection.admin() as admin:
                answers = await admin.describe_consumer_groups([self.group])
        except GroupAuthorizationFailedError:
            return 0
        return sum(len(members) for answer in answers for _, _, _, _, _, members, *_ in answer.groups)


def within(at: TopicPartition, offset: int, available: Range) -> int:
    """The offset, or the oldest one where Kafka doesn't hold it (any more, or yet)."""
    if available.first <= offset <= available.end:
        return offset
    logger.warning(
        "%s-%d: offset %d is out of range (%d to %d), starting at the earliest. If it is below, Kafka has"
        " deleted records that weren't read: compare retention.ms with the lag",
        at.topic,
        at.partition,
        offset,
        available.first,
        available.end,
    )
    return available.first


def _by_topic(ats: Sequence[TopicPartition]) -> Mapping[str, Sequence[TopicPartition]]:
    found: dict[str, list[TopicPartition]] = {}
    for at in ats:
        found.setdefault(at.topic, []).append(at)
    return found


async def _start_offsets(
    consumer: AIOKafkaConsumer, ats: Sequence[TopicPartition], start: str
) -> dict[TopicPartition, int]:
    """What `start` means for partitions just now; an age beyond the newest record is the end."""
    available = await ranges(consumer, ats)
    if start == "earliest":
        return {at: available[at].first for at in ats}
    if start == "latest":
        return {at: available[at].end for at in ats}
    since_ms = max(0, int((time.time() - seconds(start)) * 1000))
    found = await consumer.offsets_for_times(dict.fromkeys(ats, since_ms))
    return {at: available[at].end if found[at] is None else int(found[at].offset) for at in ats}


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


class Progress(Protocol):
    """What a handler has of records that it has applied only in part; nothing, for most."""

    def unfinished(self) -> Mapping[TopicPartition, int]:
        """By partition, the offset of the first record that isn't applied in full: it isn't committed."""
        ...

    def forget(self, partitions: Collection[TopicPartition]) -> None:
        """These partitions are somebody else's now, who reads what isn't committed again."""
        ...


class Assignment(ConsumerRebalanceListener):  # type: ignore[misc]
    """What one member may read. `idle` is set while no batch is in hand, `ended` once all of it is gone."""

    def __init__(
        self, consumer: AIOKafkaConsumer, ownership: Ownership, progress: Progress, metrics: Metrics
    ) -> None:
        self.partitions: dict[TopicPartition, Partition] = {}
        self.idle = asyncio.Event()
        self.idle.set()
        self.ended = asyncio.Event()
        # Set while no partition waits for the dead-letter topic.
        self._unblocked = asyncio.Event()
        self._unblocked.set()
        self._consumer = consumer
        self._ownership = ownership
        self._progress = progress
        self._metrics = metrics
        self._commit_at = 0.0
        self._preparing = Outage("partitions can't be read yet", logger, Backoff(first_s=0.25))
        self._committing = Outage(
            "offsets can't be committed, and a restart would read records again", logger, Backoff(first_s=0.5)
        )

    def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """Notes what is ours. Nothing of it is read before `prepare`."""
        self.ended = asyncio.Event()
        for at in sorted(assigned):
            self.partitions[at] = Partition(at, secrets.token_hex(8))
            self._consumer.pause(at)
            # Any offset will do here. Without one, aiokafka looks for a committed offset, and raises if there
            # is none.
            self._consumer.seek(at, 0)
        logger.info("assigned: %s", ", ".join(each.name for each in self.partitions.values()) or "nothing")

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """The group takes all back. The batch in hand has 2 s; after that its next owner reads it again.

        So have dead letters: they aren't fenced, and the next owner would write them again.
        """
        try:
            async with asyncio.timeout(_REVOKE_S):
                await self.idle.wait()
                await self._unblocked.wait()
        except TimeoutError:
            late = "its dead letters aren't written" if self.idle.is_set() else "it isn't applied"
            logger.warning(
                "the group takes %d partitions back with a batch in hand, and %s within %.0f s: their next"
                " owners read it again",
                len(revoked),
                late,
                _REVOKE_S,
            )
        # After the batch and before the next owner begins. Repeats are fenced, but cost both nodes time.
        await self.commit()
        self.end()

    def end(self) -> None:
        """The assignment is over: what is in hand must not be committed any more."""
        self._progress.forget(self.partitions.keys())
        for partition in self.partitions.values():
            partition.assigned = partition.ready = False
            self._metrics.lag.pop((partition.at.topic, str(partition.at.partition)), None)
            self._metrics.held_partitions.discard(partition.at)
        self.partitions.clear()
        self._unblocked.set()
        self.ended.set()

    def suspend(self, partition: Partition, *, for_s: float = 0.0) -> None:
        """Reads nothing of a partition until it is prepared again, after `for_s` seconds at least."""
        partition.ready = False
        partition.prepare_at = time.monotonic() + for_s
        if partition.assigned:
            self._consumer.pause(partition.at)

    def suspend_all(self) -> None:
        """The same for the whole assignment."""
        for partition in self.partitions.values():
            if partition.ready:
                self.suspend(partition)

    def block(self, partition: Partition) -> None:
        """Reads nothing of a partition while it waits for the dead-letter topic."""
        partition.blocked = True
        if partition.assigned:
            self._unblocked.clear()
            self._metrics.held_partitions.add(partition.at)
            self._consumer.pause(partition.at)

    def unblock(self, partition: Partition) -> None:
        """Goes on with a partition, if it is assigned and ready."""
        partition.blocked = False
        if not any(each.blocked for each in self.partitions.values()):
            self._unblocked.set()
        self._metrics.held_partitions.discard(partition.at)
        if partition.assigned and partition.ready:
            self._consumer.resume(partition.at)

    async def wait(self, for_s: float) -> None:
        """Waits between two tries, no longer than the assignment lasts."""
        try:
            async with asyncio.timeout(for_s):
                await self.ended.wait()
        except TimeoutError:
            pass

    async def prepare(self) -> None:
        """Gets up to 100 ready of what was assigned or suspended, within 20 s.

        The others, and what can't be got ready now, are tried again later.
        """
        now = time.monotonic()
        waiting = [
            partition
            for partition in self.partitions.values()
            if not partition.ready and not partition.blocked and partition.prepare_at <= now
        ]
        if not waiting:
            return
        # Each takes some calls to Kafka and to the backplane, and all of them share one limit of time. The
        # others have their turn in the next round.
        waiting = waiting[:_PREPARED_AT_ONCE]
        try:
            async with asyncio.timeout(_PREPARE_LIMIT_S):
                await self._prepare(waiting)
        except (CommitFailedError, IllegalStateError) as error:
            # The group is rebalancing, and will say what is ours.
            logger.info("not assigned to this node at the moment: %s", error)
            wait_s = _NOT_OURS_S
        except (KafkaError, Unavailable, TimeoutError) as error:
            wait_s = self._preparing.failed(error)
        else:
            self._preparing.over()
            for partition in waiting:
                self.unblock(partition)
            return
        for partition in waiting:
            partition.prepare_at = time.monotonic() + wait_s

    async def _prepare(self, partitions: Sequence[Partition]) -> None:
        """Claims partitions and points the consumer at the first record of each. It is right to repeat it.

        Raises KafkaError (CommitFailedError, IllegalStateError: somebody else's by now), Unavailable.
        """
        ats = [partition.at for partition in partitions]
        available = await ranges(self._consumer, ats)
        dealt_with = self._dealt_with()
        known = {at: dealt_with[at] if at in dealt_with else await self._consumer.committed(at) for at in ats}
        first = await self._ownership.first_offsets(
            self._consumer, [at for at, offset in known.items() if offset is None]
        )
        wanted = {
            at: first[at] if offset is None else within(at, offset, available[at])
            for at, offset in known.items()
        }
        # Guarantee 1, the order of the next three. A commit proves that the group still counts us in:
        # claiming without it, a node that lost its partitions would take them from their new owner.
        await self._consumer.commit(self._marked(wanted))
        # Then the claim: from here on the log refuses what the owner before us still has in hand.
        await self._ownership.claim({each.at: each.owner for each in partitions})
        # Then the fence, which nobody moves but us from here on.
        recreated = await self._ownership.recreated(self._consumer, ats)
        for partition in partitions:
            # Revoked while we waited: reading it now would be reading as somebody who isn't the owner.
            if partition.assigned:
                partition.committed = wanted[partition.at]
                partition.next_offset = recreated.get(partition.at, wanted[partition.at])
                self._consumer.seek(partition.at, partition.next_offset)
                partition.ready = True
                logger.info("%s is read from offset %d on", partition.name, partition.next_offset)

    async def commit_due(self) -> None:
        """Commits four times a second: a commit costs a round trip, and what is read again is known."""
        if time.monotonic() >= self._commit_at:
            await self.commit()

    async def commit(self) -> None:
        """Commits what is dealt with, within 3 s. The next commit makes good for one that failed."""
        self._commit_at = time.monotonic() + _COMMIT_EVERY_S
        due = self._due()
        if not due:
            return
        try:
            # The limit is ours, aiokafka has none: a coordinator that is silent must not stop the reading.
            async with asyncio.timeout(_COMMIT_LIMIT_S):
                await self._consumer.commit(self._marked(due))
        except (CommitFailedError, IllegalStateError) as error:
            logger.info("offsets not committed, the partitions are somebody else's by now: %s", error)
            return
        except (KafkaError, TimeoutError) as error:
            self._commit_at = time.monotonic() + self._committing.failed(error)
            return
        self._committing.over()
        for at, offset in due.items():
            if at in self.partitions:
                self.partitions[at].committed = offset

    def _due(self) -> dict[TopicPartition, int]:
        """The offsets to commit. That of a partition that isn't ready may be another topic's."""
        return {
            at: offset
            for at, offset in self._dealt_with().items()
            if self.partitions[at].ready and offset != self.partitions[at].committed
        }

    def _dealt_with(self) -> dict[TopicPartition, int]:
        """Where a new owner has to go on. Guarantee 1: not after a record that is applied in part only."""
        unfinished = self._progress.unfinished()
        return {
            at: min(partition.next_offset, unfinished.get(at, partition.next_offset))
            for at, partition in self.partitions.items()
            if partition.next_offset is not None
        }

    def _marked(self, offsets: Mapping[TopicPartition, int]) -> dict[TopicPartition, tuple[int, str]]:
        return {at: (offset, self._ownership.metadata) for at, offset in offsets.items()}
