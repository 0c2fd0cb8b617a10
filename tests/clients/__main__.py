"""`make clients`: all clients over all faults, about ten minutes; writes the tables in docs/clients.md.

With names it runs those alone, and writes their rows; with --quick it writes nothing. The exit status is 1 if
a client with its lines lost something, and 0 where a client couldn't be had: the table says so.
"""

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from deploy.parts import PartMissing, Redis
from tests.clients.client import Client
from tests.clients.known import ALL, Make
from tests.clients.matrix import CUT, Matrix, ways_of
from tests.clients.table import FAULTS, Missing, written
from tests.clients.world import World
from tests.guard import guarded

_DOCS = Path(__file__).parents[2] / "docs/clients.md"
_QUIET_S = 45.0
_LIMIT_S = 60.0
# A cut has twice as long: a poll that waits is taken for dead after 40 s.
_QUICK_LIMIT_S = 30.0
_HEARTBEAT_S = 15.0
_TOKEN_S = 60.0


def main() -> int:
    """Runs it; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.clients", description=__doc__)
    parser.add_argument("names", nargs="*", help="clients, such as httpx-sse; all of them without")
    parser.add_argument("--quick", action="store_true", help="a heartbeat of 1 s and short waits")
    given = parser.parse_args()
    names, quick = given.names, given.quick
    # Ends everything that was started, as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    clients, absent = _clients([make for make in ALL if not names or make.__name__ in names])
    with guarded(), tempfile.TemporaryDirectory(prefix="pushsse-clients-") as folder:
        matrix = _run(Path(folder), clients, quick=quick)
    for way in matrix.ways:
        shown = "  ".join(f"{fault}: {matrix.verdicts[way, fault]}" for fault in FAULTS)
        print(f"{way.name:<32}{shown}", flush=True)
    if not quick:
        _DOCS.write_text(written(_DOCS.read_text(), matrix, absent, others=bool(names)))
        print(f"written: {_DOCS}")
    wrong = [
        way.name
        for (way, fault), found in matrix.verdicts.items()
        if way.right and not found.whole and not (way.tls and fault == CUT and way.client.keeps_dead_http2)
    ]
    for name in sorted(set(wrong)):
        print(f"not right: {name}", file=sys.stderr)
    return bool(wrong)


def _clients(makes: Sequence[Make]) -> tuple[list[Client], list[Missing]]:
    found: list[Client] = []
    absent: list[Missing] = []
    for make in makes:
        print(f"preparing {make.__name__}", flush=True)
        try:
            found.append(make())
        except PartMissing as error:
            print(f"missing: {make.__name__}: {error}", file=sys.stderr, flush=True)
            absent.append(Missing(make.__name__, str(error)))
    return found, absent


def _run(folder: Path, clients: Sequence[Client], *, quick: bool) -> Matrix:
    with Redis(folder / "redis") as redis:
        world = World(folder, redis, heartbeat_s=1.0 if quick else _HEARTBEAT_S, quick=quick)
        matrix = Matrix(
            world, ways_of(clients), _QUICK_LIMIT_S if quick else _LIMIT_S, 20 if quick else _TOKEN_S
        )
        with world.running(), matrix.clients():
            steps: list[Callable[[], None]] = [
                lambda: matrix.quiet(6 if quick else _QUIET_S),
                matrix.terminate,
                matrix.kill,
                matrix.restart_nginx,
                matrix.cut,
                matrix.expire,
            ]
            for fault, step in zip(FAULTS, steps, strict=True):
                begun = time.monotonic()
                step()
                print(f"{fault}: {time.monotonic() - begun:.0f} s", flush=True)
    return matrix


if __name__ == "__main__":
    sys.exit(main())
