"""What pushsse uses of Tortoise beyond its public interface: where Tortoise changes it, these tests fail."""

from pathlib import Path

import pytest
from tortoise.backends.asyncpg.client import AsyncpgDBClient, TransactionWrapper
from tortoise.backends.sqlite.client import SqliteClient, SqliteTransactionWrapper
from tortoise.context import TortoiseContext, _current_context, get_current_context
from tortoise.migrations.autodetector import MigrationAutodetector
from tortoise.migrations.executor import MigrationExecutor
from tortoise.migrations.schema_editor import SqliteSchemaEditor

from pushsse.database.connection import SqliteConnection
from pushsse.database.url import configuration

pytestmark = pytest.mark.anyio


def test_the_context_of_a_task_is_the_variable_that_is_set() -> None:
    context = TortoiseContext()
    token = _current_context.set(context)
    try:
        assert get_current_context() is context
    finally:
        _current_context.reset(token)
    assert get_current_context() is None


async def test_a_client_of_postgresql_keeps_its_pool_and_the_settings_of_the_next_one() -> None:
    context = TortoiseContext()
    with context:
        await context.init(
            config=configuration("postgres://ann:secret@127.0.0.1:1/none?statement_cache_size=7")
        )
    client = context.db()
    assert isinstance(client, AsyncpgDBClient)
    assert client.extra["statement_cache_size"] == 7
    assert client.server_settings == {}
    assert client._pool is None
    await client.create_connection(with_db=True)
    assert client._pool is not None
    client._pool.terminate()
    client._pool = None
    await context.close_connections()


async def test_a_wrapper_runs_models_on_the_connection_that_it_is_given(tmp_path: Path) -> None:
    context = TortoiseContext()
    with context:
        await context.init(config=configuration(f"sqlite://{tmp_path}/x.db"))
    client = context.db()
    assert isinstance(client, SqliteClient)
    for wrapper in (TransactionWrapper, SqliteTransactionWrapper):
        assert "_connection" in vars(wrapper(client))  # type: ignore[arg-type]
    wrapped = SqliteConnection(client)
    token = context.connections.set(client.connection_name, wrapped)
    assert context.connections.get(client.connection_name) is wrapped
    context.connections.reset(token)
    assert context.connections.get(client.connection_name) is client
    await context.close_connections()


async def test_migrations_know_our_connection_of_sqlite_as_tortoise_s_own(tmp_path: Path) -> None:
    context = TortoiseContext()
    with context:
        await context.init(config=configuration(f"sqlite://{tmp_path}/x.db"))
    client = context.db()
    assert isinstance(client, SqliteClient)
    executor = MigrationExecutor(SqliteConnection(client), {})
    assert type(executor._schema_editor(atomic=False)) is SqliteSchemaEditor
    await context.close_connections()


async def test_the_migrations_make_the_tables_that_the_models_say() -> None:
    config = configuration("sqlite://:memory:")
    context = TortoiseContext()
    with context:
        await context.init(config=config)
        assert context.apps is not None
        detector = MigrationAutodetector(context.apps, config["apps"])
        missing = [
            f"{type(operation).__name__} {getattr(operation, 'model_name', getattr(operation, 'name', ''))}"
            for changes in await detector.changes()
            for operation in changes.operations
        ]
        await context.close_connections()
    assert not missing, f"tortoise makemigrations would write {missing}"
