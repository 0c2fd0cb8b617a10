"""How many calls of a kind one person may make in a minute, and what responses say about it.

The endpoints of questions and switches call `CallLimit.spend`; the backplane counts, for all nodes together.
The fields are those of draft-ietf-httpapi-ratelimit-headers-10: structured fields (RFC 9651), in which `q` is
the quota, `w` the window in seconds, `r` what remains, and `t` the seconds until the quota is whole again.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from pushsse.api import HttpProblem
from pushsse.backplane import Uses

WINDOW_S = 60
# The header fields, for the document.
FIELDS = {
    "RateLimit-Policy": "how many calls (q) a person may make in how many seconds (w)",
    "RateLimit": "how many are left (r), and in how many seconds (t) all of them are again",
}


class CountsUses(Protocol):
    """Counts what is used, for all nodes together; the backplane does it."""

    async def use(self, name: str, *, window_ms: int) -> Uses:
        """Counts one use, in a window that begins with the first."""
        ...


@dataclass(frozen=True, slots=True)
class CallLimit:
    """At most `quota` calls a minute by one person; 0: no limit. `limited` counts those above it."""

    name: str
    quota: int
    what: str
    uses: CountsUses
    limited: Counter[str]

    async def spend(self, user: str) -> Mapping[str, str]:
        """Counts a call, and returns the header fields of its response. Raises HttpProblem 429.

        Deliberate: a call that is refused counts, too, but makes the wait no longer. The window ends a minute
        after it began.
        """
        if not self.quota:
            return {}
        seen, left_ms = await self.uses.use(f"{self.name}:{user}", window_ms=WINDOW_S * 1000)
        # Rounded up: whoever comes after so many seconds finds a new window.
        left_s = -(-left_ms // 1000)
        fields = {
            "ratelimit-policy": f'"{self.name}";q={self.quota};w={WINDOW_S}',
            "ratelimit": f'"{self.name}";r={max(0, self.quota - seen)};t={left_s}',
        }
        if seen <= self.quota:
            return fields
        self.limited[self.name] += 1
        detail = f"you may {self.what} {self.quota} times a minute, try again in {left_s} s"
        raise HttpProblem(429, "rate_limited", detail, {**fields, "retry-after": str(left_s)})
