"""What a backplane promises, of either kind."""

import asyncio
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, aclosing
from functools import partial

import msgspec
import pytest

import pushsse.backplane as contract
from pushsse.backplane import (
    BROADCAST,
    PRESENCE_LEASE_MS,
    Append,
    Backplane,
    Draft,
    Entry,
    HeardLive,
    NoticeTopic,
    OpenedTicket,
    Source,
    Spent,
    Stay,
    Ticket,
    TicketLife,
    TicketRefusal,
    answers,
    limits,
    memory,
    redis,
)
from pushsse.backplane.answers import Grew, Growth, LiveDelta, SoFar
from pushsse.backplane.limits import Allowances, LogAllowance, Windows
from pushsse.errors import AllowanceSpent, ClaimLost, NotOwner
from pushsse.event import Change, Publication
from pushsse.position import Mark
from tests.waiting import eventually

from .ear import CLOCK_MS, Ear, after_all, append, bodies, publication, sourced, user_of

pytestmark = pytest.mark.anyio
Make = Callable[..., AbstractAsyncContextManager[Backplane]]


async def everything(backplane: Backplane, log: str) -> list[str]:
    return bodies((await backplane.read({log: 0}, limit=1000)).entries)


# Publishing


async def test_numbers_begin_at_one_and_have_no_hole(backplane: Backplane) -> None:
    first = await backplane.publish([append("1", "a", "b")])
    second = await backplane.publish([append("1", "c"), append("2", "d")])
    page = await backplane.read({"1": 0, "2": 0}, limit=100)
    assert [entry.number for entry in page.entries] == [1, 2, 3, 1]
    assert bodies(page.entries) == ["a", "b", "c", "d"]
    assert first.appended == second.appended == 2
    epoch = page.heads["1"].epoch
    assert first.marks == {"1": Mark(epoch, 2)}
    assert second.marks == {"1": Mark(epoch, 3), "2": Mark(page.heads["2"].epoch, 1)}


async def test_what_is_published_to_one_person_is_in_that_persons_log(backplane: Backplane) -> None:
    drafts = [Draft(publication(body), once=body) for body in ("a", "b")]
    mark = await backplane.publish_to(user_of("3"), drafts)
    page = await backplane.read({"3": 0}, limit=10)
    assert bodies(page.entries) == ["a", "b"]
    assert mark == page.heads["3"].mark
    assert await backplane.publish_to(user_of("3"), drafts) == mark


async def test_order_grows_over_all_logs(backplane: Backplane) -> None:
    for i in range(10):
        await backplane.publish([append(BROADCAST, f"all {i}"), append(str(i % 3), f"one {i}")])
    page = await backplane.read({BROADCAST: 0, "0": 0, "1": 0, "2": 0}, limit=100)
    assert bodies(page.entries) == [f"{to} {i}" for i in range(10) for to in ("all", "one")]
    orders = [entry.order for entry in page.entries]
    assert orders == sorted(set(orders))


async def test_what_is_at_or_below_the_fence_is_skipped(backplane: Backplane) -> None:
    await backplane.publish([sourced("1", 5, 6)])
    receipt = await backplane.publish([sourced("1", 5, 6, 7)])
    assert (receipt.appended, receipt.fenced) == (1, 2)
    assert await everything(backplane, "1") == ["5", "6", "7"]


async def test_each_log_and_partition_has_its_own_fence(backplane: Backplane) -> None:
    await backplane.publish([sourced("1", 5)])
    await backplane.publish([sourced("2", 5), sourced("1", 5, partition=1)])
    assert await everything(backplane, "1") == ["5", "5"]
    assert await everything(backplane, "2") == ["5"]


async def test_one_record_may_have_several_drafts_in_an_append(backplane: Backplane) -> None:
    receipt = await backplane.publish([sourced("1", 5, 5)])
    assert receipt.appended == 2
    assert (await backplane.publish([sourced("1", 5, 5)])).fenced == 2


async def test_the_fence_is_the_highest_offset_of_any_log(backplane: Backplane) -> None:
    assert await backplane.fence("topic", 0) is None
    await backplane.publish([sourced("1", 5, 9, 7), sourced("2", 8)])
    assert await backplane.fence("topic", 0) == (9, 1009)
    assert await backplane.fence("topic", 1) is None


async def test_a_backplane_keeps_the_first_word_that_it_is_known_by(backplane: Backplane) -> None:
    assert await backplane.identity("") == ""
    assert await backplane.identity("one") == "one"
    assert await backplane.identity("two") == "one"
    assert await backplane.identity("") == "one"


async def test_the_first_start_of_a_topic_is_kept(backplane: Backplane) -> None:
    assert await backplane.first_start("topic", {0: 7, 1: 2**40}) == {0: 7, 1: 2**40}
    assert await backplane.first_start("topic", {0: 9}) == {0: 7, 1: 2**40}
    assert await backplane.first_start("another", {}) == {}
    assert await backplane.first_start("another", {0: 1}) == {}


async def test_a_partition_is_claimed_from_its_first_owner_on(backplane: Backplane) -> None:
    assert not await backplane.claimed("another", 0)
    await backplane.claim("another", 0, "one")
    assert await backplane.claimed("another", 0)
    assert not await backplane.claimed("another", 1)


async def test_a_fence_that_was_reset_starts_over(backplane: Backplane) -> None:
    await backplane.publish([sourced("1", 5), sourced("2", 6)])
    await backplane.reset_fence("topic", 0)
    assert await backplane.fence("topic", 0) is None
    assert (await backplane.publish([sourced("1", 0)])).appended == 1


async def test_a_repeated_name_is_skipped_within_its_log(backplane: Backplane) -> None:
    draft = Draft(publication("a"), once="order-1")
    receipt = await backplane.publish(
        [Append("1", (draft, draft)), Append("1", (draft,)), Append("2", (draft,))]
    )
    assert (receipt.appended, receipt.repeated) == (2, 2)
    assert (await backplane.publish([Append("1", (draft,))])).repeated == 1
    assert await everything(backplane, "1") == ["a"]


def to(*users: str, once: str, body: str = "x") -> Draft:
    return Draft(Publication("note", f"data: {body}\n".encode(), users, True), once=once)


async def recipients(backplane: Backplane, log: str) -> list[tuple[str, ...] | None]:
    return [entry.publication.users for entry in (await backplane.read({log: 0}, limit=1000)).entries]


async def test_one_name_for_many_people_reaches_each_of_them_once(backplane: Backplane) -> None:
    people = [f"user-{i}" for i in range(300)]
    appends = [Append("1", (to(user, once="note|order-1"),)) for user in people]
    receipt = await backplane.publish(appends)
    assert (receipt.appended, receipt.repeated) == (300, 0)
    receipt = await backplane.publish([Append("1", tuple(to(user, once="note|order-1") for user in people))])
    assert (receipt.appended, receipt.repeated) == (0, 300)
    assert await recipients(backplane, "1") == [(user,) for user in people]


