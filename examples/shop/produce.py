"""Writes the records of a shop to Kafka: orders, alarms of its warehouses, and a chat.

python produce.py [HOST:PORT]        (default: PUSHSSE_KAFKA_BOOTSTRAP, or 127.0.0.1:9092)

It makes the topics that aren't there, their dead-letter topics, and shop.outcomes, with one partition each.
"""

import asyncio
import json
import os
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

OUTCOMES = "shop.outcomes"
RECORDS = Path(__file__).with_name("records.ndjson")


def records(now: datetime) -> Iterator[dict[str, Any]]:
    """What `send` of a producer takes; the records are of just now."""
    for line in RECORDS.read_text(encoding="utf-8").splitlines():
        record = json.loads(line.replace('"NOW"', json.dumps(now.isoformat())))
        value = record.get(
            "text", json.dumps(record["value"], ensure_ascii=False) if "value" in record else None
        )
        yield {
            "topic": record["topic"],
            # A record without a value says that the order is gone.
            "value": None if value is None else value.encode(),
            "key": record["key"].encode() if "key" in record else None,
            "headers": [(name, text.encode()) for name, text in record.get("headers", {}).items()],
        }


async def make_topics(bootstrap: str, topics: set[str]) -> None:
    """Makes those of the topics that aren't there."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    try:
        await admin.start()
        missing = topics - set(await admin.list_topics())
        if missing:
            await admin.create_topics([NewTopic(name, 1, 1) for name in sorted(missing)])
    finally:
        await admin.close()


async def produce(bootstrap: str) -> int:
    """Sends them all; how many they were."""
    sent = list(records(datetime.now(UTC)))
    topics = {name for r in sent for name in (r["topic"], f"{r['topic']}.dlq")}
    await make_topics(bootstrap, topics | {OUTCOMES})
    async with AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", enable_idempotence=True) as producer:
        for record in sent:
            await producer.send_and_wait(**record)
    return len(sent)


if __name__ == "__main__":
    where = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("PUSHSSE_KAFKA_BOOTSTRAP", "127.0.0.1:9092")
    print(f"{asyncio.run(produce(where))} records")
