"""What all nodes do at present: each says it of itself every two seconds, and any of them tells all of it.

`Overview` is a service. `api/admin` asks it; `pushsse top` and the page show it. What a node says holds for a
lease, so a node that died is gone from it 8 s later. Deliberate: no event and no stream costs a call of its
own, and rates are those of the last ten seconds, so that they don't jump.
"""

import asyncio
import logging
import os
import random
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, NamedTuple, Protocol

import msgspec
from msgspec import Meta, Struct

from pushsse import __version__
from pushsse.backplane import Backplane
from pushsse.errors import BackplaneUnavailable, DatabaseUnavailable
from pushsse.metrics import Metrics
from pushsse.preferences.catalogue import CatalogueStore, Chosen
from pushsse.retry import Backoff, Outage

logger = logging.getLogger(__name__)
TELL_EVERY_S = 2.0
_LEASE_MS = 8_000
_WINDOW = 6
# Counting switches reads them all, as far as `MOST_COUNTED`.
COUNT_EVERY_S = 30.0
_COUNT_AGAIN_S = 5.0
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class NodeView(Struct, frozen=True):
    """What one node says about itself. Rates are per second, over the last ten; counts since its start.

    A node of another version may have members that aren't here, or lack some.
    """

    node: str
    version: str = ""
    started_at: datetime | None = None
    at: Annotated[datetime | None, Meta(description="when it said so")] = None
    state: Annotated[str, Meta(description="ready, or why it takes no streams")] = ""
    streams: int = 0
    people: Annotated[int, Meta(description="with a stream at this node")] = 0
    behind: Annotated[int, Meta(description="streams that are served from the log")] = 0
    opened_per_s: float = 0.0
    published_per_s: Annotated[float, Meta(description="publications that this node put into the log")] = 0.0
    delivered_per_s: Annotated[float, Meta(description="events written to streams")] = 0.0
    records_per_s: Annotated[float, Meta(description="read from Kafka")] = 0.0
    lag: Annotated[
        dict[str, int], Meta(description="by topic: records not read yet, of this node's partitions")
    ] = {}
    held: Annotated[int, Meta(description="partitions that wait for the dead-letter topic")] = 0
    dead_letters: int = 0
    backplane: Annotated[bool, Meta(description="whether it answered a moment ago")] = True
    database: Annotated[bool, Meta(description="whether it answered a moment ago")] = True
    cpu: Annotated[float, Meta(description="share of one core")] = 0.0
    memory_bytes: Annotated[int, Meta(description="resident; 0 where that isn't known")] = 0


class Totals(Struct, frozen=True):
    """The sum of all nodes."""

    streams: int
    people: Annotated[int, Meta(description="who has streams at two nodes counts twice")]
    published_per_s: float
    delivered_per_s: float
    lag: int
    dead_letters: Annotated[int, Meta(description="since each node's start")]


class OverviewView(Struct, frozen=True):
    """All nodes by name, their sum, the lag by topic, and what people chose.

    `chosen` is null while the database is away. It is counted every 30 s, from 200,000 switches at most.
    """

    at: datetime
    nodes: tuple[NodeView, ...]
    totals: Totals
    lag: Annotated[dict[str, int], Meta(description="by topic: records not read yet")]
    chosen: Annotated[
        tuple[Chosen, ...] | None, Meta(description="by type: people who switched it on, or off")
    ]


class Health(Protocol):
    """What a node knows of itself; `node.Node` is it."""

    def unready(self) -> str:
        """Why it takes no streams; empty when it does."""
        ...

    def available(self) -> dict[str, bool]:
        """Which of its parts answered a moment ago."""
        ...


class _Counts(NamedTuple):
    """Counters of one moment; rates are differences."""

    at_s: float
    cpu_s: float
    opened: int
    published: int
    delivered: int
    records: int


_view = msgspec.json.Decoder(NodeView)


