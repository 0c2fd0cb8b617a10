"""`pushsse try` and `pushsse dead` over a real Kafka."""

import asyncio
import json
import tomllib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from pushsse.intake import sources_of
from pushsse.intake.mapped import MappedFormat, compiled
from pushsse.kafka import Connection, reader
from pushsse.settings import load
from tests.cli.running import pushsse
from tests.intake.kit import Kit, drafter, value
from tests.waiting import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.real]

NOW = datetime.now(UTC).isoformat()
ORDERS = [
    {
        "orderNo": "A-981",
        "status": "paid",
        "buyerId": "ann",
        "notify": True,
        "createdAt": NOW,
    },
    {
        "orderNo": "A-982",
        "status": "sent",
        "buyerId": "bo",
        "notify": False,
        "createdAt": NOW,
    },
    {
        "orderNo": "A-981",
        "status": "sent",
        "buyerId": "ann",
        "notify": True,
        "createdAt": NOW,
    },
]


async def run(kit: Kit, folder: Path, *arguments: str, **settings: str) -> Any:
    command, *rest = arguments
    return await asyncio.to_thread(pushsse, folder, command, "--kafka", kit.bootstrap, *rest, **settings)


def encoded(values: Sequence[object]) -> list[bytes]:
    return [json.dumps(each).encode() for each in values]


async def test_a_topic_without_a_source_gets_a_table_that_works(kit: Kit, tmp_path: Path) -> None:
    await kit.create(kit.topic, partitions=2)
    await kit.produce(encoded(ORDERS[:2]))
    await kit.produce(encoded(ORDERS[2:]), partition=1, key=b"k")
    file = tmp_path / "made.toml"
    tried = await run(kit, tmp_path, "try", "--topic", kit.topic, "--limit", "5", "--write", str(file))
    assert tried.returncode == 0, tried.stderr
    assert tried.stdout.count(" to ann: ") == 2
    assert "skipped" in tried.stdout
    assert "2 events, 1 skipped" in tried.stderr
    assert "key k" in tried.stdout
    [table] = tomllib.loads(file.read_text())["kafka"]
    assert table["map"]["to"] == "value.buyerId"
    assert table["map"]["when"] == "value.notify"
    assert table["map"]["id"] == "join('-', [value.orderNo, value.status])"
    settings = load({}, file=file)
    assert settings.kafka_bootstrap == kit.bootstrap
    [source] = settings.kafka
    made = MappedFormat(compiled(source), drafter())
    records = await kit.read_all(kit.topic, 1)
    draft = made(records[0], "owner")
    assert draft is not None
    assert draft.publication.users == ("ann",)
    # Nothing was committed, and no group was made.
    assert kit.topic not in str(await kit.admin.list_consumer_groups())
    again = await run(kit, tmp_path, "try", "--topic", kit.topic, "--config", str(file))
    assert "as it is configured" in again.stderr
    assert "2 events, 1 skipped" in again.stderr
    twice = await run(kit, tmp_path, "try", "--topic", kit.topic, "--write", str(file))
    assert twice.returncode == 1
    assert "is named twice" in twice.stderr
    assert settings == load({"PUSHSSE_NODE": settings.node}, file=file)


