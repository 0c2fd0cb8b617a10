"""What calls leave to the collector of cycles: nothing, since a node's collector hardly ever runs."""

import asyncio
import gc
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import jwt
import pytest
from starlette.requests import Request
from uvicorn.protocols.http.h11_impl import RequestResponseCycle as H11Cycle
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from pushsse.api.document import document
from pushsse.server import Http
from pushsse.stream.handover import StreamProtocol
from pushsse.stream.immediate import ImmediateHttp
from pushsse.stream.limits import LimitedHttp
from pushsse.stream.portable import QueueStream
from pushsse.stream.subscriber import Subscriber
from tests.leftovers import Leftovers
from tests.serving import Running, serving
from tests.waiting import eventually

pytestmark = pytest.mark.anyio
SECRET = "a secret of thirty-two bytes and more"
# Where the types of a node come from.
OURS = ("pushsse.", "starlette.", "sse_starlette.", "uvicorn.", "uvloop.")
PER_CALL = (Request, RequestResponseCycle, H11Cycle, LimitedHttp, StreamProtocol, QueueStream, Subscriber)
BODIES: dict[str, object] = {
    "/v1/events": {"type": "news", "message": 1, "to": {"users": ["ann"]}},
    "/v1/questions": {"text": "How do I switch an event type off?"},
    "/v1/preferences": {"types": {"news": False}},
    "/v1/acks": {"ids": ["one"], "state": "read"},
    "/v1/presence": {"users": ["ann"]},
}


def requests() -> list[tuple[str, str, bytes]]:
    """Each call of the document, once as it should be and once with a body that it can't read."""
    found = []
    for path, calls in document()["paths"].items():
        filled = path
        while "{" in filled:
            start, _, rest = filled.partition("{")
            filled = start + "one" + rest.partition("}")[2]
        for method in calls:
            if method in ("get", "put", "post", "delete"):
                good = b"" if method == "get" else json.dumps(BODIES.get(path, {})).encode()
                found += [(method.upper(), filled, good), (method.upper(), filled, b"{")]
    return found


async def ask(node: Running, head: str, body: bytes, *, token: str, late_s: float) -> bytes:
    """Sends a request, the end of its body late, and returns the first of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
    writer.write(
        f"{head} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\nconnection: close\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    )
    writer.write(body[:-1])
    await asyncio.sleep(late_s)
    writer.write(body[-1:])
    found = await reader.read(4000)
    writer.close()
    return found


def garbage() -> Counter[str]:
    """What a collection finds of ours, by type."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
        kinds = [type(each) for each in gc.garbage]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
    return Counter(kind.__qualname__ for kind in kinds if f"{kind.__module__}.".startswith(OURS))


@pytest.mark.parametrize("http", [ImmediateHttp, LimitedHttp, "h11"], ids=["immediate", "portable", "h11"])
async def test_no_call_leaves_a_cycle(http: Http, tmp_path: Path) -> None:
    claims: dict[str, Any] = {
        "sub": "ann",
        "exp": time.time() + 600,
        "scope": "pushsse:admin pushsse:publish",
    }
    token = jwt.encode(claims, SECRET)
    left = Leftovers(*PER_CALL)
    async with serving(tmp_path, http=http, jwt_secret=SECRET, heartbeat_s=1.0) as node:
        late = json.dumps(BODIES["/v1/events"]).encode()

        async def all_once() -> Counter[str]:
            calls = [
                ask(node, f"{method} {path}", body, token=each, late_s=0.0)
                for method, path, body in requests()
                for each in (token, "forged")
            ]
            # This one is identified again after its body.
            calls.append(ask(node, "POST /v1/events", late, token=token, late_s=1.2))
            answers = await asyncio.gather(*calls)
            await eventually(lambda: not node.connections)
            # The heartbeat lets go of a stream when it would have pinged.
            await eventually(lambda: not left.found(), what="no cycle holds a request or a stream")
            return Counter(answer[9:12].decode() for answer in answers)

        await all_once()
        gc.collect()
        gc.disable()
        try:
            statuses = await all_once()
            found = garbage()
        finally:
            gc.enable()
        assert statuses["200"] > 10
        assert not found
