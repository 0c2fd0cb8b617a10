"""Clients from npm, as pages use them, against a node that is restarted: everything arrives once."""

import asyncio
import time
from functools import partial
from pathlib import Path

import httpx
import jwt
import pytest

from deploy.parts import PartMissing, Redis
from deploy.parts.ports import take_port
from tests.cli.running import served
from tests.cli.test_serve import SECRET
from tests.deployed import npm
from tests.parts import missing
from tests.waiting import eventually

pytestmark = pytest.mark.real


def token(user: str, scope: str) -> str:
    return jwt.encode({"sub": user, "exp": time.time() + 3600, "scope": f"pushsse:{scope}"}, SECRET, "HS256")


async def publish(url: str, number: int) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        headers = {"authorization": f"Bearer {token('ops', 'publish')}"}
        body = {"type": "number", "message": number, "to": {"users": ["ann"]}}
        (await client.post(f"{url}/v1/events", json=body, headers=headers)).raise_for_status()


class Holder:
    """Keeps the port over restarts."""


def has_more_events(page: npm.Page, count: int) -> bool:
    return page.count("event") > count


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("package", "script"),
    [
        (npm.FETCH_EVENT_SOURCE, "fetch-event-source.mjs"),
        pytest.param(npm.POLYFILL, "polyfill.mjs", marks=pytest.mark.long),
    ],
    ids=["fetch-event-source", "event-source-polyfill"],
)
async def test_everything_arrives_over_clean_ends_and_a_restart(
    tmp_path: Path, redis_part: Redis, package: tuple[str, str], script: str
) -> None:
    try:
        folder = await asyncio.to_thread(npm.package, *package)
    except PartMissing as error:
        missing(error)
    holder = Holder()
    port = str(take_port(holder))
    settings = {
        "PUSHSSE_JWT_SECRET": SECRET,
        "PUSHSSE_REDIS_URL": redis_part.url,
        "PUSHSSE_REDIS_PREFIX": f"npm-{port}:",
        "PUSHSSE_STREAM_LIFETIME_S": "2",
    }
    url = f"http://127.0.0.1:{port}"
    # The first connection may come after the first events; later ones have a place, which outweighs `since`.
    address = f"{url}/v1/stream?named=0&since=1h"
    sent = 0
    async with npm.page(folder, address, token("ann", "stream"), script) as page:
        for _ in range(2):
            # Ended by SIGTERM, which ends streams cleanly; then it starts anew.
            with served(tmp_path, "--port", port, **settings):
                for _ in range(20):
                    await publish(url, sent)
                    sent += 1
                    await asyncio.sleep(0.15)  # Over more than one stream's lifetime.
        with served(tmp_path, "--port", port, **settings):
            await publish(url, sent)
            # Both wait longer after each failure.
            await eventually(partial(has_more_events, page, sent), 60)
    assert [data["message"] for name, data in page.told if name == "event"] == list(range(sent + 1))
    assert page.count("gap") == page.count("end") == 0
