"""What reaches a stream: every place it may stop at, every pace it may have, every switch on the way."""

import asyncio
import json
import random
import time

import pytest

from pushsse.backplane import Append, Draft, codec, log_of
from pushsse.errors import BackplaneUnavailable, CloseReason
from pushsse.hub import log_tail
from pushsse.hub.opening import From, StreamOptions
from pushsse.hub.people import PersonState
from pushsse.position import Mark
from pushsse.stream.frame import Chunk
from tests.hub.running_hub import SHARDS, ListSink, Reads, running_hub
from tests.waiting import eventually

pytestmark = pytest.mark.anyio
PEOPLE = tuple(f"p{n}" for n in range(12))


async def test_every_id_is_a_place_to_go_on_from_without_a_loss_or_a_repeat() -> None:
    draw = random.Random(1)
    async with running_hub() as w:
        whole = await w.open("p1")
        other = await w.open("p2")
        wanted: list[str] = []
        for_other: list[str] = []
        for number in range(300):
            users = draw.sample(PEOPLE, draw.randint(1, 3)) if draw.random() < 0.7 else []
            if not users or "p1" in users:
                wanted.append(str(number))
            if not users or "p2" in users:
                for_other.append(str(number))
            await w.publish("news", number, *users)
            if draw.random() < 0.05:
                await w.settled()
        await w.settled()
        assert whole.data() == wanted
        assert other.data() == for_other
        for _, data, place in draw.sample(whole.frames, 40):
            again = await w.open("p1", place)
            await w.settled()
            rest = wanted[wanted.index(data) + 1 :] if data in wanted else wanted
            assert again.data() == rest
            assert json.loads(again.frames[0][1])["resume"] == "complete"


async def test_an_entry_that_cannot_be_read_is_written_to_nobody() -> None:
    class Sink(ListSink):
        def write(self, chunk: Chunk) -> None:
            # Framed for HTTP/1.1, a chunk of nothing is the end of the body.
            assert chunk.raw
            super().write(chunk)

    async with running_hub() as w:
        sink = Sink()
        async with w.parts.opener.opening("ann", From()) as opening:
            sink.subscriber = w.parts.opener.begin(opening, sink, StreamOptions())
        await w.settled()
        for log in ("all", log_of("ann", SHARDS)):
            # As both backplanes decode what a release after the next has written.
            await w.backplane.publish([Append(log, (Draft(codec.Decoder().entry(b"\xff")),))])
        await w.publish("news", 1)
        await w.settled()
        assert sink.data() == ["1"]
        assert sink.live


async def test_streams_of_any_pace_get_the_same_in_the_same_order() -> None:
    draw = random.Random(2)
    async with running_hub() as w:
        steady = await w.open("p1")
        uneven = [await w.open("p1") for _ in range(5)]
        for number in range(400):
            await w.publish("news", number, *(["p1"] if number % 3 else []))
            for sink in uneven:
                if draw.random() < 0.2 and not sink.full:
                    sink.pause_after = draw.randint(1, 3)
                elif draw.random() < 0.3 and sink.full:
                    sink.resume()
            if number % 20 == 0:
                await w.settled()
            if number % 50 == 0:
                w.forget_tails()
        for sink in uneven:
            sink.resume()
        await w.settled()
        assert steady.data() == [str(n) for n in range(400)]
        for sink in uneven:
            assert sink.data() == steady.data()


async def test_switches_hold_at_their_place_whatever_the_pace() -> None:
    draw = random.Random(3)
    async with running_hub() as w:
        live = await w.open("p1")
        start = live.frames[0][2]
        slow = await w.open("p1")
        slow.pause_after = 1
        off: set[str] = set()
        expected: list[tuple[str, str]] = []
        for number in range(200):
            if draw.random() < 0.1:
                before = set(off)
                off ^= {draw.choice(("a", "b"))}
                await w.switch("p1", number, before, off)
            name = draw.choice(("a", "b"))
            if name not in off:
                expected.append((name, str(number)))
            await w.publish(name, number, *(["p1"] if number % 2 else []))
        await w.settled()
        assert [(n, d) for n, d, _ in live.frames if n in ("a", "b")] == expected
        slow.resume()
        again = await w.open("p1", start)
        await w.settled()
        # In a replay also what has been switched off since is held back.
        still = [(n, d) for n, d in expected if n not in off]
        assert [(n, d) for n, d, _ in again.frames if n in ("a", "b")] == still
        # The slow stream was full after the first of them, which it had got while its type was on.
        assert [(n, d) for n, d, _ in slow.frames if n in ("a", "b")] == expected[:1] + [
            each for each in still if each != expected[0]
        ]


async def test_a_person_with_a_narrow_and_a_wide_stream_gets_nothing_twice() -> None:
    async with running_hub() as w:
        wide = await w.open("p1")
        narrow = await w.open("p1", types=frozenset({"a"}))
        unnamed = await w.open("p1", named=False)
        for number in range(10):
            await w.publish("a" if number % 2 else "b", number)
        await w.settled()
        assert wide.data() == [str(n) for n in range(10)]
        assert narrow.data() == [str(n) for n in range(1, 10, 2)]
        assert unnamed.data() == wide.data()
        assert {name for name, _, _ in unnamed.frames} == {"ready", ""}


