"""Other servers that are asked about identity: one that has the keys of tokens, one that knows sessions.

`build` makes them where their URLs are set; their `run` is a service of the node. Deliberate: HTTP without a
client's comforts. No redirect is followed, no cookie is kept (it would be another person's), no proxy is read
from the environment, and nothing is unpacked.
"""

import asyncio
import logging
import math
import random
import time
from collections import OrderedDict
from collections.abc import Collection, Sequence
from functools import partial
from hashlib import sha256
from http import HTTPStatus
from types import TracebackType
from typing import NamedTuple, Self

import httpcore
import msgspec
from msgspec.structs import replace
from starlette.requests import HTTPConnection

from pushsse.api import HttpProblem
from pushsse.api.identity import STREAM, Identifying, Identity, refuse_other_sites, unauthorized
from pushsse.api.identity.tokens import Keys, scopes_of
from pushsse.errors import PushsseError, Unavailable
from pushsse.event import is_user
from pushsse.hub.people import Revocations
from pushsse.logs import safe_url
from pushsse.retry import Backoff, Outage

# For one answer, from the connection on.
TIMEOUT_S = 2.0
MOST_BYTES = 128 * 1024
logger = logging.getLogger(__name__)


class RemoteUnavailable(Unavailable):
    """A server that is asked about identity didn't answer in time, or not as it should."""


class BadRequest(PushsseError):
    """What a client sent can't be passed on in a request."""


class RemoteAnswer(NamedTuple):
    """A response: its status and body."""

    status: int
    body: bytes


