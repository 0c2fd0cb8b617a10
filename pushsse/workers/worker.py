"""A worker's side of `serve --workers`: its link to the supervisor, and the messages that both sides send.

`cli/running` makes the `Worker`, `node` runs it. It gets its settings over the link, says when it serves, and
reports its metrics. `Totals` adds the metrics of several processes up. The end of the link means that the
supervisor is gone; then the worker ends, too.
"""

import asyncio
import itertools
import socket
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field

import msgspec
from msgspec import Struct
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric

from pushsse.metrics import Metrics
from pushsse.settings import Settings

# How long a worker waits for the metrics of all workers before it answers with its own.
_SCRAPE_S = 3.0
# A line of JSON with the metrics of all workers.
MAX_LINE = 16 * 1024 * 1024
Labels = tuple[tuple[str, str], ...]


class Family(Struct, frozen=True, array_like=True):
    """One metric of one process: its samples by name and labels."""

    name: str
    kind: str
    text: str
    samples: tuple[tuple[str, Labels, float], ...]


def families(metrics: Iterable[Metric]) -> tuple[Family, ...]:
    """Metrics as values that can be sent."""
    return tuple(
        Family(
            metric.name,
            metric.type,
            metric.documentation,
            tuple((s.name, tuple(sorted(s.labels.items())), float(s.value)) for s in metric.samples),
        )
        for metric in metrics
    )


@dataclass(slots=True)
class Totals:
    """Metrics of several processes, added up by name and labels."""

    _families: dict[str, tuple[str, str]] = field(default_factory=dict)
    _samples: dict[tuple[str, str, Labels], float] = field(default_factory=dict)

    def add(self, added: Iterable[Family], *, counters_only: bool = False) -> None:
        """Adds one process's."""
        for family in added:
            if counters_only and family.kind != "counter":
                continue
            self._families.setdefault(family.name, (family.kind, family.text))
            # A part is available to the service only if it is available to each worker.
            combine = _least if family.name.endswith("_available") else _plus
            for sample, labels, value in family.samples:
                key = (family.name, sample, labels)
                self._samples[key] = combine(self._samples[key], value) if key in self._samples else value

    def families(self) -> tuple[Family, ...]:
        """The totals."""
        found: dict[str, list[tuple[str, Labels, float]]] = {name: [] for name in self._families}
        for (name, sample, labels), value in self._samples.items():
            found[name].append((sample, labels, value))
        return tuple(Family(name, *self._families[name], tuple(found[name])) for name in found)


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


def _plus(one: float, other: float) -> float:
    return one + other


def _least(one: float, other: float) -> float:
    return min(one, other)


# Messages: one line of JSON each.


class Begin(Struct, frozen=True, tag="begin"):
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
    """Supervisor: the metrics of all workers, as text for Prometheus."""

    number: int
    text: str


Message = Begin | Hello | Ready | Collect | Collected | Scrape | Scraped
_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)


def encode(message: Message) -> bytes:
    """A message as it is sent."""
    return _encoder.encode(message) + b"\n"


def decode(line: bytes) -> Message:
    """The message of a line. Raises msgspec.DecodeError."""
    return _decoder.decode(line)


class SupervisorGone(Exception):
    """The supervisor has ended without a word."""


class Worker:
    """One worker's end of a socket pair."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._serving = asyncio.Event()
        self._writer: asyncio.StreamWriter | None = None
        self._scrapes: dict[int, asyncio.Future[bytes]] = {}
        self._numbers = itertools.count(1)

    def settings(self) -> Settings:
        """The settings, which the supervisor sends first; blocks until then. Raises SupervisorGone."""
        # Unbuffered, so that what follows stays in the socket for `run`.
        with self._link.makefile("rb", buffering=0) as lines:
            line = lines.readline()
        if not line:
            raise SupervisorGone
        begin = decode(line)
        assert isinstance(begin, Begin)
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
            self._writer = writer
            writer.write(encode(Hello()))
            async with asyncio.TaskGroup() as tasks:
                reporting = tasks.create_task(self._report_ready(writer), name="report ready")
                try:
                    while line := await reader.readline():
                        self._receive(decode(line), writer, metrics)
                except OSError as error:
                    raise SupervisorGone from error
                finally:
                    reporting.cancel()
                    self._writer = None
                    # What was counted since the last scrape would otherwise be lost.
                    writer.write(encode(Collected(0, families(metrics.collect()))))
        raise SupervisorGone

    def _receive(self, message: Message, writer: asyncio.StreamWriter, metrics: Metrics) -> None:
        if isinstance(message, Collect):
            writer.write(encode(Collected(message.scrape, families(metrics.collect()))))
        elif isinstance(message, Scraped):
            waiting = self._scrapes.get(message.number)
            if waiting is not None and not waiting.done():
                waiting.set_result(message.text.encode())

    async def exposition(self, metrics: Metrics) -> bytes:
        """The metrics of all workers, or, if the supervisor doesn't answer in time, this one's own."""
        if self._writer is not None:
            number = next(self._numbers)
            answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
            self._scrapes[number] = answer
            try:
                self._writer.write(encode(Scrape(number)))
                async with asyncio.timeout(_SCRAPE_S):
                    return await answer
            except TimeoutError:
                pass
            finally:
                del self._scrapes[number]
        return metrics.exposition()

    async def _report_ready(self, writer: asyncio.StreamWriter) -> None:
        await self._serving.wait()
        writer.write(encode(Ready()))
