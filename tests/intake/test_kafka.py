import asyncio
import sys
import time
from collections.abc import Collection, Sequence

import pytest
from aiokafka import TopicPartition

from deploy.parts.ports import free_port
from pushsse.errors import SettingsError
from pushsse.kafka import Connection
from pushsse.kafka.consumer import ConsumerPace
from pushsse.kafka.dead_letters import DeadLetters, Refused
from pushsse.kafka.partition import Assignment
from tests.waiting import LIMIT_S, eventually

from .kit import PACE, Kit, Recorder, value

pytestmark = pytest.mark.anyio


async def test_records_are_dispatched_in_order_and_only_poison_goes_to_the_dead_letters(kit: Kit) -> None:
    await kit.create(kit.topic, partitions=3)
    await kit.create(kit.dlq)
    poison = {7: b"{", 150: b'{"type": "a b"}', 290: value(0, type="no")}
    for partition in range(3):
        await kit.produce(
            [poison.get(n, value(n, id=f"{partition}-{n}")) for n in range(300)],
            partition=partition,
            key=b"k",
            headers=[("trace", b"t-1")],
        )
    async with kit.running():
        for partition in range(3):
            await kit.until_committed(300, partition)
    for partition in range(3):
        assert kit.recorder.offsets(partition) == [n for n in range(300) if n not in poison]
    letters = await kit.read_all(kit.dlq)
    assert len(letters) == 9 == kit.metrics.dead_letters
    for letter in letters:
        headers = dict(letter.headers)
        assert letter.value == poison[int(headers["offset"])]
        assert letter.key == b"k"
        assert headers["topic"] == kit.topic.encode()
        assert headers["partition"] in {b"0", b"1", b"2"}
        assert headers["error"]
        assert headers["trace"] == b"t-1"
        assert "truncated" not in headers
    assert kit.recorder.appended == 3 * 297
    assert kit.metrics.records == 900


async def test_offsets_are_committed_only_after_the_dispatch(kit: Kit) -> None:
    await kit.create(kit.topic, kit.dlq)
    await kit.produce([value(n) for n in range(10)])
    kit.recorder.open.clear()
    async with kit.running():
        await eventually(lambda: kit.recorder.calls)
        assert await kit.committed() == 0
        kit.recorder.open.set()
        await kit.until_committed(10)


async def test_partitions_that_are_given_back_and_taken_again_at_once_are_read_on(kit: Kit) -> None:
    await kit.create(kit.topic, kit.dlq)
    await kit.produce([value(n) for n in range(10)])
    async with kit.running() as intake:
        await kit.until_committed(10)
        intake.release()
        intake.resume()
        await kit.produce([value(n) for n in range(10)])
        await kit.until_committed(20)
    assert kit.recorder.offsets(0) == list(range(20))


async def test_tombstones_are_skipped_and_committed(kit: Kit) -> None:
    await kit.create(kit.topic, kit.dlq)
    await kit.produce([None, value(1), None], key=b"k")
    async with kit.running():
        await kit.until_committed(3)
    assert kit.recorder.offsets() == [1]
    assert await kit.read_all(kit.dlq) == []


async def test_a_restart_goes_on_where_it_stopped(kit: Kit) -> None:
    await kit.create(kit.topic, kit.dlq)
    await kit.produce([value(n) for n in range(100)])
    async with kit.running():
        await eventually(lambda: kit.recorder.appended == 100)
    assert await kit.committed() == 100
    await kit.produce([value(n) for n in range(100, 150)])
    second = Recorder(kit.backplane)
    async with kit.running(second):
        await eventually(lambda: second.appended == 50)
    assert second.offsets() == list(range(100, 150))
    assert await kit.recorder.numbers() == list(range(150))


@pytest.mark.parametrize("recheck_after_s", [0.0, PACE.recheck_s])
async def test_an_unavailable_dispatch_gets_the_same_records_again(kit: Kit, recheck_after_s: float) -> None:
    await kit.create(kit.topic, kit.dlq)
    await kit.produce([value(n) for n in range(200)])
    kit.recorder.failures = 4
    async with kit.running(pace=ConsumerPace(recheck_s=recheck_after_s)):
        await kit.until_committed(200)
        await kit.produce([value(200)])
        await kit.until_committed(201)
    assert len({tuple(call) for call in kit.recorder.calls[:5]}) == 1
    assert await kit.recorder.numbers() == list(range(201))
    assert kit.recorder.fenced == 0