class Overview:
    """Says what this node does, and tells what all of them say."""

    def __init__(
        self, backplane: Backplane, catalogue: CatalogueStore, metrics: Metrics, *, node: str
    ) -> None:
        self._backplane = backplane
        self._catalogue = catalogue
        self._metrics = metrics
        self._node = node
        self._started_at = datetime.now(UTC)
        self._samples: deque[_Counts] = deque(maxlen=_WINDOW)
        self._outage = Outage("other nodes can't be told what this one does", logger, Backoff())
        self._chosen: tuple[Chosen, ...] | None = None
        self._count_at = 0.0
        self._counting = asyncio.Lock()

    async def run(self, health: Health) -> None:
        """Says for ever what this node does; at its end it is gone from the overview."""
        try:
            while True:
                try:
                    await self._tell(health)
                except BackplaneUnavailable as error:
                    await asyncio.sleep(self._outage.failed(error))
                    continue
                self._outage.over()
                await asyncio.sleep(TELL_EVERY_S * random.uniform(0.9, 1.1))
        finally:
            with suppress(BackplaneUnavailable):
                await self._backplane.end_report(self._node)

    async def view(self) -> OverviewView:
        """What all nodes do. Raises BackplaneUnavailable."""
        reports = await self._backplane.reports()
        nodes = tuple(_view.decode(reports[name]) for name in sorted(reports))
        lag: Counter[str] = Counter()
        for each in nodes:
            lag.update(each.lag)
        totals = Totals(
            streams=sum(each.streams for each in nodes),
            people=sum(each.people for each in nodes),
            published_per_s=_rounded(sum(each.published_per_s for each in nodes)),
            delivered_per_s=_rounded(sum(each.delivered_per_s for each in nodes)),
            lag=lag.total(),
            dead_letters=sum(each.dead_letters for each in nodes),
        )
        return OverviewView(datetime.now(UTC), nodes, totals, dict(sorted(lag.items())), await self._count())

    async def _count(self) -> tuple[Chosen, ...] | None:
        """What people chose, counted a moment ago; one call counts for all that ask meanwhile."""
        clock = asyncio.get_running_loop().time
        async with self._counting:
            if clock() >= self._count_at:
                try:
                    self._chosen = await self._catalogue.chosen()
                    self._count_at = clock() + COUNT_EVERY_S
                except DatabaseUnavailable:
                    # Those who wait would otherwise each wait for the database, one after the other.
                    self._chosen = None
                    self._count_at = clock() + _COUNT_AGAIN_S
            return self._chosen

    async def _tell(self, health: Health) -> None:
        text = msgspec.json.encode(self._report(health))
        await self._backplane.report(self._node, text, lease_ms=_LEASE_MS)

    def _report(self, health: Health) -> NodeView:
        metrics, available = self._metrics, health.available()
        now = _counts(metrics)
        before = self._samples[0] if self._samples else now
        self._samples.append(now)
        lag: Counter[str] = Counter()
        for (topic, _), behind in metrics.lag.items():
            lag[topic] += behind
        return NodeView(
            node=self._node,
            version=__version__,
            started_at=self._started_at,
            at=datetime.now(UTC),
            state=health.unready() or "ready",
            streams=self._gauge("connections"),
            people=self._gauge("people"),
            behind=self._gauge("streams_behind"),
            opened_per_s=_rate(before, now, lambda each: each.opened),
            published_per_s=_rate(before, now, lambda each: each.published),
            delivered_per_s=_rate(before, now, lambda each: each.delivered),
            records_per_s=_rate(before, now, lambda each: each.records),
            lag=dict(lag),
            held=len(metrics.held_partitions),
            dead_letters=metrics.dead_letters,
            backplane=available["backplane"],
            database=available["database"],
            cpu=_rate(before, now, lambda each: each.cpu_s),
            memory_bytes=_resident_bytes(),
        )

    def _gauge(self, name: str) -> int:
        return int(self._metrics.gauges[name].ask())


def _counts(metrics: Metrics) -> _Counts:
    return _Counts(
        at_s=time.monotonic(),
        cpu_s=time.process_time(),
        opened=metrics.streams_opened,
        published=metrics.appended,
        delivered=metrics.deliveries,
        records=metrics.records,
    )


def _rate(before: _Counts, now: _Counts, count: Callable[[_Counts], float]) -> float:
    length_s = now.at_s - before.at_s
    return _rounded((count(now) - count(before)) / length_s) if length_s > 0 else 0.0


def _rounded(rate: float) -> float:
    return round(rate, 2)


def _resident_bytes() -> int:
    """The memory that this process has; Linux says so in a file of its own (proc(5))."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * _PAGE_BYTES
    except (OSError, ValueError, IndexError):
        return 0
