"""Asks Kafka which topics there are, and how they are set up, without joining a group.

Called by `pushsse doctor`.
"""

import asyncio

from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError

from pushsse.intake.deadletter import MAX_LETTER_BYTES
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


async def configuration(settings: Settings, topic: str) -> dict[str, str]:
    """What a topic is set to, by Kafka's names; empty where that may not be asked. Raises OSError."""
    try:
        async with asyncio.timeout(_TIMEOUT_S), connection(settings).admin() as admin:
            answers = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
    except KafkaError as error:
        raise OSError(f"{error}") from error
    except TimeoutError as error:
        raise OSError(f"no answer within {_TIMEOUT_S:.0f} s") from error
    return {
        entry[0]: entry[1] or ""
        for answer in answers
        for error, _, _, _, entries in answer.resources
        if not error
        for entry in entries
    }


def about_dead_letters(found: dict[str, str], topic: str) -> list[str]:
    """What of a dead-letter topic's settings costs dead letters, and what to do."""
    lines = []
    if (most := int(found.get("max.message.bytes") or MAX_LETTER_BYTES + 1)) <= MAX_LETTER_BYTES:
        lines.append(
            f"the topic {topic} takes records of {most} bytes (max.message.bytes): larger dead letters are"
            " cut; 1048588, Kafka's default, holds any"
        )
    if "compact" in found.get("cleanup.policy", ""):
        lines.append(
            f"the topic {topic} is compacted: of dead letters with the same key only the newest stays; set"
            " cleanup.policy=delete"
        )
    return lines
