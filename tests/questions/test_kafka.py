"""The Kafka answerer over a real Kafka: questions out, answers in; holes, repeats, dead letters, nodes."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from aiokafka import (
    AIOKafkaConsumer,
    AIOKafkaProducer,
    ConsumerRebalanceListener,
    ConsumerRecord,
    TopicPartition,
)
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from ulid import ULID

from deploy.parts import Kafka
from pushsse.errors import DatabaseUnavailable, InvalidInput
from pushsse.kafka import Connection, one_topic
from pushsse.kafka.consumer import Consumer
from pushsse.kafka.producer import Producer
from pushsse.metrics import Metrics
from pushsse.questions import Answered, By, Ending, Part, Question
from pushsse.questions.answerers import Answers, Delta, Piece, SentOff
from pushsse.questions.answerers.kafka import PACE, AnswerHandler, KafkaAnswerer, read
from pushsse.questions.service import Asking, Questions
from tests.questions.conftest import Nodes, data, grown_text
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
    metrics: Metrics = field(default_factory=Metrics)

    @property
    def questions(self) -> str:
        return f"{self.name}.questions"

    @property
    def answers(self) -> str:
        return f"{self.name}.answers"

    def answerer(self, connection: Connection | None = None) -> KafkaAnswerer:
        consumer = Consumer(
            connection or self.connection,
            topics=one_topic(self.answers, start="60s", dlq_topic=f"{self.answers}.dlq"),
            group=f"{self.name}.group",
            metrics=self.metrics,
            pace=replace(PACE, stuck_s=2.0),
        )
        return KafkaAnswerer(
            questions=self.sending, questions_topic=self.questions, consumer=consumer, metrics=self.metrics
        )

    async def unusable(self) -> list[str]:
        """Why the dead letters are dead, in order."""
        at = TopicPartition(f"{self.answers}.dlq", 0)
        found: list[str] = []
        consumer = AIOKafkaConsumer(bootstrap_servers=self.connection.bootstrap)
        await consumer.start()
        try:
            consumer.assign([at])
            end = (await consumer.end_offsets([at]))[at]
            consumer.seek(at, 0)
            while await consumer.position(at) < end:
                found.append(dict((await consumer.getone()).headers)["error"].decode())
        finally:
            await consumer.stop()
        return found

    async def says(self, question: Question, **record: object) -> None:
        await self.writes(question.id, json.dumps({"question": question.id} | record).encode())

    async def writes(self, key: str, value: bytes) -> None:
        await self.producer.send_and_wait(self.answers, value, key=key.encode())

    async def cancelled(self) -> dict[str, object]:
        """The first record of a question that has ended, with its key."""
        consumer = AIOKafkaConsumer(bootstrap_servers=self.connection.bootstrap)
        await consumer.start()
        try:
            ats = [TopicPartition(self.questions, number) for number in range(PARTITIONS)]
            consumer.assign(ats)
            await consumer.seek_to_beginning(*ats)
            async with asyncio.timeout(20):
                while True:
                    record = await consumer.getone()
                    found: dict[str, object] = json.loads(record.value)
                    if found.get("cancel"):
                        assert record.key == str(found["user"]).encode()
                        return found
        finally:
            await consumer.stop()

    async def asked(self) -> dict[str, object]:
        """The first record of the questions' topic."""
        return (await self.all_asked(1))[0]

    async def all_asked(self, count: int) -> list[dict[str, Any]]:
        """The first records of the questions' topic, of one person in their order."""
        consumer = AIOKafkaConsumer(bootstrap_servers=self.connection.bootstrap)
        await consumer.start()
        try:
            ats = [TopicPartition(self.questions, number) for number in range(PARTITIONS)]
            consumer.assign(ats)
            await consumer.seek_to_beginning(*ats)
            async with asyncio.timeout(20):
                records = [await consumer.getone() for _ in range(count)]
        finally:
            await consumer.stop()
        found: list[dict[str, Any]] = [json.loads(record.value) for record in records]
        for record, each in zip(records, found, strict=True):
            assert record.key == each["user"].encode()
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
    async with made_desk(bootstrap) as made:
        yield made


