"""What one person may do in a time: calls in a window, and bytes of the logs in a minute.

`Windows` and `Allowances` count in this process alone: for the memory backplane, and for Redis's while it is
away. `api.CallLimit` counts calls. A log is bounded in bytes and shared: whoever fills it pushes out what
others haven't read yet. So whatever a person can cause to be appended is taken from a `LogAllowance`, which
all nodes share. `preferences`, `questions` and the API call it; publishing events isn't a person's call, and
is not bounded here.
"""

import asyncio
import math
import random
import time
from collections import Counter, OrderedDict

from pushsse.backplane import Backplane, Spent, Uses
from pushsse.errors import AllowanceSpent

# Windows of uses, and allowances, of 300 bytes each.
MOST_COUNTED = 100_000
WINDOW_S = 60
NAME = "log_bytes"
_SETTLE_S = 2.0


class Windows:
    """Counts uses by name, as `Backplane.use` does, in this process alone; a window is forgotten at its end.

    At most MOST_COUNTED are open: beyond that the oldest is forgotten.
    """

    def __init__(self) -> None:
        # By the length of the window: uses, and when it ends. Each table is in the order of the ends.
        self._windows: dict[int, OrderedDict[str, tuple[int, float]]] = {}

    def use(self, name: str, *, window_ms: int) -> Uses:
        """Counts one use."""
        windows = self._windows.setdefault(window_ms, OrderedDict())
        now = time.monotonic() * 1000
        seen, ends = windows.get(name, (0, 0.0))
        if ends <= now:
            windows.pop(name, None)
            seen, ends = 0, now + window_ms
        windows[name] = (seen + 1, ends)
        # Two at most, so that no use clears thousands. A use adds one, so they become fewer all the same.
        for _ in range(2):
            oldest = next(iter(windows))
            if windows[oldest][1] > now and len(windows) <= MOST_COUNTED:
                break
            del windows[oldest]
        return Uses(seen + 1, max(1, int(ends - now)))


class Allowances:
    """Allowances by name, as `Backplane.spend` has them, in this process alone; a whole one is forgotten.

    At most MOST_COUNTED are kept: beyond that one of those that were used long ago is forgotten.
    """

    def __init__(self) -> None:
        # When each is whole again.
        self._whole: OrderedDict[str, float] = OrderedDict()

    def spend(self, name: str, ms: int, *, most_ms: int | None) -> Spent:
        """Takes from one."""
        now = time.monotonic() * 1000
        left_ms = max(0.0, self._whole.get(name, 0.0) - now)
        if most_ms is not None and left_ms >= most_ms:
            return Spent(False, math.ceil(left_ms))
        whole_ms = math.ceil(left_ms) + ms
        if whole_ms:
            self._whole[name] = now + whole_ms
            self._forget(now)
        return Spent(True, whole_ms)

    def _forget(self, now: float) -> None:
        # Two at most, so that no call clears thousands. A call adds one, so they become fewer all the same.
        for _ in range(2):
            oldest, whole = next(iter(self._whole.items()))
            if len(self._whole) > 1 and (whole <= now or len(self._whole) > MOST_COUNTED):
                del self._whole[oldest]
            else:
                self._whole.move_to_end(oldest)


class LogAllowance:
    """So many bytes a minute for each person; 0: no limit. `limited` counts the calls that found none left.

    It refills steadily, up to one minute's worth. A call is let in while anything is left, and what it costs
    may be more: then the next ones wait until that is made up for. So it holds over time also for what shows
    only later, such as an answer's length.
    """

    def __init__(
        self, backplane: Backplane, *, quota: int = 0, limited: "Counter[str] | None" = None
    ) -> None:
        self._backplane = backplane
        self._quota = quota
        self._limited: Counter[str] = Counter() if limited is None else limited
        self._owed: Counter[str] = Counter()

    async def take(self, user: str, size: int = 0) -> None:
        """Takes so many bytes before they are appended. Raises AllowanceSpent, and takes nothing then."""
        if not self._quota:
            return
        if owed := self._owed.pop(user, 0):
            await self._spend(user, owed, most_ms=None)
        spent = await self._spend(user, size, most_ms=WINDOW_S * 1000)
        if not spent.taken:
            self._limited[NAME] += 1
            # Rounded up: whoever comes after so many seconds is let in.
            after_s = (spent.whole_ms - WINDOW_S * 1000) // 1000 + 1
            raise AllowanceSpent(self._quota, WINDOW_S, after_s=after_s, whole_s=-(-spent.whole_ms // 1000))

    def owe(self, user: str, size: int) -> None:
        """Notes bytes that were appended beyond what was taken: the next call pays them, or `run` does."""
        if self._quota and size:
            self._owed[user] += size

    async def run(self) -> None:
        """Takes what people owe every 2 s, for ever: their next call may come to another node."""
        while True:
            await asyncio.sleep(_SETTLE_S * random.uniform(0.75, 1.25))
            owed, self._owed = self._owed, Counter()
            for user, size in owed.items():
                await self._spend(user, size, most_ms=None)

    async def _spend(self, user: str, size: int, *, most_ms: int | None) -> Spent:
        cost_ms = math.ceil(size * WINDOW_S * 1000 / self._quota)
        return await self._backplane.spend(f"{NAME}:{user}", cost_ms, most_ms=most_ms)
