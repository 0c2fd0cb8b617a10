"""Small questions are answered on the event loop, from the file as it is now; others by the thread."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from pushsse.database import Database, Statement
from pushsse.errors import DatabaseUnavailable
from pushsse.people import StateTable
from pushsse.preferences.store import PreferenceStore

pytestmark = pytest.mark.anyio
_ONE = Statement("SELECT 1")
_WITHOUT_END = Statement(
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
)
_TYPES = Statement("SELECT name FROM pushsse_event_type WHERE name {among[1]}")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "people # 100% é?.db"


@pytest.fixture
async def database(file: Path) -> AsyncIterator[Database]:
    escaped = str(file).replace("%", "%25").replace("#", "%23").replace("?", "%3F")
    async with Database(f"sqlite://{escaped}", timeout_s=0.5) as opened:
        await opened.migrate()
        yield opened


@pytest.fixture
async def path(database: Database) -> Path:
    """The file that SQLite opened."""
    (path,) = await database.rows(lambda _number, _name, path: Path(path), Statement("PRAGMA database_list"))
    return path


@pytest.mark.usefixtures("patient_reader")
async def test_one_and_few_are_answered_at_once_and_many_are_not(database: Database) -> None:
    await PreferenceStore(database).join(["a", "b", "c"], hidden=False)
    assert database.read_nowait(int, _ONE) == [1]
    assert database.read_nowait(str, _TYPES, ["b"]) == ["b"]
    assert database.read_nowait(str, _TYPES, ["c", "a", "x"]) == ["a", "c"]
    assert database.read_nowait(str, _TYPES, []) == []
    many = [*map(str, range(65)), "b"]
    assert database.read_nowait(str, _TYPES, many) is None
    assert await database.read(str, _TYPES, many) == ["b"]


@pytest.mark.usefixtures("patient_reader")
async def test_what_another_process_commits_holds_for_the_next_question(
    database: Database, path: Path
) -> None:
    store = PreferenceStore(database)
    states = StateTable(database)
    assert await store.off_among(["ann"], ["news"]) == frozenset()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        for enabled in (0, 1, 0):
            other.execute(
                'INSERT INTO pushsse_switch ("user", type, enabled) VALUES (?, ?, ?) '
                'ON CONFLICT ("user", type) DO UPDATE SET enabled = excluded.enabled',
                ("ann", "news", enabled),
            )
            off = {("ann", "news")} if not enabled else set()
            assert await store.off_among(["ann"], ["news"]) == off
            assert (state := states.read_nowait("ann")) is not None
            assert state.off == {name for _, name in off}


async def test_a_question_without_an_end_is_given_up(database: Database) -> None:
    assert database.read_nowait(int, _WITHOUT_END) is None
    assert database.read_nowait(int, _ONE) == [1]


async def test_a_question_that_changes_something_is_not_for_the_reader(database: Database) -> None:
    assert database.read_nowait(int, Statement("DELETE FROM pushsse_event_type")) is None


@pytest.mark.usefixtures("patient_reader")
async def test_a_writer_keeps_nobody_from_reading(database: Database, path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert database.read_nowait(int, Statement("SELECT count(*) FROM pushsse_event_type")) == [0]


@pytest.mark.usefixtures("patient_reader")
async def test_a_locked_file_is_left_to_the_thread_which_says_so_in_time(tmp_path: Path) -> None:
    path = tmp_path / "test.db"
    async with Database(f"sqlite://{path}?journal_mode=DELETE", timeout_s=0.5, cool_s=60) as database:
        await database.migrate()
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            assert database.read_nowait(str, _TYPES, ["a"]) == []
            other.execute("BEGIN EXCLUSIVE")
            assert database.read_nowait(str, _TYPES, ["a"]) is None
            with pytest.raises(DatabaseUnavailable):
                await database.read(str, _TYPES, ["a"])
            other.execute("ROLLBACK")
        # Known to be away: nobody asks for a while.
        assert not database.available
        assert database.read_nowait(str, _TYPES, ["a"]) is None


async def test_a_database_in_memory_has_no_reader() -> None:
    async with Database("sqlite://:memory:") as database:
        assert database.read_nowait(int, _ONE) is None
        assert await database.read(int, _ONE) == [1]
