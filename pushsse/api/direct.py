"""The application: Starlette, and the most frequent calls without its layers.

`app` makes an `Application` with the table of `Direct` calls. Routing and two layers of error handling cost
as much as a small call itself. Errors become responses by the same handlers. A request that isn't exactly one
of these calls goes through Starlette. `respond_later` sends a response that lasts as long as its client after
all layers have returned, since it would keep a dozen of their frames.
"""

import re
from collections.abc import Awaitable, Callable, Collection, Mapping
from ipaddress import ip_address
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pushsse.api import ErrorHandler, problem_response
from pushsse.api.identity import VARY, CrossOrigin
from pushsse.logs import Served, audit, served, serving, short
from pushsse.stream.admission import over_limit
from pushsse.stream.immediate import NO_CALLS, Answer, ImmediateCall, ImmediateCalls
from pushsse.stream.limits import DEFAULT_LIMITS, Limits, is_host

_KEY = "pushsse.direct"
_OUTSIDE = "pushsse.outside"
# It answers for itself, with a 200: a browser's EventSource gives up for good on any other status.
_STREAM = "/v1/stream"
# Characters of X-Forwarded-For that are looked at.
_MOST_FORWARDED = 500
_LINE_END = re.compile("[\r\n]")


class Direct:
    """The frequent calls, by method and path."""

    __slots__ = ("_calls", "_handlers", "_origins")

    def __init__(
        self,
        calls: Mapping[tuple[str, str], ASGIApp],
        *,
        handlers: Mapping[type[Exception], ErrorHandler],
        origins: bool,
    ) -> None:
        """`origins`: whether other sites are let in, whose responses need more headers."""
        self._calls = calls
        self._handlers = handlers
        self._origins = origins

    def find(self, scope: Scope) -> ASGIApp | None:
        """The endpoint of a request; None if it goes the ordinary way."""
        if scope["type"] != "http" or scope.get("root_path"):
            return None
        return self._calls.get((scope["method"], scope["path"]))

    def immediate(self, calls: ImmediateCalls) -> ImmediateCalls:
        """Such calls for the HTTP protocol, which leave out requests that may come from another site."""
        return {place: self._same_site(call) for place, call in calls.items()} if self._origins else calls

    def _same_site(self, call: ImmediateCall) -> ImmediateCall:
        def same_site(request: Request) -> Answer | None:
            return None if "origin" in request.headers else call(request)

        return same_site

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


def is_outside(scope: Scope) -> bool:
    """Whether a request came on the public address, while there is an internal one."""
    return bool(scope.get(_OUTSIDE))


def refuse_outside(scope: Scope) -> None:
    """Raises HTTPException 404, as for a path that isn't there, for such a request."""
    if is_outside(scope):
        raise HTTPException(404)


def inside(endpoint: ASGIApp) -> ASGIApp:
    """An endpoint of the internal address, if there is one."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        refuse_outside(scope)
        await endpoint(scope, receive, send)

    return call


def answered(endpoint: Callable[[Request], Awaitable[Response]]) -> ASGIApp:
    """The ASGI application of an endpoint that returns a response."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        response = await endpoint(Request(scope, receive, send))
        await response(scope, receive, send)

    return call


