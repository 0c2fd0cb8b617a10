"""`pushsse serve --workers N`: starts the workers, replaces one that dies, and adds up their numbers.

Called by the command line. It serves nothing itself: the workers bind the port together (SO_REUSEPORT).
Deliberate: workers are sessions of their own, so that Ctrl-C reaches them once, through the supervisor. A
worker is reached by a socket pair, which needs no folder to write to and no name that could be too long.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import Callable, Mapping

import msgspec

from pushsse import server
from pushsse.backoff import Backoff
from pushsse.settings import Settings
from pushsse.workers.gatherer import Gatherer
from pushsse.workers.words import MAX_LINE, Begin, line

log = logging.getLogger(__name__)
_FAILED_STARTS = 5
_LINGER_S = 10.0
_REFUSED = 2


def run(settings: Settings, port: int, *, ready: Callable[[], None]) -> int:
    """Runs the workers until told to stop; the exit status. `ready` is called when all of them serve."""
    return asyncio.run(Supervisor(msgspec.structs.replace(settings, port=port), ready=ready).run())


class Supervisor:
    """The processes of one service."""

    def __init__(self, settings: Settings, *, ready: Callable[[], None]) -> None:
        self._settings = settings
        self._stopping = asyncio.Event()
        self._hurrying = asyncio.Event()
        self._processes: dict[int, Process] = {}
        self._status = 0
        self._gatherer = Gatherer(workers=settings.workers, ready=ready)

    async def run(self) -> int:
        """Until told to stop, or until a worker can't be started; the exit status."""
        loop = asyncio.get_running_loop()
        for number in server.stopping_signals():
            loop.add_signal_handler(number, self._signalled, number)
        async with asyncio.TaskGroup() as tasks:
            for index in range(self._settings.workers):
                tasks.create_task(self._keep(index), name=f"worker {index}")
            await self._stopping.wait()
            await self._end()
        return self._status

    def _signalled(self, number: signal.Signals) -> None:
        """A first signal: the workers drain. A second: they end at once. A third: they are killed."""
        if self._hurrying.is_set():
            self._pass_on(signal.SIGKILL)
        elif self._stopping.is_set():
            log.info("stopping at once: a second signal")
            self._status = 128 + number
            self._hurrying.set()
            # Another one than before: two of a kind may reach a busy worker as one (signal(7)).
            self._pass_on(signal.SIGINT)
        else:
            log.info("stopping: %d workers end within %.1f s", len(self._processes), self._drain_s)
            self._stop()

    @property
    def _drain_s(self) -> float:
        return self._settings.drain_delay_s + self._settings.drain_window_s

    def _stop(self) -> None:
        self._stopping.set()
        self._pass_on(signal.SIGTERM)

    def _pass_on(self, number: signal.Signals) -> None:
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

    async def _end(self) -> None:
        """Waits for the workers to drain; who doesn't end in time is killed."""
        limit_s = self._drain_s + server.GRACE_S + _LINGER_S
        ended = asyncio.create_task(self._ended(), name="workers ended")
        hurried = asyncio.create_task(self._hurrying.wait(), name="hurried")
        await asyncio.wait((ended, hurried), timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        if self._hurrying.is_set():
            await asyncio.wait((ended,), timeout=server.QUICK_S + 1.0)
        for process in self._processes.values():
            log.error("worker process %d didn't end in time and is killed", process.pid)
        self._pass_on(signal.SIGKILL)
        await ended

    async def _ended(self) -> None:
        while self._processes:
            await next(iter(self._processes.values())).wait()
            await asyncio.sleep(0)

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
        process, link = await self._start(index)
        self._processes[index] = process
        log.info("worker %d is process %d", index, process.pid)
        try:
            if self._stopping.is_set():
                process.terminate()
            status = await process.wait()
            # It ends with the process; what came last may still have to be read.
            await asyncio.wait((link,), timeout=1.0)
        finally:
            link.cancel()
            del self._processes[index]
        return status, self._gatherer.served[index] > served_before

    async def _start(self, index: int) -> tuple[Process, "asyncio.Task[None]"]:
        """Starts a worker, and hears it in a task."""
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "pushsse", "worker", "--link", str(theirs.fileno())),
                stdin=asyncio.subprocess.DEVNULL,
                start_new_session=True,
                pass_fds=(theirs.fileno(),),
                env=_environment(os.environ),
            )
        reader, writer = await asyncio.open_unix_connection(sock=ours, limit=MAX_LINE)
        own = msgspec.structs.replace(self._settings, node=f"{self._settings.node}-{index}")
        writer.write(line(Begin(own)))
        hearing = asyncio.create_task(self._gatherer.attend(index, reader, writer), name=f"hear {index}")
        return process, hearing

    def _give_up(self, index: int, status: int) -> None:
        if not self._status:
            log.critical("worker %d can't be started (status %d), so the service ends", index, status)
            self._status = status if status > 0 else 128 - status
        self._stop()


def _environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Without the settings: those come over the link."""
    return {name: value for name, value in environment.items() if not name.startswith("PUSHSSE_")}
