"""`pushsse serve --workers N`: starts the workers, replaces one that dies, and adds their metrics up.

Called by the command line. It serves nothing itself: each worker binds the port (SO_REUSEPORT). Deliberate:
uvicorn's supervisor has one accept queue for all workers and gives all of them the same settings, so also the
same node name; it can't tell when all serve, waits for their end without limit, and ignores a second signal.
In prometheus_client's multiprocess mode custom collectors, such as `Metrics`, don't work.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from asyncio.subprocess import Process
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import msgspec

from pushsse.retry import Backoff
from pushsse.server import LAST_S, QUICK_S, THREADS_S, LastResort, end_in_time, stopping_signals
from pushsse.settings import Settings
from pushsse.workers.worker import (
    MAX_LINE,
    BeginWork,
    Collect,
    Collected,
    CombinedMetrics,
    Exposition,
    Family,
    Hello,
    Ready,
    Rounds,
    Scrape,
    Scraped,
    decode,
    encode,
)

logger = logging.getLogger(__name__)
# A worker that fails to start this often in a row ends the service.
_FAILED_STARTS = 5
# A worker that isn't gone by itself this long after its time is killed.
_LATE_S = 1.0
# A worker's exit status for a setting that can't be used: no start will ever work.
_REFUSED = 2
# How long a scrape waits for the workers.
COLLECT_S = 1.0


def run(settings: Settings, port: int, *, ready: Callable[[], None]) -> int:
    """Runs the workers until told to stop; the exit status. `ready` is called when all of them serve."""
    status = asyncio.run(Supervisor(msgspec.structs.replace(settings, port=port), ready=ready).run())
    end_in_time(status, LastResort(0.0))
    return status


class Supervisor:
    """The processes of one service.

    Deliberate: each is a session of its own, so that a terminal's Ctrl-C reaches it once, by the supervisor.
    Its link is a socket pair, which needs no folder to write to and no name that could be too long.
    """

    def __init__(self, settings: Settings, *, ready: Callable[[], None]) -> None:
        self._settings = settings
        self._stopping = asyncio.Event()
        self._hurrying = asyncio.Event()
        self._processes: dict[int, Process] = {}
        self._status = 0
        self._scraper = Scraper(workers=settings.workers, ready=ready)

    async def run(self) -> int:
        """Runs until told to stop, or until a worker can't be started. Returns the exit status."""
        loop = asyncio.get_running_loop()
        for number in stopping_signals():
            loop.add_signal_handler(number, self._signalled, number)
        async with asyncio.TaskGroup() as tasks:
            workers = [
                tasks.create_task(self._keep_running(index), name=f"worker {index}")
                for index in range(self._settings.workers)
            ]
            scrapes = tasks.create_task(self._scraper.run(), name="scrapes")
            await self._stopping.wait()
            await self._end(workers)
            scrapes.cancel()
        return self._status

    def _signalled(self, number: signal.Signals) -> None:
        """A first signal: the workers drain. A second: they end at once. A third: they are killed."""
        if self._hurrying.is_set():
            self._signal_all(signal.SIGKILL)
        elif self._stopping.is_set():
            logger.info("stopping at once: a second signal")
            self._status = 128 + number
            self._hurrying.set()
            # Another one than before: two of a kind may reach a busy worker as one (signal(7)).
            self._signal_all(signal.SIGINT)
        else:
            logger.info("stopping: %d workers end within %.1f s", len(self._processes), self._drain_s)
            self._stop()

    @property
    def _drain_s(self) -> float:
        return self._settings.drain_delay_s + self._settings.drain_window_s

    def _stop(self) -> None:
        self._stopping.set()
        self._signal_all(signal.SIGTERM)

    def _signal_all(self, number: signal.Signals) -> None:
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

    async def _end(self, workers: "Sequence[asyncio.Task[None]]") -> None:
        """Waits for the workers to drain, and kills those that don't end in time."""
        limit_s = self._drain_s + LAST_S + THREADS_S + _LATE_S
        ended = asyncio.create_task(asyncio.wait(workers), name="workers ended")
        hurried = asyncio.create_task(self._hurrying.wait(), name="hurried")
        await asyncio.wait((ended, hurried), timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        if self._hurrying.is_set():
            await asyncio.wait((ended,), timeout=QUICK_S + _LATE_S)
        for process in self._processes.values():
            logger.error(
                "worker process %d didn't end in time and is killed: its streams are cut", process.pid
            )
        self._signal_all(signal.SIGKILL)
        await ended

    async def _keep_running(self, index: int) -> None:
        """Runs one worker, and starts it again whenever it ends."""
        backoff = Backoff(first_s=0.2, most_s=5.0)
        failed_starts = 0
        while not self._stopping.is_set():
            end = await self._run_once(index)
            if self._stopping.is_set():
                break
            failed_starts = 0 if end.served else failed_starts + 1
            if end.served:
                backoff.reset()
            if end.status == _REFUSED or failed_starts == _FAILED_STARTS:
                self._give_up(index, end)
                break
            logger.error("worker %d %s; starting it again", index, end.how)
            self._scraper.restarts += end.started
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(backoff.next_s()):
                    await self._stopping.wait()

    async def _run_once(self, index: int) -> "_End":
        """One process from its start to its end."""
        served_before = self._scraper.served[index]
        try:
            process, link = await self._start(index)
        except (OSError, RuntimeError) as error:
            # Too many open files or processes, or no memory. RuntimeError: no thread to wait for the process.
            return _End(1, f"couldn't be started: {error}", started=False)
        self._processes[index] = process
        logger.info("worker %d is process %d", index, process.pid)
        try:
            # The signal to all workers went out while this one was being started.
            if self._stopping.is_set():
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
            status = await process.wait()
            # The link ends with the process. Its last metrics may still have to be read.
            await asyncio.wait((link,), timeout=1.0)
        finally:
            link.cancel()
            del self._processes[index]
        served = self._scraper.served[index] > served_before
        return _End(status, f"ended with exit status {status}", served=served)

    async def _start(self, index: int) -> tuple[Process, "asyncio.Task[None]"]:
        """Starts a worker, and a task that receives what it sends.

        Raises OSError or RuntimeError where the system has no room for it, and leaves nothing then.
        """
        ours, theirs = socket.socketpair()
        with theirs, contextlib.ExitStack() as unless_started:
            unless_started.enter_context(ours)
            # Before the process, so that nothing can fail once that runs.
            reader, writer = await asyncio.open_unix_connection(sock=ours, limit=MAX_LINE)
            unless_started.enter_context(closing(writer))
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "pushsse", "worker", "--link", str(theirs.fileno())),
                stdin=asyncio.subprocess.DEVNULL,
                start_new_session=True,
                pass_fds=(theirs.fileno(),),
                env=_environment(os.environ),
            )
            unless_started.pop_all()
        own = msgspec.structs.replace(self._settings, node=f"{self._settings.node}-{index}")
        writer.write(encode(BeginWork(own)))
        receiving = asyncio.create_task(self._scraper.receive(index, reader, writer), name=f"link {index}")
        return process, receiving

    def _give_up(self, index: int, end: "_End") -> None:
        if not self._status:
            logger.critical("worker %d can't start (it %s), so the service ends", index, end.how)
            self._status = end.status if end.status > 0 else 128 - end.status
        self._stop()


