"""The only wiring: parts, routes, lifespan, supervised services.

`create_app` makes the ASGI application of one node out of Settings. Whatever runs for ever is a service in
one task group; one that dies takes the process down, loudly.
"""

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from pushsse.api.direct import Application
from pushsse.api.problem import HANDLERS
from pushsse.errors import CloseReason, PushsseError, SettingsError
from pushsse.node import Node
from pushsse.routes import middleware, routes
from pushsse.settings import Settings
from pushsse.stream.frame import random_retry_ms
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