async def test_a_dead_letter_topic_that_cant_be_written_holds_up_its_partition_alone(kit: Kit) -> None:
    await kit.create(kit.topic, partitions=2)
    await kit.produce([value(0), b"poison", value(2)], partition=0)
    await kit.produce([value(n) for n in range(10)], partition=1)
    async with kit.running():
        await kit.until_committed(10, 1)
        await kit.until_committed(1, 0)
        assert kit.metrics.held_partitions == {(kit.topic, 0)}
        await kit.produce([value(3)], partition=0)
        await kit.produce([value(10)], partition=1)
        await kit.until_committed(11, 1)
        assert await kit.committed(0) == 1
        assert b"pushsse_kafka_held_partitions 1.0" in kit.metrics.exposition()
        await kit.create(kit.dlq)
        await kit.until_committed(4, 0)
        assert not kit.metrics.held_partitions
    assert kit.recorder.offsets(0) == [0, 2, 3]
    assert [letter.value for letter in await kit.read_all(kit.dlq)] == [b"poison"]


@pytest.mark.parametrize(
    ("config", "kept"),
    [
        ({"max.message.bytes": "100000"}, 64 * 1024),
        ({"max.message.bytes": "9000"}, 4 * 1024),
        ({"max.message.bytes": "2000"}, 0),
        ({"cleanup.policy": "compact"}, 300_001),
    ],
)
async def test_a_dead_letter_is_cut_until_its_topic_takes_it(
    kit: Kit, config: dict[str, str], kept: int
) -> None:
    await kit.create(kit.topic)
    await kit.create(kit.dlq, config=config)
    await kit.produce([value(0), b"{" + b"x" * 300_000, value(2), b"{small", value(4)])
    async with kit.running():
        await kit.until_committed(5)
    assert kit.recorder.offsets() == [0, 2, 4]
    # At least once: the small one may have been taken together with the large one, which was refused.
    letters = {dict(letter.headers)["offset"]: letter for letter in await kit.read_all(kit.dlq)}
    assert sorted(letters) == [b"1", b"3"]
    assert kit.metrics.dead_letters == 2
    assert len(letters[b"1"].value or b"") == kept
    assert letters[b"3"].value == b"{small"
    assert letters[b"1"].key == f"{kit.topic}-0-1".encode()


@pytest.mark.parametrize("skip_refused", [True, False])
async def test_a_record_that_the_dead_letter_topic_takes_in_no_form_is_skipped_or_held(
    kit: Kit, skip_refused: bool, caplog: pytest.LogCaptureFixture
) -> None:
    await kit.create(kit.topic)
    await kit.create(kit.dlq, config={"max.message.bytes": "60"})
    await kit.produce([value(0), b"{", value(2)])
    async with kit.running(skip_refused=skip_refused):
        if skip_refused:
            await kit.until_committed(3)
        else:
            await eventually(lambda: kit.metrics.dead_letters_refused > 1)
            assert kit.metrics.held_partitions == {(kit.topic, 0)}
            # What came before it, at the pace of commits.
            await kit.until_committed(1)
            await kit.configure(kit.dlq, {"max.message.bytes": "100000"})
            await kit.until_committed(3)
            assert [letter.value for letter in await kit.read_all(kit.dlq)] == [b"{"]
    assert kit.recorder.offsets() == [0, 2]
    assert f"{kit.topic}-0-1 can't be used" in caplog.text


async def test_offsets_set_back_are_fenced(kit: Kit) -> None:
    await kit.create(kit.topic, kit.dlq)
    await kit.produce([value(n) for n in range(1500)])
    async with kit.running():
        await eventually(lambda: kit.recorder.appended == 1500)
    await kit.rewind(500)
    await kit.produce([value(1500)])
    second = Recorder(kit.backplane)
    async with kit.running(second):
        await eventually(lambda: second.appended == 1)
    assert second.fenced == 1000
    assert await kit.recorder.numbers() == list(range(1501))


