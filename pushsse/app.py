"""The only wiring: parts, routes, lifespan, supervised services.

`create_app` makes the ASGI application of one node out of Settings. Whatever runs for ever is a service in
one task group; one that dies takes the process down, loudly.
"""

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NamedTuple

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute, Route

from pushsse.api import openapi
from pushsse.api import page as h5
from pushsse.api.direct import Application, Direct, answered
from pushsse.api.events import EventsEndpoint
from pushsse.api.health import HealthEndpoint
from pushsse.api.preferences import PreferencesEndpoint
from pushsse.api.problem import HANDLERS
from pushsse.api.questions import QuestionsEndpoint, Reply
from pushsse.api.stream import StreamEndpoint
from pushsse.errors import CloseReason, PushsseError, SettingsError
from pushsse.node import Node
from pushsse.settings import Settings
from pushsse.stream.frame import random_retry_ms
from pushsse.stream.immediate import Calls
from pushsse.workers.worker import SupervisorGone

log = logging.getLogger(__name__)


def die(node: Node) -> None:
    """Ends the process as a supervisor would: what is broken is started anew, not limped along.

    Streams are told before, since a server that waits for them would otherwise wait for ever.
    """
    node.draining = True
    for subscriber in list(node.hub.subscribers):
        node.hub.end(subscriber, CloseReason.SHUTDOWN, retry_ms=random_retry_ms())
    os.kill(os.getpid(), signal.SIGTERM)


def create_app(settings: Settings, *, on_failure: Callable[[], None] | None = None) -> Application:
    """One node's application. `on_failure` is called when a service died; without it the process ends."""
    node = Node(settings)
    failed = on_failure or (lambda: die(node))

    @asynccontextmanager
    async def lifespan(_: object) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(node.parts())
            except PushsseError as error:
                log.critical("this node can't start: %s", error)
                raise
            await stack.enter_async_context(_supervised(node.services(), failed))
            node.started = True
            yield

    calls = routes(node)
    app = Application(
        routes=calls.all, middleware=middleware(settings), exception_handlers=HANDLERS, lifespan=lifespan
    )
    app.direct = calls.direct
    app.immediate = calls.immediate
    app.state.node = node
    return app


@asynccontextmanager
async def _supervised(
    services: dict[str, Callable[[], Awaitable[None]]], on_failure: Callable[[], None]
) -> AsyncIterator[None]:
    """Runs the services while the context lasts."""

    async def run(name: str, service: Callable[[], Awaitable[None]]) -> None:
        try:
            await service()
            log.critical("service %s ended by itself, so this process ends", name)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # A library let a cancellation of its own out: nobody asked this service to stop.
            log.critical("service %s was cancelled from inside, so this process ends", name, exc_info=True)
        except SupervisorGone:
            log.critical("the supervisor of this worker is gone, so this process ends")
        except SettingsError as error:
            log.critical("%s; this process ends", error)
        except Exception:
            log.critical("service %s died, so this process ends", name, exc_info=True)
        on_failure()

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(run(name, service), name=name) for name, service in services.items()]
        try:
            yield
        finally:
            for task in reversed(tasks):
                task.cancel()


class Routes(NamedTuple):
    """All calls, and beside them the way of those that come by the thousand."""

    all: Sequence[BaseRoute]
    direct: Direct
    immediate: Calls


def routes(node: Node) -> Routes:
    """All calls, each endpoint with what it needs."""
    settings, identifier = node.settings, node.identifier
    stream = StreamEndpoint(
        identifier=identifier,
        opener=node.inside.opener,
        has_room=node.has_room,
        backlog_bytes=settings.backlog_bytes,
    )
    events = EventsEndpoint(
        identifier=identifier,
        intake=node.intakes.accepting,
        opener=node.inside.opener,
        replay=node.inside.replay,
        max_age_s=settings.event_max_age_s,
        admits=node.catalogue.admits,
        now_ms=node.backplane.now_ms,
    )
    preferences = PreferencesEndpoint(identifier, node.preferences, node.store)
    reply = Reply(node.questions, node.watch, lambda: node.draining, settings.heartbeat_s)
    questions = QuestionsEndpoint(identifier, node.questions, reply)
    health = HealthEndpoint(unready=node.unready, parts=node.available, exposition=node.exposition)
    page = h5.load()
    interface = openapi.load()
    found: Sequence[BaseRoute] = [
        Route("/v1/stream", stream, methods=["GET"]),
        Route("/v1/events", events.get, methods=["GET"]),
        Route("/v1/events", events.post, methods=["POST"]),
        Route("/v1/preferences", preferences.get, methods=["GET"]),
        Route("/v1/preferences", preferences.post, methods=["POST"]),
        Route("/v1/questions", questions.get_all, methods=["GET"]),
        Route("/v1/questions", questions.post, methods=["POST"]),
        Route("/v1/questions/{id}", questions.get, methods=["GET"]),
        Route("/v1/questions/{id}/cancel", questions.cancel, methods=["POST"]),
        Route("/livez", health.live),
        Route("/readyz", health.ready),
        Route("/metrics", health.metrics),
        Route("/openapi.json", interface.get),
        *(Route(path, page.get) for path in h5.PATHS),
    ]
    direct = Direct(
        {
            ("GET", "/v1/stream"): stream,
            ("POST", "/v1/events"): answered(events.post),
            # nginx asks before each stream.
            ("GET", "/readyz"): answered(health.ready),
        },
        handlers=HANDLERS,
        origins=bool(settings.allowed_origins),
    )
    immediate = direct.immediate({(b"POST", b"/v1/events"): events.post_at_once})
    return Routes(found, direct, immediate)


def middleware(settings: Settings) -> Sequence[Middleware]:
    """Browsers of other sites are let in by name only."""
    if not settings.allowed_origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=settings.allowed_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "Last-Event-ID", "Idempotency-Key"],
            allow_credentials=True,
            max_age=600,
        )
    ]
