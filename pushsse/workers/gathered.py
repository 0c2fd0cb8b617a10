"""The numbers of several processes as one: what a worker tells of its metrics, and how they are added up.

Told by `worker`, gathered by `supervisor`. Counters outlive their process, so that none goes back.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from msgspec import Struct
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric

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