async def test_a_start_age_skips_what_is_older(kit: Kit) -> None:
    await kit.create(kit.topic, kit.dlq)
    now_ms = int(time.time() * 1000)
    await kit.produce([value(n) for n in range(5)], timestamp_ms=now_ms - 3_600_000)
    await kit.produce([value(n) for n in range(5, 8)], timestamp_ms=now_ms - 60_000)
    async with kit.running(start="10m"):
        await kit.until_committed(8)
    assert await kit.recorder.numbers() == [5, 6, 7]


async def test_a_start_at_the_latest_survives_a_restart_before_the_first_record(kit: Kit) -> None:
    await kit.create(kit.topic, kit.dlq)
    await kit.produce([value(n) for n in range(5)])
    async with kit.running(start="latest"):
        await kit.until_committed(5)
    await kit.produce([value(5)])
    async with kit.running(start="latest"):
        await kit.until_committed(6)
    assert await kit.recorder.numbers() == [5]


@pytest.mark.parametrize("start", ["latest", "1s"])
async def test_a_partition_that_appears_later_begins_at_its_beginning(kit: Kit, start: str) -> None:
    await kit.create(kit.topic, kit.dlq)
    await kit.produce([value(n) for n in range(5)], timestamp_ms=1_000_000)
    async with kit.running(start=start):
        await kit.until_committed(5)
        await kit.widen(3)
        for partition in (1, 2):
            # Before any node has noticed it.
            await kit.produce([value(10 * partition + n) for n in range(5)], partition=partition)
        await eventually(lambda: kit.recorder.appended == 10, 40)
    assert sorted(await kit.recorder.numbers()) == [*range(10, 15), *range(20, 25)]


async def test_a_partition_that_appears_while_all_nodes_are_stopped_begins_at_its_beginning(kit: Kit) -> None:
    await kit.create(kit.topic, kit.dlq)
    await kit.produce([value(n) for n in range(5)])
    async with kit.running(start="latest"):
        await kit.until_committed(5)
    await kit.widen(2)
    await kit.produce([value(n) for n in range(10, 15)], partition=1)
    second = Recorder(kit.backplane)
    async with kit.running(second, start="latest"):
        await eventually(lambda: second.appended == 5)
    assert await kit.recorder.numbers() == list(range(10, 15))


async def test_the_first_start_is_one_for_all_nodes_and_partitions(kit: Kit) -> None:
    await kit.create(kit.topic, partitions=2)
    await kit.create(kit.dlq)
    for partition in range(2):
        await kit.produce([value(n) for n in range(5)], partition=partition)
    # A node chose where to begin, and died before it had committed anything.
    await kit.backplane.first_start(kit.topic, {0: 5, 1: 5})
    for partition in range(2):
        await kit.produce([value(10 + partition)], partition=partition)
    async with kit.running(start="latest"):
        await eventually(lambda: kit.recorder.appended == 2)
    assert sorted(await kit.recorder.numbers()) == [10, 11]


async def test_offsets_of_a_release_before_count_as_a_first_start(kit: Kit) -> None:
    await kit.create(kit.topic, partitions=2)
    await kit.create(kit.dlq)
    await kit.produce([value(0)], partition=0)
    await kit.produce([value(1)], partition=1)
    await kit.rewind(1)
    async with kit.running(start="latest"):
        await eventually(lambda: kit.recorder.appended == 1)
        await kit.until_committed(1, 1)
    assert await kit.recorder.numbers() == [1]


async def test_a_topic_made_anew_before_anything_was_published_begins_at_its_beginning(kit: Kit) -> None:
    await kit.create(kit.topic, kit.dlq)
    await kit.produce([value(n) for n in range(5)])
    async with kit.running(start="latest"):
        await kit.until_committed(5)
        await kit.delete()
        await kit.create(kit.topic)
        await kit.produce([value(n) for n in range(100, 103)])
        await eventually(lambda: kit.recorder.appended == 3, 40)
    assert await kit.recorder.numbers() == [100, 101, 102]


def fresh(kit: Kit) -> Kit:
    """The same group and topic, at another backplane, which knows nothing."""
    return Kit(kit.bootstrap, kit.admin, kit.topic, kit.group)


