"""Fixtures for all tests, where their files are, and what they tell at the end."""

import gc
import os
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest_plugins = ["tests.parts", "tests.parallel"]
# What a test records as a property of this name is printed at the end, whichever process it ran in.
TOLD = "told"
MEMORY = Path("/dev/shm")
MEMORY_BYTES = 4 * 1024**3


def in_memory() -> bool:
    """Whether the tests' files may be in memory: there is room, and programs may be run from there."""
    if not MEMORY.is_dir() or not os.access(MEMORY, os.W_OK):
        return False
    found = os.statvfs(MEMORY)
    return found.f_bavail * found.f_frsize > MEMORY_BYTES and not found.f_flag & os.ST_NOEXEC


# Databases of several workers write to one disk at the same time. Where it stalls for a second, a node says
# that its database is away, and tests that are about something else fail.
if in_memory():
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))
    # Where PostgreSQL's data are, whose server may not reach the folder of a test.
    os.environ.setdefault("TMPDIR", str(MEMORY))
    tempfile.tempdir = None


# Where bytecode isn't written, each process that tests start compiles the package again, which takes a third
# of its start; and each process of the tests rewrites all assertions again, which takes eight seconds.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# At each call httpcore looks for it, and Python in all folders of its path: a tenth of what a call costs.
if find_spec("sniffio") is None:
    sys.modules["sniffio"] = None  # type: ignore[assignment]


@pytest.fixture(scope="module", autouse=True)
def small_heap() -> None:
    """What the file before left is collected, and what stays is no longer walked.

    A collection over all that a worker has imported and kept takes over a second, in which no node in this
    process answers. What was frozen before stays so: to walk it once more for each file is a twentieth of
    what all tests take.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def patient_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """What SQLite is asked on the event loop is answered there, however long the machine stands still.

    For tests that look for such an answer: any may be given up after 3 ms, and is then waited for instead.
    """
    monkeypatch.setattr("pushsse.database.connection.MOST_S", 60.0)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints what tests have recorded for people to read."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == TOLD:
                terminalreporter.write_line(str(value))
