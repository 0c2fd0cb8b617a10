"""No input of anybody holds the event loop: each kind at its largest, and the longest turn that it took.

Deliberate: turns are measured by the thread's CPU time, which other work of the machine hardly lengthens, and
the clients are in other threads, whose time isn't counted. The goal is 20 ms, the limit here is wider.
"""

import asyncio
import contextlib
import gc
import gzip
import json
import time
from asyncio.events import Handle
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiokafka import ConsumerRecord

from pushsse import strictjson
from pushsse.backplane import Entry, Head
from pushsse.errors import InvalidInput
from pushsse.event import encode
from pushsse.hub.log_tail import Ahead, LogTail, Newest
from pushsse.intake import Drafter, PushsseFormat
from pushsse.metrics import Metrics
from pushsse.questions.answerers.kafka import AnswerRecord
from pushsse.stream.subscriber import Live
from tests.answering import answering
from tests.conftest import TOLD
from tests.keys import OTHERS, PRIVATE, SECRET, by_hand, jwk, key_set, signed
from tests.serving import LIMIT_S, Running, serving
from tests.waiting import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.slow]
# Of CPU time, twice what the rule allows: a busy machine takes longer for the same.
LIMIT_S_A_TURN = 0.04
MIB, KIB = 1024 * 1024, 1024
EVENT = b'{"type":"t","to":"all","message":1}'
UNUSUAL = [f"{number}".ljust(20, "\u4e00") for number in range(10_000)]
NAMES = [f"{number:05d}-{'x' * 90}" for number in range(10_000)]


class Turns:
    """The longest turn of the loop since the last `reset`."""

    def __init__(self) -> None:
        self.longest_s = 0.0


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> Turns:
    found = Turns()
    run: Callable[[Handle], None] = Handle._run  # every turn goes this way

    def measured(handle: Handle) -> None:
        began = time.thread_time()
        run(handle)
        found.longest_s = max(found.longest_s, time.thread_time() - began)

    monkeypatch.setattr(Handle, "_run", measured)
    # What the tests themselves hold isn't for the collector to walk.
    gc.collect()
    gc.freeze()
    return found


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Running]:
    async with serving(tmp_path) as running:
        yield running


def event(message: bytes = b"1", to: object = "all", **more: object) -> bytes:
    rest = json.dumps({"type": "t", "to": to, **more})[1:-1].encode()
    return b'{"message":' + message + b"," + rest + b"}"


