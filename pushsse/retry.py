"""Waiting between tries of a dependency that is away, and telling the log once that it is.

Used wherever something is tried again. Waits are exponential, with jitter, and bounded.
"""

import logging
import random
import time
from dataclasses import dataclass


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
    """The tries of one part: the log gets one line when they begin to fail, and one when they work again."""

    what: str
    logger: logging.Logger
    backoff: Backoff
    since: float | None = None

    def failed(self, error: object) -> float:
        """A try failed: seconds until the next one."""
        if self.since is None:
            self.since = time.monotonic()
            self.logger.warning(
                "%s: %s; trying again until it works", self.what, error or type(error).__name__
            )
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
