"""What single statements may come to: nobody dies of it, nobody is refused longer than it lasts."""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import httpx
import pytest
from tortoise.context import TortoiseContext
from tortoise.migrations.executor import MigrationExecutor, MigrationTarget

from deploy.parts import Postgres
from pushsse.backplane.memory import MemoryBackplane
from pushsse.database import Database, Statement
from pushsse.database.url import configuration
from pushsse.errors import DatabaseUnavailable, StatementFailed
from pushsse.metrics import Metrics
from pushsse.people import StateTable
from pushsse.preferences.catalogue import Catalogue, CatalogueRow, CatalogueStore, TypeRules
from pushsse.preferences.store import PreferenceStore
from tests.cli.running import pushsse, served
from tests.migrated import migrated_in
from tests.waiting import eventually, until

pytestmark = pytest.mark.anyio


@pytest.fixture
def postgres_url(postgres_part: Postgres, anyio_backend: str) -> str:
    """A database that has all tables."""
    return migrated_in(postgres_part)


@asynccontextmanager
async def admin(url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def configure(url: str, text: str) -> None:
    """Sets something for all new connections of a database, and ends those that are open."""
    name = urlsplit(url).path.lstrip("/")
    async with admin(url) as connection:
        # Set back for this connection, which may itself have been made read-only.
        await connection.execute("SET default_transaction_read_only = off")
        await connection.execute(f"ALTER DATABASE {name} {text}")
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[tuple[Database, PreferenceStore]]:
    async with Database(url, timeout_s=30, cool_s=0.0) as database:
        yield database, PreferenceStore(database)


async def prepared(url: str) -> None:
    async with opened(url) as (database, store):
        await database.migrate()
        await store.join(["alarm"], hidden=False)


async def test_a_read_only_database_is_unavailable_for_writing_alone(postgres_url: str) -> None:
    await prepared(postgres_url)
    async with opened(postgres_url) as (database, store):
        await store.known()
        await configure(postgres_url, "SET default_transaction_read_only = on")
        await until_it_answers(store)
        for _ in range(3):
            with pytest.raises(DatabaseUnavailable, match="read-only"):
                await store.change("ann", {"alarm": False})
            # Streams and dispatch go on reading.
            assert await store.off_among(["ann"], ["alarm"]) == frozenset()
            assert database.available
        assert database.failures >= 3
        await configure(postgres_url, "RESET default_transaction_read_only")
        await until_it_answers(store)
        await store.change("ann", {"alarm": False})


async def until_it_answers(store: PreferenceStore) -> None:
    async def answers() -> bool:
        try:
            await store.known()
        except DatabaseUnavailable:
            return False
        return True

    await eventually(answers)


async def test_a_catalogue_that_went_back_is_told_of_once_where_its_database_is_read_only_at_first(
    postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A replica that lacks the last transaction, before it is made the primary."""
    await prepared(postgres_url)
    async with opened(postgres_url) as (database, store):
        log = MemoryBackplane(shards=4, keep_s=60, keep_bytes=1 << 20, metrics=Metrics())
        types = CatalogueStore(database)
        seen = Catalogue(store, types, new_types="list", metrics=Metrics(), backplane=log)
        await types.put("news", TypeRules(default=False))
        await seen.refresh()
        lost = seen.revision
        async with database.session():
            await CatalogueRow.filter(id=1).update(revision=1)
        await configure(postgres_url, "SET default_transaction_read_only = on")
        await until_it_answers(store)
        for _ in range(3):
            with pytest.raises(DatabaseUnavailable, match="read-only"):
                await seen.refresh()
        assert seen.revision == lost
        assert "older state" not in caplog.text
        await configure(postgres_url, "RESET default_transaction_read_only")
        await until_it_answers(store)
        for _ in range(3):
            await seen.refresh()
        assert seen.revision > lost
        assert caplog.text.count("older state") == 1


async def test_the_catalogue_survives_a_read_only_database_and_joins_the_type_later(
    postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    await prepared(postgres_url)
    async with opened(postgres_url) as (database, store):
        await configure(postgres_url, "SET default_transaction_read_only = on")
        await until_it_answers(store)
        log = MemoryBackplane(shards=4, keep_s=60, keep_bytes=1 << 20, metrics=Metrics())
        catalogue = Catalogue(
            store, CatalogueStore(database), new_types="list", metrics=Metrics(), backplane=log
        )
        task = asyncio.create_task(catalogue.run())
        catalogue.notice(["fresh"])
        await eventually(lambda: "read-only" in caplog.text)
        assert not task.done()
        await configure(postgres_url, "RESET default_transaction_read_only")

        async def joined() -> bool:
            return "fresh" in await known(store)

        await eventually(joined)
        assert not task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def known(store: PreferenceStore) -> frozenset[str]:
    try:
        return await store.known()
    except DatabaseUnavailable:
        return frozenset()


async def test_a_role_that_may_only_read_is_told_as_unavailable(postgres_url: str) -> None:
    await prepared(postgres_url)
    role, parts = f"reader_{secrets.token_hex(4)}", urlsplit(postgres_url)
    async with admin(postgres_url) as connection:
        await connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'reader'")
        await connection.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
    url = f"postgres://{role}:reader@{parts.hostname}:{parts.port}{parts.path}?sslmode=disable"
    async with opened(url) as (database, store):
        assert await store.known() == {"alarm"}
        with pytest.raises(DatabaseUnavailable, match="permission denied"):
            await store.change("ann", {"alarm": False})
        with pytest.raises(DatabaseUnavailable, match="permission denied"):
            await store.join(["news"], hidden=False)
        assert database.available


async def test_a_strict_isolation_of_the_server_fails_no_call(postgres_url: str) -> None:
    await prepared(postgres_url)
    await configure(postgres_url, "SET default_transaction_isolation = 'serializable'")
    async with opened(postgres_url) as (database, store):

        async def call(number: int) -> None:
            user = f"user-{number % 5}"
            await store.change(user, {"alarm": number % 2 == 0})
            await store.join([f"type-{number % 7}"], hidden=False)
            await store.off_among([user], ["alarm"])

        await until_it_answers(store)
        for _ in range(6):
            await asyncio.gather(*(call(number) for number in range(100)))
        assert database.failures == 0


async def test_a_lock_that_is_not_had_in_time_is_unavailable(postgres_url: str) -> None:
    await prepared(postgres_url)
    await configure(postgres_url, "SET lock_timeout = '50ms'")
    async with opened(postgres_url) as (database, store), admin(postgres_url) as other:
        await until_it_answers(store)
        await store.change("ann", {"alarm": False})
        async with other.transaction():
            await other.execute("SELECT * FROM pushsse_person FOR UPDATE")
            with pytest.raises(DatabaseUnavailable, match="lock"):
                await store.change("ann", {"alarm": True})
        assert database.available
        await store.change("ann", {"alarm": True})


async def back_to(url: str, migration: str) -> None:
    """Takes back the migrations after one."""
    settings = configuration(url)
    context = TortoiseContext()
    with context:
        await context.init(config=settings)
        executor = MigrationExecutor(context.db(), settings["apps"])
        await executor.migrate([MigrationTarget("pushsse", migration)], direction="backward")
        await context.close_connections()


async def test_a_migration_that_waits_for_a_table_holds_up_nobody_else(postgres_url: str) -> None:
    await prepared(postgres_url)
    await back_to(postgres_url, "0002_witness")
    async with (
        opened(postgres_url) as (database, _),
        admin(postgres_url) as long,
        admin(postgres_url) as other,
    ):
        async with long.transaction():
            await long.execute("DELETE FROM pushsse_question")
            migrating = asyncio.create_task(database.migrate())

            async def waits() -> bool:
                found = await other.fetch("SELECT 1 FROM pg_locks WHERE NOT granted AND mode = 'ShareLock'")
                return bool(found)

            await eventually(waits)
            # In the queue behind the migration.
            await other.execute("DELETE FROM pushsse_question", timeout=20)
            assert not migrating.done()
        assert (await migrating)[0] == "0003_conversation"


async def test_a_database_that_cannot_hold_a_name_is_unavailable_for_it_alone(
    postgres_part: Postgres, anyio_backend: str
) -> None:
    name = f"latin_{secrets.token_hex(6)}"
    async with admin(postgres_part.url) as connection:
        await connection.execute(
            f"CREATE DATABASE {name} ENCODING 'LATIN1' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'"
        )
    url = postgres_part.url_of(name)
    await prepared(url)
    async with opened(url) as (database, store):
        with pytest.raises(DatabaseUnavailable, match="LATIN1"):
            await StateTable(database).read(["张三"])
        await store.change("ann", {"alarm": False})
        assert database.available


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_a_wrong_statement_is_logged_and_kills_nobody(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"sqlite://{tmp_path}/x.db" if kind == "sqlite" else request.getfixturevalue("postgres_url")
    await prepared(url)
    async with opened(url) as (database, store):
        with caplog.at_level(logging.ERROR), pytest.raises(StatementFailed):
            await database.rows(str, Statement("SELECT nothing FROM pushsse_event_type"))
        assert "nothing" in caplog.text
        assert database.available
        assert await store.known() == {"alarm"}


async def test_doctor_and_serve_say_what_a_database_lacks(
    tmp_path: Path, postgres_part: Postgres, postgres_url: str
) -> None:
    await prepared(postgres_url)
    role, parts = f"reader_{secrets.token_hex(4)}", urlsplit(postgres_url)
    latin = f"latin_{secrets.token_hex(6)}"
    async with admin(postgres_url) as connection:
        await connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'reader'")
        await connection.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
        await connection.execute(
            f"CREATE DATABASE {latin} ENCODING 'LATIN1' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'"
        )
    reader = f"postgres://{role}:reader@{parts.hostname}:{parts.port}{parts.path}?sslmode=disable"

    async def said(command: str, url: str, *more: str) -> str:
        ended = await asyncio.to_thread(
            pushsse, tmp_path, command, *more, PUSHSSE_DATABASE_URL=url, PUSHSSE_PORT="0"
        )
        assert ended.returncode
        assert "Traceback" not in ended.stdout + ended.stderr
        return ended.stdout + ended.stderr

    assert "GRANT INSERT ON pushsse_person" in await said("doctor", reader)
    assert "reader" not in (await said("doctor", reader)).replace(role, "")
    await prepared(postgres_part.url_of(latin))
    assert "LATIN1" in await said("doctor", postgres_part.url_of(latin))
    assert "LATIN1" in await said("serve", postgres_part.url_of(latin))
    await configure(postgres_url, "SET default_transaction_read_only = on")
    assert "is read-only" in await said("doctor", postgres_url)


async def test_a_node_outlives_a_database_that_became_read_only(tmp_path: Path, postgres_url: str) -> None:
    await prepared(postgres_url)

    def work() -> None:
        with served(tmp_path, PUSHSSE_DATABASE_URL=postgres_url) as node:
            asyncio.run(configure(postgres_url, "SET default_transaction_read_only = on"))
            until(lambda: httpx.get(f"{node.url}/v1/preferences?user=ann").status_code == 200, "reading")
            event = {"type": "fresh", "to": "all", "message": 1}
            assert httpx.post(f"{node.url}/v1/events", json=event).status_code == 202
            for _ in range(2):
                answer = httpx.post(f"{node.url}/v1/preferences?user=ann", json={"types": {"alarm": False}})
                assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
                answer = httpx.post(f"{node.url}/v1/questions?user=ann", json={"text": "why?"})
                assert answer.status_code == 503
            until(lambda: "read-only" in node.logged, "word")
            asyncio.run(configure(postgres_url, "RESET default_transaction_read_only"))
            # Looked for in the log: calls that change switches are counted, and soon would be too many.
            until(lambda: "joined the catalogue: fresh" in node.logged, "the type")
            body = {"types": {"fresh": False}}
            assert httpx.post(f"{node.url}/v1/preferences?user=ann", json=body).status_code == 200
            assert node.process.poll() is None
            assert "Traceback" not in node.logged

    await asyncio.to_thread(work)
