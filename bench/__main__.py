"""`python -m bench`: measures, shows progress, and writes the table, results.json and the plots.

`make bench` calls it; ARGS="--quick" is one short round, ARGS="--docs" also fills docs/performance.md.
"""

import argparse
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path

import msgspec

from bench import attacks, formats, outbox, polls, questions, report, workers
from bench.contestants import BenchNode, Contestant, Floor, Nchan, floor_program, nchan_module
from bench.fanout import median, one_round
from bench.generator import LoadFailed
from bench.measured import Idle, Measured
from bench.parts import Parts, parts
from bench.path import Whole, accept_us, database, latency, throughput, with_outcomes
from bench.rows import rows, text
from deploy.parts import PartFailed, Postgres, Redis

COUNTS = (100, 1_000, 5_000)
MOST = 15_000
# The sockets of the parts, the publisher, logs.
_SPARE_FILES = 500


class Run:
    """One run, with its folder and its progress."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.folder = folder
        self.quick: bool = options.quick
        self.rounds: int = 1 if options.quick else options.rounds
        self.idle_s: float = 15 if options.quick else options.idle
        self.events: int = 20_000 if options.quick else 60_000
        self.most = most_streams(options.most)
        self.seen = Measured(machine=machine())
        self._began = time.monotonic()

    def progress(self, words: str) -> None:
        """A line of progress."""
        print(f"{time.monotonic() - self._began:5.0f} s  {words}", flush=True)

    def all(self) -> Measured:
        """Everything, one after another."""
        program = floor_program(self.folder)
        if program[0] == sys.executable:
            self.seen.skipped["the floor in C"] = "no C compiler: the floor is a loop in Python"
        for number in range(self.rounds):
            # The most streams take long: once is enough.
            counts = (*COUNTS, self.most) if number == 0 and self.most > COUNTS[-1] else COUNTS
            for contestant in self.contestants(number, program):
                self.guarded(contestant.name, partial(self.round, contestant, counts, number))
        self.guarded("idle", self.idle)
        self.guarded("polls", self.polls)
        self.guarded("attacks", self.attacks)
        self.guarded("formats", self.formats)
        with parts(self.folder) as found:
            for missing in found.missing:
                self.progress(f"missing: {missing}")
            self.with_parts(found)
        self.seen.seconds = time.monotonic() - self._began
        return self.seen

    def guarded(self, what: str, measure: Callable[[], None]) -> None:
        """What fails is left out, visibly; the rest goes on."""
        try:
            measure()
        except (LoadFailed, PartFailed, OSError, RuntimeError, ExceptionGroup) as error:
            self.seen.skipped[what] = str(error).splitlines()[0].partition("; the end of ")[0]
            self.progress(f"{what}: left out: {error}")

    def contestants(self, number: int, program: Sequence[str]) -> list[Contestant]:
        """All that take part, anew for each round."""
        folder = self.folder / f"round{number}"
        database = {"PUSHSSE_DATABASE_URL": f"sqlite://{folder}/node.db"}
        found: list[Contestant] = [Floor(folder / "floor", program), BenchNode(folder / "node", database)]
        module = nchan_module()
        if module is None:
            self.seen.skipped["nchan"] = "nginx with the nchan module isn't here (Debian: libnginx-mod-nchan)"
        else:
            found.append(Nchan(folder / "nchan", module, self.most))
        return found

    def round(self, contestant: Contestant, counts: tuple[int, ...], number: int) -> None:
        """One contestant, once."""
        name = contestant.name
        measured = one_round(contestant, counts, progress=lambda words: self.progress(f"{name}: {words}"))
        self.seen.rounds.setdefault(name, []).append(measured)
        lost = sum(not figures.complete for figures in measured.figures())
        if lost:
            self.seen.incomplete.append(f"{name}: deliveries lost or repeated in {lost} measurements")

    def idle(self) -> None:
        """Streams that nobody writes to."""
        node = BenchNode(self.folder / "idle", {"PUSHSSE_DATABASE_URL": f"sqlite://{self.folder}/idle.db"})
        with node, node.generator(self.most) as load:
            load.open(self.most)
            self.progress(f"idle: {self.most} streams for {self.idle_s:.0f} s")
            spent = load.idle(self.idle_s)
        self.seen.idle = Idle(self.most, self.idle_s, spent.cpu_s / self.idle_s * 100)

    def polls(self) -> None:
        """Polls that wait."""
        folder = self.folder / "polled"
        node = BenchNode(folder, {"PUSHSSE_DATABASE_URL": f"sqlite://{folder}/node.db"})
        self.seen.polls = polls.measure(node, self.progress)
        if not self.seen.polls.complete:
            self.seen.incomplete.append("node: polls that waited weren't answered")

    def formats(self) -> None:
        """Formats of Kafka sources."""
        self.progress("formats: records decoded")
        self.seen.formats = formats.measure()

    def attacks(self) -> None:
        """Streams beside clients that mean harm."""
        folder = self.folder / "attacked"
        node = BenchNode(folder, {"PUSHSSE_DATABASE_URL": f"sqlite://{folder}/node.db"})
        self.seen.attacks = attacks.measure(node, 2 * self.rounds, self.progress)
        pairs = [pair for found in self.seen.attacks.values() for pair in found]
        if not all(figures.complete for pair in pairs for figures in (pair.calm, pair.attacked)):
            self.seen.incomplete.append("node: deliveries lost or repeated beside an attack")

    def with_parts(self, found: Parts) -> None:
        """What needs Redis, Kafka and PostgreSQL."""
        redis = found.redis
        self.seen.accept_us["SQLite"] = report.accept(self.seen)
        if redis is None:
            self.seen.skipped["workers"] = self.seen.skipped["path"] = "; ".join(found.missing)
            return
        self.guarded("workers", partial(self.workers, redis))
        self.guarded("questions", partial(self.questions, redis, found.postgres))
        if found.postgres is not None:
            for number in range(self.rounds):
                self.guarded("outbox", partial(self.outbox, redis, found.postgres, number))
        if found.kafka is None or found.postgres is None:
            self.seen.skipped["path"] = "; ".join(found.missing)
            return
        whole = Whole(found.kafka, redis, found.postgres, self.folder)
        for number in range(self.rounds):
            self.guarded("throughput", partial(self.throughput, whole, number))
            self.guarded("latency", partial(self.latency, whole, number))
            self.guarded("outcomes", partial(self.outcomes, whole, number))
        self.guarded("accept", partial(self.accept, whole))

    def workers(self, redis: Redis) -> None:
        """One worker, and two."""
        self.seen.workers = workers.measure(redis, self.folder, self.progress)
        if not self.seen.workers.complete:
            self.seen.incomplete.append("node: deliveries lost or repeated by one worker or two")

    def questions(self, redis: Redis, postgres: Postgres | None) -> None:
        """Questions and their answers."""
        folder, seconds = self.folder / "asked", 3 if self.quick else 10
        folder.mkdir()
        url = f"sqlite://{folder}/node.db" if postgres is None else database(postgres, "asked")
        self.seen.questions = questions.measure(redis, folder, url, seconds, self.progress)
        if not self.seen.questions.complete:
            self.seen.incomplete.append("node: deltas of answers lost or repeated")

    def outbox(self, redis: Redis, postgres: Postgres, number: int) -> None:
        """PostgreSQL to the log, and to clients."""
        seconds = 3 if self.quick else 10
        seen = outbox.measure(redis, postgres, self.folder, f"outbox{number}", self.events, seconds)
        self.seen.outbox.append(seen)
        self.progress(f"outbox: {seen.throughput.per_s:.0f} rows/s, p99 {seen.latency.p99_ms:.1f} ms")
        if not seen.latency.complete:
            self.seen.incomplete.append("node: rows of an outbox lost or repeated")

    def throughput(self, whole: Whole, number: int) -> None:
        """Kafka to the log."""
        measured = throughput(whole, f"throughput{number}", self.events)
        self.seen.throughput.append(measured)
        self.progress(f"Kafka to log: {measured.per_s:.0f}/s, {measured.us_each:.0f} µs of CPU each")

    def latency(self, whole: Whole, number: int) -> None:
        """Kafka to client."""
        ours, bare = latency(whole, f"latency{number}", 3)
        self.seen.latency.append((ours, bare))
        self.progress(f"Kafka to client: p99 {ours.p99_ms:.1f} ms, the bare loop {bare.p99_ms:.1f} ms")

    def outcomes(self, whole: Whole, number: int) -> None:
        """Kafka to client, with and without what became of each event."""
        pairs = with_outcomes(whole, f"outcomes{number}", self.events)
        self.seen.outcomes += pairs
        on, off = (median([figures.us_each for figures in way]) for way in zip(*pairs, strict=True))
        self.progress(f"outcomes: {on:.0f} µs of CPU an event, {off:.0f} without")
        if not all(figures.complete for pair in pairs for figures in pair):
            self.seen.incomplete.append("node: deliveries lost or repeated with outcomes")

    def accept(self, whole: Whole) -> None:
        """Accepting with PostgreSQL and Redis."""
        self.seen.accept_us["PostgreSQL, Redis"] = accept_us(whole, min(COUNTS[-1], self.most))


def most_streams(wanted: int) -> int:
    """As many as the limit of open files allows; raised as far as we may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return min(wanted, hard - _SPARE_FILES)


