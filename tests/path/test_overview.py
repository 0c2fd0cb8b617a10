"""`GET /v1/overview`: one node answers for all, what it says is true, and who stops isn't in it any more."""

import asyncio
import logging
from pathlib import Path

import msgspec
import pytest

from pushsse.backplane.memory import MemoryBackplane
from pushsse.database import Database
from pushsse.errors import DatabaseUnavailable
from pushsse.metrics import Metrics
from pushsse.overview import Overview, OverviewView
from pushsse.preferences.catalogue import CatalogueStore, Chosen
from tests.backplane.redis_server import RedisServer
from tests.hardening.test_kick import SECRET, bearer
from tests.path.test_presence import two_nodes
from tests.serving import Running, serving
from tests.waiting import eventually

pytestmark = pytest.mark.anyio


async def overview(node: Running) -> OverviewView:
    reply = await node.http.get("/v1/overview")
    assert reply.status_code == 200, reply.text
    return msgspec.json.decode(reply.content, type=OverviewView)


async def test_it_says_what_a_node_does(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(tmp_path, node="here") as node, node.stream("ann") as one, node.stream("ann") as two:
        await one.ready()
        await two.ready()
        await node.publish("news", "hello")
        await node.publish("alarm", "hello", "ann")
        await one.messages(2)
        await node.until_known("news", "alarm")
        await node.switch("ann", news=False, alarm=True)
        await node.switch("bo", news=False)

        async def told() -> bool:
            [here] = (await overview(node)).nodes
            return here.streams == 2 and here.delivered_per_s > 0

        caplog.set_level(logging.INFO, "pushsse")
        await eventually(told)
        found = await overview(node)
        [here] = found.nodes
        assert (here.node, here.state, here.people, here.behind) == ("here", "ready", 1, 0)
        assert here.backplane
        assert here.database
        assert here.memory_bytes > 2**20
        assert 0 <= here.cpu < 64
        # Each event is written twice.
        assert here.delivered_per_s > here.published_per_s > 0
        assert here.started_at is not None
        assert here.at is not None
        assert here.started_at <= here.at <= found.at
        assert (found.totals.streams, found.totals.lag) == (2, 0)
        assert found.chosen == (Chosen("alarm", 1, 0), Chosen("news", 0, 2))
        # It is asked again and again, and is about nobody.
        assert "/v1/overview" not in caplog.text


async def test_any_node_answers_for_all_and_one_that_stops_is_gone(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that it isn't the end of its lease that is seen.
    monkeypatch.setattr("pushsse.overview._LEASE_MS", 600_000)
    redis_server.admin.flushall()
    async with two_nodes(redis_server, tmp_path) as (one, two):
        async with one.stream("ann") as ann, two.stream("bo") as bo:
            await ann.ready()
            await bo.ready()

            async def both() -> bool:
                return [(each.node, each.streams) for each in (await overview(two)).nodes] == [
                    ("one", 1), ("two", 1),
                ]  # fmt: skip

            await eventually(both)
            assert (await overview(one)).totals.streams == 2
        one.stop()

        async def alone() -> bool:
            return [each.node for each in (await overview(two)).nodes] == ["two"]

        await eventually(alone)


async def test_it_is_for_administrators_and_lag_and_dead_letters_are_summed(tmp_path: Path) -> None:
    async with serving(tmp_path, node="here", jwt_secret=SECRET) as node:
        for scope, status in (("pushsse:stream pushsse:answer", 403), ("pushsse:admin", 200)):
            reply = await node.http.get("/v1/overview", headers=bearer("ann", scope=scope))
            assert reply.status_code == status, reply.text
        metrics = node.node.metrics
        metrics.lag.update({("orders", "0"): 3, ("orders", "1"): 4, ("news", "0"): 5})
        metrics.held_partitions.add(("orders", 1))
        metrics.dead_letters = 6
        # Of a node that has a newer version, and of one that says less.
        await node.node.backplane.report(
            "new", b'{"node":"new","lag":{"news":1},"tomorrow":[1]}', lease_ms=60_000
        )

        async def summed() -> bool:
            reply = await node.http.get("/v1/overview", headers=bearer("ann", scope="pushsse:admin"))
            found = msgspec.json.decode(reply.content, type=OverviewView)
            return (found.lag, found.totals.lag, found.totals.dead_letters, found.nodes[0].held) == (
                {"news": 6, "orders": 7}, 13, 6, 1,
            )  # fmt: skip

        await eventually(summed)


class AwayCatalogue(CatalogueStore):
    """Its database doesn't answer; `asked` counts who has waited for it."""

    asked = 0

    async def chosen(self) -> tuple[Chosen, ...]:
        self.asked += 1
        await asyncio.sleep(0.01)  # as long as the time limit of a statement lasts
        raise DatabaseUnavailable("no answer in time")


async def test_whoever_asks_while_the_database_is_away_waits_for_it_once(tmp_path: Path) -> None:
    catalogue = AwayCatalogue(Database(f"sqlite://{tmp_path / 'away.db'}"))
    async with MemoryBackplane(shards=1, keep_s=600, keep_bytes=2**20, metrics=Metrics()) as backplane:
        here = Overview(backplane, catalogue, Metrics(), node="here")
        for found in await asyncio.gather(*(here.view() for _ in range(5))):
            assert found.chosen is None
    assert catalogue.asked == 1
