"""The catalogue and people's switches over two nodes, with Redis and PostgreSQL."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.serving import Running, serving
from tests.waiting import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.real]
FILE = [{"name": "law", "mandatory": True}, {"name": "promo", "category": "marketing"}]


@pytest.fixture
async def nodes(redis_url: str, postgres_url: str, tmp_path: Path) -> AsyncIterator[tuple[Running, Running]]:
    given: dict[str, Any] = {"redis_url": redis_url, "database_url": postgres_url, "types": FILE}
    async with serving(tmp_path, node="one", **given) as one, serving(tmp_path, node="two", **given) as two:
        await one.until_known("law", "promo")
        yield one, two


def off(node: Running, user: str) -> set[str]:
    [subscriber] = node.node.hub.subscribers_of(user)
    return set(subscriber.person.off)


async def test_what_is_set_on_one_node_acts_on_the_other(nodes: tuple[Running, Running]) -> None:
    one, two = nodes
    assert len((await two.http.get("/v1/types?user=root")).json()["types"]) == 2
    async with two.stream("ann") as ann, two.stream("bo") as bo:
        start = (await ann.next()).id
        await bo.ready()
        path = "/v1/preferences?user=bo"
        assert (await one.http.post(path, json={"categories": {"marketing": True}})).status_code == 200
        assert json.loads((await bo.until("preferences")).data)["categories"] == {"marketing": True}
        made = await one.http.put(
            "/v1/types/news?user=root", json={"category": "marketing", "default": False}
        )
        assert made.status_code == 201
        # Sooner than nodes look by themselves, where nothing else is to be done.
        await eventually(lambda: off(two, "ann") == {"news"})
        assert off(two, "bo") == set()
        for to in ("all", ["ann", "bo"]):
            await one.publish("news", "off", to=to)
        await one.publish("law", "on")
        assert await ann.messages(1) == ["on"]
        assert await bo.messages(3) == ["off", "off", "on"]
        # An import is a change as any other, and a node that opens a stream knows of it at once.
        rows = [{"user": user, "type": "promo", "enabled": False} for user in ("ann", "bo", "cy")]
        done = await one.http.post("/v1/preferences/import?user=root", json={"rows": rows})
        assert done.json() == {"people": 3, "changed": 3}
        for device in (ann, bo):
            assert json.loads((await device.until("preferences")).data) == {"types": {"promo": False}}
        await one.publish("promo", "off")
        await one.publish("law", "last")
        async with one.stream("cy", last_event_id=start) as cy:
            assert await cy.messages(2) == ["on", "last"]
        assert await ann.messages(1) == await bo.messages(1) == ["last"]
        assert (await one.http.delete("/v1/types/news?user=root")).status_code == 204
        await eventually(lambda: off(two, "ann") == {"promo"})


async def test_changes_of_the_catalogue_and_of_switches_at_once_agree_in_the_end(
    nodes: tuple[Running, Running],
) -> None:
    one, two = nodes
    await one.http.put("/v1/types/news?user=root", json={})
    async with one.stream("ann") as here, two.stream("ann") as there:
        await here.ready()
        await there.ready()

        async def rules() -> None:
            for number in range(8):
                body = {"default": number % 2 == 0, "category": "marketing" if number % 3 else ""}
                assert (await one.http.put("/v1/types/news?user=root", json=body)).status_code == 200

        async def switches(node: Running) -> None:
            for number in range(8):
                wanted = {"categories": {"marketing": number % 2 == 0}, "types": {"promo": number % 3 == 0}}
                assert (await node.http.post("/v1/preferences?user=ann", json=wanted)).status_code == 200

        await asyncio.gather(rules(), switches(one), switches(two))

        async def agree() -> bool:
            shown = (await one.http.get("/v1/preferences?user=ann")).json()["types"]
            stored = {each["name"] for each in shown if not each["enabled"]}
            return off(one, "ann") == off(two, "ann") == stored

        await eventually(agree)
