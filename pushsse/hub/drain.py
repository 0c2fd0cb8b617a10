"""Ends a node's streams when it stops: in random order, over a window, lest all come back at once.

Called by the server between SIGTERM and exit. Each stream gets `exception` `shutdown`, a random `retry`, and
a clean end of the body; who doesn't read can't hold it up.
"""

import asyncio
import random

from pushsse.errors import CloseReason
from pushsse.hub.hub import Hub

STEP_S = 0.05


async def drain(hub: Hub, *, window_s: float) -> None:
    """Ends all streams within `window_s` seconds."""
    loop = asyncio.get_running_loop()
    leaving = list(hub.subscribers)
    random.shuffle(leaving)
    began, whole = loop.time(), len(leaving)
    while leaving:
        spent = (loop.time() - began) / window_s if window_s > 0 else 1.0
        due = whole - round(whole * min(1.0, spent))
        while len(leaving) > due:
            hub.end(leaving.pop(), CloseReason.SHUTDOWN)
        if leaving:
            await asyncio.sleep(STEP_S)
    # Those that came in the meantime.
    for subscriber in list(hub.subscribers):
        hub.end(subscriber, CloseReason.SHUTDOWN)