async def test_a_repeated_recipient_is_left_out_and_the_others_get_it(backplane: Backplane) -> None:
    await backplane.publish([Append("1", (to("bo", "李", once="n"),))])
    receipt = await backplane.publish([Append("1", (to("ann", "bo", "cy", "李", once="n", body="长"),))])
    assert (receipt.appended, receipt.repeated) == (1, 2)
    entries = (await backplane.read({"1": 0}, limit=10)).entries
    assert [entry.publication.users for entry in entries] == [("bo", "李"), ("ann", "cy")]
    # All else is as it was sent.
    assert entries[1].publication == to("ann", "cy", once="", body="长").publication
    receipt = await backplane.publish([Append("1", (to("ann", "bo", once="n"), to("ann", "di", once="n")))])
    assert (receipt.appended, receipt.repeated) == (1, 3)


async def test_a_broadcast_is_repeated_as_one(backplane: Backplane) -> None:
    everybody = Draft(Publication("note", b"data: 1\n", None, True), once="n")
    receipt = await backplane.publish(
        [Append(BROADCAST, (everybody, everybody)), Append("1", (to("ann", once="n"),))]
    )
    assert (receipt.appended, receipt.repeated) == (2, 1)


async def test_a_name_for_ten_thousand_people_and_a_change_of_one(backplane: Backplane) -> None:
    people = tuple(f"user-{i}" for i in range(10_000))
    assert (await backplane.publish([Append("1", (to(*people, once="n"),))])).appended == 1
    receipt = await backplane.publish([Append("1", (to("new", *people, "newer", once="n"),))])
    assert (receipt.appended, receipt.repeated) == (1, 10_000)
    assert (await recipients(backplane, "1"))[1] == ("new", "newer")
    change = Change("ann", 1, (), ("note",))
    switched = Publication("preferences", b"data: 1\n", ("ann", "bo"), change=change)
    for _ in range(2):
        await backplane.publish([Append("1", (Draft(switched, once="switch"),))])
    assert await backplane.first_change("1", "ann", 0) == change
    assert (await recipients(backplane, "1"))[2:] == [("ann", "bo")]


async def test_a_publish_that_is_retried_appends_what_was_missing(backplane: Backplane) -> None:
    """The first try got as far as one of two appends; nobody misses anything, nobody gets it twice."""
    appends = [Append(log, (to(f"a{log}", f"b{log}", once="n"),)) for log in ("1", "2")]
    await backplane.publish(appends[:1])
    receipt = await backplane.publish(appends)
    assert (receipt.appended, receipt.repeated) == (1, 2)
    assert await recipients(backplane, "1") == [("a1", "b1")]
    assert await recipients(backplane, "2") == [("a2", "b2")]


async def test_a_publish_that_is_cancelled_may_be_repeated(backplane: Backplane) -> None:
    async with Ear(backplane) as ear:
        await ear.follow("1")
        for offset in range(40):
            publishing = asyncio.create_task(backplane.publish([sourced("1", offset)]))
            for _ in range(offset % 8):
                await asyncio.sleep(0)  # a step further each time
            publishing.cancel()
            await asyncio.wait([publishing])
            await backplane.publish([sourced("1", offset)])
        await ear.until_body("39")
    assert bodies(ear.entries) == [str(offset) for offset in range(40)]


async def test_what_is_expired_is_skipped_and_its_fence_advances(backplane: Backplane) -> None:
    now_ms = backplane.now_ms()
    source = Source("topic", 0, 5, 1005, "me")
    old = Draft(publication("old", expires_ms=now_ms - 60_000), source, once="order-1")
    new = Draft(publication("new", expires_ms=now_ms + 60_000), once="order-1")
    receipt = await backplane.publish([Append("1", (old, new))])
    assert (receipt.expired, receipt.appended) == (1, 1)
    assert await everything(backplane, "1") == ["new"]
    assert await backplane.fence("topic", 0) == (5, 1005)


async def test_a_claimed_partition_takes_nothing_from_another_owner(backplane: Backplane) -> None:
    await backplane.claim("topic", 0, "before")
    await backplane.publish([sourced("1", 1, owner="before")])
    await backplane.claim("topic", 0, "after")
    with pytest.raises(NotOwner) as refused:
        await backplane.publish([sourced("1", 2, owner="before")])
    assert not isinstance(refused.value, ClaimLost)
    await backplane.publish([sourced("1", 2, owner="after"), append("1", "by itself")])
    assert await everything(backplane, "1") == ["1", "2", "by itself"]


async def test_a_partition_that_nobody_has_claimed_is_nobodys(backplane: Backplane) -> None:
    """Where claims are lost, an earlier owner could append what the later one has appended before."""
    with pytest.raises(ClaimLost):
        await backplane.publish([sourced("1", 1, partition=2), sourced("1", 1)])
    await backplane.claim("topic", 2, "me")
    await backplane.publish([sourced("1", 2, partition=2)])
    assert await everything(backplane, "1") == ["1", "2"]


async def test_a_refused_append_appends_nothing_and_the_others_are_taken(backplane: Backplane) -> None:
    await backplane.claim("topic", 0, "after")
    mixed = Append("1", (Draft(publication("a")), *sourced("1", 2, owner="before").drafts))
    with pytest.raises(NotOwner):
        await backplane.publish([append("2", "x"), mixed, append("3", "y")])
    assert await everything(backplane, "1") == []
    assert await everything(backplane, "2") == ["x"]
    assert await everything(backplane, "3") == ["y"]
    assert await backplane.fence("topic", 0) is None


async def test_concurrent_publishers_leave_no_hole(backplane: Backplane) -> None:
    async with Ear(backplane) as ear:
        await ear.follow("1", "2", BROADCAST)

        async def publish(name: int) -> None:
            for i in range(50):
                await backplane.publish([append(("1", "2", BROADCAST)[(name + i) % 3], f"{name}/{i}")])

        await asyncio.gather(*map(publish, range(8)))
        await ear.until(lambda: len(ear.entries) == 400)
    heard = bodies(ear.entries)
    assert len(set(heard)) == 400
    for name in range(8):
        assert [b for b in heard if b.startswith(f"{name}/")] == [f"{name}/{i}" for i in range(50)]


# Listening


async def test_what_is_heard_is_what_was_published(backplane: Backplane) -> None:
    change = Change("ann", 7, ("news",), ())
    full = Publication("preferences", b"data: {}\n", ("ann", "bo"), False, 2**42, "q1", change)
    async with Ear(backplane) as ear:
        await ear.follow("1")
        await backplane.publish([Append("1", (Draft(full), Draft(publication("x"))))])
        await ear.until(lambda: len(ear.entries) == 2)
    assert ear.entries[0].publication == full
    assert abs(ear.entries[0].at_ms - backplane.now_ms()) < 60_000
    assert (await backplane.read({"1": 0}, limit=5)).entries == tuple(ear.entries)


