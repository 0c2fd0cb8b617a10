"""`/livez`, `/readyz`, `/metrics`: for balancers, orchestrators and Prometheus.

Deliberate: a node isn't ready only while it starts, while it drains, or for a fault of its own. A shared
dependency that is away makes no node unready: all of them would leave together.
"""

from dataclasses import dataclass
from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response

from pushsse.api import json_response
from pushsse.stream.immediate import ANSWER_HEADERS


class Health(Protocol):
    """What a node says about itself."""

    def unready(self) -> str:
        """Why it takes no streams; empty when it does."""
        ...

    def available(self) -> dict[str, bool]:
        """Which of its parts answered a moment ago."""
        ...

    async def exposition(self) -> bytes:
        """Its metrics, or those of all workers, in Prometheus' text format 0.0.4.

        Raises Unavailable where those of the other workers can't be had.
        """
        ...


@dataclass(frozen=True, slots=True)
class HealthEndpoint:
    """The calls about the node itself."""

    node: Health

    async def live(self, _: Request) -> Response:
        """The event loop runs."""
        return json_response({"status": "alive"})

    async def ready(self, _: Request) -> Response:
        """Whether to send streams here. The parts are there for people to read; they don't decide."""
        reason = self.node.unready()
        body = {"status": reason or "ready", "parts": self.node.available()}
        return json_response(body, 503 if reason else 200)

    async def metrics(self, _: Request) -> Response:
        """The metrics of this process, or of all workers, never a part: counters don't go back."""
        kind = "text/plain; version=0.0.4; charset=utf-8"
        return Response(await self.node.exposition(), headers=ANSWER_HEADERS, media_type=kind)
