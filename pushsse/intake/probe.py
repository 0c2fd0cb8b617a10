"""Asks Kafka which topics there are, without joining a group. Called by `pushsse doctor`."""

import asyncio

from aiokafka.errors import KafkaError

from pushsse.kafka import connection, stop
from pushsse.settings import Settings

_TIMEOUT_S = 10.0


async def topics(settings: Settings) -> dict[str, int]:
    """The topics that may be read, and how many partitions each has. Raises OSError."""
    consumer = connection(settings).consumer(None)
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            await consumer.start()
            cluster = await consumer._client.fetch_all_metadata()
            return {name: len(cluster.partitions_for_topic(name) or ()) for name in cluster.topics()}
    except KafkaError as error:
        raise OSError(f"{error}") from error
    except TimeoutError as error:
        raise OSError(f"no answer within {_TIMEOUT_S:.0f} s") from error
    finally:
        await stop(consumer)
