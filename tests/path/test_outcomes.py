"""What became of events, as the topic tells it: on real Kafka, with two nodes."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from pushsse.backplane import Stay
from pushsse.explain import Step, in_order
from tests.backplane.redis_server import RedisServer
from tests.migrated import migrated
from tests.path.asyncapi import Described
from tests.serving import Running, serving
from tests.waiting import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.real]
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@dataclass
class Told:
    """The records of the topic."""

    nodes: tuple[Running, ...]
    bootstrap: str
    topic: str
    records: list[dict[str, Any]] = field(default_factory=list)
    keys: list[bytes | None] = field(default_factory=list)

    async def read(self, consumer: AIOKafkaConsumer) -> None:
        async for record in consumer:
            self.records.append(json.loads(record.value))
            self.keys.append(record.key)

    def of(self, event: str) -> dict[str, str]:
        """What became of an event, by person."""
        return {
            each["user"]: each["outcome"]
            for each in self.records
            if each["event"] == event and "user" in each
        }

    async def explained(self) -> None:
        """What the events of the first test come to for each person, on either node."""
        for user, event, verdict, what in (
            ("ann", "second", "clicked", ["switch", "published", "written", "written", "clicked"]),
            ("bo", "second", "switched_off", ["switched", "switch", "switched_off"]),
            ("cy", "second", "offline", ["switch", "published", "offline"]),
            ("ann", "fourth", "published", ["switch", "published"]),
            ("bo", "fourth", "published", ["switched", "switch", "published"]),
            ("ann", "third", "expired", ["switch", "expired"]),
            ("gus", "second", "unknown", []),
        ):
            for node in self.nodes:
                reply = await node.http.get(f"/v1/users/{user}/explain/{event}")
                assert reply.status_code == 200, reply.text
                found = reply.json()
                assert found["verdict"] == verdict, found
                told = [step["what"] for step in found["timeline"]]
                assert sorted(told) == sorted(what), found
        for user, event, held, by in (
            ("ann", "second", "news on, by default", ""),
            ("bo", "second", "news off, its own switch", "bo"),
            ("cy", "second", "news on, by default", ""),
            ("ann", "third", "news on, by default", ""),
            ("bo", "fourth", "news off, its own switch", "bo"),
        ):
            timeline = (await self.nodes[1].http.get(f"/v1/users/{user}/explain/{event}")).json()["timeline"]
            [step] = [each for each in timeline if each["what"] == "switch"]
            assert (step["detail"], step.get("by", "")) == (held, by), (user, event)
        published = (await self.nodes[0].http.get("/v1/users/cy/explain/second")).json()["timeline"][1]
        # Where it was in Kafka, and who it was for.
        assert f"record {self.topic}-" in published["detail"]
        assert "; campaign autumn" in published["detail"]

    async def until(self, event: str, outcomes: dict[str, str]) -> None:
        await eventually(lambda: self.of(event) == outcomes, 45)


@pytest.fixture
async def told(
    kafka_topic: tuple[str, str], redis_url: str, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[Told]:
    bootstrap, topic = kafka_topic
    outcomes = f"outcomes-{secrets.token_hex(4)}"
    given: dict[str, Any] = {
        "redis_url": redis_url,
        "database_url": migrated(tmp_path / "both.db"),
        "kafka_bootstrap": bootstrap,
        "kafka_topic": topic,
        "kafka_group": topic,
        "kafka_start": "earliest",
        "outcomes": "on",
        "outcomes_topic": outcomes,
        **getattr(request, "param", {}),
    }
    async with AsyncExitStack() as stack:
        admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
        await admin.start()
        stack.push_async_callback(admin.close)
        await admin.create_topics([NewTopic(outcomes, 3, 1)])
        nodes = [
            await stack.enter_async_context(serving(tmp_path, node=name, **given)) for name in ("one", "two")
        ]
        consumer = AIOKafkaConsumer(outcomes, bootstrap_servers=bootstrap, auto_offset_reset="earliest")
        await consumer.start()
        stack.push_async_callback(consumer.stop)
        found = Told(tuple(nodes), bootstrap, topic)
        reading = asyncio.create_task(found.read(consumer))
        try:
            yield found
        finally:
            reading.cancel()


@pytest.mark.slow
async def test_each_person_of_an_event_has_an_outcome(told: Told) -> None:
    one, two = told.nodes
    await one.publish("news", "first", id="first")
    await one.until_known("news")
    await one.switch("bo", news=False)
    # What a node that was killed has left behind: it was last heard of before the event.
    await two.node.backplane.tell_presence("dead~1", {"di": Stay(1, 5)}, anew=True)
    async with one.stream("ann") as ann, two.stream("ann") as again, two.stream("bo") as bo:
        for stream in (ann, again, bo):
            await stream.ready()
        people = ["ann", "bo", "cy", "di", "eve"]
        await one.publish("news", "二", people, id="second", campaign="autumn", desc="more")
        # Until then eve would still get it.
        await again.until("news")
        async with two.stream("eve") as eve:
            await eve.ready()
            await told.until(
                "second", {"ann": "written", "bo": "switched_off", "cy": "offline", "di": "offline"}
            )
        # Once for each person and node, whatever the number of streams.
        about = [each for each in told.records if each["event"] == "second"]
        assert sorted(each["node"] for each in about if each["user"] == "ann") == ["one", "two"]
        assert len(about) == 5
        for each in told.records:
            Described("outcomes").validate_any(each)
        assert {each["campaign"] for each in about} == {"autumn"}
        assert {each["type"] for each in about} == {"news"}
        [cy] = [each for each in about if each["user"] == "cy"]
        assert cy["data"] | {"ts": ""} == {
            "id": "second", "type": "news", "message": "二", "desc": "more", "ts": "",
        }  # fmt: skip
        assert not any("data" in each for each in about if each["outcome"] != "offline")
        acked = {"ids": ["second", "never sent"], "state": "clicked"}
        assert (await two.http.post("/v1/acks?user=ann", json=acked)).status_code == 204
        await eventually(lambda: any(each["event"] == "never sent" for each in told.records), 45)
        clicked = [each for each in told.records if each["outcome"] == "clicked"]
        assert [(each["event"], each["user"]) for each in clicked] == [
            ("second", "ann"), ("never sent", "ann"),
        ]  # fmt: skip
        assert not any("type" in each for each in clicked)
        await one.publish("news", "third", id="third", ttl_s=1, ts="2020-01-01T00:00:00Z", to=["ann", "fay"])
        await told.until("third", {"ann": "expired", "fay": "expired"})
        # Of a broadcast, how many streams got it.
        await one.publish("news", "fourth", id="fourth")

        def counted() -> dict[str, int]:
            found: dict[str, int] = {}
            for each in told.records:
                if each["event"] == "fourth":
                    found[each["outcome"]] = found.get(each["outcome"], 0) + each["count"]
            return found

        await eventually(lambda: counted() == {"written": 2, "switched_off": 1})
    await told.explained()
    for record, key in zip(told.records, told.keys, strict=True):
        assert key == (record["user"].encode() if "user" in record else None)


@pytest.mark.slow
async def test_another_node_takes_the_duty_over_and_nobody_is_left_out(
    told: Told, redis_server: RedisServer
) -> None:
    key = f"pushsse:{told.nodes[0].node.backplane.shards}:duty:offline"

    def holder() -> str:
        found = redis_server.admin.get(key)
        return found.decode() if isinstance(found, bytes) else ""

    await eventually(lambda: bool(holder()))
    [other] = [node for node in told.nodes if node.node.settings.node != holder()]
    [first] = [node for node in told.nodes if node is not other]
    names = [f"{when}-{number}" for when in ("before", "after") for number in range(3)]
    for name in names[:3]:
        await other.publish("news", 1, "cy", id=name)
    # It is gone before it could tell of them.
    first.stop()
    for name in names[3:]:
        await other.publish("news", 1, "cy", id=name)
    await eventually(lambda: {each["event"] for each in told.records} == set(names), 60)
    assert all(told.of(name) == {"cy": "offline"} for name in names)
    assert holder() == other.node.settings.node


@pytest.mark.parametrize("told", [{"outcomes": "sampled", "outcomes_share": 0.5}], indirect=True)
async def test_of_a_sample_all_outcomes_are_there_or_none(told: Told) -> None:
    one, two = told.nodes
    async with one.stream("ann") as ann, two.stream("bo") as bo:
        await ann.ready()
        await bo.ready()
        for number in range(60):
            await one.publish("news", number, ["ann", "bo"], id=f"e{number}")
        await ann.messages(60)
        await bo.messages(60)
        await eventually(lambda: len(told.records) >= 2 * len({each["event"] for each in told.records}) > 20)
        chosen = {each["event"] for each in told.records}
        assert 10 < len(chosen) < 50
        assert all(told.of(event) == {"ann": "written", "bo": "written"} for event in chosen)


def test_what_a_node_with_a_late_clock_did_stands_after_the_event() -> None:
    at = datetime(2026, 11, 28, tzinfo=UTC)
    late, later = at - timedelta(milliseconds=7), at + timedelta(milliseconds=2)
    steps = [Step(late, "written", node="a"), Step(later, "written", node="b"), Step(at, "published")]
    steps += [Step(at, "switch"), Step(late, "switched")]
    told = in_order(steps, at)
    assert [step.what for step in told] == ["switched", "switch", "published", "written", "written"]
    assert [step.node for step in told[3:]] == ["a", "b"]
