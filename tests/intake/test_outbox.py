"""Rows of a real PostgreSQL table become events: in order of their keys, once, whoever ends in between."""

import asyncio
import json
import logging
import random
import re
import secrets
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from functools import partial

import asyncpg
import pytest

from deploy.parts import Postgres
from pushsse.event import WITHDRAW
from pushsse.intake.outbox.tables import OutboxTables, sql
from pushsse.metrics import Metrics
from pushsse.settings import OutboxSource
from tests.pooler import pgbouncer
from tests.waiting import eventually

from .outboxes import Dispatch, OutboxKit

pytestmark = [pytest.mark.anyio, pytest.mark.real]


@pytest.fixture
async def box(postgres_part: Postgres, anyio_backend: str) -> AsyncIterator[OutboxKit]:
    url = await asyncio.to_thread(postgres_part.create_database, f"outbox_{secrets.token_hex(6)}")
    application = await asyncpg.connect(url)
    try:
        kit = OutboxKit(url, application)
        await kit.make()
        yield kit
    finally:
        await application.close()


@pytest.fixture
def pooler(postgres_part: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """pgbouncer in transaction mode before the tests' PostgreSQL; its port."""
    with pgbouncer(postgres_part, tmp_path_factory.mktemp("pgbouncer")) as port:
        yield port


async def test_a_row_becomes_an_event_and_is_gone(box: OutboxKit) -> None:
    async with box.running():
        id_ = await box.insert({"n": 1}, to={"users": ["ann"]})
        await eventually(lambda: box.has(1))
        await eventually(box.is_empty)
    [event] = await box.events()
    assert event["id"] == f"pushsse_outbox-{id_}"
    assert event["message"] == {"n": 1}


async def test_the_message_reaches_the_log_as_its_very_bytes(box: OutboxKit) -> None:
    async with box.running():
        await box.insert(None, text='{"amount": 0.10000000000000000001,  "b":1e300, "a":"\\u00e9"}')
        await eventually(lambda: box.has(1))
    page = await box.backplane.read({"all": 0}, limit=10)
    body = page.entries[0].publication.body
    assert b'"message":{"amount": 0.10000000000000000001,  "b":1e300, "a":"\\u00e9"}' in body


async def test_all_columns_are_the_members_of_an_event(box: OutboxKit) -> None:
    await box.application.execute(
        """INSERT INTO pushsse_outbox (type, message, description, recipients, event_id, ts, ttl_s, campaign)
           VALUES ('order.paid', '981', 'paid', '{"users": ["ann", "bo"]}', 'order-981',
                   '2000-01-01', 60, 'autumn'),
                  ('order.paid', '982', '', '{"users": ["ann"]}', NULL, '2000-01-01', 999999999, NULL),
                  ('order.paid', '983', '', '"all"', NULL, '2001-01-01T00:00:00.5+01', 31536000, NULL)"""
    )
    async with box.running():
        await eventually(lambda: sum(receipt.expired for receipt in box.dispatch.receipts) == 2)
        await eventually(lambda: box.metrics.outbox_dead["pushsse_outbox"] == 1)
    [paid, third] = [draft for call in box.dispatch.calls for draft in call]
    assert paid.publication.users == ("ann", "bo")
    assert json.loads(paid.publication.body.removeprefix(b"data: ")) == {
        "id": "order-981",
        "type": "order.paid",
        "message": 981,
        "desc": "paid",
        "ts": "2000-01-01T00:00:00Z",
    }
    assert third.publication.users is None
    assert b'"ts":"2000-12-31T23:00:00.500000Z"' in third.publication.body


TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def test_a_row_collapses_withdraws_and_is_traced(box: OutboxKit) -> None:
    await box.application.execute(
        """INSERT INTO pushsse_outbox (type, message, recipients, key, collapse, withdraw, traceparent)
           VALUES ('order.paid', '1', '{"users": ["ann"]}', 'a', 'order-981', NULL, $1),
                  ('order.paid', NULL, '{"users": ["ann"]}', 'a', NULL, 'order-981', NULL),
                  ('order.paid', '2', '{"users": ["ann"]}', 'a', 'order-982', 'order-981', 'no trace'),
                  ('order.paid', '3', '{"users": ["ann"]}', 'a', NULL, NULL, 'no trace')""",
        TRACE,
    )
    dead = (3, "dead", 'withdraw: can\'t stand beside collapse, got "order-981"')

    async def done() -> bool:
        return await box.rows() == [dead]

    async with box.running():
        await eventually(done)
    paid, gone, last = [draft.publication for call in box.dispatch.calls for draft in call]
    assert (paid.collapse, paid.trace, paid.switchable) == ("order-981", TRACE, True)
    assert (gone.name, gone.collapse) == (WITHDRAW, "order-981")
    assert json.loads(gone.data)["withdraw"] == "order-981"
    assert last.trace == ""


async def test_a_row_that_says_nothing_is_refused(box: OutboxKit) -> None:
    with pytest.raises(asyncpg.CheckViolationError):
        await box.application.execute(
            """INSERT INTO pushsse_outbox (type, recipients) VALUES ('order.paid', '"all"')"""
        )


@pytest.mark.parametrize("table", ["pushsse_outbox", "shop.outbox"])
async def test_a_table_of_an_older_release_works_and_gets_what_it_lacks_beside_a_running_node(
    box: OutboxKit, table: str
) -> None:
    await box.application.execute("CREATE SCHEMA shop")
    box.table = table
    await box.make()
    await box.application.execute(
        f"""ALTER TABLE {table} DROP CONSTRAINT {table.rpartition(".")[2]}_says, DROP COLUMN withdraw,
            DROP COLUMN traceparent, ALTER COLUMN message SET NOT NULL"""
    )
    tables = OutboxTables(OutboxSource(table=table), box.url)
    async with tables.database:
        assert (await tables.faults(), await tables.lacks()) == ([], ["withdraw", "traceparent"])
    async with box.running():
        await box.insert("before")
        await eventually(lambda: box.has(1))
        # Twice: the second time there is nothing to do.
        await box.make()
        await box.make()
        await box.application.execute(
            f"""INSERT INTO {table} (type, recipients, withdraw) VALUES ('alarm', '"all"', 'key')"""
        )
        await box.insert("after")
        await eventually(lambda: box.has(3))
    assert box.metrics.outbox_dead.get(table, 0) == 0
    names = [draft.publication.name for call in box.dispatch.calls for draft in call]
    assert names == ["alarm", WITHDRAW, "alarm"]
    async with tables.database:
        assert (await tables.faults(), await tables.lacks()) == ([], [])


async def test_what_is_rolled_back_is_never_delivered(box: OutboxKit) -> None:
    async with box.running():
        transaction = box.application.transaction()
        await transaction.start()
        await box.insert("never")
        await transaction.rollback()
        await box.insert("yes")
        await eventually(lambda: box.has(1))
        await eventually(box.is_empty)
    assert await box.messages() == ["yes"]


async def test_a_row_that_commits_late_is_delivered_though_higher_ids_are(box: OutboxKit) -> None:
    late = await asyncpg.connect(box.url)
    try:
        async with box.running():
            transaction = late.transaction()
            await transaction.start()
            first = await box.insert("late", key="k", over=late)
            assert await box.insert("early", key="k") > first
            await eventually(lambda: box.has(1))
            await eventually(box.is_empty)
            await transaction.commit()
            await eventually(lambda: box.has(2))
            await eventually(box.is_empty)
        assert await box.messages() == ["early", "late"]
    finally:
        await late.close()


async def test_several_services_keep_the_order_of_each_key_and_deliver_once(box: OutboxKit) -> None:
    keys = [f"key-{n}" for n in range(40)]

    async def write(mine: list[str]) -> None:
        connection = await asyncpg.connect(box.url)
        try:
            for n in range(30):
                async with connection.transaction():
                    for key in random.sample(mine, len(mine)):
                        await box.insert([key, n], key=key, to={"users": [f"user-{key}"]}, over=connection)
        finally:
            await connection.close()

    async with box.running(node="one"), box.running(node="two"):
        await asyncio.gather(write(keys[:20]), write(keys[20:]))
        async with box.running(node="three"):
            await eventually(box.is_empty)
    found = defaultdict(list)
    for key, n in await box.messages():
        found[key].append(n)
    assert found == {key: list(range(30)) for key in keys}
    owners = {
        draft.source.owner.partition("-")[0] for call in box.dispatch.calls for draft in call if draft.source
    }
    assert {"one", "two"} <= owners


async def test_what_the_log_has_is_not_published_again_after_the_death_of_its_node(box: OutboxKit) -> None:
    dying = Dispatch(box.backplane)
    # The log has the rows; the table doesn't know.
    dying.returns = False
    for n in range(20):
        await box.insert(n, key="k")
    service = box.service(node="dying", dispatch=dying, batch=8)
    task = asyncio.create_task(service.run())
    await asyncio.wait_for(dying.published.wait(), 30)
    # As a killed process does: nothing is given back.
    await box.application.execute("ALTER TABLE pushsse_outbox_bucket RENAME TO away")
    task.cancel()
    await asyncio.wait((task,))
    await box.application.execute("ALTER TABLE away RENAME TO pushsse_outbox_bucket")
    async with box.running(node="heir"):
        await eventually(box.is_empty)
    assert await box.messages() == list(range(20))
    assert box.dispatch.fenced == 8


async def test_services_that_end_at_any_moment_lose_repeat_and_reorder_nothing(box: OutboxKit) -> None:
    random.seed(981)

    async def write(key: str) -> None:
        connection = await asyncpg.connect(box.url)
        try:
            for n in range(40):
                await box.insert([key, n], key=key, to={"users": [key]}, over=connection)
        finally:
            await connection.close()

    async def end_again_and_again(node: str) -> None:
        for number in range(6):
            dispatch = Dispatch(box.backplane)
            dispatch.failures = random.choice((0, 0, 1, 2))
            # Its death may come between the log and the table.
            dispatch.returns = random.random() < 0.7
            async with box.running(node=f"{node}{number}", dispatch=dispatch, batch=random.choice((3, 20))):
                with suppress(TimeoutError):
                    async with asyncio.timeout(5):
                        await dispatch.published.wait()
                await asyncio.sleep(random.uniform(0, 0.05))

    keys = [f"key{n}" for n in range(6)]
    await asyncio.gather(*map(write, keys), *map(end_again_and_again, ("one", "two", "three")))
    async with box.running(node="last"):
        await eventually(box.is_empty)
    found = defaultdict(list)
    for key, n in await box.messages():
        found[key].append(n)
    assert found == {key: list(range(40)) for key in keys}


@pytest.mark.long
async def test_connections_that_are_cut_at_any_moment_lose_repeat_and_reorder_nothing(box: OutboxKit) -> None:
    cut = """SELECT count(pg_terminate_backend(pid)) FROM (
        SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'pushsse'
         ORDER BY random() LIMIT 2) victims"""
    cuts = 0
    async with box.running(node="one", batch=5), box.running(node="two", batch=5):
        for n in range(300):
            await box.insert([n % 6, n // 6], key=f"key{n % 6}")
            if n % 20 == 0:
                await eventually(partial(box.has, max(0, n - 40)))
                cuts += await box.application.fetchval(cut)
        await eventually(box.is_empty)
    assert cuts > 10
    found = defaultdict(list)
    for key, n in await box.messages():
        found[key].append(n)
    assert found == {key: list(range(50)) for key in range(6)}


async def test_buckets_are_shared_and_given_back(box: OutboxKit) -> None:
    async def shares() -> list[int]:
        rows = await box.application.fetch(
            "SELECT count(*) FROM pushsse_outbox_bucket WHERE taker IS NOT NULL GROUP BY taker ORDER BY 1"
        )
        return [row["count"] for row in rows]

    async def are(*wanted: int) -> bool:
        return await shares() == list(wanted)

    async with box.running(node="one") as one:
        await eventually(lambda: are(32))
        async with box.running(node="two"), box.running(node="three"):
            await eventually(lambda: are(10, 11, 11))
            # As a node does that alone has lost Redis.
            one.release()
            await eventually(lambda: are(16, 16))
            one.resume()
            await eventually(lambda: are(10, 11, 11))
        await eventually(lambda: are(32))
    assert await shares() == []


async def test_an_answer_that_got_lost_repeats_nothing(box: OutboxKit) -> None:
    box.dispatch.failures = 3
    async with box.running():
        for n in range(5):
            await box.insert(n)
        await eventually(box.is_empty)
    assert await box.messages() == list(range(5))


async def test_a_node_that_gets_nowhere_loses_its_buckets_and_publishes_nothing_of_them(
    box: OutboxKit,
) -> None:
    sleeper = Dispatch(box.backplane)
    sleeper.open.clear()
    async with box.running(node="sleeper", dispatch=sleeper):
        await box.insert("first", key="k")
        await eventually(lambda: sleeper.calls)
        async with box.running(node="awake"):
            await eventually(box.is_empty)
            await box.insert("second", key="k")
            await eventually(lambda: box.has(2))
            sleeper.open.set()
            await box.insert("third", key="k")
            await eventually(lambda: box.has(3))
            await eventually(box.is_empty)
    assert await box.messages() == ["first", "second", "third"]


async def test_a_taker_whose_claims_are_lost_claims_anew_and_nothing_comes_twice(box: OutboxKit) -> None:
    async with box.running():
        for n in range(3):
            await box.insert(n, key="k")
        await eventually(box.is_empty)
        box.backplane.lose_claims()
        for n in range(3, 6):
            await box.insert(n, key="k")
        await eventually(box.is_empty)
    assert await box.messages() == list(range(6))


async def test_positions_go_on_beyond_the_fence_where_the_tables_are_an_older_state(box: OutboxKit) -> None:
    async with box.running():
        for n in range(5):
            await box.insert(n, key="k")
        await eventually(box.is_empty)
    # As after a failover to a replica that lacks the last transactions.
    await box.application.execute("UPDATE pushsse_outbox_bucket SET base = 0, ids = '{}'")
    await box.insert("after", key="k")
    async with box.running():
        await eventually(box.is_empty)
    assert (await box.messages())[-1] == "after"


@pytest.mark.parametrize(
    ("columns", "error"),
    [
        ("('no such type!', '1', '\"all\"')", "type: "),
        ("('a', '\"\\u0000\"', '\"all\"')", "NUL"),
        ("('a', '1', '{\"users\": []}')", "recipients"),
        ("('a', '1', '{\"users\": [\"a b\"]}')", "recipients.users"),
        ("('a', '1', '[3]')", "recipients: "),
        (
            "('a', (repeat('[', 2000) || repeat(']', 2000))::json, '\"all\"')",
            "message: is nested far too deep",
        ),
        ("('a', '1', (repeat('[', 2000) || repeat(']', 2000))::json)", "recipients: is nested far too deep"),
        ("('none', '1', '\"all\"')", "catalogue"),
        ("('a', to_json(repeat('x', 60000)), '\"all\"')", "over 49152"),
        ("('a', to_json(repeat('x', 100000)), '\"all\"')", "message: has far too many bytes"),
        ("('a', '1', to_json(repeat('x', 1200000)))", "recipients: has far too many bytes"),
    ],
)
async def test_a_row_that_cannot_be_an_event_stays_as_dead_and_those_after_it_go_on(
    box: OutboxKit, caplog: pytest.LogCaptureFixture, columns: str, error: str
) -> None:
    await box.application.execute(f"INSERT INTO pushsse_outbox (type, message, recipients) VALUES {columns}")
    await box.insert("after")
    async with box.running():
        await eventually(lambda: box.has(1))
        await eventually(lambda: box.metrics.outbox_dead["pushsse_outbox"] == 1)
    [(_, status, said)] = await box.rows()
    assert status == "dead"
    assert said is not None
    assert error in said
    [line] = [each.getMessage() for each in caplog.records if "can't be an event" in each.getMessage()]
    assert error in line


@pytest.mark.parametrize(
    "ts", ["'infinity'", "'-infinity'", "'4713-01-01 BC'", "'20000-01-01'", "'1960-01-01'"]
)
async def test_times_that_are_none_make_a_row_dead(box: OutboxKit, ts: str) -> None:
    for message, column in enumerate(("ts", "created_at"), 1):
        await box.application.execute(
            f"""INSERT INTO pushsse_outbox (type, message, recipients, {column})
                VALUES ('a', '{message}', '"all"', {ts})"""
        )
    async with box.running():
        await eventually(lambda: box.metrics.outbox_dead["pushsse_outbox"] == 1)
        await eventually(lambda: box.has(1))
    assert await box.messages() == [2]


async def test_a_dead_row_is_tried_again_when_somebody_says_so(box: OutboxKit) -> None:
    async with box.running():
        id_ = await box.insert(1, kind="no type")
        await eventually(lambda: box.metrics.outbox_dead["pushsse_outbox"] == 1)
        await box.application.execute(
            "UPDATE pushsse_outbox SET type = 'alarm', status = 'waiting', error = NULL WHERE id = $1", id_
        )
        await eventually(lambda: box.has(1))
        await eventually(box.is_empty)


async def test_rows_are_marked_where_they_are_to_be_kept(box: OutboxKit) -> None:
    async with box.running(keep="mark"):
        for n in range(3):
            await box.insert(n)
        await eventually(lambda: box.metrics.outbox_rows["pushsse_outbox"] == 3)
    assert [status for _, status, _ in await box.rows()] == ["done"] * 3
    async with box.running(keep="mark", node="later"):
        await box.insert("next")
        await eventually(lambda: box.has(4))
    assert await box.messages() == [0, 1, 2, "next"]


async def test_a_row_is_found_though_nothing_told_of_it(box: OutboxKit) -> None:
    await box.application.execute("ALTER TABLE pushsse_outbox DISABLE TRIGGER pushsse_outbox_notify")
    async with box.running(poll_s=0.05):
        await eventually(lambda: box.metrics.outbox_waiting)
        await box.insert("quiet")
        await eventually(lambda: box.has(1))


async def test_a_notification_wakes_long_before_the_next_look(box: OutboxKit) -> None:
    async with box.running(poll_s=60.0):
        # Two rows one after the other: the first may be found by the look at the start.
        for n in range(2):
            await box.insert(n)
            await eventually(lambda: box.is_empty(), 20)


async def test_a_listener_that_was_cut_listens_again(box: OutboxKit) -> None:
    async with box.running(poll_s=60.0):
        await box.insert("before")
        await eventually(box.is_empty)

        async def cut() -> bool:
            return bool(
                await box.application.fetchval(
                    """SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                        WHERE datname = current_database() AND query LIKE 'LISTEN%'"""
                )
            )

        await eventually(cut)
        await eventually(lambda: box.has_listener())
        await box.insert("after")
        await eventually(box.is_empty, 20)


async def test_behind_a_pooler_that_passes_no_notification_on_rows_are_looked_for(
    box: OutboxKit, pooler: int, caplog: pytest.LogCaptureFixture
) -> None:
    box.url = f"postgres://any@127.0.0.1:{pooler}/{box.url.rpartition('/')[2]}"
    async with box.running(poll_s=0.05), box.running(node="other", poll_s=0.05):
        for n in range(50):
            await box.insert(n, key="k")
        await eventually(box.is_empty)
        await eventually(lambda: "notifications don't come through" in caplog.text)
    assert await box.messages() == list(range(50))


async def test_a_bucket_that_is_full_holds_up_no_other(box: OutboxKit) -> None:
    await box.application.execute(
        """INSERT INTO pushsse_outbox (key, type, message, recipients)
           SELECT 'busy', 'alarm', to_json('busy'::text), '"all"' FROM generate_series(1, 300)"""
    )
    for n in range(20):
        await box.insert("quiet", key=f"quiet-{n}")
    await box.application.execute(
        """DELETE FROM pushsse_outbox WHERE key <> 'busy'
              AND bucket = (SELECT bucket FROM pushsse_outbox WHERE key = 'busy' LIMIT 1)"""
    )
    async with box.running(batch=60):
        await eventually(box.is_empty)
    messages = await box.messages()
    assert len(messages) > 310
    assert max(at for at, message in enumerate(messages) if message == "quiet") < 250


async def test_rows_are_found_by_the_index_though_the_table_was_empty_when_the_plan_was_made(
    box: OutboxKit,
) -> None:
    async def read() -> tuple[int, int]:
        row = await box.application.fetchrow(
            "SELECT seq_tup_read, idx_tup_fetch FROM pg_stat_user_tables WHERE relname = 'pushsse_outbox'"
        )
        return row["seq_tup_read"], row["idx_tup_fetch"]

    async def has_read() -> bool:
        return (await read())[1] >= 10_000

    await box.insert("first")
    await box.application.execute("DELETE FROM pushsse_outbox")
    await box.application.execute("VACUUM ANALYZE pushsse_outbox")
    async with box.running(poll_s=0.05):
        # PostgreSQL makes a plan anew five times, and keeps it then.
        for n in range(8):
            await box.insert(n)
            await eventually(box.is_empty)
        await box.application.execute(
            """INSERT INTO pushsse_outbox (type, message, recipients)
               SELECT 'alarm', '1', json_build_object('users', json_build_array('person' || n))
                 FROM generate_series(1, 10000) n"""
        )
        await eventually(lambda: box.metrics.outbox_rows["pushsse_outbox"] == 10_008)
    # A connection tells what it has read when it ends, at the latest.
    await eventually(has_read)
    # All of it for each bucket in each batch would be millions.
    assert (await read())[0] < 100_000


async def test_rows_of_other_buckets_are_not_read_though_the_table_was_full_when_the_plan_was_made(
    box: OutboxKit,
) -> None:
    async def read() -> int:
        found: int = await box.application.fetchval(
            "SELECT idx_tup_fetch FROM pg_stat_user_tables WHERE relname = 'pushsse_outbox'"
        )
        return found

    async def is_alone() -> bool:
        text = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        return int(await box.application.fetchval(text)) == 1

    await box.application.execute(
        """INSERT INTO pushsse_outbox (type, message, recipients)
           SELECT 'alarm', '1', json_build_object('users', json_build_array('person' || n))
             FROM generate_series(1, 10000) n"""
    )
    await box.application.execute("ANALYZE pushsse_outbox")
    async with box.running():
        await eventually(lambda: box.metrics.outbox_rows["pushsse_outbox"] == 10_000)
    # A connection tells what it has read when it ends, at the latest.
    await eventually(is_alone)
    # Looked for, read and deleted. Those of all buckets would be many more.
    assert 20_000 < await read() < 80_000


async def test_many_large_rows_are_taken_in_several_batches(box: OutboxKit) -> None:
    users = json.dumps({"users": [f"{n:0128}" for n in range(5_000)]})
    for n in range(12):
        await box.application.execute(
            """INSERT INTO pushsse_outbox (type, message, recipients)
               VALUES ('a', $1::text::json, $2::text::json)""",
            str(n),
            users,
        )
    async with box.running():
        await eventually(box.is_empty)
    assert [len(call) for call in box.dispatch.calls] == [7, 5]


async def test_a_table_in_a_schema_of_its_own(box: OutboxKit) -> None:
    await box.application.execute("CREATE SCHEMA shop")
    other = OutboxKit(box.url, box.application, table="shop.outbox")
    await other.make()
    await other.make()
    async with other.running(poll_s=60.0), box.running():
        id_ = await other.insert(1)
        await eventually(lambda: other.has(1))
        await eventually(other.is_empty)
    assert (await other.events())[0]["id"] == f"shop.outbox-{id_}"
    assert await box.events() == []


async def test_the_rights_that_the_sql_names_are_enough(box: OutboxKit) -> None:
    word = secrets.token_hex(4)
    grants = re.findall(r"^-- (GRANT .*) TO pushsse;$", sql(box.table), re.MULTILINE)
    assert len(grants) == 3
    for role in ("node", "shop"):
        await box.application.execute(f"CREATE ROLE {role}_{word} LOGIN PASSWORD 'word'")
    for grant in grants:
        await box.application.execute(f"{grant} TO node_{word}")
    await box.application.execute(f"GRANT INSERT ON {box.table} TO shop_{word}")
    where = box.url.rpartition("@")[2]
    box.url = f"postgres://node_{word}:word@{where}"
    shop = await asyncpg.connect(f"postgres://shop_{word}:word@{where}")
    try:
        async with box.running(poll_s=60.0), box.running(node="other", keep="mark"):
            for n in range(10):
                await shop.execute(
                    """INSERT INTO pushsse_outbox (key, type, message, recipients)
                       VALUES ($1, $2, '1', '"all"')""",
                    str(n),
                    "alarm" if n else "no type",
                )
            await eventually(lambda: box.has(9))
            await eventually(lambda: box.metrics.outbox_dead["pushsse_outbox"] == 1)
    finally:
        await shop.close()


async def test_a_table_that_is_not_there_yet_is_waited_for(
    box: OutboxKit, caplog: pytest.LogCaptureFixture
) -> None:
    other = OutboxKit(box.url, box.application, table="later")
    with caplog.at_level(logging.WARNING):
        async with other.running():
            await eventually(lambda: "pushsse outbox sql" in caplog.text)
            await other.make()
            await other.insert(1)
            await eventually(lambda: other.has(1))


async def test_what_waits_is_measured(box: OutboxKit) -> None:
    box.dispatch.open.clear()
    await box.application.execute(
        """INSERT INTO pushsse_outbox (type, message, recipients, created_at)
           SELECT 'a', '1', '"all"', now() - interval '1 hour' FROM generate_series(1, 3)"""
    )
    async with box.running():
        await eventually(lambda: box.metrics.outbox_waiting)
        box.dispatch.open.set()
    text = box.metrics.exposition().decode()
    assert 'pushsse_outbox_depth{table="pushsse_outbox"} 3.0' in text
    [lag] = [line for line in text.splitlines() if line.startswith("pushsse_outbox_lag_seconds{")]
    assert 3600 <= float(lag.split()[-1]) < 3700
    assert 'pushsse_outbox_dead_total{table="pushsse_outbox"} 0.0' in text
    assert Metrics().exposition()
