"""`/livez`, `/readyz`, `/metrics`. Wired by `app`.

Deliberate: not ready only while starting, draining, or for a fault of this node's own; a shared dependency
that is away would take all nodes out at once.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from pushsse.api.problem import json_response


@dataclass(frozen=True, slots=True)
class HealthEndpoint:
    """For balancers, orchestrators and Prometheus."""

    unready: Callable[[], str]
    parts: Callable[[], dict[str, bool]]
    exposition: Callable[[], Awaitable[bytes]]

    async def live(self, _: Request) -> Response:
        """The process turns its loop."""
        return json_response({"status": "alive"})

    async def ready(self, _: Request) -> Response:
        """Whether to send streams here; the parts are told for people, they don't decide."""
        reason = self.unready()
        body = {"status": reason or "ready", "parts": self.parts()}
        return json_response(body, 503 if reason else 200)

    async def metrics(self, _: Request) -> Response:
        """All counters, in Prometheus' text format."""
        return Response(await self.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")