@asynccontextmanager
async def made_desk(bootstrap: str) -> AsyncIterator[Desk]:
    """Topics of their own."""
    connection = Connection(bootstrap=bootstrap, session_timeout_ms=6_000)
    name = f"q{ULID()}"
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    await admin.create_topics(
        [NewTopic(f"{name}.{topic}", PARTITIONS, 1) for topic in ("questions", "answers")]
        + [NewTopic(f"{name}.answers.dlq", 1, 1)]
    )
    await admin.close()
    producer = connection.producer()
    await producer.start()
    async with Producer(connection) as sending:
        try:
            yield Desk(connection, name, producer, sending)
        finally:
            await producer.stop()


async def answering(node: Questions, nodes: Nodes, text: str = "hello?") -> Question:
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
async def test_a_question_goes_out_and_its_answer_comes_in_pieces(nodes: Nodes, desk: Desk) -> None:
    node = nodes.node(desk.answerer())
    hearing = asyncio.create_task(nodes.hear("ann"))
    async with nodes.running(node):
        question = await answering(node, nodes)
        asked = await desk.asked()
        assert asked == {
            "id": question.id,
            "conversation": question.conversation,
            "user": "ann",
            "text": "hello?",
            "context": None,
            "asked_at": asked["asked_at"],
            "attempt": 1,
            "turns": [],
        }
        for seq, delta in enumerate(["Guten ", "Tag 😀", ", 安"], 1):
            await desk.says(question, seq=seq, delta=delta)
            await until(node, question, "".join(["Guten ", "Tag 😀", ", 安"][:seq]))
        await desk.says(question, seq=4, delta=".", done=True)
        answers = await nodes.until_told("ann", "answer")
    hearing.cancel()
    await asyncio.gather(hearing, return_exceptions=True)
    assert answers[0]["text"] == "Guten Tag 😀, 安."
    assert answers[0]["by"] == {"kind": "bot", "name": "kafka"}
    assert grown_text([data(publication) for publication in nodes.live]) == "Guten Tag 😀, 安."
    assert await desk.unusable() == []


@pytest.mark.anyio
async def test_parts_come_over_kafka_and_each_piece_has_its_delta(nodes: Nodes, desk: Desk) -> None:
    node = nodes.node(desk.answerer())
    hearing = asyncio.create_task(nodes.hear("ann"))
    source, value = {"title": "Invoices", "url": "/invoices"}, {"name": "order", "data": {"id": 7}}
    async with nodes.running(node):
        question = await answering(node, nodes)
        await desk.says(question, seq=1, status="looking it up…")
        await eventually(lambda: nodes.live)
        await desk.says(question, seq=2, delta="See ")
        await desk.says(question, seq=3, source=source)
        await desk.says(question, seq=4, data=value)
        await desk.says(question, seq=4, source={"title": "x", "url": "javascript:alert(1)"})
        await desk.says(question, seq=5, delta="there.", done=True)
        answers = await nodes.until_told("ann", "answer")
        unusable: list[str] = []

        async def refused() -> bool:
            unusable[:] = await desk.unusable()
            return bool(unusable)

        await eventually(refused)
    hearing.cancel()
    await asyncio.gather(hearing, return_exceptions=True)
    deltas = [data(publication) for publication in nodes.live]
    assert [delta["seq"] for delta in deltas] == list(range(1, len(deltas) + 1))
    assert grown_text(deltas) == answers[0]["text"] == "See there."
    kept = [{"type": "source"} | source, {"type": "data"} | value]
    told = [delta["part"] for delta in deltas if "part" in delta]
    assert told == [{"type": "status", "text": "looking it up…"}, *kept]
    assert answers[0]["parts"] == kept
    assert ["$.source" in why for why in unusable] == [True]


