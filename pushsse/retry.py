"""Waiting between tries of a dependency that is away, and telling the log once that it is.

Used wherever something is tried again. Waits are exponential, with jitter, and bounded.
"""

import logging
import random
import time
from dataclasses import dataclass, field

# In the log, for each outage.
MOST_REASONS = 4


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

    A reason that differs gets a line of its own, for the first few: a database that restarts may come back
    read-only, and "connection lost" wouldn't say what to do about that.
    """

    what: str
    logger: logging.Logger
    backoff: Backoff
    since: float | None = None
    reasons: set[str] = field(default_factory=set)
    most_reasons: int = MOST_REASONS

    def begin(self, *, is_logged: bool = False) -> None:
        """From now on tries fail; `is_logged`: somebody has logged why, and this won't."""
        self.since = time.monotonic()
        self.reasons.clear()
        self.most_reasons = 0 if is_logged else MOST_REASONS

    def failed(self, error: object) -> float:
        """A try failed: seconds until the next one."""
        if self.since is None:
            self.begin()
        reason = str(error) or type(error).__name__
        if reason not in self.reasons and len(self.reasons) < self.most_reasons:
            self.reasons.add(reason)
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
