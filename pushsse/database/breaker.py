"""Answers at once while a dependency is known to be away, so that not every caller waits out the time limit.

Used by the database, whose every statement runs between `enter` and `success` or `failure`.
"""

import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class Breaker:
    """Refuses for `cool_s` after a failure, then lets one try through at a time until one succeeds."""

    cool_s: float
    failed: bool = False
    _probing: bool = False
    _refuse_until: float = 0.0
    _last_success: float = field(default_factory=time.monotonic)

    def enter(self) -> float | None:
        """The time at which this try began, or None: it is refused."""
        now = time.monotonic()
        if self.failed:
            if self._probing or now < self._refuse_until:
                return None
            self._probing = True
        return now

    def success(self) -> None:
        """The dependency answered."""
        self.failed = self._probing = False
        self._last_success = time.monotonic()

    def undecided(self, began: float) -> None:
        """A try ended and says nothing about the dependency (cancelled, or wrong by itself)."""
        if began >= self._refuse_until:
            self._probing = False

    def failure(self, began: float) -> bool:
        """A try failed. True if the dependency is away: nothing at all has worked since `began`."""
        self._probing = False
        if self._last_success > began:
            return False
        self.failed = True
        self._refuse_until = time.monotonic() + self.cool_s
        return True
