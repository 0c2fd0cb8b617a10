"""One person who follows answers in replies without end, in each protocol."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from pushsse.questions import Question
from pushsse.questions.store import QuestionStore, Unended
from tests.questions.conftest import Nodes
from tests.questions.front import Front, FrontNode, fronts
from tests.serving import serving
from tests.waiting import eventually

pytestmark = pytest.mark.anyio
ANN, BO = {"user": "ann"}, {"user": "bo"}
SSE = {"accept": "text/event-stream"}
PROTOCOLS = ("/v1/questions", "/v1/chat", "/v1/agui", "/v1/chat/completions")
RESUME = "/v1/chat/chat-1/stream"
MOST = 3


@dataclass(frozen=True)
class WatchedStore(QuestionStore):
    """Writes down what is read and written of questions."""

    used: list[str] = field(default_factory=list)

    async def page(self, user: str, **where: Any) -> Any:
        self.used.append("page")
        return await super().page(user, **where)

    async def by_key(self, *what: Any, **where: Any) -> Any:
        self.used.append("by_key")
        return await super().by_key(*what, **where)

    async def count_unended(self, user: str) -> Unended:
        self.used.append("count_unended")
        return await super().count_unended(user)

    async def create(self, question: Question, **how: Any) -> Question:
        self.used.append("create")
        return await super().create(question, **how)


def asking(path: str, text: str, number: int = 0, *, chat: str = "chat-1") -> dict[str, Any]:
    """What `httpx` posts to ask in a protocol."""
    said = {"id": f"m-{number}", "role": "user", "content": text, "parts": [{"type": "text", "text": text}]}
    bodies: dict[str, object] = {
        "/v1/questions": {"text": text},
        "/v1/chat": {"id": chat, "messages": [said]},
        "/v1/agui": {"threadId": "t-1", "runId": f"run-{number}", "messages": [said]},
        "/v1/chat/completions": {"messages": [{"role": "user", "content": text}], "stream": True},
    }
    return {"json": bodies[path], "headers": SSE}


def code(path: str, reply: httpx.Response) -> str:
    body = reply.json()
    return str(body["error"]["code"] if path.endswith("completions") else body["code"])


async def has_open(node: FrontNode) -> bool:
    return any(each.is_open for each in await node.service.page("ann", limit=20))


async def until_followed(node: FrontNode, count: int) -> None:
    async def are_followed() -> bool:
        return node.replies.count == count

    await eventually(are_followed)


@asynccontextmanager
async def followed(front: Front, count: int) -> AsyncIterator[list["asyncio.Task[None]"]]:
    """Ann asks in a chat, and follows the answer in so many replies."""

    begun: list[str] = []

    async def follow(method: str, path: str, **more: Any) -> None:
        async with front.http.stream(method, path, params=ANN, **more) as reply:
            assert reply.status_code == 200
            begun.append(path)
            async for _ in reply.aiter_bytes():
                pass

    async def have_begun() -> bool:
        return len(begun) == count

    node, asked = front.nodes[0], asking("/v1/chat", "@never")
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(follow("POST", "/v1/chat", **asked))]
        await eventually(lambda: has_open(node))
        tasks += [group.create_task(follow("GET", RESUME)) for _ in range(count - 2)]
        # The same message is the same question, followed once more.
        tasks.append(group.create_task(follow("POST", "/v1/chat", **asked)))
        await until_followed(node, count)
        # A place is held before the question is looked up.
        await eventually(have_begun)
        try:
            yield tasks
        finally:
            for task in tasks:
                task.cancel()
    await until_followed(node, 0)


async def test_replies_over_the_limit_are_refused_before_anything_is_looked_up(nodes: Nodes) -> None:
    async with fronts(nodes, per_user=MOST, quota=1000) as front, followed(front, MOST) as followers:
        service = front.nodes[0].service
        [question] = await service.page("ann", limit=20)
        kept, watched = service.life.store, WatchedStore(nodes.database)
        service.life.store = watched
        again = f"/v1/questions/{question.id}/regenerate"
        whole = {"messages": [{"role": "user", "content": "+more"}]}
        refused = [
            await front.http.get(RESUME, params=ANN),
            await front.http.post(again, params=ANN, headers=SSE),
            await front.http.post("/v1/chat/completions", params=ANN, json=whole),
            *[await front.http.post(path, params=ANN, **asking(path, "+more", 7)) for path in PROTOCOLS],
        ]
        service.life.store = kept
        for reply in refused:
            assert reply.status_code == 429
            assert code(reply.request.url.path, reply) == "too_many_streams"
            assert int(reply.headers["retry-after"]) > 0
            # It isn't one of the calls of this minute.
            assert "ratelimit" not in reply.headers
        assert watched.used == []
        assert front.limited["replies_per_user"] == front.refusals["too_many_streams"] == len(refused)
        # Without the answer in the reply, and for everybody else, nothing is different.
        asked = await front.http.post("/v1/questions", params=ANN, json={"text": "+one"})
        assert asked.status_code == 202
        for path in PROTOCOLS:
            asked = await front.http.post(path, params=BO, **asking(path, "+one", chat="of-bo"))
            assert asked.status_code == 200
        # Whoever leaves makes room.
        followers[1].cancel()
        await until_followed(front.nodes[0], MOST - 1)
        async with front.http.stream("GET", RESUME, params=ANN) as resumed:
            assert resumed.status_code == 200


@pytest.mark.parametrize("path", PROTOCOLS)
async def test_a_reply_that_has_ended_or_was_refused_keeps_no_room(nodes: Nodes, path: str) -> None:
    async with fronts(nodes, per_user=1, most_open=1) as front:
        for number, text in enumerate(("+one", "!broken", "+two")):
            reply = await front.http.post(path, params=ANN, **asking(path, text, number))
            assert reply.status_code == 200, reply.text
            await until_followed(front.nodes[0], 0)
        assert (await front.http.post(path, params=ANN, json={}, headers=SSE)).status_code == 422
        assert (await front.http.get("/v1/chat/none/stream", params=ANN)).status_code == 204
        await front.http.post("/v1/questions", params=ANN, json={"text": "@never"})
        for number in (7, 8):
            reply = await front.http.post(path, params=ANN, **asking(path, "+more", number))
            assert (reply.status_code, code(path, reply)) == (429, "too_many_questions")
        assert front.nodes[0].replies.count == 0


async def test_a_completion_in_one_piece_whose_client_has_left_keeps_no_room(nodes: Nodes) -> None:
    async with fronts(nodes, per_user=1) as front:
        body = {"messages": [{"role": "user", "content": "@never"}]}
        asked = asyncio.create_task(front.http.post("/v1/chat/completions", params=ANN, json=body))
        await until_followed(front.nodes[0], 1)
        await eventually(lambda: has_open(front.nodes[0]))
        asked.cancel()
        await until_followed(front.nodes[0], 0)
        # The answer goes on.
        assert await has_open(front.nodes[0])


async def test_above_the_limit_of_the_process_everybody_is_told_to_come_later(nodes: Nodes) -> None:
    async with fronts(nodes, most=MOST) as front, followed(front, MOST):
        for path in PROTOCOLS:
            reply = await front.http.post(path, params=BO, **asking(path, "+more"))
            assert (reply.status_code, code(path, reply)) == (503, "overloaded")
            assert 5 <= int(reply.headers["retry-after"]) <= 15
        assert front.limited["streams"] == len(PROTOCOLS)
        assert not await front.nodes[0].service.page("bo", limit=20)


@pytest.mark.parametrize("most", [20, 2, 0])
async def test_the_number_is_a_setting_and_may_be_none(most: int, tmp_path: Path) -> None:
    options: dict[str, Any] = {} if most == 20 else {"max_replies_per_user": most}
    resume = "/v1/chat/none/stream?user=ann"
    async with serving(tmp_path, **options) as node:
        assert 'pushsse_limited_total{limit="replies_per_user"} 0.0' in (await node.http.get("/metrics")).text
        with ExitStack() as held:
            for _ in range(most or 50):
                held.enter_context(node.node.replies.hold("ann"))
            assert (await node.http.get(resume)).status_code == (429 if most else 204)
            metrics = (await node.http.get("/metrics")).text
            assert f'pushsse_limited_total{{limit="replies_per_user"}} {int(bool(most))}.0' in metrics
            assert f"pushsse_replies {most or 50}.0" in metrics
        assert (await node.http.get(resume)).status_code == 204


async def test_streams_and_replies_share_the_room_of_a_process(tmp_path: Path) -> None:
    async with serving(tmp_path, max_streams=2) as node:
        with node.node.replies.hold("ann"):
            assert node.node.has_room()
            async with node.stream("bo") as stream:
                assert (await stream.next()).event == "ready"
                assert not node.node.has_room()
                reply = await node.http.get("/v1/chat/none/stream?user=cy")
                assert (reply.status_code, reply.json()["code"]) == (503, "overloaded")
