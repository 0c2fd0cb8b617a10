"""Responses that last as long as a client stays: sent when the framework's layers have returned.

A stream that isn't handed over would else keep the frames of a dozen of them, for routes, errors and sites
that are let in. Used by the stream endpoint; `app` makes such an Application.
"""

from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.types import Receive, Scope, Send

from pushsse.api.direct import Direct

_KEY = "pushsse.lasting"


class Application(Starlette):
    """Starlette, the calls that need none of it, and after both what an endpoint has left for later."""

    direct: Direct | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        direct = self.direct
        if direct is not None and (endpoint := direct.find(scope)) is not None:
            await direct.call(endpoint, scope, receive, send)
        else:
            await super().__call__(scope, receive, send)
        response: Callable[[], Awaitable[None]] | None = scope.pop(_KEY, None)
        if response is not None:
            await response()


def leave(scope: Scope, response: Callable[[], Awaitable[None]]) -> None:
    """Leaves the response to a request for later."""
    scope[_KEY] = response