class Remote:
    """One URL of another server. Connections are open from the first request until the context ends."""

    def __init__(self, url: str, *, at_once: int) -> None:
        """`at_once`: how many requests there are at a time."""
        self.url = url
        # The authorities of the system or of SSL_CERT_FILE, and those that httpcore brings.
        context = httpcore.default_ssl_context() if url.lower().startswith("https:") else None
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=context,
            max_connections=at_once,
            max_keepalive_connections=at_once,
            keepalive_expiry=30.0,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._pool.aclose()

    async def get(self, headers: Sequence[tuple[bytes, bytes]] = ()) -> RemoteAnswer:
        """Its answer. Raises RemoteUnavailable: none within TIMEOUT_S, or too large; BadRequest."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                return await self._get(headers)
        except TimeoutError:
            raise RemoteUnavailable(f"{safe_url(self.url)} didn't answer within {TIMEOUT_S:.0f} s") from None

    async def _get(self, headers: Sequence[tuple[bytes, bytes]]) -> RemoteAnswer:
        given = [(b"Accept", b"application/json"), (b"Accept-Encoding", b"identity"), *headers]
        try:
            try:
                return await self._answer(given)
            except (httpcore.ReadError, httpcore.WriteError, httpcore.RemoteProtocolError):
                # It may have closed an idle connection just then; a GET can be repeated.
                return await self._answer(given)
        except httpcore.LocalProtocolError:
            # Its text has the header in it.
            raise BadRequest("a header can't be sent as it is") from None
        except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.RemoteProtocolError) as error:
            text = str(error) or type(error).__name__
            raise RemoteUnavailable(f"{safe_url(self.url)}: {text}") from None

    async def _answer(self, headers: Sequence[tuple[bytes, bytes]]) -> RemoteAnswer:
        body = bytearray()
        async with self._pool.stream("GET", self.url, headers=list(headers)) as response:
            async for piece in response.aiter_stream():
                body += piece
                if len(body) > MOST_BYTES:
                    raise RemoteUnavailable(
                        f"{safe_url(self.url)}: the answer has more than {MOST_BYTES} bytes"
                    )
            return RemoteAnswer(response.status, bytes(body))


# How often keys are fetched, and after what time once more if a token names another one.
REFRESH_S = 300.0
PACE_S = 10.0


class KeyServer:
    """The keys of PUSHSSE_JWKS_URL, fetched again and again; the last ones stay while it is away.

    A service. `Tokens` asks for `keys`, and has them fetched at once where a token names an unknown one.
    """

    def __init__(self, remote: Remote, *, refresh_s: float = REFRESH_S, pace_s: float = PACE_S) -> None:
        self.keys: Keys | None = None
        self._remote = remote
        self._refresh_s = refresh_s
        self._pace_s = pace_s
        self._began: float | None = None
        self._fetching: asyncio.Future[None] | None = None
        self._wanted = asyncio.Event()
        # A server that is away is asked every 30 to 60 s, and at once when somebody waits for a key.
        self._outage = Outage(
            f"the keys of {safe_url(remote.url)}", logger, Backoff(first_s=1.0, most_s=60.0)
        )

    @property
    def available(self) -> bool:
        """Whether the last fetch worked."""
        return self.keys is not None and self._outage.since is None

    @property
    def may_fetch(self) -> bool:
        """Whether a fetch runs, or may begin, now: there is one every PACE_S at most."""
        return self._fetching is not None or self._waits_s() == 0.0

    async def fetched(self) -> None:
        """Waits until the next fetch has ended, well or not; at once where none may begin now."""
        if not self.may_fetch:
            return
        if self._fetching is None:
            self._wanted.set()
            self._fetching = asyncio.get_running_loop().create_future()
        await asyncio.wait((self._fetching,), timeout=2 * TIMEOUT_S)

    async def run(self) -> None:
        """Keeps the keys up to date, for ever."""
        async with self._remote:
            while True:
                self._wanted.clear()
                next_s = await self._refresh()
                try:
                    async with asyncio.timeout(next_s):
                        await self._wanted.wait()
                except TimeoutError:
                    continue

    async def fetch(self) -> Keys:
        """The keys as they are now. Raises RemoteUnavailable."""
        answer = await self._remote.get()
        if answer.status != 200:
            raise RemoteUnavailable(f"{safe_url(self._remote.url)} answers with status {answer.status}")
        try:
            return Keys.parse(answer.body)
        except ValueError as error:
            raise RemoteUnavailable(f"{safe_url(self._remote.url)}: {error}") from None

    async def _refresh(self) -> float:
        """Fetches the keys; returns the seconds until the next time."""
        self._began = time.monotonic()
        if self._fetching is None:
            self._fetching = asyncio.get_running_loop().create_future()
        try:
            found = await self.fetch()
        except RemoteUnavailable as error:
            return self._outage.failed(error)
        else:
            self._outage.over()
            if self.keys is None or found.body != self.keys.body:
                logger.info("keys of tokens: %s", found)
                self.keys = found
            return self._refresh_s * random.uniform(0.9, 1.1)
        finally:
            fetching, self._fetching = self._fetching, None
            if not fetching.done():
                fetching.set_result(None)

    def _waits_s(self) -> float:
        """Seconds until the next fetch may begin."""
        return 0.0 if self._began is None else max(0.0, self._began + self._pace_s - time.monotonic())


# Questions about sessions at a time, of a node; and for how long one waits for its turn.
SESSIONS_AT_ONCE = 32
PATIENCE_S = 3.0
KEPT_S = 30.0
MOST_KEPT = 10_000
_LONGEST_S = 366 * 86_400.0
# A server that answers some questions and fails at others isn't back until it hasn't failed for so long.
_CALM_S = 5.0
# Beside 401, what a server may say of cookies that are odd or too large: it isn't away because of them.
_NOBODY = frozenset(
    {
        HTTPStatus.UNAUTHORIZED,
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.FORBIDDEN,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    }
)


class SessionAnswer(msgspec.Struct, frozen=True):
    """What the server of sessions says of a request's cookies."""

    user: str
    expires_in_s: float
    scope: str | list[str] | None = None


