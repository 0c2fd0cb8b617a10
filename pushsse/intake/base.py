"""What the intakes share: what is submitted to them, where it goes, and what they need of the backplane.

Called by the API (accept) and the composition root (dispatch); every intake ends in `Dispatch`.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from pushsse.backplane import Draft, Receipt
from pushsse.event import Event, Publication

# Returns once the log has the drafts. Raises Unavailable (try the same drafts again) or NotOwner.
Dispatch = Callable[[Sequence[Draft]], Awaitable[Receipt]]


class Submitted(NamedTuple):
    """An event that came by HTTP: checked, named, and encoded (so it is known to fit into a frame)."""

    event: Event
    event_id: str
    publication: Publication


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


class Fences(Protocol):
    """The part of the backplane that keeps Kafka's records from being published twice."""

    async def claim(self, topic: str, partition: int, owner: str) -> None:
        """Makes `owner` the only one whose sources of this partition are taken."""
        ...

    async def identity(self, suggested: str) -> str:
        """The word by which this backplane is known.

        `suggested` becomes it where it has none; "" only asks, and returns "" then.
        """
        ...

    async def claimed(self, topic: str, partition: int) -> bool:
        """Whether anybody has ever claimed this partition."""
        ...

    async def first_start(self, topic: str, offsets: Mapping[int, int]) -> Mapping[int, int]:
        """Where reading began when the topic was first started, by partition.

        The first call for a topic keeps its `offsets`; every later one, by any node, returns what was kept.
        """
        ...

    async def fence(self, topic: str, partition: int) -> tuple[int, int] | None:
        """The highest offset that any log has, with its record's timestamp in ms."""
        ...

    async def reset_fence(self, topic: str, partition: int) -> None:
        """Forgets the fence."""
        ...
