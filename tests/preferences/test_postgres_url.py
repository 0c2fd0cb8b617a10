"""PostgreSQL URLs as people and managed providers write them, and a pooler in between."""

import asyncio
import secrets
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import asyncpg
import pytest

from deploy.parts import Postgres
from deploy.parts.certificate import make_certificate
from pushsse.database import Database, Statement
from pushsse.database.url import configuration, credentials
from pushsse.errors import DatabaseUnavailable, SettingsError
from pushsse.preferences.store import PreferenceStore
from tests.cli.running import pushsse
from tests.migrated import migrated_in
from tests.pooler import pgbouncer

pytestmark = pytest.mark.anyio
KEPT = Statement("SELECT count(*) FROM pg_prepared_statements")
BASE = "postgres://ann:secret@db:6543/push"

TAKEN: list[tuple[str, dict[str, Any]]] = [
    (BASE, {"host": "db", "port": 6543, "user": "ann", "password": "secret", "database": "push"}),
    (
        "postgresql://an%40n:s%23%2F%3F%40@db/na%20me",
        {"user": "an@n", "password": "s#/?@", "database": "na me"},
    ),
    (
        "postgres:///push?host=/run/postgresql&user=ann&password=p%26p",
        {"host": "/run/postgresql", "user": "ann"},
    ),
    (f"{BASE}?sslmode=require&channel_binding=require", {"ssl": "require"}),
    (f"{BASE}?ssl=false", {"ssl": "disable"}),
    (f"{BASE}?ssl=true", {"ssl": "require"}),
    (f"{BASE}?connect_timeout=10", {"timeout": 10.0}),
    (f"{BASE}?connect_timeout=0", {}),
    (
        f"{BASE}?options=-c%20search_path%3Da%20-c%20x.y%3D1",
        {"server_settings": {"search_path": "a", "x.y": "1"}},
    ),
    (f"{BASE}?options=endpoint%3Dep-x-1", {"server_settings": {"options": "endpoint=ep-x-1"}}),
    (f"{BASE}?options=--statement_timeout%3D5s", {"server_settings": {"statement_timeout": "5s"}}),
    (f"{BASE}?target_session_attrs=read-write", {"target_session_attrs": "read-write"}),
    (
        f"{BASE}?application_name=x&statement_cache_size=0&maxsize=3",
        {"statement_cache_size": 0, "maxsize": 3},
    ),
]
REFUSED = [
    "sslmode=maybe",
    "ssl=perhaps",
    "sslmode=verify-full&sslrootcert=/no/such/file",
    "connect_timeout=soon",
    "statement_cache_size=few",
    "target_session_attrs=fast",
    "channel_binding=no",
    "options=-c%20nonsense",
    "sslcrl=x",
    "port=70000",
    "port=0",
    "minsize=-1",
    "minsize=9",
    "maxsize=3&minsize=4",
    "maxsize=0",
    "statement_cache_size=-1",
    "timeout=nan",
    "timeout=0",
    "command_timeout=-3",
    "command_timeout=inf",
    "max_inactive_connection_lifetime=-1",
    "connect_timeout=-5",
    "user=%00",
    "application_name=%00",
]


@pytest.mark.parametrize(("url", "wanted"), TAKEN)
def test_a_url_is_taken_as_libpq_takes_it(url: str, wanted: dict[str, Any]) -> None:
    found = credentials(url)
    assert {name: found[name] for name in wanted} == wanted


@pytest.mark.parametrize("parameters", REFUSED)
def test_a_wrong_value_is_named_without_the_password(parameters: str) -> None:
    with pytest.raises(SettingsError) as refused:
        configuration(f"{BASE}?{parameters}")
    said = str(refused.value)
    assert said.startswith("PUSHSSE_DATABASE_URL: ")
    assert parameters.split("&")[-1].split("=")[0].replace("ssl", "") in said
    assert "secret" not in said


@pytest.mark.real
@pytest.mark.parametrize("command", ["serve", "migrate", "doctor"])
def test_a_wrong_value_ends_a_command_with_one_line(tmp_path: Path, command: str) -> None:
    ended = pushsse(tmp_path, command, PUSHSSE_DATABASE_URL=f"{BASE}?sslmode=maybe")
    assert ended.returncode == 2
    assert len((ended.stderr + ended.stdout).strip().splitlines()) <= 2
    assert "sslmode" in ended.stderr + ended.stdout
    assert "secret" not in ended.stderr + ended.stdout
    assert "Traceback" not in ended.stderr


