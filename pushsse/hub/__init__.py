"""The streams of this node: the hub's parts, and `assemble_hub`, which joins them.

An event passes feed, delivery, hub and subscriber. A stream begins in `opening`, and `catch_up` serves it
while it is behind. `build` assembles the parts for a node, and the hub's tests assemble them without one.
"""

from dataclasses import dataclass

from pushsse.backplane import Backplane
from pushsse.hub.catch_up import CatchUp, Replay
from pushsse.hub.delivery import Delivery, Feed
from pushsse.hub.heartbeat import Heartbeat
from pushsse.hub.hub import Hub, Rules
from pushsse.hub.opening import Opener, StreamLimits
from pushsse.hub.people import NothingRevoked, People, Refresh, Revocations
from pushsse.metrics import Metrics
from pushsse.outcomes import Outcomes


@dataclass(frozen=True, slots=True)
class HubParts:
    """The parts of one node's hub. `refresh`, `opener`, `catch_up`, `feed` and `heartbeat` are services."""

    heartbeat: Heartbeat
    hub: Hub
    refresh: Refresh
    opener: Opener
    replay: Replay
    catch_up: CatchUp
    delivery: Delivery
    feed: Feed


def assemble_hub(
    backplane: Backplane,
    people: People,
    *,
    limits: StreamLimits,
    metrics: Metrics,
    revocations: Revocations | None = None,
    rules: Rules | None = None,
    outcomes: Outcomes | None = None,
) -> HubParts:
    """Makes the parts of one node's hub, and hands each the others that it needs."""
    heartbeat = Heartbeat(heartbeat_s=limits.heartbeat_s)
    hub = Hub(backplane, heartbeat=heartbeat, metrics=metrics, rules=rules, outcomes=outcomes)
    refresh = Refresh(hub, backplane, people)
    opener = Opener(
        hub, backplane, people, limits=limits, revocations=revocations or NothingRevoked(), refresh=refresh
    )
    replay = Replay(hub, backplane)
    catch_up = CatchUp(hub, replay, opener, send_timeout_s=limits.send_timeout_s)
    delivery = Delivery(hub, refresh)
    return HubParts(heartbeat, hub, refresh, opener, replay, catch_up, delivery, Feed(backplane, delivery))