async def test_a_node_at_another_backplane_does_not_join_the_group(kit: Kit) -> None:
    await kit.create(kit.topic, partitions=2)
    await kit.create(kit.dlq)
    other = fresh(kit)
    for found in (kit, other):
        await found.backplane.identity(f"at {id(found)}")
    async with kit.running():
        await kit.produce([value(0)])
        await kit.until_committed(1)
        with pytest.raises(SettingsError, match="PUSHSSE_KAFKA_GROUP"):
            await asyncio.wait_for(other.intake().run(), 20)
        await kit.produce([value(1)], partition=0)
        await kit.produce([value(2)], partition=1)
        await eventually(lambda: kit.recorder.appended == 3)
    assert not other.recorder.calls


async def test_a_node_at_an_empty_backplane_does_not_join_a_group_that_others_work_for(kit: Kit) -> None:
    await kit.create(kit.topic, kit.dlq)
    other = fresh(kit)
    async with kit.running():
        await kit.produce([value(0)])
        await kit.until_committed(1)
        with pytest.raises(SettingsError, match="PUSHSSE_KAFKA_GROUP"):
            await asyncio.wait_for(other.intake().run(), 40)
    assert not other.recorder.calls


async def test_a_backplane_that_was_emptied_goes_on_with_the_groups_offsets(kit: Kit) -> None:
    await kit.create(kit.topic, kit.dlq)
    await kit.produce([value(0)])
    async with kit.running():
        await kit.until_committed(1)
    emptied = fresh(kit)
    await kit.produce([value(1)])
    async with emptied.running():
        await emptied.until_committed(2)
    assert await emptied.recorder.numbers() == [1]
    assert await emptied.backplane.identity("") == await kit.backplane.identity("")


async def test_running_nodes_put_the_identity_back_that_redis_has_lost(kit: Kit) -> None:
    await kit.create(kit.topic, kit.dlq)
    await kit.produce([value(0)])
    second = Recorder(kit.backplane)
    async with kit.running():
        await kit.until_committed(1)
        known = await kit.backplane.identity("")
        kit.backplane.known_by = ""
        async with kit.running(second):

            async def put_back() -> bool:
                return await kit.backplane.identity("") == known

            await eventually(put_back)


async def test_an_offset_out_of_range_starts_at_the_earliest(
    kit: Kit, caplog: pytest.LogCaptureFixture
) -> None:
    await kit.create(kit.topic, kit.dlq)
    await kit.produce([value(n) for n in range(5)])
    await kit.rewind(500)
    async with kit.running():
        await kit.until_committed(5)
    assert await kit.recorder.numbers() == list(range(5))
    assert "offset 500 is out of range (0 to 5)" in caplog.text


@pytest.mark.parametrize("anew", [3, 10, 40])
async def test_a_topic_made_anew_while_stopped_is_read_from_its_beginning(kit: Kit, anew: int) -> None:
    await kit.create(kit.topic, kit.dlq)
    await kit.produce([value(n) for n in range(10)])
    async with kit.running():
        await kit.until_committed(10)
    await kit.delete()
    await kit.create(kit.topic)
    await kit.produce([value(n) for n in range(100, 100 + anew)])
    # The worst case: a committed offset of the old topic is still there.
    await kit.rewind(min(10, anew))
    async with kit.running(start="latest"):
        await eventually(lambda: kit.recorder.appended == 10 + anew)
    assert await kit.recorder.numbers() == [*range(10), *range(100, 100 + anew)]


@pytest.mark.parametrize("anew", [3, 10])
async def test_a_topic_made_anew_while_running_is_read_from_its_beginning(kit: Kit, anew: int) -> None:
    await kit.create(kit.topic, kit.dlq)
    await kit.produce([value(n) for n in range(10)])
    async with kit.running():
        await kit.until_committed(10)
        await kit.delete()
        await kit.create(kit.topic)
        await kit.produce([value(n) for n in range(100, 100 + anew)])
        await eventually(lambda: kit.recorder.appended == 10 + anew, 40)
        await kit.produce([value(200)])
        await eventually(lambda: kit.recorder.appended == 11 + anew)
    assert await kit.recorder.numbers() == [*range(10), *range(100, 100 + anew), 200]


