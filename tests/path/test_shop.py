"""The shop of examples/: three sources with three formats at once, from a real Kafka to people's streams."""

import asyncio
import json
import secrets
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiokafka.admin import AIOKafkaAdminClient

from deploy.parts import Kafka
from tests.cli.running import pushsse
from tests.serving import serving
from tests.shop import SHOP, TOPICS, producer
from tests.waiting import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.real]

GETS = {
    "ann": ["order.paid", "chat.message", "order.sent", "shop.alarm.fire"],
    "bo": ["order.paid", "shop.alarm.fire"],
    "cy": ["shop.alarm.temperature", "chat.message", "shop.alarm.fire", "chat.message"],
    "dee": ["shop.alarm.fire"],
}


@pytest.fixture
async def bootstrap(kafka_part: Kafka) -> AsyncIterator[str]:
    """A Kafka that makes no topic by itself: the example's producer makes them."""
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka_part.url)
    await admin.start()
    try:
        yield kafka_part.url
        made = [name for topic in TOPICS for name in (topic, f"{topic}.dlq")]
        await admin.delete_topics([*made, producer().OUTCOMES])
    finally:
        await admin.close()


async def test_three_sources_in_three_formats_reach_their_people(bootstrap: str, tmp_path: Path) -> None:
    tables = tomllib.loads((SHOP / "pushsse.toml").read_text())["kafka"]
    assert len({table["format"] for table in tables}) == 3
    assert await producer().produce(bootstrap) == 12
    options: dict[str, Any] = {
        "kafka": json.dumps(tables),
        "kafka_bootstrap": bootstrap,
        "kafka_group": f"shop-{secrets.token_hex(4)}",
        "kafka_start": "earliest",
    }
    tried = await asyncio.to_thread(
        pushsse,
        tmp_path,
        "try",
        "--kafka",
        bootstrap,
        "--config",
        str(SHOP / "pushsse.toml"),
        "--limit",
        "12",
    )
    assert tried.returncode == 0, tried.stderr
    for line in (
        "shop.orders: 6 records: 3 events, 2 skipped, 1 dead letter",
        "shop.alarms.hamburg: 3 records: 2 events, 1 dead letter",
        "shop.alarms.lyon: 1 record: 1 event",
        "shop.chat: 2 records: 2 events",
    ):
        assert line in tried.stderr
    named = [word for topic in TOPICS for word in ("--topic", topic)]
    proposed = await asyncio.to_thread(pushsse, tmp_path, "try", "--kafka", bootstrap, *named)
    assert proposed.returncode == 0, proposed.stderr
    assert 'to = "value.buyer.id"' in proposed.stdout
    # The order without a status, and the one without a value.
    assert "shop.orders: 5 records: 3 events, 2 skipped" in proposed.stderr
    for line in (
        "# value.status is in 3 of these 4 records only: `when` skips those without it",
        'when = "value.status"',
        "type = \"join('.', ['shop.order', value.status])\"",
        "id = \"join('-', [value.orderNo, value.status])\"",
    ):
        assert line in proposed.stdout.splitlines()
    assert 'format = "cloudevents"' in proposed.stdout
    assert 'format = "headers"' in proposed.stdout
    async with serving(tmp_path, **options) as node:
        counts = node.node.metrics.sources

        def outcomes(name: str) -> dict[str, int]:
            found = counts[name]
            return {"mapped": found.mapped, "skipped": found.skipped, "dead": found.dead}

        def all_read() -> bool:
            return sum(sum(outcomes(name).values()) for name in ("orders", "alarms", "chat")) == 12

        await eventually(all_read, what="all records")
        assert outcomes("orders") == {"mapped": 3, "skipped": 2, "dead": 1}
        assert outcomes("alarms") == {"mapped": 3, "skipped": 0, "dead": 1}
        assert outcomes("chat") == {"mapped": 2, "skipped": 0, "dead": 0}
        await eventually(lambda: node.node.metrics.dead_letters == 2, what="dead letters")
        for user, types in GETS.items():

            async def got(user: str = user, types: list[str] = types) -> bool:
                found = await events(node.http, user)
                # Between topics there is no order; each has its own.
                return sorted(str(each["type"]) for each in found) == sorted(types)

            await eventually(got, what=f"the events of {user}")
        ann = {each["id"]: each for each in await events(node.http, "ann")}
        assert ann["A-981-paid"]["message"] == {
            "order": "A-981", "status": "paid", "total": 17.8, "items": ["TEA-EARL-250"]
        }  # fmt: skip
        assert ann["A-981-sent"]["desc"] == "Order A-981 is sent"
        cy = {each["id"]: each for each in await events(node.http, "cy")}
        assert cy["m-2"]["message"] == "Thank you!"
        assert cy["/warehouses/hamburg/cold-2|7f3a-0001"]["desc"] == "Cold room 2 is at 9.5 °C"
        text = (await node.http.get("/metrics")).text
        assert 'pushsse_source_records_total{outcome="dead",source="alarms"} 1.0' in text


async def events(http: httpx.AsyncClient, user: str) -> list[dict[str, object]]:
    """What a person has got so far."""
    reply = await http.get(f"/v1/events?user={user}&since=1h")
    return [each["data"] for each in reply.json()["events"]]
