"""A node that alone has lost Redis: others take its partitions and its streams, and it comes back."""

import asyncio
import time
from functools import partial

from deploy.parts.ports import free_port
from tests.faults.expiry_faults import with_redis
from tests.faults.node_faults import exchange
from tests.faults.relay import Relay
from tests.faults.resources import poll
from tests.faults.world import World

_AWAY_S = 40.0
_LEFT_S = 30.0
_BACK_S = 40.0


async def alone(world: World) -> None:
    """One node is cut off from Redis for 40 s, the others aren't."""
    url = world.cluster.stack.settings["PUSHSSE_REDIS_URL"]
    port = world.cluster.stack.redis.port
    async with Relay(free_port(), port) as relay:
        relayed = url.replace(f":{port}", f":{relay.port}")
        await exchange(world, 1, partial(with_redis, world.cluster.make, relayed))
        async with world.row(19, f"one node of three cut off from Redis for {_AWAY_S:.0f} s") as row:
            node = world.cluster.stack.node(1)
            streams = int((await world.cluster.metrics(node))["connections"])
            began = time.monotonic()
            relay.cut()

            async def left() -> bool:
                found = await world.cluster.metrics(node)
                return found["isolated"] == 1 and found["connections"] == 0

            left_s = await poll(left, limit_s=_LEFT_S)
            row.check("its streams", streams, streams > 0)
            row.check("isolated, and its streams elsewhere, after", f"{left_s:.1f} s", left_s < _LEFT_S)
            ready = await world.cluster.http.get(f"{node.url}/readyz")
            row.check("its /readyz", ready.status_code, ready.status_code == 503)
            lag = sum(n for name, n in (await world.cluster.metrics(node)).items() if name == "kafka_lag")
            row.check("its partitions", "given back" if not lag else "kept", not lag)
            await asyncio.sleep(max(0.0, began + _AWAY_S - time.monotonic()))
            relay.mend()

            async def back() -> bool:
                return (await world.cluster.http.get(f"{node.url}/readyz")).status_code == 200

            back_s = await poll(back, limit_s=_BACK_S)
            row.check("ready again after", f"{back_s:.1f} s", back_s < _BACK_S)
        await exchange(world, 1, partial(with_redis, world.cluster.make, url))
