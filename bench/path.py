"""From Kafka: how many events a second a node takes to the log, and how long one takes to a client.

The events are for one person each, over four partitions; the switches are asked of PostgreSQL.
"""

import asyncio
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx

from bench.contestants import BenchNode, get, listens, user
from bench.fanout import median
from bench.generator import Figures, Generator
from bench.processors import LOAD, SERVER, pinned
from bench.switches import switch
from bench.usage import usage
from deploy.parts import Kafka, Part, Postgres, Redis
from deploy.parts.node import environment, pushsse
from pushsse.presence import BEHIND_MS

PARTITIONS = 4
PEOPLE = 5_000
STREAMS = 1_000
RATE = 500
_PRODUCER = Path(__file__).with_name("producer.py")
LIMIT_S = 120
_SAMPLE_S = 0.1
_TURNS = 3
_PAIRS = 5
_WRITTEN_S = 1.0


@dataclass(frozen=True, slots=True)
class Throughput:
    """Events a second from Kafka to the log, and the node's CPU for each."""

    per_s: float
    us_each: float


@dataclass(frozen=True, slots=True)
class Whole:
    """The three parts that the path needs, and where their neighbours keep their files."""

    kafka: Kafka
    redis: Redis
    postgres: Postgres
    folder: Path

    def topic(self, name: str) -> str:
        """A new topic, with the one for dead letters."""
        self.kafka.create_topic(name, PARTITIONS)
        self.kafka.create_topic(f"{name}.dlq")
        return name

    def node(self, name: str, topic: str, database_url: str, start: str, **settings: str) -> BenchNode:
        """A node on all parts; `settings` are variables beside theirs."""
        return BenchNode(
            self.folder / name,
            {
                **settings,
                "PUSHSSE_KAFKA_BOOTSTRAP": self.kafka.url,
                "PUSHSSE_KAFKA_TOPIC": topic,
                "PUSHSSE_KAFKA_GROUP": name,
                "PUSHSSE_KAFKA_START": start,
                "PUSHSSE_REDIS_URL": self.redis.url,
                "PUSHSSE_REDIS_PREFIX": f"{name}:",
                "PUSHSSE_DATABASE_URL": database_url,
            },
        )

    def database(self, name: str) -> str:
        """A new database with its tables."""
        return database(self.postgres, name)

    def produce(self, topic: str, events: int, people: int, rate: float) -> "subprocess.Popen[bytes]":
        """The producer, running."""
        words = (self.kafka.url, topic, str(events), str(people), str(rate))
        return subprocess.Popen(pinned([sys.executable, str(_PRODUCER), *words], LOAD))


def database(postgres: Postgres, name: str) -> str:
    """A new database with its tables."""
    url = postgres.create_database(name)
    settings = environment({"PUSHSSE_DATABASE_URL": url})
    subprocess.run(pushsse("migrate"), check=True, env=settings, capture_output=True, timeout=60)
    return url


class Bare(Part):
    """The bare loop."""

    def __init__(self, folder: Path, words: Sequence[str]) -> None:
        super().__init__("bare", folder)
        self._words = words

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def command(self) -> Sequence[str]:
        program = str(Path(__file__).with_name("bare.py"))
        return pinned([sys.executable, program, *self._words, str(self.port)], SERVER)

    def is_ready(self) -> bool:
        return listens(self.port)


def throughput(path: Whole, name: str, events: int) -> Throughput:
    """Fills a topic, then starts a node on it. One in fifty people has a type off."""
    topic, database_url = path.topic(name), path.database(name)
    producer = path.produce(topic, events, PEOPLE, 0)
    with path.node(f"{name}-switches", topic, database_url, "latest") as node:
        asyncio.run(_some_off(node))
    if producer.wait(LIMIT_S):
        raise RuntimeError("the producer failed")
    with path.node(name, topic, database_url, "earliest") as node:
        return followed(node, events)


async def _some_off(node: BenchNode) -> None:
    """One in fifty people has a type off; it becomes known with its first event."""
    publish = node.publish(kind="other")
    name, _, value = publish.head.splitlines()[-1].partition(": ")
    end = time.monotonic() + 20
    known = False
    async with httpx.AsyncClient(base_url=node.url, timeout=20) as client:
        while not known:
            # Again and again: what comes before the node has its partitions isn't seen by it.
            await client.post("/v1/events", content=publish.body % "first", headers={name: value})
            await asyncio.sleep(0.2)
            try:
                await switch(node, {0: {"other": False}})
                known = True
            except* httpx.HTTPStatusError:
                if time.monotonic() > end:
                    raise
    await switch(node, {number: {"other": False} for number in range(0, PEOPLE, 50)})


