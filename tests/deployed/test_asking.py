"""Questions through what `make stack` starts: real Kafka, two nodes, nginx with and without TLS.

A model server answers, or a service behind Kafka. One person has two devices; the node that has the question
is killed, a device comes back in the middle, another one stops an answer.
"""

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import httpx
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from deploy.whole import TOPIC, Stack
from pushsse.database import Database, Statement
from tests.deployed.conftest import clients, deployed, token
from tests.deployed.listener import events
from tests.questions.model_server import Call, model_server
from tests.waiting import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.real, pytest.mark.long]
# Within which another node has taken up what a dead one was answering, and its server is asked.
TAKEN_OVER_S = 15.0
_OWNER = Statement("SELECT owner FROM pushsse_question WHERE id = {value[1]}")


class Answerer(Protocol):
    """Whoever answers: word by word, as the test wants it."""

    def asked(self, text: str) -> int:
        """How often this was asked."""
        ...

    async def say(self, text: str, word: str) -> None:
        """The next word of the answer to what was asked last with this text."""
        ...

    async def finish(self, text: str) -> None:
        """The end of that answer."""
        ...

    def is_stopped(self, text: str) -> bool:
        """Whether it knows that nobody wants that answer any more."""
        ...


@dataclass
class Model:
    """A server with chat completions."""

    calls: defaultdict[str, list[Call]] = field(default_factory=lambda: defaultdict(list))

    async def script(self, call: Call) -> None:
        """Leaves the answer to the test."""
        await call.begin()
        self.calls[call.text].append(call)
        await asyncio.Event().wait()

    def asked(self, text: str) -> int:
        return len(self.calls[text])

    async def say(self, text: str, word: str) -> None:
        await self.calls[text][-1].say(word)

    async def finish(self, text: str) -> None:
        await self.calls[text][-1].done()

    def is_stopped(self, text: str) -> bool:
        return self.calls[text][-1].gone.is_set()


@dataclass
class Service:
    """A service behind Kafka."""

    producer: AIOKafkaProducer
    questions: defaultdict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    stopped: set[str] = field(default_factory=set)
    said: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))

    async def listen(self, consumer: AIOKafkaConsumer) -> None:
        """Reads the topic of the questions, for ever."""
        async for record in consumer:
            question = json.loads(record.value)
            if question.get("cancel"):
                self.stopped.add(question["id"])
            else:
                self.questions[question["text"]].append(question)

    def asked(self, text: str) -> int:
        return len(self.questions[text])

    async def say(self, text: str, word: str) -> None:
        await self._send(text, delta=word)

    async def finish(self, text: str) -> None:
        await self._send(text, done=True)

    def is_stopped(self, text: str) -> bool:
        return self.questions[text][-1]["id"] in self.stopped

    async def _send(self, text: str, **piece: object) -> None:
        question = self.questions[text][-1]
        name = str(question["id"])
        self.said[name] += 1
        record = {"question": name, "attempt": question["attempt"], "seq": self.said[name], **piece}
        await self.producer.send_and_wait("push.answers", json.dumps(record).encode(), key=name.encode())


@asynccontextmanager
async def with_model(folder: Path) -> AsyncIterator[tuple[Stack, Answerer]]:
    model = Model()
    async with (
        model_server(model.script) as server,
        deployed(folder, PUSHSSE_ANSWERER=f"openai:{server.url}?model=small") as stack,
    ):
        yield stack, model


@asynccontextmanager
async def with_service(folder: Path) -> AsyncIterator[tuple[Stack, Answerer]]:
    async with deployed(folder, PUSHSSE_ANSWERER="kafka:") as stack:
        kafka = {"bootstrap_servers": stack.kafka.url}
        consumer = AIOKafkaConsumer("push.questions", auto_offset_reset="earliest", **kafka)
        async with AIOKafkaProducer(**kafka) as producer, consumer, asyncio.TaskGroup() as group:
            service = Service(producer)
            listening = group.create_task(service.listen(consumer))
            try:
                yield stack, service
            finally:
                listening.cancel()


