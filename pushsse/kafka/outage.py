"""An outage of a part, as the log tells it: one line when it begins, one when it is over."""

import logging
import time
from dataclasses import dataclass

from pushsse.retry import Backoff


@dataclass(slots=True)
class Outage:
    """Waits between tries of one part, and says so once."""

    what: str
    log: logging.Logger
    backoff: Backoff
    since: float | None = None

    def hit(self, error: object) -> float:
        """A try failed: seconds until the next one."""
        if self.since is None:
            self.since = time.monotonic()
            self.log.warning("%s: %s; trying again until it works", self.what, error or type(error).__name__)
        return self.backoff.next_s()

    def over(self) -> float:
        """A try worked: seconds since the first that failed, 0 if none did."""
        if self.since is None:
            return 0.0
        lasted_s = time.monotonic() - self.since
        self.since = None
        self.backoff.reset()
        self.log.warning("%s: works again, after %.1f s", self.what, lasted_s)
        return lasted_s
