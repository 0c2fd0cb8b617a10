"""CPU time and memory of a process and all below it, read from /proc; and which processor it may use."""

import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from deploy.parts.part import descendants

_NS = 1e9


class Usage(NamedTuple):
    """Seconds of CPU since the start, and resident kB, of a whole family of processes."""

    cpu_s: float
    rss_kb: float

    def since(self, before: "Usage") -> "Usage":
        """What was used since `before`."""
        return Usage(self.cpu_s - before.cpu_s, self.rss_kb - before.rss_kb)


def usage(pid: int) -> Usage:
    """The use of a process and its descendants."""
    family = [pid, *descendants(pid)]
    return Usage(sum(_cpu_s(one) for one in family), sum(_rss_kb(one) for one in family))


def pin(pid: int, processor: int | None) -> None:
    """Lets a process and its descendants run on one processor only; None leaves them alone."""
    if processor is None:
        return
    for one in (pid, *descendants(pid)):
        for task in Path(f"/proc/{one}/task").glob("*"):
            with suppress(ProcessLookupError):
                os.sched_setaffinity(int(task.name), {processor})


def sockets(pid: int) -> int:
    """How many sockets a process has open."""
    count = 0
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            count += os.readlink(link).startswith("socket:")
    return count


def _cpu_s(pid: int) -> float:
    # In nanoseconds, per thread; `stat` counts in hundredths of a second.
    times = [_text(task / "schedstat").split() for task in Path(f"/proc/{pid}/task").glob("*")]
    exact = sum(int(words[0]) for words in times if words) / _NS
    if exact:
        return exact
    fields = _text(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if fields else 0.0


def _rss_kb(pid: int) -> float:
    for line in _text(Path(f"/proc/{pid}/status")).split("\n"):
        if line.startswith("VmRSS:"):
            return float(line.split()[1])
    return 0.0


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
