"""A conversation belongs to who asked first in it: nobody else can ask in it, or learn that it is there."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.serving import Running, serving

pytestmark = pytest.mark.anyio
TEXT = "How do I get a refund?"


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Running]:
    async with serving(tmp_path) as running:
        yield running


async def ask(node: Running, user: str, **more: str) -> httpx.Response:
    return await node.http.post(f"/v1/questions?user={user}", json={"text": TEXT, **more})


@pytest.mark.parametrize("named", [True, False])
async def test_another_persons_conversation_is_not_found(node: Running, *, named: bool) -> None:
    first = await ask(node, "ann", **({"conversation": "order-981"} if named else {}))
    conversation = first.json()["conversation"]
    assert (await ask(node, "ann", conversation=conversation)).status_code == 202
    for _ in range(3):
        refused = await ask(node, "bo", conversation=conversation)
        assert (refused.status_code, refused.json()["code"]) == (404, "not_found")
        assert "ann" not in refused.text
    assert (await node.http.get("/v1/questions?user=bo")).json() == {"questions": [], "more": False}
    assert (await ask(node, "bo", conversation="order-982")).status_code == 202


async def test_of_two_who_begin_a_conversation_at_once_one_keeps_it(node: Running) -> None:
    people = [f"user-{number}" for number in range(5)]
    await asyncio.gather(*(ask(node, user, conversation="c") for user in people))
    again = [(await ask(node, user, conversation="c")).status_code for user in people]
    assert sorted(again) == [202, 404, 404, 404, 404]
