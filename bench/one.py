"""`python -m bench.one`: what an event for one person by HTTP costs the node, by its log and database.

One request in flight, for one of 3,000 people who have a stream each. The nodes run side by side and take
turns, so their ratios hold on a busy machine. With NDJSON the embedded node answers through ASGI, too: with
other parts it always does. Redis and PostgreSQL are on the load's processor, and aren't counted.
"""

import argparse
import os
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from bench.__main__ import most_streams
from bench.contestants import BenchNode, user
from bench.fanout import median
from bench.generator import Figures, Generator, Publish
from bench.parts import Parts, parts
from bench.path import database

_STREAMS = 3_000
_EVENTS = 500
_NDJSON = "application/x-ndjson"


@dataclass(frozen=True, slots=True)
class Way:
    """A node with its parts, and how it is asked."""

    name: str
    load: Generator
    publish: Publish
    seen: list[Figures] = field(default_factory=list)

    def turn(self) -> None:
        """One burst of events, one after another."""
        self.seen.append(self.load.acked(self.publish, events=_EVENTS, reach=1))


def settings(folder: Path, found: Parts) -> dict[str, dict[str, str]]:
    """The variables of each node, by its log and database, as far as the parts are there."""
    redis = found.redis and {"PUSHSSE_REDIS_URL": found.redis.url}
    postgres = found.postgres and {"PUSHSSE_DATABASE_URL": database(found.postgres, "one")}
    nodes = {"memory, SQLite": {"PUSHSSE_DATABASE_URL": f"sqlite://{folder}/memory.db"}}
    if postgres:
        nodes["memory, PostgreSQL"] = postgres
    if redis:
        nodes["Redis, SQLite"] = {
            "PUSHSSE_DATABASE_URL": f"sqlite://{folder}/redis.db",
            **redis,
            "PUSHSSE_REDIS_PREFIX": "sqlite:",
        }
    if redis and postgres:
        nodes["Redis, PostgreSQL"] = {**postgres, **redis, "PUSHSSE_REDIS_PREFIX": "postgres:"}
    return nodes


def ways(stack: ExitStack, folder: Path, found: Parts, streams: int) -> list[Way]:
    """Starts the nodes and opens their streams. Raises PartFailed, LoadFailed."""
    made: list[Way] = []
    for number, (name, variables) in enumerate(settings(folder, found).items()):
        node = stack.enter_context(BenchNode(folder / f"node{number}", variables))
        load = stack.enter_context(node.generator(streams))
        load.open(streams)
        publish = node.publish(f'{{"users":["{user(0)}"]}}')
        made.append(Way(name, load, publish))
        if not number:
            through_asgi = publish.head.replace("application/json", _NDJSON)
            made.append(Way(f"{name}, through ASGI", load, Publish(through_asgi, publish.body)))
    return made


def main() -> int:
    """Exit status 1 if an event was lost or repeated."""
    parser = argparse.ArgumentParser(prog="python -m bench.one", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="turns of each node [15]")
    options = parser.parse_args()
    streams = min(_STREAMS, most_streams(4 * _STREAMS) // 4)
    with tempfile.TemporaryDirectory(prefix="pushsse-bench-") as name, ExitStack() as stack:
        # PostgreSQL's own user has to pass through it.
        os.chmod(name, 0o755)
        found = stack.enter_context(parts(Path(name)))
        for missing in found.missing:
            print(f"missing: {missing}")
        measured = ways(stack, Path(name), found, streams)
        # The first turn finds everything cold.
        for _ in range(options.rounds + 1):
            for way in measured:
                way.turn()
    print("| log and database | CPU of an event, least | median | p50 | median / the first |")
    print("|---|---|---|---|---|")
    first = measured[0].seen[1:]
    for way in measured:
        seen = way.seen[1:]
        each = [figures.us_each for figures in seen]
        ratio = median([a.us_each / b.us_each for a, b in zip(seen, first, strict=True)])
        p50 = median([figures.p50_ms for figures in seen])
        print(f"| {way.name} | {min(each):.0f} µs | {median(each):.0f} µs | {p50:.2f} ms | {ratio:.2f} |")
    return 0 if all(figures.complete for way in measured for figures in way.seen) else 1


if __name__ == "__main__":
    sys.exit(main())
