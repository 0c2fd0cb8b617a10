"""`pushsse outbox sql`, what `doctor` says of an outbox, and settings that can't be."""

import asyncio
import logging
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import msgspec
import pytest
from click.testing import CliRunner

from deploy.parts import Postgres
from deploy.parts.ports import free_port
from pushsse.build import check
from pushsse.cli import cli
from pushsse.cli.serve import parts
from pushsse.errors import SettingsError
from pushsse.settings import Settings, load

POSTGRES = "postgres://u:hunter2@db/pushsse"


@pytest.fixture
def url(postgres_part: Postgres) -> str:
    return postgres_part.create_database(f"outbox_{secrets.token_hex(6)}")


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    """`doctor` silences the logs of its process, which here is the tests'."""
    yield
    logging.disable(logging.NOTSET)


def rows(url: str) -> list[asyncpg.Record]:
    async def run() -> list[asyncpg.Record]:
        connection = await asyncpg.connect(url)
        try:
            return list(await connection.fetch("SELECT * FROM pushsse_outbox"))
        finally:
            await connection.close()

    return asyncio.run(run())


def execute(url: str, *statements: str) -> None:
    async def run() -> None:
        connection = await asyncpg.connect(url)
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    asyncio.run(run())


def printed_sql(*arguments: str) -> str:
    result = CliRunner().invoke(cli, ["outbox", "sql", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def lines(tmp_path: Path, url: str) -> list[tuple[str, str]]:
    """What `doctor` says of outboxes: verdict and text."""
    result = CliRunner().invoke(
        cli,
        ["doctor", "--outbox", "pushsse_outbox", "--database-url", url],
        env={"PUSHSSE_REDIS_URL": ""},
    )
    words = [line.split(maxsplit=2) for line in result.output.splitlines()]
    found = [(verdict, text) for verdict, part, text in words if part == "outbox"]
    if any(verdict == "fault" for verdict, _ in found):
        assert result.exit_code == 1
    return found


def test_outboxes_are_tables_of_the_file_or_names_in_a_variable(tmp_path: Path) -> None:
    file = tmp_path / "pushsse.toml"
    file.write_text(f"""
        database_url = "{POSTGRES}"
        [[outbox]]
        [[outbox]]
        table = "shop.outbox"
        database_url = "postgres://shop@elsewhere/shop"
        keep = "mark"
        batch = 100
        poll_s = 0.2
        """)
    first, second = load({}, file=file).outbox
    assert (first.table, first.database_url, first.keep) == ("pushsse_outbox", "", "delete")
    assert (second.table, second.keep, second.batch, second.poll_s) == ("shop.outbox", "mark", 100, 0.2)
    named = load({"PUSHSSE_OUTBOX": "one, shop.two", "PUSHSSE_DATABASE_URL": POSTGRES}).outbox
    assert [each.table for each in named] == ["one", "shop.two"]
    listed = load(
        {"PUSHSSE_OUTBOX": '[{"table": "one", "batch": 7}]', "PUSHSSE_DATABASE_URL": POSTGRES}
    ).outbox
    assert [(each.table, each.batch) for each in listed] == [("one", 7)]


def test_the_start_says_which_tables_are_read_and_no_password() -> None:
    settings = load({"PUSHSSE_OUTBOX": "one, shop.two", "PUSHSSE_DATABASE_URL": POSTGRES})
    said = parts(settings, 8000)["outbox"]
    assert "one in postgres://" in said
    assert "shop.two in postgres://" in said
    assert "hunter2" not in said
    assert "outbox" not in parts(load({}), 8000)


def test_workers_get_the_outboxes_of_their_supervisor(tmp_path: Path) -> None:
    file = tmp_path / "pushsse.toml"
    file.write_text(f'database_url = "{POSTGRES}"\n[[outbox]]\ntable = "shop.outbox"\nbatch = 7')
    settings = load({}, file=file)
    # As the link between them carries settings.
    assert msgspec.json.decode(msgspec.json.encode(settings), type=Settings) == settings


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[outbox]]", "needs PUSHSSE_DATABASE_URL (line 1): 'sqlite://pushsse.db' isn't postgres://"),
        (f'[[outbox]]\ntable = "a;b"\ndatabase_url = "{POSTGRES}"', "table (line 2): 'a;b' isn't a name"),
        (f'[[outbox]]\ntable = "Shop"\ndatabase_url = "{POSTGRES}"', "table (line 2): 'Shop' isn't a name"),
        (f'[[outbox]]\ntable = "{"x" * 41}"\ndatabase_url = "{POSTGRES}"', "at most 40 characters"),
        (f'[[outbox]]\ntabel = "a"\ndatabase_url = "{POSTGRES}"', "tabel (line 2)"),
        (f'[[outbox]]\nkeep = "all"\ndatabase_url = "{POSTGRES}"', "keep (line 2)"),
        (f'[[outbox]]\nbatch = 0\ndatabase_url = "{POSTGRES}"', "batch (line 2)"),
        (f'[[outbox]]\ndatabase_url = "{POSTGRES}"\n[[outbox]]\ndatabase_url = "{POSTGRES}"', "outbox 2 in"),
        ('[[outbox]]\ndatabase_url = "redis://u:hunter2@db"', "database_url (line 2)"),
        (
            f'[[outbox]]\ndatabase_url = "{POSTGRES}?nonsense=1"',
            "database_url (line 2): unknown parameter 'nonsense'",
        ),
    ],
)
def test_an_outbox_that_cannot_be_refuses_the_start_and_is_named(
    tmp_path: Path, text: str, said: str
) -> None:
    file = tmp_path / "pushsse.toml"
    file.write_text(text)
    with pytest.raises(SettingsError) as raised:
        check(load({}, file=file))
    assert said in str(raised.value)
    assert "hunter2" not in str(raised.value)


