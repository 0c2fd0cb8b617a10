"""What start-up, bursts and storms have left goes back to the system, and the collector looks less often.

`settle` is called by the server when the node serves; `run` is one of the node's services.
"""

import asyncio
import ctypes
import gc
from collections.abc import Callable
from contextlib import suppress

EVERY_S = 20.0
MANY = 500


def settle() -> None:
    """Takes what start-up has left out of the garbage collector's sight, and lets it look less often.

    A stream leaves hardly any cycles; what the collector spends is spent on walking what stays anyway.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)
    give_back()


async def run(ended: Callable[[], int]) -> None:
    """Gives back what a burst needed for a moment, for ever; `ended` counts streams.

    Streams that are written the portable way leave cycles, which the collector wouldn't look for when it is
    quiet: after many have ended it is asked to, and once more for those that the heartbeat still held.
    """
    before, last = ended(), ended()
    while True:
        await asyncio.sleep(EVERY_S)
        now = ended()
        if now - before >= MANY:
            gc.collect()
        give_back()
        before, last = last, now


def give_back() -> None:
    """Returns free pages to the system: malloc_trim(3), about a millisecond. Does nothing without glibc."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
