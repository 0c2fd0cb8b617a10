"""What a stream does, whichever way it is written: over the connection itself, and over sse-starlette; over
plain TCP and over TLS."""

import asyncio
import gc
import json
import re
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import httpx
import jwt
import pytest

from deploy.parts import PartMissing
from deploy.parts.certificate import Certificate, make_certificate
from pushsse.errors import BackplaneUnavailable
from pushsse.hub import heartbeat
from pushsse.hub.opening import From, Opener, Opening
from pushsse.position import parse
from pushsse.server import GRACE_S, Http
from pushsse.stream.handover import HandoverHttp, StreamProtocol
from pushsse.stream.portable import QueueStream
from pushsse.stream.subscriber import Subscriber
from tests.leftovers import Leftovers
from tests.parts import missing
from tests.serving import Running, serving
from tests.waiting import eventually

pytestmark = pytest.mark.anyio
PER_STREAM = (HandoverHttp, StreamProtocol, QueueStream, Subscriber)
SECRET = "a secret of thirty-two bytes and more"


Serve = Callable[..., AbstractAsyncContextManager[Running]]


@pytest.fixture(params=[HandoverHttp, "h11"], ids=["handover", "h11"])
def http(request: pytest.FixtureRequest) -> Http:
    found: Http = request.param
    return found


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    try:
        return make_certificate(tmp_path_factory.mktemp("certificate"))
    except PartMissing as error:
        missing(str(error))


@pytest.fixture(params=[False, pytest.param(True, marks=pytest.mark.real)], ids=["tcp", "tls"])
def serve(request: pytest.FixtureRequest, http: Http, tmp_path: Path) -> Serve:
    """Starts a node that is served in this way."""
    certificate = request.getfixturevalue("certificate") if request.param else None
    return partial(serving, tmp_path, http=http, certificate=certificate)


@pytest.fixture
async def node(serve: Serve) -> AsyncIterator[Running]:
    async with serve() as running:
        yield running


async def test_the_handover_is_used_where_it_is_offered_and_only_there(node: Running, http: Http) -> None:
    async with node.stream("ann") as stream:
        await stream.ready()
        (subscriber,) = node.node.hub.subscribers
        assert isinstance(subscriber.sink, StreamProtocol) == (http is HandoverHttp)


async def test_a_stream_begins_with_ready_and_carries_what_is_for_its_person(node: Running) -> None:
    async with node.stream("ann") as ann, node.stream("bo") as bo:
        assert ann.response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert "no-store" in ann.response.headers["cache-control"]
        ready = await ann.ready()
        assert ready["user"] == "ann"
        assert ready["resume"] == "new"
        assert ready["window_s"] == 86_400
        # An hour, less up to a fifth.
        assert 2_878 <= ready["expires_in_s"] <= 3_600
        await bo.ready()
        first = await node.publish("news", {"to": "everybody"})
        await node.publish("alarm", "for bo", "bo")
        more = {"desc": "one line", "id": "a-1", "ts": "2026-11-23T08:00:00Z", "ttl_s": 10**7}
        await node.publish("alarm", "for ann", "ann", **more)
        event = await ann.next()
        assert event.event == "news"
        assert json.loads(event.data)["id"] == first
        event = await ann.next()
        assert json.loads(event.data) == {
            "id": "a-1",
            "type": "alarm",
            "message": "for ann",
            "desc": "one line",
            "ts": "2026-11-23T08:00:00Z",
        }
        assert await bo.messages(2) == [{"to": "everybody"}, "for bo"]


async def test_a_frame_is_event_data_id_and_nothing_else(node: Running) -> None:
    async with node.stream("ann") as stream:
        await stream.ready()
        await node.publish("news", "line one\nline two\r\u2028")
        await node.publish("news", "two")
        await stream.messages(2)
        blocks = stream.raw.split(b"\n\n")
        assert blocks.pop() == b""
        ready = rb"retry: [2-5]\d{3}\nevent: ready\ndata: .*\nid: [A-Za-z0-9._-]{1,64}"
        assert re.fullmatch(ready, blocks[0])
        for block in blocks[1:]:
            assert re.fullmatch(rb"event: news\ndata: [^\n\r]*\nid: [A-Za-z0-9._-]{1,64}", block)
        assert len({parse(block.rsplit(b"id: ")[1].decode()) for block in blocks}) == 3


