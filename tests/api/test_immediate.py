"""What the HTTP protocol answers itself is, byte for byte, what ASGI answers."""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import jwt
import pytest
from starlette.requests import HTTPConnection

from pushsse import event
from pushsse.api.events import EmbeddedIntake
from pushsse.api.identity import PUBLISH, Identity
from pushsse.api.stream import OpeningRate
from pushsse.errors import DatabaseUnavailable, Overloaded
from pushsse.hub import opening
from pushsse.hub.opening import Opener
from pushsse.hub.people import GATHER_S
from pushsse.node import Node
from pushsse.people import StateTable
from pushsse.stream.handover import HandoverHttp
from pushsse.stream.immediate import MOST_BYTES, Answer, ImmediateHttp
from tests.serving import Running, serving
from tests.waiting import LIMIT_S, eventually

# An event or a stream whose people can't be read at once is left to ASGI.
pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("patient_reader")]
SECRET = "a secret of thirty-two bytes and more"
EVENT = b'{"type":"alarm","to":{"users":["ann"]},"message":"x","id":"one"}'
# What differs from one answer to the next: ids that are made, and the stream's.
_IN_READY = {
    rb"retry: \d+": b"retry: made",
    rb'"stream":"\w+"': b'"stream":"made"',
    rb'"node":"[^"]+"': b'"node":"made"',
    rb"id: \S+": b"id: made",
    rb"\r\n[0-9a-f]+\r\n": b"\r\nsize\r\n",
}
_MADE = re.compile(rb"[0-9A-HJKMNP-TV-Z]{26}")


def post(
    body: bytes = EVENT,
    target: bytes = b"/v1/events",
    *headers: bytes,
    version: bytes = b"1.1",
    kind: bytes = b"application/json",
) -> bytes:
    """A request that publishes."""
    lines = [
        b"POST %b HTTP/%b" % (target, version),
        b"Host: 127.0.0.1",
        b"Content-Type: " + kind,
        b"Content-Length: %d" % len(body),
        *headers,
    ]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


