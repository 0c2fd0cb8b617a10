"""POST /v1/events without Kafka: the events go straight to the dispatcher. The twin of produce.py.

Called by the API; hands on to the dispatcher.
"""

import asyncio
from collections.abc import Iterator, Sequence

from pushsse.backplane import Draft
from pushsse.intake.base import Dispatch, Submitted

# What is dispatched in one piece: more would hold the event loop for over some milliseconds.
_MOST_EVENTS = 500
_MOST_RECIPIENTS = 2_000


class EmbeddedIntake:
    """An intake that dispatches by itself; see `Intake`."""

    def __init__(self, dispatch: Dispatch) -> None:
        self._dispatch = dispatch
        self._turn = asyncio.Lock()

    async def accept(self, submitted: Sequence[Submitted]) -> int:
        """Returns when the log has all of them: how many recipients had them already. Raises Unavailable."""
        drafts = [Draft(each.publication, None, _once(each)) for each in submitted]
        repeated = 0
        async with self._turn:
            for portion in _portions(drafts):
                repeated += (await self._dispatch(portion)).repeated
        return repeated


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


def _once(submitted: Submitted) -> str:
    """A producer's own id. Nobody can repeat one that was made for this call: it isn't remembered."""
    return f"{submitted.event.type}|{submitted.event_id}" if submitted.event.id else ""
