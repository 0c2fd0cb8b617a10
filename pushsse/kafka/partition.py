"""The partitions that the group has assigned to one member: getting them ready, and committing their offsets.

Made by `consumer` for each of its members; aiokafka calls it at each rebalance; it asks `fences` before
anything is read. Deliberate: a rebalance only notes what is assigned and pauses it. Claims and fences need
other parts, which may be slow, and a listener that is slow costs the membership.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError

from pushsse.errors import Unavailable
from pushsse.kafka import Topics, ranges
from pushsse.kafka.fences import Ownership, within
from pushsse.metrics import Metrics
from pushsse.retry import Backoff, Outage

logger = logging.getLogger(__name__)
_REVOKE_S = 2.0
_COMMIT_EVERY_S = 0.25
_COMMIT_LIMIT_S = 3.0
_PREPARE_LIMIT_S = 20.0
_PREPARED_AT_ONCE = 100
_NOT_OURS_S = 2.0
_LOOK_S = 2.0
_TOPICS_EVERY_S = 4.0


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
        self._consumer = consumer
        self._ownership = ownership
        self._progress = progress
        self._metrics = metrics
        self._commit_at = 0.0
        self._preparing = Outage("partitions can't be read yet", logger, Backoff(first_s=0.25))
        self._committing = Outage("offsets can't be committed", logger, Backoff(first_s=0.5))

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
        """The group takes all back. The batch in hand has 2 s; after that its next owner reads it again."""
        try:
            async with asyncio.timeout(_REVOKE_S):
                await self.idle.wait()
        except TimeoutError:
            logger.warning("a batch of %d partitions is given up: they are revoked", len(revoked))
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
            self._metrics.held_partitions.add(partition.at)
            self._consumer.pause(partition.at)

    def unblock(self, partition: Partition) -> None:
        """Goes on with a partition, if it is assigned and ready."""
        partition.blocked = False
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


class Watchdog:
    """Watches a member from the side: how far behind it is, and whether it still gets anywhere.

    aiokafka's member can get stuck without an error (no partitions though there is work, no answers to its
    fetches); only a new one helps then. Topics that appear need a new one, too. `stuck` says why it should be
    replaced, "" while all is well.
    """

    def __init__(
        self,
        consumer: AIOKafkaConsumer,
        assignment: Assignment,
        ownership: Ownership,
        *,
        topics: Topics,
        there: Collection[str],
        stuck_s: float,
        metrics: Metrics,
    ) -> None:
        self.stuck = ""
        self._consumer = consumer
        self._assignment = assignment
        self._ownership = ownership
        self._topics = topics
        self._there = there
        self._stuck_s = stuck_s
        self._metrics = metrics
        self._polled: dict[TopicPartition, tuple[int | None, float]] = {}
        self._spare_since = time.monotonic()
        self._unread: Mapping[TopicPartition, int] = {}
        self._topics_at = 0.0

    async def run(self) -> None:
        """Looks every 2 s, until cancelled."""
        while not self.stuck:
            await asyncio.sleep(_LOOK_S)
            self._look_at_polls()
            # Each by itself: one asks Kafka, the other the backplane, and either may be away.
            for look in (self._ask_kafka, self._ownership.renew):
                try:
                    async with asyncio.timeout(_LOOK_S * 2):
                        await look()
                except (KafkaError, Unavailable, TimeoutError):
                    # Where Kafka is away the polls stand still as well, and that is noticed above.
                    continue

    async def _ask_kafka(self) -> None:
        await self._measure_lag()
        await self._look_whether_spare()
        await self._look_for_topics()

    def _look_at_polls(self) -> None:
        now = time.monotonic()
        if not self._assignment.idle.is_set():
            # A batch in hand, perhaps for long: nothing is asked of Kafka meanwhile.
            self._polled.clear()
        for partition in self._assignment.partitions.values():
            if not partition.ready or partition.blocked:
                continue
            polled = self._consumer.last_poll_timestamp(partition.at)
            known = self._polled.get(partition.at)
            if known is None or known[0] != polled:
                self._polled[partition.at] = (polled, now)
            elif now - known[1] > self._stuck_s:
                self.stuck = f"no fetch of {partition.name} was answered for {self._stuck_s:g} s"

    async def _measure_lag(self) -> None:
        partitions = self._assignment.partitions
        ats = [each.at for each in partitions.values() if each.next_offset is not None]
        if not ats:
            return
        for at, end in (await self._consumer.end_offsets(ats)).items():
            # Revoked meanwhile, it has no lag here.
            if (partition := partitions.get(at)) is not None:
                self._metrics.lag[at.topic, str(at.partition)] = max(0, end - (partition.next_offset or 0))

    async def _look_whether_spare(self) -> None:
        """A member without partitions is fine where others do the work, and stuck where nobody does."""
        if self._assignment.partitions:
            self._spare_since = time.monotonic()
            self._unread = {}
        elif time.monotonic() - self._spare_since > 2 * self._stuck_s:
            unread = await self._unread_now()
            if any(self._unread.get(at) == committed for at, committed in unread.items()):
                self.stuck = (
                    f"no partition of {self._topics.name} is assigned, though nobody in the group reads on"
                )
            self._spare_since = time.monotonic()
            self._unread = unread

    async def _unread_now(self) -> Mapping[TopicPartition, int]:
        """The partitions with records that the group hasn't committed, and how far each has got."""
        ats = [
            TopicPartition(topic, number)
            for topic in self._there
            for number in self._consumer.partitions_for_topic(topic) or ()
        ]
        ends = await self._consumer.end_offsets(ats) if ats else {}
        committed = {at: await self._consumer.committed(at) or 0 for at in ats}
        return {at: committed[at] for at in ats if ends[at] > committed[at]}

    async def _look_for_topics(self) -> None:
        """A topic that was missing, or matches a pattern since it was made, is read by a new member.

        Deliberate: the running member isn't subscribed anew. aiokafka forgets its assignment at once then,
        and whatever is done with a partition before the group has met again fails.
        """
        if not self._topics.may_grow(self._there) or time.monotonic() < self._topics_at:
            return
        self._topics_at = time.monotonic() + _TOPICS_EVERY_S
        new = self._topics.among(await self._consumer.topics()) - frozenset(self._there)
        if new:
            self.stuck = f"{', '.join(sorted(new))} can be read now"
