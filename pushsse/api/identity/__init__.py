"""Who is asking, what they may do, and from where they ask.

Every endpoint asks an `Identifier` first, and gets a name with its scopes; tokens go no further. `build`
makes it: `Credentials`, which go by what the request carries (`tokens`: a JWT in header or cookie; `remote`:
a session of the company's own), or `DevelopmentIdentifier`, for this machine alone. A new kind of proof is a
`Credential`, put into its place of the order there.

What a browser sends along by itself, a cookie, is good only where a page of this service, or of a named site,
sent the request. Those of named sites may read the answers, too: the application is behind `CrossOrigin`.
"""

import re
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Protocol
from urllib.parse import urlsplit

from msgspec import Struct
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pushsse.api import HttpProblem, after_body, parameters
from pushsse.event import is_user
from pushsse.hub.heartbeat import Renew
from pushsse.logs import served
from pushsse.settings import is_loopback

STREAM, ASK, PREFERENCES, PUBLISH, ANSWER, ADMIN = (
    "stream",
    "ask",
    "preferences",
    "publish",
    "answer",
    "admin",
)
SCOPES = (STREAM, ASK, PREFERENCES, PUBLISH, ANSWER, ADMIN)
EVERY_SCOPE = frozenset(SCOPES)
DEFAULT_SCOPES = frozenset({STREAM, ASK, PREFERENCES})
SCOPE_PREFIX = "pushsse:"
# Enough for a call that everybody may make who is somebody.
ANY = ""

_PROXY_HEADERS = frozenset((b"forwarded", b"x-real-ip", b"via"))
_PROXY_PREFIX = b"x-forwarded-"
_READING = frozenset(("GET", "HEAD"))
_FROM_ELSEWHERE = (b"cross-site", b"same-site")
_USUAL_PORTS = {"http": ":80", "https": ":443"}


class Identity(Struct, frozen=True):
    """A person and what he may do.

    Seconds since 1970: `expires_at`, None for never; `issued_at`, when the proof says that it was made, None
    where it doesn't say. `renew` is for a proof that may go on after `expires_at`: a stream asks then.
    `is_current` says whether the keys are still those that it was checked with; None where none ever change.
    `in_development`: the request has named the person, and proves nothing.
    """

    user: str
    scopes: frozenset[str]
    expires_at: float | None = None
    issued_at: float | None = None
    renew: Renew | None = None
    is_current: Callable[[], bool] | None = None
    in_development: bool = False

    @property
    def has_expired(self) -> bool:
        """Whether the token has ended since it was checked."""
        return self.expires_at is not None and self.expires_at <= time.time()

    def require(self, scope: str) -> None:
        """Raises HttpProblem 403 unless the person may do what needs `scope`; ADMIN is enough for all."""
        if scope not in self.scopes and ADMIN not in self.scopes and scope != ANY:
            named = f"{SCOPE_PREFIX}{scope}"
            challenge = {"www-authenticate": f'Bearer error="insufficient_scope", scope="{named}"'}
            raise HttpProblem(403, "scope_missing", f"this needs the scope {named}", challenge)


def known(who: Identity) -> None:
    """Lines of the log about the request that is served name the person from now on."""
    if (request := served()) is not None:
        request.user = who.user


class Identifier(Protocol):
    """Says who is asking.

    Both methods raise HttpProblem: 401 with a code, or 403; and Unavailable while whoever has to be asked is
    away. Called again for the same request they may have another answer, so a request is identified once.
    """

    def identify_nowait(self, request: HTTPConnection, scope: str) -> Identity | None:
        """The identity behind a request that needs `scope`; None if that has to be waited for.

        None has changed nothing, neither here nor elsewhere: `identify` comes to the answer. For a JWT it is
        None only while its key may have to be fetched, since the HTTP protocol answers such requests without
        a task.
        """
        ...

    async def identify(self, request: HTTPConnection, scope: str) -> Identity:
        """The same, which waits where it has to."""
        ...


# Asks whoever knows: Redis for a ticket, a company's server for a session. Raises as `Identifier` does.
Identifying = Callable[[], Awaitable[Identity]]


class Credential(Protocol):
    """One kind of proof that a request may carry."""

    def look(self, request: HTTPConnection) -> Identity | Identifying | None:
        """Who it proves; what finds that out, if it takes a while; None if the request has no such proof.

        It never waits, and changes nothing: what is used up by being looked at is used up by the
        `Identifying`, which is called once, or not at all. Raises HttpProblem: a proof that is no good isn't
        passed over for another.
        """
        ...