async def test_what_expires_while_the_node_stands_still_is_written_nowhere() -> None:
    async with running_hub() as w:
        w.people.known["p1"] = PersonState(1, frozenset({"other"}), False, None, False)
        live = await w.open("p1")
        start = live.frames[0][2]
        streams = [
            live,
            await w.open("p1", types=frozenset({"news"})),
            await w.open("p1", named=False),
            await w.open("p2"),
        ]
        slow = await w.open("p1")
        slow.pause_after = 1
        await w.publish("news", "kept 1")
        await w.settled()
        await w.publish("news", "late 1", "p1", "p2", ttl_ms=500)
        await w.publish("news", "late 2", ttl_ms=500)
        await w.publish("news", "kept 2", "p1", "p2", ttl_ms=60_000)
        # Nothing is delivered meanwhile, as in a process that was stopped.
        time.sleep(0.6)  # noqa: ASYNC251
        await w.publish("news", "late 3", ttl_ms=500)
        time.sleep(0.6)  # noqa: ASYNC251
        await w.settled()
        for stream in streams:
            assert stream.data() == ['"kept 1"', '"kept 2"']
        shards = {log_of(user, SHARDS) for user in ("p1", "p2")}
        # Once for the node, however many streams it has.
        assert w.hub.metrics.expired == len(shards) + 2
        assert w.hub.broadcast.mark.number == 3
        slow.resume()
        again = await w.open("p1", start)
        await w.settled()
        for stream in (slow, again):
            assert stream.data() == ['"kept 1"', '"kept 2"']
            assert stream.live
        for _, data, place in live.frames[-1:]:
            assert data == '"kept 2"'
            after = await w.open("p1", place)
            await w.settled()
            assert after.data() == []


async def test_a_lost_log_is_told_as_a_gap_and_streams_go_on_in_the_new_epoch() -> None:
    async with running_hub() as w:
        live = await w.open("p1")
        behind = await w.open("p1")
        await w.publish("news", 1)
        await w.settled()
        behind.pause_after = 1
        await w.publish("news", 2)
        await w.settled()
        for log in ("all", log_of("p1", SHARDS)):
            w.lose(log, epoch="another1")
        behind.resume()
        await w.settled()
        assert live.live
        assert behind.live
        for sink in (live, behind):
            ready = [json.loads(data)["resume"] for name, data, _ in sink.frames if name == "ready"]
            assert ready == ["new", "gap"]
            assert sink.frames[-1][2].startswith("another1-")
        assert w.hub.metrics.logs_lost == 2


