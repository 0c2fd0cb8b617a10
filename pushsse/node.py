"""One node while it runs: opens its parts, supervises its services, and says whether it is ready.

`build` makes it, `app` serves it. Whatever runs for ever is a service in one task group; a service that dies
takes the process down, loudly, so that whatever supervises the process restarts it.
"""

import asyncio
import ctypes
import gc
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import count

from pushsse.api.access import Tickets
from pushsse.api.events import Intake
from pushsse.api.identity import Identifier
from pushsse.api.replies import Replies
from pushsse.backplane import Backplane
from pushsse.backplane.limits import LogAllowance
from pushsse.database import Database
from pushsse.errors import CloseReason, DatabaseUnavailable, PushsseError, SettingsError
from pushsse.explain import Explaining
from pushsse.hub import HubParts
from pushsse.hub.hub import FLUSH_S, Hub, drain
from pushsse.intake import Drafter
from pushsse.kafka.producer import Producer
from pushsse.kicks import Kicked, Kicks
from pushsse.metrics import Metrics
from pushsse.overview import Overview
from pushsse.people import StoredPeople
from pushsse.preferences import Preferences
from pushsse.preferences.catalogue import Catalogue, CatalogueStore
from pushsse.preferences.history import History
from pushsse.preferences.store import PreferenceStore
from pushsse.presence import Presence
from pushsse.questions.service import Questions
from pushsse.retention import Forgetting, Retention
from pushsse.settings import Settings
from pushsse.stream.frame import random_retry_ms
from pushsse.witness import Witness
from pushsse.workers.worker import SupervisorGone, Worker

logger = logging.getLogger(__name__)
# An isolated node ends its streams within this.
_ISOLATED_WINDOW_S = 5.0
# Services end one after the other; those that haven't after this, all at once. Well below `server.QUICK_S`.
IN_ORDER_S = 1.0
# Well below `server.LINGER_S`.
_AGAIN_S = 6.0
TRIM_EVERY_S = 20.0
# In ticks of TRIM_EVERY_S, so once an hour: a walk over all objects takes 0.2 s with 15,000 streams.
WALK_EVERY = 180
Service = Callable[[], Awaitable[None]]


