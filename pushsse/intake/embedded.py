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

    async def accept(self, submitted: Sequence[Submitted]) -> None:
        """Returns when the log has all of them. Raises Unavailable."""
        # By name, each: a call may be repeated, and Redis remembers while this process may not.
        drafts = [Draft(each.publication, None, f"{each.event.type}|{each.event_id}") for each in submitted]
        async with self._turn:
            await self._dispatch(drafts)
