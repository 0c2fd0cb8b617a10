"""Reads topics in one consumer group, has a handler apply the records, and commits what is applied.

`build` makes the one of events, with `intake.EventHandler`; `questions.answerers` the one of answers. Any
other topic needs a `Handler` alone. Records that can't be used go to the dead-letter topic. A member of the
group that fails or gets stuck is replaced by a new one.
"""

import asyncio
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, NoReturn, Protocol, TypeVar

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError

from pushsse.errors import ClaimLost, InvalidInput, KafkaUnavailable, NotOwner, Unavailable
from pushsse.kafka import Connection, Record, Topics, cancellation_is_ours, start, stop
from pushsse.kafka.dead_letters import DeadLetters, Refused
from pushsse.kafka.partition import Assignment, Fenced, Fences, Ownership, Partition, Progress, Unfenced
from pushsse.kafka.producer import Producer
from pushsse.metrics import Metrics
from pushsse.retry import Backoff, Outage

logger = logging.getLogger(__name__)
BATCH_RECORDS = 1000
_START_LIMIT_S = 30.0
_POLL_MS = 200
_POLL_LIMIT_S = 5.0
_LOST_S = 4.0
_LOOK_S = 2.0
_TOPICS_EVERY_S = 4.0
_LETTERS_AT_ONCE = 100
# How long a run of records may hold the event loop.
_DECODE_S = 0.005
Decoded = TypeVar("Decoded")


@dataclass(frozen=True, slots=True)
class ConsumerPace:
    """How long a consumer takes, in seconds.

    `round_s` is the least time between two batches. A member that gets nowhere is stuck after `stuck_s`.
    After an outage of more than `recheck_s` partitions are prepared again: nothing was fetched meanwhile, so
    a topic that was recreated would go unnoticed.
    """

    round_s: float = 0.0
    stuck_s: float = 30.0
    recheck_s: float = 5.0


_PACE = ConsumerPace()


class Handler(Progress, Protocol[Decoded]):
    """What becomes of a topic's records.

    `EventHandler` (intake) and `AnswerHandler` (questions/answerers/kafka.py) implement it.

    Order: a partition's records are decoded and applied by offset. Guarantee: at least once; a record may
    come again after a failure, a rebalance or a restart, here or in another process. Cancelled at any point.
    """

    def decode(self, record: Record, owner: str) -> Decoded | None:
        """Reads one record of the partition that is claimed under `owner`; None skips it.

        Pure and quick: it is called for thousands of records in a row. Raises InvalidInput where it can't be
        used, which makes it a dead letter.
        """
        ...

    async def apply(self, items: Sequence[Decoded]) -> Sequence[Refused]:
        """Once the items' effects are stored, returns the records that turned out to be of no use.

        They become dead letters. Called with nothing, too, every 200 ms while something is unfinished. Raises
        Unavailable (it is called again with the same items), NotOwner (one of the partitions has a newer
        owner, or none).
        """
        ...


