"""Events from Kafka: the handler that decodes the topic's records and dispatches them, as a service.

Run by the node; `kafka.consumer` reads, commits and writes dead letters; hands drafts to the dispatcher.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from pushsse.backplane import Draft
from pushsse.intake import Decode, Dispatches
from pushsse.kafka import TopicPartition
from pushsse.kafka.consumer import Consumer
from pushsse.kafka.dead_letters import Refused


@dataclass(frozen=True, slots=True)
class EventHandler:
    """Dispatches a batch, of all partitions together: the database is asked once."""

    decode: Decode
    dispatcher: Dispatches

    async def apply(self, drafts: Sequence[Draft]) -> Sequence[Refused]:
        """Returns once the log has them; none is refused. Raises Unavailable, NotOwner."""
        if drafts:
            # Guarantee 1: awaited, not started as a task. The consumer may commit once this has returned.
            await self.dispatcher.dispatch(drafts)
        return ()

    def unfinished(self) -> Mapping[TopicPartition, int]:
        """Nothing: what was dispatched is in the log, all of it."""
        return {}

    def forget(self, partitions: Collection[TopicPartition]) -> None:
        """Nothing is kept that would have to be forgotten."""


@dataclass(frozen=True, slots=True)
class KafkaIntake:
    """Reads the events' topic for as long as the process lives."""

    consumer: Consumer
    handler: EventHandler

    async def run(self) -> NoReturn:
        """See `Consumer.run`."""
        await self.consumer.run(self.handler)

    def release(self) -> None:
        """Gives the partitions back to the group, until `resume`: others can use them, this node can't."""
        self.consumer.release()

    def resume(self) -> None:
        """Joins the group again."""
        self.consumer.resume()
