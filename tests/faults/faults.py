"""All faults by their numbers."""

from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType

from tests.faults import redis_faults
from tests.faults.world import World

Fault = Callable[[World], Awaitable[None]]
FAULTS: Mapping[int, Fault] = MappingProxyType(
    {
        1: redis_faults.killed,
        2: redis_faults.stopped,
        3: redis_faults.stalled,
        4: redis_faults.emptied,
    }
)
