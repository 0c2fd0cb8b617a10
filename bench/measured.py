"""Everything that one run has measured; `rows` makes the table of it, `plots` the pictures."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.attacks import Pair
from bench.fanout import Round, median
from bench.formats import FormatRates
from bench.generator import Figures
from bench.outbox import OutboxCosts
from bench.path import Throughput
from bench.polls import PollCosts
from bench.questions import QuestionCosts
from bench.workers import WorkerCosts


@dataclass
class Idle:
    """What streams cost that get nothing but pings."""

    streams: int
    seconds: float
    percent: float


@dataclass
class Measured:
    """Rounds by contestant, and the single measurements; what is missing says why in `skipped`."""

    machine: dict[str, str] = field(default_factory=dict)
    rounds: dict[str, list[Round]] = field(default_factory=dict)
    idle: Idle | None = None
    accept_us: dict[str, float] = field(default_factory=dict)
    throughput: list[Throughput] = field(default_factory=list)
    latency: list[tuple[Figures, Figures]] = field(default_factory=list)
    formats: FormatRates | None = None
    # With outcomes, and without.
    outcomes: list[tuple[Figures, Figures]] = field(default_factory=list)
    outbox: list[OutboxCosts] = field(default_factory=list)
    workers: WorkerCosts | None = None
    questions: QuestionCosts | None = None
    polls: PollCosts | None = None
    attacks: dict[str, list[Pair]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    incomplete: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def us(self, name: str, kind: str, at: int) -> float:
        """CPU per delivery: the median over the rounds. `kind` is each, acked, burst or sizes."""
        found = (figures.get(at) for figures in self._all(name, kind))
        return median([one.us_each for one in found if one is not None])

    def ratio(self, peer: str, kind: str, at: int) -> float:
        """The node's CPU per delivery over a peer's: the median of the rounds' ratios."""
        pairs = zip(self._all("node", kind), self._all(peer, kind), strict=False)
        found = ((ours.get(at), theirs.get(at)) for ours, theirs in pairs)
        return median(
            [a.us_each / b.us_each for a, b in found if a is not None and b is not None and b.us_each]
        )

    def one_us(self, name: str) -> float:
        """CPU of an event for one person."""
        return median([r.one.us_each for r in self.rounds.get(name, ()) if r.one is not None])

    def one_ratio(self, peer: str) -> float:
        """The node's CPU of an event for one person over a peer's: the median of the rounds' ratios."""
        pairs = zip(self.rounds.get("node", ()), self.rounds.get(peer, ()), strict=False)
        found = [(ours.one, theirs.one) for ours, theirs in pairs]
        return median(
            [a.us_each / b.us_each for a, b in found if a is not None and b is not None and b.us_each]
        )

    def accept_ratio(self, peer: str) -> float:
        """The node's CPU to accept a stream over a peer's: the median of the rounds' ratios."""
        pairs = zip(self.rounds.get("node", ()), self.rounds.get(peer, ()), strict=False)
        return median([a.accept_us / b.accept_us for a, b in pairs if b.accept_us])

    def p99_ratio(self, peer: str) -> float:
        """The node's p99 latency at the steady rate over a peer's: the median of the rounds' ratios."""
        pairs = zip(self.rounds.get("node", ()), self.rounds.get(peer, ()), strict=False)
        found = [(ours.steady, theirs.steady) for ours, theirs in pairs]
        return median([a.p99_ms / b.p99_ms for a, b in found if a is not None and b is not None and b.p99_ms])

    def kb(self, name: str, count: int) -> float:
        """Memory per stream, of so many."""
        return median([r.kb[count] / count for r in self.rounds.get(name, ()) if count in r.kb])

    def kb_of_further(self, name: str, from_: int, to: int) -> float:
        """Memory of each stream that is added to so many, until there are more."""
        added = [r.kb[to] - r.kb[from_] for r in self.rounds.get(name, ()) if from_ in r.kb and to in r.kb]
        return median(added) / (to - from_)

    def elsewhere_us(self, count: int) -> float:
        """CPU of an event for somebody who isn't here, beside so many streams that are."""
        return median([r.elsewhere[count] for r in self.rounds.get("node", ()) if count in r.elsewhere])

    def counts(self) -> Sequence[int]:
        """The numbers of streams that the node had."""
        return sorted({count for r in self.rounds.get("node", ()) for count in r.kb})

    def _all(self, name: str, kind: str) -> list[dict[int, Figures]]:
        return [getattr(r, kind) for r in self.rounds.get(name, ())]
