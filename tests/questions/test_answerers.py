"""One contract for every answerer, asked through the service as people's questions are.

The subjects are the same for all: an answer, one that is long under way, a failure, one that is away. What an
answerer can't do (a question file is never away) is left out by name.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer

from pushsse.database import Database
from pushsse.errors import Unavailable
from pushsse.metrics import Metrics
from pushsse.questions import MAX_ANSWER_CHARACTERS, Question
from pushsse.questions.answerers import Answerer, Delta, HandOver, NotSure, SentOff, Several, faq
from pushsse.questions.answerers.openai import OpenaiAnswerer, OpenaiOptions, tls_for
from pushsse.questions.answerers.python import Asked, PythonAnswerer
from pushsse.questions.service import Asking, Questions
from tests.migrated import migrated
from tests.questions.conftest import NoAnswers, Nodes, running
from tests.questions.model_server import MODEL, Call, model_server
from tests.questions.test_faq import question
from tests.questions.test_kafka import Desk, made_desk
from tests.waiting import eventually

pytestmark = pytest.mark.anyio
# What is asked, and what comes of it.
GOOD, SLOW, BAD, AWAY, LONG = "echo {}", "slow", "bad", "away", "long"
WORDS = 5


@dataclass
class Subject:
    """An answerer, and how many answers it is at work on."""

    answerer: Answerer
    busy: Callable[[], int]
    # Which texts it knows.
    knows: frozenset[str] = frozenset({GOOD, SLOW, BAD, AWAY, LONG})
    # A service elsewhere goes on, and another node takes its answer.
    stops_with_node: bool = True


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    """SQLite alone: what databases do is tested elsewhere."""
    async with Database(migrated(tmp_path / "questions.db"), timeout_s=10) as opened:
        yield opened


@asynccontextmanager
async def faq_subject(folder: Path) -> AsyncIterator[Subject]:
    entries = [
        ("echo one", "one " * WORDS),
        ("echo two", "two " * WORDS),
        (SLOW, "It takes. Very long. " * 100),
    ]
    entry = [{"id": ask, "en": {"ask": [ask], "answer": text}} for ask, text in entries]
    path = folder / "faq.json"
    path.write_text(json.dumps({"nothing": {"en": "Sorry."}, "entry": entry}))
    yield Subject(faq.answerer(str(path), "here"), lambda: 0, frozenset({GOOD, SLOW}))


@asynccontextmanager
async def openai_subject(folder: Path) -> AsyncIterator[Subject]:
    async def script(call: Call) -> None:
        if call.text == AWAY:
            await call.whole(503, b"")
        elif call.text == BAD:
            await call.whole(400, b"")
        else:
            await call.begin()
            if call.text == LONG:
                while True:
                    await call.say("x" * 10_000)
            await call.say("")
            for _ in range(WORDS):
                await call.say(f"{call.text.split()[-1]} ")
                await asyncio.sleep(0.01)
            if call.text == SLOW:
                await asyncio.Event().wait()
            await call.done()

    async with model_server(script) as server:
        options = OpenaiOptions(model=MODEL)
        answerer = OpenaiAnswerer(server.url, options, "", "", tls_for(server.url), Metrics(), backoff_s=0.01)
        yield Subject(answerer, lambda: server.busy)


@asynccontextmanager
async def python_subject(folder: Path) -> AsyncIterator[Subject]:
    busy = 0

    async def answer(asked: Asked) -> AsyncGenerator[str, None]:
        nonlocal busy
        busy += 1
        try:
            if asked.text == AWAY:
                raise Unavailable("away")
            if asked.text == BAD:
                raise LookupError("a bug")
            while asked.text == LONG:
                yield "x" * 10_000
            for _ in range(WORDS):
                yield f"{asked.text.split()[-1]} "
                await asyncio.sleep(0.01)
            if asked.text == SLOW:
                await asyncio.Event().wait()
        finally:
            busy -= 1

    yield Subject(PythonAnswerer("agent", answer), lambda: busy)


@asynccontextmanager
async def several_subject(folder: Path) -> AsyncIterator[Subject]:
    async def unsure(asked: Asked) -> AsyncGenerator[dict[str, bool], None]:
        yield {"unsure": True}

    async with python_subject(folder) as inner:
        answerer = Several([PythonAnswerer("unsure", unsure), inner.answerer])
        yield Subject(answerer, inner.busy)


@dataclass
class Service:
    """A company's service behind Kafka: answers each question of the topic, until that is cancelled."""

    desk: Desk
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    at_work: dict[str, asyncio.Task[None]] = field(default_factory=dict)

    async def run(self) -> None:
        consumer = AIOKafkaConsumer(
            self.desk.questions,
            bootstrap_servers=self.desk.connection.bootstrap,
            auto_offset_reset="earliest",
        )
        await consumer.start()
        self.ready.set()
        try:
            async with asyncio.TaskGroup() as group:
                async for record in consumer:
                    asked = json.loads(record.value)
                    if asked.get("cancel"):
                        if (task := self.at_work.get(asked["id"])) is not None:
                            task.cancel()
                        continue
                    task = group.create_task(self._answer(asked))
                    self.at_work[asked["id"]] = task
                    task.add_done_callback(partial(self._over, asked["id"]))
        finally:
            await consumer.stop()

    def _over(self, question_id: str, _: asyncio.Task[None]) -> None:
        del self.at_work[question_id]

    async def _answer(self, asked: dict[str, Any]) -> None:
        if asked["text"] == BAD:
            await self._says(asked, error="no")
            return
        for seq in range(1, WORDS + 1):
            text = "x" * 100_000 if asked["text"] == LONG else f"{asked['text'].split()[-1]} "
            await self._says(asked, seq=seq, delta=text)
        if asked["text"] == SLOW:
            await asyncio.Event().wait()
        await self._says(asked, seq=WORDS + 1, done=True)
        # Everything may come twice, or too late.
        await self._says(asked, seq=WORDS + 1, done=True)
        await self._says(asked, text="too late")

    async def _says(self, asked: dict[str, Any], **members: object) -> None:
        says = {"question": asked["id"], "attempt": asked["attempt"]} | members
        await self.desk.writes(asked["id"], json.dumps(says).encode())


