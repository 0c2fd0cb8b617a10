"""One server process of our own: started until it is ready, stopped, killed, paused, started again.

Its port, folder and data stay the same over all of that. The classes beside it say what is run.
"""

import os
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from deploy.parts.ports import take_port

_POLL_S = 0.02
_KILL_LIMIT_S = 10.0


class PartFailed(Exception):
    """A part didn't start or stop in time, or died. The message ends with its log's last lines."""


class Part(ABC):
    """A process with its descendants; its output goes to `log`."""

    start_limit_s = 30.0
    stop_limit_s = 10.0

    def __init__(self, name: str, folder: Path, *, port: int | None = None, log: Path | None = None) -> None:
        self.name = name
        self.folder = folder
        self.port = port or take_port(self)
        self.log = log or folder / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    @abstractmethod
    def url(self) -> str:
        """Where clients find it."""

    @property
    def pid(self) -> int:
        """The main process. Raises PartFailed where it doesn't run."""
        if self._process is None:
            raise PartFailed(f"{self.name} isn't running")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether its process is there, paused or not."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Starts it, and returns when it serves. Raises PartMissing, PartFailed."""
        self.launch()
        self.wait_ready()

    def launch(self) -> None:
        """Starts it without waiting until it serves."""
        if self.running:
            raise PartFailed(f"{self.name} is already running")
        for folder in (self.folder, self.log.parent):
            folder.mkdir(parents=True, exist_ok=True)
        self.prepare()
        with self.log.open("ab") as log:
            # A session of its own: Ctrl-C in the terminal is ours to pass on, in order.
            self._process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env=self.environment(),
                start_new_session=True,
                user=self.user(),
                group=self.group(),
                extra_groups=None if self.user() is None else [],
            )

    def wait_ready(self) -> None:
        """Returns when it serves. Raises PartFailed when it died or the time is over."""
        end = time.monotonic() + self.start_limit_s
        while not self.is_ready():
            if not self.running:
                raise self.failure("died while starting")
            if time.monotonic() > end:
                self.kill()
                raise self.failure(f"didn't serve within {self.start_limit_s:.0f} s")
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """SIGTERM, and SIGKILL when that takes too long. Nothing where it doesn't run."""
        if not self.running:
            self.kill()
            return
        self.terminate()
        try:
            self.wait(self.stop_limit_s)
        except PartFailed:
            self.kill()

    def terminate(self) -> None:
        """Asks it to stop, without waiting."""
        self.resume()
        self.send(self.stop_signal())

    def kill(self) -> None:
        """SIGKILL to it and all its descendants, as if the machine had lost power."""
        if self._process is None:
            return
        if self.running:
            kill_family(self._process.pid)
        self._process.wait(_KILL_LIMIT_S)
        self._process = None

    def pause(self) -> None:
        """SIGSTOP to it and its descendants: connections stay, nothing answers."""
        for pid in (self.pid, *descendants(self.pid)):
            _send(pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        for pid in (self.pid, *descendants(self.pid)):
            _send(pid, signal.SIGCONT)

    def restart(self) -> None:
        """Stops it and starts it again, with the same data on the same port."""
        self.stop()
        self.start()

    def wait(self, limit_s: float) -> int:
        """Waits for its end; the exit status, negative for a signal. Raises PartFailed if it runs on."""
        if self._process is None:
            raise PartFailed(f"{self.name} isn't running")
        try:
            status = self._process.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise self.failure(f"still runs after {limit_s:.0f} s") from None
        self._process = None
        return status

    def send(self, number: signal.Signals) -> None:
        """A signal to the main process alone."""
        _send(self.pid, number)

    def tail(self, lines: int = 15) -> str:
        """The end of its log."""
        try:
            with self.log.open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - 16_384))
                return "\n".join(log.read().decode(errors="replace").split("\n")[-lines - 1 :]).strip()
        except OSError:
            return ""

    def failure(self, what: str) -> PartFailed:
        """The exception that says what happened, with the end of the log."""
        return PartFailed(f"{self.name} {what}; the end of {self.log}:\n{self.tail()}")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def remove(self) -> None:
        """Ends it for good, with what it keeps outside its folder."""
        self.stop()

    def prepare(self) -> None:  # noqa: B027 (nothing, for most)
        """What has to be there before each start: programs, data, settings. Finds what it made before."""

    @abstractmethod
    def command(self) -> Sequence[str]:
        """The process to run."""

    @abstractmethod
    def is_ready(self) -> bool:
        """Whether it serves. Returns within about two seconds."""

    def environment(self) -> Mapping[str, str] | None:
        """The process's environment; None is ours."""
        return None

    def user(self) -> int | None:
        """The user that it runs as; None is ours."""
        return None

    def group(self) -> int | None:
        """The group that it runs as; None is ours."""
        return None

    def stop_signal(self) -> signal.Signals:
        """What asks it to stop."""
        return signal.SIGTERM


def kill_family(pid: int) -> None:
    """SIGKILL to a process and its descendants, looked up before they are orphans. Returns at their end.

    Only then are ports (nginx's workers have them, too) and PostgreSQL's shared memory free for a new start.
    """
    family = (pid, *descendants(pid))
    for each in family:
        _send(each, signal.SIGKILL)
    end = time.monotonic() + _KILL_LIMIT_S
    while any(is_alive(each) for each in family) and time.monotonic() < end:
        time.sleep(_POLL_S)


def is_alive(pid: int) -> bool:
    """Whether a process holds anything yet: not one that has ended, whether or not its status was fetched."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        # The first thread may have ended while others are still on their way out.
        return state not in "ZX" or len(os.listdir(f"/proc/{pid}/task")) > 1
    except OSError:
        return False


def descendants(pid: int) -> list[int]:
    """Children, their children and so on; PostgreSQL's are in sessions of their own, so no group has them."""
    found: list[int] = []
    try:
        tasks = list(Path(f"/proc/{pid}/task").glob("*/children"))
    except OSError:
        # It has ended in the middle of this.
        return found
    for task in tasks:
        try:
            children = [int(child) for child in task.read_text().split()]
        except OSError:
            continue
        for child in children:
            found += [child, *descendants(child)]
    return found


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
