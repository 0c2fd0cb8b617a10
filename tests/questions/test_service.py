"""The life of a question, on SQLite and PostgreSQL, with one node and with several."""

import asyncio
import dataclasses
import time
from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime
from typing import Any, cast

import msgspec
import pytest
from ulid import ULID

from pushsse.backplane import Append, Backplane, NoticeListener, NoticeTopic, Receipt
from pushsse.backplane.memory import MemoryBackplane
from pushsse.database import Statement
from pushsse.errors import BackplaneUnavailable, InvalidInput, KafkaUnavailable, Overloaded
from pushsse.node import Interruptible
from pushsse.questions import (
    CANCELLED,
    Answered,
    BeingTaken,
    By,
    Lost,
    Question,
    StatusPart,
    TooManyQuestions,
    Unanswered,
    UnknownConversation,
)
from pushsse.questions.answerers import Delta, HandOver, Piece, SentOff
from pushsse.questions.conversations import ConversationStore
from pushsse.questions.life import QuestionPace
from pushsse.questions.service import MOST_ATTEMPTS, Asking, Questions, assemble_questions
from pushsse.questions.store import ANY_NUMBER, KeyTaken, NoRoom, QuestionStore, Unended
from tests.questions.conftest import FAST, Nodes, Scripted, data, grown_text, running
from tests.waiting import eventually

pytestmark = pytest.mark.anyio
BOT = By("bot", "test")


async def says_hello(question: Question) -> AsyncGenerator[Piece, None]:
    yield Delta("Hello, ")
    yield Delta(question.user)
    yield Answered(BOT)


async def says_nothing(question: Question) -> AsyncGenerator[Piece, None]:
    await asyncio.Event().wait()
    yield Answered(BOT)


class Unheard:
    """A backplane whose notices this node's questions don't hear: it is another node's."""

    def __init__(self, backplane: MemoryBackplane) -> None:
        self._backplane = backplane

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backplane, name)

    def hear_notices(self, topic: NoticeTopic, listener: NoticeListener) -> None:
        pass


async def waits_for_ever(question: Question) -> AsyncGenerator[Piece, None]:
    yield Delta("I am ")
    await asyncio.Event().wait()
    yield Answered(BOT)


async def ended(nodes: Nodes, question: Question) -> Question:
    found: list[Question] = []

    async def there() -> bool:
        async with asyncio.timeout(5):
            now = await nodes.node(Scripted(says_hello)).get(question.user, question.id)
        assert now is not None
        found[:] = [now]
        return not now.is_open

    await eventually(there)
    return found[0]


async def test_a_question_is_answered_and_every_step_is_told(nodes: Nodes) -> None:
    node = nodes.node(Scripted(says_hello))
    async with nodes.running(node):
        asked = await node.ask("ann", Asking("who am I?"))
        assert asked.status == "pending"
        await nodes.until_told("ann", "answer")
    told = await nodes.told("ann")
    assert [(name, found.get("status")) for name, found in told] == [
        ("question", "pending"),
        ("question", "answering"),
        ("question", "answered"),
        ("answer", None),
    ]
    assert told[0][1] == {
        "id": asked.id,
        "conversation": asked.conversation,
        "text": "who am I?",
        "status": "pending",
    }
    assert told[-1][1] == {
        "question": asked.id,
        "text": "Hello, ann",
        "by": {"kind": "bot", "name": "test"},
        "links": [],
        "suggestions": [],
        "truncated": False,
        "parts": [],
    }
    logged = await nodes.logged("ann")
    assert all(entry.subject == asked.id and not entry.switchable for entry in logged)
    now = await node.get("ann", asked.id)
    assert now is not None
    assert (now.status, now.answer, now.by) == ("answered", "Hello, ann", BOT)


