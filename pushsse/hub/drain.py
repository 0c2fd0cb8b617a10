"""Ends a node's streams when it stops: in random order, over a window, lest all come back at once.

Called by the server between SIGTERM and exit, and by a node that is isolated. Each stream gets `exception`
with the reason, a random `retry`, and a clean end of the body; who doesn't read can't hold it up.
"""

import asyncio
import random
from collections.abc import Sequence

from pushsse.errors import CloseReason
from pushsse.hub.hub import Hub
from pushsse.stream.frame import spread_retries_ms
from pushsse.stream.subscriber import Subscriber

STEP_S = 0.05
FLUSH_S = 1.0


async def drain(
    hub: Hub,
    *,
    window_s: float,
    flush_s: float = FLUSH_S,
    reason: CloseReason = CloseReason.SHUTDOWN,
) -> None:
    """Ends all streams within `window_s` seconds; last words may take `flush_s` more."""
    loop = asyncio.get_running_loop()
    leaving = list(hub.subscribers)
    ended = tuple(leaving)
    random.shuffle(leaving)
    # Even ends and even waits make even returns, for whichever node gets them.
    retries = spread_retries_ms()
    began, whole = loop.time(), len(leaving)
    while leaving:
        spent = (loop.time() - began) / window_s if window_s > 0 else 1.0
        due = whole - round(whole * min(1.0, spent))
        while len(leaving) > due:
            hub.end(leaving.pop(), reason, retry_ms=next(retries))
        if leaving:
            await asyncio.sleep(STEP_S)
    late = list(hub.subscribers)
    for subscriber in late:
        hub.end(subscriber, reason, retry_ms=next(retries))
    await _flush([*ended, *late], flush_s)


async def _flush(ended: Sequence[Subscriber], flush_s: float) -> None:
    """Lets last words leave; whoever hasn't read them by then is dropped."""
    waiting = [subscriber for subscriber in ended if not subscriber.over]
    deadline = asyncio.get_running_loop().time() + flush_s
    while waiting and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(STEP_S)
        waiting = [subscriber for subscriber in waiting if not subscriber.over]
    for subscriber in waiting:
        subscriber.sink.abort()