def test_the_sql_is_that_of_the_outbox_in_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert 'CREATE TABLE IF NOT EXISTS "pushsse_outbox" (' in printed_sql()
    assert '"shop"."outbox_bucket"' in printed_sql("--table", "shop.outbox")
    Path("pushsse.toml").write_text(f'[[outbox]]\ntable = "mine"\ndatabase_url = "{POSTGRES}"')
    assert '"mine_waiting"' in printed_sql()
    result = CliRunner().invoke(cli, ["outbox", "sql", "--table", 'x"; DROP'])
    assert result.exit_code == 2
    assert "isn't a name" in result.output


@pytest.mark.real
def test_the_example_writes_its_event_with_its_order(url: str) -> None:
    execute(url, printed_sql())
    shop = str(Path(__file__).parents[2] / "examples/outbox/shop.py")
    subprocess.run([sys.executable, shop, url, "981", "ann"], check=True, timeout=60)
    [row] = rows(url)
    assert (row["key"], row["type"], row["event_id"]) == ("order-981", "order.paid", "order-981-paid")
    assert row["recipients"] == '{"users": ["ann"]}'


@pytest.mark.real
def test_doctor_says_what_an_outbox_lacks(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    [(verdict, text)] = lines(tmp_path, url)
    assert (verdict, "pushsse outbox sql" in text) == ("fault", True)
    execute(url, printed_sql())
    [(verdict, text)] = lines(tmp_path, url)
    assert (verdict, "0 rows wait" in text) == ("ok", True)
    insert = "INSERT INTO pushsse_outbox (type, message, recipients, status) VALUES"
    execute(
        url,
        "ALTER TABLE pushsse_outbox DISABLE TRIGGER ALL",
        f"""{insert} ('a', '1', '"all"', 'dead'), ('a', '1', '"all"', 'waiting')""",
    )
    warnings = [text for verdict, text in lines(tmp_path, url) if verdict == "warning"]
    assert [("no trigger" in text, "1 rows are dead" in text) for text in warnings] == [
        (True, False),
        (False, True),
    ]


def test_doctor_says_that_the_database_of_an_outbox_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    [(verdict, text)] = lines(tmp_path, f"postgres://u:hunter2@127.0.0.1:{free_port()}/shop?sslmode=disable")
    assert verdict == "fault"
    assert text.startswith("pushsse_outbox in postgres://")
    assert "hunter2" not in text


@pytest.mark.real
def test_doctor_names_columns_and_rights(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    word = secrets.token_hex(4)
    execute(
        url,
        printed_sql(),
        "ALTER TABLE pushsse_outbox DROP COLUMN campaign",
        "ALTER TABLE pushsse_outbox ALTER COLUMN message TYPE jsonb",
        f"CREATE USER reader_{word} PASSWORD 'r'",
        f"GRANT SELECT ON pushsse_outbox, pushsse_outbox_bucket, pushsse_outbox_taker TO reader_{word}",
    )
    faults = [text for verdict, text in lines(tmp_path, url) if verdict == "fault"]
    assert any("campaign" in text for text in faults)
    assert any("message is jsonb, and has to be json" in text for text in faults)
    reader = f"postgres://reader_{word}:r@{url.rpartition('@')[2]}"
    faults = [text for verdict, text in lines(tmp_path, reader) if verdict == "fault"]
    assert any('"pushsse_outbox" may not be deleted from: GRANT DELETE' in text for text in faults)
