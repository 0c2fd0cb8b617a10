"""The Kafka intake as a service: gets a consumer into the group, and a new one when that can't go on.

Run by the composition root; hands drafts to the dispatcher, and what cannot be used to the dead-letter topic.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, NoReturn

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError, OffsetOutOfRangeError

from pushsse.backplane import Draft
from pushsse.errors import KafkaUnavailable, NotOwner, SettingsError, Unavailable
from pushsse.intake.http import Dispatch
from pushsse.intake.record import Decode, decode_all
from pushsse.kafka.client import Connection, Record, cancellation_is_ours, stop
from pushsse.kafka.dead_letters import DeadLetters, Refused
from pushsse.kafka.outage import Outage
from pushsse.kafka.partition import Assignment, Fences, Partition, Preparation, SameBackplane
from pushsse.kafka.producer import Producer
from pushsse.metrics import Metrics
from pushsse.retry import Backoff

log = logging.getLogger(__name__)
LOOK_S = 2.0
STUCK_S = 30.0
_SPARE_S = 60.0
_LETTERS_AT_ONCE = 100
_LOST_S = 4.0
RECHECK_AFTER_S = 5.0
BATCH_RECORDS = 1000
_POLL_MS = 200
_POLL_LIMIT_S = 5.0
_PREPARE_LIMIT_S = 20.0
_NOT_OURS_S = 2.0


class KafkaIntake:
    """Reads one topic in one group, hands its records on, and commits what the log has.

    Order: that of each partition. Guarantee: an offset is committed only once everything before it was
    dispatched, skipped, or is in the dead-letter topic. What is away is waited for; nothing is dropped.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        topic: str,
        group: str,
        dlq_topic: str,
        start: str,
        decode: Decode,
        dispatch: Dispatch,
        fences: Fences,
        metrics: Metrics,
        skip_refused: bool = True,
    ) -> None:
        self._connection = connection
        self._topic = topic
        self._group = group
        self._dlq_topic = dlq_topic
        self._decode = decode
        self._dispatch = dispatch
        self._metrics = metrics
        self._skip_refused = skip_refused
        self._same = SameBackplane(connection, fences, topic, group)
        self._preparation = Preparation(connection=connection, fences=fences, start=start, same=self._same)
        self._assignment: Assignment | None = None
        self._allowed = asyncio.Event()
        self._allowed.set()

    async def run(self) -> NoReturn:
        """For ever; a Kafka that is away, or a topic that isn't there, is waited for.

        Raises SettingsError where the topic is its own dead-letter topic, or the group another backplane's.
        Cancellation leaves the group.
        """
        if self._dlq_topic == self._topic:
            raise SettingsError(f"PUSHSSE_KAFKA_DLQ_TOPIC: {self._topic!r} is the topic of the events itself")
        self._metrics.gauge(
            "kafka_held_partitions", "Partitions that wait for the dead-letter topic", lambda: self.held
        )
        outage = Outage(f"Kafka at {self._connection.bootstrap}", log, Backoff(first_s=0.5, most_s=10.0))
        async with Producer(self._connection) as producer:
            letters = DeadLetters(
                producer, topic=self._dlq_topic, skip_refused=self._skip_refused, metrics=self._metrics
            )
            while True:
                await self._allowed.wait()
                try:
                    await self._consume(letters, outage)
                except (KafkaError, Unavailable, TimeoutError) as error:
                    await asyncio.sleep(outage.hit(error))
                except asyncio.CancelledError:
                    if cancellation_is_ours():
                        raise
                    # Ending here would pass for a service that was told to stop, and nothing be read again.
                    await asyncio.sleep(outage.hit("its client gave up"))

    def release(self) -> None:
        """Gives the partitions back to the group, until `resume`: others can use them, this node can't."""
        self._allowed.clear()
        if self._assignment is not None:
            self._assignment.end()

    def resume(self) -> None:
        """Joins the group again."""
        self._allowed.set()

    async def _consume(self, letters: DeadLetters, outage: Outage) -> None:
        """One consumer's life."""
        consumer = self._connection.consumer(self._group)
        assignment = Assignment(consumer, self._same, self._metrics)
        consumption = Consumption(
            consumer,
            topic=self._topic,
            decode=self._decode,
            preparation=self._preparation,
            assignment=assignment,
            onward=Onward(assignment, dispatch=self._dispatch, letters=letters, metrics=self._metrics),
            watch=Watch(consumer, assignment, self._same, metrics=self._metrics),
            metrics=self._metrics,
            kafka=outage,
            allowed=self._allowed.is_set,
        )
        self._assignment = assignment
        try:
            await consumer.start()
            await self._topic_is_there(consumer)
            await self._same.check()
            await consumption.run()
        finally:
            # aiokafka revokes nothing when it stops.
            await assignment.commit()
            assignment.end()
            await stop(consumer)

    @property
    def held(self) -> int:
        """Partitions that wait for the dead-letter topic."""
        return sum(each.held for each in self._assignment.partitions.values()) if self._assignment else 0

    async def _topic_is_there(self, consumer: AIOKafkaConsumer) -> None:
        """Waits for the topic; the service stays up meanwhile."""
        missing = Outage(f"topic {self._topic}", log, Backoff(first_s=0.5, most_s=3.0))
        while True:
            if self._topic in await consumer.topics():
                missing.over()
                return
            await asyncio.sleep(missing.hit("isn't there, or may not be read"))


