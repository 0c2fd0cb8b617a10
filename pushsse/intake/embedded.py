"""POST /v1/events without Kafka: the events go straight to the dispatcher. The twin of produce.py.

Called by the API; hands on to the dispatcher.
"""

import asyncio
from collections.abc import Sequence

from pushsse.backplane.base import Draft
from pushsse.intake.base import Dispatch, Submitted


class EmbeddedIntake:
    """An intake that dispatches by itself; see `Intake`."""

    def __init__(self, dispatch: Dispatch) -> None:
        self._dispatch = dispatch
        self._turn = asyncio.Lock()

    async def accept(self, submitted: Sequence[Submitted]) -> int:
        """Returns when the log has all of them: how many recipients had them already. Raises Unavailable."""
        drafts = [Draft(each.publication, None, _once(each)) for each in submitted]
        async with self._turn:
            return (await self._dispatch(drafts)).repeated


def _once(submitted: Submitted) -> str:
    """A producer's own id. Nobody can repeat one that was made for this call: it isn't remembered."""
    return f"{submitted.event.type}|{submitted.event_id}" if submitted.event.id else ""