# What is sent in one piece, and how many of its requests the protocol answers itself.
CASES = {
    "an event": (post(), 1),
    "an event without an id": (post(EVENT.replace(b',"id":"one"', b"")), 1),
    "a broadcast": (post(b'{"type":"alarm","to":"all","message":1}'), 1),
    "people of many shards": (post(EVENT.replace(b'["ann"]', b'["ann","bo","cleo","dan"]')), 1),
    "a media type with a charset": (post(kind=b"Application/JSON; charset=utf-8"), 1),
    "an identity": (post(EVENT, b"/v1/events?user=bo"), 1),
    "a byte order mark": (post(b"\xef\xbb\xbf" + EVENT), 1),
    "close": (post(EVENT, b"/v1/events", b"Connection: close"), 1),
    "keep-alive": (post(EVENT, b"/v1/events", b"Connection: keep-alive"), 1),
    "far more people than are dispatched at once": (
        post(EVENT.replace(b'"ann"', b",".join(b'"u%d"' % number for number in range(300)))),
        0,
    ),
    "HTTP/1.0": (post(version=b"1.0"), 0),
    "HTTP/1.0, kept": (post(EVENT, b"/v1/events", b"Connection: keep-alive", version=b"1.0"), 0),
    "continue": (post(EVENT, b"/v1/events", b"Expect: 100-continue"), 0),
    "an upgrade": (post(EVENT, b"/v1/events", b"Connection: upgrade", b"Upgrade: h2c"), 0),
    "chunked": (
        b"POST /v1/events HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n"
        b"Content-Type: application/json\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(EVENT), EVENT),
        0,
    ),
    "gzip that isn't": (post(EVENT, b"/v1/events", b"Content-Encoding: gzip"), 0),
    "identity as encoding": (post(EVENT, b"/v1/events", b"Content-Encoding: identity"), 0),
    "NDJSON": (post(EVENT + b"\n" + EVENT.replace(b"one", b"two"), kind=b"application/x-ndjson"), 0),
    "NDJSON that says JSON": (post(EVENT + b"\n" + EVENT.replace(b"one", b"two")), 0),
    "text": (post(b"deployed", b"/v1/events?type=deploy&to=all", kind=b"text/plain"), 0),
    "another media type": (post(kind=b"text/html"), 0),
    "no body": (post(b""), 0),
    "not JSON": (post(b"{"), 0),
    "NaN": (post(EVENT.replace(b'"x"', b"NaN")), 0),
    "not UTF-8": (post(EVENT.replace(b'"x"', b'"\xff"')), 0),
    "an unknown member": (post(EVENT.replace(b'"id"', b'"colour"')), 0),
    "no recipients": (post(EVENT.replace(b'["ann"]', b"[]")), 0),
    "a reserved type": (post(EVENT.replace(b"alarm", b"ready")), 0),
    "a Host that is none": (post().replace(b"127.0.0.1", b"127.0.0.1/x@y"), 0),
    "HTTP/2.0": (post(version=b"2.0"), 0),
    "a stranger's Host": (post().replace(b"127.0.0.1", b"example.com"), 0),
    "a proxy": (post(EVENT, b"/v1/events", b"X-Forwarded-For: 10.0.0.1"), 0),
    "a page of another site": (post(EVENT, b"/v1/events", b"Origin: https://example.com"), 0),
    "a user that can't be": (post(EVENT, b"/v1/events?user=%20"), 0),
    "a recipient in the query": (post(EVENT, b"/v1/events?user=bo&to=bo"), 0),
    "a recipient in the query that can't be": (post(EVENT, b"/v1/events?to=%ff"), 0),
    "a type in the query that can't be": (post(EVENT, b"/v1/events?type=ready"), 0),
    "an escaped type in the query": (post(EVENT, b"/v1/events?%74ype=a%20b"), 0),
    "a fragment": (post(EVENT, b"/v1/events?user=bo#x"), 0),
    "an escaped path": (post(EVENT, b"/v1/%65vents"), 0),
    "an absolute target": (post(EVENT, b"http://127.0.0.1/v1/events"), 0),
    "a slash more": (post(EVENT, b"/v1/events/"), 0),
    "too large": (post(EVENT.replace(b'"x"', b'"' + b"x" * MOST_BYTES + b'"')), 0),
    "two in one piece": (post() + post(EVENT.replace(b"one", b"two")), 0),
    "one and a half": (post() + post()[:40], 0),
    "a broken header": (post(EVENT, b"/v1/events", b"No colon"), 0),
    "a length that isn't": (post(EVENT, b"/v1/events", b"Content-Length: 5"), 0),
    "an empty line before it": (b"\r\n" + post(), 0),
    "HEAD": (b"HEAD /v1/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 0),
    "OPTIONS": (b"OPTIONS /v1/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 0),
}


def get(target: bytes = b"/v1/stream?user=ann", *headers: bytes, method: bytes = b"GET") -> bytes:
    """A request for a stream."""
    lines = [b"%b %b HTTP/1.1" % (method, target), b"Host: 127.0.0.1", *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n"


# What is sent, and whether the protocol opens the stream itself.
STREAMS = {
    "a stream": (get(), True),
    "close": (get(b"/v1/stream?user=ann", b"Connection: close"), True),
    "some types, without names": (get(b"/v1/stream?user=ann&types=alarm,news&named=0"), True),
    "a position of another epoch": (get(b"/v1/stream?user=ann", b"Last-Event-ID: abcd-1.abcd-2"), False),
    "a position that isn't one": (get(b"/v1/stream?user=ann", b"Last-Event-ID: x"), True),
    "the past": (get(b"/v1/stream?user=ann&since=5m"), False),
    "a body": (get(b"/v1/stream?user=ann", b"Content-Length: 2") + b"ab", False),
    "a parameter that can't be": (get(b"/v1/stream?user=ann&named=2"), False),
    "a user that can't be": (get(b"/v1/stream?user=%20"), False),
    "a stranger's Host": (get().replace(b"127.0.0.1", b"example.com"), False),
    "HTTP/1.0": (get().replace(b"HTTP/1.1", b"HTTP/1.0"), False),
    "HEAD": (get(method=b"HEAD"), False),
}


@pytest.fixture
async def plain(tmp_path: Path) -> AsyncIterator[Running]:
    (tmp_path / "plain").mkdir()
    # Their `ready` says in how many seconds they end, which is random where there is a lifetime.
    async with serving(tmp_path / "plain", http=HandoverHttp, stream_lifetime_s=0) as running:
        yield running


@pytest.fixture
def counted() -> list[bool]:
    """Of each request that had an immediate call: whether it was answered by that."""
    return []


@pytest.fixture
async def immediate(tmp_path: Path, counted: list[bool]) -> AsyncIterator[Running]:
    class Counting(ImmediateHttp):
        def reply(self, answer: Answer, body: bytes, *, keep_alive: bool) -> bool:
            answered = super().reply(answer, body, keep_alive=keep_alive)
            counted.append(answered)
            return answered

        def stop_waiting(self) -> None:
            counted.append(False)
            super().stop_waiting()

    (tmp_path / "immediate").mkdir()
    async with serving(tmp_path / "immediate", http=Counting, stream_lifetime_s=0) as running:
        yield running


async def exchange(node: Running, *pieces: bytes) -> bytes:
    """All that is answered to what is sent piece by piece, and to a last request that closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
    last = b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    async with asyncio.timeout(10):
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0.05)
        writer.write(last)
        answer = await reader.read(-1)
    writer.close()
    return _MADE.sub(b"made", answer.replace(str(node.port).encode(), b"port"))


@pytest.mark.parametrize("case", CASES)
async def test_an_answer_is_the_same_byte_for_byte(
    case: str, plain: Running, immediate: Running, counted: list[bool]
) -> None:
    request, at_once = CASES[case]
    assert await exchange(immediate, request) == await exchange(plain, request)
    assert sum(counted) == at_once


@pytest.fixture
def storm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each stream opens as if others did."""
    monkeypatch.setattr(OpeningRate, "is_calm", lambda _: False)


@pytest.fixture
def slow_storm(storm: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each stream waits for others, for so long that something can happen meanwhile."""
    monkeypatch.setattr(opening, "GATHER_S", 0.2)


@pytest.mark.parametrize("thick_and_fast", [False, True])
@pytest.mark.parametrize("case", STREAMS)
async def test_a_stream_begins_the_same_byte_for_byte(
    case: str,
    thick_and_fast: bool,
    plain: Running,
    immediate: Running,
    counted: list[bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    request, at_once = STREAMS[case]
    if thick_and_fast:
        monkeypatch.setattr(OpeningRate, "is_calm", lambda _: False)

    async def begin(node: Running) -> bytes:
        """What comes until the stream's first frame, or the answer of another kind, is there."""
        # So that the node hears the logs of this person.
        async with node.stream("ann") as first:
            await first.ready()
        # Streams that come thick and fast are opened together.
        await asyncio.sleep(2 * GATHER_S)
        counted.clear()
        reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
        answer = b""
        async with asyncio.timeout(10):
            writer.write(request)
            while b"\n\n" not in answer and not answer.endswith((b"}", b"\r\n\r\n")):
                answer += await reader.read(10_000) or b"\n\n"
        writer.close()
        for made, name in _IN_READY.items():
            answer = re.sub(made, name, answer)
        return answer

    begun = await begin(immediate)
    opened = list(counted)
    assert begun == await begin(plain)
    assert (bool(opened) and all(opened)) == at_once


def poll(*headers: bytes) -> bytes:
    return get(b"/v1/events?user=ann&wait_s=1", *headers)


# By the number of requests that the protocol answers itself.
OF_ONE_SITE = {
    "an event": (post(), 1),
    "an event, and close": (post(EVENT, b"/v1/events", b"Connection: close"), 1),
    "the same head again": (post(), 1),
    "what is no event": (post(b"{"), 0),
    "a stream": (get(), 1),
    "a stream, and close": (get(b"/v1/stream?user=ann", b"Connection: close"), 1),
    "a poll": (poll(), 1),
    "a page's stream": (get(b"/v1/stream?user=ann", b"Origin: https://friend.example"), 0),
}


@pytest.mark.parametrize("case", OF_ONE_SITE)
async def test_where_other_sites_are_let_in_caches_are_told_on_either_way(case: str, tmp_path: Path) -> None:
    request, at_once = OF_ONE_SITE[case]
    found, counted = [], list[bool]()

    class Counting(ImmediateHttp):
        def reply(self, answer: Answer, body: bytes, *, keep_alive: bool) -> bool:
            counted.append(super().reply(answer, body, keep_alive=keep_alive))
            return counted[-1]

    for name, http in (("plain", HandoverHttp), ("immediate", Counting)):
        (tmp_path / name).mkdir()
        origins = ("https://friend.example",)
        async with (
            serving(tmp_path / name, http=http, allowed_origins=origins, stream_lifetime_s=0) as node,
            node.stream("ann") as first,
        ):
            await first.ready()
            await asyncio.sleep(2 * GATHER_S)
            counted.clear()
            reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
            async with asyncio.timeout(LIMIT_S):
                if case == "the same head again":
                    writer.write(request)
                    await reader.readuntil(b"}")
                    counted.clear()
                writer.write(request)
                found.append(await reader.readuntil(b"\r\n\r\n"))
            writer.close()
    assert sum(counted) == at_once
    assert found[0] == found[1]
    assert found[1].lower().count(b"\r\nvary: origin\r\n") == 1


async def begun(node: Running, *requests: bytes) -> list[bytes]:
    """What answers requests that are sent at once, each on a connection of its own, up to the first event."""
    connections = [await asyncio.open_connection("127.0.0.1", node.port) for _ in requests]
    for (_, writer), request in zip(connections, requests, strict=True):
        writer.write(request)
    async with asyncio.timeout(10):
        found = [await reader.readuntil(b"\n\n") for reader, _ in connections]
    for _, writer in connections:
        writer.close()
    return found


@pytest.mark.usefixtures("storm")
async def test_a_storm_of_streams_goes_to_whom_they_belong(immediate: Running, counted: list[bool]) -> None:
    # The shards of all are followed before.
    users = [b"user%d" % number for number in range(150)]
    requests = [get(b"/v1/stream?user=" + user) for user in users]
    await begun(immediate, *requests)
    counted.clear()
    answers = await begun(immediate, *requests)
    assert counted == [True] * len(users)
    for user, answer in zip(users, answers, strict=True):
        assert b'"user":"%b"' % user in answer
    await eventually(lambda: not immediate.node.hub.subscribers)
    assert not any(shard.people for shard in immediate.node.hub.shards.values())


@pytest.mark.usefixtures("slow_storm")
async def test_a_client_that_leaves_before_its_stream_begins_leaves_nothing(immediate: Running) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", immediate.port)
    writer.write(get())
    hub = immediate.node.hub
    await eventually(lambda: any(shard.people for shard in hub.shards.values()))
    writer.close()
    await eventually(lambda: not any(shard.people for shard in hub.shards.values()))
    assert not hub.subscribers
    assert hub.metrics.streams_opened == 0


@pytest.mark.usefixtures("storm")
async def test_a_client_that_leaves_gives_up_its_place_among_those_that_wait(
    immediate: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "GATHER_S", 10 * LIMIT_S)
    hub = immediate.node.hub
    leaving = [await asyncio.open_connection("127.0.0.1", immediate.port) for _ in range(10)]
    for _, writer in leaving:
        writer.write(get())
    await eventually(
        lambda: [p.holds for shard in hub.shards.values() for p in shard.people.values()] == [10]
    )
    for _, writer in leaving:
        writer.close()
    # Long before their turn.
    await eventually(lambda: not any(shard.people for shard in hub.shards.values()))
    assert hub.metrics.streams_opened == 0


@pytest.mark.usefixtures("slow_storm")
async def test_a_request_behind_one_that_waits_is_answered_after_it(immediate: Running) -> None:
    answer = await exchange(immediate, get())
    # As when ASGI has both: the stream can't have the connection, and is over.
    stream, _, livez = answer.partition(b"0\r\n\r\n")
    assert stream.startswith(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream")
    assert livez.startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.usefixtures("slow_storm")
@pytest.mark.parametrize("connection", [b"close", b"keep-alive"])
async def test_a_request_that_waits_is_answered_when_the_server_stops(
    immediate: Running, connection: bytes
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", immediate.port)
    writer.write(get(b"/v1/stream?user=ann", b"Connection: " + connection))
    hub = immediate.node.hub
    await eventually(lambda: any(shard.people for shard in hub.shards.values()))
    [waiting] = [each for each in immediate.connections if isinstance(each, ImmediateHttp)]
    waiting.shutdown()
    async with asyncio.timeout(10):
        answer = await reader.readuntil(b"\n\n")
    assert b"connection: close\r\n" in answer
    assert b"event: ready" in answer
    writer.close()


@pytest.mark.usefixtures("slow_storm")
async def test_streams_that_open_together_are_no_more_than_the_node_has_room_for(tmp_path: Path) -> None:
    async with serving(tmp_path, http=ImmediateHttp, max_streams=2) as node:
        answers = await begun(node, *[get()] * 4)
    assert sorted(b"overloaded" in answer for answer in answers) == [False, False, True, True]


@pytest.mark.usefixtures("storm")
async def test_who_opens_a_stream_in_a_storm_without_a_database_is_told_to_come_back(
    immediate: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object) -> None:
        raise DatabaseUnavailable("away")

    await begun(immediate, get())
    monkeypatch.setattr(StateTable, "read", away)
    monkeypatch.setattr(StateTable, "read_nowait", lambda *_: None)
    answers = await begun(immediate, *[get()] * 3)
    assert all(b"overloaded" in answer for answer in answers)
    monkeypatch.undo()
    [answer] = await begun(immediate, get())
    assert b"event: ready" in answer


@pytest.mark.parametrize("calm", [True, False])
async def test_a_stream_is_opened_where_it_has_got_to_and_a_switch_holds(
    calm: bool, immediate: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OpeningRate, "is_calm", lambda _: calm)
    async with immediate.stream("ann") as stream:
        await stream.ready()
        await immediate.publish("alarm", 1, to="ann")
        await stream.next()
        first = stream.last_id
    await immediate.publish("alarm", 2, to="ann")
    await immediate.publish("news", 3, to="ann")
    await eventually(lambda: immediate.node.catalogue.size == 2)
    await immediate.switch("ann", news=False)
    async with immediate.stream("ann", Last_Event_ID=first) as stream:
        assert (await stream.ready())["resume"] == "complete"
        await immediate.publish("news", 4, to="ann")
        await immediate.publish("alarm", 5, to="ann")
        assert await stream.messages(2) == [2, 5]


async def test_an_idle_connection_is_closed_and_a_busy_one_is_not(immediate: Running) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", immediate.port)
    writer.write(post())
    async with asyncio.timeout(10):
        await reader.readuntil(b"}")
        [connection] = [each for each in immediate.connections if isinstance(each, ImmediateHttp)]
        connection.timeout_keep_alive = 1
        began = asyncio.get_running_loop().time()
        # Uvicorn's own timer of 75 s is replaced by the next request that goes through the parser.
        writer.write(b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        await reader.readuntil(b"}")
        for _ in range(2):
            await asyncio.sleep(0.4)
            writer.write(post())
            await reader.readuntil(b"}")
        assert await reader.read(-1) == b""
    assert 1.7 < asyncio.get_running_loop().time() - began < 5
    writer.close()


async def test_a_head_that_comes_again_is_answered_with_any_body(
    plain: Running, immediate: Running, counted: list[bool]
) -> None:
    longer = post(EVENT.replace(b'"x"', b'"' + b"x" * 200 + b'"').replace(b"one", b"two"))
    # The same head, but not the same request.
    others = [
        post().replace(b"Content-Length: ", b"Content-Length:  "),
        post().replace(b"Content-Length: ", b"Content-Length: 0"),
        post(EVENT.replace(b"one", b"three"), b"/v1/events", b"X-Length: content-length: 7"),
        post(EVENT.replace(b"one", b"four"), b"/v1/events", b"X-Length: content-length: 7"),
        post(b"{"),
        post()[:60],
        post()[60:],
        post(EVENT, b"/v1/events", b"Expect: 100-continue"),
        longer + post(EVENT.replace(b"one", b"five")),
        longer,
        longer.replace(b"application/json", b"application/jsom"),
    ]
    pieces = [post(), longer, post(EVENT.replace(b"one", b"zero")), *others]
    assert await exchange(immediate, *pieces) == await exchange(plain, *pieces)
    assert sum(counted) == 8


async def test_a_body_is_whole_or_not_also_where_its_length_gets_one_more_digit(
    plain: Running, immediate: Running, counted: list[bool]
) -> None:
    def sized(size: int) -> bytes:
        event = EVENT.replace(b"one", b"%d" % size)
        return event.replace(b'"x"', b'"' + b"x" * (size - len(event) + 1) + b'"')

    sizes = [*range(95, 102), *range(994, 1003)]
    assert [len(sized(size)) for size in sizes] == sizes
    # An empty line behind one is no part of it, and the last byte of one may come later.
    whole = post(sized(996))
    pieces = [*[post(sized(size)) for size in sizes], whole + b"\n", whole[:-1], whole[-1:]]
    assert await exchange(immediate, *pieces) == await exchange(plain, *pieces)
    assert sum(counted) == len(sizes)


async def test_a_token_that_ends_between_two_requests_with_the_same_head_is_refused(tmp_path: Path) -> None:
    async with serving(tmp_path, http=ImmediateHttp, jwt_secret=SECRET) as node:
        ends_at = time.time() + 1.5
        claims = {"sub": "producer", "exp": ends_at, "scope": "pushsse:publish"}
        token = jwt.encode(claims, SECRET, algorithm="HS256").encode()
        request = post(EVENT, b"/v1/events", b"Authorization: Bearer " + token)
        reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
        statuses: list[bytes] = []
        async with asyncio.timeout(10):
            while b" 401 " not in statuses:
                writer.write(request)
                head = await reader.readuntil(b"\r\n\r\n")
                statuses.append(head[8:13])
                length = int(re.search(rb"content-length: (\d+)", head)[1])  # type: ignore[index]
                await reader.readexactly(length)
                await asyncio.sleep(0.1)
        writer.close()
    assert set(statuses[:-1]) == {b" 202 "}
    assert time.time() >= ends_at


async def test_a_body_of_several_pieces_is_no_head_without_end(tmp_path: Path) -> None:
    body = b'{"type":"alarm","to":"all","message":"%b"}' % (b"x" * 14_000)
    async with serving(tmp_path, http=ImmediateHttp, head_bytes=2048) as node:
        answer = await exchange(node, post(body))
    assert answer.startswith(b"HTTP/1.1 202 ")


async def test_empty_lines_before_a_request_do_not_move_its_body(
    immediate: Running, counted: list[bool]
) -> None:
    answer = await exchange(immediate, b"\r\n\r\n" + post(EVENT))
    assert answer.startswith(b"HTTP/1.1 202 ")
    assert not any(counted)


async def test_a_call_that_fails_is_logged_and_answered_by_asgi(
    immediate: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(EmbeddedIntake, "accept_nowait", fail)
        answer = await exchange(immediate, post(EVENT))
    assert answer.startswith(b"HTTP/1.1 202 ")
    assert "a call failed that is answered without ASGI" in caplog.text


@pytest.mark.usefixtures("storm")
async def test_a_request_that_could_not_wait_is_answered_once(
    immediate: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        monkeypatch.setattr(Node, "has_room", lambda _: False)
        raise Overloaded("too many wait")

    async with immediate.stream("ann") as first:
        await first.ready()
        monkeypatch.setattr(Opener, "begin_soon", refuse)
        reader, writer = await asyncio.open_connection("127.0.0.1", immediate.port)
        async with asyncio.timeout(10):
            writer.write(get())
            assert b'"overloaded"' in await reader.readuntil(b"\n\n")
            # Behind it, it would be answered again.
            writer.write(get(b"/livez"))
            answer = await reader.readuntil(b"}")
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert answer.endswith(b'"status":"alive"}')
        writer.close()


@pytest.mark.parametrize("calm", [True, False])
async def test_a_stream_that_fails_as_it_begins_leaves_nothing(
    calm: bool, immediate: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    async with immediate.stream("ann") as first:
        await first.ready()
        monkeypatch.setattr(OpeningRate, "is_calm", lambda _: calm)
        with monkeypatch.context() as patch:
            patch.setattr(Opener, "ready", fail)
            reader, writer = await asyncio.open_connection("127.0.0.1", immediate.port)
            writer.write(get())
            with suppress(ConnectionError):
                assert await asyncio.wait_for(reader.read(-1), 10) == b""
            writer.close()
        assert len(immediate.node.hub.subscribers) == 1
        assert "ZeroDivisionError" in caplog.text
        # The one beside it goes on.
        await immediate.publish("news", 1, to="ann")
        assert await first.messages(1) == [1]


async def test_no_event_is_decoded_and_no_token_checked_twice_where_it_has_to_be_waited_for(
    immediate: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In development, `identify` is this as well.
    identifier = type(immediate.node.identifier)
    identify, checked = identifier.identify_nowait, list[str]()

    def checking(self: Any, request: HTTPConnection, scope: str) -> Identity | None:
        checked.append(scope)
        return identify(self, request, scope)

    decoded: list[bytes] = []
    decode = event.decode

    def counting(body: bytes) -> event.Event:
        decoded.append(body)
        return decode(body)

    monkeypatch.setattr(event, "decode", counting)
    monkeypatch.setattr(EmbeddedIntake, "takes_nowait", False)
    monkeypatch.setattr(identifier, "identify_nowait", checking)
    assert (await exchange(immediate, post(EVENT))).startswith(b"HTTP/1.1 202 ")
    assert decoded == [EVENT]
    assert checked == [PUBLISH]
