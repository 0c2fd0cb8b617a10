"""The most telling faults at a small scale: `make faults` has all of them, at theirs.

One run in a process of its own; each test looks at its rows.
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from faults.run import MISSING
from tests.parts import missing

_REPOSITORY = Path(__file__).resolve().parents[2]
_FAULTS = "1,3,4,7,14"
# Four times what it takes on two cores that nobody else works on: other tests run beside it.
_LIMIT_S = 300

pytestmark = [pytest.mark.real, pytest.mark.long, pytest.mark.timeout(_LIMIT_S + 10)]


@pytest.fixture(scope="module")
def rows() -> Sequence[str]:
    """What the run says, a line a row."""
    done = subprocess.run(
        [sys.executable, "-m", "faults.run", "--fast", "--only", _FAULTS],
        check=False,
        capture_output=True,
        text=True,
        timeout=_LIMIT_S,
        cwd=_REPOSITORY,
    )
    if done.returncode == MISSING:
        missing(done.stdout)
    return (done.stdout + done.stderr).splitlines()


def look(rows: Sequence[str], fault: int) -> None:
    """All rows of a fault are there and pass."""
    found = [row for row in rows if row[:4] in ("pass", "FAIL") and int(row[4:8]) == fault]
    assert found, "\n".join(rows)
    assert all(row.startswith("pass") for row in found), "\n".join(rows)


def test_nothing_is_lost_and_streams_stay_open_when_redis_is_killed_and_comes_back(
    rows: Sequence[str],
) -> None:
    look(rows, 1)


def test_nothing_is_lost_when_listeners_are_cut_off_in_a_burst(rows: Sequence[str]) -> None:
    look(rows, 3)


def test_everybody_is_told_a_gap_when_redis_is_emptied(rows: Sequence[str]) -> None:
    look(rows, 4)


def test_clients_of_a_node_that_was_killed_are_caught_up_elsewhere_in_time(rows: Sequence[str]) -> None:
    look(rows, 7)


def test_switches_that_are_flipped_under_load_mean_it(rows: Sequence[str]) -> None:
    look(rows, 14)