@pytest.mark.anyio
async def test_whoever_answers_over_kafka_is_told_that_a_question_was_cancelled_or_is_over(
    nodes: Nodes, desk: Desk
) -> None:
    node, other = nodes.node(desk.answerer()), nodes.node(desk.answerer(), name="two")
    async with nodes.running(node), nodes.running(other):
        question = await answering(node, nodes)

        async def sent_off() -> bool:
            found = await other.get("ann", question.id)
            return found is not None and found.sent_off

        await eventually(sent_off)
        assert await other.cancel("ann", question.id) is not None
        assert await desk.cancelled() == {
            "id": question.id,
            "conversation": question.conversation,
            "user": "ann",
            "code": "cancelled",
            "cancel": True,
        }


@pytest.mark.anyio
async def test_pieces_of_an_answer_that_was_asked_anew_are_late(nodes: Nodes, desk: Desk) -> None:
    node = nodes.node(desk.answerer())
    async with nodes.running(node):
        question = await answering(node, nodes)
        await desk.says(question, text="the first")
        await nodes.until_told("ann", "answer")
        again = await node.regenerate("ann", question.id)
        assert again is not None
        asked = await desk.all_asked(2)
        assert [each["attempt"] for each in asked] == [1, again.attempt]
        await desk.says(question, seq=1, delta="old ", attempt=1)
        await desk.says(question, text="old", attempt=1)
        await desk.says(question, seq=1, delta="new ", attempt=again.attempt)
        await desk.says(question, seq=2, done=True, attempt=again.attempt)
        await nodes.until_told("ann", "answer", 2)
        now = await node.get("ann", question.id)
    assert now is not None
    assert now.answer == "new "
    assert desk.metrics.answers_late == 2


@dataclass
class Dying:
    """An answerer whose node dies between its sending and its saying so; the next one sends again."""

    sent: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, question: Question) -> AsyncGenerator[Piece, None]:
        self.sent.set()
        await asyncio.Event().wait()
        yield SentOff()

    async def run(self, answers: Answers) -> None:
        pass


async def apply(handler: AnswerHandler, *pieces: dict[str, object]) -> None:
    """Applies pieces that came in one batch."""
    refused = await handler.apply(
        [handler.decode(record(offset, **piece), "") for offset, piece in enumerate(pieces)]
    )
    assert not refused


async def sending(node: Questions) -> Question:
    """A question that is being answered and wasn't sent off, as far as its node has said."""
    asked = await node.ask("ann", Asking("hello?"))

    async def begun() -> bool:
        found = await node.get("ann", asked.id)
        return found is not None and found.status == "answering"

    await eventually(begun)
    return asked


@pytest.mark.anyio
async def test_a_question_whose_answer_has_begun_to_come_isnt_taken_over(nodes: Nodes) -> None:
    dead, heir = nodes.node(Dying(), name="dead"), nodes.node(Dying(), name="heir")
    handler = AnswerHandler(heir.life, by="kafka", metrics=nodes.metrics)
    task = asyncio.create_task(dead.answering.run())
    asked = await sending(dead)
    await apply(handler, {"question": asked.id, "seq": 1, "delta": "a"})
    await heir.life.store.lease([asked.id], owner="dead", lease_s=-1.0)
    assert await heir.life.store.abandoned(10) == []
    assert await heir.life.take_over(asked, node="heir") is None
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await apply(handler, {"question": asked.id, "seq": 2, "delta": "b", "done": True})
    [answer] = await nodes.until_told("ann", "answer")
    assert answer["text"] == "ab"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        ([{"seq": 1, "delta": "new "}, {"seq": 2, "delta": "one", "done": True}], "new one"),
        ([{"text": "all new"}], "all new"),
    ],
)
async def test_a_service_that_answers_a_later_attempt_too_mixes_no_two_answers(
    nodes: Nodes, pieces: list[dict[str, object]], text: str
) -> None:
    node = nodes.node(Dying(), name="one")
    handler = AnswerHandler(node.life, by="kafka", metrics=nodes.metrics)
    hearing = asyncio.create_task(nodes.hear("ann"))
    async with nodes.running(node):
        asked = await sending(node)
        first = {"question": asked.id, "attempt": 1}
        again = {"question": asked.id, "attempt": 2}
        await apply(
            handler,
            first | {"seq": 1, "delta": "old "},
            first | {"seq": 2, "source": {"title": "Old", "url": "/old"}},
        )
        for at, piece in enumerate(pieces, 3):
            # What is left of the first answer is late, wherever it comes.
            await apply(handler, again | piece, first | {"seq": at, "delta": "older"})
        [answer] = await nodes.until_told("ann", "answer")
    hearing.cancel()
    await asyncio.gather(hearing, return_exceptions=True)
    assert (answer["text"], answer["parts"]) == (text, [])
    assert nodes.metrics.answers_late == len(pieces)
    if "seq" in pieces[0]:
        assert grown_text([data(publication) for publication in nodes.live]) == text