class Credentials:
    """Identifies by the first credential that the request carries, in the order in which they are given.

    That is: Authorization header, ticket, cookie, session. A person's cookie, which goes along by itself, so
    never counts where a page says who is asking.
    """

    def __init__(self, order: Sequence[Credential]) -> None:
        self._order = tuple(order)

    def identify_nowait(self, request: HTTPConnection, scope: str) -> Identity | None:
        """The identity, where nobody has to be asked."""
        found = self._look(request)
        if not isinstance(found, Identity):
            return None
        found.require(scope)
        return found

    async def identify(self, request: HTTPConnection, scope: str) -> Identity:
        """The identity."""
        found = self._look(request)
        who = found if isinstance(found, Identity) else await found()
        known(who)
        who.require(scope)
        if request.scope["method"] != "GET":
            after_body(request.scope, partial(self._again, scope=scope, user=who.user))
        return who

    async def _again(self, request: HTTPConnection, scope: str, user: str) -> None:
        """Raises as `identify`, also where it is somebody else by now."""
        if (await self.identify(request, scope)).user != user:
            raise unauthorized("session_invalid", "the session is somebody else's by now")

    def _look(self, request: HTTPConnection) -> Identity | Identifying:
        for credential in self._order:
            found = credential.look(request)
            if found is not None:
                return found
        # RFC 6750, 3.1: whoever has sent nothing is told nothing of an error.
        raise HttpProblem(401, "token_missing", "there is no token", {"www-authenticate": "Bearer"})


def bearer_token(request: HTTPConnection) -> str | None:
    """The token in the Authorization header (RFC 6750, 2.1), which may be blank.

    None if there is none: another scheme, such as a proxy's Basic, isn't for this service.
    """
    authorization = request.headers.get("authorization")
    if authorization is None:
        return None
    scheme, _, token = authorization.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


# RFC 6750, 3: what an error_description may not have.
_UNQUOTABLE = re.compile(r"[^ !#-\[\]-~]")


def unauthorized(code: str, detail: str) -> HttpProblem:
    """The 401 for a proof that is no good (RFC 6750, 3); `code` says which check failed."""
    description = _UNQUOTABLE.sub("?", detail)
    challenge = f'Bearer error="invalid_token", error_description="{description}"'
    return HttpProblem(401, code, detail, {"www-authenticate": challenge})


# From where they ask


@dataclass(frozen=True, slots=True)
class DevelopmentIdentifier:
    """`?user=NAME`, everything allowed, for a browser or a shell on this machine and nobody else.

    A page of another port of this machine (a development server) may call where `allowed_origins` names it.
    """

    allowed_origins: Collection[str] = ()

    def identify_nowait(self, request: HTTPConnection, scope: str) -> Identity:
        """The name in the query. Raises HttpProblem: 403 for a request from outside, 400 for a bad name."""
        headers = refuse_strangers(request, self.allowed_origins)
        # A page elsewhere can send a GET without an Origin: it reads nothing, but twenty of them end streams.
        if b"origin" not in headers and headers.get(b"sec-fetch-site") in _FROM_ELSEWHERE:
            raise HttpProblem(403, "development_only", "development identity, and another site's page asks")
        user = dict(parameters(request)).get("user", "dev")
        if not is_user(user):
            raise HttpProblem(
                400, "user_invalid", f"user={user!r} isn't 1–128 characters without white space"
            )
        # As if each request made a token: a kick ends the streams, and keeps nobody out.
        return Identity(user, EVERY_SCOPE, issued_at=time.time(), in_development=True)

    async def identify(self, request: HTTPConnection, scope: str) -> Identity:
        """The same."""
        who = self.identify_nowait(request, scope)
        known(who)
        return who


def _may_call(origin: str, host: str, origins: Collection[str]) -> bool:
    """Whether a page may: of the same origin, or a named one on this machine.

    Named or not, never a page from elsewhere: it would be everybody, in the browser of whoever develops.
    """
    place = origin.partition("://")[2]
    return place == host or (origin in origins and _is_here(place.encode("latin-1")))


def refuse_strangers(request: HTTPConnection, origins: Collection[str] = ()) -> Mapping[bytes, bytes]:
    """The headers of a request that came straight from this machine, meant for it. Raises HttpProblem 403."""
    # Of a header that is given twice, the first.
    headers = dict(reversed(request.scope["headers"]))
    for name in headers:
        if name in _PROXY_HEADERS or name.startswith(_PROXY_PREFIX):
            detail = f"development identity, and the request has {name.decode('latin-1')[:80]}"
            raise HttpProblem(403, "development_only", detail)
    host = headers.get(b"host", b"")
    if not _is_here(host):
        raise HttpProblem(403, "development_only", "development identity, and the Host isn't this machine")
    origin = headers.get(b"origin")
    if origin is not None and not _may_call(origin.decode("latin-1"), host.decode("latin-1"), origins):
        raise HttpProblem(403, "development_only", "development identity, and the Origin is another one")
    client = request.scope.get("client")
    if client and not _is_loopback(client[0]):
        raise HttpProblem(403, "development_only", "development identity, and the client is elsewhere")
    return headers


