"""`GET /v1/me` says who is asking; `POST /v1/users/USER/kick` takes somebody's access away."""

import time
from dataclasses import dataclass

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from pushsse.api import HttpProblem, json_response
from pushsse.api.identity import ADMIN, ANY, SCOPE_PREFIX, SCOPES, Identifier
from pushsse.event import is_user
from pushsse.kicks import Kicks, TooManyKicks


class KickView(Struct, frozen=True):
    """A kick: its time (seconds since 1970), and within how many seconds all nodes have acted on it."""

    user: str
    kicked_at: int
    within_s: int


class Me(Struct, frozen=True):
    """Who is asking: his scopes, with blanks between them, and for how many seconds his token is good."""

    user: str
    scope: str
    expires_in_s: int | None


@dataclass(frozen=True, slots=True)
class AccessEndpoint:
    """Access to streams: who has it, and taking it away."""

    identifier: Identifier
    kicks: Kicks

    async def me(self, request: Request) -> Response:
        """Who is asking."""
        who = await self.identifier.identify(request, ANY)
        scope = " ".join(SCOPE_PREFIX + each for each in SCOPES if each in who.scopes)
        left_s = None if who.expires_at is None else max(0, int(who.expires_at - time.time()))
        return json_response(Me(who.user, scope, left_s))

    async def kick(self, request: Request) -> Response:
        """Ends a person's streams on all nodes, and revokes the tokens that were issued so far."""
        await self.identifier.identify(request, ADMIN)
        user = request.path_params["user"]
        if not is_user(user):
            raise HttpProblem(400, "user_invalid", "a name is 1–128 characters without white space")
        try:
            kicked = await self.kicks.kick(user)
        except TooManyKicks as error:
            raise HttpProblem(409, "too_many_kicks", str(error)) from None
        return json_response(KickView(user, kicked.at, kicked.within_s))