async def test_appends_are_heard_in_the_order_in_which_they_were_published(backplane: Backplane) -> None:
    logs = [BROADCAST, "0", "1", "2"]
    async with Ear(backplane) as ear:
        await ear.follow(*logs)
        for i in range(200):
            await backplane.publish([append(log, f"{i} {log}") for log in logs])
        await ear.until(lambda: len(ear.entries) == 800)
    assert bodies(ear.entries) == [f"{i} {log}" for i in range(200) for log in logs]


async def test_a_log_that_isnt_followed_isnt_heard(backplane: Backplane) -> None:
    async with Ear(backplane) as ear:
        await ear.follow("1")
        await backplane.publish([append("2", "not this"), append("1", "this")])
        await ear.until_body("this")
    assert bodies(ear.entries) == ["this"]


async def test_following_gives_what_the_log_held_before(backplane: Backplane) -> None:
    await backplane.publish([append("1", "a", "b")])
    async with Ear(backplane) as ear:
        await ear.follow("1", "2")
        followed = ear.followed["1"]
        assert bodies(followed.tail) == ["a", "b"]
        assert (followed.head.number, followed.head.first, followed.head.base) == (2, 1, 0)
        assert (ear.followed["2"].head.number, ear.followed["2"].tail) == (0, ())
        await backplane.publish([append("1", "c"), append("2", "d")])
        await ear.until_body("d")
    assert bodies(ear.entries) == ["c", "d"]


async def test_the_tail_is_bounded(backplane: Backplane) -> None:
    await backplane.publish([append("1", *map(str, range(1500)))])
    await backplane.publish([append("2", *(str(i) + "x" * 40_000 for i in range(50)))])
    async with Ear(backplane) as ear:
        await ear.follow("1", "2")
    assert bodies(ear.followed["1"].tail) == [str(i) for i in range(500, 1500)]
    assert 20 <= len(ear.followed["2"].tail) <= 27
    assert ear.followed["2"].tail[-1].number == 50


async def test_following_in_the_middle_of_traffic_misses_and_doubles_nothing(backplane: Backplane) -> None:
    logs = [BROADCAST, *map(str, range(8))]
    done = asyncio.Event()
    sent = 0

    async def publish() -> None:
        nonlocal sent
        while not done.is_set():
            await backplane.publish([append(log, f"{log} {sent}") for log in logs])
            sent += 1
            await asyncio.sleep(0)

    async with Ear(backplane) as ear:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(publish())
            for log in logs:
                heard = len(ear.entries)
                await ear.follow(log)
                await ear.until(partial(_more_than, ear, heard + 20))
            done.set()
        await ear.until(lambda: all(len(ear.of(log)) == sent for log in logs))
    for log in logs:
        assert ear.of(log) == [f"{log} {i}" for i in range(sent)]


async def test_after_unfollow_nothing_is_heard_until_it_is_followed_anew(backplane: Backplane) -> None:
    async with Ear(backplane) as ear:
        await ear.follow("1", "2")
        await backplane.publish([append("1", "a")])
        await ear.until_body("a")
        backplane.unfollow("1")
        await backplane.publish([append("1", "b"), append("2", "c")])
        await ear.until_body("c")
        assert "b" not in bodies(ear.entries)
        del ear.followed["1"]
        await ear.follow("1")
        assert bodies(ear.followed["1"].tail) == ["a", "b"]
        await backplane.publish([append("1", "d")])
        await ear.until_body("d")
    assert bodies(ear.entries) == ["a", "c", "d"]


@pytest.mark.parametrize("make", ["memory", "on disk"], indirect=True)
async def test_whoever_waits_for_a_slow_listener_goes_on_when_what_it_had_to_hear_is_unfollowed(
    backplane: Backplane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "MOST_WAITING", 10)
    backplane.follow("1")
    async with aclosing(backplane.listen()) as hearings:
        await anext(hearings)
        await backplane.publish([append("1", *map(str, range(20)))])
        publishing = asyncio.create_task(backplane.publish([append("2", "a")]))
        done, _ = await asyncio.wait((publishing,), timeout=0.1)
        assert not done
        backplane.unfollow("1")
        async with asyncio.timeout(10):
            await publishing
    assert await everything(backplane, "2") == ["a"]


async def test_unfollow_and_follow_at_once_begins_anew(backplane: Backplane) -> None:
    async with Ear(backplane) as ear:
        await ear.follow("1")
        await backplane.publish([append("1", "a")])
        backplane.unfollow("1")
        del ear.followed["1"]
        await ear.follow("1")
        await backplane.publish([append("1", "b")])
        await ear.until_body("b")
        assert ear.of("1")[-1] == "b"
        assert bodies(ear.followed["1"].tail) == ["a"]


async def test_whoever_listens_anew_follows_what_was_asked_for(backplane: Backplane) -> None:
    async with Ear(backplane) as ear:
        await ear.follow("1")
    await backplane.publish([append("1", "between")])
    async with Ear(backplane) as again:
        await again.until(lambda: "1" in again.followed)
        assert bodies(again.followed["1"].tail) == ["between"]


# Answers that grow


def growth(seq: int, text: str, *, after: int | None = None, attempt: int = 1, **more: object) -> Growth:
    """What the answer to q-1 grows by, and one delta that tells of it."""
    delta = LiveDelta(
        "answer.delta", f"data: {text}\n".encode(), (user_of("1"),), subject="q-1", attempt=attempt
    )
    before = seq - 1 if after is None else after
    return Growth(
        question="q-1",
        user=user_of("1"),
        attempt=attempt,
        after=before,
        seq=seq,
        text=text,
        publications=(delta,),
        **more,  # type: ignore[arg-type]
    )


def heard_live(ear: Ear) -> list[str]:
    return [delta.body.decode().removeprefix("data: ").strip() for delta in ear.live]


async def test_an_answer_grows_is_heard_in_its_order_and_is_not_in_the_log(backplane: Backplane) -> None:
    async with Ear(backplane) as ear:
        await ear.follow("1")
        await backplane.publish([append("1", "a")])
        assert await backplane.grow(growth(1, "one 事件😀 ")) is Grew.GREW
        assert await backplane.grow(growth(2, "two")) is Grew.GREW
        await backplane.publish([append("1", "b")])
        await ear.until_body("b")
    assert heard_live(ear) == ["one 事件😀", "two"]
    assert [getattr(delta, "attempt", 0) for delta in ear.live] == [1, 1]
    live = [at for at, hearing in enumerate(ear.hearings) if isinstance(hearing, HeardLive)]
    assert 0 < live[0] < live[1] < len(ear.hearings) - 1
    assert await everything(backplane, "1") == ["a", "b"]
    assert await backplane.so_far(["q-1", "q-2"]) == {"q-1": SoFar(1, 2, "one 事件😀 two")}


