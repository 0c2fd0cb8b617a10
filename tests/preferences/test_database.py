import asyncio
import gc
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib import import_module
from itertools import count, product
from pathlib import Path
from typing import Any

import pytest
from tortoise.migrations.operations import RunSQL

from deploy.parts import Postgres
from pushsse.database import Database, Statement
from pushsse.errors import DatabaseUnavailable, SettingsError, StatementFailed
from pushsse.people import StateTable
from pushsse.preferences.catalogue import EventType
from pushsse.preferences.store import PreferenceStore
from pushsse.questions import Question
from pushsse.questions.conversations import ConversationStore
from pushsse.questions.store import QuestionStore
from tests.parts import running
from tests.waiting import eventually

from .delay import Delay

pytestmark = pytest.mark.anyio
migration = import_module("pushsse.migrations.0005_conversations")

MIGRATIONS = (
    "0001_initial",
    "0002_witness",
    "0003_conversation",
    "0004_kicks",
    "0005_conversations",
    "0006_catalogue",
    "0008_presence",
    "0009_switched",
)
MIGRATE = """
import asyncio, sys
from pushsse.database import Database

async def main() -> None:
    async with Database(sys.argv[1]) as database:
        print(" ".join(await database.migrate()) or "nothing")
        assert await database.pending_migrations() == ()

asyncio.run(main())
"""


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Postgres]:
    yield from running(Postgres(tmp_path / "postgres"))


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[tuple[Database, PreferenceStore]]:
    async with Database(url) as database:
        await database.migrate()
        store = PreferenceStore(database)
        await store.join(["alarm"], hidden=False)
        await store.change("ann", {"alarm": False})
        yield database, store


async def in_a_process(url: str) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", "-c", MIGRATE, url, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0
    return out.decode().strip()


async def until_back(database: Database, *, within_s: float) -> None:
    """Polls as a node does; fails when the database isn't back in time."""

    async def back() -> bool:
        try:
            await database.check()
        except DatabaseUnavailable:
            return False
        return True

    await eventually(back, within_s)


async def unavailable_within(store: PreferenceStore, seconds: float) -> None:
    began = time.monotonic()
    with pytest.raises(DatabaseUnavailable):
        await store.off_among(["ann"], ["alarm"])
    assert time.monotonic() - began < seconds


async def test_migrations_are_pending_until_they_are_applied(url: str) -> None:
    async with Database(url) as database:
        assert await database.pending_migrations() == MIGRATIONS
        assert await database.migrate() == MIGRATIONS
        assert await database.pending_migrations() == ()
        assert await database.migrate() == ()
    async with Database(url) as again:
        assert await again.pending_migrations() == ()


@pytest.mark.real
async def test_processes_that_migrate_at_once_share_the_work(url: str) -> None:
    said = await asyncio.gather(*(in_a_process(url) for _ in range(4)))
    assert sorted(said) == [" ".join(MIGRATIONS), "nothing", "nothing", "nothing"]