class Application(Starlette):
    """Starlette, the calls that need none of it, and after both a response left for later."""

    def __init__(
        self,
        *,
        direct: Direct,
        immediate: ImmediateCalls = NO_CALLS,
        limits: Limits = DEFAULT_LIMITS,
        origins: Collection[str] = (),
        internal_port: int | None = None,
        **options: Any,
    ) -> None:
        """The HTTP protocol reads `immediate`, `limits` and `answer_fields`, once for each server.

        `options` are Starlette's.

        `origins` are the other sites whose pages may call. If there is an `internal_port`, internal calls are
        on that alone.
        """
        super().__init__(**options)
        # A redirect would be built from the Host header.
        self.router.redirect_slashes = False
        self._direct = direct
        self.immediate = immediate
        self.limits = limits
        # Of what is answered without ASGI: what `CrossOrigin` says where no other site asks.
        self.answer_fields = b"%b: %b\r\n" % VARY if origins else b""
        self._internal_port = internal_port
        # Around everything, so that a 500 can be read there, too.
        self._outside = CrossOrigin(self._answer, origins) if origins else self._answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http":
            serving(_given_id(scope))
            server = scope.get("server")
            # Of a Unix socket there is no port: that isn't the internal address either.
            scope[_OUTSIDE] = self._internal_port is not None and (
                server is None or server[1] != self._internal_port
            )
        await self._outside(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = _refusal(scope) or self._direct.find(scope)
        if endpoint is not None:
            await self._direct.call(endpoint, scope, receive, send)
        else:
            await super().__call__(scope, receive, send)
        response: Callable[[], Awaitable[None]] | None = scope.pop(_KEY, None)
        if response is not None:
            await response()


async def audited(
    endpoint: ASGIApp, scope: Scope, receive: Receive, send: Send, *, always: bool, polled: bool
) -> None:
    """Calls an endpoint, and logs what an administrator's call came to; of a `polled` one refusals alone.

    Without `always` the call is an administrator's if the endpoint has said whom it is about (`note_about`).
    """
    status: int | None = None

    async def sending(message: Message) -> None:
        nonlocal status
        status = message.get("status", status)
        await send(message)

    try:
        await endpoint(scope, receive, sending)
    except Exception:
        status = 500
        raise
    finally:
        request = served()
        if (always or (request is not None and request.about)) and not (polled and status == 200):
            _audit(scope, request, status)


def _audit(scope: Scope, request: Served | None, status: int | None) -> None:
    """One line: the result, who, from where, which call, about whom."""
    address = scope["client"][0] if scope.get("client") else ""
    about = ", ".join(map(str, scope["path_params"].values())) or (
        request.about if request is not None else ""
    )
    call = f"{scope['method']} {scope['path']}"
    forwarded = _forwarded(scope)
    audit.info(
        "%s for %s from %s%s: %s%s",
        "no answer" if status is None else status,
        (request.user if request is not None else "") or "nobody known",
        address or "an unknown address",
        f" ({short(forwarded)})" if forwarded else "",
        short(call),
        f" about {short(about)}" if about else "",
        extra={"status": status, "address": address, "forwarded": forwarded, "call": call, "about": about},
    )


def _forwarded(scope: Scope) -> str:
    """The addresses in X-Forwarded-For; empty if anything else is in it.

    nginx puts its client's address there, and nothing else. Without a proxy anybody may write it.
    """
    given = Headers(scope=scope).get("x-forwarded-for", "")[:_MOST_FORWARDED]
    try:
        for part in given.split(","):
            ip_address(part.strip())
    except ValueError:
        return ""
    return given


def _given_id(scope: Scope) -> str:
    """The request's X-Request-Id; empty without one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            return str(value, "latin-1")
    return ""


def _refusal(scope: Scope) -> ASGIApp | None:
    """What answers a request that no call may see; None for any other."""
    if scope["type"] != "http":
        return None
    if scope["path"] != _STREAM and (limit := over_limit(scope)):
        return _over(limit)
    hosts = [value for name, value in scope["headers"] if name == b"host"]
    if len(hosts) > 1 or (not hosts and scope.get("http_version") == "1.1"):
        # RFC 9112, 3.2: a proxy may have acted on another one than this node would.
        return problem_response(400, "host_invalid", "a request has exactly one Host header")
    if hosts and not is_host(hosts[0]):
        return problem_response(400, "host_invalid", "the Host header has characters that no host has")
    if _LINE_END.search(scope["path"]):
        # Starlette's patterns end with $, which also matches before a line end.
        return problem_response(404, "not_found", "there is no such path")
    return None


def _over(limit: str) -> ASGIApp:
    """The answer on a connection that is one too many."""
    headers = {"retry-after": "5", "connection": "close"}
    if limit == "connections_per_address":
        return problem_response(429, limit, "your address has too many connections", headers=headers)
    return problem_response(503, "overloaded", "too many connections at a time, try again", headers=headers)


def respond_later(scope: Scope, response: Callable[[], Awaitable[None]]) -> None:
    """Has `response` sent after all layers have returned."""
    scope[_KEY] = response
