"""The life of one consumer: prepare, read, decode, hand on, commit, until it fails or gets stuck.

Run by kafka.py; hands batches to onward.py, and asks assignment.py what is ours.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError, OffsetOutOfRangeError

from pushsse.backoff import Backoff
from pushsse.errors import Unavailable
from pushsse.intake.assignment import Assignment
from pushsse.intake.decode import Decode, Record, decode_all
from pushsse.intake.onward import Onward, Work
from pushsse.intake.outage import Outage
from pushsse.intake.partition import Preparation
from pushsse.intake.watch import Watch
from pushsse.metrics import Metrics

log = logging.getLogger(__name__)
BATCH_RECORDS = 1000
_POLL_MS = 200
_POLL_LIMIT_S = 5.0
_PREPARE_LIMIT_S = 20.0
_NOT_OURS_S = 2.0


class Consumption:
    """Reads what the group assigns to this consumer."""

    def __init__(
        self,
        consumer: AIOKafkaConsumer,
        *,
        topic: str,
        decode: Decode,
        preparation: Preparation,
        assignment: Assignment,
        onward: Onward,
        watch: Watch,
        metrics: Metrics,
        kafka: Outage,
        allowed: Callable[[], bool],
    ) -> None:
        self._consumer = consumer
        self._topic = topic
        self._decode = decode
        self._preparation = preparation
        self._assignment = assignment
        self._onward = onward
        self._watch = watch
        self._metrics = metrics
        self._kafka = kafka
        self._allowed = allowed
        self._outage = Outage(f"getting ready to read {topic}", log, Backoff(first_s=0.25))

    async def run(self) -> None:
        """Returns when the consumer is stuck or may not go on. Raises KafkaError: then take a new one."""
        self._consumer.subscribe([self._topic], listener=self._assignment)
        failed: KafkaError | None = None
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(self._watch.run())
            try:
                while self._allowed() and not self._watch.stuck:
                    await self._turn(tasks)
            except KafkaError as error:
                failed = error
            watching.cancel()
            self._onward.cancel()
        if failed is not None:
            raise failed
        if self._watch.stuck:
            log.warning("the consumer is replaced: %s", self._watch.stuck)

    async def _turn(self, tasks: asyncio.TaskGroup) -> None:
        await self._prepare()
        found = await self._read()
        if found:
            self._assignment.idle.clear()
            try:
                await self._onward.hand_on(await self._decoded(found), tasks)
            finally:
                self._assignment.idle.set()
        else:
            await self._keep_up()
        await self._assignment.commit_due()

    async def _prepare(self) -> None:
        """Gets ready what was assigned or withheld; what can't be just now is tried again in a later turn."""
        now = time.monotonic()
        waiting = [
            partition
            for partition in self._assignment.partitions.values()
            if not partition.ready and not partition.held and partition.not_before <= now
        ]
        if not waiting:
            return
        try:
            async with asyncio.timeout(_PREPARE_LIMIT_S):
                await self._preparation.prepare(self._consumer, waiting)
        except (CommitFailedError, IllegalStateError) as error:
            # The group is at it again, and will say what is ours.
            log.info("%s: not ours just now: %s", self._topic, error)
            wait_s = _NOT_OURS_S
        except (KafkaError, Unavailable, TimeoutError) as error:
            wait_s = self._outage.hit(error)
        else:
            self._outage.over()
            for partition in waiting:
                self._assignment.release(partition)
            return
        for partition in waiting:
            partition.not_before = time.monotonic() + wait_s

    async def _read(self) -> Mapping[TopicPartition, Sequence[Record]]:
        """The next records; none after 200 ms without. Raises KafkaError where the consumer can't go on."""
        try:
            # getmany alone waits without an end while the group is busy with itself.
            async with asyncio.timeout(_POLL_LIMIT_S):
                found: Mapping[TopicPartition, Sequence[Record]] = await self._consumer.getmany(
                    timeout_ms=_POLL_MS, max_records=BATCH_RECORDS
                )
                self._kafka.over()
                return found
        except TimeoutError:
            return {}
        except OffsetOutOfRangeError as error:
            for at in error.args[0]:
                if (partition := self._assignment.partitions.get(at)) is not None:
                    self._assignment.withhold(partition)
            return {}

    async def _decoded(self, found: Mapping[TopicPartition, Sequence[Record]]) -> list[Work]:
        batch: list[Work] = []
        for at, records in found.items():
            partition = self._assignment.partitions.get(at)
            if partition is None or not partition.ready:
                # Not ours any more, or about to be prepared, and then read from where it should be.
                continue
            self._metrics.records += len(records)
            drafts, refused = await decode_all(self._decode, records, partition.owner)
            batch.append(Work(partition, drafts, refused, records[-1].offset + 1))
        return batch

    async def _keep_up(self) -> None:
        """Nothing to read: what the consumer passed over by itself (markers of transactions) is done too."""
        for partition in list(self._assignment.partitions.values()):
            if partition.ready and not partition.held and partition.live:
                position = await self._consumer.position(partition.at)
                partition.done = max(position, partition.done or 0)