@pytest.mark.anyio
async def test_repeats_are_ignored_and_holes_are_waited_for(nodes: Nodes, desk: Desk) -> None:
    node = nodes.node(desk.answerer())
    async with nodes.running(node):
        question = await answering(node, nodes)
        await desk.says(question, seq=1, delta="a")
        await desk.says(question, seq=1, delta="x")
        await until(node, question, "a")
        await desk.says(question, seq=3, delta="c")
        await desk.says(question, seq=1, delta="x")
        await desk.says(question, seq=4, done=True)
        await desk.says(question, seq=2, delta="b")
        answers = await nodes.until_told("ann", "answer")
    assert answers[0]["text"] == "abc"


@pytest.mark.anyio
async def test_a_hole_that_never_closes_ends_all_the_same(nodes: Nodes, desk: Desk) -> None:
    node = nodes.node(desk.answerer())
    async with nodes.running(node):
        question = await answering(node, nodes)
        await desk.says(question, seq=1, delta="a")
        await desk.says(question, seq=3, delta="c")
        await desk.says(question, seq=4, done=True)
        answers = await nodes.until_told("ann", "answer")
    assert answers[0]["text"] == "ac"


@pytest.mark.anyio
async def test_a_whole_text_and_an_error_end_it(nodes: Nodes, desk: Desk) -> None:
    node = nodes.node(desk.answerer())
    async with nodes.running(node):
        whole, failed = await answering(node, nodes, "one"), await answering(node, nodes, "two")
        await desk.says(whole, seq=1, delta="draft")
        await desk.says(whole, text="all of it")
        await desk.says(failed, error="no idea")
        answers = await nodes.until_told("ann", "answer")
        errors = await nodes.until_told("ann", "answer.error")
    assert answers[0]["text"] == "all of it"
    assert errors == [{"question": failed.id, "code": "answerer_error", "detail": "no idea"}]


@pytest.mark.anyio
async def test_what_cant_be_used_is_a_dead_letter_and_the_rest_goes_on(nodes: Nodes, desk: Desk) -> None:
    node = nodes.node(desk.answerer())
    async with nodes.running(node):
        question = await answering(node, nodes)
        await desk.writes("x", b"{not json")
        await desk.writes("x", b'{"question": "NOBODYS", "text": "hello"}')
        await desk.says(question, delta="no seq")
        await desk.says(question, seq=1, delta="a", text="b")
        await desk.says(question, handover=False)
        await desk.says(question, text="fine", newer_member=1)
        await nodes.until_told("ann", "answer")
        # Its question has ended: neither applied nor a dead letter.
        await desk.says(question, text="late")

        async def all_committed() -> bool:
            return await desk.committed() == 7

        await eventually(all_committed)
        unusable = await desk.unusable()
    reasons = " | ".join(unusable)
    assert len(unusable) == 5 == desk.metrics.dead_letters, reasons
    for part in ("isn't JSON", "no question 'NOBODYS'", "$.seq", "delta and text", "$.handover"):
        assert part in reasons