async def test_a_topic_made_anew_during_an_outage_is_read_from_its_beginning(kit: Kit) -> None:
    await kit.create(kit.topic, kit.dlq)
    await kit.produce([value(n) for n in range(10)])
    async with kit.running():
        await kit.until_committed(10)
        kit.recorder.failures = 1_000_000
        await kit.produce([value(10)])
        await eventually(lambda: kit.recorder.failures < 1_000_000)
        await kit.delete()
        await kit.create(kit.topic)
        await kit.produce([value(n) for n in range(100, 140)])
        kit.recorder.failures = 0
        # Number 10 may be gone with the old topic, if the group took the partition back in between.
        await eventually(lambda: kit.recorder.appended >= 50, 30)
        await kit.until_committed(40)
    assert [number for number in await kit.recorder.numbers() if number != 10] == [
        *range(10),
        *range(100, 140),
    ]


async def test_a_partition_claimed_by_somebody_else_is_dropped_and_later_claimed_anew(kit: Kit) -> None:
    await kit.create(kit.topic, kit.dlq)
    await kit.produce([value(0)])
    async with kit.running():
        await kit.until_committed(1)
        await kit.backplane.claim(kit.topic, 0, "somebody else")
        await kit.produce([value(n) for n in range(1, 5)])
        await eventually(lambda: kit.recorder.offsets() == [0, 1, 2, 3, 4])
        assert kit.recorder.appended == 1
        await eventually(lambda: kit.recorder.appended == 5)
    assert await kit.recorder.numbers() == list(range(5))


async def test_a_partition_whose_claim_is_lost_is_claimed_anew_at_once_and_nothing_comes_twice(
    kit: Kit, caplog: pytest.LogCaptureFixture
) -> None:
    await kit.create(kit.topic, kit.dlq)
    await kit.produce([value(0)])
    async with kit.running():
        await eventually(lambda: kit.recorder.appended == 1)
        kit.backplane.lose_claims()
        await kit.produce([value(n) for n in range(1, 5)])
        await kit.until_committed(5)
        assert await kit.backplane.claimed(kit.topic, 0)
    assert await kit.recorder.numbers() == list(range(5))
    assert not [record for record in caplog.records if "has a newer owner" in record.getMessage()]


async def test_a_second_member_shares_the_partitions_and_nothing_comes_twice(kit: Kit) -> None:
    await kit.create(kit.topic, partitions=4)
    await kit.create(kit.dlq)
    second = Recorder(kit.backplane)
    async with kit.running():
        for partition in range(4):
            await kit.produce([value(n) for n in range(100)], partition=partition)
        await eventually(lambda: kit.recorder.appended == 400)
        async with kit.running(second):
            sent = 400
            end = time.monotonic() + LIMIT_S
            while not second.appended and time.monotonic() < end:
                for partition in range(4):
                    await kit.produce([value(sent)], partition=partition)
                    sent += 1
            await eventually(lambda: kit.recorder.appended + second.appended == sent)
        await kit.produce([value(1000)], partition=3)
        await eventually(lambda: kit.recorder.appended + second.appended == sent + 1)
    assert second.appended
    assert len(await kit.recorder.bodies()) == sent + 1


