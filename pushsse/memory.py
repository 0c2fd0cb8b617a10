"""What start-up and bursts have left goes back to the system, and the collector of cycles looks less often.

`settle` is called by the server when the node serves; `run` is one of the node's services.
"""

import asyncio
import ctypes
import gc
from contextlib import suppress

EVERY_S = 20.0


def settle() -> None:
    """Takes what start-up has left out of the garbage collector's sight, and lets it look less often.

    A stream leaves no cycles; what the collector spends is spent on walking what stays anyway.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)
    give_back()


async def run() -> None:
    """Gives back what a burst needed for a moment, for ever."""
    while True:
        await asyncio.sleep(EVERY_S)
        give_back()


def give_back() -> None:
    """Returns free pages to the system: malloc_trim(3), about a millisecond. Does nothing without glibc."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