@pytest.mark.anyio
@pytest.mark.parametrize(("handover", "reason"), [(True, ""), ("wants a refund", "wants a refund")])
async def test_a_service_hands_over_and_says_no_more(
    nodes: Nodes, desk: Desk, handover: object, reason: str
) -> None:
    node = nodes.node(desk.answerer())
    async with nodes.running(node):
        question = await answering(node, nodes)
        await desk.says(question, seq=1, delta="One moment. ")
        await desk.says(question, handover=handover)
        await desk.says(question, text="late")

        async def handed_over() -> bool:
            now = await node.get(question.user, question.id)
            return now is not None and now.status == "handed_over"

        await eventually(handed_over)

        async def all_committed() -> bool:
            return await desk.committed() == 3

        await eventually(all_committed)
        now = await node.get(question.user, question.id)
        assert now is not None
        assert now.status == "handed_over"
        assert await desk.unusable() == []
        conversation = await node.conversation(question.user, question.conversation)
    assert conversation is not None
    assert (conversation.handed_over_by, conversation.reason) == ("answerer", reason)


@pytest.mark.anyio
async def test_any_node_takes_the_answer_and_a_dead_ones_pieces_arent_lost(nodes: Nodes, desk: Desk) -> None:
    first = nodes.node(desk.answerer(), name="one")
    async with nodes.running(first):
        question = await answering(first, nodes)
        await desk.says(question, seq=1, delta="a")
        await until(first, question, "a")
        # It waits for what comes before it, so it isn't committed, and the next node reads it again.
        await desk.says(question, seq=3, delta="c", done=True)
    second = nodes.node(desk.answerer(), name="two")
    async with nodes.running(second):
        await desk.says(question, seq=2, delta="b")
        answers = await nodes.until_told("ann", "answer")
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
    nodes: Nodes, desk: Desk, records: list[dict[str, object]], text: str | None, late: int
) -> None:
    first = nodes.node(desk.answerer(), name="one")
    async with nodes.running(first):
        question = await answering(first, nodes)
    for record in records:
        await desk.says(question, **record)
    second = nodes.node(desk.answerer(), name="two")
    async with nodes.running(second):

        async def all_committed() -> bool:
            return await desk.committed() == len(records)

        await eventually(all_committed)
        found = await second.get("ann", question.id)
    assert found is not None
    assert found.status == ("failed" if text is None else "answered")
    assert text is None or found.answer == text
    assert text is not None or found.error_detail == "no idea"
    assert desk.metrics.answers_late == late
    assert await desk.unusable() == []


class Deaf(AIOKafkaConsumer):  # type: ignore[misc]
    """A member that is stuck: it has its partitions, and none of its fetches is answered."""

    async def getmany(self, *partitions: TopicPartition, timeout_ms: int = 0, **more: object) -> object:
        await asyncio.sleep(timeout_ms / 1000)
        return {}

    def last_poll_timestamp(self, partition: TopicPartition) -> int:
        return 0


class Unwatched(Deaf):
    """A stuck member whose watchdog has ended: aiokafka let a CancelledError of its own out."""

    watched = False

    def last_poll_timestamp(self, partition: TopicPartition) -> int:
        self.watched = True
        return super().last_poll_timestamp(partition)

    async def end_offsets(self, partitions: object) -> object:
        if self.watched:
            raise asyncio.CancelledError
        return await super().end_offsets(partitions)


class Idle(ConsumerRebalanceListener):  # type: ignore[misc]
    """Takes no notice of what is assigned."""

    def on_partitions_revoked(self, revoked: object) -> None: ...

    def on_partitions_assigned(self, assigned: object) -> None: ...


class Unassigned(AIOKafkaConsumer):  # type: ignore[misc]
    """A member that is stuck: nothing is assigned to it, and nobody else reads."""

    def subscribe(self, topics: object = (), pattern: object = None, listener: object = None) -> None:
        super().subscribe(topics, listener=Idle())

    async def getmany(self, *partitions: TopicPartition, timeout_ms: int = 0, **more: object) -> object:
        await asyncio.sleep(timeout_ms / 1000)
        return {}


