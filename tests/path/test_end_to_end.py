"""The whole path on real parts: Kafka, PostgreSQL, Redis, two nodes, ten people with different switches."""

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from tests.serving import LIMIT_S, Running, Stream, serving
from tests.waiting import eventually

pytestmark = pytest.mark.anyio
TYPES = ("alarm", "news", "order", "offer", "chat")
PEOPLE = tuple(f"person{n}" for n in range(10))
PARTITIONS = 4
POISON = (
    b"{",
    b"[]",
    b"\xff",
    b'{"type":"news"}',
    b'{"type":"a b","message":1,"to":"all"}',
    b'{"type":"ping","message":1,"to":"all"}',
    b'{"type":"news","message":NaN,"to":"all"}',
    b'{"type":"news","message":"\\ud800","to":{"users":["person1"]}}',
)


@dataclass
class Reader:
    """A client that keeps everything it gets."""

    user: str
    stream: Stream
    got: list[dict[str, object]] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    async def read(self) -> None:
        while True:
            event = await self.stream.next()
            data = json.loads(event.data)
            if "message" in data:
                self.got.append(data)
            else:
                self.told.append(event.event)


@dataclass
class Pair:
    """Two nodes on the same parts, a producer, and what was produced."""

    nodes: tuple[Running, Running]
    producer: AIOKafkaProducer
    bootstrap: str
    topic: str
    count: int = 0

    async def produce(self, events: Sequence[dict[str, object] | bytes]) -> dict[str, int]:
        """Produces in turn to all partitions; the partition of each event."""
        where = {}
        for event in events:
            self.count += 1
            partition = self.count % PARTITIONS
            value = event if isinstance(event, bytes) else json.dumps(event).encode()
            await self.producer.send(self.topic, value, partition=partition)
            if isinstance(event, dict):
                where[str(event["id"])] = partition
        await self.producer.flush()
        return where


@pytest.fixture
async def pair(
    kafka_topic: tuple[str, str], redis_url: str, postgres_url: str, tmp_path: Path
) -> AsyncIterator[Pair]:
    bootstrap, topic = kafka_topic
    shared: dict[str, Any] = {
        "redis_url": redis_url,
        "database_url": postgres_url,
        "kafka_bootstrap": bootstrap,
        "kafka_topic": topic,
        "kafka_group": topic,
        "kafka_start": "earliest",
    }
    async with AsyncExitStack() as stack:
        nodes = [
            await stack.enter_async_context(serving(tmp_path, node=name, **shared))
            for name in ("node1", "node2")
        ]
        producer = AIOKafkaProducer(bootstrap_servers=bootstrap)
        await producer.start()
        stack.push_async_callback(producer.stop)
        yield Pair((nodes[0], nodes[1]), producer, bootstrap, topic)


