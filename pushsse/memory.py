"""What start-up and bursts have left goes back to the system, and the collector of cycles looks less often.

`settle` is called by the server when the node serves; `run` is one of the node's services.
"""

import asyncio
import ctypes
import gc
from contextlib import suppress
from itertools import count

EVERY_S = 20.0
# One walk over everything takes 0.2 s where there are 15,000 streams.
WALK_EVERY = 180


def settle() -> None:
    """Lets the collector of cycles look less often, from when the node serves.

    Neither a request nor a stream leaves a cycle; what it spends is spent on walking what stays anyway.
    """
    gc.collect()
    gc.set_threshold(10_000, 20, 50)
    give_back()


async def run() -> None:
    """Gives back what a burst needed for a moment, for ever; once an hour it also looks for old cycles."""
    for tick in count(1):
        await asyncio.sleep(EVERY_S)
        if tick % WALK_EVERY == 0:
            gc.collect()
        give_back()


def give_back() -> None:
    """Returns what lies free to the system, in well under a millisecond.

    First the interpreter's free lists, whose few objects would hold thousands of pages: a full collection
    empties them, and has nothing to walk while everything is frozen. Then free pages, where there is glibc
    (malloc_trim(3)).
    """
    gc.freeze()
    gc.collect()
    gc.unfreeze()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
