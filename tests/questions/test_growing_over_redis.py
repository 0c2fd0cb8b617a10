"""An answer that grows on one node and is read on others, over a Redis that blinks, loses and goes away."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from pushsse.backplane.redis import RedisBackplane
from pushsse.database import Database
from pushsse.hub import HubParts
from pushsse.hub.opening import From, StreamOptions
from pushsse.metrics import Metrics
from pushsse.questions import Answered, By
from pushsse.questions.answerers import Answerer
from pushsse.questions.service import Asking, Questions, assemble_questions
from pushsse.questions.store import QuestionStore
from tests.backplane.redis_server import RedisServer
from tests.hub.running_hub import ListSink
from tests.migrated import migrated
from tests.questions.conftest import FAST, SHARDS, Scripted, running, running_hub_of
from tests.questions.test_growing import Told, deltas, numbers, text_of, until_ended, until_text
from tests.waiting import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.real]
BOT = By("bot", "test")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that the test may break."""
    found = RedisServer(tmp_path)
    found.start()
    yield found
    found.close()


@dataclass
class Node:
    """One node of several, with its own connection to Redis."""

    backplane: RedisBackplane
    questions: Questions
    parts: HubParts

    async def open(self) -> ListSink:
        sink = ListSink()
        async with self.parts.opener.opening("ann", From()) as opening:
            sink.subscriber = self.parts.opener.begin(opening, sink, StreamOptions())
        return sink


@asynccontextmanager
async def running_node(
    server: RedisServer, database: Database, answerer: Answerer, name: str, *, answers: bool = True
) -> AsyncIterator[Node]:
    async with AsyncExitStack() as stack:
        backplane = RedisBackplane(
            server.url,
            prefix="test:",
            node=name,
            shards=SHARDS,
            keep_s=600,
            keep_bytes=4 * 1024**2,
            metrics=Metrics(),
        )
        await stack.enter_async_context(backplane)
        questions = assemble_questions(
            QuestionStore(database),
            backplane,
            answerer,
            node=name,
            timeout_s=30.0,
            metrics=Metrics(),
            pace=FAST,
        )
        parts = await stack.enter_async_context(running_hub_of(backplane, questions, Metrics()))
        if answers:
            await stack.enter_async_context(running(questions.run()))
        yield Node(backplane, questions, parts)


@asynccontextmanager
async def two_nodes(server: RedisServer, folder: Path) -> AsyncIterator[tuple[Node, Node, Told]]:
    """The first one answers; on the second one are only streams."""
    told = Told()
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(Database(migrated(folder / "questions.db")))
        answerer = Scripted(lambda question: told.script(question))
        first = await stack.enter_async_context(running_node(server, database, answerer, "one"))
        second = await stack.enter_async_context(
            running_node(server, database, answerer, "two", answers=False)
        )
        yield first, second, told


async def test_an_answer_streams_on_every_node_and_whoever_joins_gets_one_delta(
    server: RedisServer, tmp_path: Path
) -> None:
    async with two_nodes(server, tmp_path) as (first, second, told):
        here, there = await first.open(), await second.open()
        await first.questions.ask("ann", Asking("say it"))
        told.say("one ")
        for sink in (here, there):
            await until_text(sink, "one ")
        told.say("two 事件😀 ")
        for sink in (here, there):
            await until_text(sink, "one two 事件😀 ")
        joined = await second.open()
        await until_text(joined, "one two 事件😀 ")
        assert [delta["from"] for delta in deltas(joined)] == [0]
        told.say("three", Answered(BOT))
        for sink in (here, there, joined):
            await until_ended(sink)
            assert text_of(sink) == "one two 事件😀 three"
        assert numbers(here) == numbers(there) == [1, 2, 3]
        assert numbers(joined) == [2, 3]


async def test_a_node_whose_connection_breaks_sends_its_streams_what_they_missed(
    server: RedisServer, tmp_path: Path
) -> None:
    async with two_nodes(server, tmp_path) as (first, second, told):
        here, there = await first.open(), await second.open()
        await first.questions.ask("ann", Asking("say it"))
        text = ""
        for number in range(30):
            told.say(f"word {number} ")
            text += f"word {number} "
            if number % 10 == 5:
                # All listening connections break at once; what is published meanwhile nobody hears.
                server.run("CLIENT", "KILL", "TYPE", "pubsub")
            await asyncio.sleep(0.03)
        # Without a further delta nobody knows that one was lost.
        await eventually(lambda: second.backplane.hears and first.backplane.hears)
        told.say("last")
        for sink in (here, there):
            await until_text(sink, text + "last")
            assert [delta["from"] for delta in deltas(sink)].count(0) == 1
        told.say(Answered(BOT))
        for sink in (here, there):
            await until_ended(sink)


async def test_a_redis_that_lost_everything_gets_the_answer_anew(server: RedisServer, tmp_path: Path) -> None:
    async with two_nodes(server, tmp_path) as (first, second, told):
        here, there = await first.open(), await second.open()
        await first.questions.ask("ann", Asking("say it"))
        told.say("one ")
        for sink in (here, there):
            await until_text(sink, "one ")
        server.run("FLUSHALL")
        told.say("two ")
        joined = await second.open()
        told.say("three")
        for sink in (here, there, joined):
            await eventually(lambda sink=sink: text_of(sink) == "one two three")  # type: ignore[misc]
        told.say(Answered(BOT))
        for sink in (here, there, joined):
            await until_ended(sink)


async def test_a_redis_that_is_away_for_a_while_delays_deltas_and_loses_none(
    server: RedisServer, tmp_path: Path
) -> None:
    async with two_nodes(server, tmp_path) as (first, second, told):
        here, there = await first.open(), await second.open()
        await first.questions.ask("ann", Asking("say it"))
        told.say("one ")
        for sink in (here, there):
            await until_text(sink, "one ")
        server.freeze()
        for word in ("two ", "three ", "four "):
            told.say(word)
            await asyncio.sleep(0.1)
        await eventually(lambda: not first.backplane.available)
        server.thaw()
        for sink in (here, there):
            await until_text(sink, "one two three four ")
        told.say("five", Answered(BOT))
        for sink in (here, there):
            await until_ended(sink)
            assert text_of(sink) == "one two three four five"
            assert json.loads(sink.data("answer")[0])["text"] == "one two three four five"
