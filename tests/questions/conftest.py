"""Databases, a backplane and nodes for the questions' tests; what a person hears is read from the log."""

import asyncio
import json
import os
import pwd
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import NoReturn

import pytest

from deploy.parts import Postgres
from pushsse.backplane import Backplane, HeardLive, log_of
from pushsse.backplane.answers import SoFar
from pushsse.backplane.memory import MemoryBackplane
from pushsse.database import Database, Statement
from pushsse.errors import BackplaneUnavailable
from pushsse.event import Publication
from pushsse.hub import HubParts, assemble_hub
from pushsse.hub.opening import StreamLimits
from pushsse.hub.people import PersonState
from pushsse.metrics import Metrics
from pushsse.questions import Part, Question
from pushsse.questions.answerers import Answerer, Answers, Delta, Piece
from pushsse.questions.life import QuestionPace
from pushsse.questions.rows import QuestionRow
from pushsse.questions.service import Questions, assemble_questions
from pushsse.questions.store import QuestionStore
from tests.migrated import migrated, migrated_in
from tests.waiting import eventually

SHARDS = 8
FAST = QuestionPace(delta_s=0.02, store_s=0.06, sweep_s=0.05, lease_s=0.6, announce_s=0.3)
LIMIT_S = 10.0


# What these are about is the protocol or the answerer, and other files try the same statements on PostgreSQL.
_LONG_ON_POSTGRES = (
    "test_fronts.py",
    "test_answerers.py",
    "test_desk_api.py",
    "test_api.py",
    "test_kafka.py",
)


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Leaves them to `make long` on the second database."""
    for item in items:
        if item.path.name in _LONG_ON_POSTGRES and "postgres" in item.name:
            item.add_marker(pytest.mark.long)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def postgres_url(postgres_part: Postgres) -> str:
    """A database of their own for all tests of questions."""
    return migrated_in(postgres_part)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.real)])
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    """A migrated, empty database of either kind."""
    is_postgres = request.param == "postgres"
    url = request.getfixturevalue("postgres_url") if is_postgres else migrated(tmp_path / "questions.db")
    async with Database(url, timeout_s=LIMIT_S) as opened:
        yield opened
        if is_postgres:
            for table in ("question", "conversation", "earlier_answer", "staff", "kick"):
                await opened.rows(str, Statement(f"DELETE FROM pushsse_{table}"))


@pytest.fixture
def backplane() -> MemoryBackplane:
    return memory()


def memory() -> MemoryBackplane:
    """A backplane that has seen nothing yet."""
    return MemoryBackplane(shards=SHARDS, keep_s=3600, keep_bytes=4 * 1024**2, metrics=Metrics())


@dataclass
class Scripted:
    """An answerer that says what it is told, and waits where it is told to."""

    script: Callable[[Question], AsyncGenerator[Piece, None]]
    asked: list[str] = field(default_factory=list)
    attempts: list[int] = field(default_factory=list)

    async def answer(self, question: Question) -> AsyncGenerator[Piece, None]:
        self.asked.append(question.id)
        self.attempts.append(question.attempt)
        async for piece in self.script(question):
            yield piece

    async def run(self, answers: Answers) -> None:
        pass


class NoAnswers:
    """Nothing comes from elsewhere."""

    async def find(self, question_id: str) -> None:
        raise AssertionError

    async def add(
        self, question: Question, pieces: Sequence[Delta | Part], piece: int, attempt: int = 0
    ) -> bool:
        raise AssertionError

    async def hand_over(self, question: Question, reason: str) -> bool:
        raise AssertionError

    async def end(self, question_id: str, ending: object) -> bool:
        raise AssertionError


@dataclass
class Nodes:
    """One database and one backplane, any number of nodes."""

    database: Database
    backplane: MemoryBackplane
    live: list[Publication] = field(default_factory=list)
    metrics: Metrics = field(default_factory=Metrics)

    def node(
        self,
        answerer: Answerer,
        *,
        name: str = "one",
        timeout_s: float = 30.0,
        pace: QuestionPace = FAST,
        unsure_hands_over: bool = False,
    ) -> Questions:
        return assemble_questions(
            QuestionStore(self.database),
            self.backplane,
            answerer,
            node=name,
            timeout_s=timeout_s,
            metrics=self.metrics,
            pace=pace,
            unsure_hands_over=unsure_hands_over,
        )

    async def asked_at(self, question: Question, at: datetime) -> None:
        """Makes a question one of an earlier time."""
        async with self.database.session():
            await QuestionRow.filter(id=question.id).update(created_at=at)

    def running(self, service: Questions) -> AbstractAsyncContextManager[asyncio.Task[None]]:
        """Runs a node's service for the length of a block."""
        return running(service.run())

    async def logged(self, user: str) -> list[Publication]:
        """What the person's log has for him."""
        log = log_of(user, SHARDS)
        page = await self.backplane.read({log: 0}, limit=10_000)
        return [entry.publication for entry in page.entries if user in (entry.publication.users or ())]

    async def told(self, user: str) -> list[tuple[str, dict[str, object]]]:
        """The same as names and data."""
        return [(publication.name, data(publication)) for publication in await self.logged(user)]

    async def until_told(self, user: str, name: str, count: int = 1) -> list[dict[str, object]]:
        """Waits until the person was told so many events of a name."""
        found: list[dict[str, object]] = []

        async def there() -> bool:
            found[:] = [told for named, told in await self.told(user) if named == name]
            return len(found) >= count

        await eventually(there)
        return found

    async def hear(self, user: str) -> None:
        """Collects the live publications of a person, for ever."""
        self.backplane.follow(log_of(user, SHARDS))
        async for hearing in self.backplane.listen():
            if isinstance(hearing, HeardLive) and user in (hearing.publication.users or ()):
                self.live.append(hearing.publication)