@asynccontextmanager
async def kafka_subject(bootstrap: str) -> AsyncIterator[Subject]:
    async with made_desk(bootstrap) as desk:
        service = Service(desk)
        async with running(service.run()):
            await service.ready.wait()
            knows = frozenset({GOOD, SLOW, BAD, LONG})
            yield Subject(desk.answerer(), lambda: len(service.at_work), knows, stops_with_node=False)


KINDS = ["faq", "openai", "python", "several", pytest.param("kafka", marks=pytest.mark.real)]


@pytest.fixture(params=KINDS)
async def subject(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Subject]:
    async with AsyncExitStack() as stack:
        if request.param == "kafka":
            made = kafka_subject(request.getfixturevalue("kafka_part").url)
        else:
            made = globals()[f"{request.param}_subject"](tmp_path)
        yield await stack.enter_async_context(made)


def knowing(subject: Subject, text: str) -> None:
    if text not in subject.knows:
        pytest.skip("this answerer can't be asked that")


async def is_answering(node: Questions, asked: Question) -> bool:
    """Whether the answer has begun to grow."""
    so_far = await node.growing(asked.user)
    return bool(so_far)


async def told_ends(nodes: Nodes, user: str, *, of: str) -> list[dict[str, Any]]:
    """The ends that the person was told of one question."""
    return [
        {"name": name, **told}
        for name, told in await nodes.told(user)
        if name in ("answer", "answer.error") and told["question"] == of
    ]


async def one_end(nodes: Nodes, asked: Question) -> dict[str, Any]:
    """How a question ended, once it has."""

    async def there() -> bool:
        return bool(await told_ends(nodes, asked.user, of=asked.id))

    await eventually(there)
    (end,) = await told_ends(nodes, asked.user, of=asked.id)
    return end


async def test_an_answer_grows_and_ends_exactly_once(nodes: Nodes, subject: Subject) -> None:
    node = nodes.node(subject.answerer)
    async with nodes.running(node):
        asked = await node.ask("ann", Asking(GOOD.format("one")))
        end = await one_end(nodes, asked)
        assert (end["name"], end["text"].strip()) == ("answer", ("one " * WORDS).strip())
        # Another one after it, so that whatever would have come for the first has come.
        after = await node.ask("ann", Asking(GOOD.format("two")))
        await one_end(nodes, after)
        await one_end(nodes, asked)
    await eventually(lambda: subject.busy() == 0)


async def test_two_questions_at_once_dont_mix(nodes: Nodes, subject: Subject) -> None:
    node = nodes.node(subject.answerer)
    async with nodes.running(node):
        words = ["one", "two"] * 4
        asked = [await node.ask(f"user {at}", Asking(GOOD.format(word))) for at, word in enumerate(words)]
        ends = [await one_end(nodes, each) for each in asked]
    assert [end["text"].split() for end in ends] == [[word] * WORDS for word in words]


