"""All faults by their numbers."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType

from faults import (
    client_faults,
    database_faults,
    edges,
    expiry_faults,
    kafka_faults,
    lone_node,
    node_faults,
    outbox_faults,
    redis_faults,
)
from faults.world import World

Fault = Callable[[World], Awaitable[None]]


async def control(world: World) -> None:
    """Nothing at all, for comparison."""
    async with world.row(0, "nothing at all for 20 s") as row:
        await asyncio.sleep(20)
        row.check("streams cut", world.cuts(), world.cuts() == 0)


FAULTS: Mapping[int, Fault] = MappingProxyType(
    {
        0: control,
        1: redis_faults.killed,
        2: redis_faults.stopped,
        3: redis_faults.stalled,
        4: redis_faults.emptied,
        5: kafka_faults.killed,
        6: kafka_faults.rebalanced,
        7: node_faults.killed,
        8: node_faults.restarted,
        9: client_faults.slow,
        10: database_faults.away,
        11: kafka_faults.dead_letters_refused,
        12: kafka_faults.repeated,
        13: edges.around,
        14: database_faults.flipped,
        15: client_faults.dropped,
        16: node_faults.clock,
        17: node_faults.side_by_side,
        18: expiry_faults.late,
        19: lone_node.alone,
        20: node_faults.signalled,
        21: lone_node.hung,
        22: kafka_faults.widened,
        23: database_faults.read_only,
        24: outbox_faults.killed,
    }
)
