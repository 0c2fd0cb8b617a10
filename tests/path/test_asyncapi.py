"""docs/asyncapi.yaml against the code, and against what a node really sends: frames, and records of Kafka."""

import json
import re
import secrets
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_type_hints

import jsonschema_rs
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from pushsse import outcomes
from pushsse.api.acks import AckRequest
from pushsse.errors import CloseReason
from pushsse.event import RESERVED_TYPES, WITHDRAW
from pushsse.questions import DESK
from pushsse.questions.answerers.python import Asked
from pushsse.settings import Settings
from tests.path.asyncapi import DOCUMENT, Described
from tests.serving import Running, Stream, serving
from tests.waiting import eventually

pytestmark = pytest.mark.anyio
# What a browser's EventSource has under these names isn't sent.
NEVER_SENT = {"open", "error", "message"}
A_TYPE = "{type}"


def described(channel: str) -> Described:
    return Described(channel)


def test_the_document_has_each_event_of_the_service_and_no_other() -> None:
    names = {message["name"] for message in described("stream").messages.values()}
    assert names == (RESERVED_TYPES - NEVER_SENT) | {WITHDRAW, DESK, A_TYPE}
    # And the code sends none under a name that isn't reserved.
    source = "\n".join(file.read_text() for file in (Path(outcomes.__file__).parent).rglob("*.py"))
    sent = set(re.findall(r'(?:event\.|[\s(])(?:encode|service_event)\(\s*"([\w.]+)"', source))
    assert {"ready", "question", "preferences", "exception"} <= sent <= names


def test_the_document_has_each_topic_and_no_other() -> None:
    settings = Settings()
    topics = {
        settings.kafka_topic,
        settings.dlq_topic,
        settings.questions_topic,
        settings.answers_topic,
        settings.answers_dlq_topic,
        settings.outcomes_topic,
    }
    addresses = {channel["address"] for channel in DOCUMENT["channels"].values()}
    assert addresses == topics | {"/v1/stream"}


def test_the_codes_and_outcomes_of_the_document_are_those_of_the_code() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    unsaid = {CloseReason.ANSWERED, CloseReason.WAITED, CloseReason.DISCONNECTED}
    assert set(schemas["Exception"]["properties"]["code"]["enum"]) == {
        reason.code for reason in CloseReason if reason not in unsaid
    }
    noted = {outcomes.WRITTEN, outcomes.SWITCHED_OFF, outcomes.EXPIRED, outcomes.OFFLINE, outcomes.RATED}
    assert set(schemas["Outcome"]["properties"]["outcome"]["enum"]) == noted | set(
        get_args(get_type_hints(AckRequest)["state"])
    )


def test_every_channel_has_its_operation_and_every_example_its_shape() -> None:
    references = re.findall(r"'\$ref': '#/([^']+)'", str(DOCUMENT))
    assert references
    for reference in references:
        place: Any = DOCUMENT
        for step in reference.split("/"):
            place = place[step]
    used = {operation["channel"]["$ref"].rpartition("/")[2] for operation in DOCUMENT["operations"].values()}
    assert used == set(DOCUMENT["channels"])
    for channel in DOCUMENT["channels"]:
        found = described(channel)
        for message in found.messages.values():
            for example in message.get("examples", ()):
                found.validate(message["name"], example["payload"])


def test_a_member_that_the_document_lacks_would_be_found() -> None:
    with pytest.raises(jsonschema_rs.ValidationError):
        described("stream").validate("ping", {"more": 1})
    with pytest.raises(jsonschema_rs.ValidationError):
        described("stream").validate(
            "question", {"id": "x", "conversation": "c", "text": "", "status": "asked"}
        )


async def answer(asked: Asked) -> AsyncGenerator[object, None]:
    """Answers with every kind of part, or fails."""
    if "fail" in asked.text:
        raise ValueError("as the test wants it")
    yield {"status": "looking it up"}
    yield "It is "
    yield {"source": {"title": "Here", "url": "/here"}}
    yield {"data": {"name": "order", "data": {"id": 7}}}
    yield "here."


