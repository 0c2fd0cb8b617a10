"""Bodies as real clients send them: gzip'd, with a byte order mark; and as attackers do."""

import gzip
import json
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pushsse.errors import MOST_VIOLATIONS
from tests.serving import Running, serving

pytestmark = pytest.mark.anyio
EVENT = {"type": "news", "message": 1, "to": "all"}
BOM = b"\xef\xbb\xbf"
LIMIT = 1024 * 1024


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Running]:
    async with serving(tmp_path) as running:
        yield running


async def post(
    node: Running, body: bytes, encoding: str = "gzip", path: str = "/v1/events"
) -> tuple[int, str]:
    reply = await node.http.post(path, content=body, headers={"content-encoding": encoding})
    return reply.status_code, reply.text


async def test_a_gzipped_body_is_taken_by_every_call(node: Running) -> None:
    lines = b"\n".join(json.dumps(EVENT | {"message": "x" * 300, "id": str(n)}).encode() for n in range(2000))
    for encoding in ("gzip", "x-gzip", "GZIP"):
        status, text = await post(node, gzip.compress(lines), encoding)
        assert status == 202
        assert json.loads(text)["accepted"] == 2000
    assert (await post(node, json.dumps(EVENT).encode(), "identity"))[0] == 202
    assert (await post(node, gzip.compress(b"a text"), path="/v1/events?type=a&to=all"))[0] == 202
    question = gzip.compress(json.dumps({"text": "What?"}).encode())
    assert (await post(node, question, path="/v1/questions?user=ann"))[0] == 202


async def test_a_bomb_costs_no_more_than_any_body(node: Running) -> None:
    bomb = gzip.compress(bytes(100 * 1024**2), 9)
    assert len(bomb) < LIMIT
    status, text = await post(node, bomb)
    assert status == 413
    assert str(LIMIT) in text
    exact = json.dumps(EVENT).encode().ljust(LIMIT)
    assert (await post(node, gzip.compress(exact)))[0] == 202
    assert (await post(node, gzip.compress(exact + b" ")))[0] == 413
    # Empty blocks hold nothing, and are read all the same: what was sent counts, too.
    empty = b"\x00\x00\x00\xff\xff" * (LIMIT // 5 + 1)
    head = gzip.compress(b"")[:10]
    assert (await post(node, head + empty))[0] == 413
    assert (await post(node, gzip.compress(b" " * 70_000), path="/v1/questions?user=ann"))[0] == 413


BROKEN = [
    (b"", "before its gzip member"),
    (b"{}", "isn't gzip"),
    (zlib.compress(b"{}"), "isn't gzip"),
    (gzip.compress(b"{}")[:-4], "ends before"),
    (gzip.compress(b"{}")[:-8] + bytes(8), "isn't gzip"),
    (gzip.compress(b"{}") + b"x", "goes on"),
    (gzip.compress(b"{}") * 40_000, "goes on"),
]


@pytest.mark.parametrize(("body", "why"), BROKEN, ids=range(len(BROKEN)))
async def test_what_is_not_gzip_is_a_400_that_says_so(node: Running, body: bytes, why: str) -> None:
    status, text = await post(node, body)
    assert status == 400
    assert why in text


@pytest.mark.parametrize("encoding", ["br", "deflate", "zstd", "gzip, gzip", "what"])
async def test_another_encoding_is_a_415_that_says_which_are_taken(node: Running, encoding: str) -> None:
    reply = await node.http.post("/v1/events", content=b"x", headers={"content-encoding": encoding})
    assert reply.status_code == 415
    assert reply.headers["accept-encoding"] == "gzip"
    assert encoding in reply.json()["detail"]
    assert (await node.http.post("/v1/events", json=EVENT)).status_code == 202


async def test_a_byte_order_mark_before_a_body_is_borne(node: Running) -> None:
    one = json.dumps(EVENT).encode()
    for body in (one, one + b"\n" + one, gzip.compress(BOM + one)):
        headers = {"content-encoding": "gzip"} if body[:1] == b"\x1f" else {}
        reply = await node.http.post("/v1/events", content=body if headers else BOM + body, headers=headers)
        assert reply.status_code == 202
    lines = {"content-type": "application/x-ndjson"}
    assert (await node.http.post("/v1/events", content=BOM + one, headers=lines)).status_code == 202
    async with node.stream("ann") as stream:
        await stream.ready()
        await node.http.post("/v1/events?type=a&to=all", content=BOM + "长".encode())
        assert await stream.messages(1) == ["长"]
    switches = BOM + b'{"types": {"news": false}}'
    assert (await node.http.post("/v1/preferences?user=ann", content=switches)).status_code == 200
    inside = await node.http.post("/v1/events", content=b"{" + BOM + one[1:])
    assert inside.status_code == 400


async def test_of_very_many_errors_the_first_are_listed_and_the_others_counted(node: Running) -> None:
    types = {f"{number}".ljust(8, "x"): True for number in range(4_000)}
    reply = await node.http.post("/v1/preferences?user=ann", json={"types": types})
    assert reply.status_code == 422
    errors = reply.json()["errors"]
    assert len(errors) == MOST_VIOLATIONS + 1
    assert errors[0] == {"at": "$.types.0xxxxxxx", "detail": "'0xxxxxxx' is not a type of the catalogue"}
    assert errors[-1] == {"at": "$", "detail": f"{4_000 - MOST_VIOLATIONS} more errors aren't listed"}
    assert len(reply.content) < len(json.dumps({"types": types}))
