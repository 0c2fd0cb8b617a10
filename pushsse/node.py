"""One node: every part, made of Settings and handed what it needs. Used by `app` and the command line.

Constructing only stores; `parts` opens what has to be closed, `services` names what runs for ever.
"""

import asyncio
import ctypes
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from itertools import count

from pushsse import build
from pushsse.database import Database
from pushsse.dispatcher import Dispatcher
from pushsse.errors import CloseReason
from pushsse.hub import inside
from pushsse.hub.hub import Watch, drain
from pushsse.metrics import Metrics
from pushsse.preferences.service import Catalogue, Preferences, Reading
from pushsse.preferences.store import PreferenceStore
from pushsse.questions.service import questions
from pushsse.questions.store import Store
from pushsse.settings import Settings
from pushsse.witness import Witness, WitnessTable
from pushsse.workers.worker import Worker

# Over how many seconds an isolated node ends its streams.
_LEAVE_S = 5.0
Service = Callable[[], Awaitable[None]]


class Node:
    """The parts of one process. `draining` and `started` decide whether it is ready."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.started = False
        self.draining = False
        self.worker: Worker | None = None
        self.database = Database(settings.database_url)
        store = self.store = PreferenceStore(self.database)
        self.reading = Reading(store.switches, now=store.switches_now)
        self.catalogue = Catalogue(store, new_types=settings.new_types, metrics=self.metrics)
        self.backplane = build.backplane(settings, self.metrics)
        self.preferences = Preferences(store, self.backplane)
        self.dispatcher = Dispatcher(
            backplane=self.backplane,
            switches=store,
            seen=self.catalogue.notice,
            shards=settings.shards,
            metrics=self.metrics,
        )
        self.inside = inside(
            self.backplane,
            shards=settings.shards,
            limits=build.limits(settings),
            switches=self.reading.switches,
            settle=self.preferences.settle,
            so_far=lambda user: self.questions.so_far(user),
            metrics=self.metrics,
        )
        self.hub = self.inside.hub
        self._answering = build.answering(settings, self.metrics)
        self.questions = questions(
            Store(self.database),
            self.backplane,
            self._answering.answerer,
            node=settings.node,
            timeout_s=settings.answer_timeout_s,
            metrics=self.metrics,
        )
        self.watch = Watch(self.hub)
        self.identifier = build.identifier(settings)
        self.intakes = build.intakes(
            settings,
            self.backplane,
            dispatcher=self.dispatcher,
            admits=self.catalogue.admits,
            metrics=self.metrics,
        )
        self.witness = self._witness()
        self._gauges()

    @asynccontextmanager
    async def parts(self) -> AsyncIterator[None]:
        """Opens the database, the backplane and the intake; the embedded database is migrated."""
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.database)
            if self.settings.database_url.startswith("sqlite"):
                await self.database.migrate()
            await stack.enter_async_context(self.backplane)
            for producer in (*self.intakes.producers, *self._answering.producers):
                await stack.enter_async_context(producer)
            yield

    def services(self) -> dict[str, Service]:
        """What runs for as long as the node does, in the order in which it starts."""
        worker = self.worker
        return {
            **({"worker": lambda: worker.run(self.metrics.collect)} if worker is not None else {}),
            "catch-up": self.inside.catch_up.run,
            "openings": self.inside.opener.run,
            "feed": self.inside.feed.run,
            "heartbeat": lambda: self.inside.heartbeat.run(self.hub),
            "catalogue": self.catalogue.run,
            "switches": self.reading.run,
            "preferences": self.preferences.run,
            "questions": self.questions.run,
            "memory": trim_memory,
            **({"witness": self.witness.run} if self.witness is not None else {}),
            **({"intake": self.intakes.consumer.run} if self.intakes.consumer is not None else {}),
        }

    @property
    def isolated(self) -> bool:
        """Whether this node alone has lost Redis."""
        return self.witness is not None and self.witness.isolated

    def _witness(self) -> Witness | None:
        """Only where there may be other nodes, and a database to ask about them."""
        if not self.settings.redis_url or self.settings.database_url.startswith("sqlite"):
            return None
        return Witness(
            WitnessTable(self.database, node=self.settings.node),
            hears=lambda: self.backplane.hears,
            leave=self._leave,
            come_back=self._come_back,
        )

    async def _leave(self) -> None:
        if self.intakes.consumer is not None:
            self.intakes.consumer.release()
        self.questions.release()
        await drain(self.hub, window_s=_LEAVE_S, reason=CloseReason.OVERLOADED)

    def _come_back(self) -> None:
        if self.intakes.consumer is not None:
            self.intakes.consumer.resume()
        self.questions.resume()

    def unready(self) -> str:
        """Why the node isn't ready; empty when it is."""
        if self.draining:
            return "draining"
        if self.isolated:
            return "isolated: this node alone doesn't hear Redis"
        return "" if self.started else "starting"

    def has_room(self) -> bool:
        """Whether one more stream may begin."""
        most = self.settings.max_streams
        return not self.isolated and (not most or len(self.hub.subscribers) < most)

    def available(self) -> dict[str, bool]:
        """Which parts answered a moment ago."""
        return {"database": self.database.available, "backplane": self.backplane.available}

    async def exposition(self) -> bytes:
        """The metrics of this process, or of all workers."""
        if self.worker is not None:
            return await self.worker.exposition(self.metrics.collect)
        return self.metrics.exposition()

    def _gauges(self) -> None:
        gauge = self.metrics.gauge
        gauge("connections", "Open streams", lambda: len(self.hub.subscribers))
        gauge(
            "people",
            "People with a stream here",
            lambda: sum(len(s.people) for s in self.hub.shards.values()),
        )
        gauge("hearings_waiting", "What was heard and not delivered", lambda: self.inside.feed.waiting)
        gauge("backplane_available", "Whether the backplane answers", lambda: self.backplane.available)
        gauge("types", "Types in the catalogue, which holds 1,000", lambda: self.catalogue.size)
        gauge("isolated", "Whether this node alone has lost Redis", lambda: self.isolated)
        gauge("database_failures", "Statements that failed so far", lambda: self.database.failures)
        gauge("database_available", "Whether the database answers", lambda: self.database.available)


TRIM_EVERY_S = 20.0
# One walk over everything takes 0.2 s where there are 15,000 streams.
WALK_EVERY = 180


def settle_memory() -> None:
    """Lets the collector of cycles look less often, from when the node serves.

    Neither a request nor a stream leaves a cycle; what it spends is spent on walking what stays anyway.
    """
    gc.collect()
    gc.set_threshold(10_000, 20, 50)
    release_memory()


async def trim_memory() -> None:
    """Gives back what a burst needed for a moment, for ever; once an hour it also looks for old cycles."""
    for tick in count(1):
        await asyncio.sleep(TRIM_EVERY_S)
        if tick % WALK_EVERY == 0:
            gc.collect()
        release_memory()


def release_memory() -> None:
    """Returns what lies free to the system, in well under a millisecond.

    First the interpreter's free lists, whose few objects would hold thousands of pages: a full collection
    empties them, and has nothing to walk while everything is frozen. Then free pages, where there is glibc
    (malloc_trim(3)).
    """
    gc.freeze()
    gc.collect()
    gc.unfreeze()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
