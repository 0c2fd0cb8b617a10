"""`/v1/questions` over HTTP: validation, paging, the answer in the reply."""

import asyncio
import json
import socket
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import nullcontext
from functools import partial

import httpx
import httpx_sse
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Route

from pushsse.api import HANDLERS, CallLimit
from pushsse.api.identity import EVERY_SCOPE, DevelopmentIdentifier, Identity
from pushsse.api.questions import QuestionsEndpoint
from pushsse.api.replies import Replies, StreamedReply
from pushsse.hub.hub import Hub
from pushsse.kicks import Kicked
from pushsse.questions import Answered, By, Question
from pushsse.questions.answerers import Delta, Piece
from pushsse.questions.following import Following
from pushsse.questions.service import Asking, Desk, Questions
from tests.questions.conftest import Away, Nodes, Scripted, grown_text, running, running_hub
from tests.serving import started
from tests.waiting import eventually

pytestmark = pytest.mark.anyio
ANN = {"user": "ann"}


class Gate:
    """An answerer that says half of its answer, and the rest when it may."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.open.set()

    async def script(self, question: Question) -> AsyncGenerator[Piece, None]:
        yield Delta("one ")
        await self.open.wait()
        yield Delta("two")
        yield Answered(By("bot", "test"))


class Site:
    """A server, its service, and what a test turns."""

    def __init__(self, client: httpx.AsyncClient, service: Questions, gate: Gate, hub: Hub) -> None:
        self.client = client
        self.hub = hub
        self.service = service
        self.gate = gate
        self.draining = False
        self.kicked = Kicked()
        self.limited: Counter[str] = Counter()

    async def ask(self, body: object, **options: object) -> httpx.Response:
        return await self.client.post("/v1/questions", params=ANN, json=body, **options)  # type: ignore[arg-type]


@pytest.fixture
async def site(nodes: Nodes) -> AsyncIterator[Site]:
    gate = Gate()
    service = nodes.node(Scripted(gate.script))
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    async with (
        httpx.AsyncClient(base_url=url, timeout=10, verify=False) as client,
        running_hub(nodes, service) as parts,
    ):
        found = Site(client, service, gate, parts.hub)
        replies = Replies(per_user=2, limited=found.limited)
        reply = StreamedReply(Following(service, parts.hub, found, found.kicked), replies, heartbeat_s=0.6)
        limit = CallLimit("questions", 0, "ask", nodes.backplane, Counter())
        endpoint = QuestionsEndpoint(
            DevelopmentIdentifier(), service, reply, limit, limit, Desk(service.life)
        )
        routes = [
            Route("/v1/questions", endpoint.post, methods=["POST"]),
            Route("/v1/questions", endpoint.get_all, methods=["GET"]),
            Route("/v1/questions/{id}", endpoint.get, methods=["GET"]),
            Route("/v1/questions/{id}/cancel", endpoint.cancel, methods=["POST"]),
        ]
        app = Starlette(routes=routes, exception_handlers=HANDLERS)
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
        server.capture_signals = nullcontext  # type: ignore[method-assign, assignment]
        async with (
            running(service.run()),
            started(server, listener, partial(setattr, server, "should_exit", True)),
        ):
            yield found


def problem(response: httpx.Response, status: int, code: str) -> dict[str, object]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, object] = response.json()
    assert body["code"] == code
    return body


async def until_answered(site: Site, location: str) -> dict[str, object]:
    body: dict[str, object] = {}

    async def ended() -> bool:
        body.update((await site.client.get(location, params=ANN)).json())
        return body["status"] not in ("pending", "answering")

    await eventually(ended)
    return body


async def test_a_question_is_accepted_and_its_answer_can_be_read(site: Site) -> None:
    response = await site.ask({"text": "hello?", "conversation": "c-1", "context": {"page": "/cart"}})
    assert response.status_code == 202
    body = response.json()
    assert set(body) == {"id", "conversation", "status"}
    assert (body["conversation"], body["status"]) == ("c-1", "pending")
    assert response.headers["location"] == f"/v1/questions/{body['id']}"
    found = await until_answered(site, response.headers["location"])
    assert found["context"] == {"page": "/cart"}
    assert found["error"] is None
    assert found["answer"] == {
        "text": "one two",
        "seq": found["answer"]["seq"],  # type: ignore[index]
        "by": {"kind": "bot", "name": "test"},
        "links": [],
        "suggestions": [],
        "truncated": False,
        "parts": [],
    }


async def test_the_answer_streams_in_the_reply_and_the_reply_ends(site: Site) -> None:
    site.gate.open.clear()
    stream = httpx_sse.aconnect_sse(site.client, "POST", "/v1/questions", params=ANN, json={"text": "hello?"})
    heard: list[tuple[str, dict[str, object]]] = []
    async with stream as source:
        assert source.response.status_code == 200
        assert source.response.headers["content-type"].startswith("text/event-stream")
        location = source.response.headers["location"]
        async for event in source.aiter_sse():
            if event.event != "ping":
                heard.append((event.event, json.loads(event.data)))
            if event.event == "answer.delta":
                site.gate.open.set()
    assert heard[0][0] == "question"
    statuses = [found["status"] for name, found in heard if name == "question"]
    assert len(statuses) == len(set(statuses))
    assert location.endswith(str(heard[0][1]["id"]))
    assert heard[-1][0] == "answer"
    assert heard[-1][1]["text"] == "one two"
    assert grown_text([found for name, found in heard if name == "answer.delta"]) == "one two"


async def test_a_quiet_reply_pings_and_a_lost_one_stops_nothing(site: Site) -> None:
    site.gate.open.clear()
    stream = httpx_sse.aconnect_sse(site.client, "POST", "/v1/questions", params=ANN, json={"text": "wait"})
    async with stream as source:
        location = source.response.headers["location"]
        async for event in source.aiter_sse():
            if event.event == "ping":
                break
    site.gate.open.set()
    assert (await until_answered(site, location))["status"] == "answered"


async def test_a_repeat_with_the_same_key_streams_the_end_at_once(site: Site) -> None:
    headers = {"Idempotency-Key": "k-1"}
    first = await site.ask({"text": "hello?"}, headers=headers)
    await until_answered(site, first.headers["location"])
    again = await site.ask({"text": "hello?"}, headers=headers | {"Accept": "text/event-stream"})
    assert again.headers["location"] == first.headers["location"]
    assert [line for line in again.text.split("\n") if line.startswith("event:")] == [
        "event: question",
        "event: answer",
    ]
    problem(await site.ask({"text": "other"}, headers=headers), 422, "invalid")


async def test_a_stopping_node_says_so_in_the_reply(site: Site) -> None:
    site.gate.open.clear()
    stream = httpx_sse.aconnect_sse(site.client, "POST", "/v1/questions", params=ANN, json={"text": "wait"})
    names: list[str] = []
    async with stream as source:
        async for event in source.aiter_sse():
            names.append(event.event)
            site.draining = True
    assert names[-1] == "exception"


@pytest.mark.parametrize("growing", [False, True])
async def test_somebody_who_is_kicked_hears_no_more_of_the_answer(site: Site, growing: bool) -> None:
    site.gate.open.clear()
    stream = httpx_sse.aconnect_sse(site.client, "POST", "/v1/questions", params=ANN, json={"text": "wait"})
    events: list[httpx_sse.ServerSentEvent] = []
    async with stream as source:
        async for event in source.aiter_sse():
            events.append(event)
            if event.event == "answer.delta":
                site.kicked.learn("ann", int(time.time()) + 1)
                if growing:
                    site.gate.open.set()
    assert json.loads(events[-1].data)["code"] == "revoked"
    assert [event.event for event in events].count("answer.delta") == 1
    assert "two" not in "".join(event.data for event in events)
    # The answer goes on without its reply.
    site.gate.open.set()
    [question] = (await site.client.get("/v1/questions", params=ANN)).json()["questions"]
    await until_answered(site, f"/v1/questions/{question['id']}")


async def test_a_reply_ends_with_the_token(site: Site) -> None:
    site.gate.open.clear()
    question = await site.service.ask("ann", Asking("hello?"))
    who = Identity("ann", EVERY_SCOPE, time.time() + 1)
    reply = StreamedReply(Following(site.service, site.hub, site, site.kicked), Replies(limited=Counter()))
    frames = [frame async for frame in reply.frames(question, who)]
    assert frames[-1].startswith(b'event: exception\ndata: {"code":"token_expired"')
    assert time.time() >= (who.expires_at or 0)


async def test_cancelling_ends_the_reply_with_an_error(site: Site) -> None:
    site.gate.open.clear()
    stream = httpx_sse.aconnect_sse(site.client, "POST", "/v1/questions", params=ANN, json={"text": "wait"})
    events: list[httpx_sse.ServerSentEvent] = []
    async with stream as source:
        location = source.response.headers["location"]
        async for event in source.aiter_sse():
            events.append(event)
            if event.event == "answer.delta":
                cancelled = await site.client.post(f"{location}/cancel", params=ANN)
                assert cancelled.json()["status"] == "cancelled"
    assert events[-1].event == "answer.error"
    assert json.loads(events[-1].data)["code"] == "cancelled"
    again = await site.client.post(f"{location}/cancel", params=ANN)
    assert (again.status_code, again.json()["error"]["code"]) == (200, "cancelled")


async def test_pages_are_bounded_and_newest_first(site: Site) -> None:
    ids = [(await site.ask({"text": f"number {number}"})).json()["id"] for number in range(3)]
    page = (await site.client.get("/v1/questions", params=ANN | {"limit": "2"})).json()
    assert [question["id"] for question in page["questions"]] == [ids[2], ids[1]]
    rest = await site.client.get("/v1/questions", params=ANN | {"before": ids[1]})
    assert [question["id"] for question in rest.json()["questions"]] == [ids[0]]
    for wrong in ({"limit": "0"}, {"limit": "101"}, {"limit": "x"}, {"before": "x"}):
        problem(await site.client.get("/v1/questions", params=ANN | wrong), 400, "parameter_invalid")


@pytest.mark.parametrize("wrong", ["01ARZ3NDEKTSV4RRFFQ69G5FAV", "x", "%00", "a%20b"])
async def test_what_isnt_ones_own_isnt_there(site: Site, wrong: str) -> None:
    asked = (await site.ask({"text": "mine"})).headers["location"]
    problem(await site.client.get(asked, params={"user": "bo"}), 404, "not_found")
    problem(await site.client.post(f"{asked}/cancel", params={"user": "bo"}), 404, "not_found")
    problem(await site.client.get(f"/v1/questions/{wrong}", params=ANN), 404, "not_found")


@pytest.mark.parametrize(
    ("body", "at"),
    [
        ({}, "$.text"),
        ({"text": ""}, "$.text"),
        ({"text": " \n\t"}, "$.text"),
        ({"text": "x" * 8_001}, "$.text"),
        ({"text": 1}, "$.text"),
        ({"text": "a\x00b"}, "$.text"),
        ({"text": "x", "conversation": "a b"}, "$.conversation"),
        ({"text": "x", "conversation": "a\n"}, "$.conversation"),
        ({"text": "x", "conversation": "x" * 65}, "$.conversation"),
        ({"text": "x", "context": []}, "$.context"),
        ({"text": "x", "context": {"a": "x" * 17_000}}, "$.context"),
        ({"text": "x", "more": 1}, "$.more"),
        ([], "$"),
    ],
)
async def test_a_bad_question_is_refused_and_the_field_named(site: Site, body: object, at: str) -> None:
    found = problem(await site.ask(body), 422, "invalid")
    errors = found["errors"]
    assert isinstance(errors, list)
    assert errors[0]["at"] == at


async def test_what_isnt_json_or_too_large_is_refused(site: Site) -> None:
    for wrong in (b"", b"{", b'{"text": NaN}', b"\xff"):
        response = await site.client.post("/v1/questions", params=ANN, content=wrong)
        problem(response, 400, "not_json")
    response = await site.client.post("/v1/questions", params=ANN, content=b" " * 70_000)
    problem(response, 413, "body_too_large")
    problem(await site.ask({"text": "x"}, headers={"Idempotency-Key": "a b"}), 422, "invalid")


async def test_too_many_open_questions_are_refused_for_that_person_alone(site: Site) -> None:
    site.gate.open.clear()
    for number in range(site.service.most_open):
        assert (await site.ask({"text": f"number {number}"})).status_code == 202
    response = await site.ask({"text": "one too many"})
    problem(response, 429, "too_many_questions")
    assert response.headers["retry-after"] == "5"
    other = await site.client.post("/v1/questions", params={"user": "bo"}, json={"text": "me"})
    assert other.status_code == 202
    site.service.answering.queue.most_waiting = 0
    problem(await site.ask({"text": "busy"}), 503, "overloaded")


async def test_a_reply_without_the_backplane_finds_its_end_by_looking(site: Site) -> None:
    site.gate.open.clear()
    question = await site.service.ask("ann", Asking("hello?"))
    reply = StreamedReply(Following(site.service, Away(), site, site.kicked), Replies(limited=Counter()))
    frames: list[bytes] = []
    async for frame in reply.frames(question, Identity("ann", EVERY_SCOPE)):
        frames.append(frame)
        site.gate.open.set()
    assert frames[0].startswith(b"event: question\n")
    assert frames[-1].startswith(b"event: answer\n")
