"""nginx' logs have nothing of a query or a header, whatever it refuses and whatever goes wrong behind it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from deploy.parts.nginx import Nginx
from deploy.parts.ports import free_port
from tests.deployed.conftest import run_nginx

pytestmark = pytest.mark.real
SECRET = "hunter2"


def test_neither_log_of_nginx_has_a_query_a_token_or_a_cookie(tmp_path: Path) -> None:
    for nginx in run_nginx(Nginx(tmp_path / "nginx", [f"127.0.0.1:{free_port()}"])):
        asyncio.run(abuse(nginx))
        said = nginx.log.read_text() + nginx.access_log.read_text()
        assert "/v1/events" in said
        assert SECRET not in said


async def abuse(nginx: Nginx) -> None:
    query = f"ticket={SECRET}&last_event_id={SECRET}"
    headers = {
        "Authorization": f"Bearer {SECRET}",
        "Cookie": f"__Host-pushsse={SECRET}",
        "Referer": f"/?{query}",
    }

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b"x" * 65536

    async with httpx.AsyncClient(base_url=nginx.url, headers=headers, trust_env=False, timeout=30) as http:
        # The nodes are away; bodies are too large, announced or not; heads are too large; paths are bad.
        for path in ("/v1/stream", "/v1/events", "/v1/questions", "/metrics", "/nowhere"):
            await http.get(f"{path}?{query}")
            for body in (b"{}", b"x" * 2_000_000):
                await http.post(f"{path}?{query}", content=body)
            with contextlib.suppress(httpx.HTTPError):
                await http.post(f"{path}?{query}", content=chunks())
        await http.get(f"/v1/stream?{query}", headers={"X": "x" * 40_000})
        await http.get(f"/v1/stream?{query}&x={'x' * 40_000}")
        with contextlib.suppress(httpx.HTTPError):
            await http.get(f"/../../%00?{query}")
    for raw in (f"GET /v1/stream?{query} HTTP/9.9\r\n\r\n", f"GET /v1/stream?{query}\x00 HTTP/1.1\r\n\r\n"):
        reader, writer = await asyncio.open_connection("127.0.0.1", nginx.port)
        writer.write(raw.encode())
        await reader.read()
        writer.close()
