"""After all calls, right and wrong, no log of any part has a token, a ticket, a cookie, a query or a payload.

And no line of theirs is one that somebody else wrote. Parts fail meanwhile, since errors are what is logged.
"""

import asyncio
import json
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import httpx
import jwt
import pytest

from deploy.parts import Nginx, Node, Postgres
from pushsse.api.document import document
from tests.backplane.redis_server import RedisServer
from tests.cli.running import pushsse
from tests.deployed.conftest import run_nginx
from tests.parts import running

pytestmark = [pytest.mark.real, pytest.mark.slow]
T = TypeVar("T")
KEY = secrets.token_hex(32)
# In whatever nobody may read in a log.
MARK = "zq" + secrets.token_hex(6)
FORGED = "2026-11-27 07:00:00,000 ERROR   pushsse.node: forged"
LINE = f"{MARK}\n{FORGED}\r\n{FORGED}"
ENTRY = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ +[\w.]+: |  \S| +\S")


def token(**claims: object) -> str:
    now = time.time()
    return jwt.encode({"sub": "ann", "iat": now, "exp": now + 600, "scope": "pushsse:admin"} | claims, KEY)


def fields() -> list[dict[str, str]]:
    """Header fields: somebody with a token, with a cookie, with wrong ones, with nothing; all with marks."""
    marked = {
        "Referer": f"/?{MARK}",
        "User-Agent": MARK,
        "Last-Event-ID": MARK,
        "Idempotency-Key": MARK,
        "X-Forwarded-For": MARK,
        "X-Request-Id": f"{MARK}!",
        "Accept-Language": MARK,
        "Cookie": f"session={MARK}",
    }
    good = {"Authorization": f"Bearer {token(note=MARK)}"}
    return [
        good,
        good | marked,
        {"Cookie": f"__Host-pushsse={token(note=MARK)}; other={MARK}"},
        {"Authorization": f"Bearer {MARK}"},
        {"Authorization": f"Basic {MARK}"},
        {"Authorization": f"Bearer {token(exp=1, note=MARK)}"},
        {"Authorization": f"Bearer {token(sub=LINE)}"},
        {"Cookie": f"__Host-pushsse={MARK}"},
        marked,
        good | {"Origin": f"https://{MARK}.example"},
        good | {"Content-Encoding": MARK},
        good | {"Content-Type": MARK},
    ]


def bodies(path: str) -> list[bytes]:
    """What a call may be given: right, with marks wherever a text may be, and wrong."""
    message = {"text": LINE, MARK: [MARK]}
    right: dict[str, dict[str, Any]] = {
        "/v1/events": {
            "type": "news",
            "message": message,
            "desc": LINE,
            "campaign": LINE,
            "key": LINE,
            "to": "all",
        },
        "/v1/questions": {"text": LINE, "context": message},
        "/v1/preferences": {"types": {"news": True}},
    }
    given = right.get(path, {})
    wrong = [
        given | {MARK: 1},
        given | {"to": MARK},
        given | {"text": [MARK]},
        given | {"types": {MARK: LINE}},
    ]
    found = [json.dumps(each).encode() for each in (given, given, *wrong)]
    return [*found, found[0][:-1], LINE.encode(), f'"{MARK}\\ud800"'.encode(), b"\xff" + MARK.encode()]


QUERIES: tuple[dict[str, str], ...] = (
    {},
    {"ticket": MARK},
    {"types": MARK, "since": "1h", "last_event_id": MARK, "after": MARK},
    {"since": MARK},
    {"limit": LINE, "before": LINE},
    {"named": MARK, "types": LINE},
    {"type": MARK, "to": LINE},
    {"user": MARK},
)


def some(every: Sequence[T], turn: int, most: int | None) -> Sequence[T]:
    """So many of them, the next ones at each turn; all of them without a limit."""
    if most is None:
        return every
    return [every[(turn * most + number) % len(every)] for number in range(most)]


