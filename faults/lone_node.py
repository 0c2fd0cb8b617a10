"""One node of several that is of no use: it alone has lost Redis, or it hangs. Others take over its work."""

import asyncio
import time
from functools import partial

from deploy.parts.ports import free_port
from faults.expiry_faults import with_redis
from faults.node_faults import exchange
from faults.relay import Relay
from faults.resources import poll
from faults.world import World

_AWAY_S = 40.0
_LEFT_S = 30.0
_BACK_S = 40.0
_HANGS_S = 50.0
# nginx cuts a stream that is silent for 35 s; then the client's `retry`, of 5 s at most.
_SILENT_S = 42.0
_OPEN_S = 5.0


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


async def hung(world: World) -> None:
    """One node is stopped (SIGSTOP) for 50 s, as a machine that is frozen."""
    async with world.row(21, f"one node of three hangs (SIGSTOP) for {_HANGS_S:.0f} s") as row:
        node = world.cluster.stack.node(1)
        streams = int((await world.cluster.metrics(node))["connections"])
        began = time.monotonic()
        node.pause()
        try:
            slowest_s = max([await _opened(world) for _ in range(20)])
            row.check("slowest new stream", f"{slowest_s:.1f} s", slowest_s < _OPEN_S)

            async def elsewhere() -> bool:
                ready = [client.ready_at for client in world.crowd.clients]
                moved = sum(at is not None and at > began for at in ready)
                return moved >= streams

            moved_s = await poll(elsewhere, limit_s=_HANGS_S)
            row.check("its streams", streams, streams > 0)
            row.check("the last of them elsewhere after", f"{moved_s:.1f} s", moved_s < _SILENT_S)
            await asyncio.sleep(max(0.0, began + _HANGS_S - time.monotonic()))
        finally:
            node.resume()


async def _opened(world: World) -> float:
    """Opens a stream through nginx; the seconds until its first event."""
    began = time.monotonic()
    token = world.cluster.token("somebody")
    url = f"{world.cluster.stack.nginx.url}/v1/stream"
    async with world.cluster.http.stream("GET", url, headers={"Authorization": f"Bearer {token}"}) as reply:
        async for line in reply.aiter_lines():
            if line == "event: ready":
                break
    return time.monotonic() - began
