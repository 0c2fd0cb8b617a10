"""Writes an event to Kafka for pushsse, with aiokafka.

python produce.py ann "Order 981 is paid"        (PUSHSSE_KAFKA_BOOTSTRAP and PUSHSSE_KAFKA_TOPIC say where)
"""

import asyncio
import json
import os
import sys

from aiokafka import AIOKafkaProducer


async def main(to: str, message: str) -> None:
    producer = AIOKafkaProducer(
        bootstrap_servers=os.environ.get("PUSHSSE_KAFKA_BOOTSTRAP", "127.0.0.1:9092"),
        acks="all",
        enable_idempotence=True,
    )
    event = {
        "type": "order",
        "message": message,
        "to": "all" if to == "all" else {"users": [to]},
        "desc": "an example",
        "ttl_s": 3600,
    }
    async with producer:
        # Order holds within a key. Use the person as the key, and one key for all broadcasts.
        written = await producer.send_and_wait(
            os.environ.get("PUSHSSE_KAFKA_TOPIC", "push.events"), json.dumps(event).encode(), key=to.encode()
        )
    print(f"{written.topic}-{written.partition}-{written.offset}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("produce.py USER|all MESSAGE")
    asyncio.run(main(sys.argv[1], sys.argv[2]))
