"""The table: each figure with what it must reach, what it should, and what was seen."""

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

from bench.answerer import PER_S
from bench.attacks import ATTACKS, of_allowed
from bench.fanout import median
from bench.measured import Measured
from bench.polls import POLLS
from bench.questions import ACCEPT_RATE, ANSWERS, WAITING, QuestionCosts

_WAYS = {
    "acked": "one event at a time",
    "each": "each when the last has arrived everywhere",
    "burst": "bursts of 64",
}
# What fewer streams need, a node has free after its start.
_FEWEST = 1_000


class Row(NamedTuple):
    """One line; `seen` 0 means that it wasn't measured. Smaller is better unless `rising`."""

    figure: str
    reach: float | None
    aim: float | None
    seen: float
    unit: str = ""
    rising: bool = False

    @property
    def verdict(self) -> str:
        """How far it got."""
        if not self.seen:
            return "not measured"
        if self.reach is None or self.aim is None:
            return ""
        if self.good(self.aim):
            return "aim"
        return "reach" if self.good(self.reach) else "missed"

    def good(self, bound: float) -> bool:
        """Whether what was seen keeps a bound."""
        return self.seen >= bound if self.rising else self.seen <= bound


def rows(seen: Measured) -> Sequence[Row]:
    """All lines, in the order of the path."""
    people = [*_people(seen), *_questions(seen)]
    return [
        *_fanout(seen),
        *_streams(seen),
        *_path(seen),
        *_formats(seen),
        *_outbox(seen),
        *_workers(seen),
        *people,
        *_attacks(seen),
    ]


def _fanout(seen: Measured) -> list[Row]:
    found = []
    bounds = {"floor": {"acked": (1.5, 1.2), "burst": (0.4, 0.1)}, "nchan": dict.fromkeys(_WAYS, (0.8, 0.6))}
    for count, peer, kind in product((1_000, 5_000), ("floor", "nchan"), _WAYS):
        reach, aim = bounds[peer].get(kind, (None, None)) if kind != "each" else (None, None)
        what = f"CPU per delivery / {peer}, {_WAYS[kind]}, {count:,} streams"
        found.append(Row(what, reach, aim, seen.ratio(peer, kind, count)))
    found.append(Row("p99 latency / nchan, 50 events/s, 1,000 streams", 1.2, 0.9, seen.p99_ratio("nchan")))
    return found


def _streams(seen: Measured) -> list[Row]:
    what = "memory per stream, 5,000 streams, each its own user"
    found = [Row(what, 3.0, 2.0, seen.kb("node", 5_000), "kB")]
    counts = [count for count in seen.counts() if count >= _FEWEST]
    if len(counts) > 2 and (early := seen.kb_of_further("node", *counts[:2])):
        what = f"memory of a further stream, up to {counts[-1]:,} / up to {counts[1]:,}"
        found.append(Row(what, 1.1, 1.1, seen.kb_of_further("node", counts[1], counts[-1]) / early))
    for where, us in seen.accept_us.items():
        what = f"CPU to accept a stream, token checked, switches read ({where})"
        found.append(Row(what, 300, 150, us, "µs"))
    found.append(Row("CPU to accept a stream / nchan", None, None, seen.accept_ratio("nchan")))
    if seen.idle is not None:
        what = f"idle, {seen.idle.streams:,} streams for {seen.idle.seconds:.0f} s, a ping each 15 s"
        found.append(Row(what, 3.0, 1.5, seen.idle.percent, "% of a core"))
    return [*found, *_polls(seen)]


def _polls(seen: Measured) -> list[Row]:
    if seen.polls is None:
        return []
    many = f"{POLLS:,} polls that wait, each its own user"
    return [
        Row(f"{many}: memory of each", 3.0, 2.0, seen.polls.kb, "kB"),
        Row(f"{many}: CPU meanwhile", 3.0, 1.5, max(seen.polls.percent, 0.01), "% of a core"),
        Row(f"{many}: CPU to begin one, token checked, switches read", None, None, seen.polls.begin_us, "µs"),
        Row(f"{many}: CPU to answer one with a broadcast", None, None, seen.polls.answer_us, "µs"),
    ]


def _path(seen: Measured) -> list[Row]:
    per_s = median([one.per_s for one in seen.throughput])
    ratio = median([a.p99_ms / b.p99_ms for a, b in seen.latency if b.p99_ms])
    outcomes = median([on.us_each / off.us_each for on, off in seen.outcomes if off.delivered])
    return [
        Row(
            "Kafka to log, one person each, 4 partitions, PostgreSQL",
            15_000,
            40_000,
            per_s,
            "/s",
            rising=True,
        ),
        Row("Kafka to client, 1,000 streams, 500/s: p99 / a bare loop's", 3.0, 1.5, ratio),
        Row("CPU of an event, Kafka to client, with outcomes / without", 1.1, 1.05, outcomes),
    ]


def _formats(seen: Measured) -> list[Row]:
    rates = seen.formats
    named = {
        "structured": "CloudEvents, structured",
        "binary": "CloudEvents, binary",
        "mapped": "JMESPath, five expressions",
    }
    found = [
        Row("records of format pushsse decoded", None, None, rates.per_s("pushsse") if rates else 0.0, "/s")
    ]
    for name, words in named.items():
        ratio = rates.ratio(name) if rates else 0.0
        found.append(Row(f"{words}: records decoded / format pushsse's", 0.5, 0.6, ratio, rising=True))
    return found


