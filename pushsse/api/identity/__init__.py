"""Who is asking, and what they may do.

Every endpoint asks an `Identifier` first, and gets a name with its scopes; tokens go no further. `build`
makes it: `Credentials`, which go by what the request carries (`tokens`: a JWT in header or cookie; `remote`:
a session of the company's own), or the development identity (`origins`). A new kind of proof is a
`Credential`, put into its place of the order there.
"""

import re
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Protocol

from msgspec import Struct
from starlette.requests import HTTPConnection

from pushsse.api import HttpProblem, after_body
from pushsse.hub.heartbeat import Renew
from pushsse.logs import served

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


class Identity(Struct, frozen=True):
    """A person and what he may do.

    Seconds since 1970: `expires_at`, None for never; `issued_at`, when the proof says that it was made, None
    where it doesn't say. `renew` is for a proof that may go on after `expires_at`: a stream asks then.
    `is_current` says whether the keys are still those that it was checked with; None where none ever change.
    """

    user: str
    scopes: frozenset[str]
    expires_at: float | None = None
    issued_at: float | None = None
    renew: Renew | None = None
    is_current: Callable[[], bool] | None = None

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
Asking = Callable[[], Awaitable[Identity]]


class Credential(Protocol):
    """One kind of proof that a request may carry."""

    def look(self, request: HTTPConnection) -> Identity | Asking | None:
        """Who it proves; what finds that out, if it takes a while; None if the request has no such proof.

        It never waits, and changes nothing: what is used up by being looked at is used up by the `Asking`,
        which is called once, or not at all. Raises HttpProblem: a proof that is no good isn't passed over for
        another.
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
        after_body(request.scope, partial(self._again, request, scope, who.user))
        return who

    async def _again(self, request: HTTPConnection, scope: str, user: str) -> None:
        """Raises as `identify`, also where it is somebody else by now."""
        if (await self.identify(request, scope)).user != user:
            raise unauthorized("session_invalid", "the session is somebody else's by now")

    def _look(self, request: HTTPConnection) -> Identity | Asking:
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
