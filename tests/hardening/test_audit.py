"""Each call of an administrator leaves one line: who, from where, what, about whom, with what result."""

import io
import json
import logging
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import jwt
import pytest

from pushsse import logs
from pushsse.api.calls import CALLS
from pushsse.api.identity import ADMIN
from tests.serving import Running, serving

pytestmark = pytest.mark.anyio
SECRET = "a secret of more than thirty-two bytes, as it has to be"


def bearer(user: str, scope: str) -> dict[str, str]:
    claims = {"sub": user, "exp": time.time() + 36_000, "scope": f"pushsse:{scope}", "iat": time.time()}
    return {"authorization": f"Bearer {jwt.encode(claims, SECRET)}"}


ROOT, ANN = bearer("root", "admin"), bearer("ann", "stream")


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """The log of a service that logs nothing else."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    logs.configure("error", "json")
    [handler] = root.handlers
    assert isinstance(handler, logging.StreamHandler)
    text = io.StringIO()
    handler.setStream(text)
    yield text
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
async def node(tmp_path: Path, written: io.StringIO) -> AsyncIterator[Running]:
    async with serving(tmp_path, jwt_secret=SECRET) as running:
        yield running


def lines(written: io.StringIO) -> list[dict[str, object]]:
    """What was logged since the last look."""
    found = [json.loads(line) for line in written.getvalue().splitlines()]
    written.seek(0)
    written.truncate()
    return [line for line in found if line["logger"] == "pushsse.audit"]


async def test_a_kick_says_who_kicked_whom_from_where(node: Running, written: io.StringIO) -> None:
    headers = {**ROOT, "x-forwarded-for": "203.0.113.7", "x-request-id": "r-7"}
    assert (await node.http.post("/v1/users/ann/kick", headers=headers)).status_code == 200
    [line] = lines(written)
    del line["time"]
    assert line == {
        "level": "info",
        "logger": "pushsse.audit",
        "message": "200 for root from 127.0.0.1 (203.0.113.7): POST /v1/users/ann/kick about ann",
        "request": "r-7",
        "user": "root",
        "address": "127.0.0.1",
        "forwarded": "203.0.113.7",
        "call": "POST /v1/users/ann/kick",
        "about": "ann",
        "status": 200,
    }


@pytest.mark.parametrize(
    ("headers", "user", "status"),
    [(ANN, "ann", 403), ({}, None, 401), ({"authorization": "Bearer x.y.z"}, None, 401)],
    ids=["no admin", "nobody", "forged"],
)
async def test_every_call_that_needs_admin_leaves_a_line_when_it_is_refused(
    node: Running,
    written: io.StringIO,
    headers: dict[str, str],
    user: str | None,
    status: int,
) -> None:
    calls = [call for call in CALLS if call.scope == ADMIN]
    assert calls
    for call in calls:
        path = call.path.replace("{user:path}", "bo").replace("{type}", "bo").replace("{event:path}", "e1")
        reply = await node.http.request(call.method, path, headers=headers)
        assert reply.status_code == status
        [line] = lines(written)
        about = None if call.path == path else "bo, e1" if "{event" in call.path else "bo"
        assert (line["call"], line.get("about"), line["status"]) == (f"{call.method} {path}", about, status)
        assert line.get("user") == user


async def test_a_ticket_for_somebody_else_leaves_a_line_and_ones_own_none(
    node: Running, written: io.StringIO
) -> None:
    for headers, body, status in ((ROOT, {"user": "ann"}, 200), (ANN, {"user": "bo"}, 403)):
        reply = await node.http.post("/v1/tickets", headers=headers, json=body)
        assert reply.status_code == status
        [line] = lines(written)
        assert (line["call"], line["about"], line["status"]) == ("POST /v1/tickets", body["user"], status)
        assert "ticket" not in reply.json() or reply.json()["ticket"] not in str(line)
    assert (await node.http.post("/v1/tickets", headers=ANN)).status_code == 200
    assert not lines(written)


@pytest.mark.parametrize("forwarded", ["unknown", "203.0.113.7, evil", "203.0.113.7\t,", "[::1]", ""])
async def test_a_forwarded_address_is_one_or_not_in_the_log(
    forwarded: str, node: Running, written: io.StringIO
) -> None:
    headers = {**ROOT, "x-forwarded-for": forwarded}
    assert (await node.http.post("/v1/users/ann/kick", headers=headers)).status_code == 200
    [line] = lines(written)
    assert "forwarded" not in line
    assert line["message"] == "200 for root from 127.0.0.1: POST /v1/users/ann/kick about ann"


async def test_what_a_stranger_writes_stays_within_its_member(node: Running, written: io.StringIO) -> None:
    headers = {**ROOT, "x-forwarded-for": "z" * 5_000}
    reply = await node.http.post(f"/v1/users/%E2%80%AE%1B{'y' * 5_000}/kick", headers=headers)
    assert reply.status_code == 400
    [line] = lines(written)
    assert all(len(str(value)) < 250 for name, value in line.items() if name != "message")
    assert len(str(line["message"])) < 800
    assert not logs.CONTROL.search(json.dumps(line, ensure_ascii=False))
