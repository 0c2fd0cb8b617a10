"""The partitions that the group has given to this consumer, and their offsets on the way back to Kafka.

aiokafka calls it at each rebalance; the consumption asks it what may be read, and has it commit.
Deliberate: a rebalance only notes what is assigned and pauses it. Claims and fences need other parts, which
may be slow, and a listener that is slow costs the membership.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Collection

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError

from pushsse.backoff import Backoff
from pushsse.intake.outage import Outage
from pushsse.intake.partition import Partition
from pushsse.intake.same_backplane import SameBackplane
from pushsse.metrics import Metrics

log = logging.getLogger(__name__)
_REVOKE_S = 2.0
_COMMIT_EVERY_S = 0.25
_COMMIT_TIMEOUT_S = 3.0


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
