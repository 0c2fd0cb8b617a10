"""The calls that come by the thousand, taken straight to their endpoints, without the framework's layers.

Used by the Application of `lasting`. Routing and two layers of error handling cost as much as a small call
itself. Nothing is lost by it: errors become responses through the same handlers, and what isn't exactly one
of these calls, or comes from a page of another site, goes the ordinary way.
"""

from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

Handler = Callable[[Request, Exception], Awaitable[Response]]


class Direct:
    """Calls by method and path."""

    __slots__ = ("_calls", "_handlers", "_origins")

    def __init__(
        self,
        calls: Mapping[tuple[str, str], ASGIApp],
        *,
        handlers: Mapping[type[Exception], Handler],
        origins: bool,
    ) -> None:
        """`origins`: whether other sites are let in, by a middleware that has to see their requests."""
        self._calls = calls
        self._handlers = handlers
        self._origins = origins

    def find(self, scope: Scope) -> ASGIApp | None:
        """The endpoint of a request; None if it goes the ordinary way."""
        if scope["type"] != "http" or scope.get("root_path"):
            return None
        found = self._calls.get((scope["method"], scope["path"]))
        if found is not None and self._origins and any(name == b"origin" for name, _ in scope["headers"]):
            return None
        return found

    async def call(self, endpoint: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Calls an endpoint. An error becomes a response, as Starlette's two layers for errors do it."""
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await endpoint(scope, receive, sending)
        except Exception as error:
            if started:
                raise
            kind = next(kind for kind in type(error).__mro__ if kind in self._handlers)
            response = await self._handlers[kind](Request(scope), error)
            await response(scope, receive, send)
            if kind is Exception:
                # A bug: the server logs it.
                raise


def answered(endpoint: Callable[[Request], Awaitable[Response]]) -> ASGIApp:
    """The ASGI application of an endpoint that returns a response."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        response = await endpoint(Request(scope, receive, send))
        await response(scope, receive, send)

    return call
