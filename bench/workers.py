"""Two workers beside one: what the second costs, and how the streams spread over them."""

from dataclasses import dataclass
from pathlib import Path

from bench.contestants import BenchNode
from bench.usage import descendants, sockets
from deploy.parts import Redis

STREAMS = 5_000
_EVENTS = 48


@dataclass(frozen=True, slots=True)
class Seen:
    """CPU per delivery of all processes, and the smallest share of the streams that one of them has."""

    us_each: float
    least_share: float
    complete: bool


def measure(redis: Redis, folder: Path, name: str, workers: int) -> Seen:
    """So many workers on one processor, with the events over Redis."""
    settings = {
        "PUSHSSE_REDIS_URL": redis.url,
        "PUSHSSE_REDIS_PREFIX": f"{name}:",
        "PUSHSSE_DATABASE_URL": f"sqlite://{folder}/{name}.db",
    }
    node = BenchNode(folder / name, settings, workers)
    with node, node.generator(STREAMS) as load:
        family = descendants(node.pid)
        before = {pid: sockets(pid) for pid in family}
        load.open(STREAMS)
        held = sorted(sockets(pid) - before[pid] for pid in family)[-workers:]
        load.each(node.publish(), events=3, reach=STREAMS)
        figures = load.each(node.publish(), events=_EVENTS, reach=STREAMS)
    return Seen(figures.us_each, held[0] / STREAMS, figures.complete)
