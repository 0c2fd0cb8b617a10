"""POST /v1/events where Kafka is configured: the events go into the topic and come back through the intake.

Called by the API; hands on to Kafka, keyed so that one person's events stay in order.
"""

from collections.abc import Sequence

import msgspec

from pushsse.errors import KafkaUnavailable
from pushsse.event import Event
from pushsse.intake.base import Submitted
from pushsse.intake.producer import Outgoing, Producer, RecordTooLarge

EVERYBODY = b"all"


class KafkaProducerIntake:
    """An intake that writes to Kafka; see `Intake`."""

    def __init__(self, producer: Producer, *, topic: str) -> None:
        self._producer = producer
        self._topic = topic
        self._encoder = msgspec.json.Encoder()

    async def accept(self, submitted: Sequence[Submitted]) -> None:
        """Returns when Kafka has all of them. Raises KafkaUnavailable."""
        try:
            await self._producer.send(self._topic, [self._record(each) for each in submitted])
        except RecordTooLarge as error:
            raise KafkaUnavailable(str(error)) from error

    def _record(self, submitted: Submitted) -> Outgoing:
        named = msgspec.structs.replace(submitted.event, id=submitted.event_id)
        return Outgoing(key_of(submitted.event), self._encoder.encode(named))


def key_of(event: Event) -> bytes:
    """What keeps events in order: the event's own key, else the only user, else one for everybody."""
    if event.key:
        return event.key.encode()
    users = event.users
    return users[0].encode() if users is not None and len(users) == 1 else EVERYBODY
