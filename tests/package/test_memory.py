"""Memory that a burst has needed goes back to the system."""

import asyncio
import gc
import platform
import subprocess
import sys
import weakref
from pathlib import Path

import pytest

from pushsse import node
from tests.serving import serving

_BURST = """
import os
from pathlib import Path
from pushsse.node import release_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

burst = [bytes(12_000) for _ in range(4_000)]
kept = burst[::100]
del burst
before = resident()
release_memory()
print(before - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone can be asked to")
def test_what_lies_free_between_what_stays_goes_back_to_the_system() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _BURST], check=True, capture_output=True, text=True, timeout=30
    )
    assert int(done.stdout) > 30_000_000


class Knot:
    """Something that holds itself."""

    def __init__(self) -> None:
        self.me = self


@pytest.mark.anyio
async def test_old_cycles_are_looked_for_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "TRIM_EVERY_S", 0.001)
    monkeypatch.setattr(node, "WALK_EVERY", 3)
    gc.disable()
    service = asyncio.create_task(node.trim_memory())
    try:
        knot = weakref.ref(Knot())
        async with asyncio.timeout(5):
            while knot() is not None:
                await asyncio.sleep(0.001)
    finally:
        gc.enable()
        service.cancel()
    assert gc.get_freeze_count() == 0


@pytest.mark.anyio
async def test_a_node_that_shares_its_process_leaves_the_collector_as_it_is(tmp_path: Path) -> None:
    gc.freeze()
    frozen, threshold = gc.get_freeze_count(), gc.get_threshold()
    async with serving(tmp_path):
        assert gc.get_freeze_count() >= frozen
        assert gc.get_threshold() == threshold
