"""The parts of a hub, made and joined: what hears, who is here, who is behind, where a stream begins.

Made by `node`, and by the tests of the hub. The hub and the streams need each other: it gives them those who
fell behind, they serve them and give them back.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from pushsse.backplane import Backplane
from pushsse.event import Publication
from pushsse.hub.delivery import Delivery
from pushsse.hub.feed import Feed
from pushsse.hub.heartbeat import Heartbeat
from pushsse.hub.hub import Hub
from pushsse.hub.replay import Replay
from pushsse.hub.resume import Resumer, Switches
from pushsse.hub.streams import StreamLimits, Streams
from pushsse.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Inside:
    """One node's side of the logs. `streams`, `feed` and `heartbeat` are services."""

    heartbeat: Heartbeat
    hub: Hub
    delivery: Delivery
    feed: Feed
    replay: Replay
    streams: Streams
    resumer: Resumer


def inside(
    backplane: Backplane,
    *,
    shards: int,
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
        shards=shards,
        heartbeat=heartbeat,
        metrics=metrics,
        behind=lambda subscriber: streams.serve(subscriber),
        lost=lambda people: streams.refresh(people),
    )
    replay = Replay(hub, backplane)
    streams = Streams(hub, replay, limits=limits, switches=switches, so_far=so_far)
    resumer = Resumer(hub, backplane, switches=switches, settle=settle)
    delivery = Delivery(hub)
    return Inside(heartbeat, hub, delivery, Feed(backplane, delivery), replay, streams, resumer)