async def test_types_narrow_a_stream_and_named_0_unnames_peoples_events_only(node: Running) -> None:
    async with node.stream("ann", "types=news&named=0") as stream:
        await stream.ready()
        await node.publish("alarm", 1)
        await node.publish("news", 2)
        await node.until_known("alarm")
        await node.switch("ann", alarm=False)
        event = await stream.next()
        assert (event.event, json.loads(event.data)["type"]) == ("message", "news")
        assert (await stream.next()).event == "preferences"


async def test_a_switch_acts_on_all_open_streams_of_a_person_and_on_nobody_elses(node: Running) -> None:
    await node.publish("alarm", 0)
    await node.until_known("alarm")
    async with node.stream("ann") as one, node.stream("ann") as two, node.stream("bo") as other:
        for stream in (one, two, other):
            await stream.ready()
        await node.switch("ann", alarm=False)
        await node.publish("alarm", "off")
        await node.publish("alarm", "off by name", "ann")
        await node.switch("ann", alarm=True)
        await node.publish("alarm", "on")
        for stream in (one, two):
            assert json.loads((await stream.next()).data) == {"types": {"alarm": False}}
            assert json.loads((await stream.next()).data) == {"types": {"alarm": True}}
            assert await stream.messages(1) == ["on"]
        assert await other.messages(2) == ["off", "on"]


async def test_who_comes_back_gets_what_was_missed_in_order_and_once(node: Running) -> None:
    async with node.stream("ann") as stream:
        await stream.ready()
        await node.publish("news", 0)
        await stream.messages(1)
    for number in range(1, 50):
        await node.publish("news", number, "all" if number % 3 else "ann")
        await node.publish("news", "not for ann", "bo")
    async with node.stream("ann", Last_Event_ID=stream.last_id) as again:
        assert (await again.ready())["resume"] == "complete"
        assert await again.messages(49) == list(range(1, 50))
        half = again.last_id
    async with node.stream("ann", f"last_event_id={half}") as last:
        assert (await last.ready())["resume"] == "complete"
        await node.publish("news", "now")
        assert await last.messages(1) == ["now"]


async def test_a_replay_knows_which_switches_held_at_each_point(node: Running) -> None:
    await node.publish("alarm", "first", "ann")
    await node.publish("news", "first")
    await node.until_known("alarm", "news")
    async with node.stream("ann") as stream:
        await stream.ready()
    await node.publish("alarm", "while on")
    await node.publish("news", "news while on")
    await node.switch("ann", alarm=False)
    await node.publish("alarm", "while off")
    await node.switch("ann", alarm=True, news=False)
    await node.publish("alarm", "on again")
    await node.publish("news", "off")
    async with node.stream("ann", Last_Event_ID=stream.last_id) as again:
        await again.ready()
        # What was on then and is on now: the news of before were switched off since.
        assert await again.messages(2) == ["while on", "on again"]
        await node.switch("ann", news=True)
        await node.publish("news", "end")
        assert await again.messages(1) == ["end"]


@pytest.mark.parametrize(
    "position",
    ["forged", "x" * 500, "aaaaaaaa-1.aaaaaaaa-1", "aaaaaaaa-999999999999999.aaaaaaaa-0", "-", "é"],
)
async def test_a_position_that_cannot_be_used_is_told_as_a_gap(node: Running, position: str) -> None:
    async with node.stream("ann", f"last_event_id={position}") as stream:
        assert stream.response.status_code == 200
        assert (await stream.ready())["resume"] == "gap"
        await node.publish("news", "now")
        assert await stream.messages(1) == ["now"]


async def test_a_number_that_never_was_is_a_gap(node: Running) -> None:
    async with node.stream("ann") as stream:
        await stream.ready()
    ahead = re.sub(r"-0\b", "-7", stream.last_id)
    async with node.stream("ann", Last_Event_ID=ahead) as stream:
        assert (await stream.ready())["resume"] == "gap"


async def test_somebody_elses_position_gives_only_ones_own_events(node: Running) -> None:
    async with node.stream("bo") as stream:
        await stream.ready()
    await node.publish("alarm", "for bo", "bo")
    await node.publish("alarm", "for ann", "ann")
    await node.publish("alarm", "for all")
    async with node.stream("ann", Last_Event_ID=stream.last_id) as ann:
        # The broadcast log is the same for both, the log of bo's shard says nothing about ann's.
        assert (await ann.ready())["resume"] == "gap"
        await node.publish("news", "now", "ann")
        assert await ann.messages(2) == ["for all", "now"]
        assert b"for bo" not in ann.raw


