"""Following a question: what a follower is told, from the beginning, in the middle, and with a part away."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Collection
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field

import pytest

from pushsse.api.identity import EVERY_SCOPE, Identity
from pushsse.errors import CloseReason
from pushsse.hub.hub import Hub
from pushsse.kicks import Kicked
from pushsse.questions import Answered, By, Question
from pushsse.questions.answerers import Delta, Piece
from pushsse.questions.following import (
    Following,
    Grown,
    HearsPublications,
    Idle,
    Interrupted,
    QuestionEnded,
    Restarted,
    Update,
)
from pushsse.questions.rows import QuestionRow
from pushsse.questions.service import Asking, Questions
from pushsse.questions.store import QuestionStore
from tests.questions.conftest import Away, Nodes, Scripted, running, running_hub
from tests.waiting import eventually

pytestmark = pytest.mark.anyio
ANN = Identity("ann", EVERY_SCOPE)
WORDS = [f"wort{number} 事件😀 " for number in range(40)]
TEXT = "".join(WORDS)


@dataclass
class Told:
    """An answerer that says one word after the other, as many as it may."""

    may_say: int = 0
    more: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def allow(self, count: int) -> None:
        async with self.more:
            self.may_say += count
            self.more.notify_all()

    async def script(self, question: Question) -> AsyncGenerator[Piece, None]:
        for said, word in enumerate(WORDS):
            async with self.more:
                while self.may_say <= said:
                    await self.more.wait()
            yield Delta(word)
        yield Answered(By("bot", "test"))


@dataclass
class Place:
    """A node with its hub, and what a follower is handed."""

    service: Questions
    hub: Hub
    told: Told
    draining: bool = False
    kicked: Kicked = field(default_factory=Kicked)

    def following(self, hub: HearsPublications | None = None) -> Following:
        return Following(self.service, hub or self.hub, self, self.kicked)

    async def ask(self) -> Question:
        return await self.service.ask("ann", Asking("say all"))


@asynccontextmanager
async def placed(nodes: Nodes) -> AsyncIterator[Place]:
    told = Told()
    service = nodes.node(Scripted(told.script))
    async with running_hub(nodes, service) as parts, running(service.run()):
        yield Place(service, parts.hub, told)


@pytest.fixture
async def place(nodes: Nodes) -> AsyncIterator[Place]:
    async with placed(nodes) as found:
        yield found


def text_of(updates: list[Update]) -> str:
    """What a follower shows after these."""
    text = ""
    for update in updates:
        if isinstance(update, Restarted):
            text = ""
        elif isinstance(update, Grown):
            text += update.text
    return text


async def all_of(following: Following, question: Question, who: Identity = ANN) -> list[Update]:
    async with asyncio.timeout(20), aclosing(following.updates(question, who)) as updates:
        return [update async for update in updates]


async def test_a_follower_from_the_beginning_is_told_all_once_and_the_end_last(place: Place) -> None:
    question = await place.ask()
    await place.told.allow(len(WORDS))
    updates = await all_of(place.following(), question)
    assert isinstance(updates[-1], QuestionEnded)
    assert updates[-1].question.answer == TEXT
    assert text_of(updates) == TEXT
    assert not any(isinstance(update, (Restarted, Interrupted)) for update in updates)
    assert [type(update) for update in updates].count(QuestionEnded) == 1


async def test_whoever_begins_in_the_middle_is_told_the_text_so_far_first_then_the_rest(place: Place) -> None:
    question = await place.ask()
    followers: list[asyncio.Task[list[Update]]] = []
    for _ in range(8):
        followers.append(asyncio.create_task(all_of(place.following(), question)))
        await place.told.allow(5)
        await asyncio.sleep(0.03)
    for updates in await asyncio.gather(*followers):
        assert text_of(updates) == TEXT
        assert not any(isinstance(update, Restarted) for update in updates)
        assert isinstance(updates[-1], QuestionEnded)


async def test_an_answer_that_has_ended_is_told_whole(place: Place) -> None:
    question = await place.ask()
    await place.told.allow(len(WORDS))
    await all_of(place.following(), question)
    updates = await all_of(place.following(), question)
    assert [type(update) for update in updates] == [Grown, QuestionEnded]
    assert text_of(updates) == TEXT


async def test_a_follower_without_the_backplane_is_told_the_end_by_looking(place: Place) -> None:
    question = await place.ask()
    await place.told.allow(len(WORDS))
    updates = await all_of(place.following(Away()), question)
    assert text_of(updates) == TEXT
    assert isinstance(updates[-1], QuestionEnded)


async def test_a_cancelled_question_ends_without_its_text_being_void(place: Place) -> None:
    question = await place.ask()
    await place.told.allow(3)
    updates: list[Update] = []
    async with asyncio.timeout(20), aclosing(place.following().updates(question, ANN)) as following:
        async for update in following:
            updates.append(update)
            if text_of(updates) == "".join(WORDS[:3]):
                await place.service.cancel("ann", question.id)
    last = updates[-1]
    assert isinstance(last, QuestionEnded)
    assert (last.question.status, last.question.error_code) == ("cancelled", "cancelled")
    assert text_of(updates) == "".join(WORDS[:3])


@pytest.mark.parametrize("why", [CloseReason.SHUTDOWN, CloseReason.REVOKED, CloseReason.TOKEN_EXPIRED])
async def test_who_may_hear_no_more_is_told_why_after_some_idling(place: Place, why: CloseReason) -> None:
    question = await place.ask()
    updates: list[Update] = []
    who = Identity("ann", EVERY_SCOPE, time.time() + 1.2 if why is CloseReason.TOKEN_EXPIRED else None, 1.0)
    async with asyncio.timeout(20), aclosing(place.following().updates(question, who)) as following:
        async for update in following:
            updates.append(update)
            if isinstance(update, Idle) and why is CloseReason.SHUTDOWN:
                place.draining = True
            if isinstance(update, Idle) and why is CloseReason.REVOKED:
                place.kicked.learn("ann", int(time.time()) + 1)
    assert updates[-1] == Interrupted(why)
    assert isinstance(updates[0], Idle)
    # The question goes on without its follower.
    found = await place.service.get("ann", question.id)
    assert found is not None
    assert found.is_open


@pytest.mark.parametrize("heard", ["updates", "heard"])
async def test_a_node_that_stops_interrupts_an_answer_that_is_flowing(place: Place, heard: str) -> None:
    question = await place.ask()
    following = place.following()
    all_heard: AsyncGenerator[object, None] = getattr(following, heard)(question, ANN)

    async def flow() -> None:
        # Never half a second of silence.
        for _ in WORDS[:-1]:
            await place.told.allow(1)
            await asyncio.sleep(0.1)

    flowing = asyncio.create_task(flow())
    deltas, said = 0, []
    async with asyncio.timeout(20), aclosing(all_heard):
        async for each in all_heard:
            said.append(each)
            if isinstance(each, Grown) or getattr(each, "name", "") == "answer.delta":
                deltas += 1
                if deltas == 3:
                    place.draining = True
    assert said[-1] == Interrupted(CloseReason.SHUTDOWN)
    # With the one after which the node began to stop, and perhaps the next.
    assert deltas <= 4
    assert not flowing.done()
    flowing.cancel()


async def test_leaving_in_the_middle_stops_nothing_and_another_follower_goes_on(place: Place) -> None:
    question = await place.ask()
    await place.told.allow(2)
    async with asyncio.timeout(20), aclosing(place.following().updates(question, ANN)) as following:
        async for update in following:
            if isinstance(update, Grown):
                break
    await place.told.allow(len(WORDS))
    assert text_of(await all_of(place.following(), question)) == TEXT


FOLLOWERS = 300


@dataclass(frozen=True)
class CountedStore(QuestionStore):
    """Counts the statements that look at questions."""

    looks: list[str] = field(default_factory=list)
    over: list[str] = field(default_factory=list)

    async def one(self, question_id: str) -> Question | None:
        self.looks.append(question_id)
        return await super().one(question_id)

    async def open_among(self, ids: Collection[str]) -> frozenset[str]:
        self.looks.append(f"{len(ids)} together")
        still_open = await super().open_among(ids)
        self.over.extend(set(ids) - still_open)
        return still_open


@pytest.mark.parametrize("heard", [True, False])
async def test_the_followers_of_one_question_look_at_it_together(
    nodes: Nodes, place: Place, heard: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pushsse.questions.following._LOOK_S", 0.5)
    monkeypatch.setattr("pushsse.questions.following._TICK_S", 0.1)
    store = place.service.life.store = CountedStore(nodes.database)
    following = place.following() if heard else place.following(Away())
    question = await place.ask()
    idle: asyncio.Queue[None] = asyncio.Queue()

    async def follow() -> list[Update]:
        updates: list[Update] = []
        async with aclosing(following.updates(question, ANN)) as followed:
            async for update in followed:
                updates.append(update)
                if isinstance(update, Idle):
                    idle.put_nowait(None)
        return updates

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        followers = [group.create_task(follow()) for _ in range(FOLLOWERS)]
        for _ in range(FOLLOWERS):
            await idle.get()
        # They came together, and so did their first looks.
        assert len(store.looks) < 10
        before, began = len(store.looks), time.monotonic()
        while time.monotonic() < began + 1.5:
            await idle.get()
        assert len(store.looks) - before <= 4
        before = len(store.looks)
        await place.told.allow(len(WORDS))
    # Nor does its end cost one each.
    assert len(store.looks) - before < 20
    for follower in followers:
        assert text_of(follower.result()) == TEXT
        assert isinstance(follower.result()[-1], QuestionEnded)


@pytest.mark.parametrize("heard", [True, False])
async def test_the_followers_of_many_questions_look_at_them_together(
    nodes: Nodes, place: Place, heard: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pushsse.questions.following._LOOK_S", 0.4)
    monkeypatch.setattr("pushsse.questions.following._TICK_S", 0.1)
    store = place.service.life.store = CountedStore(nodes.database)
    following = place.following() if heard else place.following(Away())
    people = [f"person{number}" for number in range(100)]
    asked = [await place.service.ask(user, Asking("say all")) for user in people]
    idle: Counter[str] = Counter()

    async def follow(question: Question) -> list[Update]:
        updates: list[Update] = []
        who = Identity(question.user, EVERY_SCOPE)
        async with aclosing(following.updates(question, who)) as followed:
            async for update in followed:
                updates.append(update)
                idle[question.id] += isinstance(update, Idle)
        return updates

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        followers = [group.create_task(follow(question)) for question in asked]
        await eventually(lambda: len(idle) == len(asked) and min(idle.values()) > 5)
        before, ticks = len(store.looks), idle.total()
        await eventually(lambda: idle.total() > ticks + 20 * len(asked))
        # Each was idle twenty times, and so was looked at at least four times: two statements for all.
        assert len(store.looks) - before < len(asked)
        # What only looking finds, because nobody tells of it.
        async with nodes.database.session():
            await QuestionRow.filter(id__in=[asked[0].id, asked[70].id]).update(
                status="failed", error_code="x"
            )
        await eventually(lambda: followers[0].done() and followers[70].done())
        assert not followers[1].done()
        await place.told.allow(len(WORDS))
    # Whoever reads next reads all of what isn't open any more.
    assert max(Counter(store.over).values()) == 1
    for number, follower in enumerate(followers):
        last = follower.result()[-1]
        assert isinstance(last, QuestionEnded)
        if number in (0, 70):
            assert (last.question.status, last.question.error_code) == ("failed", "x")
        else:
            assert text_of(follower.result()) == TEXT


async def test_whoever_comes_after_a_question_was_asked_anew_is_not_told_its_old_end(place: Place) -> None:
    following = place.following()
    question = await place.ask()
    async with asyncio.timeout(20), aclosing(following.updates(question, ANN)) as early:
        await anext(early)
        await place.told.allow(len(WORDS))
        async for update in early:
            if isinstance(update, QuestionEnded):
                break
        # This one hasn't left: what was found for it is still known.
        place.told.may_say = 0
        assert await place.service.regenerate("ann", question.id) is not None
        late = asyncio.create_task(all_of(following, question))
        await place.told.allow(len(WORDS))
        updates = await late
    assert [type(update) for update in updates].count(QuestionEnded) == 1
    assert len([update for update in updates if isinstance(update, Grown)]) > 0
    last = updates[-1]
    assert isinstance(last, QuestionEnded)
    assert last.question.regenerations == 1


async def test_a_follower_that_leaves_while_it_looks_keeps_nobody_from_the_end(
    nodes: Nodes, place: Place
) -> None:
    stuck, looking = asyncio.Event(), asyncio.Event()

    class SlowStore(QuestionStore):
        async def one(self, question_id: str) -> Question | None:
            if not looking.is_set():
                looking.set()
                await stuck.wait()
            return await super().one(question_id)

    following = place.following()
    question = await place.ask()
    place.service.life.store = SlowStore(nodes.database)
    leaving = asyncio.create_task(all_of(following, question))
    await asyncio.wait_for(looking.wait(), 10)
    staying = asyncio.create_task(all_of(following, question))
    await place.told.allow(len(WORDS))
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    assert text_of(await staying) == TEXT