async def test_a_switch_that_was_lost_with_its_log_also_reaches_a_stream_that_is_just_opening(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running_hub() as w:
        reads = Reads(w.backplane, monkeypatch)
        opening = asyncio.create_task(w.open("p1", From(since_s=60)))
        # By now it has read the switches.
        await eventually(lambda: reads.count == 1)
        w.people.known["p1"] = PersonState(1, frozenset({"news"}), False, None, False)
        w.lose(log_of("p1", SHARDS), epoch="another1")
        reads.gate.set()
        sink = await opening
        await eventually(lambda: sink.live)
        assert sink.subscriber.person.off == {"news"}


async def test_a_change_that_the_log_has_lost_keeps_nobody_from_opening_streams() -> None:
    """A Redis that lost its last second came back while no node was there that had heard it."""
    async with running_hub() as w:
        log = log_of("ann", SHARDS)
        head = (await w.heads())[log]
        lost = Mark(head.epoch, head.number + 5)
        w.people.known["ann"] = PersonState(7, frozenset({"alarm"}), False, lost, False)
        async with asyncio.timeout(2):
            sink = await w.open("ann")
        await w.publish("alarm", "off", "ann")
        await w.publish("news", "on", "ann")
        await w.settled()
        assert sink.data() == ['"on"']


async def test_a_position_trimmed_away_is_a_gap_and_then_what_is_left() -> None:
    async with running_hub(keep_bytes=4096) as w:
        first = await w.open("p1")
        start = first.frames[0][2]
        first.subscriber.end(CloseReason.LIFETIME)
        for number in range(200):
            await w.publish("news", [number, "x" * 100], "p1")
        await w.settled()
        # The node's own memory is larger than such a small log: as if it had been started since.
        log = w.hub.shards[log_of("p1", SHARDS)].log
        log.begin((await w.heads())[log.name], ())
        again = await w.open("p1", start)
        await w.settled()
        assert json.loads(again.frames[0][1])["resume"] == "gap"
        oldest = (await w.heads())[log.name].first
        # Entry n of the log has the event n - 1.
        assert [json.loads(data)[0] for data in again.data()] == list(range(oldest - 1, 200))
        assert oldest > 1


async def test_who_makes_no_progress_is_cut_as_slow() -> None:
    async with running_hub(send_timeout_s=0.1) as w:
        sink = await w.open("p1")
        sink.pause_after = 1
        await w.publish("news", 1)
        await eventually(lambda: sink.ended)
        name, data, place = sink.frames[-1]
        assert (name, json.loads(data)["code"]) == ("exception", "slow")
        await w.publish("news", 2)
        again = await w.open("p1", place)
        await w.settled()
        assert again.data() == ["2"]


async def test_the_wheel_pings_the_quiet_ends_the_old_and_buries_the_ended() -> None:
    async with running_hub() as w:
        heartbeat = w.hub.heartbeat
        quiet = await w.open("p1")
        busy = await w.open("p2")
        short = await w.open("p3", expires_at=1.0)
        heartbeat.turn(w.hub)
        assert json.loads(short.frames[-1][1])["code"] == "token_expired"
        for _ in range(20):
            heartbeat.turn(w.hub)
        await w.publish("news", 1, "p2")
        await w.settled()
        for _ in range(12):
            heartbeat.turn(w.hub)
        assert short.aborted
        assert [name for name, _, _ in quiet.frames] == ["ready", "ping"]
        assert [name for name, _, _ in busy.frames] == ["ready", "news"]
        for _ in range(30):
            heartbeat.turn(w.hub)
        assert [name for name, _, _ in busy.frames] == ["ready", "news", "ping"]


async def test_a_shard_that_nobody_needs_is_left_and_can_be_followed_again() -> None:
    async with running_hub() as w:
        sink = await w.open("p1")
        await w.publish("news", 1, "p1")
        await w.settled()
        sink.subscriber.gone()
        assert w.hub.shards
        for _ in range(200):
            w.hub.heartbeat.turn(w.hub)
        assert not w.hub.shards
        await w.publish("news", 2, "p1")
        again = await w.open("p1", sink.frames[-1][2])
        await w.settled()
        assert again.data() == ["2"]


async def test_nobody_waits_for_ever_for_logs_that_the_node_does_not_hear(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(log_tail, "WAIT_LIMIT_S", 0.05)
    async with running_hub() as w:
        monkeypatch.setattr(w.backplane, "follow", lambda _: None)
        async with asyncio.timeout(5):
            with pytest.raises(BackplaneUnavailable):
                await w.open("ann")
            with pytest.raises(BackplaneUnavailable):
                async with w.hub.publications("ann", "question"):
                    pass
        assert not any(shard.people for shard in w.hub.shards.values())


async def test_since_begins_at_a_time() -> None:
    async with running_hub() as w:
        await w.publish("news", 1)
        sink = await w.open("p1", From(since_s=60))
        await w.settled()
        assert sink.data() == ["1"]
        assert json.loads(sink.frames[0][1])["resume"] == "complete"


async def test_who_joins_while_an_answer_grows_gets_it_from_its_beginning() -> None:
    async with running_hub() as w:
        w.people.known["p1"] = PersonState(0, frozenset(), False, None, True)
        sink = await w.open("p1")
        other = await w.open("p2")
        await w.publish("news", 1)
        await w.settled()
        await eventually(lambda: len(sink.frames) == 3)
        assert sorted(name for name, _, _ in sink.frames) == ["answer.delta", "news", "ready"]
        assert [name for name, _, _ in other.frames] == ["ready", "news"]


async def test_streams_that_began_together_reach_their_age_at_different_times() -> None:
    async with running_hub(lifetime_s=3_600) as w:
        sinks = [await w.open(f"p{number % 50}") for number in range(1_000)]
        expiries = [sink.subscriber.expiry for sink in sinks]
        assert {expiry and expiry.reason for expiry in expiries} == {CloseReason.LIFETIME}
        ends_s = sorted(expiry.tick * w.hub.heartbeat.tick_s for expiry in expiries if expiry)
        assert ends_s[0] >= 0.8 * 3_600 - 1
        assert ends_s[-1] <= 3_600 + 1
        # Spread over twelve minutes: of a thousand, no ten seconds see more than a few.
        assert max(sum(start <= end < start + 10 for end in ends_s) for start in ends_s) < 40


@pytest.mark.parametrize(
    ("token_s", "reason"), [(60, CloseReason.TOKEN_EXPIRED), (9_999, CloseReason.LIFETIME)]
)
async def test_a_stream_by_token_ends_at_the_earlier_of_both(token_s: float, reason: CloseReason) -> None:
    async with running_hub(lifetime_s=3_600) as w:
        sink = await w.open("p1", expires_at=time.time() + token_s)
        expiry = sink.subscriber.expiry
        assert expiry is not None
        assert expiry.reason is reason
        assert expiry.tick * w.hub.heartbeat.tick_s <= min(token_s, 3_600) + 2


async def test_no_stream_ends_before_its_token() -> None:
    async with running_hub() as w:
        heartbeat = w.hub.heartbeat
        for token_s in (0.1, 0.6, 1.2, 2.0, 2.2):
            sink = await w.open("p1", expires_at=time.time() + token_s)
            expiry = sink.subscriber.expiry
            assert expiry is not None
            # One tick may be due this very moment.
            assert token_s <= (expiry.tick - heartbeat.now - 1) * heartbeat.tick_s <= token_s + 1.5
