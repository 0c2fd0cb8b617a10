"""The Kafka answerer over a real Kafka: questions out, answers in; holes, repeats, dead letters, nodes."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from ulid import ULID

from deploy.parts import Kafka
from pushsse.errors import InvalidInput
from pushsse.kafka.client import Connection
from pushsse.kafka.producer import Outgoing, Producer
from pushsse.metrics import Metrics
from pushsse.questions.answerers.kafka import KafkaAnswerer, read
from pushsse.questions.question import Question
from pushsse.questions.service import Asking, Questions
from tests.questions.conftest import World, data, grown_text
from tests.waiting import eventually

PARTITIONS = 3


@pytest.fixture(scope="module")
def bootstrap(kafka_part: Kafka) -> str:
    """The address of a Kafka."""
    return kafka_part.url


@dataclass
class Desk:
    """Whoever answers the questions of a company, and what the nodes refuse."""

    connection: Connection
    name: str
    producer: AIOKafkaProducer
    sending: Producer
    unusable: list[tuple[int, str]] = field(default_factory=list)
    metrics: Metrics = field(default_factory=Metrics)

    @property
    def questions(self) -> str:
        return f"{self.name}.questions"

    @property
    def answers(self) -> str:
        return f"{self.name}.answers"

    def answerer(self) -> KafkaAnswerer:
        async def send(key: bytes, value: bytes) -> None:
            await self.sending.send(self.questions, [Outgoing(key, value)])

        async def letters(refused: Sequence[tuple[object, str]]) -> None:
            self.unusable += [(record.offset, reason) for record, reason in refused]  # type: ignore[attr-defined]

        return KafkaAnswerer(
            send=send,
            consumer=lambda: self.connection.consumer(f"{self.name}.group"),
            topic=self.answers,
            letters=letters,
            start_age_s=60.0,
            metrics=self.metrics,
        )

    async def says(self, question: Question, **record: object) -> None:
        await self.writes(question.id, json.dumps({"question": question.id} | record).encode())

    async def writes(self, key: str, value: bytes) -> None:
        await self.producer.send_and_wait(self.answers, value, key=key.encode())

    async def asked(self) -> dict[str, object]:
        """The first question of the topic."""
        consumer = AIOKafkaConsumer(bootstrap_servers=self.connection.bootstrap)
        await consumer.start()
        try:
            ats = [TopicPartition(self.questions, number) for number in range(PARTITIONS)]
            consumer.assign(ats)
            await consumer.seek_to_beginning(*ats)
            async with asyncio.timeout(20):
                record = await consumer.getone()
        finally:
            await consumer.stop()
        found: dict[str, object] = json.loads(record.value)
        assert record.key == str(found["user"]).encode()
        return found

    async def committed(self) -> int:
        """How many records the group is done with."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self.connection.bootstrap)
        await admin.start()
        try:
            offsets = await admin.list_consumer_group_offsets(f"{self.name}.group")
        finally:
            await admin.close()
        return sum(max(0, found.offset) for found in offsets.values())


@pytest.fixture
async def desk(bootstrap: str) -> AsyncIterator[Desk]:
    connection = Connection(bootstrap=bootstrap, session_timeout_ms=6_000)
    name = f"q{ULID()}"
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    await admin.create_topics(
        [NewTopic(f"{name}.{topic}", PARTITIONS, 1) for topic in ("questions", "answers")]
    )
    await admin.close()
    producer = connection.producer()
    await producer.start()
    async with Producer(connection) as sending:
        try:
            yield Desk(connection, name, producer, sending)
        finally:
            await producer.stop()


async def answering(node: Questions, world: World, text: str = "hello?") -> Question:
    """A question that was sent off."""
    asked = await node.ask("ann", Asking(text))

    async def sent() -> bool:
        return not node.answering.leased

    await eventually(sent)
    found = await node.get("ann", asked.id)
    assert found is not None
    assert found.status == "answering"
    return found


async def until(node: Questions, question: Question, text: str) -> None:
    async def there() -> bool:
        found = await node.get(question.user, question.id)
        return found is not None and found.answer == text

    await eventually(there)


@pytest.mark.anyio
async def test_a_question_goes_out_and_its_answer_comes_in_pieces(world: World, desk: Desk) -> None:
    node = world.node(desk.answerer())
    hearing = asyncio.create_task(world.hear("ann"))
    async with world.running(node):
        question = await answering(node, world)
        asked = await desk.asked()
        assert asked == {
            "id": question.id,
            "conversation": question.conversation,
            "user": "ann",
            "text": "hello?",
            "context": None,
            "asked_at": asked["asked_at"],
        }
        for seq, delta in enumerate(["Guten ", "Tag 😀", ", 安"], 1):
            await desk.says(question, seq=seq, delta=delta)
            await until(node, question, "".join(["Guten ", "Tag 😀", ", 安"][:seq]))
        await desk.says(question, seq=4, delta=".", done=True)
        answers = await world.until_told("ann", "answer")
    hearing.cancel()
    await asyncio.gather(hearing, return_exceptions=True)
    assert answers[0]["text"] == "Guten Tag 😀, 安."
    assert answers[0]["by"] == {"kind": "bot", "name": "kafka"}
    assert grown_text([data(publication) for publication in world.live]) == "Guten Tag 😀, 安."
    assert desk.unusable == []


@pytest.mark.anyio
async def test_repeats_are_ignored_and_holes_are_waited_for(world: World, desk: Desk) -> None:
    node = world.node(desk.answerer())
    async with world.running(node):
        question = await answering(node, world)
        await desk.says(question, seq=1, delta="a")
        await desk.says(question, seq=1, delta="x")
        await until(node, question, "a")
        await desk.says(question, seq=3, delta="c")
        await desk.says(question, seq=1, delta="x")
        await desk.says(question, seq=4, done=True)
        await desk.says(question, seq=2, delta="b")
        answers = await world.until_told("ann", "answer")
    assert answers[0]["text"] == "abc"


