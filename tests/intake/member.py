"""A member of the group in a process of its own, to be killed: its first dispatch never returns."""

import asyncio
import sys
from collections.abc import Sequence

from pushsse.backplane import Draft, Receipt
from pushsse.backplane.memory import MemoryBackplane
from pushsse.intake import EventHandler, Made, PushsseFormat
from pushsse.kafka import Connection, one_topic
from pushsse.kafka.consumer import Consumer, Handler
from pushsse.metrics import Metrics
from tests.intake.kit import drafter


class Hanging:
    async def dispatch(self, drafts: Sequence[Draft]) -> Receipt:
        print("dispatching", flush=True)
        await asyncio.Event().wait()
        return Receipt()


async def main(bootstrap: str, topic: str, group: str) -> None:
    metrics = Metrics()
    consumer = Consumer(
        Connection(bootstrap=bootstrap, session_timeout_ms=6000),
        topics=one_topic(topic, start="earliest", dlq_topic=f"{topic}.dlq"),
        group=group,
        fences=MemoryBackplane(shards=64, keep_s=60, keep_bytes=1024**2, metrics=metrics),
        metrics=metrics,
    )
    decode = PushsseFormat(metrics=metrics, drafter=drafter())
    handler: Handler[Made] = EventHandler(decode, Hanging())
    await consumer.run(handler)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
