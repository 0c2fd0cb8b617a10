"""Who is let in: how many connections an address may have, and how many requests begin in one turn.

`LimitedHttp` asks for each connection and each request. `Admission` says which connections are too many; the
application answers their first request (`over_limit`), and so a browser comes back.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address
from typing import NamedTuple

from starlette.types import Scope

# In a scope's extensions: which limit the connection exceeds.
EXCEEDED = "pushsse.exceeded"
# So many requests begin in one turn of the event loop.
STARTS_PER_TURN = 4


class Exceeded(NamedTuple):
    """Which limit a connection exceeds. One that is far over it isn't worth an answer."""

    limit: str
    is_far: bool


class Admission:
    """How many connections an address may have, and how many are accepted in a second; 0 is no limit.

    The address is the socket's, whatever a header says; of IPv6, the first 64 bits, which one customer has.
    `limited` counts the connections over a limit by the limit.
    """

    def __init__(self, *, per_address: int, per_second: float, limited: Counter[str]) -> None:
        self._per_address = per_address
        self._accepts = _Bucket(per_second) if per_second else None
        self._answers = _Bucket(per_second)
        self._limited = limited
        self._open: dict[bytes, int] = {}

    def enter(self, address: str) -> Exceeded | None:
        """Counts a new connection; None if it is within the limits."""
        key, exceeded = _network(address), None
        count = self._open[key] = self._open.get(key, 0) + 1
        if 0 < self._per_address < count:
            exceeded = Exceeded("connections_per_address", is_far=count > 2 * self._per_address)
        elif self._accepts is not None and not self._accepts.take():
            exceeded = Exceeded("accepts_per_second", is_far=not self._answers.take())
        if exceeded is not None:
            self._limited[exceeded.limit] += 1
        return exceeded

    def leave(self, address: str) -> None:
        """A connection that was entered is gone."""
        key = _network(address)
        self._open[key] -= 1
        if not self._open[key]:
            del self._open[key]


class Starts:
    """Begins STARTS_PER_TURN requests in one turn of the event loop, and the others in the next, in order.

    A hundred clients that ask at the same moment would otherwise be answered in one turn, which all streams
    would wait for.
    """

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()
        self._begun = 0

    def start(self, loop: asyncio.AbstractEventLoop, begin: Callable[[], None]) -> None:
        """Calls `begin`, now or in a later turn."""
        if self._begun == STARTS_PER_TURN:
            self._waiting.append(begin)
            return
        if not self._begun:
            loop.call_soon(self._turn, loop)
        self._begun += 1
        begin()

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        self._begun = min(STARTS_PER_TURN, len(self._waiting))
        if self._begun:
            loop.call_soon(self._turn, loop)
        for _ in range(self._begun):
            self._waiting.popleft()()


def over_limit(scope: Scope) -> str:
    """Which limit the connection of a request is over; empty for none."""
    found: str = scope.get("extensions", {}).get(EXCEEDED, "")
    return found


class _Bucket:
    """Fills at a rate; holds as much as a second brings, and one at least."""

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._most = self._left = max(1.0, per_second)
        self._at = time.monotonic()

    def take(self) -> bool:
        """Takes one; False if there is none."""
        now = time.monotonic()
        self._left = min(self._most, self._left + (now - self._at) * self._per_second)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


def _network(address: str) -> bytes:
    """What an address counts as."""
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return address.encode()
    if isinstance(found, IPv6Address):
        return found.ipv4_mapped.packed if found.ipv4_mapped else found.packed[:8]
    return found.packed