class Work(NamedTuple):
    """One partition's part of a batch; `end` is the offset after its last record."""

    partition: Partition
    drafts: list[Draft]
    refused: list[Refused]
    end: int


class Onward:
    """Dispatches and dead-letters what was read, and marks it as done."""

    def __init__(
        self, assignment: Assignment, *, dispatch: Dispatch, letters: DeadLetters, metrics: Metrics
    ) -> None:
        self._assignment = assignment
        self._dispatch = dispatch
        self._letters = letters
        self._metrics = metrics
        self._outage = Outage("publishing what came from Kafka", log, Backoff())
        self._dlq_outage = Outage(f"dead-letter topic {letters.topic}", log, Backoff(first_s=0.25))
        self._writing: set[asyncio.Task[None]] = set()

    async def hand_on(self, batch: Sequence[Work], tasks: asyncio.TaskGroup) -> None:
        """Returns when the batch is dispatched, or its partitions are gone; dead letters may take longer."""
        for work in await self._dispatched(batch):
            if not work.refused:
                work.partition.done = work.end
                continue
            work.partition.done = work.refused[0].record.offset
            self._assignment.hold(work.partition)
            writing = tasks.create_task(self._write(work))
            self._writing.add(writing)
            writing.add_done_callback(self._writing.discard)

    def cancel(self) -> None:
        """Gives up what is being written to the dead-letter topic: its offsets aren't committed."""
        for writing in self._writing:
            writing.cancel()

    async def _dispatched(self, batch: Sequence[Work]) -> Sequence[Work]:
        """The same records again until they are in the log; what isn't ours any more is left out."""
        while live := [work for work in batch if work.partition.live]:
            drafts = [draft for work in live for draft in work.drafts]
            try:
                if drafts:
                    await self._dispatch(drafts)
            except NotOwner:
                return await self._without_the_lost(live)
            except Unavailable as error:
                await self._assignment.pause(self._outage.hit(error))
            else:
                if self._outage.over() > RECHECK_AFTER_S:
                    # Nothing was fetched for a while, and a topic made anew meanwhile would go unnoticed.
                    self._assignment.withhold_all()
                return [work for work in live if work.partition.live]
        return []

    async def _without_the_lost(self, batch: Sequence[Work]) -> Sequence[Work]:
        """Finds out whose partition has a newer owner, one by one; the log skips what it has already."""
        if len(batch) > 1:
            return [kept for work in batch for kept in await self._dispatched([work])]
        [work] = batch
        partition = work.partition
        log.warning("%s has a newer owner; its records in hand are dropped", partition.name)
        # If the group takes it from us, that comes within a heartbeat or two. If not, it is claimed anew.
        partition.done = None
        self._assignment.withhold(partition, for_s=_LOST_S)
        return []

    async def _write(self, work: Work) -> None:
        """Writes dead letters until they are acknowledged, then lets their partition go on."""
        partition, left = work.partition, work.refused
        log.warning(
            "%s: %d of the records up to %d can't be used, first offset %d (%s); they go to %s",
            partition.name,
            len(left),
            work.end - 1,
            left[0].record.offset,
            left[0].at,
            self._letters.topic,
        )
        while left and partition.live:
            now, later = left[:_LETTERS_AT_ONCE], left[_LETTERS_AT_ONCE:]
            try:
                held = await self._letters.write(now)
            except KafkaUnavailable as error:
                await self._assignment.pause(self._dlq_outage.hit(f"{error}; {partition.name} is held up"))
                continue
            self._metrics.dead_letters += len(now) - len(held)
            # What is written isn't written again because of what is held beside it.
            left = [*held, *later]
            if held:
                await self._assignment.pause(self._dlq_outage.hit(f"{partition.name} is held up"))
            else:
                self._dlq_outage.over()
        if partition.live:
            partition.done = work.end
            self._assignment.release(partition)


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
