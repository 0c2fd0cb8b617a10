"""Waiting between tries of a dependency that is away, and telling the log once that it is.

Used wherever something is tried again. Waits are exponential, with jitter, and bounded. `Seldom` is for what
fails many times a second, for each of thousands of clients, records or rows. `hourly` is for what a node
deletes now and then.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import NoReturn

from pushsse.errors import Unavailable

# Between two lines of one outage.
FIRST_QUIET_S = 5.0
MOST_QUIET_S = 600.0
# Between two lines of `Seldom`.
SELDOM_S = 10.0
# Of `hourly`. Begun soon after a start: a service that is restarted often has to come to it, too.
_FIRST_S = 300.0
_EVERY_S = 3600.0


@dataclass(slots=True)
class Backoff:
    """Doubles from `first_s` to `most_s`; each wait is drawn from the upper half, so that nodes spread."""

    first_s: float = 0.1
    most_s: float = 5.0
    tries: int = 0

    def next_s(self) -> float:
        """Seconds to wait before the next try."""
        ceiling = min(self.most_s, self.first_s * 2.0 ** min(self.tries, 30))
        self.tries += 1
        return ceiling * random.uniform(0.5, 1.0)

    def reset(self) -> None:
        """It worked: the next failure starts from the beginning."""
        self.tries = 0


@dataclass(slots=True)
class Outage:
    """The tries of one part: the log gets a line when they begin to fail, and one when they work again.

    A reason that differs from the one logged last gets a line, too: a database that restarts may come back
    read-only, and "connection lost" wouldn't say what to do about that. Each line doubles the time for which
    further ones are held back.
    """

    what: str
    logger: logging.Logger
    backoff: Backoff
    since: float | None = None
    _reason: str = ""
    _quiet_until: float = 0.0
    _quiet_s: float = FIRST_QUIET_S

    def begin(self) -> None:
        """From now on tries fail, and somebody has logged why."""
        self.since = time.monotonic()
        self._reason, self._quiet_s = "", FIRST_QUIET_S
        self._quiet_until = self.since + self._quiet_s

    def failed(self, error: object) -> float:
        """A try failed: seconds until the next one."""
        reason = str(error) or type(error).__name__
        now = time.monotonic()
        begins = self.since is None
        if begins:
            self.begin()
        if begins or (reason != self._reason and now >= self._quiet_until):
            self._reason = reason
            self._quiet_until = now + self._quiet_s
            self._quiet_s = min(2 * self._quiet_s, MOST_QUIET_S)
            self.logger.warning("%s: %s; trying again until it works", self.what, reason)
        return self.backoff.next_s()

    def over(self) -> float:
        """A try worked: seconds since the first that failed, 0 if none did."""
        if self.since is None:
            return 0.0
        lasted_s = time.monotonic() - self.since
        self.since = None
        self.backoff.reset()
        self.logger.warning("%s: works again, after %.1f s", self.what, lasted_s)
        return lasted_s


@dataclass(slots=True)
class Seldom:
    """What may fail a thousand times a second: the log gets the first, then one every ten seconds."""

    what: str
    logger: logging.Logger
    _quiet_until: float = 0.0
    _unsaid: int = 0

    def failed(self, error: object) -> None:
        """It failed once more. Those that got no line are counted in the next one."""
        now = time.monotonic()
        if now < self._quiet_until:
            self._unsaid += 1
            return
        more = f"; {self._unsaid} more since the last such line" if self._unsaid else ""
        self._quiet_until, self._unsaid = now + SELDOM_S, 0
        self.logger.warning("%s: %s%s", self.what, str(error) or type(error).__name__, more)


async def hourly(work: Callable[[], Awaitable[object]], what: str, logger: logging.Logger) -> NoReturn:
    """Does work for ever, some minutes after the start and then each hour, on each node at a time of its own.

    Where it raises Unavailable it is tried again soon; `what` names the outage.
    """
    outage = Outage(what, logger, Backoff(first_s=10.0, most_s=600.0))
    await asyncio.sleep(_FIRST_S * random.uniform(0.1, 1.0))
    while True:
        try:
            await work()
            outage.over()
        except Unavailable as error:
            await asyncio.sleep(outage.failed(error))
            continue
        await asyncio.sleep(_EVERY_S * random.uniform(0.75, 1.25))
