"""The whole path through what `make stack` starts: Kafka, two nodes, nginx with and without TLS."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from aiokafka import AIOKafkaProducer

from deploy.parts import PartMissing
from deploy.whole import TOPIC, Stack
from tests.deployed.conftest import clients, token
from tests.deployed.listener import Listener, events, listening
from tests.deployed.npm import eventsource, page
from tests.parts import missing
from tests.waiting import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.real]
PEOPLE = 6
# Seconds between two events under load: half of what makes the load of a test.
PACE_S = 0.01


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Everything, for all tests of this module; each leaves all parts running."""
    settings = {"PUSHSSE_DRAIN_DELAY_S": "0.5", "PUSHSSE_DRAIN_WINDOW_S": "1.5", "PUSHSSE_HEARTBEAT_S": "5"}
    try:
        with Stack(tmp_path_factory.mktemp("stack"), settings=settings) as stack:
            yield stack
    except PartMissing as error:
        missing(error)


@dataclass
class Load:
    """Numbers to everybody, one after another; some are for one person alone."""

    producer: AIOKafkaProducer
    sent: int = 0

    async def send(self, to: object = "all") -> None:
        """The next number."""
        self.sent += 1
        await self._put(self.sent, to)

    async def _put(self, number: int, to: object) -> None:
        value = {"type": "number", "message": number, "to": to, "id": f"{id(self)}-{number}"}
        # One key, so one partition: order holds within it.
        await self.producer.send_and_wait(TOPIC, json.dumps(value).encode(), key=b"all")

    async def run(self, during: Callable[[], Awaitable[None]], *, at_least: int = 100) -> None:
        """Sends while something happens, and some more."""
        happening = asyncio.ensure_future(during())
        while not happening.done() or self.sent < at_least:
            await self.send()
            await asyncio.sleep(PACE_S)
        await happening


@pytest.fixture
async def load(stack: Stack, anyio_backend: str) -> AsyncIterator[Load]:
    producer = AIOKafkaProducer(bootstrap_servers=stack.kafka.url, linger_ms=0)
    await producer.start()
    try:
        yield Load(producer)
    finally:
        await producer.stop()


@asynccontextmanager
async def people(stack: Stack) -> AsyncIterator[list[Listener]]:
    """People who listen, over HTTP and TLS by turns."""
    async with clients(stack) as https:
        listeners = [
            Listener(f"user{number}", https[number % 2], token(stack, f"user{number}"))
            for number in range(PEOPLE)
        ]
        async with listening(listeners):
            yield listeners


def complete(listeners: list[Listener], load: Load) -> bool:
    return all(len(listener.numbers) >= load.sent for listener in listeners)


async def check_nothing_is_missed(listeners: list[Listener], load: Load) -> None:
    """Everybody has every number once and in order, and was never told of a gap or sent away."""
    try:
        await eventually(lambda: complete(listeners, load))
    except AssertionError:
        pass
    for listener in listeners:
        assert listener.numbers == list(range(1, load.sent + 1)), listener
        assert "gap" not in listener.resumes
        assert listener.statuses == {200}


async def test_events_from_kafka_reach_people_on_either_node_over_http_and_tls(
    stack: Stack, load: Load
) -> None:
    async with people(stack) as listeners:
        assert {listener.nodes[0] for listener in listeners} == {"node1", "node2"}
        for listener in listeners:
            await load.send()
            await load.send({"users": [listener.user]})
        await load.send()
        mixed = list(range(1, load.sent + 1))
        await eventually(lambda: all(listener.numbers[-1:] == mixed[-1:] for listener in listeners))
        for at, listener in enumerate(listeners):
            own = 2 * (at + 1)
            assert listener.numbers == [number for number in mixed if number % 2 or number == own]


async def test_people_of_a_killed_node_miss_nothing(stack: Stack, load: Load) -> None:
    async with people(stack) as listeners:

        async def kill() -> None:
            await eventually(lambda: all(len(listener.numbers) > 20 for listener in listeners))
            await asyncio.to_thread(stack.node(1).kill)
            await eventually(lambda: all(listener.nodes[-1] == "node2" for listener in listeners))

        await load.run(kill)
        await check_nothing_is_missed(listeners, load)
        await asyncio.to_thread(stack.node(1).start)


async def test_people_of_a_draining_node_are_told_and_miss_nothing(stack: Stack, load: Load) -> None:
    async with people(stack) as listeners:
        before = {listener.user for listener in listeners if listener.nodes[-1] == "node2"}
        assert before

        async def drain() -> None:
            await eventually(lambda: all(len(listener.numbers) > 20 for listener in listeners))
            stack.node(2).terminate()
            assert await asyncio.to_thread(stack.node(2).wait, 20) == 0

        await load.run(drain)
        await check_nothing_is_missed(listeners, load)
        for listener in listeners:
            assert listener.exceptions == (["shutdown"] if listener.user in before else [])
        assert "Traceback" not in stack.node(2).log.read_text()
        await asyncio.to_thread(stack.node(2).start)


async def test_people_miss_nothing_when_nginx_is_restarted(stack: Stack, load: Load) -> None:
    async with people(stack) as listeners:

        async def restart() -> None:
            await eventually(lambda: all(len(listener.numbers) > 20 for listener in listeners))
            await asyncio.to_thread(stack.nginx.restart)
            await eventually(lambda: all(len(listener.nodes) == 2 for listener in listeners))

        await load.run(restart)
        await check_nothing_is_missed(listeners, load)


async def test_a_page_comes_back_by_itself_when_all_nodes_were_away(stack: Stack, load: Load) -> None:
    try:
        folder = await asyncio.to_thread(eventsource)
    except PartMissing as error:
        missing(error)
    ann = await asyncio.to_thread(stack.token, "ann")
    async with page(folder, f"{stack.nginx.url}/v1/stream", ann) as seen, clients(stack) as https:
        await eventually(lambda: seen.count("ready") == 1)
        await asyncio.gather(*(asyncio.to_thread(node.kill) for node in stack.nodes))
        for http in https:
            headers = {"Authorization": f"Bearer {ann}"}
            async with http.stream("GET", "/v1/stream", headers=headers) as busy:
                told = [event async for event in events(busy)]
            assert busy.status_code == 200
            assert [event.event for event in told] == ["exception"]
            assert told[0].retry is not None
            assert json.loads(told[0].data)["code"] == "overloaded"
            assert (await http.get("/v1/me", headers=headers)).status_code == 503
        await eventually(lambda: "overloaded" in [data.get("code") for _, data in seen.told])
        await asyncio.gather(*(asyncio.to_thread(node.start) for node in stack.nodes))
        await eventually(lambda: seen.count("ready") == 2)
        await load.send()
        await eventually(lambda: seen.count("number") == 1)
        assert not seen.count("gave up")
