"""Counters of the path as plain integers, and their exposition for Prometheus.

Every hop counts, and `api/admin` answers a scrape. Deliberate: the hot path adds to plain integers, and
prometheus_client's objects are made at a scrape alone.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from pushsse.errors import CloseReason

Labels = tuple[str, ...]
# Of several processes: each counts its own; each knows the same; or it holds if it holds in each.
Combine = Literal["sum", "max", "least"]
# How a stream's resume may go (`stream.frame.Resume`), what models count, and which limits there are.
RESUMES = ("new", "complete", "gap")
TOKENS = ("prompt", "completion")
LIMITS = (
    "streams",
    "streams_per_user",
    "replies_per_user",
    "connections_per_address",
    "accepts_per_second",
    "questions",
    "open_questions",
    "feedback",
    "switches",
    "tickets",
    "acks",
    "log_bytes",
)


class Gauge(GaugeMetricFamily):
    """A gauge as Prometheus knows it, and how those of several processes combine."""

    def __init__(self, name: str, text: str, combine: Combine, *, labels: Labels = ()) -> None:
        super().__init__(f"pushsse_{name}", text, labels=labels)
        self.combine = combine


class _Measure(NamedTuple):
    """What is asked at each scrape."""

    text: str
    ask: Callable[[], float]
    combine: Combine = "sum"


@dataclass(slots=True)
class SourceCounts:
    """What became of the records of one source, each time one was read."""

    mapped: int = 0
    skipped: int = 0
    expired: int = 0
    dead: int = 0


@dataclass(slots=True)
class Metrics:
    """One process's counts. A gauge is a function, asked at each scrape."""

    deliveries: int = 0
    suppressed: int = 0
    replaced: int = 0
    expired: int = 0
    fenced: int = 0
    repeated: int = 0
    appended: int = 0
    records: int = 0
    dead_letters: int = 0
    dead_letters_refused: int = 0
    unknown_members: int = 0
    unfiltered: int = 0
    types_left_out: int = 0
    gaps_filled: int = 0
    backplane_reconnects: int = 0
    logs_lost: int = 0
    streams_opened: int = 0
    answers_late: int = 0
    questions_deleted: int = 0
    # A reason that has not been seen is there, too, as 0: what counts from nothing shows no first increase.
    resumes: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(RESUMES, 0)))
    endings: Counter[str] = field(default_factory=lambda: Counter({each.code: 0 for each in CloseReason}))
    questions: Counter[str] = field(default_factory=Counter)
    answer_tokens: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(TOKENS, 0)))
    refusals: Counter[str] = field(default_factory=Counter)
    limited: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(LIMITS, 0)))
    # By the outbox's table. What waits is what the database said a moment ago: how many rows, for how long.
    outbox_rows: Counter[str] = field(default_factory=Counter)
    outbox_dead: Counter[str] = field(default_factory=Counter)
    outbox_waiting: dict[str, tuple[int, float]] = field(default_factory=dict)
    gauges: dict[str, _Measure] = field(default_factory=dict)
    counters: dict[str, _Measure] = field(default_factory=dict)
    # By the source's name.
    sources: dict[str, SourceCounts] = field(default_factory=dict)
    lag: dict[tuple[str, str], int] = field(default_factory=dict)
    # Partitions, by topic and number, that wait for the dead-letter topic.
    held_partitions: set[tuple[str, int]] = field(default_factory=set)

    def gauge(self, name: str, combine: Combine, text: str, ask: Callable[[], float]) -> None:
        """Adds a gauge that is asked at each scrape; `combine` says what it is for several processes."""
        self.gauges[name] = _Measure(text, ask, combine)

    def counter(self, name: str, text: str, ask: Callable[[], float]) -> None:
        """Adds a counter that somebody else keeps, and that is asked at each scrape."""
        self.counters[name] = _Measure(text, ask)

    def collect(self) -> Iterator[Metric]:
        """The numbers as Prometheus knows them."""
        for name, text in _COUNTERS.items():
            yield CounterMetricFamily(f"pushsse_{name}", text, value=getattr(self, name))
        for name, label, text in _LABELLED:
            family = CounterMetricFamily(f"pushsse_{name}", text, labels=[label])
            for value, count in getattr(self, name).items():
                family.add_metric([value], count)
            yield family
        records = CounterMetricFamily(
            "pushsse_source_records",
            "Kafka records by what became of them: mapped to events, skipped, expired, dead",
            labels=["source", "outcome"],
        )
        for source, counts in self.sources.items():
            for outcome in ("mapped", "skipped", "expired", "dead"):
                records.add_metric([source, outcome], getattr(counts, outcome))
        yield records
        for name, (text, ask, _) in self.counters.items():
            yield CounterMetricFamily(f"pushsse_{name}", text, value=ask())
        for name, (text, ask, combine) in self.gauges.items():
            gauge = Gauge(name, text, combine)
            gauge.add_metric((), ask())
            yield gauge
        # While a partition changes hands, two processes may have a lag of it.
        lag = Gauge("kafka_lag", "Records not read yet", "max", labels=("topic", "partition"))
        for labels, behind in self.lag.items():
            lag.add_metric(labels, behind)
        yield lag
        depth = Gauge("outbox_depth", "Rows that wait, 100,000 at most", "max", labels=("table",))
        age = Gauge("outbox_lag_seconds", "Age of the oldest row that waits", "max", labels=("table",))
        for table, (rows, lag_s) in self.outbox_waiting.items():
            depth.add_metric((table,), rows)
            age.add_metric((table,), lag_s)
        yield depth
        yield age

    def exposition(self) -> bytes:
        """The text that /metrics answers with (Prometheus text format 0.0.4)."""
        registry = CollectorRegistry()
        registry.register(_Once(self))
        return generate_latest(registry)


