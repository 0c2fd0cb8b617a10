"""Conversations, on SQLite and PostgreSQL: keys, turns, asking anew, and people who take over."""

import asyncio
import dataclasses
import time
from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime, timedelta

import pytest

from pushsse.backplane import Append, Receipt
from pushsse.backplane.memory import MemoryBackplane
from pushsse.database import Database, Statement
from pushsse.errors import BackplaneUnavailable, InvalidInput
from pushsse.kicks import KickTable
from pushsse.questions import (
    Answered,
    BeingTaken,
    By,
    DataPart,
    Link,
    NotNow,
    Question,
    SourcePart,
    TooManyQuestions,
    Turn,
    UnknownConversation,
)
from pushsse.questions.answerers import Delta, HandOver, NotSure, Piece
from pushsse.questions.conversations import ConversationStore, Staff
from pushsse.questions.service import MOST_ATTEMPTS, Asking, Desk, Questions, Said
from tests.questions.conftest import FAST, Nodes, Scripted, memory
from tests.waiting import eventually

pytestmark = pytest.mark.anyio
BOT = By("bot", "test")
BO = Said("I am Bo.", "Bo", (Link("Help", "/help"),))


async def repeats(question: Question) -> AsyncGenerator[Piece, None]:
    yield Answered(BOT, f"{question.text} {question.attempt}", parts=(SourcePart("Manual", "/m"),))


async def never_ends(question: Question) -> AsyncGenerator[Piece, None]:
    yield Delta("I am ")
    await asyncio.Event().wait()


async def hands_over(question: Question) -> AsyncGenerator[Piece, None]:
    yield Delta("One moment.")
    yield HandOver("it wants a refund")


async def until_status(node: Questions, question: Question, status: str) -> Question:
    found: list[Question] = []

    async def there() -> bool:
        now = await node.get(question.user, question.id)
        assert now is not None
        found[:] = [now]
        return now.status == status

    await eventually(there)
    return found[0]


async def until_ended(node: Questions, question: Question) -> Question:
    async def there() -> bool:
        now = await node.get(question.user, question.id)
        return now is not None and now.has_ended

    await eventually(there)
    found = await node.get(question.user, question.id)
    assert found is not None
    return found


async def answered(
    node: Questions, text: str, conversation: str | None = None, user: str = "ann"
) -> Question:
    asked = await node.ask(user, Asking(text, conversation))
    return await until_status(node, asked, "answered")


# Idempotency keys


async def test_a_key_stands_for_its_whole_body_whatever_the_order_of_members(nodes: Nodes) -> None:
    node = nodes.node(Scripted(repeats))
    asking = Asking("one", "c", {"a": 1, "b": [2]})
    first = await node.ask("ann", asking, idempotency_key="k")
    again = await node.ask("ann", Asking("one", "c", {"b": [2], "a": 1}), idempotency_key="k")
    assert again.id == first.id
    more = asking.context
    for other in (Asking("two", "c", more), Asking("one", None, more), Asking("one", "c")):
        with pytest.raises(InvalidInput, match="another question"):
            await node.ask("ann", other, idempotency_key="k")


async def test_a_key_is_free_after_a_day(nodes: Nodes) -> None:
    node = nodes.node(Scripted(repeats))
    first = await node.ask("ann", Asking("one"), idempotency_key="k")
    for hours, same in ((23, True), (25, False)):
        moved = datetime.now(UTC) - timedelta(hours=hours)
        await nodes.asked_at(first, moved)
        # As the backplane is after some seconds.
        node = Nodes(nodes.database, memory()).node(Scripted(repeats))
        again = await node.ask("ann", Asking("one"), idempotency_key="k")
        assert (again.id == first.id) is same
    with pytest.raises(InvalidInput):
        await node.ask("ann", Asking("two"), idempotency_key="k")


async def test_who_has_no_room_comes_again_with_the_same_key_at_once_and_a_repeat_needs_none(
    nodes: Nodes,
) -> None:
    node = dataclasses.replace(nodes.node(Scripted(repeats)), most_open=1)
    first = await node.ask("ann", Asking("one"), idempotency_key="k")
    with pytest.raises(TooManyQuestions):
        await node.ask("ann", Asking("two"), idempotency_key="l")
    assert (await node.ask("ann", Asking("one"), idempotency_key="k")).id == first.id
    await node.cancel("ann", first.id)
    assert (await node.ask("ann", Asking("two"), idempotency_key="l")).id != first.id


