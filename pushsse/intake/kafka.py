"""The Kafka intake as a service: gets a consumer into the group, and a new one when that can't go on.

Run by the composition root; what a consumer reads is consumption.py's business.
"""

import asyncio
import logging
from typing import NoReturn

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError

from pushsse.backoff import Backoff
from pushsse.errors import SettingsError, Unavailable
from pushsse.intake.assignment import Assignment
from pushsse.intake.base import Dispatch, Fences
from pushsse.intake.consumption import Consumption
from pushsse.intake.deadletter import DeadLetters
from pushsse.intake.decode import Decode
from pushsse.intake.onward import Onward
from pushsse.intake.outage import Outage
from pushsse.intake.partition import Preparation
from pushsse.intake.producer import Producer
from pushsse.intake.same_backplane import SameBackplane
from pushsse.intake.watch import Watch
from pushsse.kafka import Connection, cancellation_is_ours, stop
from pushsse.metrics import Metrics

log = logging.getLogger(__name__)


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