@dataclass
class AskingPeople:
    """People of whom each may have a question that is open; nothing is switched off."""

    questions: Questions

    async def state(self, user: str) -> PersonState:
        return PersonState(0, frozenset(), False, None, True)

    def state_nowait(self, user: str) -> None:
        """Never: these streams are opened the way that waits."""

    async def states(self, users: Sequence[str]) -> dict[str, PersonState]:
        return {user: await self.state(user) for user in users}

    async def settle(self, user: str) -> None:
        raise AssertionError("nothing is pending here")

    async def growing(self, user: str) -> Mapping[str, SoFar]:
        return await self.questions.growing(user)


class Away:
    """A hub that doesn't hear its backplane."""

    def publications(self, user: str, subject: str) -> NoReturn:
        raise BackplaneUnavailable("away")

    def learn(self, question: str, user: str, so_far: SoFar | None, *, since: float) -> None:
        raise AssertionError("nobody listens here")


@asynccontextmanager
async def running_hub(nodes: Nodes, questions: Questions) -> AsyncIterator[HubParts]:
    """The hub of a node that answers these questions, running."""
    async with running_hub_of(nodes.backplane, questions, nodes.metrics) as parts:
        yield parts


@asynccontextmanager
async def running_hub_of(
    backplane: Backplane, questions: Questions, metrics: Metrics
) -> AsyncIterator[HubParts]:
    """The same, on any backplane."""
    limits = StreamLimits("here", 15, 600, 5.0, 0.0)
    parts = assemble_hub(backplane, AskingPeople(questions), limits=limits, metrics=metrics)
    async with asyncio.TaskGroup() as tasks:
        services = [
            tasks.create_task(each.run())
            for each in (parts.catch_up, parts.refresh, parts.opener, parts.feed)
        ]
        try:
            yield parts
        finally:
            for task in services:
                task.cancel()


@pytest.fixture
def nodes(database: Database, backplane: MemoryBackplane) -> Nodes:
    return Nodes(database, backplane)


@asynccontextmanager
async def running(forever: Awaitable[None]) -> AsyncIterator[asyncio.Task[None]]:
    """Runs something for the length of a block; what it raises fails the test."""
    task = asyncio.ensure_future(forever)
    try:
        yield task
    finally:
        task.cancel()
        done = await asyncio.gather(task, return_exceptions=True)
        if isinstance(done[0], Exception):
            raise done[0]


def data(publication: Publication) -> dict[str, object]:
    """The data of a publication."""
    found: dict[str, object] = json.loads(publication.body.removeprefix(b"data: "))
    return found


def grown_text(deltas: Sequence[Mapping[str, object]]) -> str:
    """What a client has after these deltas, by the rule text[:from] + delta, in UTF-16 code units.

    Each has to begin where the one before it ended, or at 0.
    """
    text = b""
    for delta in deltas:
        start = delta["from"]
        assert isinstance(start, int)
        assert 2 * start in (0, len(text)), "a delta doesn't begin where the one before it ended"
        text = text[: 2 * start] + str(delta["text"]).encode("utf-16-le")
    return text.decode("utf-16-le")


def _unprivileged() -> pwd.struct_passwd | None:
    return pwd.getpwnam("nobody") if os.getuid() == 0 else None
