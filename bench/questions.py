"""Questions: how long one takes to be accepted, its first delta to the client, and what a delta costs.

The node runs on the servers' processor, with Redis and, where it is there, PostgreSQL; `bench.answerer`
answers within it, so its cost is in the figures. The client checks each answer: its deltas are numbered from
1 without a gap, and together they are its text.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar, cast
from uuid import uuid4

from redis import Redis as Client

from bench.contestants import BenchNode, bearer, get, post, user
from bench.usage import usage
from deploy.parts import Redis

ACCEPT_RATE = 200
ANSWERS = 100
WAITING = 1_000
_FIRST_RATE = 50
# Of each a few questions are answered at once, and twenty may be open.
_PEOPLE = 500
# Counted as in any installation, and never reached.
_PER_MINUTE = 10_000
_LIMIT_S = 60
_CONNECTIONS = 64
T = TypeVar("T")


@dataclass
class QuestionCosts:
    """Milliseconds at the 99th percentile; CPU of a question with its answer, of one delta; runs of Redis's
    scripts of a delta among many, and of a question's own steps; what waiting costs.

    Of `answers` that were heard, `gaps` had a gap among the numbers of their deltas, and `unequal` another
    text than their deltas together. A delta may hold several pieces of an answer, which isn't a gap.
    """

    accepted_p99_ms: float = 0.0
    accepted_us: float = 0.0
    first_p99_ms: float = 0.0
    delta_p99_ms: float = 0.0
    delta_us: float = 0.0
    calls_per_delta: float = 0.0
    calls_per_question: float = 0.0
    deltas_per_s: float = 0.0
    waiting_threads: int = 0
    waiting_percent: float = 0.0
    followed_percent: float = 0.0
    answers: int = 0
    gaps: int = 0
    unequal: int = 0

    @property
    def complete(self) -> bool:
        """Whether all answers that were heard came whole."""
        return not self.gaps and not self.unequal

    def count(self, heard: "Heard") -> None:
        """Adds the answers that some streams have heard."""
        self.answers += len(heard.asked)
        self.gaps += len(heard.gaps)
        self.unequal += len(heard.unequal)


@dataclass
class Heard:
    """What the streams of some people have heard: deltas by question, and how old they were, in ms.

    `asked` are the questions that count, and whose they are: answers to earlier ones may grow still.
    """

    asked: dict[str, str] = field(default_factory=dict)
    ages_ms: list[float] = field(default_factory=list)
    first_ms: dict[str, float] = field(default_factory=dict)
    seqs: dict[str, list[int]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    whole: dict[str, str] = field(default_factory=dict)
    more: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def deltas(self) -> int:
        """How many."""
        return sum(len(self.seqs.get(each, ())) for each in self.asked)

    @property
    def gaps(self) -> Sequence[str]:
        """The questions among whose deltas a number is missing, repeated or out of order."""
        numbers = {each: self.seqs.get(each, []) for each in self.asked}
        return [each for each, seqs in numbers.items() if seqs != list(range(1, len(seqs) + 1))]

    @property
    def unequal(self) -> Sequence[str]:
        """The questions whose deltas together aren't the answer's text; those without any among them."""
        return [each for each in self.asked if self.texts.get(each, "") != self.whole.get(each)]

    async def ended(self) -> None:
        """Waits until all answers have ended."""
        while not self.asked.keys() <= self.whole.keys():
            self.more.clear()
            await self.more.wait()

    def take(self, name: str, data: bytes) -> None:
        """One event."""
        if name not in ("answer.delta", "answer"):
            return
        now_ns, body = time.time_ns(), json.loads(data)
        question, text = body["question"], body["text"]
        if name == "answer":
            self.whole[question] = text
            self.more.set()
            return
        # The age of what came last into a delta.
        age_ms = (now_ns - int(text.rstrip().rpartition("; ")[2].split()[0])) / 1e6
        if question in self.seqs:
            self.ages_ms.append(age_ms)
        else:
            self.first_ms[question] = age_ms
        self.seqs.setdefault(question, []).append(body["seq"])
        # What is there beyond `from` is void. The texts are ASCII, so that places are characters.
        self.texts[question] = self.texts.get(question, "")[: body["from"]] + text


class Asker:
    """Asks over connections that are kept. By hand: httpx takes more CPU for a request than the node.

    Entered for each load: a node closes connections on which nothing is asked for some seconds.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._free: asyncio.LifoQueue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.LifoQueue()

    async def __aenter__(self) -> "Asker":
        for _ in range(_CONNECTIONS):
            self._free.put_nowait(await asyncio.open_connection("127.0.0.1", self._port))
        return self

    async def __aexit__(self, *_: object) -> None:
        while not self._free.empty():
            self._free.get_nowait()[1].close()

    async def ask(self, who: str, text: str) -> str:
        """One question, and its id; raises RuntimeError for any answer but 202."""
        reader, writer = connection = await self._free.get()
        body = json.dumps({"text": text})
        # As the browser client asks.
        head = post("/v1/questions", bearer(who), f"Idempotency-Key: {uuid4().hex}")
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        answer = await reader.readuntil(b"\r\n\r\n")
        length = int(answer.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        rest = await reader.readexactly(length)
        self._free.put_nowait(connection)
        if not answer.startswith(b"HTTP/1.1 202 "):
            raise RuntimeError(f"a question was answered with {(answer.splitlines()[0] + rest)[:200]!r}")
        return str(json.loads(rest)["id"])


def measure(
    redis: Redis, folder: Path, database_url: str, seconds: int, progress: Callable[[str], None]
) -> QuestionCosts:
    """All of it, on one node."""
    settings = {
        "PUSHSSE_REDIS_URL": redis.url,
        "PUSHSSE_REDIS_PREFIX": "questions:",
        "PUSHSSE_DATABASE_URL": database_url,
        "PUSHSSE_ANSWERER": "python:bench.answerer:answer",
        "PUSHSSE_QUESTIONS_PER_MINUTE": str(_PER_MINUTE),
        "PUSHSSE_LOG_BYTES_PER_MINUTE": str(1024**3),
    }
    with BenchNode(folder / "questions", settings) as node:
        costs = asyncio.run(_all(node, redis, seconds))
    progress(
        f"questions: accepted p99 {costs.accepted_p99_ms:.1f} ms, {costs.accepted_us:.0f} µs each, first"
        f" delta p99 {costs.first_p99_ms:.1f} ms, {costs.delta_us:.0f} µs and {costs.calls_per_delta:.3f}"
        f" calls a delta, {costs.calls_per_question:.2f} a question besides; of {costs.answers} answers"
        f" {costs.gaps} with a gap, {costs.unequal} with another text than their deltas"
    )
    return costs


async def _all(node: BenchNode, redis: Redis, seconds: int) -> QuestionCosts:
    costs = QuestionCosts()
    # Statements and caches warm up.
    await _ask(node, ACCEPT_RATE, ACCEPT_RATE, "once")
    spent = usage(node.pid)
    costs.accepted_p99_ms = _p99(await _ask(node, ACCEPT_RATE * seconds, ACCEPT_RATE, "once"))
    # The last ones are answered, too.
    await asyncio.sleep(1)
    costs.accepted_us = usage(node.pid).since(spent).cpu_s / (ACCEPT_RATE * seconds) * 1e6
    first = await _heard(node, _FIRST_RATE * seconds, _FIRST_RATE, "once")
    costs.first_p99_ms = _p99([first.first_ms[each] for each in first.asked if each in first.first_ms])
    costs.count(first)
    await _talk(node, redis, seconds, costs)
    await _wait(node, seconds, costs)
    return costs


async def _talk(node: BenchNode, redis: Redis, seconds: int, costs: QuestionCosts) -> None:
    """Many answers that grow at once."""
    # What isn't for deltas: questions whose answers don't grow, and a node that does nothing.
    own, silent_s, _ = await _calls(redis, _heard(node, ANSWERS, ANSWERS * 4, "silent"))
    idle, idle_s, _ = await _calls(redis, asyncio.sleep(seconds))
    spent = usage(node.pid)
    calls, took_s, heard = await _calls(redis, _heard(node, ANSWERS, ANSWERS * 4, f"talk {seconds}"))
    spent = usage(node.pid).since(spent)
    costs.count(heard)
    costs.delta_p99_ms = _p99(heard.ages_ms)
    costs.delta_us = spent.cpu_s / heard.deltas * 1e6
    # They begin within a quarter of a second. Where the node is busy, deltas are joined.
    costs.deltas_per_s = heard.deltas / (took_s - 1 / 4)
    costs.calls_per_question = (own - idle / idle_s * silent_s) / ANSWERS
    costs.calls_per_delta = (calls - own - idle / idle_s * (took_s - silent_s)) / heard.deltas


async def _calls(redis: Redis, work: Awaitable[T]) -> tuple[int, float, T]:
    """How many runs of scripts Redis counts while something is done, how long that takes, and its result."""
    calls, began = _script_calls(redis), time.monotonic()
    done = await work
    return _script_calls(redis) - calls, time.monotonic() - began, done


async def _wait(node: BenchNode, seconds: int, costs: QuestionCosts) -> None:
    """Many questions that nobody answers, and then a reply that follows each of them."""
    before, threads = await _percent(node, seconds), _threads(node.pid)
    asked: dict[str, str] = {}
    await _ask(node, WAITING, ACCEPT_RATE, "wait", asked)
    await asyncio.sleep(1)
    costs.waiting_threads = _threads(node.pid) - threads
    waiting = await _percent(node, seconds)
    costs.waiting_percent = waiting - before
    async with AsyncExitStack() as stack:
        for question, who in asked.items():
            reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
            stack.callback(writer.close)
            # A question without a conversation gives one its name.
            writer.write(get(f"/v1/chat/{question}/stream", bearer(who)).encode())
            await reader.readuntil(b'"start"')
        costs.followed_percent = await _percent(node, seconds) - waiting


async def _ask(
    node: BenchNode, count: int, rate: float, text: str, asked: dict[str, str] | None = None
) -> list[float]:
    """Asks at a rate, whatever the answers take; how long each took in ms."""
    took_ms: list[float] = []

    async def one(number: int, due: float) -> None:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        # From when it was due: what had to wait for a connection isn't left out.
        who = user(number % _PEOPLE)
        question = await client.ask(who, text)
        if asked is not None:
            asked[question] = who
        took_ms.append((time.monotonic() - due) * 1e3)

    async with Asker(node.port) as client:
        began = time.monotonic() + 0.05
        async with asyncio.TaskGroup() as tasks:
            for number in range(count):
                tasks.create_task(one(number, began + number / rate))
    return took_ms


async def _heard(node: BenchNode, count: int, rate: float, text: str) -> Heard:
    """Asks, and hears all answers on a stream of each person."""
    heard = Heard()
    people = {number % _PEOPLE for number in range(count)}
    async with AsyncExitStack() as stack:
        listening = []
        for number in people:
            reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
            stack.callback(writer.close)
            writer.write(get("/v1/stream", bearer(user(number))).encode())
            await reader.readuntil(b"event: ready\n")
            listening.append(asyncio.create_task(_listen(reader, heard)))
        asked = asyncio.create_task(_ask(node, count, rate, text, heard.asked))
        try:
            async with asyncio.timeout(_LIMIT_S):
                await asked
                await heard.ended()
        finally:
            for task in (asked, *listening):
                task.cancel()
            await asyncio.gather(asked, *listening, return_exceptions=True)
    return heard


async def _listen(reader: asyncio.StreamReader, heard: Heard) -> None:
    name = ""
    while line := await reader.readline():
        if line.startswith(b"event: "):
            name = line[7:-1].decode()
        elif line.startswith(b"data: "):
            heard.take(name, line[6:])


async def _percent(node: BenchNode, seconds: int) -> float:
    before = usage(node.pid)
    await asyncio.sleep(seconds)
    return usage(node.pid).since(before).cpu_s / seconds * 100


def _threads(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/task").iterdir())


def _script_calls(redis: Redis) -> int:
    with Client.from_url(redis.url) as client:
        stats = cast(dict[str, dict[str, int]], client.info("commandstats"))
    with suppress(KeyError):
        return int(stats["cmdstat_evalsha"]["calls"])
    return 0


def _p99(values: Sequence[float]) -> float:
    ordered = sorted(values)
    return ordered[int(len(ordered) * 0.99)] if ordered else 0.0