@dataclass(slots=True, eq=False)
class _Once:
    metrics: Metrics

    def collect(self) -> Iterator[Metric]:
        return self.metrics.collect()


_COUNTERS = {
    "deliveries": "Events written to streams",
    "suppressed": "Events held back from a person by a switch",
    "expired": "Events dropped as expired: once at the log, at each node, and for each replay or poll",
    "replaced": "Events left out of replays and polls, since a newer one has their key",
    "fenced": "Publications skipped because the log had them already",
    "repeated": "Recipients left out because their producer repeated the id (a broadcast counts as one)",
    "appended": "Publications appended to the log",
    "records": "Kafka records read",
    "dead_letters": "Records sent to the dead-letter topic",
    "dead_letters_refused": "Records that can't be used and that the dead-letter topic takes in no form",
    "unknown_members": "Members of events that were ignored",
    "unfiltered": "Events published without asking the switches, because the database was away",
    "types_left_out": "Types that found no room in the catalogue, counted anew in each batch of events",
    "gaps_filled": "Times that missed publications were read from the log",
    "backplane_reconnects": "Connections to the backplane made anew",
    "logs_lost": "Logs that went on in another epoch",
    "streams_opened": "Streams opened, and polls that wait",
    "questions_deleted": "Questions deleted because of their age",
    "answers_late": "Answer records from Kafka that came again, or after the end of their answer",
}
_LABELLED = (
    ("resumes", "outcome", "Streams by how their resume went"),
    ("endings", "reason", "Streams ended, by reason"),
    ("questions", "status", "Questions by the status they came to"),
    ("answer_tokens", "kind", "Tokens of prompts and answers, as model servers count them"),
    ("refusals", "code", "Requests refused, by the code of the answer"),
    ("outbox_rows", "table", "Rows of outboxes that the log has"),
    ("outbox_dead", "table", "Rows of outboxes that can't be events"),
    ("limited", "limit", "Streams, replies, calls and connections that were over a limit, by the limit"),
)
