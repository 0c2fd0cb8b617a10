"""Faults of Kafka: the broker killed, members that come and go, a topic recreated, records twice."""

import asyncio
import re
import time
from collections.abc import Iterable
from contextlib import suppress

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions
from aiokafka.structs import OffsetAndMetadata

from deploy.parts import Node
from deploy.whole import PARTITIONS, TOPIC
from faults.producer import encode
from faults.report import Row
from faults.resources import poll
from faults.world import World

_BACK_S = 15.0
_TURN_S = 20.0
_GROUP = "pushsse"
_DLQ = f"{TOPIC}.dlq"
_WIDENED = "widened"


async def killed(world: World) -> None:
    """Kafka killed and back after 20 s."""
    kafka = world.cluster.stack.kafka
    async with world.row(5, "Kafka killed (-9), back after 20 s") as row:
        kafka.kill()
        await asyncio.sleep(20)
        await asyncio.to_thread(kafka.start)
        back = time.monotonic()
        await asyncio.sleep(_BACK_S + 1)
        heard_s = world.heard_again_s(back)
        row.check("working again after", f"{heard_s:.1f} s", heard_s <= _BACK_S)
        row.check("streams cut", world.cuts(), world.cuts() == 0)


async def rebalanced(world: World) -> None:
    """Nodes come and go every 20 s; the topic is recreated."""
    async with world.row(
        6, "every 20 s a node added, removed, killed; six members for four partitions"
    ) as row:
        extra = [world.cluster.add_node(f"node{number}") for number in (4, 5, 6)]
        for node in extra:
            await asyncio.to_thread(node.start)
            await asyncio.sleep(3)
        await asyncio.sleep(_TURN_S - 9)
        await asyncio.to_thread(extra[0].stop)
        await asyncio.sleep(_TURN_S)
        owner = _owner(world, 0)
        row.check("killed as the owner of partition 0", owner.name, ok=True)
        owner.kill()
        await asyncio.sleep(_TURN_S)
        heard = _partition_heard_s(world, 0)
        row.check("partition 0 heard", f"{heard:.1f} s ago", heard < 2)
        if owner in world.cluster.stack.nodes:
            await asyncio.to_thread(owner.start)
        for node in extra[1:]:
            await asyncio.to_thread(node.stop)
        world.cluster.extra.clear()
        await asyncio.sleep(3)
    kafka = world.cluster.stack.kafka
    await asyncio.to_thread(kafka.delete_topic, TOPIC)
    await asyncio.sleep(2)
    await asyncio.to_thread(kafka.create_topic, TOPIC, PARTITIONS)
    await world.producer.renew()
    async with world.row(6, "the topic deleted and recreated") as row:
        await asyncio.sleep(25)
        row.check("streams cut", world.cuts(), world.cuts() == 0)


def _owner(world: World, partition: int) -> Node:
    """Who reads a partition, by what the nodes have logged last."""
    for node in world.cluster.nodes:
        assigned = re.findall(r"assigned: (.*)", node.log.read_text())
        if assigned and f"{TOPIC}-{partition}" in assigned[-1].split(", "):
            return node
    raise AssertionError(f"nobody reads partition {partition}")


def _partition_heard_s(world: World, partition: int) -> float:
    times = [
        receipt.at
        for client in world.crowd.clients
        for receipt in client.account.receipts[-200:]
        if receipt.key.partition == partition
    ]
    return time.monotonic() - max(times, default=0.0)


async def dead_letters_refused(world: World) -> None:
    """The dead-letter topic can't be written."""
    kafka = world.cluster.stack.kafka
    poison = b'{"type": "news", "to": "all"}'
    async with world.row(11, "the dead-letter topic is gone for 10 s, and a record can't be used") as row:
        await asyncio.to_thread(kafka.delete_topic, _DLQ)
        await asyncio.sleep(1)
        await world.producer.raw(poison, partition=0)
        await asyncio.sleep(10)
        waits, goes_on = _partition_heard_s(world, 0), max(_partition_heard_s(world, n) for n in (1, 2, 3))
        row.check("its partition waits for", f"{waits:.1f} s", waits > 5)
        row.check("the others heard", f"{goes_on:.1f} s ago", goes_on < 2)
        said = any(_DLQ in node.log.read_text() for node in world.cluster.nodes)
        row.check("the log says so", "yes" if said else "no", said)
        await asyncio.to_thread(kafka.create_topic, _DLQ)
        back = time.monotonic()

        async def again() -> bool:
            return _partition_heard_s(world, 0) < 0.5

        await poll(again, limit_s=20)
        row.check("working again after", f"{time.monotonic() - back:.1f} s", time.monotonic() - back < 15)
        letters = await _letters(world)
        row.check("dead letters", len(letters), letters == [poison])


async def _letters(world: World) -> list[bytes]:
    consumer = AIOKafkaConsumer(
        _DLQ, bootstrap_servers=world.cluster.stack.kafka.url, auto_offset_reset="earliest"
    )
    await consumer.start()
    try:
        found = await consumer.getmany(timeout_ms=5_000)
        return [record.value for records in found.values() for record in records]
    finally:
        await consumer.stop()


