"""A worker's link to its supervisor: it says when it serves, tells its numbers, and asks for everybody's.

Handed to the node by `server.serve`. When the link ends the supervisor is gone, and so is the worker soon.
"""

import asyncio
import itertools
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field

import msgspec
from msgspec import Struct
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric

from pushsse.settings import Settings

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
class Sum:
    """Families added up. What says whether a part is there holds for all only if it holds for each."""

    _families: dict[str, tuple[str, str]] = field(default_factory=dict)
    _samples: dict[tuple[str, str, Labels], float] = field(default_factory=dict)

    def add(self, told: Iterable[Family], *, counters_only: bool = False) -> None:
        """Adds one process's."""
        for family in told:
            if counters_only and family.kind != "counter":
                continue
            self._families.setdefault(family.name, (family.kind, family.text))
            combine = _least if family.name.endswith("_available") else _plus
            for sample, labels, value in family.samples:
                at = (family.name, sample, labels)
                self._samples[at] = combine(self._samples[at], value) if at in self._samples else value

    def families(self) -> tuple[Family, ...]:
        """The sum."""
        found: dict[str, list[tuple[str, Labels, float]]] = {name: [] for name in self._families}
        for (name, sample, labels), value in self._samples.items():
            found[name].append((sample, labels, value))
        return tuple(Family(name, *self._families[name], tuple(found[name])) for name in found)


@dataclass(frozen=True, slots=True, eq=False)
class Exposition:
    """Families as prometheus_client wants them."""

    told: tuple[Family, ...]

    def collect(self) -> Iterator[Metric]:
        """Called by the registry."""
        for family in self.told:
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


class Begin(Struct, frozen=True, tag="begin"):
    """The supervisor's first word: the worker's settings."""

    settings: Settings


class Asked(Struct, frozen=True, tag="asked"):
    """The supervisor wants a worker's numbers; the answer carries the same turn."""

    turn: int


class Hello(Struct, frozen=True, tag="hello"):
    """A worker's first word: from now on it tells its numbers."""


class Ready(Struct, frozen=True, tag="ready"):
    """The worker serves."""


class Told(Struct, frozen=True, tag="told"):
    """A worker's numbers."""

    turn: int
    families: tuple[Family, ...]


class Scrape(Struct, frozen=True, tag="scrape"):
    """The worker was asked for the numbers of all; the answer carries the same number."""

    number: int


class Scraped(Struct, frozen=True, tag="scraped"):
    """The numbers of all workers, in Prometheus' text format."""

    number: int
    text: str


Word = Begin | Asked | Hello | Ready | Told | Scrape | Scraped
MAX_LINE = 16 * 1024 * 1024
_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Word] = msgspec.json.Decoder(Word)


def line(word: Word) -> bytes:
    """A word as it is sent: one line of JSON."""
    return _encoder.encode(word) + b"\n"


def read(sent: bytes) -> Word:
    """The word of a line. Raises msgspec.DecodeError."""
    return _decoder.decode(sent)


_SCRAPE_S = 3.0
Collect = Callable[[], Iterable[Metric]]


class SupervisorGone(Exception):
    """The supervisor has ended without a word."""


class Worker:
    """One worker's side of a socket pair."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._serving = asyncio.Event()
        self._writer: asyncio.StreamWriter | None = None
        self._scrapes: dict[int, asyncio.Future[bytes]] = {}
        self._numbers = itertools.count(1)

    def settings(self) -> Settings:
        """The supervisor's first word. Raises SupervisorGone."""
        # Unbuffered, so that what follows stays in the socket for `run`.
        with self._link.makefile("rb", buffering=0) as sent:
            told = sent.readline()
        if not told:
            raise SupervisorGone
        begin = read(told)
        assert isinstance(begin, Begin)
        return begin.settings

    def ready(self) -> None:
        """The worker serves."""
        self._serving.set()

    async def run(self, collect: Collect) -> None:
        """Answers the supervisor for as long as the node runs. Raises SupervisorGone."""
        try:
            reader, writer = await asyncio.open_unix_connection(sock=self._link, limit=MAX_LINE)
        except OSError as error:
            raise SupervisorGone from error
        with closing(writer):
            self._writer = writer
            writer.write(line(Hello()))
            async with asyncio.TaskGroup() as tasks:
                told = tasks.create_task(self._tell_ready(writer), name="tell ready")
                try:
                    while sent := await reader.readline():
                        self._hear(sent, writer, collect)
                except OSError as error:
                    raise SupervisorGone from error
                finally:
                    told.cancel()
                    self._writer = None
                    # The last numbers: what was counted since somebody asked.
                    writer.write(line(Told(0, families(collect()))))
        raise SupervisorGone

    def _hear(self, sent: bytes, writer: asyncio.StreamWriter, collect: Collect) -> None:
        word = read(sent)
        if isinstance(word, Asked):
            writer.write(line(Told(word.turn, families(collect()))))
        elif isinstance(word, Scraped):
            waiting = self._scrapes.get(word.number)
            if waiting is not None and not waiting.done():
                waiting.set_result(word.text.encode())

    async def exposition(self, collect: Collect) -> bytes:
        """The numbers of all workers, or, if the supervisor doesn't answer in time, this one's own."""
        if self._writer is not None:
            number = next(self._numbers)
            answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
            self._scrapes[number] = answer
            try:
                self._writer.write(line(Scrape(number)))
                async with asyncio.timeout(_SCRAPE_S):
                    return await answer
            except TimeoutError:
                pass
            finally:
                del self._scrapes[number]
        return Exposition(families(collect())).text()

    async def _tell_ready(self, writer: asyncio.StreamWriter) -> None:
        await self._serving.wait()
        writer.write(line(Ready()))