async def test_cancelling_stops_it_and_closes_what_is_open(nodes: Nodes, subject: Subject) -> None:
    node = nodes.node(subject.answerer)
    async with nodes.running(node):
        asked = await node.ask("ann", Asking(SLOW))
        await eventually(lambda: is_answering(node, asked))
        await node.cancel("ann", asked.id)
        end = await one_end(nodes, asked)
        assert (end["name"], end["code"]) == ("answer.error", "cancelled")
        await eventually(lambda: subject.busy() == 0)
        # It goes on with others.
        assert (await one_end(nodes, await node.ask("ann", Asking(GOOD.format("one")))))["name"] == "answer"


async def test_a_node_that_stops_closes_what_is_open(nodes: Nodes, subject: Subject) -> None:
    node = nodes.node(subject.answerer)
    async with nodes.running(node):
        asked = await node.ask("ann", Asking(SLOW))
        await eventually(lambda: is_answering(node, asked))
    if subject.stops_with_node:
        await eventually(lambda: subject.busy() == 0)
    assert await told_ends(nodes, "ann", of=asked.id) == []


async def test_a_failure_ends_the_question_as_failed_and_no_other(nodes: Nodes, subject: Subject) -> None:
    knowing(subject, BAD)
    node = nodes.node(subject.answerer)
    async with nodes.running(node):
        failed = await node.ask("ann", Asking(BAD))
        good = await node.ask("ann", Asking(GOOD.format("one")))
        assert (await one_end(nodes, failed))["name"] == "answer.error"
        assert (await one_end(nodes, good))["name"] == "answer"
        now = await node.get("ann", failed.id)
    assert now is not None
    assert now.status == "failed"
    assert "bug" not in now.error_detail


async def test_a_long_answer_is_bounded(nodes: Nodes, subject: Subject) -> None:
    knowing(subject, LONG)
    node = nodes.node(subject.answerer)
    async with nodes.running(node):
        asked = await node.ask("ann", Asking(LONG))
        assert (await one_end(nodes, asked))["code"] == "too_long"
        await eventually(lambda: subject.busy() == 0)
        now = await node.get("ann", asked.id)
    assert now is not None
    assert len(now.answer) <= MAX_ANSWER_CHARACTERS


async def test_one_that_is_away_is_unavailable(subject: Subject) -> None:
    knowing(subject, AWAY)
    async with running(subject.answerer.run(NoAnswers())):
        with pytest.raises(Unavailable):
            async with aclosing(subject.answerer.answer(question(AWAY))) as pieces:
                _ = [piece async for piece in pieces]
    assert subject.busy() == 0


async def test_the_end_is_the_last_piece_and_there_is_one(subject: Subject) -> None:
    async with aclosing(subject.answerer.answer(question(GOOD.format("one")))) as found:
        pieces = [piece async for piece in found]
    ends = [piece for piece in pieces if not isinstance(piece, Delta)]
    assert len(ends) == 1
    assert pieces[-1] is ends[0]
    assert not isinstance(ends[0], NotSure | HandOver)
    assert isinstance(ends[0], SentOff) == (len(pieces) == 1)


# What the last message demands of the model server, and how the question ends.
DEMANDS = {
    "[words 8] [pace 0.02]": "answered",
    "[think 3] [garbage]": "answered",
    "[length]": "answered",
    "[refuse]": "answered",
    "[cut]": "answer_cut",
    "[stall 9]": "answer_cut",
    "[filter]": "content_filter",
    "[words 0]": "answer_empty",
    "[status 400]": "answerer_refused",
    "[status 503]": "answerer_unavailable",
    "[status 401]": "answerer_unavailable",
}


@pytest.mark.slow
async def test_among_failures_of_all_kinds_every_question_ends_once_and_as_it_should(nodes: Nodes) -> None:
    async with model_server() as server:
        options = OpenaiOptions(model=MODEL, at_once=8, between_tokens_s=1.0)
        answerer = OpenaiAnswerer(server.url, options, "", "", tls_for(server.url), Metrics(), backoff_s=0.05)
        node = nodes.node(answerer)
        async with nodes.running(node):
            asked = [
                (await node.ask(f"user {round_}", Asking(demand)), expected)
                for round_ in range(6)
                for demand, expected in DEMANDS.items()
            ]
            for question_, expected in asked:
                end = await one_end(nodes, question_)
                assert end.get("code", "answered") == expected, question_.text
        await eventually(lambda: server.busy == 0)
    assert server.most_busy <= 8
