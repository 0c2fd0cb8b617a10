"""Events that come by POST /v1/events, with Kafka behind the call or without.

Called by the API with events that it has checked. Without Kafka they go to the dispatcher. With it they go
into the topic, keyed so that one person's events stay in order, and come back through the intake from Kafka.
"""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Protocol

import msgspec
from msgspec import Struct

from pushsse.backplane import Draft, Receipt
from pushsse.errors import EventTooLarge
from pushsse.event import Event
from pushsse.intake import Dispatches
from pushsse.kafka.producer import Outgoing, Producer, RecordTooLarge

EVERYBODY = b"all"
# What is dispatched in one piece: more would hold the event loop for over some milliseconds.
_MOST_EVENTS = 500
_MOST_RECIPIENTS = 2_000


class Submitted(Struct, frozen=True, gc=False):
    """An event that came by HTTP: checked, named, and encoded (so it is known to fit into a frame)."""

    event: Event
    event_id: str
    draft: Draft


class Intake(Protocol):
    """Takes events from producers without Kafka.

    Order: that of acceptance; with Kafka behind it, within a key. Guarantee: what was accepted outlives this
    process as far as the parts behind it do. Cancelled or failed, any of the events may have been taken:
    submitting the same ids again is right, and repeats none.
    """

    async def accept(self, submitted: Sequence[Submitted]) -> int | None:
        """Returns when all are taken: how many recipients had them already, or None where that shows later.

        A broadcast counts as one. Raises Unavailable.
        """
        ...

    @property
    def takes_nowait(self) -> bool:
        """Whether `accept_nowait` may take an event just now: asked before the event is decoded."""
        ...

    def accept_nowait(self, submitted: Submitted) -> Receipt | None:
        """As `accept` with one event, without waiting; None where that can't be, and it wasn't taken."""
        ...


class DispatchesNowait(Dispatches, Protocol):
    """A dispatcher that can do without waiting where nothing has to be waited for."""

    def dispatch_nowait(self, draft: Draft) -> Receipt | None:
        """As `dispatch` with one draft; None where it has to wait, and nothing was published."""
        ...


class EmbeddedIntake:
    """An intake without Kafka; see `Intake`."""

    def __init__(self, dispatcher: DispatchesNowait, *, waits: bool) -> None:
        """`waits` says that the dispatcher's backplane or database is always to be waited for."""
        self._dispatcher = dispatcher
        self._waits = waits
        self._one_at_a_time = asyncio.Lock()
        # Calls that hold the lock or wait for it. The lock itself is open for a moment between two of them.
        self._accepting = 0

    async def accept(self, submitted: Sequence[Submitted]) -> int:
        """Returns when the log has all of them: how many recipients had them already. Raises Unavailable."""
        drafts = [each.draft for each in submitted]
        repeated = 0
        # Order: one call after another, since a call's portions are dispatched one after another.
        self._accepting += 1
        try:
            async with self._one_at_a_time:
                for at, portion in enumerate(_portions(drafts)):
                    if at:
                        # Where nothing has to be waited for, all of them would be one turn of the event loop.
                        await asyncio.sleep(0)
                    repeated += (await self._dispatcher.dispatch(portion)).repeated
        finally:
            self._accepting -= 1
        return repeated

    @property
    def takes_nowait(self) -> bool:
        """Whether `accept_nowait` may take an event just now: asked before the event is decoded."""
        # Order is that of acceptance: while others are being dispatched, this one has to wait.
        return not (self._waits or self._accepting)

    def accept_nowait(self, submitted: Submitted) -> Receipt | None:
        """As `accept` with one event, without waiting; None where that can't be, and it wasn't taken."""
        return self._dispatcher.dispatch_nowait(submitted.draft) if self.takes_nowait else None


class KafkaProducerIntake:
    """An intake that writes to Kafka; see `Intake`."""

    def __init__(self, producer: Producer, *, topic: str) -> None:
        self._producer = producer
        self._topic = topic
        self._encoder = msgspec.json.Encoder()

    async def accept(self, submitted: Sequence[Submitted]) -> None:
        """Returns when Kafka has all. Raises KafkaUnavailable, or EventTooLarge: the others are taken."""
        # What comes a second time is known by its id.
        refused = await self._producer.send_each(self._topic, [self._record(each) for each in submitted])
        for reason in refused.values():
            if not isinstance(reason, RecordTooLarge):
                raise reason
        if refused:
            raise EventTooLarge([submitted[at].event_id for at in refused])

    @property
    def takes_nowait(self) -> bool:
        """Never: Kafka has to be waited for."""
        return False

    def accept_nowait(self, submitted: Submitted) -> None:
        """Takes none."""

    def _record(self, submitted: Submitted) -> Outgoing:
        named = msgspec.structs.replace(submitted.event, id=submitted.event_id)
        trace = submitted.draft.publication.trace
        headers = (("traceparent", trace.encode()),) if trace else ()
        return Outgoing(key_of(submitted.event), self._encoder.encode(named), headers)


def key_of(event: Event) -> bytes:
    """What keeps events in order: the event's own key, else the only user, else one for everybody."""
    if event.key:
        return event.key.encode()
    users = event.users
    return users[0].encode() if users is not None and len(users) == 1 else EVERYBODY


def _portions(drafts: Sequence[Draft]) -> Iterator[Sequence[Draft]]:
    start = recipients = 0
    for at, draft in enumerate(drafts):
        more = len(draft.publication.users or ())
        if at - start == _MOST_EVENTS or (at > start and recipients + more > _MOST_RECIPIENTS):
            yield drafts[start:at]
            start, recipients = at, 0
        recipients += more
    if start < len(drafts):
        yield drafts[start:]
