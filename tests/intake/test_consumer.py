"""The consumer with a handler of somebody else's: another topic, another format, no fences."""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import pytest
from aiokafka import AIOKafkaConsumer

from pushsse.errors import InvalidInput, Unavailable, Violation
from pushsse.kafka import Connection, Record, TopicPartition, one_topic
from pushsse.kafka.consumer import Consumer
from pushsse.kafka.dead_letters import Refused
from tests.waiting import eventually

from .kit import Kit

pytestmark = [pytest.mark.anyio, pytest.mark.real]


@dataclass
class Sums:
    """Adds numbers up; only an even sum is stored. `away` calls fail first."""

    away: int = 0
    stored: int = 0
    odd: list[Record] = field(default_factory=list)

    def decode(self, record: Record, owner: str) -> Record:
        if not (record.value or b"").isdigit():
            raise InvalidInput(Violation("$", "isn't a number"))
        return record

    async def apply(self, items: Sequence[Record]) -> Sequence[Refused]:
        if self.away:
            self.away -= 1
            raise Unavailable("not now")
        together = [*self.odd, *(each for each in items if each.value != b"13")]
        found = sum(int(each.value or b"") for each in together)
        self.odd = together if found % 2 else []
        self.stored += 0 if self.odd else found
        return [Refused(each, "$", "brings bad luck") for each in items if each.value == b"13"]

    def unfinished(self) -> Mapping[TopicPartition, int]:
        return {TopicPartition(each.topic, each.partition): each.offset for each in self.odd[:1]}

    def forget(self, partitions: Collection[TopicPartition]) -> None:
        self.odd.clear()


async def test_any_handler_has_its_records_applied_committed_and_buried(kit: Kit) -> None:
    await kit.create(kit.topic, kit.dlq)
    consumer = Consumer(
        kit.connection,
        topics=one_topic(kit.topic, start="earliest", dlq_topic=kit.dlq),
        group=kit.group,
        metrics=kit.metrics,
    )
    sums = Sums(away=2)
    running = asyncio.create_task(consumer.run(sums))
    await kit.produce([b"2", b"poison", b"13", b"4"])
    await kit.until_committed(4)
    assert sums.stored == 6
    # Applied in part: it isn't committed, and whoever comes next reads it again.
    await kit.produce([b"3"])
    await eventually(lambda: sums.odd)
    running.cancel()
    await asyncio.wait([running])
    assert await kit.committed() == 4
    sums = Sums()
    running = asyncio.create_task(consumer.run(sums))
    await eventually(lambda: sums.odd)
    await kit.produce([b"5"])
    await kit.until_committed(6)
    assert sums.stored == 8
    running.cancel()
    await asyncio.wait([running])
    errors = [dict(each.headers)["error"] for each in await kit.read_all(kit.dlq)]
    assert errors == [b"$: isn't a number", b"brings bad luck"]


class Uncommitted(AIOKafkaConsumer):  # type: ignore[misc]
    """A member whose commits, but for the one that proves its membership, are never answered."""

    commits = 0
    stopped = False

    async def commit(self, offsets: object = None) -> None:
        self.commits += 1
        if self.commits > 1:
            await asyncio.Event().wait()
        await super().commit(offsets)

    async def stop(self) -> None:
        await super().stop()
        self.stopped = True


@dataclass(frozen=True, kw_only=True)
class Silent(Connection):
    """A connection whose consumers' commits get no answer."""

    made: list[Uncommitted]

    def consumer(self, group: str | None) -> AIOKafkaConsumer:
        made = super().consumer(group)
        made.__class__ = Uncommitted
        self.made.append(made)
        return made


async def test_a_member_leaves_the_group_when_its_last_commit_is_cancelled(kit: Kit) -> None:
    await kit.create(kit.topic, kit.dlq)
    connection = Silent(bootstrap=kit.bootstrap, made=[])
    consumer = Consumer(
        connection,
        topics=one_topic(kit.topic, start="earliest", dlq_topic=kit.dlq),
        group=kit.group,
        metrics=kit.metrics,
    )
    running = asyncio.create_task(consumer.run(Sums()))
    await kit.produce([b"2"])
    await eventually(lambda: connection.made and connection.made[0].commits == 2)
    running.cancel()
    await eventually(lambda: connection.made[0].commits == 3)
    running.cancel()
    await asyncio.wait([running])
    assert connection.made[0].stopped
