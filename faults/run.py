"""`make faults`: runs the faults one after another, prints a row for each, and writes docs/faults.md.

Exit status 1 when a row fails, 3 when a part can't be had. Everything is on loopback and ends with the run.
"""

import argparse
import asyncio
import logging
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import uvloop

from deploy.parts import Node, PartMissing
from faults import report
from faults.faults import FAULTS, Fault
from faults.nodes import PortableNode
from faults.report import Row
from faults.scale import FAST, WHOLE, Scale
from faults.world import World, world

MISSING = 3
_FAULT_LIMIT_S = 400


def main() -> int:
    """Parses the command line, and runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="numbers of faults, comma-separated")
    parser.add_argument("--list", action="store_true", help="lists the faults, and runs none")
    parser.add_argument("--fast", action="store_true", help="the small scale of the ordinary tests")
    parser.add_argument("--portable", action="store_true", help="streams aren't handed over by uvicorn")
    parser.add_argument("--keep", action="store_true", help="keeps the folder with data and logs")
    options = parser.parse_args()
    wanted = {int(number) for number in options.only.split(",") if number} or set(FAULTS)
    if unknown := wanted - set(FAULTS):
        parser.error(f"there is no fault {', '.join(map(str, sorted(unknown)))}")
    if options.list:
        for number, fault in FAULTS.items():
            print(f"{number:3d}  {fault.__doc__ or fault.__name__}")
        return 0
    # Of the producer's own troubles while Kafka is away.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    # Ends everything that was started, as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    begun = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="pushsse-faults-"))
    print(f"logs are in {folder}/logs", flush=True)
    try:
        make = PortableNode if options.portable else Node
        rows = uvloop.run(_run(folder, sorted(wanted), FAST if options.fast else WHOLE, make))
    except PartMissing as error:
        print(f"a part is missing: {error}", flush=True)
        return MISSING
    took_s = time.monotonic() - begun
    if wanted == set(FAULTS) and not options.fast:
        report.write(rows, took_s=took_s, portable=options.portable)
    failed = sum(not row.ok for row in rows)
    print(f"{len(rows)} rows, {failed} failed, {took_s:.0f} s", flush=True)
    if not failed and not options.keep:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if failed else 0


async def _run(folder: Path, numbers: list[int], scale: Scale, make: type[Node]) -> list[Row]:
    rows: list[Row] = []
    async with world(folder, scale, make) as made:
        made.finished = lambda row: _show(rows, row)
        for number in numbers:
            await _one(number, FAULTS[number], made, rows)
    return rows


async def _one(number: int, fault: Fault, made: World, rows: list[Row]) -> None:
    try:
        async with asyncio.timeout(_FAULT_LIMIT_S):
            await fault(made)
    except Exception as error:  # noqa: BLE001 (the other faults are still to be run)
        traceback.print_exc(limit=-4)
        row = Row(number, fault.__doc__ or fault.__name__)
        row.check("ended with", repr(error), ok=False)
        _show(rows, row)
        await made.cluster.mend()


def _show(rows: list[Row], row: Row) -> None:
    rows.append(row)
    print(report.line(row), flush=True)


if __name__ == "__main__":
    sys.exit(main())