async def widened(world: World) -> None:
    """A topic gets more partitions, while its node runs and while it is stopped, with kafka_start=latest."""
    stack = world.cluster.stack
    settings = {
        **world.cluster.settings,
        "PUSHSSE_KAFKA_TOPIC": _WIDENED,
        "PUSHSSE_KAFKA_GROUP": _WIDENED,
        "PUSHSSE_KAFKA_START": "latest",
        "PUSHSSE_REDIS_PREFIX": f"{_WIDENED}:",
    }
    for topic in (_WIDENED, f"{_WIDENED}.dlq"):
        await asyncio.to_thread(stack.kafka.create_topic, topic, 1)
    node = world.cluster.make(_WIDENED, stack.folder / _WIDENED, settings, log=stack.logs / "wide.log")
    async with world.row(22, "partitions added to a topic that is read from the latest on") as row:
        await _produce_numbers(stack.kafka.url, 0, [-1] * 5)
        await asyncio.to_thread(node.start)

        async def reads() -> bool:
            return "is read from offset 5 on" in node.log.read_text()

        await poll(reads, limit_s=30)
        await _widen(stack.kafka.url, 3)
        for partition in (1, 2):
            await _produce_numbers(stack.kafka.url, partition, range(30 * partition, 30 * partition + 30))
        await _check_numbers(world, node, row, "lost while it runs", range(30, 90))
        await asyncio.to_thread(node.stop)
        await _widen(stack.kafka.url, 4)
        await _produce_numbers(stack.kafka.url, 3, range(90, 120))
        await asyncio.to_thread(node.start)
        await _check_numbers(world, node, row, "lost while it is stopped", range(30, 120))
        await asyncio.to_thread(node.stop)


async def _widen(bootstrap: str, partitions: int) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.create_partitions({_WIDENED: NewPartitions(partitions)})
    finally:
        await admin.close()


async def _produce_numbers(bootstrap: str, partition: int, numbers: Iterable[int]) -> None:
    """Events for everybody, by a producer that knows the partition by now."""
    async with AIOKafkaProducer(bootstrap_servers=bootstrap) as producer:
        for number in numbers:
            value = b'{"type": "news", "to": "all", "message": %d}' % number
            await producer.send_and_wait(_WIDENED, value, partition=partition)


async def _check_numbers(world: World, node: Node, row: Row, what: str, wanted: Iterable[int]) -> None:
    """What somebody is given who asks a node for the last hour; nothing may come that wasn't wanted."""
    headers = {"Authorization": f"Bearer {world.cluster.token('somebody')}"}
    found: list[int] = []

    async def all_there() -> bool:
        reply = await world.cluster.http.get(f"{node.url}/v1/events?since=1h&limit=1000", headers=headers)
        found[:] = [event["data"]["message"] for event in reply.json()["events"]]
        return set(wanted) <= set(found)

    with suppress(TimeoutError, AssertionError):
        await poll(all_there, limit_s=30)
    lost = len(set(wanted) - set(found))
    row.check(what, lost, not lost and len(found) == len(set(found)) and -1 not in found)


async def repeated(world: World) -> None:
    """The same records twice; offsets rewound; a producer that repeats ids."""
    async with world.row(12, "1,000 records produced twice, half of them with only the id in common") as row:
        await asyncio.sleep(6)
        ledger = world.producer.ledger
        before = await world.cluster.total("repeated")
        for number, sent in enumerate(list(ledger.sent.values())[:1000]):
            value = encode(ledger.tag, sent, pad=number % 2)
            await world.producer.raw(value, partition=sent.key.partition)
        await asyncio.sleep(2)
        counted = int(await world.cluster.total("repeated") - before)
        row.check("repeats counted", counted, counted >= 1000)
    async with world.row(
        12, "all nodes stopped, offsets of each partition rewound by 1,000, nodes started"
    ) as row:
        await asyncio.sleep(8)
        for node in world.cluster.stack.nodes:
            node.terminate()
        for node in world.cluster.stack.nodes:
            await asyncio.to_thread(node.wait, 40)
        await _rewind(world, 1000)
        for node in world.cluster.stack.nodes:
            node.launch()
        for node in world.cluster.stack.nodes:
            await asyncio.to_thread(node.wait_ready)
        await asyncio.sleep(8)
        fenced = int(await world.cluster.total("fenced"))
        row.check("publications fenced", fenced, fenced >= 2000)


async def _rewind(world: World, count: int) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=world.cluster.stack.kafka.url)
    await admin.start()
    try:
        offsets = await admin.list_consumer_group_offsets(_GROUP)
    finally:
        await admin.close()
    consumer = AIOKafkaConsumer(
        bootstrap_servers=world.cluster.stack.kafka.url, group_id=_GROUP, enable_auto_commit=False
    )
    consumer.assign([TopicPartition(TOPIC, partition) for partition in range(PARTITIONS)])
    await consumer.start()
    try:
        wanted = {at: OffsetAndMetadata(max(0, found.offset - count), "") for at, found in offsets.items()}
        await consumer.commit(wanted)
    finally:
        await consumer.stop()
