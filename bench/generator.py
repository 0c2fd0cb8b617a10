"""The load process, seen by the measurements: orders in, figures out, and what the server spent."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from bench.processors import LOAD, pinned
from bench.usage import Usage, usage

_LIMIT_S = 10
_ROOT = Path(__file__).parent.parent


class Publish(NamedTuple):
    """How an event is published: the request's head without its length, and the body with %s for the text."""

    head: str
    body: str


class Figures(NamedTuple):
    """What arrived, and what the server spent on it."""

    expected: int
    delivered: int
    uneven: int
    failed: int
    seconds: float
    p50_ms: float
    p99_ms: float
    spent: Usage

    @property
    def us_each(self) -> float:
        """Microseconds of the server's CPU time per delivery."""
        return self.spent.cpu_s / max(1, self.delivered) * 1e6

    @property
    def complete(self) -> bool:
        """Whether everything arrived, once."""
        return self.delivered == self.expected and not self.uneven and not self.failed


class LoadFailed(Exception):
    """Streams were refused, or the load process has ended."""


class Generator:
    """One load process, on streams of one server."""

    def __init__(self, port: int, pid: int, streams: Sequence[str]) -> None:
        self._port = port
        self._pid = pid
        self._folder = tempfile.TemporaryDirectory(prefix="pushsse-bench-")
        self._requests = Path(self._folder.name) / "requests.json"
        self._requests.write_text(json.dumps(list(streams)))
        command = pinned([sys.executable, "-m", "bench.load"], LOAD)
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=_ROOT
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(_LIMIT_S)
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._folder.cleanup()

    def open(self, count: int) -> Usage:
        """Opens streams until there are so many; what the server spent. Raises LoadFailed."""
        before = usage(self._pid)
        done = self._ask(do="open", port=self._port, count=count, requests=str(self._requests))
        if done["refused"]:
            raise LoadFailed(f"{done['refused']:.0f} of {count} streams were refused")
        return usage(self._pid).since(before)

    def keep(self, count: int) -> None:
        """Closes the newest streams until so many are left."""
        self._ask(do="keep", count=count)

    def each(self, publish: Publish, *, events: int, reach: int, size: int = 300) -> Figures:
        """One event at a time: the next when the last has arrived everywhere."""
        return self._publish(publish, events, reach, size, window=1, paced=True)

    def acked(self, publish: Publish, *, events: int, reach: int, size: int = 300) -> Figures:
        """One request at a time: the next when the last is acknowledged."""
        return self._publish(publish, events, reach, size, window=1)

    def burst(
        self, publish: Publish, *, events: int, reach: int, size: int = 300, window: int = 64
    ) -> Figures:
        """So many requests in flight."""
        return self._publish(publish, events, reach, size, window=window)

    def steady(self, publish: Publish, *, events: int, reach: int, rate: float, size: int = 300) -> Figures:
        """So many events a second, whatever the server does."""
        return self._publish(publish, events, reach, size, rate=rate)

    def expect(self, count: int) -> None:
        """Begins to wait for events that somebody else sends; `arrived` has the figures."""
        self._send(do="watch", count=count, seconds=8.0)

    def arrived(self) -> Figures:
        """What `expect` has seen."""
        return self._figures(self._receive(), Usage(0.0, 0.0))

    def idle(self, seconds: float) -> Usage:
        """Holds the streams; what the server spent. Raises LoadFailed if one ended."""
        before = usage(self._pid)
        done = self._ask(do="idle", seconds=seconds)
        if done["ended"]:
            raise LoadFailed(f"{done['ended']:.0f} streams ended by themselves")
        return usage(self._pid).since(before)

    def _publish(self, publish: Publish, events: int, reach: int, size: int, **how: float) -> Figures:
        before = usage(self._pid)
        done = self._ask(
            do="publish",
            head=publish.head,
            body=publish.body,
            bytes=size,
            events=events,
            reach=reach,
            **how,
        )
        return self._figures(done, usage(self._pid).since(before))

    def _figures(self, done: dict[str, float], spent: Usage) -> Figures:
        return Figures(
            expected=int(done["expected"]),
            delivered=int(done["delivered"]),
            uneven=int(done["uneven"]),
            failed=int(done["failed"]),
            seconds=done["seconds"],
            p50_ms=done["p50_ms"],
            p99_ms=done["p99_ms"],
            spent=spent,
        )

    def _ask(self, **order: object) -> dict[str, float]:
        self._send(**order)
        return self._receive()

    def _send(self, **order: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()

    def _receive(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise LoadFailed("the load process has ended")
        answer: dict[str, float] = json.loads(line)
        return answer