async def test_an_answer_for_who_isnt_followed_is_not_heard(backplane: Backplane) -> None:
    async with Ear(backplane) as ear:
        await ear.follow("2")
        await backplane.grow(growth(1, "one"))
        await backplane.publish([append("2", "b")])
        await ear.until_body("b")
    assert ear.live == []


async def test_the_same_growth_again_grows_once_and_is_heard_once(backplane: Backplane) -> None:
    async with Ear(backplane) as ear:
        await ear.follow("1")
        for seq, text in ((1, "one "), (1, "one "), (2, "two"), (2, "two")):
            assert await backplane.grow(growth(seq, text)) is Grew.GREW
        await backplane.publish([append("1", "b")])
        await ear.until_body("b")
    assert heard_live(ear) == ["one", "two"]
    assert await backplane.so_far(["q-1"]) == {"q-1": SoFar(1, 2, "one two")}


async def test_parts_are_kept_and_a_status_lasts_until_the_next_growth(backplane: Backplane) -> None:
    await backplane.grow(growth(3, "see ", after=0, parts=(b'{"a":1}', b'{"b":2}'), status=b'{"s":1}'))
    assert await backplane.so_far(["q-1"]) == {
        "q-1": SoFar(1, 3, "see ", (b'{"a":1}', b'{"b":2}'), b'{"s":1}')
    }
    await backplane.grow(growth(4, "", parts=(b"{}",)))
    assert await backplane.so_far(["q-1"]) == {"q-1": SoFar(1, 4, "see ", (b'{"a":1}', b'{"b":2}', b"{}"))}


async def test_a_later_attempt_begins_anew_and_the_earlier_one_is_lost(backplane: Backplane) -> None:
    await backplane.grow(growth(1, "one ", parts=(b"{}",)))
    assert await backplane.grow(growth(1, "anew", attempt=2)) is Grew.GREW
    assert await backplane.grow(growth(2, "two")) is Grew.LOST
    assert await backplane.grow(growth(2, "two", whole=True)) is Grew.LOST
    assert await backplane.so_far(["q-1"]) == {"q-1": SoFar(2, 1, "anew")}


async def test_what_grows_from_something_that_isnt_there_says_so_and_is_taken_whole(
    backplane: Backplane,
) -> None:
    async with Ear(backplane) as ear:
        await ear.follow("1")
        assert await backplane.grow(growth(3, "three")) is Grew.MISSING
        assert await backplane.so_far(["q-1"]) == {}
        assert await backplane.grow(growth(3, "one two three", whole=True)) is Grew.GREW
        assert await backplane.grow(growth(5, "five")) is Grew.MISSING
        assert await backplane.grow(growth(2, "late")) is Grew.GREW
        assert await backplane.grow(growth(5, "all", whole=True)) is Grew.GREW
        assert await backplane.grow(growth(1, "later", after=0, attempt=3)) is Grew.GREW
        assert await backplane.grow(growth(2, "x", attempt=4)) is Grew.MISSING
        await backplane.publish([append("1", "b")])
        await ear.until_body("b")
    assert heard_live(ear) == ["one two three", "all", "later"]
    assert await backplane.so_far(["q-1"]) == {"q-1": SoFar(3, 1, "later")}


async def test_an_answer_that_has_ended_is_dropped_and_grows_no_more(backplane: Backplane) -> None:
    await backplane.grow(growth(1, "one", parts=(b"{}",)))
    await backplane.end_answers({"q-1": 1, "q-9": 7})
    assert await backplane.so_far(["q-1"]) == {}
    for late in (growth(2, "two"), growth(1, "one"), growth(2, "all", whole=True)):
        assert await backplane.grow(late) is Grew.LOST
    # Another attempt at it may begin, and whoever ends the earlier one once more doesn't end that.
    assert await backplane.grow(growth(1, "again", attempt=2)) is Grew.GREW
    await backplane.end_answers({"q-1": 1, "q-9": 7})
    assert await backplane.so_far(["q-1"]) == {"q-1": SoFar(2, 1, "again")}


async def test_an_answer_that_nothing_is_said_of_any_more_is_forgotten(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (answers, redis, redis.commands):
        monkeypatch.setattr(module, "ANSWER_KEEP_MS", 300)
    async with make() as backplane:
        await backplane.grow(growth(1, "one"))

        async def forgotten() -> bool:
            return not await backplane.so_far(["q-1"])

        await eventually(forgotten, 5)
        assert await backplane.grow(growth(2, "two")) is Grew.MISSING


async def test_no_more_answers_are_kept_in_memory_than_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "MOST_ANSWERS", 3)
    kept = answers.AnswersSoFar()
    for number in range(10):
        kept.grow(msgspec.structs.replace(growth(1, "one"), question=f"q-{number}"), 1)
    assert sorted(kept.read([f"q-{number}" for number in range(10)], 1)) == ["q-7", "q-8", "q-9"]


async def test_a_slow_listener_gets_everything(backplane: Backplane) -> None:
    async def publish() -> None:
        for i in range(150):
            await backplane.publish([append("1", *(f"{i}/{j}" + "x" * 500 for j in range(100)))])

    async with Ear(backplane) as ear, asyncio.TaskGroup() as tasks:
        await ear.follow("1")
        ear.open.clear()
        publishing = tasks.create_task(publish())
        await asyncio.wait([publishing], timeout=0.5)  # memory waits for its listener, Redis doesn't
        ear.open.set()
        await ear.until(lambda: len(ear.entries) == 15_000, limit_s=30)


# Notices and tickets


NAME, OTHER = "0a" * 32, "0b" * 32
LIFE = TicketLife(fresh_ms=30_000, lives_ms=3_600_000)


async def test_a_notice_reaches_the_listener_of_its_topic(backplane: Backplane) -> None:
    kicks: list[str] = []
    tickets: list[str] = []
    backplane.hear_notices(NoticeTopic.KICK, kicks.append)
    backplane.hear_notices(NoticeTopic.TICKET, tickets.append)
    async with Ear(backplane) as ear:
        await ear.follow("1")
        await backplane.notify(NoticeTopic.KICK, "ann 1 ü")
        await backplane.notify(NoticeTopic.TICKET, "x")
        await backplane.notify(NoticeTopic.KICK, "bo 2")
        await eventually(lambda: len(kicks) == 2 and tickets)
        # Beside the logs: their readers hear nothing of it.
        await backplane.publish([append("1", "a")])
        await ear.until_body("a")
    assert (kicks, tickets) == (["ann 1 ü", "bo 2"], ["x"])
    assert ear.of("1") == ["a"]