class Consumer:
    """A member of a consumer group, for as long as the process lives.

    Order: that of each partition. Guarantee: an offset is committed only once everything before it was
    applied, skipped, or is in the dead-letter topic. What is away is waited for; nothing is dropped. With
    `fences` a record that the backplane has isn't applied again. Topics that aren't there yet are read from
    their beginning once they are.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        topics: Topics,
        group: str,
        metrics: Metrics,
        fences: Fences | None = None,
        skip_refused: bool = True,
        pace: ConsumerPace = _PACE,
    ) -> None:
        self._connection = connection
        self._topics = topics
        self._group = group
        self._metrics = metrics
        self._skip_refused = skip_refused
        self._pace = pace
        # Topics that weren't there when reading began, and those that were.
        self._late: set[str] = set()
        self._first: frozenset[str] = frozenset()
        self._ownership: Ownership = Unfenced(topics, self._late)
        if fences is not None:
            self._ownership = Fenced(connection, fences, topics, group, self._late)

    async def run(self, handler: Handler[Decoded]) -> NoReturn:
        """For ever; a Kafka that is away, or a topic that isn't there, is waited for.

        Raises SettingsError where the group is another backplane's. Cancellation leaves the group.
        """
        blocked = self._metrics.held_partitions
        text = "Partitions that wait for the dead-letter topic"
        self._metrics.gauge("kafka_held_partitions", "sum", text, lambda: len(blocked))
        outage = Outage(
            f"Kafka at {self._connection.bootstrap}, for {self._topics.name}", logger, Backoff(0.5, 10.0)
        )
        async with Producer(self._connection) as producer:
            letters = DeadLetters(
                producer, topics=self._topics, skip_refused=self._skip_refused, metrics=self._metrics
            )
            while True:
                try:
                    await self._be_a_member(handler, letters, outage)
                except (KafkaError, Unavailable, TimeoutError) as error:
                    await asyncio.sleep(outage.failed(error))
                except asyncio.CancelledError:
                    if cancellation_is_ours():
                        raise
                    # Ending here would pass for a service that was told to stop, and nothing be read again.
                    await asyncio.sleep(outage.failed("its client gave up"))

    async def _be_a_member(self, handler: Handler[Decoded], letters: DeadLetters, outage: Outage) -> None:
        """One membership: until it fails or gets stuck."""
        consumer = self._connection.consumer(self._group)
        assignment = Assignment(consumer, self._ownership, handler, self._metrics)
        try:
            async with asyncio.timeout(_START_LIMIT_S):
                await start(consumer)
            there = await self._topics_there(consumer)
            # Before the group counts this node in: a node of another backplane must get no partition at all.
            await self._ownership.check()
            consumer.subscribe(sorted(there), listener=assignment)
            watchdog = Watchdog(
                consumer,
                assignment,
                self._ownership,
                topics=self._topics,
                there=there,
                stuck_s=self._pace.stuck_s,
                metrics=self._metrics,
            )
            member = _Member(
                consumer,
                assignment,
                handler,
                letters=letters,
                watchdog=watchdog,
                metrics=self._metrics,
                kafka=outage,
                pace=self._pace,
            )
            await member.run()
        finally:
            # aiokafka revokes nothing when it stops. The commit is for the batch that is applied; what is in
            # hand isn't in it.
            try:
                await assignment.commit()
            finally:
                assignment.end()
                await stop(consumer)

    async def _topics_there(self, consumer: AIOKafkaConsumer) -> frozenset[str]:
        """Waits for the first of the topics; the service stays up meanwhile."""
        missing = Outage(f"topic {self._topics.name}", logger, Backoff(first_s=0.5, most_s=3.0))
        while True:
            async with asyncio.timeout(_START_LIMIT_S):
                every = await consumer.topics()
            if there := self._topics.among(every):
                missing.over()
                self._say_missing(every)
                self._first = self._first or there
                # What is produced into a new topic before anybody reads it was meant to be read.
                self._late |= there - self._first
                return there
            await asyncio.sleep(missing.failed("isn't there, or may not be read"))

    def _say_missing(self, every: Collection[str]) -> None:
        if absent := self._topics.missing(every):
            logger.warning(
                "%s: no such topic, or it may not be read; it will be read once it is there",
                ", ".join(absent),
            )


class _Batch(NamedTuple, Generic[Decoded]):
    """One partition's records of one poll, decoded; `end` is the offset after the last of them."""

    partition: Partition
    items: Sequence[Decoded]
    refused: Sequence[Refused]
    end: int


