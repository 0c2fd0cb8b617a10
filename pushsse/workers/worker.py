"""A worker's side of `serve --workers`: its link to the supervisor, and the messages that both sides send.

`cli/running` makes the `Worker`, `node` runs it. It gets its settings over the link, says when it serves, and
reports its metrics. `CombinedMetrics` adds the metrics of several processes up; `Rounds` keeps scrapes, which
anybody may ask for, from queueing. The end of the link means that the supervisor is gone; then the worker
ends, too.
"""

import asyncio
import itertools
import operator
import socket
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field

import msgspec
from msgspec import Struct
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric

from pushsse.errors import Unavailable
from pushsse.metrics import Combine, Gauge, Metrics
from pushsse.settings import Settings

# How long the supervisor may take: a collection that has begun, and the next one (COLLECT_S each).
_ROUND_S = 3.0
# How long a scrape waits for its round, which another one may be before.
_SCRAPE_S = 5.0
# A line of JSON with the metrics of all workers.
MAX_LINE = 16 * 1024 * 1024
SampleLabels = tuple[tuple[str, str], ...]


class Family(Struct, frozen=True, array_like=True):
    """One metric of one process: its samples by name and labels, and how those of several combine."""

    name: str
    kind: str
    text: str
    samples: tuple[tuple[str, SampleLabels, float], ...]
    combine: Combine = "sum"


def families(metrics: Iterable[Metric]) -> tuple[Family, ...]:
    """Metrics as values that can be sent."""
    return tuple(
        Family(
            metric.name,
            metric.type,
            metric.documentation,
            tuple((s.name, tuple(sorted(s.labels.items())), float(s.value)) for s in metric.samples),
            metric.combine if isinstance(metric, Gauge) else "sum",
        )
        for metric in metrics
    )


@dataclass(slots=True)
class CombinedMetrics:
    """Metrics of several processes, combined by name and labels."""

    _families: dict[str, Family] = field(default_factory=dict)
    _samples: dict[tuple[str, str, SampleLabels], float] = field(default_factory=dict)

    def add(self, added: Iterable[Family], *, counters_only: bool = False) -> None:
        """Adds one process's."""
        for family in added:
            if counters_only and family.kind != "counter":
                continue
            self._families.setdefault(family.name, family)
            combine = _COMBINE[family.combine]
            for sample, labels, value in family.samples:
                key = (family.name, sample, labels)
                self._samples[key] = combine(self._samples[key], value) if key in self._samples else value

    def families(self) -> tuple[Family, ...]:
        """The totals."""
        found: dict[str, list[tuple[str, SampleLabels, float]]] = {name: [] for name in self._families}
        for (name, sample, labels), value in self._samples.items():
            found[name].append((sample, labels, value))
        return tuple(
            msgspec.structs.replace(family, samples=tuple(found[name]))
            for name, family in self._families.items()
        )


@dataclass(frozen=True, slots=True, eq=False)
class Exposition:
    """Families as text for Prometheus."""

    metrics: tuple[Family, ...]

    def collect(self) -> Iterator[Metric]:
        """Called by prometheus_client's registry."""
        for family in self.metrics:
            metric = Metric(family.name, family.text, family.kind)
            for sample, labels, value in family.samples:
                metric.add_sample(sample, dict(labels), value)
            yield metric

    def text(self) -> bytes:
        """Prometheus' text format 0.0.4."""
        registry = CollectorRegistry()
        registry.register(self)
        return generate_latest(registry)


_COMBINE: Mapping[Combine, Callable[[float, float], float]] = {"sum": operator.add, "max": max, "least": min}


class Rounds:
    """One result for many who ask: a round of work answers all who asked before it began.

    Who asks later shares the next one, so no answer is older than its question. However many ask, one round
    runs and one waits.
    """

    def __init__(self) -> None:
        self._asked = asyncio.Event()
        self._next: asyncio.Future[bytes | None] | None = None

    async def result(self, within_s: float) -> bytes | None:
        """That of the next round; None if it has none, or not in time."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
            self._asked.set()
        found = self._next
        # Not `wait_for`, which would cancel the future, for the others too, where one of them gives up.
        await asyncio.wait((found,), timeout=within_s)
        return found.result() if found.done() else None

    async def run(self, work: Callable[[], Awaitable[bytes | None]]) -> None:
        """Runs the rounds for ever. Cancellation answers those who wait."""
        found: asyncio.Future[bytes | None] | None = None
        try:
            while True:
                await self._asked.wait()
                self._asked.clear()
                found, self._next = self._next, None
                if found is not None:
                    found.set_result(await work())
        finally:
            for waiting in (found, self._next):
                if waiting is not None and not waiting.done():
                    waiting.set_result(None)


# Messages: one line of JSON each.


class BeginWork(Struct, frozen=True, tag="begin"):
    """Supervisor, first: the worker's settings."""

    settings: Settings


