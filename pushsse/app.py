"""The ASGI application of one node: its calls, and its lifespan.

`server` serves `application`. Any other ASGI server gets `create_app`, which reads the settings by itself:
`uvicorn --factory pushsse.app:create_app`. Deliberate: such a server waits for open streams when it has to
stop, and ends the lifespan after that. So `create_app` hears the signals, too, and ends the streams.
"""

import asyncio
import logging
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from types import FrameType

from pushsse import settings as configuration
from pushsse.api import CallLimit, counted
from pushsse.api.access import AccessEndpoint
from pushsse.api.acks import AcksEndpoint
from pushsse.api.admin import (
    HealthEndpoint,
    OverviewEndpoint,
    TransferEndpoint,
    TypesEndpoint,
    UsersEndpoint,
)
from pushsse.api.agui import AguiEndpoint
from pushsse.api.calls import Endpoints, direct_calls, immediate_calls, routes
from pushsse.api.chat import ChatEndpoint
from pushsse.api.completions import CompletionsEndpoint
from pushsse.api.direct import Application, Direct
from pushsse.api.document import encoded_document
from pushsse.api.events import EventsEndpoint
from pushsse.api.files import ClientEndpoint, DocsEndpoint, PageEndpoint
from pushsse.api.front_ends import FrontEnd
from pushsse.api.polls import PollEndpoint
from pushsse.api.preferences import PreferencesEndpoint
from pushsse.api.questions import ConversationsEndpoint, QuestionsEndpoint
from pushsse.api.replies import StreamedReply
from pushsse.api.stream import StreamEndpoint
from pushsse.build import build
from pushsse.node import Node, Service
from pushsse.preferences import Transfer
from pushsse.questions.following import Following
from pushsse.questions.service import Desk
from pushsse.settings import Settings
from pushsse.stream.admission import Admission
from pushsse.stream.limits import Limits

logger = logging.getLogger(__name__)


def create_app(settings: Settings | None = None) -> Application:
    """A node for any ASGI server, one in each of its processes. Raises SettingsError.

    Without settings they are read: pushsse.toml, then PUSHSSE_* variables. The server decides about the
    address and the number of processes.
    """
    node = build(settings or configuration.load(os.environ, file=configuration.FILE))

    def fail() -> None:
        # The streams first: the server waits for them.
        node.end_streams()
        os.kill(os.getpid(), signal.SIGTERM)

    async def leave_when_told() -> None:
        with _stop_signal() as stopping:
            await stopping.wait()
            await node.leave(window_s=node.settings.drain_window_s)
            await asyncio.Event().wait()

    return application(node, on_failure=fail, more={"drain": leave_when_told})


def application(
    node: Node, *, on_failure: Callable[[], None], more: Mapping[str, Service] | None = None
) -> Application:
    """A node's application, which runs the node, and `more` services, for as long as its lifespan.

    `on_failure` is called when a service has ended by itself; it has to end the process.
    """

    @asynccontextmanager
    async def lifespan(_: object) -> AsyncIterator[None]:
        async with node.running(on_failure, more=more):
            yield

    endpoints = _endpoints(node)
    origins = node.settings.allowed_origins
    handlers = counted(node.metrics.refusals)
    direct = Direct(direct_calls(endpoints), handlers=handlers, origins=bool(origins))
    return Application(
        direct=direct,
        immediate=direct.immediate(immediate_calls(endpoints)),
        limits=_limits(node),
        internal_port=internal.port if (internal := node.settings.internal) is not None else None,
        routes=routes(endpoints),
        origins=origins,
        exception_handlers=handlers,
        lifespan=lifespan,
    )


def _limits(node: Node) -> Limits:
    """What the HTTP protocol holds its clients to."""
    settings = node.settings
    return Limits(
        head_bytes=settings.head_bytes,
        head_fields=settings.head_fields,
        head_timeout_s=settings.head_timeout_s,
        body_timeout_s=settings.body_timeout_s,
        read_timeout_s=2 * settings.send_timeout_s,
        refusals=node.metrics.refusals,
        admission=_admission(node),
        own_address=settings.internal is not None,
    )