class Sessions:
    """The credential of a company's own session: the server at PUSHSSE_AUTH_URL says whose the cookies are.

    An answer is kept for KEPT_S, and never past the session's end; after a kick it is asked for anew. There
    is one question at a time for the same cookies. Pages of other sites can't use them, unless named.
    """

    def __init__(
        self, remote: Remote, revocations: Revocations, *, allowed_origins: Collection[str] = ()
    ) -> None:
        self._remote = remote
        self._revocations = revocations
        self._allowed_origins = allowed_origins
        self._room = asyncio.Semaphore(SESSIONS_AT_ONCE)
        # By the cookies' SHA-256, the one used last at the end.
        self._kept: OrderedDict[bytes, Identity] = OrderedDict()
        self._under_way: dict[bytes, asyncio.Future[Identity | str | None]] = {}
        self._failed_at = -math.inf
        self._outage = Outage(f"sessions at {safe_url(remote.url)}", logger, Backoff())

    @property
    def available(self) -> bool:
        """Whether the last question was answered."""
        return self._outage.since is None

    def look(self, request: HTTPConnection) -> Identifying | None:
        """Asks whose the request's cookies are."""
        cookies = [value for name, value in request.scope["headers"] if name == b"cookie"]
        if not any(cookies):
            return None
        refuse_other_sites(request, self._allowed_origins)
        return partial(self.identity, b"; ".join(cookies))

    async def identity(self, cookies: bytes) -> Identity:
        """Whose they are. Raises HttpProblem 401, RemoteUnavailable."""
        key = sha256(cookies).digest()
        who = self._remembered(key) or await self._ask_once(key, cookies)
        if self._is_revoked(who):
            # Kicked within the second in which it was asked: asked after that second, it counts.
            await asyncio.sleep(1.0 - time.time() % 1.0)
            who = await self._ask_once(key, cookies)
            if self._is_revoked(who):
                raise RemoteUnavailable("this person was kicked a moment ago")
        return replace(who, renew=partial(self._renew, cookies, who.user))

    async def run(self) -> None:
        """Keeps the connections to the server, for ever."""
        async with self._remote:
            await asyncio.Event().wait()

    async def _renew(self, cookies: bytes, user: str) -> float | None:
        """Until when a session goes on (seconds since 1970), None if it doesn't. Raises RemoteUnavailable."""
        try:
            # What was kept has ended by now.
            who = await self.identity(cookies)
            who.require(STREAM)
        except HttpProblem:
            return None
        # Somebody else may have logged in.
        return who.expires_at if who.user == user else None

    def _is_revoked(self, who: Identity) -> bool:
        return self._revocations.refuses(who.user, who.issued_at)

    def _remembered(self, key: bytes) -> Identity | None:
        who = self._kept.get(key)
        if who is None:
            return None
        assert who.issued_at is not None
        # A clock that was put back makes no answer younger.
        if who.has_expired or not 0 <= time.time() - who.issued_at < KEPT_S or self._is_revoked(who):
            del self._kept[key]
            return None
        self._kept.move_to_end(key)
        return who

    async def _ask_once(self, key: bytes, cookies: bytes) -> Identity:
        """Asks, or waits for the answer to the same question."""
        while (under_way := self._under_way.get(key)) is not None:
            await asyncio.wait((under_way,))
            if not under_way.cancelled():
                return _found(under_way.result())
            # Whoever had asked has gone.
        answer = self._under_way[key] = asyncio.get_running_loop().create_future()
        try:
            found = await self._ask(cookies)
            answer.set_result(found)
        finally:
            del self._under_way[key]
            answer.cancel()
        if isinstance(found, Identity):
            self._kept[key] = found
            self._kept.move_to_end(key)
            if len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)
        return _found(found)

    async def _ask(self, cookies: bytes) -> Identity | str | None:
        """Who it is; None if nobody; why it isn't known."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self._room.acquire()
        except TimeoutError:
            return "too many questions about sessions wait for an answer"
        try:
            # As long as its session may be, from before the question on.
            asked_at = time.time()
            answer = await self._remote.get([(b"Cookie", cookies)])
            found = self._read(answer, asked_at)
        except BadRequest:
            return None
        except RemoteUnavailable as error:
            self._outage.failed(error)
            self._failed_at = time.monotonic()
            return str(error)
        finally:
            self._room.release()
        if time.monotonic() - self._failed_at > _CALM_S:
            self._outage.over()
        return found

    def _read(self, answer: RemoteAnswer, asked_at: float) -> Identity | None:
        if answer.status in _NOBODY:
            return None
        if answer.status != HTTPStatus.OK:
            raise RemoteUnavailable(f"{safe_url(self._remote.url)} answers with status {answer.status}")
        try:
            said = msgspec.json.decode(answer.body, type=SessionAnswer)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            said = None
        if said is None or not is_user(said.user):
            raise RemoteUnavailable(
                f"{safe_url(self._remote.url)} answers with something else than a user and expires_in_s"
            )
        if said.expires_in_s <= 0:
            return None
        expires_at = asked_at + min(said.expires_in_s, _LONGEST_S)
        return Identity(said.user, scopes_of({"scope": said.scope}), expires_at, asked_at)


def _found(found: Identity | str | None) -> Identity:
    """Raises what each waiting request is answered with, each its own."""
    if isinstance(found, Identity):
        return found
    if found is None:
        raise unauthorized("session_invalid", "the session has ended, or there is none")
    raise RemoteUnavailable(found)