async def test_since_starts_in_the_past(node: Running) -> None:
    await node.publish("news", "before")
    async with node.stream("ann", "since=10m") as stream:
        assert (await stream.ready())["resume"] == "complete"
        assert await stream.messages(1) == ["before"]


@pytest.mark.slow
async def test_a_healthy_client_that_resumes_5000_events_is_not_cut(node: Running) -> None:
    async with node.stream("ann") as stream:
        await stream.ready()
    events = [{"type": "news", "to": "all", "message": [n, "x" * 150]} for n in range(5000)]
    for start in range(0, 5000, 2500):
        body = "\n".join(map(json.dumps, events[start : start + 2500]))
        assert (await node.http.post("/v1/events", content=body)).status_code == 202
    async with node.stream("ann", Last_Event_ID=stream.last_id) as again:
        assert [m[0] for m in await again.messages(5000)] == list(range(5000))
        assert node.node.metrics.endings["slow"] == 0


@pytest.mark.slow
async def test_a_slow_reader_is_cut_told_so_and_resumes(serve: Serve, http: Http) -> None:
    async with serve(send_timeout_s=2, backlog_bytes=4096) as node:
        slow = await node.connect(receive_bytes=32_768)
        slow.sendall(b"GET /v1/stream?user=ann HTTP/1.1\r\nHost: localhost\r\n\r\n")
        async with node.stream("bo") as bo:
            await bo.ready()
            await eventually(lambda: len(node.node.hub.subscribers) == 2)
            reading = asyncio.create_task(bo.messages(400))

            async def read_once_cut() -> bytes:
                await eventually(lambda: node.node.metrics.endings["slow"] == 1)
                return await asyncio.to_thread(_everything, slow)

            # While others are still being written to: the end of the stream isn't kept for long.
            told = asyncio.create_task(read_once_cut())
            for number in range(400):
                await node.publish("news", [number, "x" * 4000])
            assert [m[0] for m in await reading] == list(range(400))
            raw = await told
            assert len(node.node.hub.subscribers) == 1
        body = re.sub(rb"\r\n[0-9a-f]+\r\n", b"", raw)
        ids = re.findall(rb"id: (\S+)", body)
        seen = [int(n) for n in re.findall(rb'"message":\[(\d+)', body)]
        assert seen == list(range(len(seen)))
        assert 0 < len(seen) < 400
        if http is HandoverHttp:
            assert b'event: exception\ndata: {"code":"slow"' in body
            assert raw.endswith(b"\r\n0\r\n\r\n")
        async with node.stream("ann", Last_Event_ID=ids[-1].decode()) as again:
            assert (await again.ready())["resume"] == "complete"
            assert (await again.messages(1))[0][0] == len(seen)


async def test_a_quiet_stream_gets_pings_that_carry_its_position(serve: Serve) -> None:
    async with serve(heartbeat_s=0.3) as node, node.stream("ann") as stream:
        await stream.ready()
        event = await stream.next()
        assert (event.event, event.data) == ("ping", "{}")
        for _ in range(3):
            await node.publish("news", 1, "bo")
        await node.publish("news", 2)
        await stream.messages(1)
        assert parse((await stream.until("ping")).id) == parse(stream.last_id)


async def test_head_returns_at_once(node: Running) -> None:
    reply = await node.http.head("/v1/stream?user=ann")
    assert reply.status_code == 200
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert not node.node.hub.subscribers


async def test_a_client_that_leaves_is_forgotten(node: Running) -> None:
    async with node.stream("ann") as stream:
        await stream.ready()
        assert len(node.node.hub.subscribers) == 1
    await eventually(lambda: not node.node.hub.subscribers)
    assert node.node.metrics.endings["disconnected"] == 1
    assert all(not shard.people for shard in node.node.hub.shards.values())


async def test_a_drain_ends_streams_with_shutdown_and_a_clean_end(node: Running) -> None:
    async with node.stream("ann") as stream:
        await stream.ready()
        node.stop()
        events = await stream.rest()
        assert events[-1].event == "exception"
        assert json.loads(events[-1].data)["code"] == "shutdown"
        assert json.loads(events[-1].data)["retry"] is True
        assert stream.ended


