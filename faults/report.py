"""Rows of the table: what was done, what was measured, whether it is as promised."""

import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

FILE = Path(__file__).resolve().parents[1] / "docs" / "faults.md"
_HEAD = """\
# Faults

Breaking things shows what the guarantees are worth. `make faults` starts the whole deployment on one
machine: Kafka with four partitions, Redis with its append-only file, PostgreSQL, nginx with the
configuration of a deployment, and three nodes. It opens 300 streams through nginx that behave as
`EventSource` does, and sends 200 events a second, 5 % of them to everyone. Then it breaks the parts as
the table says.

The producer keeps a ledger of what Kafka acknowledged, and every client keeps one of what it received.
After each fault the ledgers are compared. A row passes when

- nothing is lost: every event for a client has arrived, or lies in an interval that the client was told
  about as a `gap`, and a gap is told only where a log itself was lost;
- nothing is out of the order of its Kafka partition, arrives twice at a client, or reaches the wrong
  person;
- nothing arrives that is switched off, and nothing is held back that is switched on (guarantee 3);
- all clients are connected, and none was refused in a way that ends an `EventSource` for good;
- the nodes' open files are back to their number before (at most three more; connections to Kafka and
  PostgreSQL have a limit instead), resident memory is within 10 % + 5 MB of its size when the nodes
  were warm, and no node has logged a traceback;
- what the row itself promises holds.

Each row has lost, reordered, repeated, delivered to the wrong person, and delivered against a switch: where
they are 0, they aren't shown.
"""
_TITLE = "## "
_WAYS = {
    False: ("Streams handed over by uvicorn", "make faults"),
    True: ("Streams written the portable way", "make faults ARGS=--portable"),
}


@dataclass(frozen=True, slots=True)
class Check:
    """One promise: its name, what was measured, whether it holds. `counts`: faults, shown if any."""

    name: str
    figure: str
    ok: bool
    counts: bool = False


@dataclass(slots=True)
class Row:
    """One fault, or one variant of it. `gaps` says that logs are lost in it, so that gaps are told."""

    number: int
    what: str
    gaps: bool = False
    began: float = 0.0
    checks: list[Check] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether all of it holds."""
        return all(check.ok for check in self.checks)

    def check(self, name: str, figure: object, ok: object) -> None:
        """Adds what was measured."""
        self.checks.append(Check(name, str(figure), bool(ok)))

    def count(self, name: str, faults: int) -> None:
        """Adds how many faults of a kind were found, of which there may be none."""
        self.checks.append(Check(name, str(faults), not faults, counts=True))

    @property
    def figures(self) -> str:
        """The figures; those that fail stand out, and no fault of a kind is no figure."""
        shown = [check for check in self.checks if not (check.counts and check.ok)]
        return "; ".join(f"{c.name} {c.figure}" if c.ok else f"**{c.name} {c.figure}**" for c in shown)


def line(row: Row) -> str:
    """A row for the terminal."""
    verdict = "pass" if row.ok else "FAIL"
    examples = "".join(f"\n       {example}" for example in row.examples)
    return f"{verdict}  {row.number:2d}  {row.what}: {row.figures}{examples}"


def write(rows: Sequence[Row], *, took_s: float, portable: bool, file: Path = FILE) -> None:
    """Writes the table of one way of writing streams; that of the other way stays as it is."""
    title, command = _WAYS[portable]
    table = ["| fault | measured | |", "|---|---|---|"]
    table += [f"| {r.number}. {r.what} | {r.figures} | {'pass' if r.ok else '**FAIL**'} |" for r in rows]
    machine = f"Python {platform.python_version()}, {platform.system()} on {platform.machine()}"
    when = time.strftime("%Y-%m-%d")
    shown = f"`{command}` on {when}, {took_s / 60:.0f} minutes, {machine}, all parts on two shared cores:"
    sections = _sections(file.read_text(encoding="utf-8")) if file.exists() else {}
    sections[title] = "\n".join(["", shown, "", *table, ""])
    known = [f"{_TITLE}{title}\n{sections[title]}" for title, _ in _WAYS.values() if title in sections]
    file.write_text("\n".join([_HEAD, *known]), encoding="utf-8")


def _sections(text: str) -> dict[str, str]:
    found = (section.partition("\n") for section in text.split(f"\n{_TITLE}")[1:])
    return {title: body for title, _, body in found}