async def test_dead_letters_in_hand_are_written_once_when_the_group_takes_their_partitions_back(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken_back = asyncio.Event()
    write, revoked = DeadLetters.write, Assignment.on_partitions_revoked

    async def write_late(letters: DeadLetters, refused: Sequence[Refused]) -> Sequence[Refused]:
        await taken_back.wait()
        await asyncio.sleep(0.2)
        return await write(letters, refused)

    async def note(assignment: Assignment, partitions: Collection[TopicPartition]) -> None:
        if partitions:
            taken_back.set()
        await revoked(assignment, partitions)

    monkeypatch.setattr(DeadLetters, "write", write_late)
    monkeypatch.setattr(Assignment, "on_partitions_revoked", note)
    await kit.create(kit.topic, partitions=2)
    await kit.create(kit.dlq)
    for partition in range(2):
        await kit.produce([value(partition), b"poison", value(partition + 10)], partition=partition)
    async with kit.running():
        await eventually(lambda: kit.recorder.appended == 4)
        async with kit.running(Recorder(kit.backplane)):
            for partition in range(2):
                await kit.until_committed(3, partition)
    assert [letter.value for letter in await kit.read_all(kit.dlq)] == [b"poison"] * 2


async def test_a_killed_members_partitions_are_taken_over_and_nothing_is_lost(kit: Kit) -> None:
    await kit.create(kit.topic, partitions=2)
    await kit.create(kit.dlq)
    for partition in range(2):
        await kit.produce([value(n) for n in range(50)], partition=partition)
    member = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.intake.member", kit.bootstrap, kit.topic, kit.group),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert member.stdout is not None
        async with asyncio.timeout(LIMIT_S):
            assert await member.stdout.readline() == b"dispatching\n"
        async with kit.running():
            member.kill()
            await member.wait()
            # The member had read, but never returned from its dispatch: all is left to do.
            await eventually(lambda: kit.recorder.appended == 100)
    finally:
        if member.returncode is None:
            member.kill()
            await member.wait()
    for partition in range(2):
        assert kit.recorder.offsets(partition) == list(range(50))


async def test_a_topic_that_isnt_there_yet_is_waited_for(kit: Kit, caplog: pytest.LogCaptureFixture) -> None:
    async with kit.running():
        await eventually(lambda: f"topic {kit.topic}: isn't there" in caplog.text)
        await kit.create(kit.topic, kit.dlq)
        await kit.produce([value(1)])
        await eventually(lambda: kit.recorder.appended == 1)


async def test_a_kafka_that_is_away_is_waited_for_and_named_once(
    kit: Kit, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    await kit.create(kit.topic, kit.dlq)
    await kit.produce([value(1)])
    forward: asyncio.Server | None = None
    intake = kit.intake(connection=Connection(bootstrap=f"127.0.0.1:{port}"))
    task = asyncio.create_task(intake.run())
    try:
        await eventually(lambda: f"Kafka at 127.0.0.1:{port}" in caplog.text)
        await asyncio.sleep(1)
        assert caplog.text.count("Kafka at") == 1
        assert not task.done()
        forward = await asyncio.start_server(_forward_to(kit.bootstrap), "127.0.0.1", port)
        await eventually(lambda: kit.recorder.appended == 1)
        assert "works again" in caplog.text
    finally:
        task.cancel()
        await asyncio.wait([task])
        if forward is not None:
            forward.close()


async def test_stopping_is_bounded_even_while_the_dispatch_hangs(kit: Kit) -> None:
    await kit.create(kit.topic, kit.dlq)
    await kit.produce([value(1)])
    kit.recorder.open.clear()
    task = asyncio.create_task(kit.intake().run())
    await eventually(lambda: kit.recorder.calls)
    began = time.monotonic()
    task.cancel()
    await asyncio.wait([task])
    assert time.monotonic() - began < 5
    assert await kit.committed() == 0


async def test_lag_is_measured(kit: Kit) -> None:
    await kit.create(kit.topic, kit.dlq)
    await kit.produce([value(n) for n in range(10)])
    kit.recorder.open.clear()
    async with kit.running():
        await eventually(lambda: kit.metrics.lag.get((kit.topic, "0")) == 10)
        kit.recorder.open.set()
        await eventually(lambda: kit.metrics.lag.get((kit.topic, "0")) == 0)
    assert kit.metrics.lag == {}


async def test_lag_is_measured_while_the_backplane_is_away(kit: Kit) -> None:
    await kit.create(kit.topic, kit.dlq)
    await kit.produce([value(n) for n in range(10)])
    async with kit.running():
        await kit.until_committed(10)
        kit.recorder.open.clear()
        kit.backplane.away = True
        await kit.produce([value(n) for n in range(10, 30)])
        await eventually(lambda: kit.metrics.lag.get((kit.topic, "0")) == 20)
        kit.backplane.away = False
        kit.recorder.open.set()
        await kit.until_committed(30)


def _forward_to(bootstrap: str):  # type: ignore[no-untyped-def]
    """Lets a connection through to Kafka; only the first one, since Kafka then names its own address."""
    host, _, port = bootstrap.partition(":")

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while part := await source.read(65536):
                sink.write(part)
        finally:
            sink.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(host, int(port))
        await asyncio.gather(pump(reader, back), pump(there, writer), return_exceptions=True)

    return connected
