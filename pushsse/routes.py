"""Which call goes where: the routes of a node, and the middleware around them. Used by `app`."""

from collections.abc import Sequence
from typing import NamedTuple

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute, Route

from pushsse.api import openapi
from pushsse.api import page as h5
from pushsse.api.direct import Direct, answered
from pushsse.api.events import EventsEndpoint
from pushsse.api.health import HealthEndpoint
from pushsse.api.preferences import PreferencesEndpoint
from pushsse.api.problem import HANDLERS
from pushsse.api.questions import QuestionsEndpoint
from pushsse.api.reply import Reply
from pushsse.api.stream import StreamEndpoint
from pushsse.node import Node
from pushsse.settings import Settings


class Routes(NamedTuple):
    """All calls, and beside them the way of those that come by the thousand."""

    all: Sequence[BaseRoute]
    direct: Direct


def routes(node: Node) -> Routes:
    """All calls, each endpoint with what it needs."""
    settings, identifier = node.settings, node.identifier
    stream = StreamEndpoint(
        identifier=identifier,
        resumer=node.inside.resumer,
        streams=node.inside.streams,
        has_room=node.has_room,
        backlog_bytes=settings.backlog_bytes,
    )
    events = EventsEndpoint(
        identifier=identifier,
        intake=node.intakes.accepting,
        resumer=node.inside.resumer,
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
    return Routes(found, direct)


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