@dataclass(slots=True, eq=False, kw_only=True)
class Node:
    """The parts of one process. `worker` is its link to a supervisor, where it has one."""

    settings: Settings
    metrics: Metrics
    identifier: Identifier
    identity_services: Mapping[str, Service]
    database: Database
    backplane: Backplane
    preference_store: PreferenceStore
    catalogue: Catalogue
    catalogue_store: CatalogueStore
    drafter: Drafter
    people: StoredPeople
    preferences: Preferences
    allowance: LogAllowance
    hub_parts: HubParts
    kicked: Kicked
    kicks: Kicks
    forgetting: Forgetting
    retention: Retention
    history: History
    presence: Presence
    overview: Overview
    explaining: Explaining
    # Empty where it isn't noted what became of events.
    outcome_services: Mapping[str, Service]
    tickets: Tickets
    questions: Questions
    replies: Replies
    # Where POST /v1/events puts its events; `work.from_kafka` reads those of all sources in Kafka.
    accepting: Intake
    work: "Work"
    producers: Sequence[Producer]
    witness: Witness | None
    worker: Worker | None
    started: bool = False
    draining: bool = False
    # All streams have been told to end: one that began now would never be.
    closed: bool = False

    @property
    def hub(self) -> Hub:
        """The streams of this node."""
        return self.hub_parts.hub

    @asynccontextmanager
    async def running(
        self, on_failure: Callable[[], None], *, more: Mapping[str, Service] | None = None
    ) -> AsyncIterator[None]:
        """Runs the node, and `more` services, while the context lasts. Raises PushsseError if it can't start.

        `on_failure` is called when a service has ended; it has to end the process.
        """
        async with AsyncExitStack() as stack:
            try:
                await self._open(stack)
            except PushsseError as error:
                logger.critical("this node can't start: %s", error)
                raise
            await stack.enter_async_context(_supervised({**self._services(), **(more or {})}, on_failure))
            self.started = True
            yield

    async def _open(self, stack: AsyncExitStack) -> None:
        await stack.enter_async_context(self.database)
        if self.settings.is_sqlite:
            await self.database.migrate()
        await stack.enter_async_context(self.backplane)
        # A node starts while its database is away, and takes no streams until it has read them.
        with suppress(DatabaseUnavailable):
            await self.kicks.load()
        stack.push_async_callback(_close_together, self.producers)

    def _services(self) -> dict[str, Service]:
        """What runs for as long as the node does, in the order of its start; it ends in reverse."""
        worker = self.worker
        return {
            **({"worker": lambda: worker.run(self.metrics)} if worker is not None else {}),
            **self.identity_services,
            # Before whatever notes outcomes, and so ended after it.
            **self.outcome_services,
            "catch-up": self.hub_parts.catch_up.run,
            "refresh": self.hub_parts.refresh.run,
            "openings": self.hub_parts.opener.run,
            "feed": self.hub_parts.feed.run,
            "heartbeat": lambda: self.hub_parts.heartbeat.run(self.hub),
            "catalogue": self.catalogue.run,
            "people": self.people.run,
            "preferences": self.preferences.run,
            "allowance": self.allowance.run,
            "kicks": self.kicks.run,
            "retention": self.retention.run,
            "history of switches": self.history.run,
            "tickets": self.tickets.run,
            "presence": self.presence.run,
            "overview": lambda: self.overview.run(self),
            "questions": self.work.questions.run,
            "memory": trim_memory,
            **({"witness": self.witness.run} if self.witness is not None else {}),
            # Last, so that it has ended before the others are told to: what it dispatches, they deliver.
            **({"intake": self.work.from_kafka.run} if self.work.from_kafka is not None else {}),
            **{name: outbox.run for name, outbox in self.work.outboxes.items()},
        }

    @property
    def isolated(self) -> bool:
        """Whether this node alone has lost Redis."""
        return self.witness is not None and self.witness.isolated

    def unready(self) -> str:
        """Why the node isn't ready; empty when it is."""
        if self.draining:
            return "draining"
        if self.isolated:
            return "isolated: this node alone doesn't hear Redis"
        if not self.kicked.loaded:
            return "starting: the kicks can't be read from the database yet"
        return "" if self.started else "starting"

    def has_room(self) -> bool:
        """Whether one more stream may begin."""
        witness = self.witness
        if self.closed or (witness is not None and witness.isolated) or not self.kicked.loaded:
            return False
        most = self.settings.max_streams
        return not most or len(self.hub.subscribers) + self.replies.count < most

    def available(self) -> dict[str, bool]:
        """Which parts answered a moment ago."""
        return {"database": self.database.available, "backplane": self.backplane.available}

    async def exposition(self) -> bytes:
        """The metrics of this process, or of all workers, as text for Prometheus. Raises Unavailable."""
        if self.worker is not None:
            return await self.worker.exposition()
        return self.metrics.exposition()

    def end_streams(self) -> None:
        """Ends all streams at once; from now on the node isn't ready."""
        self.draining = True
        self._close()
        for subscriber in list(self.hub.subscribers):
            subscriber.end(CloseReason.SHUTDOWN, retry_ms=random_retry_ms())

    async def leave(self, *, window_s: float, flush_s: float = FLUSH_S) -> None:
        """Ends all streams within `window_s` seconds; their last words may take `flush_s` more."""
        self.draining = True
        await drain(self.hub, window_s=window_s, flush_s=flush_s, close=self._close)

    def _close(self) -> None:
        self.closed = True


async def _close_together(producers: Sequence[Producer]) -> None:
    """Closes them beside each other: in front of a Kafka that doesn't answer each takes seconds."""
    async with asyncio.TaskGroup() as group:
        for producer in producers:
            group.create_task(producer.close())


