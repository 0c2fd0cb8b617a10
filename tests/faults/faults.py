"""All faults by their numbers."""

from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType

from tests.faults import kafka_faults, node_faults, redis_faults
from tests.faults.world import World

Fault = Callable[[World], Awaitable[None]]
FAULTS: Mapping[int, Fault] = MappingProxyType(
    {
        1: redis_faults.killed,
        2: redis_faults.stopped,
        3: redis_faults.stalled,
        4: redis_faults.emptied,
        5: kafka_faults.killed,
        6: kafka_faults.rebalanced,
        7: node_faults.killed,
        8: node_faults.restarted,
        11: kafka_faults.dead_letters_refused,
        12: kafka_faults.repeated,
        16: node_faults.clock,
        17: node_faults.side_by_side,
    }
)
