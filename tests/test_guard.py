"""What tests have started ends with them, however they end."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deploy.parts.part import descendants, is_alive
from tests.waiting import until

pytestmark = pytest.mark.real

REPOSITORY = Path(__file__).parents[1]
# A part, a process that was forked and one that was started: each with a child, and nobody ends them.
STARTS = """
import json, os, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from deploy.parts.part import Part
from tests.starting import start

FOLDER = Path(__file__).parent
SCRIPT = "trap '' TERM INT; sleep 600 & sleep 600"

class Sleeps(Part):
    url = ""
    def command(self):
        return ["sh", "-c", SCRIPT]
    def is_ready(self):
        return True

def test_something():
    part = Sleeps("part", FOLDER)
    with ThreadPoolExecutor() as pool:
        pool.submit(part.start).result()
    forked = start(module="forked", cwd=FOLDER, env={**os.environ, "PYTHONPATH": str(FOLDER)})
    fresh = subprocess.Popen(["sh", "-c", SCRIPT], start_new_session=True)
    (FOLDER / "made").write_text(json.dumps([os.getpid(), part.pid, forked.pid, fresh.pid]))
    (FOLDER / "made").rename(FOLDER / "started")
    time.sleep(600)
"""
FORKED = """
import subprocess
subprocess.run(["sh", "-c", "sleep 600 & sleep 600"])
"""


@contextmanager
def started(folder: Path, workers: int) -> Iterator[tuple["subprocess.Popen[bytes]", list[int]]]:
    """A run in the middle of a test; the numbers of the process that runs it, and of what it started."""
    (folder / "test_starts.py").write_text(STARTS)
    (folder / "forked.py").write_text(FORKED)
    command = [sys.executable, "-m", "pytest", "-p", "no:schemathesis", "-p", "tests.parts"]
    place = ["-c", os.devnull, f"--rootdir={folder}", f"--basetemp={folder / 'temp'}"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, *place, "-n", str(workers), str(folder / "test_starts.py")],
            cwd=REPOSITORY,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        until(lambda: (folder / "started").exists() or process.poll() is not None)
        assert process.poll() is None, (folder / "log").read_text()
        runner, *pids = json.loads((folder / "started").read_text())
        until(lambda: all(descendants(pid) for pid in pids))
        yield process, [runner, *(each for pid in pids for each in (pid, *descendants(pid)))]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def terminate_twice(process: "subprocess.Popen[bytes]") -> None:
    """`timeout` passes a signal to its group on, which has it already."""
    for _ in range(2):
        os.killpg(process.pid, signal.SIGTERM)


@pytest.mark.parametrize(
    ("workers", "end"),
    [
        (1, subprocess.Popen.kill),
        pytest.param(0, subprocess.Popen.kill, marks=pytest.mark.long),
        *(
            pytest.param(workers, end, marks=pytest.mark.long)
            for workers in (0, 1)
            for end in (subprocess.Popen.terminate, terminate_twice)
        ),
    ],
)
def test_nothing_of_a_run_that_is_ended_is_left(
    tmp_path: Path, workers: int, end: "Callable[[subprocess.Popen[bytes]], None]"
) -> None:
    with started(tmp_path, workers) as (process, pids):
        end(process)
        process.wait()
        until(lambda: not any(is_alive(pid) for pid in pids))


def test_nothing_of_a_worker_that_is_killed_is_left_beside_the_others(tmp_path: Path) -> None:
    with started(tmp_path, workers=2) as (process, pids):
        os.kill(pids[0], signal.SIGKILL)
        until(lambda: not any(is_alive(pid) for pid in pids))
        # Those are the first of a worker, not the end of all.
        assert process.poll() is None
