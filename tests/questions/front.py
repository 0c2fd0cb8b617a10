"""Nodes with the calls of front ends, in this process: the text of a question says how it is answered.

`+word` is a piece of the answer, `@name` waits until a test opens that gate, `!text` is a failure, `~text`
a status, `#name` data, and what stands after `||` is how every later attempt answers.
"""

import asyncio
import socket
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from pushsse.api import CallLimit, counted
from pushsse.api.agui import AguiEndpoint
from pushsse.api.calls import CALLS, CallRoute, Endpoints
from pushsse.api.chat import ChatEndpoint
from pushsse.api.completions import CompletionsEndpoint
from pushsse.api.front_ends import FrontEnd
from pushsse.api.identity import CrossOrigin, DevelopmentIdentifier
from pushsse.api.questions import QuestionsEndpoint
from pushsse.api.replies import Replies, StreamedReply
from pushsse.hub import assemble_hub
from pushsse.hub.hub import Hub
from pushsse.hub.opening import StreamLimits
from pushsse.kicks import Kicked
from pushsse.questions import (
    CUT_SHORT,
    Answered,
    By,
    DataPart,
    Link,
    Question,
    SourcePart,
    StatusPart,
    Unanswered,
)
from pushsse.questions.answerers import Delta, Piece
from pushsse.questions.following import Following
from pushsse.questions.service import Desk, Questions
from tests.hub.running_hub import People
from tests.questions.conftest import Nodes, Scripted
from tests.serving import started

PREFIXES = ("/v1/questions", "/v1/chat", "/v1/agui", "/v1/models")
# With this word in the question the answer has all that an answer may have.
RICH = "+rich"
# With this one each piece comes twenty times.
LONG = "+long"
# With this one it came to its model's limit.
SHORT = "+short"


@dataclass
class Gates:
    """What a test opens."""

    open: defaultdict[str, asyncio.Event] = field(default_factory=lambda: defaultdict(asyncio.Event))

    async def script(self, question: Question) -> AsyncGenerator[Piece, None]:
        """Answers as the question says."""
        first, _, later = question.text.partition("||")
        words = (later if later and question.attempt > 1 else first).split()
        for word in words:
            if word.startswith("@"):
                await self.open[word[1:]].wait()
            elif word.startswith("!"):
                yield Unanswered("failed", "answerer_failed", word[1:])
                return
            elif word.startswith("~"):
                yield StatusPart(word[1:])
            elif word.startswith("#"):
                yield DataPart(word[1:], {"number": 7})
            elif word.startswith("+"):
                yield Delta(f"{word[1:]} " * (20 if LONG in words else 1))
        links = suggestions = parts = ()
        if RICH in words:
            links, suggestions = (Link("Refunds", "/refunds"),), ("And then?",)  # type: ignore[assignment]
            parts = (SourcePart("Terms", "https://example.com/terms"),)  # type: ignore[assignment]
        if SHORT in words:
            yield CUT_SHORT
        yield Answered(By("bot", "test"), links=links, suggestions=suggestions, parts=parts, usage=_USAGE)


_USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


@dataclass
class FrontNode:
    """One node, which can be stopped, or lose its connections."""

    url: str
    service: Questions
    replies: Replies
    draining: bool = False
    connections: set[Any] = field(default_factory=set)
    runs: asyncio.Task[None] | None = None

    def cut(self) -> None:
        """Breaks all connections, as a dead machine does."""
        for connection in list(self.connections):
            connection.transport.abort()

    async def give_up(self) -> None:
        """Another node takes its questions over; this one still serves."""
        if self.runs is not None:
            self.runs.cancel()
            await asyncio.gather(self.runs, return_exceptions=True)


@dataclass
class Front:
    """Some nodes on one database and one backplane."""

    gates: Gates
    nodes: list[FrontNode]
    limited: Counter[str]
    refusals: Counter[str]
    http: httpx.AsyncClient
    tasks: asyncio.TaskGroup
    origins: Collection[str] = ()
    # How many came, by method and the last part of the path.
    requests: Counter[str] = field(default_factory=Counter)

    @property
    def url(self) -> str:
        """The first node's."""
        return self.nodes[0].url