@dataclass(frozen=True, slots=True)
class _End:
    """How a try to run a worker ended: its exit status, and what the log says of it.

    `started` says whether there was a process, `served` whether it came to serve.
    """

    status: int
    how: str
    started: bool = True
    served: bool = False


def _environment(environment: Mapping[str, str]) -> dict[str, str]:
    """A worker's, without settings: those come over the link, with what options and the file have said."""
    return {name: value for name, value in environment.items() if not name.startswith("PUSHSSE_")}


@dataclass(slots=True, eq=False)
class WorkerLink:
    """A worker's connection, and the metrics that it sent last."""

    index: int
    writer: asyncio.StreamWriter
    families: tuple[Family, ...] = ()
    scrape: int = 0
    answered: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self, collected: Collected) -> None:
        """The worker has sent its metrics."""
        self.families = collected.families
        self.scrape = max(self.scrape, collected.scrape)
        self.answered.set()


class Scraper:
    """Receives from the workers, and makes one exposition of their metrics.

    `served` counts how often each worker came to serve; `restarts` is counted by the supervisor. No counter
    goes back while the supervisor lives: what a worker sent last is kept when the worker is gone or doesn't
    answer. Only what it counted after that is lost.
    """

    def __init__(self, *, workers: int, ready: Callable[[], None]) -> None:
        self.served: Counter[int] = Counter()
        self.restarts = 0
        self._workers = workers
        self._ready: Callable[[], None] | None = ready
        self._links: set[WorkerLink] = set()
        self._gone = CombinedMetrics()
        self._scrape = 0
        self._rounds = Rounds()

    async def run(self) -> None:
        """Answers scrapes for ever: one collection for all that came before it began."""
        await self._rounds.run(self._collect)

    async def receive(self, index: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Receives from one worker until its link ends."""
        link = WorkerLink(index, writer)
        with closing(writer):
            try:
                async with asyncio.TaskGroup() as scrapes:
                    await self._receive(link, reader, scrapes)
            except* ConnectionError:
                # The worker is gone; its exit status says more.
                pass
            except* (OSError, ValueError, msgspec.DecodeError) as errors:
                logger.warning(
                    "the link to worker %d broke, so the worker ends and is started again: %r",
                    index,
                    errors.exceptions[0],
                )

    async def _collect(self) -> bytes:
        """The metrics of all workers, in Prometheus' text format. Takes COLLECT_S at most."""
        self._scrape += 1
        asked = []
        for link in self._links:
            # A worker that reads nothing would otherwise have a line for each scrape wait for it.
            if link.writer.transport.get_write_buffer_size() < MAX_LINE:
                link.answered.clear()
                link.writer.write(encode(Collect(self._scrape)))
                asked.append(link)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(COLLECT_S):
                for link in asked:
                    await link.answered.wait()
        return Exposition(self._total()).text()

    def _total(self) -> tuple[Family, ...]:
        total, unanswered = CombinedMetrics(), 0
        total.add(self._gone.families())
        for link in self._links:
            silent = link.scrape != self._scrape
            unanswered += silent
            # An old gauge says nothing about now; an old counter is still a lower bound.
            total.add(link.families, counters_only=silent)
        total.add(self._own(unanswered))
        return total.families()

    def _own(self, unanswered: int) -> tuple[Family, ...]:
        restarts = (("pushsse_worker_restarts_total", (), float(self.restarts)),)
        workers = (("pushsse_workers", (), float(len(self._links))),)
        return (
            Family("pushsse_workers", "gauge", "Workers", workers),
            Family(
                "pushsse_workers_unanswered",
                "gauge",
                "Workers that didn't answer this scrape: their gauges are missing",
                (("pushsse_workers_unanswered", (), float(unanswered)),),
            ),
            Family("pushsse_worker_restarts", "counter", "Workers that died and were replaced", restarts),
        )

    async def _receive(
        self, link: WorkerLink, reader: asyncio.StreamReader, scrapes: asyncio.TaskGroup
    ) -> None:
        try:
            while line := await reader.readline():
                message = decode(line)
                if isinstance(message, Hello):
                    self._links.add(link)
                elif isinstance(message, Collected):
                    link.take(message)
                elif isinstance(message, Ready):
                    self._serves(link.index)
                elif isinstance(message, Scrape):
                    # A task, since the answer waits for this worker's own metrics, which are read here. A
                    # worker has one scrape at a time, so there are few of them.
                    scrapes.create_task(self._answer(link, message.number), name=f"scrape {link.index}")
        finally:
            self._links.discard(link)
            self._gone.add(link.families, counters_only=True)
            link.answered.set()

    async def _answer(self, link: WorkerLink, number: int) -> None:
        # A collection that runs already, and the one after it.
        text = await self._rounds.result(2 * COLLECT_S + 1.0)
        if text is not None:
            link.writer.write(encode(Scraped(number, text.decode())))
            await link.writer.drain()

    def _serves(self, index: int) -> None:
        self.served[index] += 1
        if self._ready is not None and len(self.served) == self._workers:
            self._ready()
            self._ready = None
