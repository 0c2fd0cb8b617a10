"""The parts of a hub, made and joined: what hears, who is here, who is behind, where a stream begins.

Made by `node`, and by the tests of the hub. The hub and the streams need each other: it gives them those who
fell behind, they serve them and give them back.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from pushsse.backplane import Backplane
from pushsse.event import Publication
from pushsse.hub.catch_up import CatchUp, Replay
from pushsse.hub.delivery import Delivery
from pushsse.hub.feed import Feed
from pushsse.hub.heartbeat import Heartbeat
from pushsse.hub.hub import Hub
from pushsse.hub.opening import Opener, StreamLimits, Switches
from pushsse.metrics import Metrics
from pushsse.stream.frame import Resume


@dataclass(frozen=True, slots=True)
class Inside:
    """One node's side of the logs. `catch_up`, `opener`, `feed` and `heartbeat` are services."""

    heartbeat: Heartbeat
    hub: Hub
    delivery: Delivery
    feed: Feed
    replay: Replay
    catch_up: CatchUp
    opener: Opener


def inside(
    backplane: Backplane,
    *,
    limits: StreamLimits,
    switches: Callable[[str], Awaitable[Switches]],
    settle: Callable[[str], Awaitable[None]],
    so_far: Callable[[str], Awaitable[Sequence[Publication]]],
    metrics: Metrics,
) -> Inside:
    """Joins the parts. `switches` reads a person's, `settle` publishes what waits of them, `so_far` tells
    the answers that are growing."""
    heartbeat = Heartbeat(heartbeat_s=limits.heartbeat_s)
    hub = Hub(
        backplane,
        heartbeat=heartbeat,
        metrics=metrics,
        behind=lambda subscriber: catch_up.serve(subscriber),
        lost=lambda people: opener.refresh(people),
    )
    replay = Replay(hub, backplane)
    catch_up = CatchUp(
        hub,
        replay,
        gap=lambda subscriber, position: opener.ready(subscriber, Resume.GAP, position),
        send_timeout_s=limits.send_timeout_s,
    )
    opener = Opener(
        hub,
        backplane,
        limits=limits,
        serve=catch_up.serve,
        switches=switches,
        settle=settle,
        so_far=so_far,
    )
    delivery = Delivery(hub)
    return Inside(heartbeat, hub, delivery, Feed(backplane, delivery), replay, catch_up, opener)