class _Member(Generic[Decoded]):
    """One membership: rounds of prepare, poll, decode, apply, commit.

    Deliberate: a partition with dead letters to write is paused, alone, until they are acknowledged. What
    came after them in the same batch is applied already but not committed; if it is read again, it is known.
    """

    def __init__(
        self,
        consumer: AIOKafkaConsumer,
        assignment: Assignment,
        handler: Handler[Decoded],
        *,
        letters: DeadLetters,
        watchdog: "Watchdog",
        metrics: Metrics,
        kafka: Outage,
        pace: ConsumerPace,
    ) -> None:
        self._consumer = consumer
        self._assignment = assignment
        self._handler = handler
        self._letters = letters
        self._watchdog = watchdog
        self._metrics = metrics
        self._pace = pace
        self._kafka = kafka
        self._applying = Outage("records from Kafka can't be applied", logger, Backoff())
        self._writes: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Returns when the member is stuck. Raises KafkaError: take a new one."""
        failed: KafkaError | None = None
        stuck = ""
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(self._watchdog.run())
            try:
                while not stuck:
                    await self._round(tasks)
                    # A CancelledError that leaks out of aiokafka ends the watchdog, and the task group says
                    # nothing. Without it a member that gets stuck would stay, and its claim would lapse.
                    stuck = self._watchdog.stuck or ("its watchdog has ended" if watching.done() else "")
            except KafkaError as error:
                failed = error
            watching.cancel()
            for write in self._writes:
                # Its offsets aren't committed: the next member reads those records again.
                write.cancel()
        if failed is not None:
            raise failed
        if stuck:
            logger.warning(
                "the consumer is replaced: %s. Nothing is lost. If that goes on, look at the brokers, and at"
                " the network between them and this node",
                stuck,
            )

    async def _round(self, tasks: asyncio.TaskGroup) -> None:
        began = time.monotonic()
        await self._assignment.prepare()
        polled = await self._poll()
        if polled or self._handler.unfinished():
            self._assignment.idle.clear()
            try:
                await self._handle(await self._decoded(polled), tasks)
            finally:
                self._assignment.idle.set()
        else:
            await self._pass_over_markers()
        # Guarantee 1: after the batch, never while it is applied.
        await self._assignment.commit_due()
        if self._pace.round_s:
            await asyncio.sleep(max(0.0, began + self._pace.round_s - time.monotonic()))

    async def _poll(self) -> Mapping[TopicPartition, Sequence[Record]]:
        """The next records; none after 200 ms without. Raises KafkaError where the member can't go on."""
        try:
            # getmany alone waits without an end while the group is rebalancing.
            async with asyncio.timeout(_POLL_LIMIT_S):
                polled: Mapping[TopicPartition, Sequence[Record]] = await self._consumer.getmany(
                    timeout_ms=_POLL_MS, max_records=BATCH_RECORDS
                )
                self._kafka.over()
                return polled
        except TimeoutError:
            return {}
        except OffsetOutOfRangeError as error:
            # The topic was recreated, or retention has overtaken us: `prepare` finds out and says which.
            for at in error.args[0]:
                if (partition := self._assignment.partitions.get(at)) is not None:
                    self._assignment.suspend(partition)
            return {}

    async def _decoded(self, polled: Mapping[TopicPartition, Sequence[Record]]) -> Sequence[_Batch[Decoded]]:
        batches: list[_Batch[Decoded]] = []
        for at, records in polled.items():
            partition = self._assignment.partitions.get(at)
            if partition is None or not partition.ready:
                # Guarantee 1: fetched under an assignment before, or before the partition was suspended. It
                # is read again from the right offset, under the right owner.
                continue
            self._metrics.records += len(records)
            items, refused = await decode_all(self._handler, records, partition.owner)
            batches.append(_Batch(partition, items, refused, records[-1].offset + 1))
        return batches

    async def _handle(self, batches: Sequence[_Batch[Decoded]], tasks: asyncio.TaskGroup) -> None:
        """Returns when the batches are applied or their partitions gone; dead letters may take longer."""
        for batch in await self._applied(batches):
            if not batch.refused:
                batch.partition.next_offset = batch.end
                continue
            # Only what is before the first dead letter may be committed until the letters are acknowledged.
            batch.partition.next_offset = batch.refused[0].record.offset
            self._assignment.block(batch.partition)
            write = tasks.create_task(self._bury(batch))
            self._writes.add(write)
            write.add_done_callback(self._writes.discard)

    async def _applied(self, batches: Sequence[_Batch[Decoded]]) -> Sequence[_Batch[Decoded]]:
        """The same items again until they are applied; what isn't ours any more is left out."""
        ended = self._assignment.ended
        while not ended.is_set():
            ours = [batch for batch in batches if batch.partition.assigned]
            if batches and not ours:
                break
            try:
                # Order in a partition: nothing is polled after these before they have gone through.
                refused = await self._handler.apply([item for batch in ours for item in batch.items])
            except NotOwner as error:
                return await self._without_the_lost(ours, error)
            except Unavailable as error:
                await self._assignment.wait(self._applying.failed(error))
            else:
                if self._applying.over() > self._pace.recheck_s:
                    self._assignment.suspend_all()
                return [_with(batch, refused) for batch in ours if batch.partition.assigned]
        return []

    async def _without_the_lost(
        self, batches: Sequence[_Batch[Decoded]], error: NotOwner
    ) -> Sequence[_Batch[Decoded]]:
        """Finds out whose partition has a newer owner, one by one; the log skips what it has already."""
        if len(batches) > 1:
            return [applied for batch in batches for applied in await self._applied([batch])]
        [batch] = batches
        if isinstance(error, ClaimLost):
            logger.warning(
                "%s: its claim is lost, since Redis was emptied or came back with an older state. If the"
                " partition is still this node's, it is claimed again and read on",
                batch.partition.name,
            )
            self._assignment.suspend(batch.partition)
            return []
        logger.warning(
            "%s has a newer owner, which reads the records that this node has in hand: they are dropped here",
            batch.partition.name,
        )
        # If the group takes it from us, that comes within a heartbeat or two. If not, it is claimed again.
        # What the other owner committed is where to go on, so our own offset is forgotten.
        batch.partition.next_offset = None
        self._assignment.suspend(batch.partition, for_s=_LOST_S)
        return []

    async def _bury(self, batch: _Batch[Decoded]) -> None:
        """Writes dead letters until they are acknowledged, then lets their partition go on."""
        partition, left = batch.partition, batch.refused
        dlq_topic = self._letters.topics.dead_letters_of(partition.at.topic)
        waiting = f"{partition.name} waits for the dead-letter topic {dlq_topic}"
        outage = Outage(waiting, logger, Backoff(first_s=0.25))
        logger.warning(
            "%s: %d of the records up to offset %d can't be used, first offset %d (%s); they go to %s, and"
            " `pushsse dead --topic %s` shows why",
            partition.name,
            len(left),
            batch.end - 1,
            left[0].record.offset,
            left[0].at,
            dlq_topic,
            partition.at.topic,
        )
        while left and partition.assigned:
            now, later = left[:_LETTERS_AT_ONCE], left[_LETTERS_AT_ONCE:]
            try:
                still_refused = await self._letters.write(now)
            except KafkaUnavailable as error:
                await self._assignment.wait(outage.failed(error))
                continue
            self._metrics.dead_letters += len(now) - len(still_refused)
            # What is written isn't written again because of what waits beside it.
            left = [*still_refused, *later]
            if still_refused:
                await self._assignment.wait(outage.failed("it refuses some records"))
            else:
                outage.over()
        if partition.assigned:
            partition.next_offset = batch.end
            self._assignment.unblock(partition)

    async def _pass_over_markers(self) -> None:
        """Nothing to read: what the consumer passed over by itself (markers of transactions) is done, too."""
        for partition in list(self._assignment.partitions.values()):
            if partition.ready and not partition.blocked:
                try:
                    async with asyncio.timeout(_POLL_LIMIT_S):
                        position = await self._consumer.position(partition.at)
                except TimeoutError:
                    return
                # Revoked or suspended while we waited: its offset isn't ours to move.
                if partition.ready:
                    partition.next_offset = max(position, partition.next_offset or 0)


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


