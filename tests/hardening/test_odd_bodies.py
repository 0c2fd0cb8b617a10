"""Bodies that are not what they should be, at every call that takes one: refused, no error of the server."""

import asyncio
import gzip
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pushsse.api.document import document
from tests.hardening.fuzz import TIMES, fuzz, texts, values
from tests.serving import Running, serving

pytestmark = pytest.mark.anyio
KIB = 1024
JSON = "application/json"
NDJSON = "application/x-ndjson"
KINDS = (
    JSON,
    NDJSON,
    "text/plain",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=x",
    "",
    ";",
)
RIGHT: dict[str, dict[str, Any]] = {
    "/v1/events": {"type": "news", "message": 1, "to": "all"},
    "/v1/preferences": {"types": {"news": False}},
    "/v1/questions": {"text": "How do I get a refund?", "context": {"page": 1}},
}


def posts() -> dict[str, set[int]]:
    """Every call that takes a body, with the statuses that the interface's document has for it."""
    return {
        path: set(map(int, calls["post"]["responses"]))
        for path, calls in document()["paths"].items()
        if "post" in calls
    }


def odd(right: dict[str, Any]) -> dict[str, bytes]:
    """Bodies that nobody may take."""
    text = json.dumps(right).encode()
    name = json.dumps(next(iter(right))).encode()
    first = json.dumps(next(iter(right.values()))).encode()
    beginning = text[: text.index(first)]
    rest = text[len(beginning) + len(first) :]
    wrong: dict[str, bytes] = {
        "nothing": b"",
        "blanks": b" \r\n\t",
        "half": text[:-1],
        "more after it": text + b"}",
        "two of them": text + b" " + text,
        "no JSON": b"type=news&to=all",
        "single quotes": text.replace(b'"', b"'"),
        "a comma too many": text[:-1] + b",}",
        "a comment": b"/**/" + text,
        "UTF-16": json.dumps(right).encode("utf-16"),
        "a byte order mark within": b"{\xef\xbb\xbf" + text[1:],
        "a byte that begins nothing": text[:-1] + b',"x":"\xff"}',
        "a character cut off": text[:-1] + b',"x":"\xe5\xbc"}',
        "an overlong slash": text[:-1] + b',"x":"\xc0\xaf"}',
        "an encoded surrogate": text[:-1] + b',"x":"\xed\xa0\x80"}',
        "an unknown member": text[:-1] + b',"x":1}',
        "NUL in a name": text[:-1] + b',"\\u0000":1}',
        "a lone surrogate in a name": text[:-1] + b',"\\ud800":1}',
        "a line end within a string": text[:-1] + b',"x":"\n"}',
        "an array of it": b"[" + text + b"]",
        "a text of it": json.dumps(text.decode()).encode(),
        "deep objects": b'{"x":' * 10_000 + b"1" + b"}" * 10_000,
        "deep arrays": b"[" * 60_000,
        "deep within": beginning + b"[" * 5_000 + b"]" * 5_000 + rest,
        "just too deep": beginning + b'{"a":' * 70 + b"1" + b"}" * 70 + rest,
        "many members": b"{" + b",".join(b'"%d":1' % number for number in range(5_000)) + b"}",
        "a long name": b'{"' + b"x" * 60_000 + b'":1}',
        "many quotes": b'{"' + b'\\"' * 30_000,
    }
    for constant in (b"NaN", b"Infinity", b"-Infinity", b"nan", b"1e", b"01", b"+1", b".5", b"0x1", b"tru"):
        wrong[f"the constant {constant.decode()}"] = beginning + constant + rest
    for value in (
        b"9" * 5_000,
        b"-" + b"9" * 5_000,
        b"1e99999",
        b"1." + b"1" * 5_000,
        b"null",
        b"[]",
        b"{}",
        b"true",
    ):
        wrong[f"{name.decode()} is {value[:12].decode()}"] = beginning + value + rest
    return wrong


# What isn't wrong for this call, though the same is for others.
TAKEN = {
    ("/v1/preferences", '"types" is {}'),
    ("/v1/preferences", "deep within"),
}


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Running]:
    async with serving(
        tmp_path, questions_per_minute=0, switches_per_minute=0, log_bytes_per_minute=0
    ) as running:
        await running.publish("news", 0)
        await running.until_known("news")
        yield running


async def send(node: Running, path: str, body: Any, kind: str = JSON, **headers: str) -> httpx.Response:
    path = path.replace("{id}", "0" * 26)
    given_ = {"content-type": kind, **headers} if kind else headers
    reply = await node.http.post(f"{path}?user=ann", content=body, headers=given_)
    assert reply.status_code < 500, (path, reply.text)
    return reply


def said(reply: httpx.Response) -> tuple[int, str]:
    """The status and the code of a problem document, which is one."""
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.json()["status"] == reply.status_code
    return reply.status_code, str(reply.json()["code"])


