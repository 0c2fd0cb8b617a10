"""Ends what a run of the tests has started, however the run ends: a process beside it waits for its end.

`tests.parts` and `tests.clients` enter `guarded`. What was started is known by a variable of its environment,
which it hands on to what it starts itself. Deliberate: no PR_SET_PDEATHSIG, which is about the thread that
started a process; parts are started by threads that end before them.
"""

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.parts.part import kill_family

# The runs that a process belongs to: a test may run tests.
_RUNS = "TESTS_RUNS"
_LOOKS = 3


@contextmanager
def guarded() -> Iterator[None]:
    """Whatever is started while the context lasts ends with it, or with this process."""
    before = os.environ.get(_RUNS, "")
    run = secrets.token_hex(8)
    guard = subprocess.Popen(
        [sys.executable, "-m", __name__, run],
        cwd=Path(__file__).parents[1],
        stdin=subprocess.PIPE,
        # A signal to the group of the run isn't one to its guard.
        start_new_session=True,
    )
    os.environ[_RUNS] = f"{before} {run}"
    try:
        yield
    finally:
        os.environ[_RUNS] = before
        guard.communicate()


def main() -> None:
    """The guard, whose argument is a run's word. The run never writes: its end is that of the stream."""
    sys.stdin.read()
    # Again for what was just being started; not for ever, for what can't be killed.
    for _ in range(_LOOKS):
        for pid in _started(sys.argv[1].encode()):
            kill_family(pid)


def _started(run: bytes) -> list[int]:
    return [int(each.name) for each in Path("/proc").glob("[0-9]*") if run in _runs(each)]


def _runs(process: Path) -> list[bytes]:
    try:
        environment = (process / "environ").read_bytes()
    except OSError:
        # It has ended, or is somebody else's.
        return []
    name = _RUNS.encode() + b"="
    found = next((each for each in environment.split(b"\0") if each.startswith(name)), name)
    return found.removeprefix(name).split()


if __name__ == "__main__":
    main()
