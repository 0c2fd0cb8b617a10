"""Beside clients that mean harm others are served, and nothing of them is left."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import jwt
import pytest
from httpx_sse import ServerSentEvent

from bench.attacks import ATTACKS, attack
from deploy.parts.nginx import Nginx
from deploy.parts.part import descendants
from tests.cli.running import served
from tests.deployed.conftest import run_nginx
from tests.deployed.listener import events
from tests.waiting import until

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="files are counted in /proc"),
]
SECRET = "a secret of thirty-two bytes and more"
NOW = time.time()
TOKEN = jwt.encode({"sub": "ann", "iat": NOW, "exp": NOW + 3600, "scope": "pushsse:admin"}, SECRET)


@pytest.mark.parametrize("through", ["node", "nginx"])
def test_others_are_served_beside_every_attack_and_no_file_is_left(tmp_path: Path, through: str) -> None:
    with served(tmp_path, PUSHSSE_JWT_SECRET=SECRET) as node:
        port = int(node.url.rsplit(":", 1)[1])
        pids = [node.process.pid]
        if through == "node":
            beside_each(port, pids, kept=20)
            return
        for nginx in run_nginx(Nginx(tmp_path / "nginx", [f"127.0.0.1:{port}"])):
            # Each of its workers keeps up to 64 connections to the node for a minute; both ends are counted.
            workers = descendants(nginx.pid)
            beside_each(nginx.port, [*pids, nginx.pid, *workers], kept=20 + 2 * 64 * len(workers))


def beside_each(port: int, pids: list[int], *, kept: int) -> None:
    before = sum(map(files, pids))
    for kind in ATTACKS:
        with attack(port, kind):
            asyncio.run(one_is_served(f"http://127.0.0.1:{port}"))
        until(lambda: sum(map(files, pids)) < before + kept, f"the files of {kind} are closed")


def files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


async def one_is_served(url: str) -> None:
    """A stream opens and gets what is published; ordinary calls are answered."""
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, trust_env=False, timeout=30) as http:
        async with http.stream("GET", "/v1/stream") as response:
            told = events(response)
            assert await first(told) == "ready"
            for number in range(5):
                event = {"type": "news", "message": number, "to": {"users": ["ann"]}}
                assert (await http.post("/v1/events", json=event)).status_code == 202
                assert await first(told) == "news"
        for path in ("/v1/preferences", "/v1/questions", "/v1/me"):
            assert (await http.get(path)).status_code == 200


async def first(told: AsyncIterator[ServerSentEvent]) -> str:
    async with asyncio.timeout(30):
        return (await anext(told)).event