async def test_a_repeat_while_the_first_is_being_taken_has_to_come_later_on_any_node(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, other = nodes.node(Scripted(repeats)), nodes.node(Scripted(repeats), name="two")
    written, go_on = asyncio.Event(), asyncio.Event()
    ask = node.life.ask

    async def slow(*args: object, **named: object) -> Question:
        written.set()
        await go_on.wait()
        return await ask(*args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(node.life, "ask", slow)
    first = asyncio.create_task(node.ask("ann", Asking("one"), idempotency_key="k"))
    await written.wait()
    with pytest.raises(BeingTaken) as refused:
        await other.ask("ann", Asking("one"), idempotency_key="k")
    assert 1 <= refused.value.after_s <= 5
    # Somebody else's key of the same name, and another key, are others.
    await other.ask("bo", Asking("one"), idempotency_key="k")
    await other.ask("ann", Asking("one"), idempotency_key="k2")
    go_on.set()
    assert (await first).id == (await other.ask("ann", Asking("one"), idempotency_key="k")).id


# Conversations


async def test_conversations_are_listed_by_their_newest_question_and_belong_to_one_person(
    nodes: Nodes,
) -> None:
    node, store = nodes.node(Scripted(never_ends)), nodes.node(Scripted(never_ends)).life.conversations
    for name in ("a", "b", "c"):
        await node.ask("ann", Asking(f"  The first\n question of {name}" + " x" * 100, name))
    await node.ask("ann", Asking("again", "a"))
    alone = await node.ask("ann", Asking("alone"))
    found = await store.page("ann", limit=10, before=None)
    assert [one.id for one in found] == [alone.conversation, "a", "c", "b"]
    assert found[1].title.startswith("The first question of a x x")
    assert len(found[1].title) <= 80
    rest = await store.page("ann", limit=10, before=found[1].newest)
    assert [one.id for one in rest] == ["c", "b"]
    assert await store.page("bo", limit=10, before=None) == []
    with pytest.raises(UnknownConversation):
        await node.ask("bo", Asking("mine?", "a"))
    assert await node.conversation("bo", "a") is None
    assert await node.hand_over("bo", "a", "") is None


async def test_a_conversation_of_the_version_before_still_belongs_to_who_asked_first(nodes: Nodes) -> None:
    node = nodes.node(Scripted(never_ends))
    await node.ask("ann", Asking("first", "c"))
    await nodes.database.rows(int, Statement("DELETE FROM pushsse_conversation RETURNING 1"))
    with pytest.raises(UnknownConversation):
        await node.ask("bo", Asking("mine?", "c"))
    await node.ask("ann", Asking("second", "c"))
    found = await node.conversation("ann", "c")
    assert found is not None


async def test_of_many_who_begin_a_conversation_at_once_one_has_it(nodes: Nodes) -> None:
    node = nodes.node(Scripted(never_ends))
    people = [f"user-{number}" for number in range(8)]
    results = await asyncio.gather(
        *(node.ask(user, Asking("mine", "c")) for user in people), return_exceptions=True
    )
    assert sum(isinstance(result, Question) for result in results) == 1
    assert sum(isinstance(result, UnknownConversation) for result in results) == 7


async def test_an_answerer_gets_the_last_turns_within_their_bounds(nodes: Nodes) -> None:
    seen: list[tuple[Turn, ...]] = []

    async def script(question: Question) -> AsyncGenerator[Piece, None]:
        seen.append(question.turns)
        if question.text == "fails":
            raise ValueError
        yield Answered(BOT, "x" * 9_000 if question.text == "long" else f"to {question.text}")

    node = nodes.node(Scripted(script))
    async with nodes.running(node):
        for text in ("one", "two"):
            await answered(node, text, "c")
        await until_status(node, await node.ask("ann", Asking("fails", "c")), "failed")
        await answered(node, "other", "d")
        await answered(node, "three", "c")
        assert seen[-1] == (Turn("one", "to one"), Turn("two", "to two"))
        for number in range(20):
            await answered(node, str(number), "c")
        await answered(node, "last", "c")
        assert [turn.question for turn in seen[-1]] == [str(number) for number in range(20)]
        for text in ("long", "long", "short"):
            await answered(node, text, "c")
    # The long one before last doesn't fit beside the last one.
    assert [len(turn.answer) for turn in seen[-1]] == [9_000]


# Asking anew, and feedback


async def test_asking_anew_keeps_the_old_answer_and_tells_of_the_new_one(nodes: Nodes) -> None:
    node = nodes.node(Scripted(repeats))
    async with nodes.running(node):
        first = await answered(node, "why?")
        assert (first.answer, first.parts) == ("why? 1", (SourcePart("Manual", "/m"),))
        assert await node.rate("ann", first.id, "down", "wrong") is not None
        again = await node.regenerate("ann", first.id)
        assert again is not None
        assert (again.status, again.answer, again.rating, again.seq) == ("pending", "", None, 0)
        second = await until_status(node, first, "answered")
        assert (second.answer, second.regenerations, second.rating) == ("why? 2", 1, None)
        answers = await nodes.until_told("ann", "answer", 2)
    assert [answer["text"] for answer in answers] == ["why? 1", "why? 2"]
    statuses = [told["status"] for name, told in await nodes.told("ann") if name == "question"]
    assert statuses == ["pending", "answering", "answered"] * 2
    [earlier] = await node.life.store.earlier_answers(second)
    assert (earlier.number, earlier.answer, earlier.by) == (1, "why? 1", BOT)
    assert (earlier.rating, earlier.rating_comment, earlier.status) == ("down", "wrong", "answered")
    assert earlier.parts == (SourcePart("Manual", "/m"),)


async def test_only_ones_own_ended_question_is_asked_anew_and_ten_answers_are_kept(nodes: Nodes) -> None:
    node = nodes.node(Scripted(repeats))
    asked = await node.ask("ann", Asking("why?"))
    with pytest.raises(NotNow) as refused:
        await node.regenerate("ann", asked.id)
    assert refused.value.code == "not_ended"
    assert await node.regenerate("bo", asked.id) is None
    async with nodes.running(node):
        for _ in range(12):
            await until_status(node, asked, "answered")
            assert await node.regenerate("ann", asked.id) is not None
        last = await until_status(node, asked, "answered")
    assert last.answer == "why? 13"
    earlier = await node.life.store.earlier_answers(last)
    assert [each.number for each in earlier] == list(range(3, 13))


async def test_of_two_who_ask_anew_at_once_one_does(nodes: Nodes) -> None:
    node, other = nodes.node(Scripted(repeats)), nodes.node(Scripted(repeats), name="two")
    async with nodes.running(node):
        first = await answered(node, "why?")
    results = await asyncio.gather(
        *(one.regenerate("ann", first.id) for one in (node, other, node)), return_exceptions=True
    )
    assert sum(isinstance(result, Question) for result in results) == 1
    assert sum(isinstance(result, NotNow) for result in results) == 2


async def test_a_question_that_was_asked_anew_is_taken_over_as_often_as_a_new_one(nodes: Nodes) -> None:
    async def away_at_first(question: Question) -> AsyncGenerator[Piece, None]:
        if question.regenerations == MOST_ATTEMPTS and question.attempt == question.first_attempt:
            # As if its node had died: nobody renews its lease.
            node.answering.drop(question.id)
            await asyncio.Event().wait()
        yield Answered(BOT, f"attempt {question.attempt}")

    node = nodes.node(Scripted(away_at_first))
    async with nodes.running(node):
        asked = await answered(node, "why?")
        for _ in range(MOST_ATTEMPTS):
            await node.regenerate("ann", asked.id)
            last = await until_ended(node, asked)
    assert (last.status, last.answer) == ("answered", f"attempt {MOST_ATTEMPTS + 2}")


async def test_feedback_is_for_ended_questions_and_replaces_the_one_before(nodes: Nodes) -> None:
    node = nodes.node(Scripted(repeats))
    asked = await node.ask("ann", Asking("why?"))
    with pytest.raises(NotNow):
        await node.rate("ann", asked.id, "up", "")
    assert await node.rate("bo", asked.id, "up", "") is None
    async with nodes.running(node):
        await until_status(node, asked, "answered")
    for rating, comment in (("up", ""), ("down", "nul \x00 here")):
        rated = await node.rate("ann", asked.id, rating, comment)  # type: ignore[arg-type]
        assert rated is not None
        assert (rated.rating, rated.rating_comment) == (rating, comment.replace("\x00", "\ufffd"))


async def test_lists_read_the_beginnings_of_answers_and_pages_as_much_as_they_may_have(nodes: Nodes) -> None:
    async def says_much(question: Question) -> AsyncGenerator[Piece, None]:
        parts = (SourcePart("Manual", "/m"),) if question.text == "parts" else ()
        yield Answered(BOT, {"long": "é" * 5_000}.get(question.text, "short"), parts=parts)

    node = nodes.node(Scripted(says_much))
    async with nodes.running(node):
        for text in ("long", "short", "parts"):
            await answered(node, text, "c")
    [parts, short, long] = await node.page("ann", limit=9, conversation="c", characters=4_000)
    assert [(one.text, one.answer, one.parts, one.cut) for one in (parts, short, long)] == [
        ("parts", "short", (), True),
        ("short", "short", (), False),
        ("long", "é" * 4_000, (), True),
    ]
    [newest] = await node.page("ann", limit=1)
    assert (newest.id, newest.answer, newest.by, newest.status) == (parts.id, "", BOT, "answered")
    whole = await node.get("ann", long.id)
    assert whole is not None
    assert (whole.answer, whole.cut) == ("é" * 5_000, False)

    async def page(limit: int, most: int, before: str | None = None) -> tuple[list[str], bool]:
        found, more = await node.whole_page("ann", "c", limit=limit, before=before, most_characters=most)
        assert all(one.answer in ("short", whole.answer) and not one.cut for one in found)
        return [one.text for one in found], more

    assert await page(3, 100_000) == (["parts", "short", "long"], False)
    assert await page(2, 100_000) == (["parts", "short"], True)
    assert await page(3, 5_000) == (["parts", "short"], True)
    assert await page(3, 5_000, before=short.id) == (["long"], False)
    assert await page(3, 1) == (["parts"], True)
    assert await node.whole_page("bo", "c", limit=3, before=None, most_characters=9) == ([], False)


# People take over


async def test_an_answerer_hands_over_and_staff_answer(nodes: Nodes) -> None:
    node = nodes.node(Scripted(hands_over))
    desk = Desk(node.life)
    assert await desk.waiting(Staff("sam"), limit=10, before=None) == []
    async with nodes.running(node):
        asked = await node.ask("ann", Asking("Where is my refund?"))
        waits = await until_status(node, asked, "handed_over")
        assert (waits.is_open, waits.has_ended) == (False, False)
        [found] = await desk.waiting(Staff("sam"), limit=10, before=None)
        assert (found.id, found.user, found.waiting) == (asked.conversation, "ann", 1)
        assert (found.handed_over_by, found.reason) == ("answerer", "it wants a refund")
        told = await nodes.until_told("sam", "pushsse.desk")
        assert told == [
            {
                "conversation": asked.conversation,
                "status": "waiting",
                "question": asked.id,
            }
        ]
    done = await desk.answer("sam", asked.id, BO)
    assert done is not None
    assert (done.status, done.answer, done.by, done.links) == (
        "answered",
        BO.text,
        By("staff", "Bo"),
        BO.links,
    )
    [answer] = await nodes.until_told("ann", "answer")
    assert answer["by"] == {"kind": "staff", "name": "Bo"}
    statuses = [said["status"] for name, said in await nodes.told("ann") if name == "question"]
    assert statuses == ["pending", "answering", "handed_over", "answered"]
    assert [said["status"] for said in await nodes.until_told("sam", "pushsse.desk", 2)] == [
        "waiting",
        "answered",
    ]
    with pytest.raises(NotNow):
        await desk.answer("sam", asked.id, BO)


async def test_what_the_answerer_said_before_a_handover_is_not_the_answer_of_staff(nodes: Nodes) -> None:
    async def says_and_hands_over(question: Question) -> AsyncGenerator[Piece, None]:
        yield SourcePart("What the bot read", "/bot")
        yield DataPart("order", {"id": 7})
        yield Delta("I think ")
        yield HandOver("not sure after all")

    node = nodes.node(Scripted(says_and_hands_over))
    async with nodes.running(node):
        asked = await node.ask("ann", Asking("Where is my refund?"))
        held = await until_status(node, asked, "handed_over")
    assert len(held.parts) == 2
    done = await Desk(node.life).answer("sam", asked.id, BO)
    assert done is not None
    assert (done.answer, done.parts, done.usage) == (BO.text, (), None)
    [answer] = await nodes.until_told("ann", "answer")
    assert (answer["by"], answer["parts"]) == ({"kind": "staff", "name": "Bo"}, [])


async def test_what_staff_cannot_be_told_of_is_done_all_the_same(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def away(self: MemoryBackplane, appends: Sequence[Append]) -> Receipt:
        raise BackplaneUnavailable("away")

    node = nodes.node(Scripted(repeats))
    desk = Desk(node.life)
    async with nodes.running(node):
        await answered(node, "one", "c")
        assert await desk.waiting(Staff("sam"), limit=10, before=None) == []
        monkeypatch.setattr(MemoryBackplane, "publish", away)
        held = await node.hand_over("ann", "c", "a person, please")
        assert held is not None
        assert held.is_handed_over
        released = await desk.release("c", by="sam")
        assert released is not None
        assert not released.is_handed_over
    assert caplog.text.count("conversation c: its staff see what is new only when they load") == 2


async def test_further_questions_go_to_people_until_the_conversation_is_released(nodes: Nodes) -> None:
    answerer = Scripted(repeats)
    node = nodes.node(answerer)
    desk = Desk(node.life)
    async with nodes.running(node):
        await answered(node, "one", "c")
        held = await node.hand_over("ann", "c", "a person, please")
        assert held is not None
        assert (held.is_handed_over, held.handed_over_by, held.reason) == (True, "person", "a person, please")
        again = await node.hand_over("ann", "c", "another reason")
        assert again is not None
        assert (again.reason, again.keep_until) == (held.reason, held.keep_until)
        second = await node.ask("ann", Asking("two", "c"))
        third = await node.ask("ann", Asking("three", "c"))
        [first] = [one for one in await node.page("ann", limit=10) if one.text == "one"]
        anew = await node.regenerate("ann", first.id)
        assert anew is not None
        assert (anew.status, anew.deadline_at) == ("handed_over", held.keep_until)
        assert await node.cancel("ann", first.id) is not None
        assert (second.status, third.status) == ("handed_over", "handed_over")
        assert second.deadline_at == held.keep_until
        await answered(node, "elsewhere", "d")
        assert await desk.answer("sam", third.id, BO) is not None
        released = await desk.release("c", by="sam")
        assert released is not None
        assert not released.is_handed_over
        left = await until_status(node, second, "failed")
        assert left.error_code == "released"
        await answered(node, "four", "c")
        assert await desk.release("c", by="sam") is None
        assert await desk.answer("sam", second.id, BO) is None
        regenerated = await node.regenerate("ann", second.id)
        assert regenerated is not None
        await until_status(node, second, "answered")
    assert len(answerer.asked) == 4


async def test_what_is_being_answered_is_taken_over_and_the_answerer_writes_no_more(nodes: Nodes) -> None:
    node, other = nodes.node(Scripted(never_ends)), nodes.node(Scripted(repeats), name="two")
    async with nodes.running(node):
        asked = await node.ask("ann", Asking("one", "c"))
        before = await until_status(node, asked, "answering")
        assert await other.hand_over("ann", "c", "") is not None
        await until_status(node, asked, "handed_over")
        assert not await node.life.end(asked.id, Answered(BOT, "late"), attempt=before.attempt)
        # As from Kafka, whose records have no attempt.
        assert not await node.life.end(asked.id, Answered(BOT, "late"))
        assert not await node.life.add(before, [Delta("late")], 9)

        async def dropped() -> bool:
            return not node.answering.leased

        await eventually(dropped)
    cancelled = await node.cancel("ann", asked.id)
    assert cancelled is not None
    assert cancelled.status == "cancelled"


async def test_staff_are_told_for_as_long_as_what_they_listed_with_is_good(database: Database) -> None:
    store, kicks = ConversationStore(database), KickTable(database)
    now = time.time()
    second = int(now)
    for staff in (
        Staff("for-ever"),
        Staff("long", expires_at=now + 86_400, issued_at=now),
        Staff("ended", expires_at=now - 1, issued_at=now - 60),
        Staff("kicked", expires_at=now + 600, issued_at=second),
        Staff("kicked-undated", expires_at=now + 600),
        Staff("kicked-before", expires_at=now + 600, issued_at=second + 1),
    ):
        await store.staff_asked(staff)
    for user in ("kicked", "kicked-undated", "kicked-before"):
        await kicks.add(user, second)
    assert set(await store.staff()) == {"for-ever", "long", "kicked-before"}
    # Listed anew within a minute: with another token, which is good, and with one that has ended.
    await store.staff_asked(Staff("kicked", expires_at=now + 600, issued_at=second + 1))
    await store.staff_asked(Staff("long", expires_at=now - 1, issued_at=now + 1))
    assert set(await store.staff()) == {"for-ever", "kicked", "kicked-before"}


async def test_of_two_staff_who_answer_at_once_one_wins(nodes: Nodes) -> None:
    node, other = nodes.node(Scripted(repeats)), nodes.node(Scripted(repeats), name="two")
    async with nodes.running(node):
        await answered(node, "one", "c")
    await node.hand_over("ann", "c", "")
    asked = await node.ask("ann", Asking("two", "c"))
    said = [Said(f"number {number}", f"staff-{number}") for number in range(6)]
    results = await asyncio.gather(
        *(Desk((node, other)[at % 2].life).answer(one.name, asked.id, one) for at, one in enumerate(said)),
        return_exceptions=True,
    )
    won = [result for result in results if isinstance(result, Question)]
    assert len(won) == 1
    assert sum(isinstance(result, NotNow) for result in results) == 5
    told = [said for name, said in await nodes.told("ann") if name == "answer"]
    assert [answer["text"] for answer in told if answer["question"] == asked.id] == [won[0].answer]


async def test_of_a_question_and_a_handover_at_once_no_question_is_left_to_the_answerer(nodes: Nodes) -> None:
    node = nodes.node(Scripted(never_ends))
    await node.ask("ann", Asking("first", "c"))
    *asked, _ = await asyncio.gather(
        *(node.ask("ann", Asking(str(number), "c")) for number in range(6)), node.hand_over("ann", "c", "")
    )
    for question in await node.page("ann", limit=10):
        assert question.status == "handed_over"
    assert len(asked) == 6


async def test_a_message_reaches_the_person_as_an_answer_without_a_question(nodes: Nodes) -> None:
    node = nodes.node(Scripted(repeats))
    desk = Desk(node.life)
    async with nodes.running(node):
        await answered(node, "one", "c")
        assert await desk.write("sam", "c", BO) is None
        await node.hand_over("ann", "c", "")
        message = await desk.write("sam", "c", BO)
        assert message is not None
        [_, told] = await nodes.until_told("ann", "answer", 2)
        assert (told["question"], told["text"], told["by"]) == (
            message.id,
            BO.text,
            {"kind": "staff", "name": "Bo"},
        )
        stored = await node.get("ann", message.id)
        assert stored is not None
        assert (stored.text, stored.answer, stored.conversation) == ("", BO.text, "c")
        with pytest.raises(NotNow) as refused:
            await node.regenerate("ann", message.id)
        assert refused.value.code == "no_question"
        assert [one.id for one in await node.page("ann", limit=1)] == [message.id]


async def test_what_nobody_answers_in_time_expires_and_the_conversation_is_released(nodes: Nodes) -> None:
    pace = dataclasses.replace(FAST, keep_s=0.4)
    node = nodes.node(Scripted(hands_over), pace=pace)
    async with nodes.running(node):
        asked = await node.ask("ann", Asking("one", "c"))
        await until_status(node, asked, "handed_over")
        await until_status(node, asked, "expired")

        async def open_again() -> bool:
            found = await node.conversation("ann", "c")
            return found is not None and not found.is_handed_over

        await eventually(open_again)
        # A sweep publishes it, after it was written.
        assert [error["code"] for error in await nodes.until_told("ann", "answer.error")] == ["expired"]


async def test_where_nobody_takes_over_a_handover_is_an_error(nodes: Nodes) -> None:
    node = nodes.node(Scripted(hands_over), pace=dataclasses.replace(FAST, keep_s=0.0))
    async with nodes.running(node):
        asked = await node.ask("ann", Asking("one", "c"))
        failed = await until_status(node, asked, "failed")
    assert failed.error_code == "no_answer"
    with pytest.raises(NotNow) as refused:
        await node.hand_over("ann", "c", "")
    assert refused.value.code == "no_people"


@pytest.mark.parametrize("on", [True, False])
async def test_what_no_answerer_is_sure_of_goes_to_people_where_that_is_set(
    nodes: Nodes, *, on: bool
) -> None:
    async def unsure(question: Question) -> AsyncGenerator[Piece, None]:
        yield NotSure(Answered(BOT, "maybe"))

    node = nodes.node(Scripted(unsure), unsure_hands_over=on)
    async with nodes.running(node):
        asked = await node.ask("ann", Asking("one"))
        found = await until_status(node, asked, "handed_over" if on else "answered")
    assert found.answer == ("" if on else "maybe")
