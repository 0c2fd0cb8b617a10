"""The plots, and the tables in docs/performance.md between their marks. Called by `__main__`."""

from pathlib import Path

from bench import plots
from bench.fanout import median
from bench.measured import Measured
from bench.rows import markdown, rows

_BEGIN, _END = "<!-- measured: begin -->\n", "<!-- measured: end -->\n"
_NAMES = {"floor": "floor", "node": "pushsse", "nchan": "nchan"}


def accept(seen: Measured) -> float:
    """CPU to accept a stream, over the rounds."""
    return median([one.accept_us for one in seen.rounds.get("node", ())])


def write_plots(seen: Measured, folder: Path) -> None:
    """The pictures of a run."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {
        "streams": (
            "CPU per delivery, each event when the last has arrived everywhere",
            "streams",
            "µs",
            _by(seen, "each"),
        ),
        "sizes": ("CPU per delivery by size of the event, 1,000 streams", "bytes", "µs", _by(seen, "sizes")),
        "memory": ("Memory per stream", "streams", "kB", _memory(seen)),
        "switches": ("CPU of one event, 1,000 streams", "streams that get it", "ms", _switches(seen)),
    }
    for name, (title, x_label, y_label, series) in pictures.items():
        if any(series.values()):
            (folder / f"{name}.svg").write_text(plots.lines(title, x_label, y_label, series))


def write_docs(seen: Measured, docs: Path) -> None:
    """The plots and the tables of the document."""
    write_plots(seen, docs / "plots")
    page = docs / "performance.md"
    before, _, rest = page.read_text().partition(_BEGIN)
    after = rest.partition(_END)[2]
    page.write_text(before + _BEGIN + _tables(seen) + _END + after)


def _tables(seen: Measured) -> str:
    words = ", ".join(f"{name} {value}" for name, value in seen.machine.items())
    lines = [markdown(rows(seen)), f"One run of {seen.seconds:.0f} s; {words}.", ""]
    lines += ["| CPU per delivery, µs | " + " | ".join(_NAMES[n] for n in seen.rounds) + " |"]
    lines += ["|---|" + "---|" * len(seen.rounds)]
    for kind, what in (
        ("acked", "streams, one at a time"),
        ("each", "streams, each when the last has arrived everywhere"),
        ("burst", "streams, bursts of 64"),
        ("sizes", "bytes"),
    ):
        for at in sorted({at for found in seen.rounds.values() for r in found for at in getattr(r, kind)}):
            figures = " | ".join(f"{seen.us(name, kind, at):.2f}" for name in seen.rounds)
            lines.append(f"| {at:,} {what} | {figures} |")
    lines += [f"\nLeft out: {what}: {why}." for what, why in seen.skipped.items()]
    lines += [f"\n{what}." for what in seen.incomplete]
    return "\n".join(lines) + "\n"


def _by(seen: Measured, kind: str) -> dict[str, dict[float, float]]:
    ats = sorted({at for found in seen.rounds.values() for r in found for at in getattr(r, kind)})
    return {_NAMES[n]: {at: us for at in ats if (us := seen.us(n, kind, at))} for n in seen.rounds}


def _memory(seen: Measured) -> dict[str, dict[float, float]]:
    # A hundred streams are less than what the first one's neighbours happen to need.
    counts = [count for count in seen.counts() if count >= 1_000]
    names = [name for name in seen.rounds if name != "floor"]
    return {_NAMES[n]: {c: kb for c in counts if (kb := seen.kb(n, c))} for n in names}


def _switches(seen: Measured) -> dict[str, dict[float, float]]:
    rounds = [r.switches for r in seen.rounds.get("node", ()) if r.switches is not None]
    points: dict[float, float] = {}
    for share in (0, 50, 90):
        turns = [turn for r in rounds for turn in r.off[share]]
        spent = [turn.spent.cpu_s / turn.delivered * 10 * (100 - share) for turn in turns]
        points[1000 - 10 * share] = median(spent) * 1000
    return {"pushsse": points} if rounds else {}