def _outbox(seen: Measured) -> list[Row]:
    per_s = median([one.throughput.per_s for one in seen.outbox])
    p99_ms = median([one.latency.p99_ms for one in seen.outbox])
    return [
        Row("outbox to log, one person each, PostgreSQL", 5_000, 10_000, per_s, "/s", rising=True),
        Row("outbox to client, 1,000 streams, 500 transactions/s: p99", 50, 25, p99_ms, "ms"),
    ]


def _workers(seen: Measured) -> list[Row]:
    ratio, share = (seen.workers.ratio, 100 * seen.workers.least_share) if seen.workers else (0.0, 0.0)
    return [
        Row("two workers / one: CPU per delivery, 5,000 streams", 1.15, 1.05, ratio),
        Row("two workers: the smaller share of the streams", 35, 35, share, "%", rising=True),
    ]


def _people(seen: Measured) -> list[Row]:
    rounds = [r.switches for r in seen.rounds.get("node", ()) if r.switches is not None]
    found = [
        Row("an event for one person by HTTP, 5,000 streams", 200, 100, seen.one_us("node"), "µs"),
        Row(
            "an event for one person by HTTP / nchan, to its only stream", None, None, seen.one_ratio("nchan")
        ),
    ]
    for share in (50, 90):
        turns = [turn for r in rounds for turn in zip(r.off[share], r.off[0], strict=True)]
        ratios = [some.spent.cpu_s / nobody.spent.cpu_s for some, nobody in turns]
        what = f"an event that {share} % have switched off / one that nobody has"
        found.append(Row(what, None, None, median(ratios)))
    others = [r.after.us_each / r.before.us_each for r in rounds if r.after and r.before]
    found.append(Row("a delivery where 90 % have other types off / nobody has", None, None, median(others)))
    if counts := seen.counts():
        most, few = seen.elsewhere_us(counts[-1]), seen.elsewhere_us(counts[0])
        what = f"an event for somebody elsewhere, {counts[-1]:,} streams here / {counts[0]:,}"
        found.append(Row(what, None, None, most / few if few else 0.0))
    return found


def _questions(seen: Measured) -> list[Row]:
    costs = seen.questions or QuestionCosts()
    many = f"{ANSWERS} answers at once, {PER_S} deltas/s each"
    whole = 100 * (1 - (costs.gaps + costs.unequal) / costs.answers) if costs.answers else 0.0
    found = [
        Row(f"question accepted, {ACCEPT_RATE}/s: p99", 20, 10, costs.accepted_p99_ms, "ms"),
        Row(f"question accepted and answered, {ACCEPT_RATE}/s: CPU", 2_000, 1_500, costs.accepted_us, "µs"),
        Row("first delta, from answerer to client: p99", 20, 10, costs.first_p99_ms, "ms"),
        Row(f"{many}: answers without a gap that are their deltas", 100, 100, whole, "%", rising=True),
        Row(f"{many}: deltas that arrive, some joined", None, None, costs.deltas_per_s, "/s"),
        Row(f"{many}: CPU of a delta", None, None, costs.delta_us, "µs"),
        # What else runs in Redis meanwhile is taken off, to a hundredth.
        Row(f"{many}: calls of Redis a delta", 1.05, 1, round(costs.calls_per_delta, 2)),
    ]
    if seen.questions is not None:
        what = f"{WAITING:,} questions that wait: further threads"
        found.append(Row(what, None, None, costs.waiting_threads))
        what = f"{WAITING:,} questions that wait: further CPU"
        found.append(Row(what, 1.0, 0.5, max(costs.waiting_percent, 0.01), "% of a core"))
        what = f"{WAITING:,} replies that follow them: further CPU"
        found.append(Row(what, 20, 10, max(costs.followed_percent, 0.01), "% of a core"))
    return found


def _attacks(seen: Measured) -> list[Row]:
    what = "growth of p99, 1,000 streams, beside {} / 25 % or 5 ms"
    return [Row(what.format(kind), 1.0, 0.5, of_allowed(seen.attacks.get(kind, ()))) for kind in ATTACKS]


def markdown(found: Sequence[Row]) -> str:
    """The table for people."""
    lines = ["| figure | reach | aim | seen | |", "|---|---|---|---|---|"]
    for row in found:
        bounds = [_number(row.reach), _number(row.aim)]
        seen = f"**{_number(row.seen)}**{' ' + row.unit if row.unit else ''}" if row.seen else "–"
        lines.append(f"| {row.figure} | {bounds[0]} | {bounds[1]} | {seen} | {row.verdict} |")
    return "\n".join(lines) + "\n"


def text(found: Sequence[Row]) -> str:
    """The table for a terminal."""
    width = max(len(row.figure) for row in found)
    lines = [f"{'':{width}}  {'reach':>8} {'aim':>8} {'seen':>9}"]
    for row in found:
        seen = _number(row.seen) if row.seen else "-"
        bounds = f"{_number(row.reach):>8} {_number(row.aim):>8}"
        lines.append(f"{row.figure:{width}}  {bounds} {seen:>9} {row.unit:<11} {row.verdict}")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}".rstrip("0").rstrip(".")
