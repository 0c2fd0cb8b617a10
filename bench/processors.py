"""Which processor does what: the server has one for itself, the load and the other parts another."""

import os
import shutil
from collections.abc import Sequence

_OURS = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
_SPLIT = len(_OURS) > 1 and shutil.which("taskset") is not None
SERVER: int | None = _OURS[0] if _SPLIT else None
LOAD: int | None = _OURS[1] if _SPLIT else None


def pinned(command: Sequence[str], processor: int | None) -> list[str]:
    """A command that runs on one processor; as it is where there is only one."""
    return list(command) if processor is None else ["taskset", "-c", str(processor), *command]
