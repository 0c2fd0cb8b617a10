"""The least that Kafka to client takes with the same libraries: aiokafka, PUBLISH, SUBSCRIBE, a socket.

Run by `path`: bare.py BOOTSTRAP TOPIC REDIS_URL PORT. No log, no switches, no positions, no batches: each
record is published by itself, and each message is written to its person's socket.
"""

import asyncio
import json
import sys

import redis.asyncio
import uvloop
from aiokafka import AIOKafkaConsumer

CHANNEL = "bare"
HELLO = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


class Stream(asyncio.Protocol):
    """One connection; its path is its person's name."""

    def __init__(self, people: dict[str, asyncio.Transport]) -> None:
        self._people = people
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        self._people[data.split(b" ", 2)[1].decode().lstrip("/")] = self._transport
        self._transport.write(HELLO)


async def consume(bootstrap: str, topic: str, client: redis.asyncio.Redis, began: asyncio.Event) -> None:
    """From Kafka to Redis."""
    consumer = AIOKafkaConsumer(
        topic, bootstrap_servers=bootstrap, auto_offset_reset="latest", fetch_max_wait_ms=50
    )
    await consumer.start()
    for partition in consumer.assignment():
        await consumer.position(partition)
    began.set()
    try:
        async for record in consumer:
            await client.publish(CHANNEL, record.value or b"")
    finally:
        await consumer.stop()


async def listen(client: redis.asyncio.Redis, people: dict[str, asyncio.Transport]) -> None:
    """From Redis to the sockets."""
    async with client.pubsub() as subscription:
        await subscription.subscribe(CHANNEL)
        async for message in subscription.listen():
            if message["type"] != "message":
                continue
            body: bytes = message["data"]
            event = b"event: load\ndata: %b\n\n" % body
            for name in json.loads(body)["to"]["users"]:
                if (transport := people.get(name)) is not None:
                    transport.write(b"%x\r\n%b\r\n" % (len(event), event))


async def main(bootstrap: str, topic: str, redis_url: str, port: int) -> None:
    """Serves, for ever."""
    people: dict[str, asyncio.Transport] = {}
    client = redis.asyncio.Redis.from_url(redis_url)
    began = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(listen(client, people))
        tasks.create_task(consume(bootstrap, topic, client, began))
        await began.wait()
        server = await asyncio.get_running_loop().create_server(
            lambda: Stream(people), "127.0.0.1", port, backlog=4096
        )
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