def machine() -> dict[str, str]:
    """What it ran on."""
    return {
        "processors": str(len(os.sched_getaffinity(0))),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "uvloop": version("uvloop"),
        "uvicorn": version("uvicorn"),
        "pushsse": version("pushsse"),
        "load before": f"{os.getloadavg()[0]:.1f}",
    }


def main() -> int:
    """Exit status 1 if something of the product was lost, or couldn't be measured."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="medians over so many [3]")
    parser.add_argument("--most", type=int, default=MOST, help=f"the most streams [{MOST}]")
    parser.add_argument("--idle", type=float, default=60, help="seconds of silence [60]")
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--out", type=Path, default=Path("bench/results"), help="where the results go")
    parser.add_argument("--docs", action="store_true", help="also fills docs/performance.md and its plots")
    options = parser.parse_args()
    if not sys.platform.startswith("linux"):
        print("the benchmark reads CPU time and memory from /proc: Linux only", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="pushsse-bench-") as name:
        # PostgreSQL's own user has to pass through it.
        os.chmod(name, 0o755)
        seen = Run(Path(name), options).all()
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.json").write_bytes(msgspec.json.format(msgspec.json.encode(seen), indent=1))
    report.write_plots(seen, options.out)
    if options.docs:
        report.write_docs(seen, Path("docs"))
    print("\n" + text(rows(seen)))
    for what, why in seen.skipped.items():
        print(f"left out: {what}: {why}")
    for what in seen.incomplete:
        print(what)
    print(f"{seen.seconds:.0f} s; all figures in {options.out}/results.json")
    return 1 if any(words.startswith("node") for words in seen.incomplete) else 0


if __name__ == "__main__":
    sys.exit(main())
