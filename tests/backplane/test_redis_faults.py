"""Redis breaks under a listener and a publisher: everything is heard in order and once, or told as lost."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from redis.exceptions import RedisError

from pushsse.backplane import BROADCAST, Append, Draft, NoticeTopic, Stay, codec
from pushsse.backplane.answers import Growth, LiveDelta
from pushsse.backplane.redis import RedisBackplane
from pushsse.backplane.redis.commands import Connector, RedisConnection, RedisReply, Script, script
from pushsse.backplane.redis.listen import Subscription
from pushsse.errors import BackplaneUnavailable, ClaimLost, NotOwner
from pushsse.event import Publication
from pushsse.metrics import Metrics
from pushsse.position import Mark
from tests.waiting import LIMIT_S, eventually

from .ear import OWNER, Ear, after_all, append, bodies, publication, sourced, user_of
from .redis_server import RedisServer

pytestmark = pytest.mark.anyio
LOGS = (BROADCAST, "1", "2")
NOR_THIS = LiveDelta("answer.delta", b"data: {}\n", (user_of("1"),), attempt=1)


def node(
    server: RedisServer,
    name: str = "here",
    *,
    keep_bytes: int = 64 * 1024**2,
    metrics: Metrics | None = None,
) -> RedisBackplane:
    return RedisBackplane(
        server.url,
        prefix="test:",
        node=name,
        shards=8,
        keep_s=600,
        keep_bytes=keep_bytes,
        metrics=metrics or Metrics(),
    )


def unheard(server: RedisServer, *, keep_bytes: int = 64 * 1024**2) -> RedisBackplane:
    """A node whose messages get lost: what it publishes is in the log, and nobody hears of it."""
    other = node(server, "unheard", keep_bytes=keep_bytes)
    other.channel = "nowhere:"
    return other


async def until_taken(backplane: RedisBackplane, *appends: Append, limit_s: float = 20) -> None:
    """Publishes the same appends until they are taken, as every publisher does."""
    async with asyncio.timeout(limit_s):
        while True:
            try:
                await backplane.publish(appends)
                return
            except ClaimLost:
                # As the owner of a partition does; Redis may be away again.
                with suppress(BackplaneUnavailable):
                    await backplane.claim("topic", 0, OWNER)
            except BackplaneUnavailable:
                await asyncio.sleep(0.05)  # as a publisher waits between its tries


class Publisher:
    """Publishes one record after another to each log, as Kafka's reader does, until it is stopped."""

    def __init__(self, backplane: RedisBackplane) -> None:
        self.sent = 0
        self._backplane = backplane
        self._stop = False

    async def run(self) -> None:
        while not self._stop:
            await until_taken(self._backplane, *(sourced(log, self.sent) for log in LOGS))
            self.sent += 1

    def stop(self) -> None:
        self._stop = True


@asynccontextmanager
async def traffic(backplane: RedisBackplane, ear: Ear) -> AsyncIterator[Publisher]:
    """A publisher at work; at the end everything must have been heard, in order and once."""
    publisher = Publisher(backplane)
    await ear.follow(*LOGS)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(publisher.run())
        await ear.until_body("20")
        yield publisher
        publisher.stop()
    await ear.until(lambda: all(len(ear.of(log)) >= publisher.sent for log in LOGS))
    if not ear.gaps:
        for log in LOGS:
            assert ear.of(log) == [str(i) for i in range(publisher.sent)]


def cut(server: RedisServer) -> None:
    server.admin.execute_command("CLIENT KILL TYPE pubsub")  # type: ignore[no-untyped-call]


async def goes_on(ear: Ear, publisher: Publisher) -> None:
    """Waits until what is published from now on is heard."""
    wanted = publisher.sent + 20
    await ear.until(lambda: int(bodies(ear.entries[-1:])[0]) >= wanted, limit_s=20)


async def test_a_cut_subscription_misses_nothing(own_server: RedisServer) -> None:
    metrics = Metrics()
    async with node(own_server, metrics=metrics) as backplane, Ear(backplane) as ear:
        async with traffic(backplane, ear) as publisher:
            for _ in range(5):
                cut(own_server)
                await goes_on(ear, publisher)
        assert not ear.gaps
        assert metrics.backplane_reconnects >= 4