async def pieces(body: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


@pytest.mark.parametrize("path", RIGHT)
async def test_what_is_no_right_body_is_refused_in_one_piece_and_in_chunks(path: str, node: Running) -> None:
    right = RIGHT[path]
    assert (await send(node, path, json.dumps(right).encode())).status_code in (200, 202)
    for what, body in odd(right).items():
        for sent in (body, pieces(body)):
            reply = await send(node, path, sent)
            if (path, what) in TAKEN or (path == "/v1/events" and what == "two of them"):
                continue
            assert said(reply)[0] in (400, 422), what
    assert (await send(node, path, json.dumps(right).encode())).status_code in (200, 202)


async def test_every_call_answers_any_body_with_a_status_of_its_document(node: Running) -> None:
    everything = odd(RIGHT["/v1/events"]) | {
        "gzip": gzip.compress(b"{}"),
        "no gzip": b"\x1f\x8b\x08" + b"x" * 100,
    }
    ways = [*((kind, "") for kind in KINDS), (JSON, "gzip"), (JSON, "br"), ("text/plain", "gzip")]
    tried = 0
    for path, statuses in posts().items():
        for kind, encoding in ways:
            headers = {"content-encoding": encoding} if encoding else {}
            # Whatever isn't JSON is looked at less: each call gets each kind, and each kind many bodies.
            tried += 1
            step = 1 if TIMES or (kind, encoding) == (JSON, "") else 12
            for what, body in list(everything.items())[tried % step :: step]:
                reply = await send(node, path, body, kind, **headers)
                assert reply.status_code in statuses, (path, kind, encoding, what, reply.text)


async def test_a_body_over_its_limit_is_a_413_announced_or_not(node: Running) -> None:
    for path in RIGHT:
        limit = 1024 * KIB if path == "/v1/events" else 64 * KIB
        body = json.dumps(RIGHT[path]).encode()
        exact = body + b" " * (limit - len(body))
        for sent in (exact, pieces(exact, 10_000), gzip.compress(exact)):
            headers = {"content-encoding": "gzip"} if isinstance(sent, bytes) and sent[:1] == b"\x1f" else {}
            assert (await send(node, path, sent, **headers)).status_code in (200, 202)
        for sent in (exact + b" ", pieces(exact + b" ", 10_000)):
            assert said(await send(node, path, sent)) == (413, "body_too_large")
        for announced in ("99999999999999999999", str(2**64), str(2**63), "9" * 500):
            status = await announce(node, path, announced)
            assert status in (b"413", b"400"), announced


async def announce(node: Running, path: str, length: str) -> bytes:
    """The status of a request whose body is said to have so many bytes, and has two."""
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
    head = f"POST {path}?user=ann HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {length}\r\n\r\n"
    writer.write(head.encode() + b"{}")
    async with asyncio.timeout(30):
        answer = await reader.readline()
    writer.close()
    return answer.split(b" ")[1]


async def test_of_a_member_that_is_given_twice_the_last_counts_and_the_others_go_nowhere(
    node: Running,
) -> None:
    twice = b'{"type":"news","to":{"users":["bo"]},"to":"all","message":%b,"message":%b}'
    bad = (b'"\\u0000"', b'"\\ud800"', b'"\xff"', b"NaN", b"[" * 70 + b"]" * 70)
    accepted = 0
    async with node.stream("ann") as stream:
        await stream.ready()
        for hidden in (b"1", *bad):
            accepted += (await send(node, "/v1/events", twice % (hidden, b"2"))).status_code == 202
        for last in bad:
            assert said(await send(node, "/v1/events", twice % (b"1", last)))[0] in (400, 422), last
        await node.publish("news", 3)
        assert await stream.messages(accepted + 1) == [2] * accepted + [3]
    assert accepted
    reply = await send(node, "/v1/preferences", b'{"types":{"news":true},"types":{"news":false}}')
    assert [each["enabled"] for each in reply.json()["types"]] == [False]


def test_generated_bodies_are_no_errors_of_the_server(tmp_path: Path) -> None:
    statuses: Counter[int] = Counter()
    documented = posts()
    rights = st.sampled_from(list(RIGHT.values()))
    bodies = (
        st.builds(changed, rights, texts(2), values(), st.integers())
        | st.binary(max_size=50)
        | st.builds(cut_into, rights, st.integers(0, 60), st.binary(max_size=4))
    )
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        serving_ = serving(tmp_path, questions_per_minute=0, switches_per_minute=0, log_bytes_per_minute=0)
        node = runner.run(stack.enter_async_context(serving_))

        @fuzz(150)
        @given(st.sampled_from(sorted(documented)), st.sampled_from(KINDS), bodies)
        def check(path: str, kind: str, body: bytes) -> None:
            reply = runner.run(send(node, path, body, kind))
            assert reply.status_code in documented[path], reply.text
            statuses[reply.status_code] += 1

        try:
            check()
        finally:
            runner.run(stack.aclose())
    assert len(statuses) > 3, statuses


def changed(right: dict[str, Any], name: str, value: object, place: int) -> bytes:
    """One member has another value, or there is one more."""
    names = [*right, name]
    return json.dumps(right | {names[place % len(names)]: value}).encode()


def cut_into(right: dict[str, Any], at: int, cut: bytes) -> bytes:
    body = json.dumps(right).encode()
    return body[:at] + cut + body[at + len(cut) // 2 :]