def lines(line: bytes, size: int = MIB) -> bytes:
    return (line + b"\n") * (size // (len(line) + 1))


def filled(begin: bytes, middle: bytes, end: bytes, size: int) -> bytes:
    return begin + middle * ((size - len(begin) - len(end)) // len(middle)) + end


# What is inside of an event's message, of a Kafka record, or is a body by itself.
def odd(size: int) -> Iterator[bytes]:
    yield filled(b"[", b"1,", b"1]", size)
    yield filled(b"", b"[", b"", size)
    yield b"[" * (size // 2) + b"]" * (size // 2)
    yield filled(b"[", b"[],", b"[]]", size)
    yield filled(b"[", b'"",', b'""]', size)
    yield filled(b"[", b"{},", b"{}]", size)
    yield filled(b"[", b'{"a":1},', b"{}]", size)
    yield filled(b"[", b'"\\u0001",', b'""]', size)
    yield filled(b'"', b"\\u0000", b'"', size)
    yield filled(b'"', b"\\ud800", b'"', size)
    yield filled(b'"', b"\\\\u0000", b'"', size)
    yield filled(b'"', b'\\"', b'"', size)
    yield filled(b'"', b"\\", b"", size)
    yield filled(b"", b'"', b"", size)
    yield filled(b"", b"9", b"", size)
    yield filled(b"1e", b"9", b"", size)
    yield filled(b"[", b"1e999,", b"1]", size)
    yield filled(b"[", b"NaN,", b"1]", size)
    yield filled(b"{", b'"a":1,', b'"a":1}', size)
    yield filled(b'{"a":', b'{"a":', b"1", size)
    yield b"{" + b",".join(b'"%d":0' % number for number in range(size // 10)) + b"}"
    yield b"{" + b",".join(b'"%d":"\\u0000"' % number for number in range(size // 17)) + b"}"
    yield b"\xff" * size
    yield filled(b'"', "é".encode(), b'"', size)
    yield filled(b'"', b"a", b"\xff", size)
    yield b" " * size


def events() -> Iterator[bytes]:
    yield from odd(MIB)
    for size in (40 * KIB, MIB - 200):
        for message in odd(size):
            yield event(message)
    yield event(to={"users": NAMES})
    yield event(to={"users": ["x"] * 10_000})
    yield event(to={"users": [f"\u4e00{number}" for number in range(10_000)]})
    yield event(to={"users": [f"{number}".ljust(40, "\u00fc") for number in range(10_000)]})
    yield json.dumps({"type": "t", "to": {"users": UNUSUAL}, "message": 1}, ensure_ascii=False).encode()
    yield event(to={"users": UNUSUAL}, id="a")
    yield event(to={"users": ["x"] * 200_000})
    yield event(to={"users": ["a b"] * 10_000})
    yield event(to={"users": [[]] * 200_000})
    yield event(to={f"{number}": number for number in range(60_000)})
    yield EVENT[:-1] + b"," + b",".join(b'"%d":0' % number for number in range(60_000)) + b"}"
    yield event(type="x" * 900_000)
    yield event(id="x" * 900_000)
    yield event(desc="x" * 900_000)
    yield event(ts="2" * 900_000)


def many() -> Iterator[bytes]:
    for line in (b"1", b"", b" ", b"{", b'"\\ud800"', EVENT, event(to={"users": ["a b"]}), event(b"[" * 70)):
        yield lines(line)
        yield lines(line, (len(line) + 1) * 29_000)
    yield lines(event(to={"users": NAMES[:500]}))
    yield lines(event(to={"users": ["ann"]}), 20_000 * 49)
    yield lines(event(id="same"), 14_000 * 50)
    yield lines(event(id="same", to={"users": ["ann"]}), 14_000 * 64)
    yield lines(EVENT[:-2], 29_900 * 34)
    yield b"\n".join(b'{"type":"t%d","to":"all","message":1}' % number for number in range(15_000))
    # In which the catalogue takes those types up.
    yield lines(EVENT)
    yield lines(event(b'"' + b"x" * 45_000 + b'"'))
    yield lines(event(b"[" * 20_000 + b"]" * 20_000))
    yield lines(event(b"[" + b"{}," * 15_000 + b"{}]"))


def requests(bodies: Iterator[bytes], path: str, kind: str = "application/json") -> Iterator[httpx.Request]:
    for body in bodies:
        yield httpx.Request("POST", f"http://127.0.0.1{path}", content=body, headers={"Content-Type": kind})


async def assert_none_holds_the_loop(
    node: Running, turns: Turns, made: Iterator[httpx.Request], record: Callable[[str, object], None]
) -> None:
    """Sends each; one that took long is sent once more, since a turn may have met something else."""
    slow, longest_s = [], 0.0
    # One for all: to make one takes its thread tens of milliseconds, in which the loop's stands still.
    with httpx.Client(trust_env=False, timeout=LIMIT_S) as http:

        def send(request: httpx.Request) -> int:
            return http.send(request).status_code

        await asyncio.to_thread(send, httpx.Request("GET", f"{node.url}/livez"))
        for number, request in enumerate(made):
            request.url = request.url.copy_with(port=node.port)
            least_s = 1.0
            for _ in range(2):
                # Making the request is over with the turn before.
                await asyncio.sleep(0)
                turns.longest_s = 0.0
                status = await asyncio.to_thread(send, request)
                if status == 503:
                    # The database of a busy machine: once more.
                    status = await asyncio.to_thread(send, request)
                assert status not in (403, 500, 503), request.content[:80]
                least_s = min(least_s, turns.longest_s)
                if least_s <= LIMIT_S_A_TURN:
                    break
            longest_s = max(longest_s, least_s)
            if least_s > LIMIT_S_A_TURN:
                slow.append(
                    f"{number}: {least_s * 1000:.0f} ms, {status}, {request.url.path}, "
                    f"{request.content[:60]!r}"
                )
    record(TOLD, f"the longest turn: {longest_s * 1000:.0f} ms")
    assert not slow, "\n".join(slow)


async def test_no_event_holds_the_loop(
    node: Running, turns: Turns, record_property: Callable[[str, object], None]
) -> None:
    await assert_none_holds_the_loop(node, turns, requests(events(), "/v1/events"), record_property)


async def test_no_body_of_many_lines_holds_the_loop(
    node: Running, turns: Turns, record_property: Callable[[str, object], None]
) -> None:
    made = requests(many(), "/v1/events", "application/x-ndjson")
    await assert_none_holds_the_loop(node, turns, made, record_property)


async def test_a_full_catalogue_does_not_hold_the_loop(
    node: Running, turns: Turns, record_property: Callable[[str, object], None]
) -> None:
    catalogue = node.node.catalogue
    body = b"\n".join(b'{"type":"t%d","to":"all","message":1}' % number for number in range(15_000))
    await node.http.post("/v1/events", content=body, headers={"Content-Type": "application/x-ndjson"})
    await eventually(lambda: catalogue.size == 1_000)
    least_s = 1.0
    for _ in range(3):
        turns.longest_s = 0.0
        # In a task of its own, so that this test's turn has no part in it.
        await asyncio.create_task(catalogue.refresh())
        least_s = min(least_s, turns.longest_s)
    record_property(TOLD, f"the longest turn: {least_s * 1000:.0f} ms")
    # To make a model of each row takes longer.
    assert least_s < LIMIT_S_A_TURN / 2


def about_switches() -> Iterator[httpx.Request]:
    """Calls about a catalogue of 1,000 types, each in two languages and one of two categories."""
    names = [f"t{number}" for number in range(1_000)]
    for language in ("zh", "fr", ",".join(f"a{letter}-b{number}" for letter in "xyz" for number in range(9))):
        for path in ("/v1/preferences", "/v1/types"):
            yield httpx.Request("GET", f"http://127.0.0.1{path}", headers={"Accept-Language": language})
    bodies: list[dict[str, Any]] = [{"categories": {"c0": False}}, {"types": dict.fromkeys(names, False)}]
    bodies += [{"categories": {"c0": None, "c1": False}}, {"types": dict.fromkeys(names)}]
    yield from requests((json.dumps(body).encode() for body in bodies), "/v1/preferences")
    for part in ('"categories":', '"zone":"UTC","quiet":', '"paused_until":'):
        made = (b"{" + part.encode() + each + b"}" for each in odd(64 * KIB - 40))
        yield from requests(made, "/v1/preferences")
    for each in odd(64 * KIB - 40):
        body = b'{"title":' + each + b"}"
        yield httpx.Request("PUT", "http://127.0.0.1/v1/types/t1", content=body)
    made = (b'{"rows":' + each + b"}" for each in odd(384 * KIB - 20))
    yield from requests(made, "/v1/preferences/import")
    for enabled in (False, True):
        rows = [{"user": f"u{n}", "type": "t1", "enabled": enabled} for n in range(250)]
        rows += [{"user": f"u{n}", "category": "c1", "enabled": enabled} for n in range(250)]
        yield from requests(iter([json.dumps({"rows": rows}).encode()]), "/v1/preferences/import")
    yield httpx.Request("GET", "http://127.0.0.1/v1/preferences/export")


async def test_no_call_about_a_full_catalogue_holds_the_loop(
    tmp_path: Path, turns: Turns, record_property: Callable[[str, object], None]
) -> None:
    types = [
        {
            "name": f"t{number}",
            "title": {"en": f"Type {number}", "zh": f"类型 {number}"},
            "description": {"en": "x" * 100, "zh": "很" * 100},
            "category": f"c{number % 2}",
        }
        for number in range(1_000)
    ]
    # So many changes by one person in a minute are more than are allowed.
    async with serving(tmp_path, types=types, switches_per_minute=0) as node:
        await eventually(lambda: node.node.catalogue.size == 1_000)
        await assert_none_holds_the_loop(node, turns, about_switches(), record_property)
        # Those that can be used were.
        rows = (await node.http.get("/v1/preferences/export?user=root")).json()["rows"]
        assert {"user": "u0", "type": "t1", "enabled": True} in rows


async def test_a_million_lines_of_nothing_are_refused_in_few_words(node: Running) -> None:
    for size in (MIB, 2 * 29_000):
        headers = {"Content-Type": "application/x-ndjson"}
        reply = await node.http.post("/v1/events", content=lines(b"1", size), headers=headers)
        assert reply.status_code in (413, 422)
        assert len(reply.content) < 20_000


def conversations(message: bytes, middle: bytes, size: int) -> Iterator[bytes]:
    """Whole conversations as front ends send them, with what is odd in each place."""
    names = b'"id":"c","threadId":"c","runId":"r",'
    for each in odd(size - 200):
        yield b"{" + names + b'"messages":' + each + b"}"
        yield b"{" + names + b'"messages":[{"role":"user","%b":' % middle + each + b"}]}"
        yield b"{" + names + b'"messages":[{"role":"user","%b":' % middle + each + b"}," + message + b"]}"
        yield b"{" + names + b'"context":' + each + b',"messages":[' + message + b"]}"
        yield b"{" + names + b'"tools":' + each + b',"metadata":{},"messages":[' + message + b"]}"
        yield b"{" + names + b'"metadata":' + each + b',"messages":[' + message + b"]}"
    yield filled(b"{" + names + b'"messages":[', message + b",", message + b"]}", size)
    yield filled(b"{" + names + b'"messages":[', b'{"role":"user"},', message + b"]}", size)


@pytest.mark.parametrize("path", ["/v1/chat", "/v1/agui", "/v1/chat/completions"])
async def test_no_conversation_of_a_front_end_holds_the_loop(
    node: Running, turns: Turns, record_property: Callable[[str, object], None], path: str
) -> None:
    middle = b"parts" if path == "/v1/chat" else b"content"
    message = b'{"role":"user","id":"m","%b":[{"type":"text","text":"How do I get a refund?"}]}' % middle
    made = requests(conversations(message, middle, MIB), path)
    await assert_none_holds_the_loop(node, turns, made, record_property)


async def test_no_other_call_holds_the_loop(
    node: Running, turns: Turns, record_property: Callable[[str, object], None]
) -> None:
    ask = b'{"text":"How do I get a refund?","context":'
    made = [
        *requests(odd(64 * KIB), "/v1/preferences"),
        *requests((b'{"types":' + each + b"}" for each in odd(64 * KIB - 20)), "/v1/preferences"),
        *requests(odd(64 * KIB), "/v1/acks"),
        *requests((b'{"state":"read","ids":' + each + b"}" for each in odd(64 * KIB - 30)), "/v1/acks"),
        *requests((ask + each + b"}" for each in odd(64 * KIB - 100)), "/v1/questions"),
        *requests((ask + b'{"a":' + each + b"}}" for each in odd(16 * KIB - 100)), "/v1/questions"),
        *requests((b'{"text":' + each + b"}" for each in odd(64 * KIB - 20)), "/v1/questions"),
        *requests(iter((b"x" * MIB, b"\xc3\xa9" * (MIB // 2))), "/v1/events?type=t&to=all", "text/plain"),
    ]
    for path in ("/v1/events", "/v1/preferences"):
        bomb = httpx.Request("POST", f"http://127.0.0.1{path}", content=gzip.compress(b"[" * 200 * MIB, 1))
        bomb.headers.update({"Content-Type": "application/json", "Content-Encoding": "gzip"})
        made.append(bomb)
    for query in (
        "types=" + ",".join("abcdefghijklmnop" + str(number) for number in range(1000)),
        "types=" + "," * 20_000,
        "last_event_id=" + "x" * 20_000,
        "last_event_id=" + "," * 20_000,
        "&".join(["last_event_id=x"] * 1_200),
        "&".join(f"types={number}" for number in range(2_000)),
        "since=" + "9" * 20_000,
        "user=" + "%E4" * 6_000,
        "a=%" * 6_000,
    ):
        made += [
            httpx.Request("GET", f"http://127.0.0.1{path}?{query}")
            for path in ("/v1/events", "/v1/preferences")
        ]
    await assert_none_holds_the_loop(node, turns, iter(made), record_property)


def forged() -> Iterator[str]:
    """Tokens at their largest: odd claims under a good signature and a bad one, odd headers, odd text."""
    size = 20 * KIB
    for part in odd(size):
        for algorithm in ("HS256", "HS512", "ES256", "RS256"):
            yield by_hand({"alg": algorithm}, SECRET.encode(), raw=part)
        yield by_hand({"alg": "HS256"}, SECRET[::-1].encode(), raw=part)
        yield by_hand({"alg": "HS256"}, b"x", raw=part)
        coded = urlsafe_b64encode(part).decode().rstrip("=")
        yield f"{coded}.e30.AAAA"
        yield f"e30.e30.{coded}"
    for private in PRIVATE:
        yield signed(private, kid=private, x="x" * size)
        yield signed(private, x="x" * size)
        yield signed(private, kid="k" * size)
    yield "." * size
    yield "=" * size
    yield "A" * size
    yield f"{'A' * size}.{'=' * 100}.{'A'}"


async def test_no_token_or_cookie_holds_the_loop(
    tmp_path: Path, turns: Turns, record_property: Callable[[str, object], None]
) -> None:
    # The old and the new key of an issuer that names none.
    body = key_set(
        *(jwk(name, PRIVATE[name]) for name in PRIVATE),
        *(jwk(name, OTHERS[name], kid="old") for name in OTHERS),
    )

    async def keys(_: str) -> tuple[int, bytes, str]:
        return 200, body, ""

    async def nobody(_: str) -> tuple[int, bytes, str]:
        return 401, b"", ""

    options: dict[str, Any] = {
        "jwt_secret": SECRET,
        "jwt_secret_old": SECRET[::-1],
        "jwt_audience": ("a",),
        "jwt_issuer": ("i",),
    }
    async with (
        answering(keys) as key_server,
        answering(nobody) as sessions,
        serving(tmp_path, jwks_url=key_server.url, auth_url=sessions.url, **options) as node,
    ):
        made = [
            httpx.Request("GET", "http://127.0.0.1/v1/me", headers={"Authorization": f"Bearer {token}"})
            for token in forged()
        ]
        cookies = (
            "a=b; " * 5_000 + "a",
            ";" * 25_000,
            "=" * 25_000,
            "a" * 25_000,
            f"__Host-pushsse={'x' * 25_000}",
            # What Python's own reader of cookies takes seconds for, up to 3.11.9 and 3.12.5.
            'a="' + "\\" * 25_000 + '"',
            '__Host-pushsse="' + "\\101" * 6_000 + '"',
        )
        made += [httpx.Request("GET", "http://127.0.0.1/v1/me", headers={"Cookie": each}) for each in cookies]
        await assert_none_holds_the_loop(node, turns, iter(made), record_property)


async def test_a_call_goes_through_a_bounded_part_of_a_large_log(
    node: Running, turns: Turns, record_property: Callable[[str, object], None]
) -> None:
    headers = {"Content-Type": "application/x-ndjson"}
    for _ in range(2):
        reply = await node.http.post("/v1/events", content=lines(EVENT, 36 * 25_000), headers=headers)
        assert reply.json()["accepted"] == 25_000
    people = event(to={"users": [f"u{number}" for number in range(10_000)]})
    for _ in range(20):
        await node.http.post("/v1/events", content=people)
    url, position = "/v1/events?user=ann&types=zzz", ""
    pages: list[dict[str, Any]] = []
    while not pages or pages[-1]["more"]:
        reply = await node.http.get(f"{url}&after={position}" if position else f"{url}&since=1d")
        pages.append(reply.json())
        position = pages[-1]["position"]
    # 50,000 events of everybody's, at most 20,000 a call; the last call finds nothing more.
    assert len(pages) in (3, 4)
    assert not any(page["events"] or page["gap"] for page in pages)
    scan = (httpx.Request("GET", f"http://127.0.0.1{url}&since=1d") for _ in range(3))
    await assert_none_holds_the_loop(node, turns, scan, record_property)
    counted = (await node.http.get("/v1/unread?user=ann")).json()
    assert not counted["complete"]
    assert 20_000 <= counted["unread"] <= 60_000
    count = (httpx.Request("GET", "http://127.0.0.1/v1/unread?user=ann") for _ in range(3))
    await assert_none_holds_the_loop(node, turns, count, record_property)
    streams = [node.stream("ann", "types=zzz&since=1d") for _ in range(4)]
    turns.longest_s = 0.0
    for stream in streams:
        async with stream:
            await stream.ready()
            # `ready` comes before the replay, and a stream is live after it.
            await eventually(lambda: all(isinstance(each.state, Live) for each in node.node.hub.subscribers))
    record_property(TOLD, f"streams that replay it: {turns.longest_s * 1000:.0f} ms")
    assert turns.longest_s < LIMIT_S_A_TURN


@pytest.mark.parametrize("what", ["events", "answers"])
def test_no_record_of_kafka_holds_the_loop(what: str, record_property: Callable[[str, object], None]) -> None:
    class Everything:
        def admits(self, _: str) -> bool:
            return True

    metrics = Metrics()
    decode = PushsseFormat(metrics=metrics, drafter=Drafter(types=Everything(), max_age_s=60))

    def read(body: bytes) -> None:
        if what == "events":
            decode(
                ConsumerRecord("t", 0, 0, int(time.time() * 1000), 0, b"key", body, None, 3, len(body), ()),
                "owner",
            )
        else:
            strictjson.read(body, AnswerRecord)

    longest_s = 0.0
    bodies = events() if what == "events" else (each for size in (960 * KIB, 128 * KIB) for each in odd(size))
    for body in bodies:
        least_s = 1.0
        for _ in range(3):
            began = time.thread_time()
            with contextlib.suppress(InvalidInput):
                read(body[: 960 * KIB])
            least_s = min(least_s, time.thread_time() - began)
        longest_s = max(longest_s, least_s)
        assert least_s < LIMIT_S_A_TURN, body[:80]
    record_property(TOLD, f"the longest record of {what}: {longest_s * 1000:.0f} ms")


def test_keys_of_events_for_very_many_people_are_looked_at_for_a_bounded_time() -> None:
    people = tuple(f"u{number}" for number in range(10_000))
    made = encode("t", {}, users=people, switchable=True, collapse="k")
    entries = [Entry("0", number, number, 0, made) for number in range(1, 501)]
    began = time.thread_time()
    for each in entries:
        Newest(most=10).note(each)
    for place in range(0, 500, 100):
        # Somebody who has none of them: each entry is gone through to its end.
        Ahead(entries[place:], "nobody", lambda _: True)
    assert time.thread_time() - began < 10 * LIMIT_S_A_TURN
    began = time.thread_time()
    Ahead(entries, "nobody", lambda _: True)
    assert time.thread_time() - began < LIMIT_S_A_TURN


def test_an_entry_for_many_people_is_counted_by_its_names() -> None:
    names = tuple(NAMES)
    tail = LogTail("0", keep_bytes=8 * MIB)
    tail.begin(Head("e", 0, 1, 0, 0), ())
    for number in range(1, 101):
        publication = encode("t", 1, users=names)
        tail.append(Entry("0", number, number, int(time.time() * 1000), publication))
    # Each takes 1.6 MB.
    assert tail.mark.number - tail.first < 8