class Hello(Struct, frozen=True, tag="hello"):
    """Worker, first: it answers from now on."""


class Ready(Struct, frozen=True, tag="ready"):
    """Worker: it serves."""


class Collect(Struct, frozen=True, tag="collect"):
    """Supervisor: the worker's metrics are wanted, for the scrape with this number."""

    scrape: int


class Collected(Struct, frozen=True, tag="collected"):
    """Worker: its metrics. Scrape 0: the last ones, which nobody has asked for."""

    scrape: int
    families: tuple[Family, ...]


class Scrape(Struct, frozen=True, tag="scrape"):
    """Worker: somebody scrapes it. The answer carries the same number."""

    number: int


class Scraped(Struct, frozen=True, tag="scraped"):
    """Supervisor: the metrics of all workers, as text for Prometheus, collected after that scrape came."""

    number: int
    text: str


LinkMessage = BeginWork | Hello | Ready | Collect | Collected | Scrape | Scraped
_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[LinkMessage] = msgspec.json.Decoder(LinkMessage)


def encode(message: LinkMessage) -> bytes:
    """A message as it is sent."""
    return _encoder.encode(message) + b"\n"


def decode(line: bytes) -> LinkMessage:
    """The message of a line. Raises msgspec.DecodeError."""
    return _decoder.decode(line)


class SupervisorGone(Exception):
    """The supervisor has ended without a word."""


class Worker:
    """One worker's end of a socket pair."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._serving = asyncio.Event()
        self._rounds = Rounds()
        self._numbers = itertools.count(1)
        # The scrape that the supervisor is at, and its answer.
        self._number = 0
        self._scraped: asyncio.Future[bytes] | None = None

    def settings(self) -> Settings:
        """The settings, which the supervisor sends first; blocks until then. Raises SupervisorGone."""
        # Unbuffered, so that what follows stays in the socket for `run`.
        with self._link.makefile("rb", buffering=0) as lines:
            line = lines.readline()
        if not line:
            raise SupervisorGone
        begin = decode(line)
        assert isinstance(begin, BeginWork)
        return begin.settings

    def ready(self) -> None:
        """Lets the supervisor know that the worker serves."""
        self._serving.set()

    async def run(self, metrics: Metrics) -> None:
        """Answers the supervisor for as long as the node runs. Raises SupervisorGone."""
        try:
            reader, writer = await asyncio.open_unix_connection(sock=self._link, limit=MAX_LINE)
        except OSError as error:
            raise SupervisorGone from error
        with closing(writer):
            writer.write(encode(Hello()))
            async with asyncio.TaskGroup() as tasks:
                reporting = tasks.create_task(self._report_ready(writer), name="report ready")
                scraping = tasks.create_task(self._rounds.run(lambda: self._scrape(writer)), name="scrapes")
                try:
                    while line := await reader.readline():
                        self._receive(decode(line), writer, metrics)
                except OSError as error:
                    raise SupervisorGone from error
                finally:
                    reporting.cancel()
                    scraping.cancel()
                    # What was counted since the last scrape would otherwise be lost.
                    writer.write(encode(Collected(0, families(metrics.collect()))))
        raise SupervisorGone

    def _receive(self, message: LinkMessage, writer: asyncio.StreamWriter, metrics: Metrics) -> None:
        if isinstance(message, Collect):
            writer.write(encode(Collected(message.scrape, families(metrics.collect()))))
        elif isinstance(message, Scraped):
            scraped = self._scraped
            # An older one is of a round that was given up.
            if scraped is not None and not scraped.done() and message.number == self._number:
                scraped.set_result(message.text.encode())

    async def exposition(self) -> bytes:
        """The metrics of all workers, as text for Prometheus.

        Raises Unavailable if the supervisor doesn't answer in time: this worker's own would let counters go
        back.
        """
        text = await self._rounds.result(_SCRAPE_S)
        if text is None:
            raise Unavailable("the supervisor of the workers doesn't answer")
        return text

    async def _scrape(self, writer: asyncio.StreamWriter) -> bytes | None:
        self._number = next(self._numbers)
        self._scraped = asyncio.get_running_loop().create_future()
        writer.write(encode(Scrape(self._number)))
        await asyncio.wait((self._scraped,), timeout=_ROUND_S)
        return self._scraped.result() if self._scraped.done() else None

    async def _report_ready(self, writer: asyncio.StreamWriter) -> None:
        await self._serving.wait()
        writer.write(encode(Ready()))