def followed(node: BenchNode, events: int) -> Throughput:
    """Between a tenth and nineteen twentieths of the events, so that neither start nor end counts."""
    samples: list[tuple[float, int, float]] = []
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        samples.append((time.monotonic(), _appended(node), usage(node.pid).cpu_s))
        if samples[-1][1] >= events:
            break
        time.sleep(_SAMPLE_S)
    within = [sample for sample in samples if events * 0.1 <= sample[1] <= events * 0.95]
    if len(within) < 2:
        # Too fast for the samples: all of it, with the start.
        within = [next(s for s in reversed(samples) if s[1] == 0), samples[-1]]
    (t0, n0, c0), (t1, n1, c1) = within[0], within[-1]
    return Throughput((n1 - n0) / (t1 - t0), (c1 - c0) / (n1 - n0) * 1e6)


def _appended(node: BenchNode) -> int:
    with urllib.request.urlopen(f"{node.url}/metrics", timeout=5) as answer:
        found = re.search(r"^pushsse_appended_total ([\d.e+]+)", answer.read().decode(), re.M)
    return int(float(found[1])) if found else 0


def latency(path: Whole, name: str, seconds: float) -> tuple[Figures, Figures]:
    """Kafka to client at a rate: pushsse, then the bare loop, on the same topic."""
    topic, database_url = path.topic(name), path.database(name)
    with path.node(name, topic, database_url, "latest") as node, node.generator(STREAMS) as load:
        ours = _steady(path, topic, load, seconds)
    words = (path.kafka.url, topic, path.redis.url)
    streams = [get(f"/{user(number)}") for number in range(STREAMS)]
    with Bare(path.folder / f"{name}-bare", words) as bare, Generator(bare.port, bare.pid, streams) as load:
        return ours, _steady(path, topic, load, seconds)


def _steady(path: Whole, topic: str, load: Generator, seconds: float) -> Figures:
    load.open(STREAMS)
    # The first second isn't measured: connections and caches warm up.
    figures = None
    for events in (RATE, int(RATE * seconds)):
        load.expect(events)
        producer = path.produce(topic, events, STREAMS, RATE)
        figures = load.arrived()
        producer.wait(LIMIT_S)
    assert figures is not None
    return figures


def with_outcomes(path: Whole, name: str, events: int) -> list[tuple[Figures, Figures]]:
    """Kafka to client as fast as it goes, on a node with outcomes and on one without.

    They take turns, so that what else runs on the machine slows both, and each begins as often as the other.
    """
    nodes: dict[str, tuple[BenchNode, Generator, str]] = {}
    pairs: list[tuple[Figures, Figures]] = []
    with ExitStack() as stack:
        for way in ("on", "off"):
            topic, database_url = path.topic(f"{name}-{way}"), path.database(f"{name}_{way}")
            path.kafka.create_topic(f"{name}-{way}.outcomes", PARTITIONS)
            settings = {"PUSHSSE_OUTCOMES": way, "PUSHSSE_OUTCOMES_TOPIC": f"{name}-{way}.outcomes"}
            node = path.node(f"{name}-{way}", topic, database_url, "earliest", **settings)
            stack.enter_context(node)
            load = stack.enter_context(node.generator(STREAMS))
            load.open(STREAMS)
            _at_once(path, topic, load, STREAMS)
            nodes[way] = (node, load, topic)
        # Until those who were away for the first events are looked for, as they are from then on.
        time.sleep(BEHIND_MS / 1000)
        for number in range(_PAIRS):
            found: dict[str, Figures] = {}
            for way in ("on", "off") if number % 2 else ("off", "on"):
                node, load, topic = nodes[way]
                before = usage(node.pid)
                figures = _at_once(path, topic, load, events)
                # What became of the last ones is written a moment later.
                time.sleep(_WRITTEN_S)
                found[way] = figures._replace(spent=usage(node.pid).since(before))
            pairs.append((found["on"], found["off"]))
    return pairs


def _at_once(path: Whole, topic: str, load: Generator, events: int) -> Figures:
    load.expect(events)
    producer = path.produce(topic, events, STREAMS, 0)
    figures = load.arrived()
    producer.wait(LIMIT_S)
    return figures


def accept_us(path: Whole, streams: int) -> float:
    """CPU to accept a stream of a node on all parts: the median of some turns."""
    node = path.node("accept", path.topic("accept"), path.database("accept"), "latest")
    spent: list[float] = []
    with node, node.generator(streams) as load:
        for _ in range(_TURNS):
            # The first stream pays for what all share.
            load.open(1)
            spent.append(load.open(streams).cpu_s)
            load.keep(0)
    return median(spent) / (streams - 1) * 1e6
