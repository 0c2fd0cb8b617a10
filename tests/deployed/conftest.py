"""nginx with the file that is deployed, before two tiny upstreams."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import jwt
import pytest

from deploy.parts import Nginx, PartMissing
from deploy.whole import Stack
from tests.deployed.upstream import Upstream
from tests.parts import missing

LIMIT_S = 30.0


@dataclass
class Front:
    """nginx and what is behind it; `http` and `tls` are clients, `tls` speaks HTTP/2."""

    nginx: Nginx
    first: Upstream
    second: Upstream
    http: httpx.AsyncClient
    tls: httpx.AsyncClient

    @property
    def requests(self) -> int:
        """How many reached any of the two."""
        return len(self.first.requests) + len(self.second.requests)


def token(stack: Stack, user: str, *scopes: str) -> str:
    """What `stack.token` returns, without a process; without scopes, for streams."""
    now = int(time.time())
    scope = " ".join(f"pushsse:{each}" for each in scopes or ("stream",))
    claims = {"sub": user, "iat": now, "exp": now + 3600, "scope": scope}
    return jwt.encode(claims, stack.settings["PUSHSSE_JWT_SECRET"])


def trusting(authority: Path) -> ssl.SSLContext:
    """What a client needs to believe nginx."""
    return ssl.create_default_context(cafile=str(authority))


@asynccontextmanager
async def deployed(folder: Path, **settings: str) -> AsyncIterator[Stack]:
    """A whole deployment, while the context lasts; `settings` are the nodes'."""
    stack = Stack(folder, settings=settings)
    try:
        await asyncio.to_thread(stack.start)
        yield stack
    except PartMissing as error:
        missing(error)
    finally:
        await asyncio.to_thread(stack.stop)


@asynccontextmanager
async def clients(stack: Stack) -> AsyncIterator[tuple[httpx.AsyncClient, httpx.AsyncClient]]:
    """Two of a whole deployment: one over HTTP/1.1, one over HTTP/2 with TLS."""
    trust = trusting(stack.authority)
    timeout = httpx.Timeout(10, read=60)
    async with (
        httpx.AsyncClient(base_url=stack.nginx.url, timeout=timeout, trust_env=False) as http,
        httpx.AsyncClient(
            base_url=stack.nginx.tls_url, timeout=timeout, trust_env=False, verify=trust, http2=True
        ) as tls,
    ):
        yield http, tls


def run_nginx(nginx: Nginx) -> Iterator[Nginx]:
    """Runs it; a machine without nginx is told of."""
    try:
        nginx.start()
    except PartMissing as error:
        missing(error)
    try:
        yield nginx
    finally:
        nginx.remove()


@pytest.fixture
async def front(anyio_backend: str, tmp_path: Path) -> AsyncIterator[Front]:
    """A fresh nginx: which upstream counts as down is remembered by nobody."""
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(Upstream().serving())
        second = await stack.enter_async_context(Upstream().serving())
        servers = [f"127.0.0.1:{upstream.port}" for upstream in (first, second)]
        for nginx in run_nginx(Nginx(tmp_path / "nginx", servers)):
            http = httpx.AsyncClient(base_url=nginx.url, timeout=LIMIT_S, trust_env=False)
            trust = trusting(nginx.certificate.authority)
            tls = httpx.AsyncClient(
                base_url=nginx.tls_url, timeout=LIMIT_S, trust_env=False, verify=trust, http2=True
            )
            await stack.enter_async_context(http)
            await stack.enter_async_context(tls)
            yield Front(nginx, first, second, http, tls)