@pytest.mark.real
def test_an_authority_that_is_named_is_asked(tmp_path: Path) -> None:
    authority = make_certificate(tmp_path).authority
    for mode, names in (("require", False), ("verify-ca", False), ("verify-full", True)):
        context = credentials(f"{BASE}?sslmode={mode}&sslrootcert={authority}")["ssl"]
        assert isinstance(context, ssl.SSLContext)
        assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, names)


async def test_names_and_passwords_with_any_character_work_for_real(
    postgres_part: Postgres, anyio_backend: str
) -> None:
    role, password = f"an@n/{secrets.token_hex(4)}", "s#/?@[ ]%&=é"
    name = f"da ta/{secrets.token_hex(4)}"
    owner = await asyncpg.connect(postgres_part.url)
    await owner.execute(f"""CREATE ROLE "{role}" LOGIN PASSWORD '{password}'""")
    await owner.execute(f"""CREATE DATABASE "{name}" OWNER "{role}" """)
    await owner.close()
    where = urlsplit(postgres_part.url)
    user, word = quote(role, safe=""), quote(password, safe="")
    url = f"postgres://{user}:{word}@{where.hostname}:{where.port}/{quote(name, safe='')}?sslmode=disable"
    async with Database(url, timeout_s=10) as database:
        await database.migrate()
        assert await PreferenceStore(database).known() == frozenset()


async def test_migrate_without_the_right_to_create_is_one_line(
    tmp_path: Path, postgres_part: Postgres, anyio_backend: str
) -> None:
    url = await asyncio.to_thread(postgres_part.create_database, f"test_{secrets.token_hex(6)}")
    role, where = f"poor_{secrets.token_hex(4)}", urlsplit(url)
    owner = await asyncpg.connect(url)
    await owner.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'secret'")
    await owner.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    await owner.close()
    poor = f"postgres://{role}:secret@{where.hostname}:{where.port}{where.path}?sslmode=disable"
    ended = await asyncio.to_thread(pushsse, tmp_path, "migrate", PUSHSSE_DATABASE_URL=poor)
    assert ended.returncode == 1
    assert len(ended.stderr.splitlines()) == 1
    assert "permission denied" in ended.stderr
    assert "secret" not in ended.stderr


@pytest.fixture
def pooler(postgres_part: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """pgbouncer in transaction mode before the tests' PostgreSQL; its port."""
    with pgbouncer(postgres_part, tmp_path_factory.mktemp("pgbouncer")) as port:
        yield port


async def test_a_pooler_in_transaction_mode_is_recognized(
    postgres_part: Postgres, pooler: int, anyio_backend: str
) -> None:
    name = urlsplit(await asyncio.to_thread(migrated_in, postgres_part)).path.lstrip("/")
    failed = 0
    async with Database(
        f"postgres://any@127.0.0.1:{pooler}/{name}?sslmode=disable", timeout_s=10
    ) as database:
        store = PreferenceStore(database)

        async def call(number: int) -> None:
            nonlocal failed
            try:
                await store.off_among([f"user-{number}"], ["alarm"])
                await store.known()
            except DatabaseUnavailable:
                failed += 1

        for start in range(0, 300, 20):
            await asyncio.gather(*(call(number) for number in range(start, start + 20)))
        await store.join(["alarm"], hidden=False)
        await store.change("ann", {"alarm": False})
        assert await store.off_among(["ann"], ["alarm"]) == {("ann", "alarm")}
        # Another node's statement of the same name would be run in place of ours, without any error.
        assert await database.rows(int, KEPT) == [0]
        assert (database.pooled, database.failures) == (True, 0)
    assert failed == 0


async def test_without_a_pooler_statements_are_kept_prepared(
    postgres_part: Postgres, anyio_backend: str
) -> None:
    url = await asyncio.to_thread(postgres_part.create_database, f"test_{secrets.token_hex(6)}")
    async with Database(url, timeout_s=10) as database:
        assert await database.rows(int, KEPT) == [1]
        assert not database.pooled
