"""`pushsse serve --workers N`: starts the workers, replaces one that dies, and adds up their numbers.

Called by the command line. It serves nothing itself: the workers bind the port together (SO_REUSEPORT).
Deliberate: workers are sessions of their own, so that Ctrl-C reaches them once, through the supervisor.
"""

import asyncio
import contextlib
import logging
import os
import signal
import sys
import tempfile
from asyncio.subprocess import Process
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec

from pushsse import server
from pushsse.backoff import Backoff
from pushsse.errors import SettingsError
from pushsse.settings import Settings
from pushsse.workers.gatherer import Gatherer

log = logging.getLogger(__name__)
SOCKET = "supervisor.sock"
_SETTINGS = "settings.json"
_FAILED_STARTS = 5
_LINGER_S = 10.0
_REFUSED = 2
# sun_path has 108 bytes on Linux and 104 on the BSDs.
_LONGEST_SOCKET_PATH = 100


def run(settings: Settings, port: int, *, ready: Callable[[], None]) -> int:
    """Runs the workers until told to stop; the exit status. `ready` is called when all of them serve.

    Raises SettingsError where no folder can hold the workers' socket.
    """
    with _folder() as folder:
        file = os.open(folder / _SETTINGS, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(file, "wb") as out:
            out.write(msgspec.json.encode(msgspec.structs.replace(settings, port=port)))
        return asyncio.run(Supervisor(settings, folder, ready=ready).run())


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """A folder of our own for a Unix socket: writable, and its path is short enough for one (unix(7))."""
    tried = [os.environ.get("TMPDIR", ""), "/tmp", "/dev/shm", "/run", "/var/tmp", "."]
    for place in filter(None, dict.fromkeys(tried)):
        if len(os.fsencode(place)) + len("/pushsse-12345678/") + len(SOCKET) > _LONGEST_SOCKET_PATH:
            continue
        try:
            made = tempfile.TemporaryDirectory(prefix="pushsse-", dir=place)
        except OSError:
            continue
        with made as name:
            yield Path(name)
        return
    raise SettingsError(
        f"PUSHSSE_WORKERS: none of {', '.join(filter(None, tried))} can hold the workers' socket;"
        " set TMPDIR to a folder that can be written and has a short path"
    )


def settings_of(folder: Path, index: int) -> Settings:
    """A worker's settings: the supervisor's, and a name of its own."""
    settings = msgspec.json.decode((folder / _SETTINGS).read_bytes(), type=Settings)
    return msgspec.structs.replace(settings, node=f"{settings.node}-{index}")


class Supervisor:
    """The processes of one service."""

    def __init__(self, settings: Settings, folder: Path, *, ready: Callable[[], None]) -> None:
        self._settings = settings
        self._folder = folder
        self._stopping = asyncio.Event()
        self._processes: dict[int, Process] = {}
        self._status = 0
        self._gatherer = Gatherer(workers=settings.workers, ready=ready)

    async def run(self) -> int:
        """Until told to stop, or until a worker can't be started; the exit status."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            # Where it was started by nohup, SIGHUP stays ignored.
            if signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, self._told, number)
        async with self._gatherer.listening(self._folder / SOCKET), asyncio.TaskGroup() as tasks:
            for index in range(self._settings.workers):
                tasks.create_task(self._keep(index), name=f"worker {index}")
            await self._stopping.wait()
            await self._end()
        return self._status

    def _told(self, number: int) -> None:
        """A signal; with a second one the workers end at once."""
        if self._stopping.is_set() and not self._status:
            self._status = 128 + number
        self._stop()

    def _stop(self) -> None:
        """Passes the end on to the workers."""
        self._stopping.set()
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)

    async def _end(self) -> None:
        """Waits for the workers to drain; who doesn't end in time is killed."""
        limit_s = self._settings.drain_delay_s + self._settings.drain_window_s + server.GRACE_S + _LINGER_S
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while self._processes:
                    await next(iter(self._processes.values())).wait()
                    await asyncio.sleep(0)
        for process in self._processes.values():
            log.error("worker process %d didn't end within %.0f s and is killed", process.pid, limit_s)
            process.kill()

    async def _keep(self, index: int) -> None:
        """Runs one worker, again and again."""
        backoff = Backoff(first_s=0.2, most_s=5.0)
        failed_starts = 0
        while not self._stopping.is_set():
            status, served = await self._live(index)
            if self._stopping.is_set():
                break
            failed_starts = 0 if served else failed_starts + 1
            if served:
                backoff.reset()
            if status == _REFUSED or failed_starts == _FAILED_STARTS:
                self._give_up(index, status)
                break
            log.error("worker %d ended with status %d and is started anew", index, status)
            self._gatherer.restarts += 1
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), backoff.next_s())

    async def _live(self, index: int) -> tuple[int, bool]:
        """One process from its start to its end: its exit status, and whether it came to serve."""
        served_before = self._gatherer.served[index]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "pushsse", "worker"),
            *("--folder", str(self._folder), "--index", str(index)),
            stdin=asyncio.subprocess.DEVNULL,
            start_new_session=True,
            env=_environment(os.environ),
        )
        self._processes[index] = process
        log.info("worker %d is process %d", index, process.pid)
        if self._stopping.is_set():
            process.terminate()
        status = await process.wait()
        del self._processes[index]
        return status, self._gatherer.served[index] > served_before

    def _give_up(self, index: int, status: int) -> None:
        if not self._status:
            log.critical("worker %d can't be started (status %d), so the service ends", index, status)
            self._status = status if status > 0 else 128 - status
        self._stop()


def _environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Without the settings: those come by file."""
    return {name: value for name, value in environment.items() if not name.startswith("PUSHSSE_")}