async def test_what_records_are_is_seen_and_said(kit: Kit, tmp_path: Path) -> None:
    avro, cloud, own = (f"{kit.topic}-{name}" for name in ("avro", "cloud", "own"))
    await kit.create(avro, cloud, own)
    await kit.produce([b"\0\0\0\0\x07\x02\x06ann"], topic=avro)
    attributes = {
        "specversion": "1.0",
        "id": "1",
        "source": "/shop",
        "type": "order",
        "data": {"userId": "ann"},
    }
    await kit.produce(encoded([attributes]), topic=cloud)
    await kit.produce([value(1), b"{"], topic=own)
    found = await run(kit, tmp_path, "try", "--topic", avro, "--topic", cloud, "--topic", own)
    assert found.returncode == 0, found.stderr
    assert "schema registry's magic byte 0x00 and schema 7" in found.stdout
    assert 'format = "python:PACKAGE:FUNCTION"' in found.stdout
    assert 'format = "cloudevents"' in found.stdout
    assert 'to = "value.data.userId"' in found.stdout
    assert "order to ann" in found.stdout
    assert 'format = "pushsse"' in found.stdout
    assert "dead letter  $: isn't JSON" in found.stdout
    configured = await run(kit, tmp_path, "try", "--topic", avro, PUSHSSE_KAFKA_TOPIC=avro)
    assert "schema registry" in configured.stdout
    assert "1 dead letter\n" in configured.stderr
    told = await run(kit, tmp_path, "try", "--topic", avro, "--topic", own, "--json")
    *records, proposed = map(json.loads, told.stdout.splitlines())
    [schema, table, event, bad] = records
    assert (schema["fate"], schema["schema"]) == ("dead_letter", 7)
    assert 'format = "python:' in table["proposed"]
    assert (event["fate"], event["value"]) == ("event", value(1).decode())
    [made] = event["events"]
    assert json.loads(made["data"])["type"] == made["type"]
    assert (bad["fate"], bad["events"]) == ("dead_letter", [])
    assert bad["detail"].startswith("$: isn't JSON")
    assert 'format = "pushsse"' in proposed["proposed"]
    missing = await run(kit, tmp_path, "try", "--topic", "nothing-here")
    assert missing.returncode == 1
    assert "there is no topic 'nothing-here'" in missing.stderr


async def test_dead_letters_are_sent_again_once_and_in_order_after_a_fix(kit: Kit, tmp_path: Path) -> None:
    await kit.create(kit.topic, partitions=2)
    await kit.create(kit.dlq, partitions=2)
    tables = json.dumps([{"topics": [kit.topic], "format": "headers", "start": "earliest"}])
    environment = {"PUSHSSE_KAFKA_BOOTSTRAP": kit.bootstrap, "PUSHSSE_KAFKA": tables}
    decode = sources_of(
        load(environment), metrics=kit.metrics, drafter=drafter(refused="no"), now_ms=kit.backplane.now_ms
    )
    numbers = list(range(5))
    bodies = [json.dumps({"type": "a", "to": "all", "message": {"n": number}}).encode() for number in numbers]
    # Whoever set the source up took events of ours for messages with headers.
    await kit.produce(bodies, partition=1, key=b"k", headers=[("trace", b"1")])
    await kit.produce([b"x" * 2_000], partition=0)
    async with kit.running(topics=decode.topics, decode=decode):
        await eventually(lambda: kit.metrics.dead_letters == 6, what="dead letters")
    group = {"PUSHSSE_KAFKA_GROUP": kit.group}
    listed = await run(kit, tmp_path, "dead", "--topic", kit.topic, **group)
    assert listed.returncode == 0, listed.stderr
    assert f"{kit.topic}-1-0, {len(bodies[0])} bytes" in listed.stdout
    assert listed.stdout.count("header pushsse-type: is required") == 6
    assert "6 dead letters" in listed.stderr
    told = await run(kit, tmp_path, "dead", "--topic", kit.topic, "--json", **group)
    letters = [json.loads(line) for line in told.stdout.splitlines()]
    assert {each["place"] for each in letters} == {
        *(f"{kit.topic}-1-{number}" for number in numbers),
        f"{kit.topic}-0-0",
    }
    assert all(each["can_be_sent"] and "pushsse-type" in each["error"] for each in letters)
    assert await kit.read_all(kit.topic, 1) == (await kit.read_all(kit.topic, 1))[:5]

    # One by its offset, then the others.
    [place] = [line.split("  ")[0] for line in listed.stdout.splitlines() if f"  {kit.topic}-1-2," in line]
    partition, offset = place.rsplit("-", 2)[1:]
    one = await run(
        kit, tmp_path, "dead", "--topic", kit.topic, "--send", "--partition", partition, "--offset", offset,
        "--limit", "1", **group,
    )  # fmt: skip
    assert "1 dead letters were sent again" in one.stderr, one.stderr
    rest = await run(kit, tmp_path, "dead", "--topic", kit.dlq, "--send", **group)
    assert "5 dead letters were sent again" in rest.stderr, rest.stderr
    nothing = await run(kit, tmp_path, "dead", "--topic", kit.topic, "--send", **group)
    assert "0 dead letters were sent again" in nothing.stderr, nothing.stderr
    again = (await kit.read_all(kit.topic, 1))[5:]
    assert [each.value for each in again] == [bodies[number] for number in (2, 0, 1, 3, 4)]
    assert {(each.key, tuple(each.headers)) for each in again} == {(b"k", (("trace", b"1"),))}
    # It had no key, and is where it was.
    assert [(each.key, each.value) for each in (await kit.read_all(kit.topic, 0))[1:]] == [
        (None, b"x" * 2_000)
    ]