async def test_a_frozen_redis_misses_and_doubles_nothing(
    own_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with node(own_server) as backplane, Ear(backplane) as ear:
        async with traffic(backplane, ear) as publisher:
            own_server.freeze()
            await eventually(lambda: not backplane.available)
            await eventually(lambda: "listening to Redis: no canary" in caplog.text)
            own_server.thaw()
            await goes_on(ear, publisher)
        assert not ear.gaps


async def test_notices_are_heard_again_after_an_outage(own_server: RedisServer) -> None:
    heard: list[str] = []
    async with node(own_server) as backplane, Ear(backplane) as ear:
        backplane.hear_notices(NoticeTopic.KICK, heard.append)
        await ear.follow("1")
        own_server.run("CLIENT", "KILL", "TYPE", "pubsub")

        async def is_heard() -> bool:
            # What a newer release, or a stranger, says is passed over.
            own_server.run("PUBLISH", "test:8:notices", "topic-of-a-newer-release 1")
            own_server.admin.publish("test:8:notices", b"\xff")
            await backplane.notify(NoticeTopic.KICK, "1 ann")
            return bool(heard)

        await eventually(is_heard)
    assert set(heard) == {"1 ann"}


async def test_a_killed_redis_with_its_file_misses_and_doubles_nothing(own_server: RedisServer) -> None:
    async with node(own_server) as backplane, Ear(backplane) as ear:
        async with traffic(backplane, ear) as publisher:
            for _ in range(2):
                own_server.kill()
                own_server.start()
                await goes_on(ear, publisher)
        assert not ear.gaps


async def test_paused_writes_miss_and_double_nothing(own_server: RedisServer) -> None:
    async with node(own_server) as backplane, Ear(backplane) as ear:
        async with traffic(backplane, ear) as publisher:
            own_server.admin.client_pause(4000, all=False)
            await goes_on(ear, publisher)
        assert not ear.gaps


async def test_an_overflowing_output_buffer_misses_nothing(own_server: RedisServer) -> None:
    own_server.admin.config_set("client-output-buffer-limit", "pubsub 65536 65536 1")
    metrics = Metrics()
    async with node(own_server, metrics=metrics) as backplane, Ear(backplane) as ear:
        await ear.follow(*LOGS)
        ear.open.clear()
        for i in range(40):
            await backplane.publish(
                [append(log, *(f"{i} " + "x" * 10_000 for _ in range(20))) for log in LOGS]
            )
        ear.open.set()
        await ear.until(lambda: len(ear.entries) == 40 * 20 * 3)
        assert not ear.gaps
        assert metrics.backplane_reconnects >= 1


async def test_an_emptied_redis_is_told_without_traffic(own_server: RedisServer) -> None:
    async with node(own_server) as backplane, Ear(backplane) as ear:
        await ear.follow(*LOGS)
        await backplane.publish([append(log, "before") for log in LOGS])
        await ear.until(lambda: len(ear.entries) == 3)
        own_server.admin.flushall()
        await ear.until(lambda: len(ear.gaps) == 3, limit_s=4)
        await backplane.publish([append("1", "after")])
        await ear.until_body("after", limit_s=2)
        assert ear.epochs["1"] == (await backplane.read({"1": 0}, limit=1)).heads["1"].epoch


async def test_an_emptied_redis_under_traffic_is_told_and_what_comes_after_is_heard(
    own_server: RedisServer,
) -> None:
    async with node(own_server) as backplane, Ear(backplane) as ear:
        await ear.follow(*LOGS)
        await backplane.publish([append(log, "before") for log in LOGS])
        await ear.until(lambda: len(ear.entries) == 3)
        own_server.admin.flushall()
        for i in range(10):
            await backplane.publish([append(log, str(i)) for log in LOGS])
        await ear.until(lambda: len(ear.entries) == 33)
        assert {gap.log for gap in ear.gaps} == set(LOGS)
        assert bodies(ear.entries[3:]) == [str(i) for i in range(10) for _ in LOGS]


async def test_an_earlier_owner_can_append_nothing_to_an_emptied_redis(own_server: RedisServer) -> None:
    async with node(own_server) as backplane:
        for owner in ("before", "after"):
            await backplane.claim("topic", 0, owner)
        await backplane.publish([sourced("1", 1, owner="after")])
        own_server.admin.flushall()
        # It was stopped, and wakes with a record in hand that the other owner has appended.
        with pytest.raises(ClaimLost):
            await backplane.publish([sourced("1", 1, owner="before")])
        with pytest.raises(ClaimLost):
            await backplane.publish([sourced("1", 2, owner="after")])
        await backplane.claim("topic", 0, "after")
        with pytest.raises(NotOwner):
            await backplane.publish([sourced("1", 1, owner="before")])
        await backplane.publish([sourced("1", 2, owner="after")])
        assert bodies((await backplane.read({"1": 0}, limit=9)).entries) == ["2"]


async def older_state(server: RedisServer, backplane: RedisBackplane, ear: Ear, folder: Path) -> None:
    """Five entries are heard, of which only the first two are there after this."""
    await ear.follow("1", "2")
    await backplane.publish([append("1", "a", "b")])
    await ear.until_body("b")
    server.save_to(folder)
    await backplane.publish([append("1", "c", "d", "e")])
    await ear.until_body("e")
    server.kill()
    server.restore(folder)


async def test_an_older_state_is_told_without_traffic(own_server: RedisServer, tmp_path: Path) -> None:
    async with node(own_server) as backplane, Ear(backplane) as ear:
        await older_state(own_server, backplane, ear, tmp_path.parent / f"{tmp_path.name}-older")
        own_server.start()
        await ear.until(lambda: len(ear.gaps) == 1, limit_s=6)
        assert (ear.gaps[0].log, ear.gaps[0].head.base) == ("1", 2)
        page = await backplane.read({"1": 0}, limit=9)
        assert bodies(page.entries) == ["a", "b"]
        await backplane.publish([append("1", "f")])
        await ear.until_body("f")


async def test_a_publisher_tells_by_its_own_knowledge_that_a_log_went_back(
    own_server: RedisServer, tmp_path: Path
) -> None:
    older = tmp_path.parent / f"{tmp_path.name}-older"
    async with node(own_server) as listening, node(own_server, "publishing") as backplane:
        async with Ear(listening) as ear:
            await older_state(own_server, backplane, ear, older)
        own_server.start()
        before = (await listening.read({"1": 0}, limit=9)).heads["1"]
        await until_taken(backplane, append("1", "f"))
        after = (await listening.read({"1": 0}, limit=9)).heads["1"]
    assert after.epoch != before.epoch
    assert (after.number, after.base) == (3, 2)


async def test_an_older_state_that_has_gone_on_already_is_told(
    own_server: RedisServer, tmp_path: Path
) -> None:
    async with node(own_server) as backplane, Ear(backplane) as ear:
        await older_state(own_server, backplane, ear, tmp_path.parent / f"{tmp_path.name}-older")
        aside = RedisServer(own_server.folder, "--appendonly", "yes", "--appendfsync", "always")
        aside.start()
        async with node(aside, "aside") as other:
            await other.publish([append("1", "C", "D", "E", "F", "G")])
        aside.close()
        own_server.start()
        await ear.until(lambda: len(ear.gaps) == 1, limit_s=6)
        await until_taken(backplane, append("1", "H"))
        await ear.until_body("H")
        assert bodies(ear.entries) == ["a", "b", "c", "d", "e", "H"]


async def test_an_older_state_of_a_log_that_its_node_has_left_is_another_epoch(
    own_server: RedisServer, tmp_path: Path
) -> None:
    older = tmp_path.parent / f"{tmp_path.name}-older"
    async with node(own_server) as backplane, node(own_server, "there") as other, Ear(backplane) as ear:
        await older_state(own_server, backplane, ear, older)
        # Its last stream has been gone for a minute, and the client still has the place of "e".
        backplane.unfollow("1")
        own_server.start()
        # By a node that knows nothing of the log, up to that place and beyond.
        await until_taken(other, append("1", "C", "D", "E", "F"))
        head = (await other.read({"1": 0}, limit=1)).heads["1"]
        assert head.number == 6
        async with asyncio.timeout(10):
            while (after := (await other.read({"1": 0}, limit=1)).heads["1"]).epoch == ear.epochs["1"]:
                await asyncio.sleep(0.05)
        assert (after.number, after.base) == (6, 6)
        # Once, however often the connection breaks from now on.
        cut(own_server)
        await until_taken(other, append("2", "g"))
        await ear.until_body("g")
        assert (await other.read({"1": 0}, limit=1)).heads["1"].epoch == after.epoch


async def test_two_nodes_agree_on_one_new_epoch(own_server: RedisServer, tmp_path: Path) -> None:
    older = tmp_path.parent / f"{tmp_path.name}-older"
    async with (
        node(own_server) as backplane,
        node(own_server, "there") as other,
        Ear(other) as there,
        Ear(backplane) as ear,
    ):
        await there.follow("1")
        await older_state(own_server, backplane, ear, older)
        own_server.start()
        await ear.until(lambda: bool(ear.gaps), limit_s=6)
        await there.until(lambda: bool(there.gaps), limit_s=6)
        await until_taken(backplane, append("1", "f"))
        await ear.until_body("f")
        await there.until_body("f")
        assert ear.epochs["1"] == there.epochs["1"]
        assert len(ear.gaps) == len(there.gaps) == 1


async def test_a_hole_is_filled_when_the_next_publication_shows_it(own_server: RedisServer) -> None:
    async with node(own_server) as backplane, unheard(own_server) as other, Ear(backplane) as ear:
        await ear.follow(*LOGS)
        for i in range(50):
            await other.publish([append(BROADCAST, f"b{i}"), append("1", f"p{i}")])
        await backplane.publish([append("1", "last"), append("2", "after")])
        await ear.until_body("after", limit_s=2)
    missed = [body for i in range(50) for body in (f"b{i}", f"p{i}")]
    assert bodies(ear.entries) == [*missed, "last", "after"]


async def test_what_was_missed_while_cut_comes_before_what_is_new(own_server: RedisServer) -> None:
    def subscribed() -> bool:
        return all(
            count == 1 for _, count in own_server.admin.pubsub_numsub("test:8:live:1", "test:8:live:2")
        )

    async with node(own_server) as backplane, unheard(own_server) as other, Ear(backplane) as ear:
        await ear.follow("1", "2")
        cut(own_server)
        await other.publish([append("1", "missed")])
        await eventually(subscribed)
        await backplane.publish([append("2", "new")])
        await ear.until(lambda: len(ear.entries) == 2)
        assert bodies(ear.entries) == ["missed", "new"]


async def test_a_hole_at_the_end_is_filled_without_traffic(own_server: RedisServer) -> None:
    async with node(own_server) as backplane, unheard(own_server) as other, Ear(backplane) as ear:
        await ear.follow(*LOGS)
        await other.publish([append("1", *map(str, range(5000))), append(BROADCAST, "end")])
        await ear.until_body("end", limit_s=4)
        assert bodies(ear.entries) == [*map(str, range(5000)), "end"]
        assert not ear.gaps


async def test_a_hole_that_was_trimmed_away_is_told_and_the_rest_is_heard(own_server: RedisServer) -> None:
    keep = 65_536
    async with (
        node(own_server, keep_bytes=keep) as backplane,
        unheard(own_server, keep_bytes=keep) as other,
        Ear(backplane) as ear,
    ):
        await ear.follow("1", "2")
        await backplane.publish([append("1", "heard")])
        # In one run of the script, so that the listener's canary sees all of it or nothing.
        await other.publish([append("1", f"{i} " + "x" * 10_000) for i in range(30)])
        await ear.until(lambda: any(body.startswith("29 ") for body in ear.of("1")))
        assert [gap.log for gap in ear.gaps] == ["1"]
        head = ear.gaps[0].head
        assert head.epoch == ear.followed["1"].head.epoch
        assert head.base == head.first - 1 == 31 - len(ear.entries[1:])


async def test_a_log_whose_meta_is_gone_begins_anew(own_server: RedisServer) -> None:
    async with node(own_server) as backplane, Ear(backplane) as ear:
        await ear.follow("1")
        await backplane.publish([append("1", "a", "b")])
        await ear.until_body("b")
        own_server.admin.delete("test:8:meta:1")
        await backplane.publish([append("1", "c")])
        await ear.until_body("c")
        page = await backplane.read({"1": 0}, limit=9)
        assert (bodies(page.entries), page.heads["1"].number) == (["c"], 1)
        assert len(ear.gaps) == 1


async def test_a_stream_beyond_its_meta_begins_anew(own_server: RedisServer) -> None:
    async with node(own_server) as backplane, node(own_server, "there") as other, Ear(other) as ear:
        await ear.follow("1")
        await other.publish([append("1", "a", "b", "c")])
        await ear.until_body("c")
        own_server.admin.hset("test:8:meta:1", "number", "1")
        await backplane.publish([append("1", "d")])
        await ear.until_body("d")
        page = await backplane.read({"1": 0}, limit=9)
        assert (bodies(page.entries), page.heads["1"].number) == (["d"], 2)
        assert len(ear.gaps) == 1


async def test_entries_that_somebody_deleted_are_told(own_server: RedisServer) -> None:
    async with node(own_server) as backplane, unheard(own_server) as other, Ear(backplane) as ear:
        await ear.follow("1")
        await other.publish([append("1", "a", "b", "c")])
        own_server.admin.delete("test:8:log:1")
        await ear.until(lambda: len(ear.gaps) == 1, limit_s=4)
        assert ear.gaps[0].head.base == 3
        await backplane.publish([append("1", "d")])
        await ear.until_body("d")


async def test_a_search_ends_where_somebody_deleted_entries(own_server: RedisServer) -> None:
    async with node(own_server) as backplane:
        await backplane.publish([append("1", "a", "b", "c", "d")])
        for number in (2, 4):
            own_server.admin.xdel("test:8:log:1", f"{number}-0")
        search = await backplane.missed(
            {"1": Mark("", 0)}, before_ms=after_all(backplane), away_ms=10_000, limit=100
        )
        assert bodies([each.entry for each in search.missed]) == ["a", "c"]
        assert (search.marks["1"].number, search.more) == (4, False)


async def test_a_search_forgets_the_places_of_nodes_that_are_gone(own_server: RedisServer) -> None:
    async with node(own_server) as backplane:
        for place in ("gone", "here"):
            assert await backplane.tell_presence(place, {"bo": Stay(1, 5)}, anew=True)
        # As when it expires, two minutes after the lease.
        own_server.admin.delete("test:8:presence:gone")
        await backplane.publish([append("1", "a")])
        search = await backplane.missed(
            {"1": Mark("", 0)}, before_ms=after_all(backplane), away_ms=10_000, limit=100
        )
        assert [each.users for each in search.missed] == [("ann",)]
        assert own_server.admin.smembers("test:8:present") == {b"here"}


async def test_a_place_of_which_redis_has_lost_a_telling_is_told_anew(
    own_server: RedisServer, tmp_path: Path
) -> None:
    """Who came in the last second would be taken for away as long as the stream lasts."""
    async with node(own_server) as backplane:
        assert await backplane.tell_presence("old", {"ann": Stay(1, 5)}, anew=True)
        assert await backplane.tell_presence("old", {"cy": Stay(1, 6)})
        older = tmp_path.parent / f"{tmp_path.name}-older"
        own_server.save_to(older)
        assert await backplane.tell_presence("old", {"bo": Stay(1, 7)})
        own_server.kill()
        own_server.restore(older)
        own_server.start()
        async with asyncio.timeout(10):
            while True:
                with suppress(BackplaneUnavailable):
                    assert not await backplane.tell_presence("old", {})
                    break
                await asyncio.sleep(0.05)
        people = {"ann": Stay(1, 5), "bo": Stay(1, 7)}
        assert await backplane.tell_presence("new", people, anew=True)
        assert await backplane.tell_presence("new", {"ann": None})
        assert (await backplane.presence(["bo"]))["bo"].keys() == {"new"}


async def test_what_was_told_comes_again_where_the_answer_was_lost(
    own_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, telling = RedisConnection.run, script("tell_presence")

    async def loses_the_answer(
        self: RedisConnection, wanted: Script, *arguments: str | bytes | int
    ) -> RedisReply:
        reply = await run(self, wanted, *arguments)
        if wanted == telling:
            raise BackplaneUnavailable("no answer")
        return reply

    async with node(own_server) as backplane:
        assert await backplane.tell_presence("here", {"ann": Stay(1, 5)}, anew=True)
        with monkeypatch.context() as broken:
            broken.setattr(RedisConnection, "run", loses_the_answer)
            with pytest.raises(BackplaneUnavailable):
                await backplane.tell_presence("here", {"bo": Stay(1, 6)})
        # Once it works again, with who has come since: the place is as it was.
        assert await backplane.tell_presence("here", {"bo": Stay(1, 6), "cy": Stay(1, 7)})
        assert await backplane.tell_presence("here", {"ann": None})
        found = await backplane.presence(["ann", "bo", "cy"])
        assert found == {"bo": {"here": Stay(1, 6)}, "cy": {"here": Stay(1, 7)}}


async def test_a_search_for_absent_people_sends_a_few_mebibytes_at_a_time(own_server: RedisServer) -> None:
    count, most_bytes = 120, 5 * 1024**2
    event = Publication("news", b"data: " + b"x" * 48_000, ("ann",), switchable=True)
    async with node(own_server) as backplane:
        for _ in range(count):
            await backplane.publish([Append("1", (Draft(event),))])
        after, found, more = {"1": Mark("", 0)}, 0, True
        while more:
            search = await backplane.missed(after, before_ms=after_all(backplane), away_ms=10_000, limit=1000)
            assert 0 < len(search.missed) * len(event.body) < most_bytes
            after, more, found = dict(search.marks), search.more, found + len(search.missed)
        assert found == count


async def test_an_entry_that_cannot_be_read_is_for_nobody_and_its_number_counts(
    own_server: RedisServer,
) -> None:
    async with node(own_server) as backplane, Ear(backplane) as ear:
        await ear.follow("1")
        await backplane.publish([append("1", "a")])
        await ear.until_body("a")
        own_server.admin.xadd("test:8:log:1", {"o": 2, "t": ear.entries[0].at_ms, "b": b"\xff"}, id="2-0")
        own_server.admin.hset("test:8:meta:1", "number", "2")
        await ear.until(lambda: len(ear.entries) == 2, limit_s=4)
        assert ear.entries[1].publication.users == ()


async def test_a_log_of_another_format_is_one_line_and_not_one_of_each_entry(
    own_server: RedisServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """After a rollback over two releases all that is heard and read is of theirs."""
    monkeypatch.setattr(codec, "_VERSION", bytes((codec.VERSION + 2,)))
    async with node(own_server) as backplane, Ear(backplane) as ear:
        await ear.follow("1")
        for number in range(20):
            await backplane.publish([append("1", f"e{number}")])
        await ear.until(lambda: len(ear.entries) == 20)
        page = await backplane.read({"1": 0}, limit=100)
        search = await backplane.missed(
            {"1": Mark("", 0)}, before_ms=after_all(backplane), away_ms=10_000, limit=100
        )
    assert [entry.publication.users for entry in (*ear.entries, *page.entries)] == [()] * 40
    # Nobody was away for it either, and it isn't looked at again.
    assert (search.missed, search.marks["1"].number) == ((), 20)
    lines = [record.getMessage() for record in caplog.records if "can't be read" in record.getMessage()]
    assert f"version {codec.VERSION + 2}" in lines[0]
    # One, where this takes less than ten seconds.
    assert len(lines) < 5


async def test_names_are_forgotten_after_ten_minutes(own_server: RedisServer) -> None:
    def named(name: str) -> Draft:
        return Draft(publication(name), once=name)

    async with node(own_server) as backplane:
        await backplane.publish([Append("1", (named("new"),))])
        had = "test:8:had"
        new_ms = own_server.admin.zscore(had, named("new").names("1")[0])
        assert isinstance(new_ms, float)
        for i in range(150):
            own_server.admin.zadd(had, {named(str(i)).names("1")[0]: new_ms - 600_100})
        own_server.admin.zadd(had, {named("just").names("1")[0]: new_ms - 590_000})
        receipt = await backplane.publish([Append("1", (named("149"), named("just"), named("new")))])
        assert (receipt.appended, receipt.repeated) == (1, 2)
        await backplane.publish([Append("1", (named("b"),))])
        assert own_server.admin.zcard(had) == 4


async def fails_within(server: RedisServer, limit: asyncio.Timeout) -> None:
    async with node(server) as backplane, Ear(backplane) as ear:
        await ear.follow("1")
        server.freeze()
        # From here on: a busy machine may take longer to begin.
        limit.reschedule(asyncio.get_running_loop().time() + 1)
        raise LookupError("mine")


async def test_an_error_inside_goes_out_as_it_is_and_at_once(own_server: RedisServer) -> None:
    async with asyncio.timeout(LIMIT_S) as limit:
        with pytest.raises(LookupError, match="mine"):
            await fails_within(own_server, limit)
    own_server.thaw()


async def test_scripts_that_redis_forgot_are_sent_again(own_server: RedisServer) -> None:
    async with node(own_server) as backplane:
        await backplane.publish([append("1", "a")])
        own_server.admin.script_flush()
        await backplane.publish([append("1", "b")])
        own_server.admin.script_flush()
        assert bodies((await backplane.read({"1": 0}, limit=9)).entries) == ["a", "b"]


async def test_without_memory_nothing_is_half_appended(own_server: RedisServer) -> None:
    async with node(own_server) as backplane, Ear(backplane) as ear:
        await ear.follow("1")
        await backplane.claim("topic", 0, OWNER)
        own_server.admin.config_set("maxmemory", 1)
        for _ in range(3):
            with pytest.raises(BackplaneUnavailable, match="maxmemory"):
                await backplane.publish([sourced("1", 1, 2)])
        own_server.admin.config_set("maxmemory", 0)
        assert (await backplane.publish([sourced("1", 1, 2)])).appended == 2
        await ear.until_body("2")
        assert ear.of("1") == ["1", "2"]


async def test_a_late_reply_is_never_taken_for_another(own_server: RedisServer) -> None:
    async with node(own_server) as backplane:
        await backplane.claim("topic", 0, OWNER)
        await backplane.publish([sourced("1", 1)])
        own_server.freeze()
        with pytest.raises(BackplaneUnavailable):
            await backplane.publish([sourced("1", 2)])
        publishing = asyncio.create_task(backplane.publish([sourced("2", 1)]))
        done, _ = await asyncio.wait([publishing], timeout=0.1)
        assert not done
        publishing.cancel()
        await asyncio.wait([publishing])
        own_server.thaw()
        await until_taken(backplane, sourced("1", 2, 3))
        receipt = await backplane.publish([sourced("1", 3), sourced("2", 4)])
        assert (receipt.appended, receipt.fenced) == (1, 1)
        assert bodies((await backplane.read({"1": 0}, limit=9)).entries) == ["1", "2", "3"]


async def test_a_redis_that_comes_late_is_listened_to(own_server: RedisServer) -> None:
    own_server.kill()
    async with node(own_server) as backplane, Ear(backplane) as ear:
        backplane.follow("1")
        with pytest.raises(BackplaneUnavailable):
            await backplane.publish([append("1", "a")])
        with pytest.raises(BackplaneUnavailable):
            await backplane.read({"1": 0}, limit=1)
        assert not backplane.available
        own_server.start()
        await ear.until(lambda: "1" in ear.followed)
        await until_taken(backplane, append("1", "b"))
        await ear.until_body("b")


async def test_two_databases_of_one_redis_do_not_hear_each_other(own_server: RedisServer) -> None:
    async with node(own_server) as backplane, Ear(backplane) as ear:
        await ear.follow("1")
        own_server.database = 5
        async with node(own_server, "there") as other:
            await other.publish([append("1", "not this"), Append("1", (Draft(publication("x")),))])
            await other.grow(
                Growth(question="q", user=user_of("1"), attempt=1, after=0, seq=1, publications=(NOR_THIS,))
            )
        await backplane.publish([append("1", "this")])
        await ear.until_body("this")
        assert (bodies(ear.entries), ear.live, ear.gaps) == (["this"], [], [])


async def test_trouble_is_logged_once_and_so_is_its_end(
    own_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    def lines(text: str) -> int:
        return sum(text in record.getMessage() for record in caplog.records)

    caplog.set_level("INFO", "pushsse.backplane")
    async with node(own_server) as backplane, Ear(backplane) as ear:
        await ear.follow("1")
        own_server.kill()
        for _ in range(5):
            with pytest.raises(BackplaneUnavailable):
                await backplane.publish([append("1", "a")])
        await eventually(lambda: lines("listening to Redis: ") == 1)
        own_server.start()
        await until_taken(backplane, append("1", "b"))
        await ear.until_body("b")
        await eventually(lambda: lines("listening to Redis: works again") == 1)
        assert lines("Redis (publishing): works again") == 1
        assert lines("Redis (publishing): ") == 2


async def test_nodes_share_a_count_and_each_counts_alone_while_redis_is_away(own_server: RedisServer) -> None:
    async with node(own_server, "one") as one, node(own_server, "other") as other:
        await eventually(lambda: one.available and other.available)
        counted = [(await each.use("ann", window_ms=60_000)).seen for each in (one, other, one, other)]
        assert counted == [1, 2, 3, 4]
        own_server.stop()
        began = asyncio.get_running_loop().time()
        # Found out by the call itself at first, and then known.
        assert [(await one.use("ann", window_ms=60_000)).seen for _ in range(3)] == [1, 2, 3]
        assert (await other.use("ann", window_ms=60_000)).seen == 1
        assert asyncio.get_running_loop().time() - began < 5
        own_server.start()
        await eventually(lambda: one.available and other.available)
        assert (await one.use("ann", window_ms=60_000)).seen == 5
        assert (await other.use("ann", window_ms=60_000)).seen == 6


async def test_nodes_share_an_allowance_and_each_has_one_while_redis_is_away(own_server: RedisServer) -> None:
    async with node(own_server, "one") as one, node(own_server, "other") as other:
        await eventually(lambda: one.available and other.available)
        spent = [await each.spend("ann", 25_000, most_ms=60_000) for each in (one, other, one, other)]
        assert [each.taken for each in spent] == [True, True, True, False]
        own_server.stop()
        # Nobody is refused for the sake of it, beyond what a node sees by itself.
        alone = [await one.spend("ann", 30_000, most_ms=60_000) for _ in range(4)]
        assert [each.taken for each in alone][-1:] == [False]
        assert alone[0].taken
        assert (await other.spend("ann", 1, most_ms=60_000)).taken
        own_server.start()
        await eventually(lambda: one.available and other.available)
        assert not (await one.spend("ann", 1, most_ms=60_000)).taken


async def test_calls_wait_half_a_second_at_most_for_a_count_of_a_redis_that_hangs(
    own_server: RedisServer,
) -> None:
    async with node(own_server) as backplane:
        await eventually(lambda: backplane.available)
        own_server.freeze()
        try:
            async with asyncio.timeout(2):
                used = await asyncio.gather(*(backplane.use("ann", window_ms=60_000) for _ in range(20)))
        finally:
            own_server.thaw()
        assert sorted(each.seen for each in used) == list(range(1, 21))


async def test_a_count_without_an_end_gets_one(own_server: RedisServer) -> None:
    async with node(own_server) as backplane:
        await eventually(lambda: backplane.available)
        await backplane.use("ann", window_ms=60_000)
        [key] = own_server.admin.keys("test:*used:ann")
        own_server.admin.persist(key)
        assert (await backplane.use("ann", window_ms=60_000)).left_ms == 60_000
        assert 59_000 < own_server.admin.pttl(key) <= 60_000


@pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": True}), "asyncio"])
@pytest.mark.parametrize("turns", range(4))
async def test_a_subscription_whose_connection_broke_in_this_turn_says_so(
    redis_server: RedisServer, turns: int
) -> None:
    connection = Connector(redis_server.url, timeout_s=LIMIT_S).connection()
    broken = Subscription(connection, canary=b"canary", wake=asyncio.Event())
    async with asyncio.TaskGroup() as tasks:
        await broken.open(tasks, b"notices", timeout_s=LIMIT_S)
        assert connection._writer is not None
        connection._writer.transport.abort()
        # Before its reader has seen it.
        for _ in range(turns):
            await asyncio.sleep(0)
        with pytest.raises((OSError, RedisError)):
            await broken.subscribe([b"live"], timeout_s=LIMIT_S)
        await broken.close()
