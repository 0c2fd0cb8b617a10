"""Memory that a burst has needed goes back to the system."""

import platform
import subprocess
import sys

import pytest

_BURST = """
import os
from pathlib import Path
from pushsse.memory import give_back

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

burst = [bytes(12_000) for _ in range(4_000)]
kept = burst[::100]
del burst
before = resident()
give_back()
print(before - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone can be asked to")
def test_what_lies_free_between_what_stays_goes_back_to_the_system() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _BURST], check=True, capture_output=True, text=True, timeout=30
    )
    assert int(done.stdout) > 30_000_000