async def ask(node: Running, text: str) -> str:
    reply = await node.http.post("/v1/questions?user=ann", json={"text": text, "conversation": "c"})
    assert reply.status_code == 202, reply.text
    return str(reply.json()["id"])


async def change(node: Running, **changed: object) -> None:
    reply = await node.http.post("/v1/preferences?user=ann", json=changed)
    assert reply.status_code == 200, reply.text


@dataclass
class Frames:
    """All events of some streams, validated as they come."""

    stream: Described = field(default_factory=lambda: described("stream"))
    seen: set[str] = field(default_factory=set)
    members: set[str] = field(default_factory=set)

    async def until(self, stream: Stream, name: str) -> Any:
        while True:
            event = await stream.next()
            data = self.take(event.event, event.data)
            if event.event == name:
                return data

    def take(self, name: str, text: str) -> Any:
        data = json.loads(text)
        message = name if name in RESERVED_TYPES or name.startswith("pushsse.") else A_TYPE
        self.stream.validate(message, data)
        self.seen.add(message)
        self.members |= {f"{message} {member}" for member in data}
        return data


async def test_every_event_of_a_running_node_is_as_the_document_says(tmp_path: Path) -> None:
    frames = Frames()
    async with serving(tmp_path, heartbeat_s=0.4, answerer=f"python:{__name__}:answer") as node:
        shop = {"category": "shop", "title": "Offers"}
        assert (await node.http.put("/v1/types/offers?user=root", json=shop)).status_code == 201
        assert (await node.http.get("/v1/conversations?user=sam&status=handed_over")).status_code == 200
        async with node.stream("ann") as ann, node.stream("sam") as sam:
            await frames.until(ann, "ready")
            await frames.until(sam, "ready")
            for to in ("all", "ann"):
                await node.publish("news", {"n": 1}, to)
                await node.publish("news", None, to, collapse="k", desc="told")
                await node.publish("news", None, to, withdraw="k")
                await frames.until(ann, WITHDRAW)
            await change(node, types={"offers": False})
            await change(node, categories={"shop": False})
            await change(node, quiet=[{"from": "22:00", "to": "07:00"}], zone="Europe/Berlin")
            await change(node, paused_until="2030-01-01T00:00:00Z")
            while not (await frames.until(ann, "preferences")).get("paused_until"):
                pass
            for told in ({"ids": ["x"], "state": "clicked"}, {"up_to": ann.last_id, "state": "read"}):
                assert (await node.http.post("/v1/acks?user=ann", json=told)).status_code == 204
                await frames.until(ann, "ack")
            await ask(node, "Where is it?")
            await frames.until(ann, "answer")
            await ask(node, "fail")
            await frames.until(ann, "answer.error")
            await node.http.post("/v1/conversations/c/handover?user=ann")
            await frames.until(sam, DESK)
            await frames.until(ann, "ping")
            async with node.stream("ann") as again:
                await frames.until(again, "ready")
            assert (await node.http.post("/v1/users/ann/kick?user=root")).status_code == 200
            await frames.until(ann, "exception")
    assert frames.seen == set(frames.stream.by_name)
    # Each member of each event was there once; that of a part is inside `answer.delta`.
    assert frames.members == {
        f"{name} {member}"
        for name, schema in frames.stream.by_name.items()
        for member in schema.get("properties", ())
    }


@dataclass
class Records:
    """What comes in the topics, by the channel of the document, validated as it comes."""

    channels: dict[str, str]
    values: dict[str, list[Any]] = field(default_factory=dict)

    def take(self, record: ConsumerRecord) -> None:
        channel = self.channels[record.topic]
        found = described(channel)
        if channel.startswith("dead"):
            headers = {name: value.decode() for name, value in record.headers}
            schema = found.messages["deadLetter"]["headers"]
            found.check(schema, headers)
            value: Any = headers
        else:
            value = json.loads(record.value)
            found.validate_any(value)
        self.values.setdefault(channel, []).append(value)

    def of(self, channel: str) -> list[Any]:
        return self.values.get(channel, [])

    def outcomes(self) -> set[str]:
        return {each["outcome"] for each in self.of("outcomes")}


