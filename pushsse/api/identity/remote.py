"""Other servers that are asked about identity: one that has the keys of tokens, one that knows sessions.

`build` makes them where their URLs are set; their `run` is a service of the node. Deliberate: HTTP without a
client's comforts. No redirect is followed, no cookie is kept (it would be another person's), no proxy is read
from the environment, and nothing is unpacked.
"""

import asyncio
import logging
import random
import time
from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple, Self

import httpcore

from pushsse.api.identity.tokens import Keys
from pushsse.errors import PushsseError, Unavailable
from pushsse.logs import shown
from pushsse.retry import Backoff, Outage

# For one answer, from the connection on.
TIMEOUT_S = 2.0
MOST_BYTES = 256 * 1024
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
            raise RemoteUnavailable(f"{shown(self.url)} didn't answer within {TIMEOUT_S:.0f} s") from None

    async def _get(self, headers: Sequence[tuple[bytes, bytes]]) -> RemoteAnswer:
        given = [(b"Accept", b"application/json"), (b"Accept-Encoding", b"identity"), *headers]
        try:
            try:
                return await self._answer(given)
            except (httpcore.ReadError, httpcore.WriteError, httpcore.RemoteProtocolError):
                # It may have closed an idle connection just then; a GET can be repeated.
                return await self._answer(given)
        except httpcore.LocalProtocolError as error:
            raise BadRequest(str(error)) from None
        except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.RemoteProtocolError) as error:
            text = str(error) or type(error).__name__
            raise RemoteUnavailable(f"{shown(self.url)}: {text}") from None

    async def _answer(self, headers: Sequence[tuple[bytes, bytes]]) -> RemoteAnswer:
        body = bytearray()
        async with self._pool.stream("GET", self.url, headers=list(headers)) as response:
            async for piece in response.aiter_stream():
                body += piece
                if len(body) > MOST_BYTES:
                    raise RemoteUnavailable(f"{shown(self.url)}: the answer has more than {MOST_BYTES} bytes")
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
        self._outage = Outage(f"the keys of {shown(remote.url)}", logger, Backoff(first_s=1.0, most_s=60.0))

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
            raise RemoteUnavailable(f"{shown(self._remote.url)} answers with status {answer.status}")
        try:
            return Keys.parse(answer.body)
        except ValueError as error:
            raise RemoteUnavailable(f"{shown(self._remote.url)}: {error}") from None

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
