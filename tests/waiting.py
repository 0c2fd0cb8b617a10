"""Waiting for a state. Tests poll with these two; they don't sleep for as long as something might take."""

import asyncio
import inspect
import time
from collections.abc import Callable

# No promise: a machine that does other work beside the tests may take this long.
LIMIT_S = 60.0
_PAUSE_S = 0.01


async def eventually(check: Callable[[], object], within_s: float = LIMIT_S, *, what: str = "") -> None:
    """Returns when `check()`, awaited if it is a coroutine, is true. Fails the test after the limit."""
    try:
        async with asyncio.timeout(within_s) as limit:
            while True:
                found = check()
                if await found if inspect.isawaitable(found) else found:
                    return
                await asyncio.sleep(_PAUSE_S)
    except TimeoutError:
        if not limit.expired():
            raise
        raise AssertionError(_missed(check, within_s, what)) from None


def until(check: Callable[[], object], what: str = "", *, within_s: float = LIMIT_S) -> None:
    """The same for a test without an event loop."""
    end = time.monotonic() + within_s
    while not check():
        assert time.monotonic() < end, _missed(check, within_s, what)
        time.sleep(_PAUSE_S)


def _missed(check: Callable[[], object], within_s: float, what: str) -> str:
    code = getattr(check, "__code__", None)
    where = f"the check at {code.co_filename}:{code.co_firstlineno}" if code else repr(check)
    return f"not within {within_s:g} s: {what or where}"