@pytest.mark.slow
async def test_a_client_that_does_not_read_cannot_hold_the_end_up(serve: Serve) -> None:
    async with serve(send_timeout_s=60) as node:
        deaf = await node.connect(receive_bytes=4096)
        deaf.sendall(b"GET /v1/stream?user=ann HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await eventually(lambda: node.node.hub.subscribers)
        for number in range(100):
            await node.publish("news", [number, "x" * 20_000])
        began = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - began < GRACE_S
    deaf.close()


@pytest.mark.slow
async def test_a_client_that_does_not_read_is_dropped_in_the_end(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "LINGER_S", 0.5)
    async with serve(send_timeout_s=1, backlog_bytes=4096) as node:
        await node.publish("news", "opens a connection")
        others = len(node.connections)
        deaf = await node.connect(receive_bytes=4096)
        deaf.sendall(b"GET /v1/stream?user=ann HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await eventually(lambda: node.node.hub.subscribers)
        assert len(node.connections) == others + 1
        for number in range(100):
            await node.publish("news", [number, "x" * 20_000])
        await eventually(lambda: len(node.connections) == others)
        assert node.node.metrics.endings["slow"] == 1
        deaf.close()


@pytest.mark.slow
async def test_a_stream_ends_with_its_token(serve: Serve) -> None:
    async with serve(jwt_secret=SECRET) as node:
        token = jwt.encode({"sub": "ann", "exp": time.time() + 2}, SECRET)
        async with node.stream("ann", Authorization=f"Bearer {token}") as stream:
            assert (await stream.ready())["expires_in_s"] in (1, 2)
            events = await stream.rest()
            assert json.loads(events[-1].data) == {
                "code": "token_expired",
                "detail": "the token has expired, come back with a new one",
                "retry": False,
            }
            assert b"retry: 300000\nevent: exception" in stream.raw
        publisher = {"sub": "ops", "exp": time.time() + 60, "scope": "pushsse:publish"}
        node.http.headers["Authorization"] = f"Bearer {jwt.encode(publisher, SECRET)}"
        await node.publish("news", "missed", "ann")
        del node.http.headers["Authorization"]
        # Neither the ended token nor none opens it, whatever else the URL says: never somebody else's stream.
        for headers in ({"Authorization": f"Bearer {token}"}, {}):
            refused = await node.http.get(
                "/v1/stream?user=ann", headers={"Last-Event-ID": stream.last_id, **headers}
            )
            code = "token_expired" if headers else "token_missing"
            assert (refused.status_code, refused.json()["code"]) == (401, code)
        fresh = f"Bearer {jwt.encode({'sub': 'ann', 'exp': time.time() + 60}, SECRET)}"
        async with node.stream("ann", Authorization=fresh, Last_Event_ID=stream.last_id) as again:
            assert (await again.ready())["resume"] == "complete"
            assert await again.messages(1) == ["missed"]


async def test_a_stream_that_has_reached_its_age_is_told_to_come_back_at_once(serve: Serve) -> None:
    async with serve(stream_lifetime_s=2.0, heartbeat_s=1.0) as node, node.stream("ann") as stream:
        assert (await stream.ready())["expires_in_s"] in (1, 2)
        last = (await stream.rest())[-1]
        assert json.loads(last.data) == {
            "code": "lifetime",
            "detail": "this stream has reached its age, come back with the last id",
            "retry": True,
        }
        assert last.retry is not None
        assert 100 <= last.retry <= 1_000
        await node.publish("news", "meanwhile")
        async with node.stream("ann", Last_Event_ID=last.id) as again:
            assert (await again.ready())["resume"] == "complete"
            assert await again.messages(1) == ["meanwhile"]


async def test_without_a_lifetime_and_a_token_a_stream_has_no_end(serve: Serve) -> None:
    async with serve(stream_lifetime_s=0.0) as node, node.stream("ann") as stream:
        assert (await stream.ready())["expires_in_s"] is None


async def test_a_full_node_asks_to_come_back_later_with_a_200(serve: Serve) -> None:
    async with serve(max_streams=1) as node, node.stream("ann") as stream:
        await stream.ready()
        reply = await node.http.get("/v1/stream?user=bo")
        assert reply.status_code == 200
        assert reply.headers["content-type"].startswith("text/event-stream")
        assert re.match(r"retry: \d{4,5}\nevent: exception\ndata: \{\"code\":\"overloaded\"", reply.text)


async def test_streams_that_cant_begin_are_one_line_in_the_log_however_many_they_are(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(opener: Opener, user: str, wish: From) -> AbstractAsyncContextManager[Opening]:
        raise BackplaneUnavailable("no answer within 1.5 s")

    monkeypatch.setattr(Opener, "opening", away)
    async with serve() as node:
        replies = await asyncio.gather(*[node.http.get(f"/v1/stream?user=u{n}&since=1m") for n in range(20)])
    assert all("overloaded" in reply.text for reply in replies)
    assert caplog.text.count("a stream can't begin") == 1


async def test_streams_that_waited_together_are_no_more_than_the_node_has_room_for(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting: list[str] = []
    opening = Opener.opening

    @asynccontextmanager
    async def all_at_once(opener: Opener, user: str, wish: From) -> AsyncIterator[Opening]:
        async with opening(opener, user, wish) as opened:
            waiting.append(user)
            await eventually(lambda: len(waiting) == 4)
            yield opened

    monkeypatch.setattr(Opener, "opening", all_at_once)
    async with serve(max_streams=2) as node, AsyncExitStack() as stack:
        # Who asks for the past is never answered without waiting.
        asked = [stack.enter_async_context(node.stream(f"u{n}", "since=1m")) for n in range(4)]
        streams = await asyncio.gather(*asked)
        names = [(await stream.next()).event for stream in streams]
        assert node.node.metrics.limited["streams"] == 2
    assert sorted(names) == ["exception", "exception", "ready", "ready"]


async def test_no_stream_begins_once_the_last_ones_have_been_ended(node: Running) -> None:
    async with node.stream("ann") as stream:
        await stream.ready()
        # A connection that is there already is served to the end.
        await node.http.get("/livez")
        await node.node.leave(window_s=0.0)
        assert [json.loads(event.data)["code"] for event in await stream.rest()] == ["shutdown"]
    for query in ("user=bo", "user=bo&since=1m"):
        reply = await node.http.get(f"/v1/stream?{query}")
        assert reply.status_code == 200
        assert "event: exception" in reply.text
        assert "overloaded" in reply.text
    assert not node.node.hub.subscribers


@pytest.mark.parametrize("query", ["since=soon", "since=-5m", "types=a%20b", "types=a,b%20c", "named=2"])
async def test_a_request_that_can_never_work_is_a_400_that_names_it(node: Running, query: str) -> None:
    reply = await node.http.get(f"/v1/stream?user=ann&{query}")
    assert reply.status_code == 400
    assert query.split("=")[0] in reply.json()["detail"]


async def test_two_requests_on_one_connection_do_not_confuse_the_stream(node: Running) -> None:
    reader, writer = await asyncio.open_connection("localhost", node.port, ssl=node.trust)
    writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert b"200" in await reader.readline()
    await reader.readuntil(b'"alive"}')
    writer.write(b"GET /v1/stream?user=ann HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await reader.readuntil(b"event: ready")
    await node.publish("news", "after")
    await asyncio.wait_for(reader.readuntil(b"after"), 5)
    writer.close()
    await eventually(lambda: not node.node.hub.subscribers)


def _everything(connection: socket.socket) -> bytes:
    connection.settimeout(5)
    found = b""
    try:
        while piece := connection.recv(65536):
            found += piece
    except (TimeoutError, ConnectionResetError):
        pass
    connection.close()
    return found


async def test_browsers_of_named_origins_are_let_in(serve: Serve) -> None:
    options = {"jwt_secret": SECRET, "allowed_origins": "https://h5.example"}
    async with serve(**options) as node:
        token = jwt.encode({"sub": "ann", "exp": time.time() + 60}, SECRET)
        headers = {"Authorization": f"Bearer {token}", "Origin": "https://h5.example"}
        async with node.stream("ann", **headers) as stream:
            await stream.ready()
            assert stream.response.headers["access-control-allow-origin"] == "https://h5.example"
        reply = await node.http.get("/v1/preferences", headers=headers | {"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in reply.headers
        assert isinstance(reply, httpx.Response)


@pytest.mark.slow
async def test_a_stream_leaves_nothing_to_the_collector_of_cycles(serve: Serve) -> None:
    # Before the node is there: it would take the time of a collection for an outage of its database.
    left = Leftovers(*PER_STREAM)
    async with serve(heartbeat_s=1.0) as node:
        gc.disable()
        try:
            for _ in range(10):
                async with node.stream("ann") as stream:
                    await stream.ready()
            # The heartbeat lets go of them when it would have pinged.
            await eventually(lambda: not left.found())
        finally:
            gc.enable()