@pytest.mark.anyio
async def test_a_hole_that_never_closes_ends_all_the_same(world: World, desk: Desk) -> None:
    node = world.node(desk.answerer())
    async with world.running(node):
        question = await answering(node, world)
        await desk.says(question, seq=1, delta="a")
        await desk.says(question, seq=3, delta="c")
        await desk.says(question, seq=4, done=True)
        answers = await world.until_told("ann", "answer")
    assert answers[0]["text"] == "ac"


@pytest.mark.anyio
async def test_a_whole_text_and_an_error_end_it(world: World, desk: Desk) -> None:
    node = world.node(desk.answerer())
    async with world.running(node):
        whole, failed = await answering(node, world, "one"), await answering(node, world, "two")
        await desk.says(whole, seq=1, delta="draft")
        await desk.says(whole, text="all of it")
        await desk.says(failed, error="no idea")
        answers = await world.until_told("ann", "answer")
        errors = await world.until_told("ann", "answer.error")
    assert answers[0]["text"] == "all of it"
    assert errors == [{"question": failed.id, "code": "answerer_error", "detail": "no idea"}]


@pytest.mark.anyio
async def test_what_cant_be_used_is_a_dead_letter_and_the_rest_goes_on(world: World, desk: Desk) -> None:
    node = world.node(desk.answerer())
    async with world.running(node):
        question = await answering(node, world)
        await desk.writes("x", b"{not json")
        await desk.writes("x", b'{"question": "NOBODYS", "text": "hello"}')
        await desk.says(question, delta="no seq")
        await desk.says(question, seq=1, delta="a", text="b")
        await desk.says(question, handover=True)
        await desk.says(question, text="fine", newer_member=1)
        await world.until_told("ann", "answer")
        # Its question has ended: neither applied nor a dead letter.
        await desk.says(question, text="late")

        async def all_committed() -> bool:
            return await desk.committed() == 7

        await eventually(all_committed)
    reasons = " | ".join(sorted(reason for _, reason in desk.unusable))
    assert len(desk.unusable) == 5, reasons
    for part in ("isn't JSON", "no question 'NOBODYS'", "$.seq", "delta and text", "$.handover"):
        assert part in reasons


@pytest.mark.anyio
async def test_any_node_takes_the_answer_and_a_dead_ones_pieces_arent_lost(world: World, desk: Desk) -> None:
    first = world.node(desk.answerer(), name="one")
    async with world.running(first):
        question = await answering(first, world)
        await desk.says(question, seq=1, delta="a")
        await until(first, question, "a")
        # It waits for what comes before it, so it isn't committed, and the next node reads it again.
        await desk.says(question, seq=3, delta="c", done=True)
    second = world.node(desk.answerer(), name="two")
    async with world.running(second):
        await desk.says(question, seq=2, delta="b")
        answers = await world.until_told("ann", "answer")
    assert answers[0]["text"] == "abc"


DELTA = {"seq": 1, "delta": "a"}
DONE = {"seq": 2, "delta": "b", "done": True}
TWO_ENDS = [
    ([DELTA, DONE, {"error": "too late"}], "ab", 1),
    ([DELTA, DONE, {"text": "too late"}], "ab", 1),
    ([DELTA, DONE, {"seq": 3, "delta": "x", "done": True}], "ab", 1),
    ([DONE, {"error": "too late"}, DELTA], "ab", 1),
    ([DELTA, {"text": "all"}, DONE, {"error": "too late"}], "all", 2),
    ([DELTA, {"text": "all"}, {"text": "another"}], "all", 1),
    ([DELTA, {"error": "no idea"}, DONE], None, 1),
    ([DELTA, {"error": "no idea"}, {"text": "too late"}, {"error": "another"}], None, 2),
]


@pytest.mark.anyio
@pytest.mark.parametrize(("records", "text", "late"), TWO_ENDS)
async def test_the_first_end_wins_where_several_come_in_one_batch(
    world: World, desk: Desk, records: list[dict[str, object]], text: str | None, late: int
) -> None:
    first = world.node(desk.answerer(), name="one")
    async with world.running(first):
        question = await answering(first, world)
    for record in records:
        await desk.says(question, **record)
    second = world.node(desk.answerer(), name="two")
    async with world.running(second):

        async def all_committed() -> bool:
            return await desk.committed() == len(records)

        await eventually(all_committed)
        found = await second.get("ann", question.id)
    assert found is not None
    assert found.status == ("failed" if text is None else "answered")
    assert text is None or found.answer == text
    assert text is not None or found.error_detail == "no idea"
    assert desk.metrics.answers_late == late
    assert desk.unusable == []


@pytest.mark.anyio
async def test_an_answer_that_never_comes_expires_and_is_not_asked_again(world: World, desk: Desk) -> None:
    node = world.node(desk.answerer(), timeout_s=2.0)
    async with world.running(node):
        await node.ask("ann", Asking("anybody?"))
        errors = await world.until_told("ann", "answer.error")
        asked = await node.page("ann", limit=1)
    assert errors[0]["code"] == "expired"
    assert asked[0].attempt == 1


@pytest.mark.parametrize(
    "value", [None, b"", b"[]", b'{"question": "Q"}', b'{"question": "Q", "seq": 0, "delta": "x"}']
)
def test_a_record_that_says_nothing_is_refused(value: bytes | None) -> None:
    with pytest.raises(InvalidInput):
        read(value)