async def decode_all(
    handler: Handler[Decoded], records: Sequence[Record], owner: str
) -> tuple[Sequence[Decoded], Sequence[Refused]]:
    """Decodes a run of records; none can stop the others. Gives way to other tasks in between."""
    items: list[Decoded] = []
    refused: list[Refused] = []
    loop = asyncio.get_running_loop()
    until = loop.time() + _DECODE_S
    for record in records:
        if loop.time() > until:
            await asyncio.sleep(0)
            until = loop.time() + _DECODE_S
        try:
            item = handler.decode(record, owner)
        except InvalidInput as error:
            refused.append(Refused(record, error.violations[0].at, str(error)))
        except Exception as error:  # noqa: BLE001 - a record that trips a bug must not stop its partition for ever
            refused.append(Refused(record, "$", f"the decoder failed: {type(error).__name__}: {error}"))
        else:
            if item is not None:
                items.append(item)
    return items, refused


def _with(batch: _Batch[Decoded], refused: Sequence[Refused]) -> _Batch[Decoded]:
    """The batch with those of its records that were refused when they were applied, by offset."""
    at = batch.partition.at
    mine = [each for each in refused if (each.record.topic, each.record.partition) == at]
    if not mine:
        return batch
    return batch._replace(refused=sorted([*batch.refused, *mine], key=lambda each: each.record.offset))
