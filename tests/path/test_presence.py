"""Who is there: told by each node, asked of any."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pushsse import presence
from pushsse.backplane import Stay
from pushsse.presence import SeenTable
from tests.backplane.redis_server import RedisServer
from tests.hardening.test_kick import SECRET, bearer
from tests.serving import Running, serving
from tests.waiting import eventually

pytestmark = pytest.mark.anyio


async def person(node: Running, user: str) -> dict[str, Any]:
    reply = await node.http.get(f"/v1/users/{user}")
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


async def until_streams(node: Running, user: str, count: int) -> dict[str, Any]:
    async def there() -> bool:
        return bool((await person(node, user))["streams"] == count)

    await eventually(there)
    return await person(node, user)


@asynccontextmanager
async def two_nodes(redis: RedisServer, folder: Path) -> AsyncIterator[tuple[Running, Running]]:
    given: dict[str, Any] = {"redis_url": redis.url, "database_url": f"sqlite://{folder}/both.db"}
    async with (
        serving(folder, node="one", **given) as one,
        serving(folder, node="two", **given) as two,
    ):
        yield one, two


async def test_one_process_knows_who_is_there_and_who_was(tmp_path: Path) -> None:
    async with serving(tmp_path, node="here") as node:
        assert await person(node, "ann") == {
            "user": "ann", "online": False, "streams": 0, "nodes": [], "last_seen": None,
        }  # fmt: skip
        began = datetime.now(UTC).timestamp()
        async with node.stream("ann") as one, node.stream("ann") as other:
            await one.ready()
            await other.ready()
            found = await until_streams(node, "ann", 2)
            assert (found["online"], found["last_seen"]) == (True, None)
            [where] = found["nodes"]
            assert (where["node"], where["streams"]) == ("here", 2)
            assert began - 1 <= datetime.fromisoformat(where["since"]).timestamp() <= began + 10
        found = await until_streams(node, "ann", 0)
        assert (found["online"], found["nodes"]) == (False, [])
        seen = datetime.fromisoformat(found["last_seen"])
        assert began <= seen.timestamp() <= datetime.now(UTC).timestamp()
        asked = {"users": ["bo", "ann", "bo"]}
        reply = (await node.http.post("/v1/presence", json=asked)).json()
        assert [(each["user"], each["last_seen"]) for each in reply["users"]] == [
            ("bo", None),
            ("ann", found["last_seen"]),
        ]


async def test_of_somebody_who_is_forgotten_no_stream_that_ends_leaves_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "TELL_EVERY_S", 0.05)
    monkeypatch.setattr(presence, "SEEN_EVERY_S", 0.1)
    async with serving(tmp_path) as node:
        seen = SeenTable(node.node.database)
        async with node.stream("ann") as ann:
            await ann.ready()
            await until_streams(node, "ann", 1)
            assert (await node.http.delete("/v1/users/ann")).status_code == 200
            await ann.rest()
        async with node.stream("bo") as bo:
            await bo.ready()
            await until_streams(node, "bo", 1)

        async def bo_is_written() -> bool:
            return "bo" in await seen.last(["bo"])

        await eventually(bo_is_written)
        # It would have been written first.
        assert not await seen.last(["ann"])


async def test_what_was_last_seen_outlives_the_process_and_goes_with_the_person(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        async with node.stream("ann") as stream:
            await stream.ready()
            await until_streams(node, "ann", 1)
        await until_streams(node, "ann", 0)
    async with serving(tmp_path) as node:
        assert (await person(node, "ann"))["last_seen"] is not None
        reply = await node.http.delete("/v1/users/ann")
        assert reply.json()["deleted"]["seen"] == 1
        assert (await person(node, "ann"))["last_seen"] is None


async def test_a_page_that_reloads_leaves_its_person_where_it_was(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        async with node.stream("ann") as stream:
            await stream.ready()
            [first] = (await until_streams(node, "ann", 1))["nodes"]
        await until_streams(node, "ann", 0)
        async with node.stream("ann") as stream, node.stream("ann") as other:
            await stream.ready()
            await other.ready()
            [again] = (await until_streams(node, "ann", 2))["nodes"]
        assert again["since"] == first["since"]


async def test_only_administrators_ask_and_bad_requests_are_named(tmp_path: Path) -> None:
    async with serving(tmp_path, jwt_secret=SECRET) as node:
        ann, root = bearer("ann"), bearer("root", scope="pushsse:admin")
        assert (await node.http.get("/v1/users/ann", headers=ann)).status_code == 403
        assert (await node.http.post("/v1/presence", headers=ann, json={"users": ["ann"]})).status_code == 403
        assert (await node.http.get("/v1/users/a%20b", headers=root)).json()["code"] == "user_invalid"
        assert (await node.http.get("/v1/users/ann/there", headers=root)).status_code == 404
        for users in ([], [f"user-{i}" for i in range(1001)], ["a b"], "ann", [1]):
            reply = await node.http.post("/v1/presence", headers=root, json={"users": users})
            assert reply.status_code == 422, users
            assert reply.json()["errors"][0]["at"].startswith("$.users")
        most = [f"user-{i}" for i in range(1000)]
        reply = await node.http.post("/v1/presence", headers=root, json={"users": most})
        assert [each["user"] for each in reply.json()["users"]] == most


@pytest.mark.real
async def test_nodes_tell_each_other_and_again_when_redis_has_lost_it(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    async with two_nodes(redis_server, tmp_path) as (one, two):
        async with one.stream("ann") as here, two.stream("ann") as there, two.stream("bo") as bo:
            for stream in (here, there, bo):
                await stream.ready()
            found = await until_streams(two, "ann", 2)
            assert [(each["node"], each["streams"]) for each in found["nodes"]] == [("one", 1), ("two", 1)]
            assert await until_streams(one, "bo", 1)
            redis_server.run("FLUSHALL")
            # At the latest when the leases are renewed.
            assert await until_streams(one, "ann", 2) == found
            await until_streams(two, "bo", 1)
        found = await until_streams(one, "ann", 0)
        assert found["last_seen"] is not None


@pytest.mark.real
@pytest.mark.slow
async def test_the_people_of_a_dead_node_are_gone_with_its_lease(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    async with two_nodes(redis_server, tmp_path) as (one, _):
        # What a node that was killed has left behind.
        stay = {"ann": Stay(1, one.node.backplane.now_ms())}
        await one.node.backplane.tell_presence("dead~1", stay, anew=True)
        began = asyncio.get_running_loop().time()
        assert (await person(one, "ann"))["nodes"][0]["node"] == "dead"
        await until_streams(one, "ann", 0)
        assert asyncio.get_running_loop().time() - began < 15
        assert (await person(one, "ann"))["last_seen"] is not None
