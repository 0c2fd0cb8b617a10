"""The development identity is for a shell or a browser on this machine: nothing that came through a proxy."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.serving import Running, serving

pytestmark = pytest.mark.anyio
NAMES = ("For", "Host", "Proto", "Port", "Server", "Prefix", "Ssl", "Scheme", "By", "User", "Anything")
HEADERS = [f"X-Forwarded-{name}" for name in NAMES] + ["Forwarded", "X-Real-IP", "Via"]


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Running]:
    async with serving(tmp_path) as running:
        yield running


@pytest.mark.parametrize("header", HEADERS)
async def test_any_header_of_a_proxy_alone_is_enough_to_be_refused(node: Running, header: str) -> None:
    event = {"type": "news", "message": 1, "to": "all"}
    for value in ("", "https", "127.0.0.1"):
        for method, path, body in (
            ("GET", "/v1/stream?user=ann", None),
            ("GET", "/v1/preferences", None),
            ("POST", "/v1/events", event),
        ):
            reply = await node.http.request(method, path, json=body, headers={header: value})
            assert (reply.status_code, reply.json()["code"]) == (403, "development_only")
    assert node.node.metrics.appended == 0
