"""Writes events to Kafka, each to one person: as many as there are, or at a rate. A process of its own.

Run by `path`: producer.py BOOTSTRAP TOPIC EVENTS PEOPLE RATE; a rate of 0 is as fast as it goes.
"""

import asyncio
import sys
import time

from aiokafka import AIOKafkaProducer

TEXT_BYTES = 300


def value(person: int) -> bytes:
    """One event, as a company's producer writes it, with the time of its sending in it."""
    text = f"@@T{time.monotonic_ns():019d}".ljust(TEXT_BYTES, "x")
    return b'{"type":"load","to":{"users":["person%d"]},"message":"%b"}' % (person, text.encode())


async def produce(bootstrap: str, topic: str, events: int, people: int, rate: float) -> None:
    """All events, and returns when they are acknowledged."""
    producer = AIOKafkaProducer(
        bootstrap_servers=bootstrap, acks=1, linger_ms=0 if rate else 20, max_batch_size=262_144
    )
    await producer.start()
    try:
        began = time.monotonic()
        sent = []
        for number in range(events):
            if rate and (early_s := began + number / rate - time.monotonic()) > 0:
                await asyncio.sleep(early_s)
            person = number % people
            sent.append(await producer.send(topic, value(person), key=b"person%d" % person))
        for one in sent:
            await one
    finally:
        await producer.stop()


if __name__ == "__main__":
    bootstrap, topic, events, people, rate = sys.argv[1:6]
    asyncio.run(produce(bootstrap, topic, int(events), int(people), float(rate)))