async def test_a_ticket_is_opened_by_itself_while_it_is_fresh(backplane: Backplane) -> None:
    heard: list[str] = []
    backplane.hear_notices(NoticeTopic.TICKET, heard.append)
    async with Ear(backplane) as ear:
        await ear.follow("1")
        await backplane.keep_ticket(NAME, Ticket("änn", 1_700_000_000), LIFE)
        await backplane.keep_ticket(OTHER, Ticket("bo", None), LIFE)
        first = await backplane.open_ticket(NAME, resumes=False)
        again = await backplane.open_ticket(NAME, resumes=True)
        other = await backplane.open_ticket(OTHER, resumes=False)
        await eventually(lambda: len(heard) == 3)
    assert isinstance(first, OpenedTicket)
    assert isinstance(again, OpenedTicket)
    assert isinstance(other, OpenedTicket)
    assert first.ticket == again.ticket == Ticket("änn", 1_700_000_000)
    assert other.ticket == Ticket("bo", None)
    assert (first.number, again.number, other.number) == (1, 2, 1)
    assert 3_590_000 < again.left_ms <= first.left_ms <= 3_600_000
    assert heard == [f"{NAME} 1", f"{NAME} 2", f"{OTHER} 1"]
    assert await backplane.ticket_openings([NAME, OTHER, "0c" * 32]) == {NAME: 2, OTHER: 1}
    assert await backplane.ticket_openings([]) == {}


async def test_later_a_ticket_that_was_opened_opens_for_who_resumes(backplane: Backplane) -> None:
    await backplane.keep_ticket(NAME, Ticket("ann", 1), TicketLife(100, 600_000))
    assert isinstance(await backplane.open_ticket(NAME, resumes=False), OpenedTicket)

    async def is_old() -> bool:
        return await backplane.open_ticket(NAME, resumes=False) is TicketRefusal.USED

    await eventually(is_old)
    before = (await backplane.ticket_openings([NAME]))[NAME]
    assert isinstance(await backplane.open_ticket(NAME, resumes=True), OpenedTicket)
    assert (await backplane.ticket_openings([NAME]))[NAME] == before + 1

    # One that nobody opened in its time opens for nobody.
    await backplane.keep_ticket(OTHER, Ticket("bo", 1), TicketLife(0, 600_000))
    assert await backplane.open_ticket(OTHER, resumes=True) is TicketRefusal.USED
    assert await backplane.ticket_openings([OTHER]) == {OTHER: 0}


async def test_a_ticket_ends_and_an_unknown_one_is_none(backplane: Backplane) -> None:
    assert await backplane.open_ticket(NAME, resumes=True) is TicketRefusal.UNKNOWN
    await backplane.keep_ticket(NAME, Ticket("ann", None), TicketLife(30_000, 200))
    first = await backplane.open_ticket(NAME, resumes=False)
    assert isinstance(first, OpenedTicket)
    assert 0 < first.left_ms <= 200

    async def has_ended() -> bool:
        return await backplane.open_ticket(NAME, resumes=True) is TicketRefusal.EXPIRED

    await eventually(has_ended)


async def test_of_many_openings_together_each_has_a_number_of_its_own(backplane: Backplane) -> None:
    await backplane.keep_ticket(NAME, Ticket("ann", 1), LIFE)
    found = await asyncio.gather(*(backplane.open_ticket(NAME, resumes=False) for _ in range(50)))
    assert sorted(one.number for one in found if isinstance(one, OpenedTicket)) == list(range(1, 51))


# Reading


@pytest.mark.parametrize("limit", [1, 2, 7])
async def test_reading_in_pages_merges_by_order_and_misses_nothing(backplane: Backplane, limit: int) -> None:
    await backplane.publish([append(BROADCAST, *(f"b{i}" for i in range(40)))])
    for i in range(30):
        await backplane.publish([append("1", f"p{i}"), append(BROADCAST, f"m{i}"), append("2", "z")])
    after = {BROADCAST: 3, "1": 0, "2": 29}
    heard: list[str] = []
    pages = 0
    more = True
    while more:
        page = await backplane.read(after, limit=limit)
        assert len(page.entries) <= limit
        assert page.entries
        for entry in page.entries:
            assert entry.number == after[entry.log] + 1
            after[entry.log] = entry.number
        heard += bodies(page.entries)
        more = page.more
        pages += 1
    assert pages >= 98 / limit
    mixed = [body for i in range(30) for body in (f"p{i}", f"m{i}")]
    assert heard == [f"b{i}" for i in range(3, 40)] + mixed + ["z"]
    assert after == {log: head.number for log, head in page.heads.items()}


async def test_reading_at_the_end_or_beyond_gives_nothing(backplane: Backplane) -> None:
    await backplane.publish([append("1", "a")])
    for number in (1, 2, 10**14):
        page = await backplane.read({"1": number, "2": number}, limit=10)
        assert (page.entries, page.more) == ((), False)
        assert (page.heads["1"].number, page.heads["2"].number) == (1, 0)


async def test_since_gives_the_number_before_the_first_entry_at_or_after_a_time(backplane: Backplane) -> None:
    for i in range(6):
        await backplane.publish([append("1", str(i))])
        await asyncio.sleep(0.003)  # so that entries differ in their time
    entries = (await backplane.read({"1": 0}, limit=10)).entries
    for entry in entries:
        before = [e.number for e in entries if e.at_ms < entry.at_ms]
        assert await backplane.since(["1"], entry.at_ms) == {"1": max(before, default=0)}
    logs = ("1", "2")
    assert await backplane.since(logs, 0) == {"1": 0, "2": 0}
    assert await backplane.since(logs, entries[-1].at_ms + 1) == {"1": 6, "2": 0}


async def test_the_first_change_of_a_person_after_a_number(backplane: Backplane) -> None:
    def changed(user: str, version: int) -> Draft:
        change = Change(user, version, ("news",), ("news", "alarm"))
        return Draft(Publication("preferences", b"data: {}\n", (user,), change=change))

    for version in range(300):
        await backplane.publish([Append("1", (changed("bo", version),))])
    await backplane.publish([Append("1", (Draft(publication("x")), changed("ann", 7), changed("ann", 8)))])
    found = await backplane.first_change("1", "ann", 0)
    assert found == Change("ann", 7, ("news",), ("news", "alarm"))
    assert (await backplane.first_change("1", "ann", 301)) == found
    later = await backplane.first_change("1", "ann", 302)
    assert later is not None
    assert later.version == 8
    assert await backplane.first_change("1", "ann", 303) is None
    assert await backplane.first_change("2", "ann", 0) is None


# Trimming


async def test_a_log_keeps_so_many_bytes_and_numbers_go_on(make: Make) -> None:
    async with make(keep_bytes=70_000) as backplane:
        for i in range(40):
            await backplane.publish([append("1", *(f"{i}" + "x" * 1000 for _ in range(10)))])
        page = await backplane.read({"1": 0}, limit=1000)
        head = page.heads["1"]
        assert 50 <= len(page.entries) <= 70
        assert (head.number, head.first) == (400, 401 - len(page.entries))
        assert [entry.number for entry in page.entries] == list(range(head.first, 401))
        assert 0 < head.trimmed_ms <= page.entries[0].at_ms
        assert (await backplane.since(["1"], 0)) == {"1": head.first - 1}