class Unanswered(AIOKafkaConsumer):  # type: ignore[misc]
    """A member whose commits, but for the one that proves its membership, are never answered."""

    proved = False

    async def commit(self, offsets: object = None) -> None:
        if self.proved:
            await asyncio.Event().wait()
        self.proved = True
        await super().commit(offsets)


@dataclass(frozen=True, kw_only=True)
class Faulty(Connection):
    """A connection whose first consumer is of another class; those after it are fine."""

    faults: list[type[AIOKafkaConsumer]]

    def consumer(self, group: str | None) -> AIOKafkaConsumer:
        made = super().consumer(group)
        if self.faults:
            # aiokafka's constructor takes twenty settings: cheaper than to repeat them here.
            made.__class__ = self.faults.pop()
        return made


@pytest.mark.anyio
@pytest.mark.parametrize("fault", [Deaf, Unwatched, Unassigned, Unanswered])
async def test_answers_go_on_after_a_member_is_stuck_and_while_commits_hang(
    nodes: Nodes, desk: Desk, fault: type[AIOKafkaConsumer]
) -> None:
    faults = [fault]
    connection = Faulty(bootstrap=desk.connection.bootstrap, session_timeout_ms=6_000, faults=faults)
    node = nodes.node(desk.answerer(connection))
    async with nodes.running(node):
        question = await answering(node, nodes)
        await desk.says(question, seq=1, delta="a")
        await until(node, question, "a")
        await desk.says(question, seq=2, delta="b", done=True)
        answers = await nodes.until_told("ann", "answer")
    assert not faults
    assert answers[0]["text"] == "ab"


@pytest.mark.anyio
async def test_an_answer_that_never_comes_expires_and_is_not_asked_again(nodes: Nodes, desk: Desk) -> None:
    node = nodes.node(desk.answerer(), timeout_s=2.0)
    async with nodes.running(node):
        await node.ask("ann", Asking("anybody?"))
        errors = await nodes.until_told("ann", "answer.error")
        asked = await node.page("ann", limit=1)
    assert errors[0]["code"] == "expired"
    assert asked[0].attempt == 1


@pytest.mark.parametrize(
    "value", [None, b"", b"[]", b'{"question": "Q"}', b'{"question": "Q", "seq": 0, "delta": "x"}']
)
def test_a_record_that_says_nothing_is_refused(value: bytes | None) -> None:
    with pytest.raises(InvalidInput):
        read(value)


@dataclass
class Shaky:
    """One question, and a database that is away for the first call of those that are named."""

    question: Question
    away: set[str]
    ended: list[Ending] = field(default_factory=list)
    finds: int = 0

    async def find(self, question_id: str) -> Question | None:
        self.finds += 1
        return self.question

    async def add(
        self, question: Question, pieces: Sequence[Delta | Part], piece: int, attempt: int = 0
    ) -> bool:
        self._fail("add")
        grown = self.question.answer + text_of(pieces)
        self.question = msgspec.structs.replace(self.question, answer=grown, piece=piece)
        return True

    async def hand_over(self, question: Question, reason: str) -> bool:
        raise AssertionError

    async def end(self, question_id: str, ending: Ending) -> bool:
        self._fail("end")
        self.ended.append(ending)
        return True

    def _fail(self, name: str) -> None:
        if name in self.away:
            self.away.remove(name)
            raise DatabaseUnavailable(name)


@dataclass
class Kept:
    """Questions in memory."""

    questions: dict[str, Question]

    async def find(self, question_id: str) -> Question | None:
        return self.questions.get(question_id)

    async def add(
        self, question: Question, pieces: Sequence[Delta | Part], piece: int, attempt: int = 0
    ) -> bool:
        grown = msgspec.structs.replace(question, answer=question.answer + text_of(pieces), piece=piece)
        self.questions[question.id] = grown
        return True

    async def hand_over(self, question: Question, reason: str) -> bool:
        raise AssertionError

    async def end(self, question_id: str, ending: Ending) -> bool:
        return True


