"""pushsse as a process of its own: started as its users start it, and what it prints."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.migrated import migrated
from tests.starting import Started, run, start
from tests.waiting import until

LIMIT_S = 60.0
PROGRAM = (sys.executable, "-m", "pushsse")
QUICK = {"PUSHSSE_DRAIN_DELAY_S": "0", "PUSHSSE_DRAIN_WINDOW_S": "0.2"}


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """The test's own, without any settings but these."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("PUSHSSE_")}
    return plain | QUICK | dict(settings)


def pushsse(folder: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end."""
    return run(*arguments, cwd=folder, env=environment(settings), timeout=LIMIT_S)


@dataclass
class Served:
    """A `pushsse serve` that is ready."""

    process: Started
    folder: Path
    url: str

    @property
    def printed(self) -> str:
        return (self.folder / "out.log").read_text()

    @property
    def logged(self) -> str:
        return (self.folder / "err.log").read_text()

    def run(self, *arguments: str, **settings: str) -> "subprocess.CompletedProcess[str]":
        return pushsse(self.folder, *arguments, PUSHSSE_URL=self.url, **settings)


def _hear_hangups() -> None:
    """Whoever runs the tests may have SIGHUP ignored (nohup, some runners), and a child inherits that."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@contextmanager
def process(folder: Path, *arguments: str, program: Sequence[str] = (), **settings: str) -> Iterator[Started]:
    """A command that goes on, its output in out.log and err.log; ended by SIGTERM.

    Without a program it is pushsse, forked; with PROGRAM it is a fresh Python.
    """
    env = environment(settings)
    with (folder / "out.log").open("w") as out, (folder / "err.log").open("w") as err:
        started: Started
        if program:
            started = subprocess.Popen(
                [*program, *arguments], cwd=folder, env=env, stdout=out, stderr=err, preexec_fn=_hear_hangups
            )
        else:
            started = start(*arguments, cwd=folder, env=env, stdout=out, stderr=err)
        try:
            yield started
        finally:
            if started.poll() is None:
                started.send_signal(signal.SIGTERM)
                try:
                    started.wait(LIMIT_S)
                except subprocess.TimeoutExpired:
                    started.kill()
                    started.wait()
                    raise


@contextmanager
def served(folder: Path, *arguments: str, program: Sequence[str] = (), **settings: str) -> Iterator[Served]:
    """`pushsse serve` on a free port, ready. It finds its tables: making them takes half of a start."""
    database = folder / "pushsse.db"
    if "PUSHSSE_DATABASE_URL" not in settings and not database.exists():
        migrated(database)
    with process(folder, "serve", "--port", "0", *arguments, program=program, **settings) as started:
        log = folder / "out.log"

        def is_ready() -> bool:
            assert started.poll() is None, (folder / "err.log").read_text()
            return "publish:" in log.read_text()

        until(is_ready, "banner")
        found = re.search(r"http://127\.0\.0\.1:\d+", log.read_text())
        assert found is not None
        yield Served(started, folder, found[0])