def _admission(node: Node) -> Admission | None:
    """The limits of connections; None where there are none, so that none is counted."""
    per_address, per_second = node.settings.max_connections_per_address, node.settings.accepts_per_second
    if not per_address and not per_second:
        return None
    return Admission(per_address=per_address, per_second=per_second, limited=node.metrics.limited)


def _endpoints(node: Node) -> Endpoints:
    """What answers the calls, each with the parts of the node that it needs."""
    settings, identifier = node.settings, node.identifier
    following = Following(node.questions, node.hub, node, node.kicked)
    reply = StreamedReply(following, node.replies, settings.heartbeat_s)
    desk = Desk(node.questions.life)
    limited = node.metrics.limited

    def limit(name: str, quota: int, what: str) -> CallLimit:
        return CallLimit(name, quota, what, node.backplane, limited)

    asking = limit("questions", settings.questions_per_minute, "ask")
    rating = limit("feedback", settings.feedback_per_minute, "rate answers")
    front_end = FrontEnd(identifier, node.questions, following, asking, node.replies, settings.heartbeat_s)
    return Endpoints(
        stream=StreamEndpoint(
            identifier=identifier,
            tickets=node.tickets,
            opener=node.hub_parts.opener,
            node=node,
            backlog_bytes=settings.backlog_bytes,
            limited=limited,
            refusals=node.metrics.refusals,
            allowed_origins=settings.allowed_origins,
        ),
        events=EventsEndpoint(
            identifier=identifier,
            intake=node.accepting,
            drafter=node.drafter,
            backplane=node.backplane,
            revocations=node.kicked,
        ),
        acks=AcksEndpoint(
            identifier=identifier,
            opener=node.hub_parts.opener,
            replay=node.hub_parts.replay,
            backplane=node.backplane,
            limit=limit("acks", settings.acks_per_minute, "send acks"),
            allowance=node.allowance,
            window_s=settings.log_keep_s,
            outcomes=node.hub.outcomes,
        ),
        polls=PollEndpoint(
            identifier=identifier,
            opener=node.hub_parts.opener,
            replay=node.hub_parts.replay,
            node=node,
            backlog_bytes=settings.backlog_bytes,
            limited=limited,
        ),
        preferences=PreferencesEndpoint(
            identifier,
            node.preferences,
            node.preference_store,
            limit("switches", settings.switches_per_minute, "change switches"),
        ),
        transfer=TransferEndpoint(
            identifier, Transfer(node.database, node.preference_store, node.preferences)
        ),
        types=TypesEndpoint(identifier, node.catalogue_store, node.catalogue),
        chat=ChatEndpoint(front_end),
        agui=AguiEndpoint(front_end),
        completions=CompletionsEndpoint(front_end),
        questions=QuestionsEndpoint(
            identifier, node.questions, reply, asking, rating, desk, node.hub.outcomes
        ),
        conversations=ConversationsEndpoint(identifier, node.questions, desk, asking),
        access=AccessEndpoint(
            identifier,
            node.hub_parts.opener,
            node.tickets,
            limit=limit("tickets", settings.tickets_per_minute, "make tickets"),
        ),
        users=UsersEndpoint(identifier, node.presence, node.kicks, node.forgetting, node.explaining),
        overview=OverviewEndpoint(identifier, node.overview),
        health=HealthEndpoint(node),
        page=PageEndpoint(
            development=settings.development, login_url=settings.login_url, lan=settings.lan == "on"
        ),
        client=ClientEndpoint(),
        docs=DocsEndpoint(encoded_document),
    )


@contextmanager
def _stop_signal() -> Iterator[asyncio.Event]:
    """Set by the first SIGTERM or SIGINT, which then goes on to the handler that the server has set."""
    stopping, loop = asyncio.Event(), asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def handle(number: int, frame: FrameType | None) -> None:
        # It may interrupt any code, so it only asks.
        loop.call_soon_threadsafe(stopping.set)
        server_handler = before[signal.Signals(number)]
        if callable(server_handler):
            server_handler(number, frame)

    if threading.current_thread() is not threading.main_thread():
        before = {}
    for number, server_handler in before.items():
        # Where the server has set none, the signal ends the process by itself.
        if callable(server_handler):
            signal.signal(number, handle)
    try:
        yield stopping
    finally:
        for number, server_handler in before.items():
            if signal.getsignal(number) is handle:
                signal.signal(number, server_handler)
