"""Fan-out: one round of one contestant, from no streams up to the most and down again.

On the way up: memory and the cost of accepting. On the way down: the cost of a delivery, one event at a time
and in bursts, and of an event for somebody elsewhere; at a thousand streams also latency at a steady rate,
sizes of events, switches.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bench.contestants import BenchNode, Contestant, user
from bench.generator import Figures, Generator
from bench.switches import SwitchCosts, measure

STEADY_STREAMS = 1_000
STEADY_RATE = 50
STEADY_EVENTS = 120
SIZES = (100, 1_000, 10_000)
SIZED_STREAMS = 1_000
BURST_STREAMS = (1_000, 5_000)
WINDOW = 64
BURST_DELIVERIES = 320_000
_DELIVERIES = 60_000
_ACKED_DELIVERIES = 200_000
_ELSEWHERE = 2_000
# An event for one person: beside so many other streams of the node, and of the others' only stream.
ONE_STREAMS = 5_000
_ONE_EVENTS = 2_000


@dataclass
class Round:
    """What one contestant did in one round; by number of streams, or by size.

    `kb` is what the streams have added to the server's memory. `each` waits for the arrival of the last
    event everywhere, `acked` only for its acknowledgement. `one`: an event for one person. `elsewhere`: µs
    of an event for nobody here.
    """

    kb: dict[int, float] = field(default_factory=dict)
    accept_us: float = 0.0
    one: Figures | None = None
    each: dict[int, Figures] = field(default_factory=dict)
    acked: dict[int, Figures] = field(default_factory=dict)
    burst: dict[int, Figures] = field(default_factory=dict)
    sizes: dict[int, Figures] = field(default_factory=dict)
    elsewhere: dict[int, float] = field(default_factory=dict)
    steady: Figures | None = None
    switches: SwitchCosts | None = None

    def figures(self) -> list[Figures]:
        """All that was measured, to see whether everything arrived."""
        found = [*self.each.values(), *self.acked.values(), *self.burst.values(), *self.sizes.values()]
        if self.switches is not None:
            found += self.switches.figures()
        return [*found, *(one for one in (self.steady, self.one) if one is not None)]


def one_round(contestant: Contestant, counts: Sequence[int], *, progress: Callable[[str], None]) -> Round:
    """Measures a contestant that isn't started yet. Raises PartFailed, LoadFailed."""
    seen = Round()
    with contestant, contestant.generator(max(counts)) as load:
        # The first stream pays for what all share.
        load.open(1)
        if not isinstance(contestant, BenchNode):
            seen.one = load.acked(contestant.publish(), events=_ONE_EVENTS, reach=1)
        kb = 0.0
        opened, accept_s = 1, 0.0
        for count in sorted(counts):
            spent = load.open(count)
            kb += spent.rss_kb
            accept_s += spent.cpu_s
            opened = count
            seen.kb[count] = kb
            progress(f"{count} streams open")
        seen.accept_us = accept_s / opened * 1e6
        for count in sorted(counts, reverse=True):
            load.keep(count)
            _at(contestant, load, count, seen)
            if count == SIZED_STREAMS and isinstance(contestant, BenchNode):
                seen.switches = measure(contestant, load, count)
            progress(f"{count} streams: {seen.each[count].us_each:.2f} µs a delivery")
    return seen


def _at(contestant: Contestant, load: Generator, count: int, seen: Round) -> None:
    publish = contestant.publish()
    load.each(publish, events=3, reach=count)
    seen.each[count] = load.each(publish, events=max(8, _DELIVERIES // count), reach=count)
    if isinstance(contestant, BenchNode):
        nobody = load.acked(contestant.publish('{"users":["nobody"]}'), events=_ELSEWHERE, reach=0)
        seen.elsewhere[count] = nobody.spent.cpu_s / _ELSEWHERE * 1e6
        if count == ONE_STREAMS:
            one = contestant.publish(f'{{"users":["{user(0)}"]}}')
            seen.one = load.acked(one, events=_ONE_EVENTS, reach=1)
    if count in BURST_STREAMS:
        seen.acked[count] = load.acked(publish, events=_ACKED_DELIVERIES // count, reach=count)
        seen.burst[count] = load.burst(
            publish, events=BURST_DELIVERIES // count // WINDOW * WINDOW, reach=count, window=WINDOW
        )
    if count == STEADY_STREAMS:
        seen.steady = load.steady(publish, events=STEADY_EVENTS, reach=count, rate=STEADY_RATE)
    if count == SIZED_STREAMS:
        for size in SIZES:
            seen.sizes[size] = load.each(publish, events=30, reach=count, size=size)


def median(values: Sequence[float]) -> float:
    """The median; 0 of nothing."""
    return statistics.median(values) if values else 0.0
