"""Watches a consumer from the side: how far behind it is, and whether it still gets anywhere.

Run by the consumption. aiokafka's member can get stuck without an error (no partitions though there is work,
no answers to its fetches); only a new consumer helps then.
"""

import asyncio
import time

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from pushsse.errors import Unavailable
from pushsse.intake.assignment import Assignment
from pushsse.intake.same_backplane import SameBackplane
from pushsse.metrics import Metrics

LOOK_S = 2.0
STUCK_S = 30.0
_SPARE_S = 60.0


class Watch:
    """`stuck` says why the consumer should be replaced; empty while all is well."""

    def __init__(
        self, consumer: AIOKafkaConsumer, assignment: Assignment, same: SameBackplane, *, metrics: Metrics
    ) -> None:
        self.stuck = ""
        self._consumer = consumer
        self._assignment = assignment
        self._same = same
        self._topic = same.topic
        self._group = same.group
        self._metrics = metrics
        self._polled: dict[TopicPartition, tuple[int | None, float]] = {}
        self._spare_since = time.monotonic()
        self._behind: dict[TopicPartition, int] = {}

    async def run(self) -> None:
        """Looks every 2 s, until cancelled."""
        while not self.stuck:
            await asyncio.sleep(LOOK_S)
            self._look_at_polls()
            try:
                async with asyncio.timeout(LOOK_S * 2):
                    await self._same.keep()
                    await self._measure_lag()
                    await self._look_whether_spare()
            except (KafkaError, Unavailable, TimeoutError):
                # Kafka is away: the polls stand still as well, and that is noticed above.
                continue

    def _look_at_polls(self) -> None:
        now = time.monotonic()
        reading = [each.at for each in self._assignment.partitions.values() if each.ready and not each.held]
        if not self._assignment.idle.is_set():
            # A batch in hand, perhaps for long: nothing is asked of Kafka meanwhile.
            self._polled.clear()
        for at in reading:
            polled = self._consumer.last_poll_timestamp(at)
            known = self._polled.get(at)
            if known is None or known[0] != polled:
                self._polled[at] = (polled, now)
            elif now - known[1] > STUCK_S:
                self.stuck = f"no fetch of {at.topic}-{at.partition} was answered for {STUCK_S:g} s"

    async def _measure_lag(self) -> None:
        done = {each.at: each.done for each in self._assignment.partitions.values() if each.done is not None}
        if not done:
            return
        ends = await self._consumer.end_offsets(list(done))
        for at, end in ends.items():
            partition = self._assignment.partitions.get(at)
            if partition is not None:
                self._metrics.lag[at.topic, str(at.partition)] = max(0, end - (partition.done or 0))

    async def _look_whether_spare(self) -> None:
        """A member without partitions is fine where others do the work, and stuck where nobody does."""
        if self._assignment.partitions:
            self._spare_since = time.monotonic()
            self._behind = {}
        elif time.monotonic() - self._spare_since > _SPARE_S:
            behind = await self._behind_now()
            if any(self._behind.get(at) == committed for at, committed in behind.items()):
                self.stuck = f"no partition of {self._topic}, though nobody in {self._group} reads on"
            self._spare_since = time.monotonic()
            self._behind = behind

    async def _behind_now(self) -> dict[TopicPartition, int]:
        """The partitions with records that the group hasn't committed, and how far each has got."""
        ats = [TopicPartition(self._topic, n) for n in self._consumer.partitions_for_topic(self._topic) or ()]
        ends = await self._consumer.end_offsets(ats) if ats else {}
        committed = {at: await self._consumer.committed(at) or 0 for at in ats}
        return {at: committed[at] for at in ats if ends[at] > committed[at]}