async def abuse(url: str, most: int | None) -> None:
    """Every call, with every field, query and body; not all of them together.

    With a limit a call gets so many of each, and a stream and an event get all.
    """
    turn = 0
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=30) as http:
        for path, calls in document()["paths"].items():
            place = path.replace("{id}", "0" * 26).replace("{user}", "bo").replace("{event}", "e1")
            limit = None if path in ("/v1/stream", "/v1/events") else most
            for method in (*calls, *(("put", "options") if path == "/v1/stream" else ())):
                if method == "delete" or path.endswith("kick"):
                    continue
                turn += 1
                for headers in some(fields(), turn, limit):
                    content = bodies(path)[0] if method == "post" else None
                    await call(http, method, place, headers=headers, content=content)
                for query in some(QUERIES, turn, limit):
                    await call(http, method, place, headers=fields()[0], params=query)
                if method == "post":
                    for body in some(bodies(path), turn, limit):
                        await call(http, method, place, headers=fields()[0], content=body)
        forged = f"/v1/%0a{FORGED.replace(' ', '%20')}"
        await call(http, "get", forged)
        await call(http, "get", "/v1/stream", params={"ticket": "x" * 40_000 + MARK})
    for raw in (
        f"GET /v1/stream?{MARK} HTTP/9.9",
        f"{MARK} / HTTP/1.1",
        f"GET / HTTP/1.1\r\n{MARK}",
        f"\x16{MARK}",
    ):
        _, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(url).port)
        writer.write(raw.encode() + b"\r\n\r\n")
        await writer.drain()
        writer.close()


async def call(http: httpx.AsyncClient, method: str, path: str, **given: Any) -> None:
    """Sends it, and reads a little of the answer."""
    async with http.stream(method, path, **given) as response:
        async for _ in response.aiter_bytes():
            break


async def calls_in_an_outage(url: str) -> None:
    """Right calls, which now fail."""
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=30) as http:
        for path in ("/v1/events", "/v1/questions", "/v1/preferences"):
            await call(http, "get", path, headers=fields()[0], params={"since": "1h"})
            await call(http, "post", path, headers=fields()[0], content=bodies(path)[0])
        await call(http, "get", "/v1/stream", headers=fields()[0], params={"types": MARK})


@pytest.mark.parametrize(
    ("form", "level", "most"),
    [
        ("json", "info", 2),
        pytest.param("console", "debug", None, marks=pytest.mark.long),
        pytest.param("json", "info", None, marks=pytest.mark.long),
    ],
)
def test_no_log_has_a_secret_or_a_line_of_somebody_elses(
    tmp_path: Path, form: str, level: str, most: int | None
) -> None:
    redis = RedisServer(tmp_path / "redis")
    redis.start()
    try:
        for postgres in running(Postgres(tmp_path / "postgres")):
            settings = {
                "PUSHSSE_DATABASE_URL": postgres.url,
                "PUSHSSE_REDIS_URL": redis.url,
                "PUSHSSE_JWT_SECRET": KEY,
                "PUSHSSE_LOG_FORMAT": form,
                "PUSHSSE_LOG_LEVEL": level,
            }
            assert pushsse(tmp_path, "migrate", **settings).returncode == 0
            for node in running(Node("node", tmp_path / "node", settings)):
                for nginx in run_nginx(Nginx(tmp_path / "nginx", [f"127.0.0.1:{node.port}"])):
                    asyncio.run(abuse(node.url, most))
                    asyncio.run(abuse(nginx.url, most))
                    for part in (postgres, redis):
                        part.kill()
                        asyncio.run(calls_in_an_outage(nginx.url))
                    logs = {part.name: part.log for part in (node, nginx, postgres, redis)}
                    check(logs | {"nginx' requests": nginx.access_log}, is_json=form == "json")
    finally:
        redis.close()


def check(logs: Mapping[str, Path], *, is_json: bool) -> None:
    """No log has a mark, and each line of the node's is one that it wrote."""
    for name, path in logs.items():
        text = path.read_text(errors="replace")
        found = [line for line in text.splitlines() if MARK in line]
        assert not found, (name, len(found), found[:3])
        assert not re.search(f"^{FORGED[:30]}", text, re.MULTILINE), name
    # What it prints once it is ready.
    told = re.sub(
        r"^(pushsse [\d.]+ is ready|  listen:|  publish:).*\n", "", logs["node"].read_text(), flags=re.M
    )
    for line in re.split("[\r\n\u2028\u2029\x85]+", told.rstrip()):
        if is_json:
            assert isinstance(json.loads(line), dict)
        else:
            assert ENTRY.match(line), line
    assert "Traceback" not in told
    # Something was said of what went wrong.
    assert len(told.splitlines()) > 10
    assert "/v1/events" in logs["nginx' requests"].read_text()