async def test_a_migration_waits_for_a_file_that_another_process_writes(
    tmp_path: Path, anyio_backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(sqlite3.connect(tmp_path / "x.db", isolation_level=None)) as other:
        other.execute("PRAGMA journal_mode = wal")
        other.execute("BEGIN IMMEDIATE")
        async with Database(f"sqlite://{tmp_path}/x.db") as database:
            migrating = asyncio.create_task(database.migrate())
            # Longer than a statement waits.
            await eventually(lambda: "a migration waits" in caplog.text or migrating.done())
            assert not migrating.done()
            other.rollback()
            assert await migrating == MIGRATIONS
            assert database.available


async def test_a_file_that_another_process_is_making_is_opened_when_it_is_made(
    tmp_path: Path, anyio_backend: str
) -> None:
    with closing(sqlite3.connect(tmp_path / "x.db", isolation_level=None)) as other:
        # Not in WAL mode yet, to which it is switched when it is opened.
        other.execute("BEGIN IMMEDIATE")
        database = Database(f"sqlite://{tmp_path}/x.db")
        opening = asyncio.create_task(database.__aenter__())
        await asyncio.wait((opening,), timeout=1.5)
        assert not opening.done()
        other.rollback()
        await opening
        assert await database.migrate() == MIGRATIONS
        await database.__aexit__(None, None, None)


async def test_a_migration_that_fails_leaves_nothing_behind(url: str) -> None:
    async with Database(url) as database:
        await database.rows(str, Statement("CREATE TABLE pushsse_switch (id INT)"))
        with pytest.raises(StatementFailed, match="exists"):
            await database.migrate()
        assert await database.pending_migrations() == MIGRATIONS
        assert database.available
        await database.rows(str, Statement("DROP TABLE pushsse_switch"))
        assert await database.migrate() == MIGRATIONS


async def test_conversations_that_were_there_before_their_table_are_in_it(database: Database) -> None:
    store, at = QuestionStore(database), datetime(2026, 11, 1, tzinfo=UTC)
    for number, (user, name, text) in enumerate(
        (("ann", "c", "first " + "x" * 100), ("ann", "c", "second"), ("bo", "d", "third"))
    ):
        asked_at = at + timedelta(minutes=number)
        question = Question(
            id=f"{number:026}",
            user=user,
            conversation=name,
            text=text,
            status="answered",
            asked_at=asked_at,
            updated_at=asked_at,
            deadline_at=asked_at,
        )
        await store.create(question, key=None, owner="", lease_s=0, announce_s=0)
    await database.rows(str, Statement("DELETE FROM pushsse_conversation"))
    [backfill] = [step.sql for step in migration.Migration.operations if isinstance(step, RunSQL)]
    await database.rows(str, Statement(backfill))
    found = await ConversationStore(database).page("ann", limit=10, before=None)
    assert [(one.id, one.newest, one.created_at, one.is_handed_over) for one in found] == [
        ("c", f"{1:026}", at, False)
    ]
    assert found[0].title == ("first " + "x" * 100)[:80]
    assert [one.id for one in await ConversationStore(database).page("bo", limit=10, before=None)] == ["d"]


async def test_handlers_in_other_tasks_and_contexts_use_the_same_database(database: Database) -> None:
    store = PreferenceStore(database)
    await asyncio.create_task(store.join(["alarm"], hidden=False))
    assert await asyncio.create_task(store.known()) == {"alarm"}


async def test_memory_lasts_as_long_as_its_process(anyio_backend: str) -> None:
    async with opened("sqlite://:memory:") as (database, _):
        assert (await StateTable(database).read(["ann"]))["ann"].off == {"alarm"}


async def test_a_relative_path_is_relative(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, anyio_backend: str
) -> None:
    monkeypatch.chdir(tmp_path)
    async with opened("sqlite://pushsse.db"):
        assert (tmp_path / "pushsse.db").exists()


@pytest.mark.parametrize(
    "url", ["oracle://x", "sqlite://", "postgres://h:notaport/db", "postgres://h/db?nope=1"]
)
def test_a_url_that_cannot_be_used_is_named(url: str) -> None:
    with pytest.raises(SettingsError, match="PUSHSSE_DATABASE_URL"):
        Database(url)


async def test_a_file_that_cannot_be_opened_is_unavailable(tmp_path: Path, anyio_backend: str) -> None:
    with pytest.raises(DatabaseUnavailable):
        async with Database(f"sqlite://{tmp_path}/no/such/directory/x.db"):
            pass


async def test_before_the_migrations_the_tables_are_unavailable(url: str) -> None:
    async with Database(url) as database:
        with pytest.raises(DatabaseUnavailable):
            await PreferenceStore(database).off_among(["ann"], ["alarm"])


async def test_a_cancelled_caller_leaves_no_lock_and_no_connection_behind(database: Database) -> None:
    store = PreferenceStore(database, numbers_after=lambda: 0)
    await store.join(["alarm"], hidden=False)
    for tick in range(60):
        task = asyncio.create_task(store.change("ann", {"alarm": tick % 2 == 0}))
        for _ in range(tick % 12):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    versions = [change.version for change in await store.change("ann", {"alarm": False})]
    assert versions == list(range(1, len(versions) + 1))


async def test_a_mistake_in_a_block_is_no_outage_and_is_rolled_back(database: Database) -> None:
    store = PreferenceStore(database)

    async def mistaken() -> None:
        async with database.transaction():
            await EventType.create(name="alarm")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await mistaken()
    assert database.available
    assert await store.known() == frozenset()


async def test_a_locked_sqlite_file_is_unavailable_within_two_seconds_and_recovers(
    tmp_path: Path, anyio_backend: str
) -> None:
    async with opened(f"sqlite://{tmp_path}/x.db") as (database, store):
        other = sqlite3.connect(tmp_path / "x.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        with pytest.raises(DatabaseUnavailable):
            await store.change("ann", {"alarm": True})
        assert time.monotonic() - began < 2
        other.close()
        await until_back(database, within_s=3)
        await store.change("ann", {"alarm": True})


async def test_a_frozen_postgres_is_unavailable_within_two_seconds_and_recovers(
    own_server: Postgres, anyio_backend: str
) -> None:
    async with opened(own_server.url) as (database, store):
        own_server.pause()
        await asyncio.gather(*(unavailable_within(store, 2) for _ in range(20)))
        assert not database.available
        # Known to be away: the next batches don't wait.
        began = time.monotonic()
        for _ in range(10):
            await unavailable_within(store, 0.1)
        assert time.monotonic() - began < 0.5
        # In a transaction neither, whose rollback gets no answer.
        async with asyncio.timeout(5):
            while time.monotonic() - began < 1:
                await asyncio.sleep(0.02)
                began = time.monotonic()
                with pytest.raises(DatabaseUnavailable):
                    await store.change("ann", {"alarm": True})
                assert time.monotonic() - began < 2
        # A moment later one of them tries again.
        began = time.monotonic()
        async with asyncio.timeout(5):
            while time.monotonic() - began < 1:
                await asyncio.sleep(0.02)
                began = time.monotonic()
                await unavailable_within(store, 2)
        own_server.resume()
        await until_back(database, within_s=4)
        assert await store.off_among(["ann"], ["alarm"]) == {("ann", "alarm")}


@pytest.mark.parametrize("cancels", [1, 2])
async def test_a_caller_that_is_cancelled_before_a_silent_server_is_cancelled_and_leaves_no_error_behind(
    own_server: Postgres, anyio_backend: str, cancels: int
) -> None:
    failed: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failed.append(context))
    async with opened(own_server.url) as (_, store):
        await store.known()
        own_server.pause()
        try:
            before = asyncio.all_tasks()
            asked = asyncio.create_task(store.known())
            # The query, and then the wait for the server to confirm that it is cancelled.
            for _ in range(cancels):
                await asyncio.sleep(0.1)
                asked.cancel()
            await asyncio.wait([asked], timeout=5)
            assert asked.cancelled()
            await eventually(lambda: asyncio.all_tasks() <= before)
        finally:
            own_server.resume()
    del asked
    gc.collect()
    assert not failed


async def test_a_stopped_postgres_is_unavailable_at_once_and_recovers_after_its_restart(
    own_server: Postgres, anyio_backend: str
) -> None:
    async with opened(own_server.url) as (database, store):
        await asyncio.gather(*(StateTable(database).read(["ann"]) for _ in range(8)))
        await asyncio.to_thread(own_server.stop)
        await unavailable_within(store, 2)
        await asyncio.to_thread(own_server.start)
        await until_back(database, within_s=4)
        assert await store.off_among(["ann"], ["alarm"]) == {("ann", "alarm")}


async def test_a_connection_that_postgres_is_just_ending_means_unavailable(
    own_server: Postgres, anyio_backend: str
) -> None:
    delay = Delay()
    async with delay.before(own_server.port):
        url = own_server.url.replace(f":{own_server.port}/", f":{delay.port}/")
        async with opened(url) as (database, _):
            # The last words of the server are there before the end of the connection is.
            delay.end_s = 1.0
            await asyncio.to_thread(own_server.stop)
            with pytest.raises(DatabaseUnavailable):
                await StateTable(database).read(["ann"])
            await asyncio.to_thread(own_server.start)
            await until_back(database, within_s=4)


async def in_a_gap(task: asyncio.Task[object], number: int) -> bool:
    """Returns where what a task waits for is there, and it hasn't gone on yet, for the n-th time.

    False if it ends before.
    """
    seen: set[int] = set()
    kept = []
    while not task.done():
        waiter = task._fut_waiter  # type: ignore[attr-defined]
        if waiter is not None and waiter.done() and id(waiter) not in seen:
            seen.add(id(waiter))
            kept.append(waiter)
            if len(seen) == number:
                return True
        await asyncio.sleep(0)
    return False


async def test_connections_that_are_cut_between_two_steps_of_a_call_mean_unavailable(
    postgres_part: Postgres, anyio_backend: str
) -> None:
    url = await asyncio.to_thread(postgres_part.create_database, "cut")
    async with Database(url, cool_s=0.01) as database:
        await database.migrate()
        store = QuestionStore(database)

        async def in_a_transaction() -> None:
            async with database.transaction() as session:
                await session.rows(int, Statement("SELECT 1"))

        calls: list[Callable[[], Awaitable[object]]] = [
            database.check,
            partial(store.attempts, ["none"]),
            in_a_transaction,
        ]
        cuts = unavailable = 0
        # A new connection is looked at first.
        for call, is_new in product(calls, (False, True)):
            for number in count(1):
                await until_back(database, within_s=4)
                connections = database._connections
                if is_new and connections.route is not None:
                    connections.route.forget()
                task = asyncio.ensure_future(call())
                if not await in_a_gap(task, number):
                    await task
                    break
                # As after a failure of another call.
                await connections.renew()
                cuts += 1
                try:
                    await task
                except DatabaseUnavailable:
                    unavailable += 1
        assert cuts > unavailable > 10


async def test_a_slow_postgres_is_unavailable_within_two_seconds_and_recovers(
    own_server: Postgres, anyio_backend: str
) -> None:
    delay = Delay()
    async with delay.before(own_server.port):
        url = own_server.url.replace(f":{own_server.port}/", f":{delay.port}/")
        async with opened(url) as (database, store):
            delay.seconds = 5.0
            await unavailable_within(store, 2)
            await unavailable_within(store, 0.1)
            with pytest.raises(DatabaseUnavailable):
                await database.check()
            delay.seconds = 0.0
            await until_back(database, within_s=4)
            assert (await StateTable(database).read(["ann"]))["ann"].off == {"alarm"}


async def test_a_change_that_waits_for_a_lock_does_not_stop_the_others(
    own_server: Postgres, anyio_backend: str
) -> None:
    locked, done = asyncio.Event(), asyncio.Event()
    async with opened(own_server.url) as (database, _):

        async def hold() -> None:
            async with database.transaction() as session:
                await session.lock(1)
                locked.set()
                await done.wait()

        async def wait() -> None:
            async with database.transaction(timeout_s=0.5) as session:
                await session.lock(1)

        holding = asyncio.create_task(hold())
        await locked.wait()
        waiting = asyncio.create_task(wait())
        while not waiting.done():
            await StateTable(database).read(["ann"])
            await asyncio.sleep(0.01)
        with pytest.raises(DatabaseUnavailable):
            await waiting
        assert database.available
        done.set()
        await holding


async def test_a_process_starts_while_its_postgres_is_away(own_server: Postgres, anyio_backend: str) -> None:
    await asyncio.to_thread(own_server.stop)
    async with Database(own_server.url) as database:
        with pytest.raises(DatabaseUnavailable):
            await database.check()
        with pytest.raises(DatabaseUnavailable):
            await database.pending_migrations()
        await asyncio.to_thread(own_server.start)
        await until_back(database, within_s=4)
        assert await database.pending_migrations() == MIGRATIONS