class Interruptible:
    """A service that rests between `release` and `resume`, while its supervisor sees one that runs for ever.

    It is cancelled to rest, and called anew after that. Both calls return at once, and count in any order: a
    round that still ends when `resume` comes ends all the same, and the next one begins after it.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._allowed = asyncio.Event()
        self._allowed.set()
        self._round: asyncio.Timeout | None = None

    async def run(self) -> None:
        """Returns when the service ends by itself; raises what it raises."""
        while True:
            await self._allowed.wait()
            try:
                # A timeout without a time: `release` sets one, and it tells its cancellation from any other.
                async with asyncio.timeout(None) as this_round:
                    self._round = this_round
                    await self._service()
                return
            except TimeoutError:
                if not this_round.expired():
                    raise
            finally:
                self._round = None

    def release(self) -> None:
        """Cancels the service. What it gives back at its end, other nodes can take."""
        self._allowed.clear()
        if self._round is not None and self._round.when() is None:
            self._round.reschedule(0.0)

    def resume(self) -> None:
        """Lets the service run again."""
        self._allowed.set()


@dataclass(frozen=True, slots=True)
class Work:
    """What a node does for all of them, and gives back while it is isolated. Called by `witness`."""

    backplane: Backplane
    hub: Hub
    questions: Interruptible
    from_kafka: Interruptible | None
    outboxes: Mapping[str, Interruptible] = field(default_factory=dict)

    @property
    def hears(self) -> bool:
        """Whether the node hears the backplane."""
        return self.backplane.hears

    async def give_back(self) -> None:
        """Other nodes get the Kafka partitions, the outboxes, the questions and the streams."""
        for service in self._services():
            service.release()
        await drain(self.hub, window_s=_ISOLATED_WINDOW_S, reason=CloseReason.OVERLOADED)

    def take_back(self) -> None:
        """This node takes its share again."""
        for service in self._services():
            service.resume()

    def _services(self) -> Sequence[Interruptible]:
        intakes = (self.from_kafka,) if self.from_kafka is not None else ()
        return (self.questions, *intakes, *self.outboxes.values())


@asynccontextmanager
async def _supervised(services: Mapping[str, Service], on_failure: Callable[[], None]) -> AsyncIterator[None]:
    """Runs the services while the context lasts."""

    async def run(name: str, service: Service) -> None:
        try:
            await service()
            logger.critical("service %s ended by itself, so this process ends", name)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # A library let a cancellation of its own out: nobody asked this service to stop.
            logger.critical("service %s was cancelled from inside, so this process ends", name, exc_info=True)
        except SupervisorGone:
            logger.critical("the supervisor of this worker is gone, so this process ends")
        except SettingsError as error:
            logger.critical("%s; this process ends", error)
        except Exception:
            logger.critical("service %s died, so this process ends", name, exc_info=True)
        on_failure()

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(run(name, service), name=name) for name, service in services.items()]
        try:
            yield
        finally:
            # The reverse of their start, one by one: the intake has given its partitions back before what
            # delivers is told to end. Kafka or a database that doesn't answer takes the others' time, too.
            until = asyncio.get_running_loop().time() + IN_ORDER_S
            for task in reversed(tasks):
                task.cancel()
                left_s = until - asyncio.get_running_loop().time()
                await asyncio.wait((task,), timeout=max(0.0, left_s))
            await _ended(tasks)


async def _ended(left: Collection[asyncio.Task[None]]) -> None:
    """Returns when the services have ended. One that goes on has lost its cancellation, and gets another."""
    while left:
        _, left = await asyncio.wait(left, timeout=_AGAIN_S)
        for task in left:
            logger.error("service %s hasn't ended after %g s, and is told again", task.get_name(), _AGAIN_S)
            task.cancel()


# Memory


def settle_memory() -> None:
    """Makes the garbage collector run less often from now on. Called when the node begins to serve.

    Neither a request nor a stream leaves a cycle, so a collection mostly walks objects that stay.
    """
    gc.collect()
    gc.set_threshold(10_000, 20, 50)
    release_memory()


async def trim_memory() -> None:
    """Returns the memory of past bursts to the system, for ever; once an hour it also collects cycles."""
    for tick in count(1):
        await asyncio.sleep(TRIM_EVERY_S)
        if tick % WALK_EVERY == 0:
            gc.collect()
        release_memory()


def release_memory() -> None:
    """Returns free memory to the system, in well under a millisecond.

    A full collection empties the interpreter's free lists, whose few objects would keep thousands of pages.
    Everything is frozen first, so the collection has nothing to walk. Then glibc, where it is the C library,
    returns free pages (malloc_trim(3)).
    """
    gc.freeze()
    gc.collect()
    gc.unfreeze()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