async def test_the_broadcast_log_keeps_sixteen_times_as_much(make: Make) -> None:
    async with make(keep_bytes=65_536) as backplane:
        for _ in range(15):
            await backplane.publish([append(BROADCAST, *("x" * 1000 for _ in range(100)))])
        assert 930 <= len((await backplane.read({BROADCAST: 0}, limit=1500)).entries) <= 1040


async def test_changes_are_trimmed_with_their_log(make: Make) -> None:
    change = Publication("preferences", b"data: {}\n", ("ann",), change=Change("ann", 1, (), ("news",)))
    async with make(keep_bytes=65_536) as backplane:
        await backplane.publish([Append("1", (Draft(change),))])
        assert await backplane.first_change("1", "ann", 0) == change.change
        for _ in range(4):
            await backplane.publish([append("1", *("x" * 10_000 for _ in range(6)))])
        assert await backplane.first_change("1", "ann", 0) is None


async def _put(backplane: Backplane, log: str) -> Entry:
    """An entry appended now; another where the machine stood still for as long as one is kept."""
    while True:
        number = (await backplane.publish([append(log, "new")])).marks[log].number
        for entry in (await backplane.read({log: number - 1}, limit=1)).entries:
            return entry


async def test_a_log_keeps_what_is_not_too_old(make: Make) -> None:
    async with make(keep_s=0.3) as backplane:
        await backplane.publish([append("1", "old"), append("2", "old")])
        first = (await backplane.read({"1": 0}, limit=10)).heads["1"]

        async def empty() -> bool:
            return not (await backplane.read({"1": 0, "2": 0}, limit=10)).entries

        await eventually(empty)
        head = (await backplane.read({"1": 0}, limit=10)).heads["1"]
        assert (head.epoch, head.number, head.first) == (first.epoch, 1, 2)
        assert head.trimmed_ms > 0
        new = await _put(backplane, "1")
        assert (bodies([new]), new.number > 1) == (["new"], True)


async def test_a_busy_log_keeps_what_is_not_too_old(make: Make) -> None:
    async with make(keep_s=0.3) as backplane:
        started = time.monotonic()
        put: dict[int, int] = {}
        while True:
            newest = await _put(backplane, "1")
            put[newest.number] = newest.at_ms
            if time.monotonic() > started + 0.8:
                page = await backplane.read({"1": 0}, limit=5000)
                if page.entries:
                    break
            await asyncio.sleep(0.001)  # so that times differ
        # By the clock of the log, which a node knows but for some milliseconds.
        later_ms = (await _put(backplane, "2")).at_ms
        first, head = page.entries[0], page.heads["1"]
        assert [entry.number for entry in page.entries] == [*range(first.number, newest.number + 1)]
        assert all(entry.at_ms == put.get(entry.number, entry.at_ms) for entry in page.entries)
        assert head.first == first.number > 1
        assert newest.at_ms - first.at_ms <= 320
        # What was trimmed last had been in the log for as long as it was to be kept. A late look trims, too.
        assert head.trimmed_ms == put.get(first.number - 1, head.trimmed_ms) <= later_ms - 280


def _more_than(ear: Ear, heard: int) -> bool:
    return len(ear.entries) > heard


async def test_the_clock_is_close_to_this_machines(backplane: Backplane) -> None:
    # A first answer that took long says little; the next one comes a second later.
    await eventually(lambda: abs(backplane.now_ms() - time.time() * 1000) < 1000)


# Uses


async def test_uses_are_counted_by_name_in_a_window_that_begins_with_the_first(make: Make) -> None:
    async with make() as backplane:
        # Redis is asked from when it has answered once.
        await eventually(lambda: backplane.available)
        for count in (1, 2, 3):
            used = await backplane.use("questions:ann", window_ms=60_000)
            assert used.seen == count
            assert 59_000 < used.left_ms <= 60_000
        assert (await backplane.use("questions:bo", window_ms=60_000)).seen == 1
        assert (await backplane.use("switches:ann", window_ms=60_000)).seen == 1


async def test_a_window_ends_and_the_next_use_begins_another(make: Make) -> None:
    async with make() as backplane:
        await eventually(lambda: backplane.available)
        for _ in range(5):
            used = await backplane.use("short", window_ms=1_500)

        async def is_over() -> bool:
            return (await backplane.use("short", window_ms=1_500)).seen == 1

        # A use doesn't make the window longer, or it would never end: it is used all the time.
        await eventually(is_over)
        assert used.seen == 5


async def test_uses_at_the_same_time_are_all_counted(make: Make) -> None:
    async with make() as backplane:
        await eventually(lambda: backplane.available)
        used = await asyncio.gather(*(backplane.use("x", window_ms=60_000) for _ in range(200)))
        assert sorted(each.seen for each in used) == list(range(1, 201))


async def test_a_window_that_nobody_uses_any_more_takes_no_memory() -> None:
    windows = Windows()
    tracemalloc.start()
    try:
        for number in range(1_000):
            windows.use(f"short {number}", window_ms=1)
        before = tracemalloc.get_traced_memory()[0]
        for number in range(20_000):
            windows.use(f"next {number}", window_ms=1)
        assert tracemalloc.get_traced_memory()[0] < before + 500_000
    finally:
        tracemalloc.stop()


async def test_no_more_windows_are_open_than_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MOST_COUNTED", 100)
    windows = Windows()
    assert windows.use("first", window_ms=60_000).seen == 1
    for number in range(99):
        windows.use(f"other {number}", window_ms=60_000)
    assert windows.use("first", window_ms=60_000).seen == 2
    windows.use("one too many", window_ms=60_000)
    assert windows.use("first", window_ms=60_000).seen == 1


# Allowances

ALLOWANCE = 60_000


async def test_an_allowance_is_taken_from_until_nothing_is_left(make: Make) -> None:
    async with make() as backplane:
        await eventually(lambda: backplane.available)
        # Whole as long as nobody takes anything.
        assert await backplane.spend("bytes:ann", 0, most_ms=ALLOWANCE) == Spent(True, 0)
        assert await backplane.spend("bytes:ann", 40_000, most_ms=ALLOWANCE) == Spent(True, 40_000)
        # What is left is less than this takes: then the next ones wait for longer.
        taken, whole_ms = await backplane.spend("bytes:ann", 50_000, most_ms=ALLOWANCE)
        assert taken
        assert ALLOWANCE < whole_ms <= 90_000
        # One that isn't taken makes the wait no longer.
        for _ in range(3):
            taken, left_ms = await backplane.spend("bytes:ann", 50_000, most_ms=ALLOWANCE)
            assert not taken
            assert left_ms <= whole_ms
        assert (await backplane.spend("bytes:bo", 1, most_ms=ALLOWANCE)).taken
        # What somebody owes is always taken.
        taken, owed_ms = await backplane.spend("bytes:ann", 50_000, most_ms=None)
        assert taken
        assert left_ms < owed_ms <= left_ms + 50_000


