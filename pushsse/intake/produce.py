"""POST /v1/events where Kafka is configured: the events go into the topic and come back through the intake.

Called by the API; hands on to Kafka, keyed so that one person's events stay in order.
"""

from collections.abc import Sequence

import msgspec

from pushsse.errors import EventTooLarge
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
        """Returns when Kafka has all. Raises KafkaUnavailable, or EventTooLarge: the others are taken."""
        try:
            await self._producer.send(self._topic, [self._record(each) for each in submitted])
        except RecordTooLarge:
            # Kafka doesn't say which one it was. What it has taken already is known by its id.
            refused = [each.event_id for each in submitted if not await self._takes(each)]
            if refused:
                raise EventTooLarge(refused) from None

    async def _takes(self, submitted: Submitted) -> bool:
        try:
            await self._producer.send(self._topic, [self._record(submitted)])
        except RecordTooLarge:
            return False
        return True

    def _record(self, submitted: Submitted) -> Outgoing:
        named = msgspec.structs.replace(submitted.event, id=submitted.event_id)
        return Outgoing(key_of(submitted.event), self._encoder.encode(named))


def key_of(event: Event) -> bytes:
    """What keeps events in order: the event's own key, else the only user, else one for everybody."""
    if event.key:
        return event.key.encode()
    users = event.users
    return users[0].encode() if users is not None and len(users) == 1 else EVERYBODY