@dataclass
class Device:
    """A stream that comes back by itself with its position, and what a page shows of the answers."""

    http: httpx.AsyncClient
    token: str
    nodes: list[str] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    deltas: defaultdict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    statuses: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    ends: defaultdict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    _last_id: str = ""
    _lost: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    async def come_back(self) -> None:
        """Its connection is lost; returns when it has another one."""
        count = len(self.nodes)
        self._lost.set()
        await eventually(lambda: len(self.nodes) > count)

    async def run(self) -> None:
        """Connects again and again."""
        while True:
            self._lost.clear()
            reading = asyncio.ensure_future(self._connection())
            losing = asyncio.ensure_future(self._lost.wait())
            try:
                await asyncio.wait((reading, losing), return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (reading, losing):
                    task.cancel()
                _, failed = await asyncio.gather(losing, reading, return_exceptions=True)
            if isinstance(failed, Exception) and not isinstance(failed, httpx.TransportError):
                raise failed
            await asyncio.sleep(0.2)

    async def _connection(self) -> None:
        headers = {**self.headers, **({"Last-Event-ID": self._last_id} if self._last_id else {})}
        async with self.http.stream("GET", "/v1/stream", headers=headers) as response:
            async for event in events(response):
                self._last_id = event.id or self._last_id
                self._take(event.event, json.loads(event.data))

    def _take(self, name: str, data: dict[str, Any]) -> None:
        match name:
            case "ready":
                self.nodes.append(data["node"])
                assert data["resume"] != "gap"
            case "number":
                self.numbers.append(data["message"])
            case "question":
                self.statuses[data["id"]].append(data["status"])
            case "answer.delta":
                text = self.texts.get(data["question"], "")
                # There is no hole before it, and what is there beyond it is void.
                assert data["from"] <= len(text)
                self.texts[data["question"]] = text[: data["from"]] + data["text"]
                self.deltas[data["question"]].append(data)
            case "answer" | "answer.error":
                self.ends[data["question"]].append({"event": name, **data})


@asynccontextmanager
async def devices(stack: Stack) -> AsyncIterator[tuple[Device, Device]]:
    """Ann's two devices, on a node each: over HTTP/1.1, and over HTTP/2 with TLS."""
    ann = token(stack, "ann", "stream", "ask")
    async with clients(stack) as (http, tls), asyncio.TaskGroup() as group:
        both = Device(http, ann), Device(tls, ann)
        tasks = [group.create_task(device.run()) for device in both]
        try:
            await eventually(lambda: all(device.nodes for device in both))
            while both[0].nodes[-1] == both[1].nodes[-1]:
                await both[1].come_back()
            yield both
        finally:
            for task in tasks:
                task.cancel()


async def ask(device: Device, text: str) -> str:
    reply = await device.http.post("/v1/questions", json={"text": text}, headers=device.headers)
    assert reply.status_code == 202, reply.text
    return str(reply.json()["id"])


async def owner(stack: Stack, question: str) -> int:
    """The number of the node that has a question."""
    async with Database(stack.settings["PUSHSSE_DATABASE_URL"], timeout_s=10) as database:
        [name] = await database.rows(str, _OWNER, question)
    return int(name.removeprefix("node"))


async def event(stack: Stack, number: int) -> None:
    """An event to everybody, over Kafka."""
    async with AIOKafkaProducer(bootstrap_servers=stack.kafka.url) as producer:
        value: Mapping[str, object] = {"type": "number", "message": number, "to": "all"}
        await producer.send_and_wait(TOPIC, json.dumps(value).encode())


@pytest.mark.parametrize("answering", [with_model, with_service])
async def test_an_answer_reaches_all_devices_whatever_dies_and_can_be_stopped(
    tmp_path: Path, answering: Any
) -> None:
    async with answering(tmp_path) as (stack, answerer), devices(stack) as (phone, desk):
        both = (phone, desk)

        async def shown(question: str, text: str) -> None:
            await eventually(lambda: all(device.texts.get(question) == text for device in both))

        question = await ask(phone, "first")
        await eventually(lambda: answerer.asked("first") == 1)
        await answerer.say("first", "one ")
        await shown(question, "one ")
        dead = await owner(stack, question)
        await asyncio.to_thread(stack.node(dead).kill)
        killed = time.monotonic()
        if isinstance(answerer, Model):
            # Another node asks again. A service behind Kafka just goes on.
            await eventually(lambda: answerer.asked("first") == 2)
            assert time.monotonic() - killed < TAKEN_OVER_S
            await answerer.say("first", "one ")
        await answerer.say("first", "two ")
        await shown(question, "one two ")
        assert [device.nodes[-1] for device in both] == [stack.node(3 - dead).name] * 2
        # One comes back in the middle: what it has may come once more, and nothing is missing.
        await asyncio.gather(desk.come_back(), answerer.say("first", "three "))
        await asyncio.to_thread(stack.node(dead).start)
        await answerer.say("first", "four ")
        await shown(question, "one two three four ")
        await answerer.finish("first")
        await eventually(lambda: all(device.ends[question] for device in both))
        await event(stack, 1)
        await eventually(lambda: all(device.numbers == [1] for device in both))

        second = await ask(desk, "second")
        await eventually(lambda: answerer.asked("second") == 1)
        await answerer.say("second", "uno ")
        await shown(second, "uno ")
        assert not answerer.is_stopped("second")
        stopping = await desk.http.post(f"/v1/questions/{second}/cancel", headers=desk.headers)
        assert (stopping.status_code, stopping.json()["status"]) == (200, "cancelled")
        await eventually(lambda: answerer.is_stopped("second"))
        await eventually(lambda: all(device.ends[second] for device in both))

        for device in both:
            [end] = device.ends[question]
            assert (end["event"], end["text"]) == ("answer", "one two three four ")
            assert device.texts[question] == end["text"]
            assert device.statuses[question] == ["pending", "answering", "answered"]
            [end] = device.ends[second]
            assert (end["event"], end["code"]) == ("answer.error", "cancelled")
            # Within a stream and an attempt the numbers have no gap; a stream that joins gets one delta.
            for before, delta in zip(device.deltas[question], device.deltas[question][1:], strict=False):
                assert delta["seq"] == before["seq"] + 1 or delta["from"] == 0, device.deltas[question]
        listed = (await phone.http.get("/v1/questions", headers=phone.headers)).json()["questions"]
        assert [(each["status"], each["answer"]["text"]) for each in listed] == [
            ("cancelled", "uno "),
            ("answered", "one two three four "),
        ]