def text_of(pieces: Sequence[Delta | Part]) -> str:
    return "".join(piece.text for piece in pieces if isinstance(piece, Delta))


def being_answered(question_id: str) -> Question:
    now = datetime.now(UTC)
    return Question(
        id=question_id,
        user="ann",
        conversation="c",
        text="?",
        status="answering",
        asked_at=now,
        updated_at=now,
        deadline_at=now,
    )


def record(offset: int, **says: object) -> Any:
    value = json.dumps({"question": "q"} | says).encode()
    return ConsumerRecord("answers", 0, offset, 0, 0, None, value, None, 0, len(value), ())


@pytest.mark.anyio
@pytest.mark.parametrize("away", ["add", "end"])
async def test_a_database_that_is_away_costs_an_answer_neither_a_piece_nor_its_end(away: str) -> None:
    answers = Shaky(being_answered("q"), {away})
    handler = AnswerHandler(answers, by="kafka", metrics=Metrics())
    at = TopicPartition("answers", 0)
    # The last piece came first: it waits in memory, and isn't committed.
    assert not await handler.apply([handler.decode(record(0, seq=2, delta="b", done=True), "")])
    assert handler.unfinished() == {at: 0}
    rest = [handler.decode(record(1, seq=1, delta="a"), "")]
    with pytest.raises(DatabaseUnavailable):
        await handler.apply(rest)
    assert handler.unfinished() == {at: 0}
    assert not await handler.apply(rest)
    assert handler.unfinished() == {}
    assert answers.question.answer == "ab"
    assert answers.ended == [Answered(By("bot", "kafka"))]


@pytest.mark.anyio
async def test_an_answer_that_waits_for_a_piece_costs_the_database_nothing() -> None:
    answers = Shaky(being_answered("q"), set())
    handler = AnswerHandler(answers, by="kafka", metrics=Metrics())
    assert not await handler.apply([handler.decode(record(0, seq=2, delta="b", done=True), "")])
    asked = answers.finds
    for _ in range(10):
        assert not await handler.apply([])
    assert answers.finds == asked
    await handler.apply([handler.decode(record(1, seq=1, delta="a"), "")])
    assert answers.question.answer == "ab"


@pytest.mark.anyio
async def test_answers_with_many_early_pieces_take_no_room_of_one_with_few(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pushsse.questions.answerers.kafka.MOST_WAITING", 20)
    answers = Kept({name: being_answered(name) for name in ("few", "one", "two", "three")})
    handler = AnswerHandler(answers, by="kafka", metrics=Metrics())
    early = [
        handler.decode(record(number, question=name, seq=seq, delta="b"), "")
        for name, most in (("few", 2), ("one", 9), ("two", 8), ("three", 8))
        for number, seq in enumerate(range(2, 2 + most))
    ]
    await handler.apply(early)
    # 27 pieces wait. The answer with the most passes over its hole; the others are fewer than 20 without it.
    await handler.apply([])
    assert {name: kept.piece for name, kept in answers.questions.items()} == {
        "few": 0,
        "one": 10,
        "two": 0,
        "three": 0,
    }
    await handler.apply([handler.decode(record(9, question="few", seq=1, delta="a"), "")])
    assert answers.questions["few"].answer == "abb"


@pytest.mark.anyio
async def test_an_answer_with_too_many_early_pieces_passes_over_its_hole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pushsse.questions.answerers.kafka.MOST_OF_ONE", 3)
    answers = Kept({"q": being_answered("q")})
    handler = AnswerHandler(answers, by="kafka", metrics=Metrics())
    await handler.apply([handler.decode(record(seq, seq=seq, delta="b"), "") for seq in range(2, 5)])
    assert answers.questions["q"].piece == 0
    await handler.apply([handler.decode(record(5, seq=5, delta="b"), "")])
    assert answers.questions["q"].piece == 5