def event(number: int) -> dict[str, object]:
    """One of many: every seventh for everybody, the others for one to three people."""
    users = [PEOPLE[(number * step + number // 5) % 10] for step in range(1, 2 + number % 3)]
    to = "all" if number % 7 == 0 else {"users": users}
    return {"id": f"e{number}", "type": TYPES[number % 5], "message": number, "to": to}


def wanted(events: Sequence[dict[str, object]], user: str, off: set[str]) -> list[str]:
    """The ids of what one person is to get."""
    return [
        str(e["id"])
        for e in events
        if e["type"] not in off and (e["to"] == "all" or user in e["to"]["users"])  # type: ignore[index]
    ]


def has_at_least(reader: Reader, count: int) -> bool:
    return len(reader.got) >= count


def check(reader: Reader, expected: list[str], where: dict[str, int]) -> None:
    """Exactly these, each once, in the order of each partition."""
    got = [str(data["id"]) for data in reader.got]
    assert sorted(got) == sorted(expected), reader.user
    by_partition: dict[int, list[str]] = defaultdict(list)
    for name in got:
        by_partition[where[name]].append(name)
    for partition, names in by_partition.items():
        assert names == [name for name in expected if where[name] == partition]


async def catalogue(pair: Pair) -> None:
    """Lets all types join the catalogue, so that they can be switched."""
    for type_ in TYPES:
        await pair.nodes[0].publish(type_, "hello", "nobody")
    # Whichever node read them has them joined; the database is the same for both.
    await pair.nodes[0].until_known(*TYPES)


async def test_each_stream_gets_exactly_what_it_should_in_order_and_once(pair: Pair) -> None:
    await catalogue(pair)
    off = {user: {t for n, t in enumerate(TYPES) if (index >> n) & 1} for index, user in enumerate(PEOPLE)}
    for index, user in enumerate(PEOPLE):
        if off[user]:
            await pair.nodes[index % 2].switch(user, **dict.fromkeys(off[user], False))
    async with AsyncExitStack() as stack:
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        readers = []
        for user in PEOPLE:
            for node in pair.nodes:
                stream = await stack.enter_async_context(node.stream(user))
                assert (await stream.ready())["resume"] == "new"
                readers.append(Reader(user, stream))
        reading = [tasks.create_task(reader.read()) for reader in readers]

        events = [event(n) for n in range(400)]
        mixed: list[dict[str, object] | bytes] = list(events)
        for n, poison in enumerate(POISON * 3):
            mixed.insert(n * 17, poison)
        where = await pair.produce(mixed)
        for reader in readers:
            expected = wanted(events, reader.user, off[reader.user])
            await eventually(partial(has_at_least, reader, len(expected)))
        for reader in readers:
            check(reader, wanted(events, reader.user, off[reader.user]), where)
        assert await dead_letters(pair, len(POISON) * 3) == sorted(POISON * 3)

        # Switches flipped in the middle, both ways, each on one node: in force on both.
        for user in PEOPLE[:5]:
            flipped = {t: t in off[user] for t in ("alarm", "news")}
            await pair.nodes[1].switch(user, **flipped)
            off[user] = (off[user] - {t for t, on in flipped.items() if on}) | {
                t for t, on in flipped.items() if not on
            }
        for reader in readers:
            reader.got.clear()
        events = [event(n) for n in range(400, 700)]
        where = await pair.produce(events)
        for reader in readers:
            expected = wanted(events, reader.user, off[reader.user])
            await eventually(partial(has_at_least, reader, len(expected)))
        for reader in readers:
            check(reader, wanted(events, reader.user, off[reader.user]), where)
            assert (reader.told.count("preferences") == 1) == (reader.user in PEOPLE[:5])
        for task in reading:
            task.cancel()
        await asyncio.gather(*reading, return_exceptions=True)


async def test_a_client_dropped_on_one_node_resumes_on_the_other_and_misses_nothing(pair: Pair) -> None:
    await catalogue(pair)
    events = [event(n) for n in range(300)]
    expected = wanted(events, "person3", set())
    async with pair.nodes[0].stream("person3") as stream:
        await stream.ready()
        await pair.produce(events[:150])
        first = [
            str(json.loads((await stream.next()).data)["id"]) for _ in wanted(events[:100], "person3", set())
        ]
    await pair.produce(events[150:])
    async with pair.nodes[1].stream("person3", Last_Event_ID=stream.last_id) as again:
        assert (await again.ready())["resume"] == "complete"
        rest = [str(json.loads((await again.next()).data)["id"]) for _ in range(len(expected) - len(first))]
    assert sorted(first + rest) == sorted(expected)
    reply = await pair.nodes[1].http.get(f"/v1/events?user=person3&after={stream.last_id}&limit=1000")
    assert [e["data"]["id"] for e in reply.json()["events"]] == rest


async def test_events_posted_to_a_node_go_through_kafka_and_come_out_on_the_other(pair: Pair) -> None:
    await catalogue(pair)
    async with pair.nodes[1].stream("person1") as stream:
        await stream.ready()
        lines = "\n".join(
            json.dumps({"type": "chat", "message": n, "to": {"users": ["person1"]}}) for n in range(20)
        )
        reply = await pair.nodes[0].http.post("/v1/events", content=lines)
        assert reply.json()["accepted"] == 20
        assert await stream.messages(20) == list(range(20))
        start = stream.last_id
        # What an event replaces, and what it takes away, come through the topic with it.
        person1 = {"users": ["person1"]}
        for more in ({"message": 1, "collapse": "a"}, {"message": 2, "collapse": "b"}, {"withdraw": "a"}):
            reply = await pair.nodes[0].http.post("/v1/events", json={"type": "chat", "to": person1, **more})
            assert reply.status_code == 202, reply.text
        await stream.until("pushsse.withdraw")
    for node in pair.nodes:
        found = (await node.http.get(f"/v1/events?user=person1&after={start}&wait_s=20")).json()["events"]
        assert [(each["event"], each["data"].get("message")) for each in found] == [
            ("chat", 2), ("pushsse.withdraw", None),
        ]  # fmt: skip


async def test_a_question_asked_on_one_node_is_answered_on_the_streams_of_the_other(pair: Pair) -> None:
    async with pair.nodes[1].stream("person1") as stream:
        await stream.ready()
        reply = await pair.nodes[0].http.post(
            "/v1/questions?user=person1", json={"text": "How do I switch an event type off?"}
        )
        assert reply.status_code == 202
        asked = json.loads((await stream.until("question")).data)
        assert asked["id"] == reply.json()["id"]
        text = ""
        while (heard := await stream.next()).event != "answer":
            data = json.loads(heard.data)
            if heard.event == "answer.delta":
                text = text[: data["from"]] + data["text"]
        assert text == json.loads(heard.data)["text"]
        assert text


async def dead_letters(pair: Pair, count: int) -> list[bytes]:
    """What the dead-letter topic has, once it has that many. A letter may be there twice."""
    found: dict[bytes, bytes] = {}
    consumer = AIOKafkaConsumer(
        f"{pair.topic}.dlq", bootstrap_servers=pair.bootstrap, auto_offset_reset="earliest"
    )
    await consumer.start()
    try:
        async with asyncio.timeout(LIMIT_S):
            while len(found) < count:
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    for record in records:
                        headers = dict(record.headers)
                        assert headers["error"]
                        assert headers["topic"] == pair.topic.encode()
                        place = headers["partition"] + b"-" + headers["offset"]
                        found[place] = record.value or b""
    finally:
        await consumer.stop()
    return sorted(found.values())
