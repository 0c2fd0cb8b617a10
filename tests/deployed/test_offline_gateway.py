"""Outcomes from real Kafka through examples/offline-gateway to a push service and a browser."""

import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from deploy.parts import Kafka
from tests.deployed.chromium import chromium
from tests.deployed.offline_gateway import gateway, push_service, shown
from tests.migrated import migrated
from tests.serving import serving
from tests.waiting import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.real, pytest.mark.long]


async def test_a_person_who_is_offline_is_notified_once_and_after_quiet_hours(
    kafka_part: Kafka, tmp_path: Path
) -> None:
    events, outcomes = (f"{name}-{secrets.token_hex(4)}" for name in ("events", "outcomes"))
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka_part.url)
    await admin.start()
    await admin.create_topics([NewTopic(name, 1, 1) for name in (events, f"{events}.dlq", outcomes)])
    await admin.close()
    node_settings: dict[str, Any] = {
        "database_url": migrated(tmp_path / "x.db"),
        "kafka_bootstrap": kafka_part.url,
        "kafka_topic": events,
        "kafka_group": events,
        "outcomes": "on",
        "outcomes_topic": outcomes,
    }
    variables = {"GATEWAY_KAFKA": kafka_part.url, "GATEWAY_TOPIC": outcomes}
    async with (
        push_service() as service,
        serving(tmp_path, **node_settings) as node,
        gateway(
            tmp_path,
            GATEWAY_PUSHSSE=node.url,
            GATEWAY_WEBHOOK=f"http://127.0.0.1:{service.port}/hook",
            **variables,
        ) as url,
        httpx.AsyncClient(base_url=url) as client,
    ):
        wrong = {**service.subscription, "endpoint": "https://example.com/send"}
        assert (await client.post("/subscriptions?user=ann", json=wrong)).status_code == 422
        reply = await client.post("/subscriptions?user=ann", json=service.subscription)
        assert reply.status_code == 204
        await node.publish("order", {"n": 1}, "ann", id="one", desc="Your order was paid")
        await eventually(lambda: len(service.notices) == 1, 60)
        notice = service.notices[0]
        assert notice == {
            "title": "order", "body": "Your order was paid", "tag": "one", "event": "one",
        }  # fmt: skip
        assert service.heads[0]["urgency"] == "normal"
        # Quiet for a while: what comes is held, and told as one when it is over.
        await node.until_known("order")
        until = datetime.now(UTC) + timedelta(seconds=40)
        quiet = {"paused_until": until.isoformat()}
        assert (await node.http.post("/v1/preferences?user=ann", json=quiet)).status_code == 200
        for number in range(3):
            await node.publish("order", number, "ann", id=f"held-{number}")
        async with chromium(tmp_path / "profile") as browser:
            origin = url.replace("127.0.0.1", "localhost")
            assert await shown(browser, origin, f"{origin}/?user=ann", notice) == [
                {"title": "order", "body": "Your order was paid", "tag": "one"}
            ]
        await eventually(lambda: len(service.notices) == 2, 90)
        assert datetime.now(UTC) >= until
        assert service.notices[1] | {"event": ""} == {
            "title": "3 new messages", "body": "order", "tag": "summary", "event": "",
        }  # fmt: skip
        # A browser that has unsubscribed is forgotten; the webhook gets everything.
        service.statuses = [410]
        await node.http.post("/v1/preferences?user=ann", json={"paused_until": None})
        await node.publish("order", 1, "ann", id="last")
        await eventually(lambda: [each["event"] for each in service.hooked][-1:] == ["last"], 60)
        assert [each["count"] for each in service.hooked] == [1, 3, 1]
        assert len(service.notices) == 2
