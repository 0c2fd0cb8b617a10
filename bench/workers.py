"""Two workers beside one: what the second costs, and how the streams spread over them."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from bench.contestants import BenchNode
from bench.fanout import median
from bench.generator import Generator
from bench.usage import sockets
from deploy.parts import Redis
from deploy.parts.part import descendants

STREAMS = 5_000
_TURNS = 9
_EVENTS = 16


@dataclass(slots=True)
class WorkerCosts:
    """CPU per delivery by number of workers, turn by turn; of two the share of the one with fewer streams."""

    us_each: dict[int, list[float]] = field(default_factory=dict)
    least_share: float = 0.0
    complete: bool = True

    @property
    def ratio(self) -> float:
        """What a delivery costs with two workers over what it costs with one: the median of the turns."""
        return median([two / one for one, two in zip(self.us_each[1], self.us_each[2], strict=True)])


def measure(redis: Redis, folder: Path, progress: Callable[[str], None]) -> WorkerCosts:
    """One worker, and two, on one processor, with the events over Redis.

    Both hold their streams all the time and take turns: a shared machine is not the same a few seconds later.
    """
    costs = WorkerCosts()
    with ExitStack() as stack:
        loads: dict[int, tuple[BenchNode, Generator]] = {}
        for count in (1, 2):
            node = stack.enter_context(_node(redis, folder, count))
            load = stack.enter_context(node.generator(STREAMS))
            costs.least_share = _open(node, load, count)
            load.each(node.publish(), events=3, reach=STREAMS)
            loads[count] = node, load
        for _ in range(_TURNS):
            for count, (node, load) in loads.items():
                figures = load.each(node.publish(), events=_EVENTS, reach=STREAMS)
                costs.us_each.setdefault(count, []).append(figures.us_each)
                costs.complete &= figures.complete
    for count, turns in costs.us_each.items():
        progress(f"{count} worker(s): {median(turns):.2f} µs a delivery")
    return costs


def _node(redis: Redis, folder: Path, count: int) -> BenchNode:
    name = f"workers{count}"
    settings = {
        "PUSHSSE_REDIS_URL": redis.url,
        "PUSHSSE_REDIS_PREFIX": f"{name}:",
        "PUSHSSE_DATABASE_URL": f"sqlite://{folder}/{name}.db",
    }
    return BenchNode(folder / name, settings, count)


def _open(node: BenchNode, load: Generator, count: int) -> float:
    """Opens the streams; the share of the worker that has the fewest."""
    family = [node.pid, *descendants(node.pid)]
    before = {pid: sockets(pid) for pid in family}
    load.open(STREAMS)
    held = sorted(sockets(pid) - before[pid] for pid in family)[-count:]
    return held[0] / STREAMS
