"""A conversation between people, over two nodes on Redis and PostgreSQL."""

import asyncio
import json
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from tests.serving import Running, serving

pytestmark = [pytest.mark.anyio, pytest.mark.real]
TEXT = "How do I get a refund?"


@pytest.fixture
async def nodes(tmp_path: Path, redis_url: str, postgres_url: str) -> AsyncIterator[tuple[Running, Running]]:
    node = partial(serving, tmp_path, redis_url=redis_url, database_url=postgres_url)
    async with node(node="one") as one, node(node="two") as two:
        yield one, two


async def test_staff_and_person_on_different_nodes_hear_of_each_other(nodes: tuple[Running, Running]) -> None:
    one, two = nodes
    asked = {"text": TEXT, "conversation": "c"}
    assert (await one.http.get("/v1/conversations?user=sam&status=handed_over")).json()["more"] is False
    async with two.stream("sam") as staff, two.stream("ann") as person, one.stream("ann") as other:
        for stream in (staff, person, other):
            await stream.ready()
        assert (await one.http.post("/v1/questions?user=ann", json=asked)).status_code == 202
        for stream in (person, other):
            assert json.loads((await stream.until("answer")).data)["by"]["kind"] == "bot"
        await one.http.post("/v1/conversations/c/handover?user=ann")
        assert json.loads((await staff.until("pushsse.desk")).data)["question"] is None
        question = (await one.http.post("/v1/questions?user=ann", json=asked)).json()["id"]
        assert json.loads((await staff.until("pushsse.desk")).data)["question"] == question
        path = f"/v1/questions/{question}/answer"
        said = await asyncio.gather(
            one.http.post(f"{path}?user=kim", json={"text": "I am Kim.", "name": "Kim"}),
            two.http.post(f"{path}?user=sam", json={"text": "I am Sam.", "name": "Sam"}),
        )
        assert sorted(reply.status_code for reply in said) == [200, 409]
        [won] = [reply.json()["answer"] for reply in said if reply.status_code == 200]
        for stream in (person, other):
            answer = json.loads((await stream.until("answer")).data)
            assert (answer["question"], answer["by"]) == (question, won["by"])
        assert (await two.http.post("/v1/conversations/c/release?user=sam")).status_code == 200
        assert (await one.http.post("/v1/questions?user=ann", json=asked)).status_code == 202
        for stream in (person, other):
            assert json.loads((await stream.until("answer")).data)["by"]["kind"] == "bot"


async def test_one_key_makes_one_question_on_two_nodes(nodes: tuple[Running, Running]) -> None:
    replies = await asyncio.gather(
        *(
            node.http.post(
                "/v1/questions?user=ann",
                json={"text": TEXT},
                headers={"idempotency-key": key},
            )
            for node in nodes
            for key in ("k", '"k"', "k")
        )
    )
    assert {reply.status_code for reply in replies} <= {202, 409}
    taken = {reply.json()["id"] for reply in replies if reply.status_code == 202}
    assert len(taken) == 1
    for reply in replies:
        if reply.status_code == 409:
            assert reply.json()["code"] == "being_taken"
            assert 1 <= int(reply.headers["retry-after"]) <= 5
    for node in nodes:
        listed = (await node.http.get("/v1/questions?user=ann")).json()["questions"]
        assert {each["id"] for each in listed} == taken