async def test_a_question_that_is_answered_at_once_gets_both_its_first_steps_into_the_log_together(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted = Scripted(waits_for_ever)
    node, appended = nodes.node(scripted), []
    publish = nodes.backplane.publish_nowait

    def noted(appends: Sequence[Append]) -> Receipt | None:
        appended.append([data(draft.publication)["status"] for one in appends for draft in one.drafts])
        return publish(appends)

    async with nodes.running(node):
        await node.ask("bo", Asking("who am I?"))
        await eventually(lambda: bool(scripted.asked))
        monkeypatch.setattr(nodes.backplane, "publish_nowait", noted)
        for _ in range(node.answering.queue.most_of_one + 1):
            asked = await node.ask("ann", Asking("who am I?"))
            assert asked.status == "pending"
    # The last one has to wait.
    assert appended == [["pending", "answering"]] * node.answering.queue.most_of_one + [["pending"]]
    listed = [question.status for question in await node.page("ann", limit=9)]
    assert listed == ["pending"] + ["answering"] * node.answering.queue.most_of_one


async def test_a_question_that_cant_be_stored_takes_nobodys_turn(nodes: Nodes) -> None:
    node = nodes.node(Scripted(says_hello))
    async with nodes.running(node):
        await node.ask("bo", Asking("mine", "bos"))
        for _ in range(node.answering.queue.most_of_one + 1):
            with pytest.raises(UnknownConversation):
                await node.ask("ann", Asking("mine, too", "bos"))
        await node.ask("ann", Asking("who am I?"))
        await nodes.until_told("ann", "answer")


async def test_a_question_that_isnt_stored_leaves_no_conversation(nodes: Nodes) -> None:
    store, now = QuestionStore(nodes.database), datetime.now(UTC)

    async def ask(conversation: str, key: str, most: Unended = ANY_NUMBER) -> str:
        question = Question(
            id=str(ULID()),
            user="ann",
            conversation=conversation,
            text=conversation,
            status="pending",
            asked_at=now,
            updated_at=now,
            deadline_at=now,
        )
        await store.create(question, key=key, owner="one", lease_s=1, announce_s=1, most=most)
        return conversation

    asked = await asyncio.gather(*(ask(f"c{number}", "k") for number in range(4)), return_exceptions=True)
    [first] = [each for each in asked if isinstance(each, str)]
    assert [type(each) for each in asked if each != first] == [KeyTaken] * 3
    with pytest.raises(NoRoom) as refused:
        await ask("c9", "k9", Unended(1, 100))
    assert refused.value.unended == (1, 0)
    assert [
        each.id for each in await ConversationStore(nodes.database).page("ann", limit=9, before=None)
    ] == [first]


async def test_what_is_due_for_many_questions_at_a_time_is_stored_for_all_of_them(nodes: Nodes) -> None:
    node = nodes.node(Scripted(waits_for_ever))
    asked = [(await node.ask(f"person{number}", Asking("?"))).id for number in range(130)]
    await node.life.store_announced()
    due = Statement("SELECT count(*) FROM pushsse_question WHERE announce_by IS NOT NULL")
    assert await nodes.database.rows(int, due) == [0]
    await node.life.give_up(asked, node="one")
    assert [question.id for question in await node.life.store.abandoned(200)] == asked


async def test_a_question_is_nobody_elses(nodes: Nodes) -> None:
    node = nodes.node(Scripted(waits_for_ever))
    asked = await node.ask("ann", Asking("mine"))
    assert await node.get("bo", asked.id) is None
    assert await node.cancel("bo", asked.id) is None
    assert await node.page("bo", limit=10) == []
    assert await nodes.told("bo") == []


async def test_pages_are_newest_first(nodes: Nodes) -> None:
    node = nodes.node(Scripted(waits_for_ever))
    ids = [(await node.ask("ann", Asking(f"number {number}"))).id for number in range(5)]
    first = await node.page("ann", limit=2)
    assert [question.id for question in first] == [ids[4], ids[3]]
    rest = await node.page("ann", limit=10, before=ids[3])
    assert [question.id for question in rest] == [ids[2], ids[1], ids[0]]


async def test_a_page_of_one_conversation_has_its_questions_alone(nodes: Nodes) -> None:
    node = nodes.node(Scripted(waits_for_ever))
    one = await node.ask("ann", Asking("here", "c-1"))
    await node.ask("ann", Asking("there", "c-2"))
    two = await node.ask("ann", Asking("here again", "c-1"))
    found = await node.page("ann", limit=10, conversation="c-1")
    assert [question.id for question in found] == [two.id, one.id]
    assert await node.page("bo", limit=10, conversation="c-1") == []


async def test_the_same_key_makes_one_question_also_when_asked_at_once(nodes: Nodes) -> None:
    node, other = nodes.node(Scripted(says_hello)), nodes.node(Scripted(says_hello), name="two")
    asking = Asking("once only")
    asked = await asyncio.gather(
        *(one.ask("ann", asking, idempotency_key="k") for one in (node, other, node, other, node)),
        return_exceptions=True,
    )
    [made] = await node.page("ann", limit=10)
    # Who came while it was being taken has to come again.
    assert {each.id if isinstance(each, Question) else type(each) for each in asked} <= {made.id, BeingTaken}
    assert (await node.ask("ann", asking, idempotency_key="k")).id == made.id
    assert (await node.ask("bo", asking, idempotency_key="k")).id != made.id


async def test_another_text_with_the_same_key_is_refused(nodes: Nodes) -> None:
    node = nodes.node(Scripted(says_hello))
    await node.ask("ann", Asking("one"), idempotency_key="k")
    with pytest.raises(InvalidInput, match="another question"):
        await node.ask("ann", Asking("two"), idempotency_key="k")


async def test_cancelling_stops_the_answer_and_says_so(nodes: Nodes) -> None:
    node = nodes.node(Scripted(waits_for_ever))
    async with nodes.running(node):
        asked = await node.ask("ann", Asking("never"))
        await nodes.until_told("ann", "question", 2)
        cancelled = await node.cancel("ann", asked.id)
        assert cancelled is not None
        assert cancelled.status == "cancelled"
        assert await node.cancel("ann", asked.id) == cancelled
    errors = await nodes.until_told("ann", "answer.error")
    assert [error["code"] for error in errors] == ["cancelled"]
    assert node.answering.leased == {}


async def test_cancelling_on_another_node_stops_the_answer_here(nodes: Nodes) -> None:
    node, other = nodes.node(Scripted(waits_for_ever)), nodes.node(Scripted(says_hello), name="two")
    async with nodes.running(node):
        asked = await node.ask("ann", Asking("never"))
        await nodes.until_told("ann", "question", 2)
        await other.cancel("ann", asked.id)

        await eventually(lambda: not node.answering.leased)


async def test_cancelling_on_another_node_closes_the_answerer_here_at_once(nodes: Nodes) -> None:
    closed = asyncio.Event()

    async def stuck(question: Question) -> AsyncGenerator[Piece, None]:
        try:
            yield Delta("I am ")
            await asyncio.Event().wait()
        finally:
            closed.set()

    # No sweep tells it: only the notice does.
    pace = dataclasses.replace(FAST, sweep_s=600.0, store_s=600.0, lease_s=600.0)
    node = nodes.node(Scripted(stuck), pace=pace)
    other = assemble_questions(
        QuestionStore(nodes.database),
        cast(Backplane, Unheard(nodes.backplane)),
        Scripted(says_hello),
        node="two",
        timeout_s=30,
        metrics=nodes.metrics,
    )
    hearing = asyncio.create_task(nodes.hear("ann"))
    async with nodes.running(node):
        asked = await node.ask("ann", Asking("never"))
        await eventually(lambda: nodes.live)
        cancelled = await other.cancel("ann", asked.id)
        async with asyncio.timeout(2):
            await closed.wait()
    hearing.cancel()
    await asyncio.gather(hearing, return_exceptions=True)
    assert cancelled is not None
    # What it had said is kept.
    assert (cancelled.status, cancelled.answer) == ("cancelled", "I am ")


@dataclasses.dataclass
class Hearing(Scripted):
    """An answerer that is told to stop."""

    stops: list[tuple[str, str]] = dataclasses.field(default_factory=list)

    async def stop(self, question: Question, code: str) -> None:
        # It may be told twice: by whoever ends the question, and by the node that finds its lease gone.
        if (question.id, code) not in self.stops:
            self.stops.append((question.id, code))


async def being_sent(node: Questions, answerer: Hearing, text: str = "never") -> Question:
    """A question whose record is being sent, as far as its answerer says."""
    asked = await node.ask("ann", Asking(text, "c-1"))
    await eventually(lambda: asked.id in answerer.asked)
    return asked


async def test_whoever_answers_is_told_of_a_cancel_or_an_expiry_while_the_question_is_sent(
    nodes: Nodes,
) -> None:
    answerer = Hearing(says_nothing)
    node, soon = nodes.node(answerer), nodes.node(answerer, name="soon", timeout_s=0.1)
    async with nodes.running(node):
        asked = await being_sent(node, answerer)
        await node.cancel("ann", asked.id)
        await eventually(lambda: answerer.stops == [(asked.id, "cancelled")])
    async with nodes.running(soon):
        late = await being_sent(soon, answerer)
        await eventually(lambda: (late.id, "expired") in answerer.stops)


async def test_the_node_that_sends_a_question_tells_behind_it_that_it_was_cancelled_elsewhere(
    nodes: Nodes,
) -> None:
    answerer = Hearing(says_nothing)
    node, other = nodes.node(answerer), nodes.node(Scripted(says_hello), name="two")
    async with nodes.running(node):
        asked = await being_sent(node, answerer)
        await other.cancel("ann", asked.id)
        await eventually(lambda: answerer.stops == [(asked.id, "cancelled")])


async def test_a_question_that_ended_while_it_was_sent_is_stopped_once_it_is(nodes: Nodes) -> None:
    async def slow(question: Question) -> AsyncGenerator[Piece, None]:
        # Behind the back of the node: as if no notice came.
        await node.life.store.end(question.id, CANCELLED, attempt=None, announce_s=60)
        yield SentOff()

    answerer = Hearing(slow)
    node = nodes.node(answerer, pace=dataclasses.replace(FAST, sweep_s=600.0))
    async with nodes.running(node):
        asked = await being_sent(node, answerer)
        await eventually(lambda: answerer.stops == [(asked.id, "cancelled")])


async def test_whoever_answers_is_told_of_a_handover_but_of_its_own(nodes: Nodes) -> None:
    async def hands_over(question: Question) -> AsyncGenerator[Piece, None]:
        if question.text != "hand over":
            await asyncio.Event().wait()
        yield HandOver("why")

    answerer = Hearing(hands_over)
    node = nodes.node(answerer)
    async with nodes.running(node):
        first = await being_sent(node, answerer)
        await being_sent(node, answerer, "hand over")
        await eventually(lambda: answerer.stops == [(first.id, "handed_over")])
        await node.cancel("ann", first.id)
        other = await node.ask("bo", Asking("never"))
        await eventually(lambda: other.id in answerer.asked)
        assert await node.hand_over("bo", other.conversation, "") is not None
        await eventually(lambda: len(answerer.stops) > 1)
    assert answerer.stops == [(first.id, "handed_over"), (other.id, "handed_over")]


async def test_whoever_answers_is_told_that_its_answer_is_too_long(nodes: Nodes) -> None:
    async def sends(question: Question) -> AsyncGenerator[Piece, None]:
        yield SentOff()

    answerer = Hearing(sends)
    node = nodes.node(answerer)
    async with nodes.running(node):
        asked = await being_sent(node, answerer)
        await eventually(lambda: not node.answering.leased)
        question = await node.get("ann", asked.id)
        assert question is not None
        assert await node.life.add(question, [Delta("and " * 60_000)], 1)
        await eventually(lambda: answerer.stops == [(asked.id, "too_long")])


async def test_an_answer_whose_deadline_has_just_moved_isnt_ended(nodes: Nodes) -> None:
    node = nodes.node(Scripted(says_hello), timeout_s=0.0)
    begun = await node.life.begin(await node.ask("ann", Asking("who?")))
    overdue = await node.life.store.overdue(10)
    assert [each.id for each in overdue] == [begun.id]
    assert await node.life.add(begun, [Delta("so ")], 1)
    await node.life.expire(overdue)
    now = await node.get("ann", begun.id)
    assert now is not None
    assert (now.status, now.answer) == ("answering", "so ")


async def test_leases_are_renewed_while_the_backplane_hangs(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = 0

    async def hangs(*arguments: object) -> None:
        nonlocal tries
        tries += 1
        await asyncio.Event().wait()

    # A try takes half of a lease.
    monkeypatch.setattr("pushsse.questions.life._PUBLISH_S", 0.3)
    dead = nodes.node(Scripted(says_hello), timeout_s=0.0, name="dead")
    overdue = [await dead.life.begin(await dead.ask("bo", Asking(f"{number}"))) for number in range(4)]
    answerer = Scripted(says_nothing)
    node = nodes.node(answerer)
    asked = await node.ask("ann", Asking("never"))
    for name in ("publish", "publish_to", "notify", "so_far", "end_answers"):
        monkeypatch.setattr(nodes.backplane, name, hangs)
    async with nodes.running(node):
        for each in overdue:
            assert (await ended(nodes, each)).status == "expired"
        tried = tries
        # Each sweep gives up at the first that can't be published, after what it takes over.
        await eventually(lambda: tries > tried + 3)
        assert node.answering.leased == {asked.id: 1}
    assert answerer.attempts == [1]


async def test_an_answer_that_takes_too_long_expires(nodes: Nodes) -> None:
    node = nodes.node(Scripted(says_nothing), timeout_s=0.4)
    async with nodes.running(node):
        asked = await node.ask("ann", Asking("never"))
        errors = await nodes.until_told("ann", "answer.error")
    assert errors == [{"question": asked.id, "code": "expired", "detail": "no answer came in time"}]
    assert (await ended(nodes, asked)).status == "expired"


async def test_an_answer_that_stops_growing_is_ended_and_each_piece_gives_it_more_time(nodes: Nodes) -> None:
    gaps: list[float] = []

    async def stalls(question: Question) -> AsyncGenerator[Piece, None]:
        began = time.monotonic()
        for word in ("so ", "far"):
            await asyncio.sleep(0.4)
            yield Delta(word)
        # Also what isn't text: whoever says something is alive.
        for _ in range(3):
            await asyncio.sleep(0.4)
            yield StatusPart("looking")
        gaps.append(time.monotonic() - began)
        await asyncio.Event().wait()

    # Its whole time is shorter than the answer takes, and so is the time without a piece.
    pace = dataclasses.replace(FAST, stall_s=1.0)
    node = nodes.node(Scripted(stalls), timeout_s=1.5, pace=pace)
    async with nodes.running(node):
        asked = await node.ask("ann", Asking("never"))
        errors = await nodes.until_told("ann", "answer.error")
    assert [error["code"] for error in errors] == ["stalled"]
    assert gaps[0] > 1.5
    found = await ended(nodes, asked)
    assert (found.status, found.error_code, found.answer) == ("expired", "stalled", "so far")


async def test_an_answer_that_comes_steadily_ends_in_time_too(nodes: Nodes) -> None:
    closed = asyncio.Event()

    async def trickles(question: Question) -> AsyncGenerator[Piece, None]:
        try:
            while True:
                yield StatusPart("thinking") if question.text == "think" else Delta(".")
                await asyncio.sleep(0.05)
        finally:
            closed.set()

    node = nodes.node(Scripted(trickles), pace=dataclasses.replace(FAST, stall_s=5.0, longest_s=0.5))
    async with nodes.running(node):
        for number, text in enumerate(("talk", "think"), 1):
            closed.clear()
            asked = await node.ask("ann", Asking(text))
            errors = await nodes.until_told("ann", "answer.error", number)
            assert errors[-1]["code"] == "endless"
            assert closed.is_set()
            found = await ended(nodes, asked)
            assert (found.status, found.error_code) == ("expired", "endless")
            # What has come of it is kept.
            assert found.answer.startswith(".") is (text == "talk")


async def test_an_answer_of_a_node_that_died_stalls_on_any_other(nodes: Nodes) -> None:
    pace = dataclasses.replace(FAST, stall_s=0.2)
    dead, other = (
        nodes.node(Scripted(waits_for_ever), pace=pace),
        nodes.node(Scripted(says_hello), name="two"),
    )
    asked = await dead.ask("ann", Asking("who?"))
    begun = await dead.life.begin(asked)
    # Its answer comes from elsewhere, and nobody takes it over.
    await dead.life.sent_off(begun)
    assert await dead.life.add(begun, [Delta("so "), StatusPart("looking")], 1)
    async with nodes.running(other):
        errors = await nodes.until_told("ann", "answer.error")
    assert [error["code"] for error in errors] == ["stalled"]


async def test_a_question_ends_where_its_answerer_cant_be_reached(nodes: Nodes) -> None:
    async def away(question: Question) -> AsyncGenerator[Piece, None]:
        if question.text == "half":
            yield Delta("half")
        raise KafkaUnavailable("away")

    node = nodes.node(Scripted(away))
    async with nodes.running(node):
        for number, text in enumerate(("nothing", "half"), 1):
            asked = await node.ask("ann", Asking(text))
            errors = await nodes.until_told("ann", "answer.error", number)
            assert errors[-1]["code"] == "answerer_unavailable"
            assert (await ended(nodes, asked)).status == "failed"


async def test_a_question_of_a_dead_node_expires_on_any_other(nodes: Nodes) -> None:
    dead = nodes.node(Scripted(says_hello), timeout_s=0.05, name="dead")
    await dead.ask("ann", Asking("nobody answers"))
    # Two sweep at once, and it ends once.
    one, two = nodes.node(Scripted(says_hello)), nodes.node(Scripted(says_hello), name="two")
    async with nodes.running(one), nodes.running(two):
        await nodes.until_told("ann", "answer.error")
    assert [name for name, _ in await nodes.told("ann")] == ["question", "question", "answer.error"]
    assert nodes.metrics.questions["expired"] == 1


async def test_another_node_takes_over_when_the_answering_one_died(nodes: Nodes) -> None:
    stuck = Scripted(waits_for_ever)
    dead, heir = nodes.node(stuck, name="dead"), nodes.node(Scripted(says_hello), name="heir")
    # Only its answering runs, so nothing renews its lease: as if its process hung.
    async with nodes.running(heir):
        task = asyncio.create_task(dead.answering.run())
        asked = await dead.ask("ann", Asking("who answers?"))
        await nodes.until_told("ann", "question", 2)
        answers = await nodes.until_told("ann", "answer")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert [answer["text"] for answer in answers] == ["Hello, ann"]
    assert stuck.asked == [asked.id]
    assert (await ended(nodes, asked)).attempt == 2


async def test_a_stopping_node_hands_its_questions_over_at_once(nodes: Nodes) -> None:
    slow = dataclasses.replace(FAST, lease_s=60.0)
    first = nodes.node(Scripted(waits_for_ever), pace=slow)
    async with nodes.running(first):
        await first.ask("ann", Asking("who answers?"))
        await nodes.until_told("ann", "question", 2)
    heir = nodes.node(Scripted(says_hello), name="heir", pace=slow)
    async with nodes.running(heir):
        await nodes.until_told("ann", "answer")


async def test_a_node_that_was_paused_gives_up_no_lease_that_another_one_has_by_now(nodes: Nodes) -> None:
    paused, heir = (nodes.node(Scripted(waits_for_ever), name=name) for name in ("paused", "heir"))
    store = QuestionStore(nodes.database)
    task = asyncio.create_task(paused.answering.run())
    asked = await paused.ask("ann", Asking("who answers?"))
    await nodes.until_told("ann", "question", 2)
    await store.lease([asked.id], owner="paused", lease_s=-1.0)
    await heir.sweeper.sweep()
    assert heir.answering.leased == {asked.id: 2}
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert await store.abandoned(10) == []


async def test_a_question_that_is_taken_over_while_it_waits_here_has_one_turn(nodes: Nodes) -> None:
    answerer = Scripted(waits_for_ever)
    node = nodes.node(answerer)
    asked = await node.ask("ann", Asking("how often?"))
    await QuestionStore(nodes.database).lease([asked.id], owner="one", lease_s=-1.0)
    taken = await node.life.take_over(asked, node="one")
    assert taken is not None
    assert node.answering.put(taken)
    async with nodes.running(node):
        after = await node.ask("ann", Asking("and this?"))
        await eventually(lambda: {asked.id, after.id} <= set(answerer.asked))
        assert len(answerer.asked) == 2
        assert node.answering.leased == {asked.id: 2, after.id: 1}


async def test_a_question_that_no_node_survives_is_given_up(nodes: Nodes) -> None:
    question = await nodes.node(Scripted(says_hello), name="dead").ask("ann", Asking("poison"))
    sweeper = nodes.node(Scripted(waits_for_ever), pace=dataclasses.replace(FAST, lease_s=0.0)).sweeper
    for _ in range(MOST_ATTEMPTS + 2):
        await asyncio.sleep(0)
        await QuestionStore(nodes.database).lease([question.id], owner="dead", lease_s=-1.0)
        await sweeper.sweep()
    errors = await nodes.until_told("ann", "answer.error")
    assert [error["code"] for error in errors] == ["gave_up"]


async def test_only_one_end_when_all_race(nodes: Nodes) -> None:
    node = nodes.node(Scripted(says_hello))
    asked = await node.ask("ann", Asking("race"))
    endings: list[Answered | Unanswered] = [
        Answered(BOT, "yes"),
        Unanswered("failed", "no", "no"),
        Unanswered("expired", "late", "late"),
    ]
    won = await asyncio.gather(*(node.life.end(asked.id, ending) for ending in endings * 3))
    assert won.count(True) == 1
    names = [name for name, _ in await nodes.told("ann")]
    assert len([name for name in names if name.startswith("answer")]) == 1


async def test_a_failing_answerer_fails_its_question_alone(nodes: Nodes) -> None:
    async def breaks(question: Question) -> AsyncGenerator[Piece, None]:
        yield Delta("half")
        if question.text == "break":
            raise ValueError("a bug")
        if question.text == "stop":
            return
        yield Answered(BOT)

    node = nodes.node(Scripted(breaks))
    async with nodes.running(node):
        broken, silent = await node.ask("ann", Asking("break")), await node.ask("ann", Asking("stop"))
        await node.ask("ann", Asking("fine"))
        errors = await nodes.until_told("ann", "answer.error", 2)
        await nodes.until_told("ann", "answer")
    assert {error["question"] for error in errors} == {broken.id, silent.id}
    assert {error["code"] for error in errors} == {"answerer_failed"}
    assert "bug" not in str(errors)


async def test_one_person_has_a_limit_and_others_dont_feel_it(nodes: Nodes) -> None:
    async def slow_for_ann(question: Question) -> AsyncGenerator[Piece, None]:
        if question.user == "ann":
            await asyncio.Event().wait()
        yield Answered(BOT, "quick")

    node = nodes.node(Scripted(slow_for_ann))
    async with nodes.running(node):
        for number in range(node.most_open):
            await node.ask("ann", Asking(f"number {number}"))
        with pytest.raises(TooManyQuestions):
            await node.ask("ann", Asking("one too many"))
        await node.ask("bo", Asking("me too"))
        await nodes.until_told("bo", "answer")


async def test_what_waits_for_people_has_a_limit_of_its_own(nodes: Nodes) -> None:
    node = nodes.node(Scripted(waits_for_ever))
    await node.ask("ann", Asking("first", "c"))
    assert await node.hand_over("ann", "c", "") is not None
    for number in range(1, node.most_handed_over):
        asked = await node.ask("ann", Asking(f"number {number}", "c"))
        assert asked.status == "handed_over"
        if number == 2 * node.most_open:
            elsewhere = await node.ask("ann", Asking("a question to the answerer"))
            assert elsewhere.status == "pending"
    with pytest.raises(TooManyQuestions, match="wait for people"):
        await node.ask("ann", Asking("one too many", "c"))
    await node.cancel("ann", asked.id)
    await node.ask("ann", Asking("fits again", "c"))


async def test_a_full_node_says_that_it_is_overloaded(nodes: Nodes) -> None:
    node = nodes.node(Scripted(waits_for_ever))
    node.answering.queue.most_waiting = 1
    await node.ask("ann", Asking("waits"))
    with pytest.raises(Overloaded):
        await node.ask("bo", Asking("no room"))


async def test_deltas_reconstruct_the_text_for_who_heard_all_and_for_who_joined(nodes: Nodes) -> None:
    words = [f"wort{number} 事件😀 " for number in range(60)]

    async def talks(question: Question) -> AsyncGenerator[Piece, None]:
        for word in words:
            yield Delta(word)
            await asyncio.sleep(0.01)
        yield Answered(BOT)

    node = nodes.node(Scripted(talks))
    hearing = asyncio.create_task(nodes.hear("ann"))
    async with nodes.running(node):
        asked = await node.ask("ann", Asking("talk"))

        await eventually(lambda: len(nodes.live) > 3)
        joined = (await node.growing("ann"))[asked.id]
        answers = await nodes.until_told("ann", "answer")
    hearing.cancel()
    await asyncio.gather(hearing, return_exceptions=True)
    deltas = [data(publication) for publication in nodes.live]
    assert grown_text(deltas) == answers[0]["text"] == "".join(words)
    assert [delta["seq"] for delta in deltas] == list(range(1, len(deltas) + 1))
    assert len(deltas) < len(words)
    assert joined.attempt == 1
    assert joined.text == grown_text(deltas[: joined.seq])
    assert joined.text + "".join(str(delta["text"]) for delta in deltas[joined.seq :]) == "".join(words)
    assert await node.growing("ann") == {}


async def test_a_long_answer_is_cut_in_the_event_and_whole_in_the_call(nodes: Nodes) -> None:
    text = "事件" * 8_000

    async def long(question: Question) -> AsyncGenerator[Piece, None]:
        yield Delta(text)
        yield Answered(BOT)

    node = nodes.node(Scripted(long))
    async with nodes.running(node):
        asked = await node.ask("ann", Asking("all of it"))
        answer = (await nodes.until_told("ann", "answer"))[0]
    assert answer["truncated"] is True
    cut = str(answer["text"])
    assert text.startswith(cut)
    assert 32 * 1024 - 3 < len(cut.encode()) <= 32 * 1024
    whole = await node.get("ann", asked.id)
    assert whole is not None
    assert whole.answer == text


async def test_a_text_that_json_blows_up_still_fits_a_frame(nodes: Nodes) -> None:
    node = nodes.node(Scripted(says_hello))
    asked = await node.ask("ann", Asking('"' * 4_000))
    assert await node.life.end(asked.id, Answered(BOT, '\x01"\n' * 30_000))
    answer = (await nodes.until_told("ann", "answer"))[0]
    assert answer["truncated"] is True


async def test_an_endless_answer_is_ended(nodes: Nodes) -> None:
    async def endless(question: Question) -> AsyncGenerator[Piece, None]:
        while True:
            yield Delta("and " * 10_000)

    node = nodes.node(Scripted(endless))
    async with nodes.running(node):
        await node.ask("ann", Asking("go on"))
        errors = await nodes.until_told("ann", "answer.error")
    assert errors[0]["code"] == "too_long"


async def test_nul_and_lone_surrogates_in_an_answer_are_replaced(nodes: Nodes) -> None:
    async def odd(question: Question) -> AsyncGenerator[Piece, None]:
        yield Delta("a\x00b\ud800c")
        yield Answered(BOT)

    node = nodes.node(Scripted(odd))
    async with nodes.running(node):
        await node.ask("ann", Asking("odd"))
        answers = await nodes.until_told("ann", "answer")
    assert answers[0]["text"] == "a\ufffdb\ufffdc"


async def test_what_the_log_did_not_take_is_told_later_and_once(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = nodes.node(Scripted(says_hello))
    publish = nodes.backplane.publish

    async def away(calls: object) -> None:
        raise BackplaneUnavailable("away")

    monkeypatch.setattr(nodes.backplane, "publish", away)
    monkeypatch.setattr(nodes.backplane, "publish_nowait", lambda appends: None)
    async with nodes.running(node):
        asked = await node.ask("ann", Asking("still there?"))
        assert (await ended(nodes, asked)).status == "answered"
        assert await nodes.told("ann") == []
        monkeypatch.setattr(nodes.backplane, "publish", publish)
        await nodes.until_told("ann", "answer")
        await node.sweeper.sweep()
    assert [name for name, _ in await nodes.told("ann")] == ["question", "answer"]


async def test_a_late_taker_cannot_write(nodes: Nodes) -> None:
    node = nodes.node(Scripted(says_hello))
    asked = await node.ask("ann", Asking("mine"))
    await QuestionStore(nodes.database).lease([asked.id], owner="one", lease_s=-1.0)
    assert await node.life.take_over(asked, node="two") == msgspec.structs.replace(asked, attempt=2)
    assert await node.life.take_over(asked, node="three") is None
    with pytest.raises(Lost):
        await node.life.begin(asked)
    with pytest.raises(Lost):
        await node.life.store_growth(msgspec.structs.replace(asked, answer="late", seq=1))
    assert not await node.life.end(asked.id, Answered(BOT, "late"), attempt=asked.attempt)


async def test_a_node_that_releases_its_questions_lets_another_answer_them_and_takes_new_ones_again(
    nodes: Nodes,
) -> None:
    slow = dataclasses.replace(FAST, lease_s=60.0)
    stuck = Scripted(waits_for_ever)
    answering = Scripted(says_hello)
    one, two = nodes.node(stuck, pace=slow), nodes.node(answering, name="two")
    service = Interruptible(one.run)
    async with running(service.run()):
        asked = await one.ask("ann", Asking("who am I?"))
        await eventually(lambda: stuck.asked == [asked.id])
        service.release()
        async with nodes.running(two):
            assert (await ended(nodes, asked)).status == "answered"
        # What is asked there meanwhile waits in the database for another node.
        waiting = await one.ask("bo", Asking("and I?"))
        assert stuck.asked == [asked.id]
        async with nodes.running(two):
            assert (await ended(nodes, waiting)).status == "answered"
        service.resume()
        await eventually(lambda: not one.answering.resting)
        third = await one.ask("cy", Asking("and I?"))
        await nodes.until_told("cy", "question", count=2)
        await eventually(lambda: stuck.asked == [asked.id, third.id])
    assert answering.asked == [asked.id, waiting.id]


def test_what_a_dead_node_had_is_taken_over_within_fifteen_seconds() -> None:
    pace = QuestionPace()
    # It died right after it had renewed its leases, and the next sweep elsewhere comes as late as it may.
    assert pace.lease_s + 1.25 * pace.sweep_s < 15
    # And a node that lives misses several sweeps before it loses what it has.
    assert pace.lease_s > 4 * 1.25 * pace.sweep_s
