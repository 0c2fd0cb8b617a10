"""Waiting between tries of a dependency that is away: exponential, with full jitter, and bounded."""

import random
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
