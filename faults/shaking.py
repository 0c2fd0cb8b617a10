"""People who flip switches and lose their connection at random, while a fault is on."""

import asyncio
import random
import time
from collections.abc import Sequence

from faults.producer import TYPES
from faults.world import World

_STEP_S = 0.02
_AT_ONCE = 12


async def shake(
    world: World,
    seconds: float,
    *,
    people: Sequence[str],
    flips_per_s: float,
    drops_per_s: float,
    aimed_per_s: float = 0,
) -> int:
    """Flips, drops, and sends events aimed at these people; how many flips were answered with a 2xx."""
    begun = time.monotonic()
    busy: set[tuple[str, str]] = set()
    done = flipped = dropped = aimed = 0

    async def flip(user: str, type_: str) -> None:
        nonlocal done
        flips = world.flips.get((user, type_))
        status = await world.switch(user, type_, on=not flips[-1].on if flips else False)
        done += status == 200
        busy.discard((user, type_))

    async with asyncio.TaskGroup() as group:
        while (spent := time.monotonic() - begun) < seconds:
            while flipped < spent * flips_per_s:
                flipped += 1
                which = random.choice(people), random.choice(TYPES)
                if which not in busy and len(busy) < _AT_ONCE:
                    busy.add(which)
                    group.create_task(flip(*which))
            while dropped < spent * drops_per_s:
                dropped += 1
                theirs = [c for c in world.crowd.clients if c.account.user in people]
                world.crowd.drop(random.choice(theirs))
            while aimed < spent * aimed_per_s:
                aimed += 1
                await world.producer.send(random.sample(list(people), 2), random.choice(TYPES))
            await asyncio.sleep(_STEP_S)
    return done