async def test_doctor_and_try_say_which_topics_of_sources_are_there(kit: Kit, tmp_path: Path) -> None:
    await kit.create(kit.topic, kit.dlq)
    tables = [{"topics": [kit.topic, f"{kit.topic}-more-.*"], "format": "headers"}]
    environment = {"PUSHSSE_KAFKA_BOOTSTRAP": kit.bootstrap, "PUSHSSE_KAFKA": json.dumps(tables)}
    found = await asyncio.to_thread(pushsse, tmp_path, "doctor", **environment)
    assert f"ok      kafka     the topic {kit.topic} has 1 partitions" in found.stdout
    assert f"ok      kafka     the topic {kit.dlq} has 1 partitions" in found.stdout
    assert f"warning kafka     the topic {kit.topic}-more-.* isn't there yet" in found.stdout
    assert "warning kafka     the topic push.events isn't there yet" in found.stdout
    assert "fault   kafka" not in found.stdout
    tried = await asyncio.to_thread(pushsse, tmp_path, "try", **environment)
    assert tried.returncode == 0, tried.stderr
    assert f"{kit.topic}-more-.*: isn't there yet" in tried.stderr
    assert "push.events: isn't there yet" in tried.stderr
    assert f"{kit.topic}: 0 records" in tried.stderr
    assert f"{kit.topic}: isn't there" not in tried.stderr


async def test_a_letter_that_was_cut_is_shown_and_not_sent(kit: Kit, tmp_path: Path) -> None:
    await kit.create(kit.topic, kit.dlq)
    headers = [("error", b"too long"), ("topic", kit.topic.encode()), ("partition", b"0"), ("offset", b"7")]
    await kit.produce([b"cut"], topic=kit.dlq, headers=[*headers, ("truncated", b"true")])
    await kit.produce([b"foreign"], topic=kit.dlq)
    group = {"PUSHSSE_KAFKA_GROUP": kit.group}
    sent = await run(kit, tmp_path, "dead", "--topic", kit.dlq, "--send", **group)
    assert "0 dead letters were sent again, 2 can't be" in sent.stderr, sent.stderr
    assert "cut: it can't be sent again" in sent.stdout
    assert "no dead letter of pushsse" in sent.stdout
    assert await kit.read_all(kit.topic) == []
    missing = await run(kit, tmp_path, "dead", "--topic", "nothing-here", **group)
    assert (missing.returncode, "there is no topic 'nothing-here.dlq'" in missing.stderr) == (1, True)


class HalfGone(Connection):
    """A Kafka that goes away once the consumer is connected."""

    @asynccontextmanager
    async def admin(self) -> AsyncIterator[AIOKafkaAdminClient]:
        async with Connection(bootstrap="127.0.0.1:1").admin() as admin:
            yield admin


async def test_a_kafka_that_goes_away_while_a_reader_connects_is_an_os_error(kit: Kit) -> None:
    with pytest.raises(OSError, match="bootstrap"):
        async with reader(HalfGone(bootstrap=kit.bootstrap)):
            pass
