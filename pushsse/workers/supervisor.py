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
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field

import msgspec

from pushsse import server
from pushsse.retry import Backoff
from pushsse.settings import Settings
from pushsse.workers.worker import (
    MAX_LINE,
    Asked,
    Begin,
    Exposition,
    Family,
    Hello,
    Ready,
    Scrape,
    Scraped,
    Sum,
    Told,
    line,
    read,
)

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


ANSWER_S = 1.0


@dataclass(slots=True, eq=False)
class Link:
    """A worker's connection, and what it last told."""

    index: int
    writer: asyncio.StreamWriter
    families: tuple[Family, ...] = ()
    turn: int = 0
    answered: asyncio.Event = field(default_factory=asyncio.Event)

    def hear(self, told: Told) -> None:
        """The worker's numbers."""
        self.families = told.families
        self.turn = max(self.turn, told.turn)
        self.answered.set()


class Gatherer:
    """Listens for workers. `served` counts how often each came to serve; the supervisor counts `restarts`."""

    def __init__(self, *, workers: int, ready: Callable[[], None]) -> None:
        self.served: Counter[int] = Counter()
        self.restarts = 0
        self._workers = workers
        self._ready: Callable[[], None] | None = ready
        self._links: set[Link] = set()
        self._gone = Sum()
        self._turn = 0
        self._scraping = asyncio.Lock()

    async def attend(self, index: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Hears one worker until its link ends."""
        link = Link(index, writer)
        with closing(writer):
            try:
                async with asyncio.TaskGroup() as scrapes:
                    await self._hear(link, reader, scrapes)
            except* ConnectionError:
                # The worker is gone; its exit status says more.
                pass
            except* (OSError, ValueError, msgspec.DecodeError) as errors:
                log.warning("the link to worker %d broke: %r", index, errors.exceptions[0])

    async def exposition(self) -> bytes:
        """All numbers, in Prometheus' text format."""
        async with self._scraping:
            self._turn += 1
            asked = set(self._links)
            for link in asked:
                link.answered.clear()
                link.writer.write(line(Asked(self._turn)))
            try:
                async with asyncio.timeout(ANSWER_S):
                    for link in asked:
                        await link.answered.wait()
            except TimeoutError:
                pass
            return Exposition(self._sum()).text()

    def _sum(self) -> tuple[Family, ...]:
        total, unanswered = Sum(), 0
        total.add(self._gone.families())
        for link in self._links:
            silent = link.turn != self._turn
            unanswered += silent
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

    async def _hear(self, link: Link, reader: asyncio.StreamReader, scrapes: asyncio.TaskGroup) -> None:
        try:
            while sent := await reader.readline():
                word = read(sent)
                if isinstance(word, Hello):
                    self._links.add(link)
                elif isinstance(word, Told):
                    link.hear(word)
                elif isinstance(word, Ready):
                    self._serves(link.index)
                elif isinstance(word, Scrape):
                    # A task: the answer waits for this worker's own numbers, too.
                    scrapes.create_task(self._answer(link, word.number), name=f"scrape {link.index}")
        finally:
            self._links.discard(link)
            self._gone.add(link.families, counters_only=True)
            link.answered.set()

    async def _answer(self, link: Link, number: int) -> None:
        text = (await self.exposition()).decode()
        link.writer.write(line(Scraped(number, text)))
        await link.writer.drain()

    def _serves(self, index: int) -> None:
        self.served[index] += 1
        if self._ready is not None and len(self.served) == self._workers:
            self._ready()
            self._ready = None