class CrossOrigin:
    """An ASGI application whose responses pages of named origins may read, errors too (WHATWG Fetch, 3.2).

    Nobody else is told anything: not which origins there are, nor what they may send.
    """

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        self._app = app
        self._origins = frozenset(origin.encode() for origin in origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = [value for name, value in scope["headers"] if name == b"origin"]
        if not given or len(given) > 1 or given[0] not in self._origins:
            await self._app(scope, receive, _adding(send, [VARY]))
            return
        allowed = [(b"access-control-allow-origin", given[0]), _CREDENTIALS]
        asked = any(name == b"access-control-request-method" for name, _ in scope["headers"])
        if scope["method"] == "OPTIONS" and asked:
            headers = [*allowed, *_PREFLIGHT, (b"access-control-allow-headers", _sendable(scope))]
            await send({"type": "http.response.start", "status": 204, "headers": headers})
            await send({"type": "http.response.body", "body": b""})
            return
        await self._app(scope, receive, _adding(send, [*allowed, _EXPOSED, VARY]))


VARY = (b"vary", b"Origin")
_EVERYBODY = (b"access-control-allow-origin", b"*")
_CREDENTIALS = (b"access-control-allow-credentials", b"true")
# Without X-Should-Retry, OpenAI's client asks once more after an answer that has failed.
_EXPOSED = (
    b"access-control-expose-headers",
    b"Location, Retry-After, RateLimit, RateLimit-Policy, X-Should-Retry",
)
_PREFLIGHT = (
    (b"access-control-allow-methods", b"GET, HEAD, POST, PUT, DELETE"),
    (b"access-control-max-age", b"7200"),
    (b"vary", b"Origin, Access-Control-Request-Method, Access-Control-Request-Headers"),
)


_SENDABLE = b"Authorization, Content-Type, Last-Event-ID, Idempotency-Key, Cache-Control"
# What OpenAI's client says of itself: x-stainless-arch and others, more with each release.
_OPENAI = re.compile(rb"x-stainless-[a-z-]{1,40}")
_OPENAI_PATHS = ("/v1/chat/completions", "/v1/models")
_MOST_ASKED = 2_000


def _sendable(scope: Scope) -> bytes:
    """The header fields that a page may send; a call of OpenAI's interface may have more."""
    if not scope["path"].endswith(_OPENAI_PATHS):
        return _SENDABLE
    asked = b",".join(v for name, v in scope["headers"] if name == b"access-control-request-headers")
    names = [name.strip() for name in asked[:_MOST_ASKED].lower().split(b",")]
    own = [name for name in names if _OPENAI.fullmatch(name)]
    return b", ".join((_SENDABLE, b"User-Agent, X-Conversation-Id", *own))


def _adding(send: Send, headers: Sequence[tuple[bytes, bytes]]) -> Send:
    """A `send` that puts more headers on the response."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            # A public script lets in everybody already, and a browser takes no second origin beside that.
            own = message["headers"]
            more = headers if _EVERYBODY not in own else [VARY]
            message = {**message, "headers": [*own, *more]}
        await send(message)

    return sending


def refuse_other_sites(request: HTTPConnection, origins: Collection[str]) -> None:
    """Raises HttpProblem 403 where a page of another site may have sent the request, with a person's cookie.

    A call that changes something needs an Origin that fits or, without one, `Sec-Fetch-Site: same-origin`
    (W3C Fetch Metadata), and JSON as its content type, which no form sends. What only reads is refused for
    what is there alone: browsers send no Origin with a GET of the same origin, and WebKit before 16.4 sends
    no Sec-Fetch-Site. A page of a sibling domain is refused, too: its GET without CORS has no Origin, carries
    SameSite=Lax cookies, and twenty of them would end a person's own streams.
    """
    headers = request.headers
    given, site = headers.getlist("origin"), headers.get("sec-fetch-site")
    reads = request.scope["method"] in _READING
    if given:
        host = headers.get("host", "")
        # A page of http://HOST that calls https://HOST is of another site, and the node may not see the TLS.
        same = site in (None, "same-origin")
        fits = all(each in origins or (same and _is_origin_of(each, host)) for each in given)
    else:
        fits = site in (None, "same-origin", "none") if reads else site == "same-origin"
    if not fits:
        detail = "a page of another site can't use the cookie; PUSHSSE_ALLOWED_ORIGINS names those that may"
        raise HttpProblem(403, "origin_refused", detail)
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if not reads and kind != "application/json":
        detail = "with a cookie, a call that changes something needs Content-Type: application/json"
        raise HttpProblem(403, "content_type_refused", detail)


def _is_origin_of(origin: str, host: str) -> bool:
    """Whether a page of this origin is one of the host's own; a proxy may have added the usual port."""
    scheme, _, place = origin.partition("://")
    return scheme in _USUAL_PORTS and place == host.lower().removesuffix(_USUAL_PORTS[scheme])


@lru_cache(maxsize=256)
def _is_here(host: bytes) -> bool:
    """Whether a Host header names this machine."""
    try:
        return is_loopback((urlsplit(f"//{host.decode('latin-1')}").hostname or "").lower())
    except ValueError:
        return False


@lru_cache(maxsize=256)
def _is_loopback(address: str) -> bool:
    return not address or is_loopback(address)
