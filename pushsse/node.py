"""One node: every part, made of Settings and handed what it needs. Used by `app` and the command line.

Constructing only stores; `parts` opens what has to be closed, `services` names what runs for ever.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from pushsse.api.identity import DevelopmentIdentifier, Identifier, TokenIdentifier
from pushsse.backplane.base import Backplane
from pushsse.backplane.memory import MemoryBackplane
from pushsse.database import Database
from pushsse.dispatcher import Dispatcher
from pushsse.hub.feed import Feed
from pushsse.hub.heartbeat import Heartbeat
from pushsse.hub.hub import Hub
from pushsse.hub.replay import Replay
from pushsse.hub.resume import Resumer
from pushsse.hub.streams import StreamLimits, Streams
from pushsse.intake.base import Intake
from pushsse.intake.embedded import EmbeddedIntake
from pushsse.metrics import Metrics
from pushsse.preferences.catalogue import Catalogue
from pushsse.preferences.service import Preferences
from pushsse.preferences.store import PreferenceStore
from pushsse.questions.answerers import faq
from pushsse.questions.answering import Answering
from pushsse.questions.life import Life, Pace
from pushsse.questions.service import Questions
from pushsse.questions.store import Store
from pushsse.questions.sweeper import Sweeper
from pushsse.questions.turns import Turns
from pushsse.settings import Settings

Service = Callable[[], Awaitable[None]]


class Node:
    """The parts of one process. `draining` and `started` decide whether it is ready."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.started = False
        self.draining = False
        self.database = Database(settings.database_url)
        store = self.store = PreferenceStore(self.database)
        self.catalogue = Catalogue(store, new_types=settings.new_types)
        self.backplane = _backplane(settings, self.metrics)
        self.preferences = Preferences(store, publish=self.backplane.publish, shards=settings.shards)
        self.dispatcher = Dispatcher(
            publish=self.backplane.publish,
            off_among=store.off_among,
            seen=self.catalogue.notice,
            shards=settings.shards,
            metrics=self.metrics,
        )
        self.heartbeat = Heartbeat(heartbeat_s=settings.heartbeat_s)
        self.hub = Hub(
            self.backplane,
            shards=settings.shards,
            heartbeat=self.heartbeat,
            metrics=self.metrics,
            behind=lambda subscriber: self.streams.serve(subscriber),
            lost=lambda people: self.streams.refresh(people),
        )
        self.feed = Feed(self.backplane, self.hub)
        self.replay = Replay(self.hub, self.backplane)
        self.streams = Streams(self.hub, self.replay, limits=_limits(settings), switches=store.switches)
        self.resumer = Resumer(
            self.hub, self.backplane, switches=store.switches, settle=self.preferences.settle
        )
        self.questions = _questions(settings, self.database, self.backplane, self.metrics)
        self.identifier = _identifier(settings)
        self.intake: Intake = EmbeddedIntake(self.dispatcher.dispatch)
        self._gauges()

    @asynccontextmanager
    async def parts(self) -> AsyncIterator[None]:
        """Opens the database, the backplane and the intake; the embedded database is migrated."""
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.database)
            if self.settings.database_url.startswith("sqlite"):
                await self.database.migrate()
            await stack.enter_async_context(self.backplane)
            yield

    def services(self) -> dict[str, Service]:
        """What runs for as long as the node does, in the order in which it starts."""
        return {
            "streams": self.streams.run,
            "feed": self.feed.run,
            "heartbeat": lambda: self.heartbeat.run(self.hub),
            "catalogue": self.catalogue.run,
            "preferences": self.preferences.run,
            "questions": self.questions.run,
        }

    def unready(self) -> str:
        """Why the node isn't ready; empty when it is."""
        if self.draining:
            return "draining"
        return "" if self.started else "starting"

    def has_room(self) -> bool:
        """Whether one more stream may begin."""
        most = self.settings.max_streams
        return not most or len(self.hub.subscribers) < most

    def available(self) -> dict[str, bool]:
        """Which parts answered a moment ago."""
        return {"database": self.database.available, "backplane": self.backplane.available}

    async def exposition(self) -> bytes:
        """This process's metrics."""
        return self.metrics.exposition()

    def _gauges(self) -> None:
        gauge = self.metrics.gauge
        gauge("connections", "Open streams", lambda: len(self.hub.subscribers))
        gauge(
            "people",
            "People with a stream here",
            lambda: sum(len(s.people) for s in self.hub.shards.values()),
        )
        gauge("hearings_waiting", "What the node heard and hasn't delivered", lambda: self.feed.waiting)
        gauge("backplane_available", "Whether the backplane answers", lambda: self.backplane.available)
        gauge("database_available", "Whether the database answers", lambda: self.database.available)


def _backplane(settings: Settings, metrics: Metrics) -> MemoryBackplane:
    return MemoryBackplane(
        shards=settings.shards,
        keep_s=settings.log_keep_s,
        keep_bytes=settings.log_keep_bytes,
        metrics=metrics,
    )


def _limits(settings: Settings) -> StreamLimits:
    return StreamLimits(
        node=settings.node,
        heartbeat_s=settings.heartbeat_s,
        window_s=settings.log_keep_s,
        send_timeout_s=settings.send_timeout_s,
        lifetime_s=settings.stream_lifetime_s,
    )


def _identifier(settings: Settings) -> Identifier:
    if settings.development:
        return DevelopmentIdentifier()
    return TokenIdentifier(settings.jwt_secret, settings.auth_cookie, settings.auth_user_claim)


def _questions(settings: Settings, database: Database, backplane: Backplane, metrics: Metrics) -> Questions:
    life = Life(Store(database), backplane, settings.shards, metrics, Pace())
    answerer = faq.load(settings.answerer.partition(":")[2])
    answering = Answering(life, answerer, Turns())
    sweeper = Sweeper(life, answering, settings.node)
    return Questions(life, answering, sweeper, settings.node, settings.answer_timeout_s)