async def test_every_record_is_as_the_document_says(kafka_topic: tuple[str, str], tmp_path: Path) -> None:
    bootstrap, events = kafka_topic
    name = secrets.token_hex(4)
    own = {channel: f"{channel}-{name}" for channel in ("questions", "answers", "outcomes")}
    given: dict[str, Any] = {
        "kafka_bootstrap": bootstrap,
        "kafka_topic": events,
        "kafka_group": events,
        "kafka_start": "earliest",
        "answerer": "kafka:",
        "outcomes": "on",
        **{f"{channel}_topic": topic for channel, topic in own.items()},
    }
    channels = {topic: channel for channel, topic in own.items()}
    channels |= {events: "events", f"{events}.dlq": "deadEvents", f"{own['answers']}.dlq": "deadAnswers"}
    records = Records({topic: channel for topic, channel in channels.items() if channel != "answers"})
    async with AsyncExitStack() as stack:
        admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
        await admin.start()
        stack.push_async_callback(admin.close)
        await admin.create_topics(
            [NewTopic(topic, 1, 1) for topic in channels if not topic.startswith(events)]
        )
        producer = AIOKafkaProducer(bootstrap_servers=bootstrap)
        await producer.start()
        stack.push_async_callback(producer.stop)
        consumer = AIOKafkaConsumer(
            *records.channels, bootstrap_servers=bootstrap, auto_offset_reset="earliest"
        )
        await consumer.start()
        stack.push_async_callback(consumer.stop)

        async def come(there: Any) -> None:
            async def look() -> bool:
                for found in (await consumer.getmany(timeout_ms=50)).values():
                    for record in found:
                        # What the test has produced to be refused is no event.
                        if record.value != b"{" or record.topic.endswith(".dlq"):
                            records.take(record)
                return bool(there())

            await eventually(look, 60)

        async def say(**said: object) -> None:
            described("answers").validate_any(said)
            await producer.send_and_wait(own["answers"], json.dumps(said).encode())

        node = await stack.enter_async_context(serving(tmp_path, **given))
        ann = await stack.enter_async_context(node.stream("ann"))
        await ann.ready()
        for topic in (events, own["answers"]):
            await producer.send_and_wait(topic, b"{", headers=[("traceparent", b"x")])
        await node.publish("news", "first", id="first")
        await ann.until("news")
        await node.until_known("news")
        await node.switch("bo", news=False)
        await node.publish("news", "second", ["ann", "bo"], id="second", campaign="autumn", ttl_s=60)
        await node.publish("news", "old", "ann", id="old", ts="2020-01-01T00:00:00Z", ttl_s=1)
        await node.http.post("/v1/acks?user=ann", json={"ids": ["second"], "state": "read"})
        first, second = await ask(node, "Where?"), await ask(node, "When?")
        await come(lambda: len(records.of("questions")) == 2)
        await say(question=first, seq=1, delta="Here", attempt=1)
        await say(question=first, seq=2, status="looking")
        await say(question=first, seq=3, source={"title": "Here", "url": "/here"})
        await say(question=first, seq=4, data={"name": "n", "data": [1]})
        await say(question=first, text="Here it is", done=True)
        await ann.until("answer")
        await node.http.post(
            f"/v1/questions/{first}/feedback?user=ann", json={"rating": "up", "comment": "so"}
        )
        await node.http.post(f"/v1/questions/{second}/cancel?user=ann")
        await come(lambda: {"written", "switched_off", "expired", "read", "rated"} <= records.outcomes())
        await come(
            lambda: (
                len(records.of("questions")) == 3 and records.of("deadEvents") and records.of("deadAnswers")
            )
        )
        await come(lambda: any("count" in each for each in records.of("outcomes")))
        assert [each.get("cancel") for each in records.of("questions")] == [None, None, True]
        assert {each["id"] for each in records.of("events")} == {"first", "second", "old"}