@asynccontextmanager
async def fronts(
    nodes: Nodes,
    *,
    count: int = 1,
    quota: int = 0,
    most_open: int = 20,
    origins: Collection[str] = (),
    per_user: int = 0,
    most: int = 0,
    has_answerer: bool = True,
) -> AsyncIterator[Front]:
    """Runs so many nodes; the development identity says who is asking, also for pages of other origins."""
    gates, limited, refusals = Gates(), Counter[str](), Counter[str]()
    limits = StreamLimits("here", 15, 600, 5.0, 0.0)
    parts = assemble_hub(nodes.backplane, People(), limits=limits, metrics=nodes.metrics)
    async with AsyncExitStack() as stack:
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        forever = [
            tasks.create_task(each.run())
            for each in (parts.catch_up, parts.refresh, parts.opener, parts.feed)
        ]
        stack.callback(lambda: [task.cancel() for task in forever])
        stack.callback(lambda: [node.runs.cancel() for node in front.nodes if node.runs is not None])
        client = await stack.enter_async_context(httpx.AsyncClient(timeout=20, trust_env=False, verify=False))
        front = Front(gates, [], limited, refusals, client, tasks, origins)
        for number in range(count):
            service = replace(
                nodes.node(Scripted(gates.script), name=f"node-{number}"),
                most_open=most_open,
                has_answerer=has_answerer,
            )
            replies = Replies(per_user=per_user, most=most, limited=limited)
            node = await _node(front, service, parts.hub, nodes, stack, quota=quota, replies=replies)
            node.runs = tasks.create_task(service.run())
            front.nodes.append(node)
        client.base_url = httpx.URL(front.url)
        yield front


async def _node(
    front: Front,
    service: Questions,
    hub: Hub,
    nodes: Nodes,
    stack: AsyncExitStack,
    *,
    quota: int,
    replies: Replies,
) -> FrontNode:
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    node = FrontNode(url, service, replies)
    identifier = DevelopmentIdentifier(front.origins)
    following = Following(service, hub, node, Kicked())
    limit = CallLimit("questions", quota, "ask", nodes.backplane, front.limited)
    front_end = FrontEnd(identifier, service, following, limit, replies, heartbeat_s=0.6)
    endpoints = SimpleNamespace(
        questions=QuestionsEndpoint(
            identifier, service, StreamedReply(following, replies), limit, limit, Desk(service.life)
        ),
        chat=ChatEndpoint(front_end),
        agui=AguiEndpoint(front_end),
        completions=CompletionsEndpoint(front_end),
    )

    async def command(request: Request) -> Response:
        """What a client of Node.js asks the test for."""
        await _commanded(front, request.path_params["what"], request.path_params["which"])
        return Response(status_code=204)

    routes: list[Route] = [Route("/test/{what}/{which}", command, methods=["POST"])]
    routes += [
        CallRoute(call, call.handler(cast(Endpoints, endpoints)))
        for call in CALLS
        if call.path.startswith(PREFIXES)
    ]
    app = Starlette(routes=routes, exception_handlers=cast(Any, counted(front.refusals)))
    crossing = CrossOrigin(app, front.origins)

    async def counting(scope: Scope, receive: Receive, send: Send) -> None:
        front.requests[f"{scope['method']} {scope['path'].rpartition('/')[2]}"] += 1
        await crossing(scope, receive, send)

    server = uvicorn.Server(uvicorn.Config(counting, log_config=None, lifespan="off"))
    server.capture_signals = nullcontext  # type: ignore[method-assign, assignment]
    await stack.enter_async_context(started(server, listener, partial(setattr, server, "should_exit", True)))
    node.connections = server.server_state.connections
    # Before the server stops, which waits for its streams.
    stack.callback(partial(setattr, node, "draining", True))
    return node


async def _commanded(front: Front, what: str, which: str) -> None:
    if what == "open":
        front.gates.open[which].set()
        return
    node = front.nodes[int(which)]
    if what == "cut":
        # After this response.
        asyncio.get_running_loop().call_later(0.05, node.cut)
    elif what in ("drain", "undrain"):
        node.draining = what == "drain"
    elif what == "give-up":
        await node.give_up()
    elif what == "revive":
        node.runs = front.tasks.create_task(node.service.run())