async def test_an_allowance_refills_by_itself(make: Make) -> None:
    async with make() as backplane:
        await eventually(lambda: backplane.available)
        began = time.monotonic()
        await backplane.spend("ann", 700, most_ms=200)

        async def has_room() -> bool:
            return (await backplane.spend("ann", 0, most_ms=200)).taken

        await eventually(has_room)
        assert time.monotonic() - began > 0.49


async def test_of_those_who_take_at_the_same_time_none_gets_more_than_there_is(make: Make) -> None:
    async with make() as backplane:
        await eventually(lambda: backplane.available)
        spent = await asyncio.gather(*(backplane.spend("x", 10_000, most_ms=ALLOWANCE) for _ in range(50)))
        # The seventh may find a little that has come back meanwhile.
        assert sum(each.taken for each in spent) in (6, 7)


async def test_allowances_that_are_whole_again_take_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    allowances = Allowances()
    tracemalloc.start()
    try:
        # One that isn't whole is no hindrance.
        allowances.spend("ann", ALLOWANCE, most_ms=None)
        for number in range(1_000):
            allowances.spend(f"short {number}", 1, most_ms=ALLOWANCE)
        before = tracemalloc.get_traced_memory()[0]
        for number in range(20_000):
            allowances.spend(f"next {number}", 1, most_ms=ALLOWANCE)
        assert tracemalloc.get_traced_memory()[0] < before + 500_000
    finally:
        tracemalloc.stop()
    assert not allowances.spend("ann", 1, most_ms=ALLOWANCE // 2).taken
    monkeypatch.setattr(limits, "MOST_COUNTED", 100)
    for number in range(20_000):
        allowances.spend(f"long {number}", ALLOWANCE, most_ms=ALLOWANCE)
    assert sum(not allowances.spend(f"long {n}", 0, most_ms=1).taken for n in range(20_000)) <= 100


async def test_what_a_person_owes_is_paid_by_the_next_call_at_any_node(make: Make) -> None:
    async with make() as backplane:
        await eventually(lambda: backplane.available)
        limited: Counter[str] = Counter()
        refused: list[AllowanceSpent] = []
        here, there = (LogAllowance(backplane, quota=6_000, limited=limited) for _ in range(2))
        settling = asyncio.create_task(here.run())
        try:
            await here.take("ann", 1_000)
            here.owe("ann", 7_000)

            async def is_refused() -> bool:
                try:
                    await there.take("ann")
                except AllowanceSpent as error:
                    refused.append(error)
                return bool(refused)

            await eventually(is_refused)
        finally:
            settling.cancel()
        # 8,000 bytes at 100 bytes a second, of which a minute's worth is no reason to wait.
        assert 10 < refused[0].after_s <= 21
        assert 70 < refused[0].whole_s <= 80
        assert limited == {"log_bytes": 1}
        # At the same node at once.
        await there.take("bo", 0)
        there.owe("bo", 6_001)
        with pytest.raises(AllowanceSpent):
            await there.take("bo")
        await there.take("eve", 1)


async def test_who_waits_as_long_as_said_is_let_in(make: Make) -> None:
    async with make() as backplane:
        await eventually(lambda: backplane.available)
        small = LogAllowance(backplane, quota=6_000)
        await small.take("ann", 6_050)
        with pytest.raises(AllowanceSpent) as refused:
            await small.take("ann", 1)
        assert refused.value.after_s == 1
        await asyncio.sleep(refused.value.after_s)
        await small.take("ann", 1)


async def test_changes_count_with_all_that_they_carry(make: Make) -> None:
    names = tuple(f"{number:03}".ljust(64, "x") for number in range(200))
    change = Change("ann", 1, names, names)
    async with make(keep_bytes=65_536) as backplane:
        for _ in range(5):
            await backplane.publish_to(
                "ann", [Draft(Publication("preferences", b"data: {}\n", ("ann",), change=change))]
            )
        page = await backplane.read({contract.log_of("ann", backplane.shards): 0}, limit=10)
        assert len(page.entries) <= 2


# Presence


async def test_who_is_where_is_told_and_forgotten(backplane: Backplane) -> None:
    tell = backplane.tell_presence
    assert not await tell("one", {"ann": Stay(1, 5)})
    assert await backplane.presence(("ann",)) == {}
    assert await tell("one", {"ann": Stay(1, 5), "李 四": Stay(2, 7, 3)}, anew=True)
    assert await tell("two", {"ann": Stay(3, 9)}, anew=True)
    assert await backplane.presence(("ann", "bo", "李 四")) == {
        "ann": {"one": Stay(1, 5), "two": Stay(3, 9)},
        "李 四": {"one": Stay(2, 7, 3)},
    }
    assert await tell("one", {"ann": None, "bo": Stay(0, 1, 2), "nobody": None})
    assert await backplane.presence(("ann", "bo")) == {
        "ann": {"two": Stay(3, 9)},
        "bo": {"one": Stay(0, 1, 2)},
    }
    assert await backplane.presence(()) == {}


async def test_after_its_lease_a_place_has_nobody_and_it_is_known_who_was_there(backplane: Backplane) -> None:
    began_ms = backplane.now_ms()
    here = {"ann": Stay(2, began_ms), "bo": Stay(0, 7, 9)}
    assert await backplane.tell_presence("one", here, anew=True)
    assert await backplane.tell_presence("two", here, anew=True, lease_ms=40)
    await backplane.end_presence("one")
    assert not await backplane.tell_presence("one", {})

    async def ended() -> bool:
        return all(not stay.streams for stay in (await backplane.presence(("ann",)))["ann"].values())

    await eventually(ended)
    # With its lease has ended whatever it told.
    assert not await backplane.tell_presence("two", {})
    found = await backplane.presence(("ann", "bo"))
    assert found["bo"] == {"one": Stay(0, 7, 9), "two": Stay(0, 7, 9)}
    for stay in found["ann"].values():
        # The last that is known of it is a lease older than its end.
        assert stay.since_ms == began_ms
        assert began_ms - CLOCK_MS <= stay.left_ms + PRESENCE_LEASE_MS <= after_all(backplane)
    assert await backplane.tell_presence("one~2", {"ann": Stay(1, began_ms)}, anew=True)
    assert (await backplane.presence(("ann",)))["ann"]["one~2"] == Stay(1, began_ms)


async def test_a_thousand_people_are_asked_about_at_once(backplane: Backplane) -> None:
    people = {f"user-{i}": Stay(1, i) for i in range(500)}
    assert await backplane.tell_presence("one", people, anew=True)
    more = {f"more-{i}": Stay(2, i) for i in range(500)}
    assert await backplane.tell_presence("one", more)
    asked = [*people, *more, *(f"nobody-{i}" for i in range(200))]
    found = await backplane.presence(asked)
    assert found == {user: {"one": stay} for user, stay in (people | more).items()}
    await publish_to_people(backplane, "1", *asked)
    search = await backplane.missed(
        {"1": Mark("", 0)}, before_ms=after_all(backplane), away_ms=10_000, limit=10_000
    )
    assert [each.users for each in search.missed] == [tuple(asked[1000:])]


async def publish_to_people(backplane: Backplane, log: str, *users: str) -> int:
    """Publishes an event that can be switched off; its number."""
    event = Publication("news", b'data: {"id":"x","type":"news"}\n', users, switchable=True)
    return (await backplane.publish([Append(log, (Draft(event),))])).marks[log].number


async def test_who_was_away_at_a_time(backplane: Backplane) -> None:
    people = (
        "stays",
        "came",
        "came late",
        "left",
        "left before",
        "back",
        "back late",
        "visited",
        "visited late",
    )
    everybody = (*people, "on a dead node", "on one dead before", "nobody")
    await publish_to_people(backplane, "1", *everybody)
    [entry] = (await backplane.read({"1": 0}, limit=1)).entries
    at = entry.at_ms
    tell = backplane.tell_presence
    here = {
        "stays": Stay(1, at - 30_000),
        # Within the ten seconds, and after them.
        "came": Stay(1, at + 10_000),
        "came late": Stay(1, at + 10_001),
        "left": Stay(0, at - 30_000, at),
        "left before": Stay(0, at - 30_000, at - 1),
        "back": Stay(1, at + 17_000, at),
        "back late": Stay(1, at + 17_000, at - 1),
        "visited": Stay(0, at + 10_000, at + 16_000),
        "visited late": Stay(0, at + 10_001, at + 16_000),
    }
    assert await tell("alive", here, anew=True)
    # Its last word is as old as the event, or as old as a lease.
    assert await tell("dead", {"on a dead node": Stay(0, at - 30_000, at)}, anew=True)
    assert await tell("dead before", {"on one dead before": Stay(1, at - 30_000)}, anew=True)
    await backplane.end_presence("dead")
    await backplane.end_presence("dead before")
    search = await backplane.missed(
        {"1": Mark("", 0)}, before_ms=after_all(backplane), away_ms=10_000, limit=100
    )
    [missed] = search.missed
    assert missed.entry == entry
    assert missed.users == (
        "came late", "left before", "back late", "visited late", "on one dead before", "nobody",
    )  # fmt: skip
    assert not search.more


async def test_a_search_looks_at_each_log_up_to_a_time_and_goes_on_where_it_was(backplane: Backplane) -> None:
    assert await backplane.tell_presence("one", {"ann": Stay(1, 5)}, anew=True)
    search = partial(backplane.missed, away_ms=10_000)
    nothing = await search({"1": Mark("", 0), "2": Mark("", 0)}, before_ms=after_all(backplane), limit=10)
    assert (nothing.missed, nothing.more) == ((), False)
    assert {log: mark.number for log, mark in nothing.marks.items()} == {"1": 0, "2": 0}
    for _ in range(30):
        await publish_to_people(backplane, "1", "bo", "ann")
    await publish_to_people(backplane, "2", "cy")
    # What isn't an event, and one that is for somebody who is there.
    await backplane.publish([append("2", "a switch")])
    await publish_to_people(backplane, "2", "ann")
    after, found, rounds, more = dict(nothing.marks), [], 0, True
    while more:
        portion = await search(after, before_ms=after_all(backplane), limit=12)
        # The short log doesn't wait until the long one is done.
        assert rounds or any(entry.log == "2" for entry, _ in portion.missed)
        after, more, rounds = dict(portion.marks), portion.more, rounds + 1
        found += [(entry.log, entry.number, users) for entry, users in portion.missed]
    assert sorted(found) == [*(("1", number, ("bo",)) for number in range(1, 31)), ("2", 1, ("cy",))]
    assert rounds > 5
    assert {log: mark.number for log, mark in after.items()} == {"1": 30, "2": 3}
    [last] = (await backplane.read({"1": 29}, limit=1)).entries
    before = await search({"1": Mark("", 29)}, before_ms=last.at_ms - 1, limit=10)
    assert (before.missed, before.marks["1"].number, before.more) == ((), 29, False)
    # In another epoch its number says nothing.
    again = await search({"1": Mark("another", 30)}, before_ms=after_all(backplane), limit=10_000)
    assert len(again.missed) == 30


async def test_an_event_for_thousands_is_searched_whole(backplane: Backplane) -> None:
    people = [f"user-{number}" for number in range(10_000)]
    assert await backplane.tell_presence("one", {user: Stay(1, 5) for user in people[:500]}, anew=True)
    await publish_to_people(backplane, "1", *people)
    search = await backplane.missed(
        {"1": Mark("", 0)}, before_ms=after_all(backplane), away_ms=10_000, limit=10
    )
    assert [each.users for each in search.missed] == [tuple(people[500:])]
    assert not search.more


async def test_a_search_among_thousands_leaves_turns_of_the_loop_to_others(backplane: Backplane) -> None:
    logs = [str(number) for number in range(8)]
    for log in logs:
        await publish_to_people(backplane, log, *(f"user-{number}" for number in range(2_000)))
    turns, searching = 0, True

    def turn() -> None:
        nonlocal turns
        turns += 1
        if searching:
            asyncio.get_running_loop().call_soon(turn)

    turn()
    search = await backplane.missed(
        {log: Mark("", 0) for log in logs}, before_ms=after_all(backplane), away_ms=10_000, limit=10
    )
    searching = False
    assert len(search.missed) == len(logs)
    assert turns >= len(logs)


# Reports


async def test_what_nodes_say_about_themselves_holds_for_a_lease(backplane: Backplane) -> None:
    assert await backplane.reports() == {}
    await backplane.report("one", b"first", lease_ms=60_000)
    await backplane.report("zwei \u2014", "\u4e00 \x00".encode(), lease_ms=60_000)
    await backplane.report("dead", b"soon gone", lease_ms=1)
    await backplane.report("one", b"second", lease_ms=60_000)

    async def without_the_dead() -> bool:
        return "dead" not in await backplane.reports()

    await eventually(without_the_dead)
    # Of others a short lease takes nothing.
    assert await backplane.reports() == {"one": b"second", "zwei \u2014": "\u4e00 \x00".encode()}
    await backplane.end_report("one")
    await backplane.end_report("nobody")
    assert list(await backplane.reports()) == ["zwei \u2014"]


# Duties


async def test_a_duty_is_one_nodes_and_goes_on_where_it_was(make: Make) -> None:
    async with make() as backplane:
        assert await backplane.duty("watch", "one", {}, lease_ms=60_000) == {}
        marks = {"1": Mark("e", 5), "all": Mark("f", 2**40)}
        assert await backplane.duty("watch", "one", marks, lease_ms=60_000) == marks
        assert await backplane.duty("watch", "one", {"1": Mark("g", 1)}, lease_ms=60_000) == {
            **marks, "1": Mark("g", 1),
        }  # fmt: skip
        assert await backplane.duty("another", "two", {}, lease_ms=60_000) == {}
