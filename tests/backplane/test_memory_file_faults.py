"""What may happen to the embedded backplane's file, and that a client is never told `complete` wrongly."""

import asyncio
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pushsse.backplane import Append, Head, Source, machine_ms
from pushsse.backplane.memory import MemoryBackplane, store
from pushsse.backplane.memory.store import RowChange
from pushsse.backplane.memory.writer import WriterLimits
from pushsse.errors import SettingsError
from tests.waiting import eventually

from .test_memory_file import changes_taken, draft, log_writer, on_disk, opened, publish, until_more

pytestmark = pytest.mark.anyio
LIMIT_S = 20.0


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Somebody else holds the file, as a backup does."""
    connection = sqlite3.connect(path / "x.db-log", isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
    finally:
        connection.close()


async def head(backplane: MemoryBackplane, log: str = "all") -> Head:
    return (await backplane.read({log: 0}, limit=1)).heads[log]


def changed(path: Path, statement: str, *values: object) -> None:
    """A disk that forgets, or somebody, changes the file while nobody uses it."""
    connection = sqlite3.connect(path / "x.db-log")
    with connection:
        connection.execute(statement, values)
    connection.close()


# The disk stands still, is full, or is somebody else's for a while


async def test_a_disk_that_stands_still_for_long_leaves_no_hole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = changes_taken(monkeypatch)
    writer = log_writer(tmp_path, limits=WriterLimits(most_pending=10))
    async with opened(tmp_path, writer=writer) as backplane:
        with locked(tmp_path):
            await publish(backplane, draft(0))
            await eventually(lambda: taken)
            # Now the thread waits for the lock with what it has; this is more than may wait.
            for number in range(1, 50):
                await publish(backplane, draft(number))
        await writer.flush()
        await publish(backplane, draft(50))
        before = await backplane.read({"all": 0}, limit=1000)
    async with opened(tmp_path) as again:
        after = await again.read({"all": 0}, limit=1000)
        assert (after.heads, after.entries) == (before.heads, before.entries)


async def test_a_flush_waits_for_what_the_thread_is_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = changes_taken(monkeypatch)
    writer = log_writer(tmp_path)
    async with opened(tmp_path, writer=writer) as backplane:
        await publish(backplane, draft(0))
        await writer.flush()
        with locked(tmp_path):
            before = len(taken)
            await publish(backplane, draft(1))
            # The thread has taken it, and waits for the lock.
            await until_more(taken, than=before)
            flushed = asyncio.create_task(writer.flush())
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(flushed), 0.2)
        await flushed
        assert writer.on_disk


async def test_a_file_that_is_locked_at_the_start_is_kept_once_it_is_free(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(tmp_path) as first:
        await publish(first, draft(0))
        old = await head(first)
    holder = locked(tmp_path)
    holder.__enter__()
    writer = log_writer(tmp_path)
    async with opened(tmp_path, writer=writer) as second:
        holder.__exit__(None, None, None)
        assert len(caplog.records) == 1
        assert (await head(second)).epoch != old.epoch
        await publish(second, draft(1), draft(2))
        await eventually(lambda: writer.on_disk)
        before = await second.read({"all": 0}, limit=10)
    async with opened(tmp_path) as third:
        after = await third.read({"all": 0}, limit=10)
        assert (after.heads, after.entries) == (before.heads, before.entries)


async def test_what_a_start_without_the_file_published_makes_the_file_an_old_one(tmp_path: Path) -> None:
    async with opened(tmp_path) as first:
        await publish(first, draft(0))
        old = await head(first)
    with locked(tmp_path):
        async with opened(tmp_path) as second:
            # As many as in the file: the number alone tells nothing.
            await publish(second, draft(1))
    async with opened(tmp_path) as third:
        assert (await head(third)).epoch != old.epoch


async def test_the_lock_is_held_for_as_long_as_the_thread_may_write(tmp_path: Path) -> None:
    writer = log_writer(tmp_path, limits=WriterLimits(close_s=0.1))
    async with opened(tmp_path, writer=writer) as first:
        thread = next(thread for thread in threading.enumerate() if thread.name == "log writer")
        await publish(first, draft(0))
        await writer.flush()
        holder = locked(tmp_path)
        holder.__enter__()
        await publish(first, draft(1))
    assert thread.is_alive()
    with pytest.raises(SettingsError, match="another process"):
        async with opened(tmp_path):
            pass
    holder.__exit__(None, None, None)
    await asyncio.to_thread(thread.join, LIMIT_S)
    async with opened(tmp_path) as second:
        assert (await head(second)).number == 2


async def test_a_disk_that_is_full_at_the_end_is_one_line_and_the_next_start_tells_the_truth(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        writer = log_writer(tmp_path)
        async with opened(tmp_path, writer=writer) as first:
            await publish(first, draft(0))
            old = await head(first)
            await writer.flush()
            resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))
            await publish(first, draft(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert len(caplog.records) == 1
    async with opened(tmp_path) as second:
        now = await head(second)
        assert now.number == 1
        assert now.epoch != old.epoch


async def test_the_thread_outlives_an_error_of_any_kind(tmp_path: Path) -> None:
    writer = log_writer(tmp_path)
    async with opened(tmp_path, writer=writer) as backplane:
        # Not an error of SQLite's: an integer that it can't hold.
        writer.add(RowChange("INSERT OR REPLACE INTO seen VALUES (?, ?)", (b"x", 1 << 70)))
        await backplane.claim("t", 0, "me")
        async with asyncio.timeout(LIMIT_S):
            await publish(backplane, draft(0, source=Source("t", 0, 1, 1, "me")))
        await eventually(lambda: writer.on_disk)
        await publish(backplane, draft(1))
    async with opened(tmp_path) as again:
        assert (await head(again)).number == 2


# The file isn't what it was


async def test_an_older_file_put_back_is_not_taken_for_the_newest(tmp_path: Path) -> None:
    async with opened(tmp_path) as first:
        await publish(first, draft(0), draft(1))
        old = await head(first)
    shutil.copy(tmp_path / "x.db-log", tmp_path / "backup")
    async with opened(tmp_path) as second:
        await publish(second, draft(2))
    shutil.copy(tmp_path / "backup", tmp_path / "x.db-log")
    async with opened(tmp_path) as third:
        # Number 3 was given, and seen: it must not be given again in the same epoch.
        assert (await head(third)).epoch != old.epoch


DAMAGES = [
    ("DELETE FROM log",),
    ("DELETE FROM entry WHERE number = 2",),
    ("UPDATE entry SET body = ? WHERE number = 2", b"\xff\xff"),
    ("UPDATE entry SET body = ? WHERE number = 2", "text"),
    ("UPDATE entry SET body = ? WHERE number = 2", 7),
    ("UPDATE entry SET place = 0 WHERE number = 3",),
    ("UPDATE entry SET at_ms = 'x' WHERE number = 3",),
    ("UPDATE log SET number = 'x'",),
    ("UPDATE log SET name = cast(x'ff' AS text)",),
    ("INSERT INTO start VALUES ('t', '[')",),
    ("ALTER TABLE seen RENAME COLUMN at_ms TO at",),
]


@pytest.mark.parametrize("damage", DAMAGES, ids=[" ".join(map(str, damage)) for damage in DAMAGES])
async def test_whatever_is_damaged_inside_is_a_gap_and_one_line(
    tmp_path: Path, damage: tuple[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(tmp_path) as first:
        await publish(first, draft(0), draft(1), draft(2))
        old = await head(first)
    changed(tmp_path, *damage)
    writer = log_writer(tmp_path)
    async with opened(tmp_path, writer=writer) as second:
        assert (await head(second)).epoch != old.epoch
        await publish(second, draft(3))
        await writer.flush()
        assert writer.on_disk
    said = [record for record in caplog.records if record.name.startswith("pushsse.backplane.memory")]
    assert len(said) == 1
    assert "is damaged" in said[0].getMessage()


@pytest.mark.parametrize("seed", range(12))
async def test_bytes_that_changed_anywhere_never_keep_it_from_starting(tmp_path: Path, seed: int) -> None:
    async with opened(tmp_path) as first:
        for log in ("all", "1", "2"):
            await publish(first, *(draft(n, once=f"{log}{n}") for n in range(200)), log=log)
        before = await first.read({"all": 0, "1": 0, "2": 0}, limit=1000)
    dice = random.Random(seed)
    whole = bytearray((tmp_path / "x.db-log").read_bytes())
    if seed % 3 == 0:
        del whole[dice.randrange(len(whole)) :]
    for _ in range(dice.choice((1, 20, 200))):
        if whole:
            whole[dice.randrange(len(whole))] = dice.randrange(256)
    (tmp_path / "x.db-log").write_bytes(whole)
    async with opened(tmp_path) as second:
        after = await second.read({"all": 0, "1": 0, "2": 0}, limit=1000)
        for log, now in after.heads.items():
            was = before.heads[log]
            if now.epoch == was.epoch:
                assert (now.number, now.first) == (was.number, was.first)
        await publish(second, draft(1000))


async def test_entries_that_are_gone_are_a_gap_for_those_who_lack_them(tmp_path: Path) -> None:
    async with opened(tmp_path) as first:
        await publish(first, draft(0), draft(1), draft(2))
    changed(tmp_path, "DROP TABLE entry")
    async with opened(tmp_path) as second:
        now = await head(second)
        assert (now.number, now.first) == (3, 4)


async def test_a_file_that_takes_no_entries_is_begun_anew_while_it_is_used(tmp_path: Path) -> None:
    async with opened(tmp_path) as first:
        await publish(first, draft(0))
    changed(tmp_path, "ALTER TABLE entry ADD COLUMN more")
    writer = log_writer(tmp_path)
    async with opened(tmp_path, writer=writer) as second:
        await publish(second, draft(1))
        await eventually(lambda: not writer.on_disk)
        await eventually(lambda: writer.on_disk)
        before = await second.read({"all": 0}, limit=10)
    async with opened(tmp_path) as third:
        after = await third.read({"all": 0}, limit=10)
        assert (after.heads, after.entries) == (before.heads, before.entries)
        assert len(after.entries) == 2


async def test_a_damaged_file_that_cannot_be_put_aside_is_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "x.db-log").write_bytes(b"no database")
    (tmp_path / "x.db-log.damaged" / "full").mkdir(parents=True)
    async with opened(tmp_path) as backplane:
        await publish(backplane, draft(0))
        assert (await head(backplane)).number == 1
    assert len(caplog.records) == 1


async def test_a_file_that_is_damaged_while_it_cannot_be_written_is_begun_anew(tmp_path: Path) -> None:
    writer = log_writer(tmp_path)
    async with opened(tmp_path, writer=writer) as first:
        with locked(tmp_path):
            await publish(first, draft(0))
            await eventually(lambda: not writer.on_disk)
            for left in ("-wal", "-shm"):
                (tmp_path / f"x.db-log{left}").unlink(missing_ok=True)
            (tmp_path / "x.db-log").write_bytes(b"no database" * 1000)
        await eventually(lambda: writer.on_disk)
        before = await first.read({"all": 0}, limit=10)
    async with opened(tmp_path) as second:
        after = await second.read({"all": 0}, limit=10)
        assert (after.heads, after.entries) == (before.heads, before.entries)


# What is remembered


async def test_ids_are_forgotten_in_time_also_where_the_clock_went_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_ms = machine_ms()
    monkeypatch.setattr(MemoryBackplane, "now_ms", lambda _: now_ms + 3_600_000)
    async with opened(tmp_path) as first:
        await publish(first, draft(0, once="id"))
    monkeypatch.setattr(MemoryBackplane, "now_ms", lambda _: now_ms + 1000)
    for _ in range(2):
        async with opened(tmp_path) as second:
            receipt = await second.publish([Append("all", (draft(0, once="id"),))])
            assert receipt.repeated == 1
    monkeypatch.setattr(MemoryBackplane, "now_ms", lambda _: now_ms + 660_000)
    async with opened(tmp_path) as third:
        receipt = await third.publish([Append("all", (draft(0, once="id"),))])
        assert receipt.appended == 1


async def test_no_more_ids_come_back_than_are_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "REMEMBER_MOST", 10)
    now_ms = machine_ms()
    async with opened(tmp_path) as first:
        for number in range(30):
            monkeypatch.setattr(MemoryBackplane, "now_ms", lambda _, at=now_ms - 30 + number: at)
            await publish(first, draft(number, once=str(number)))
    async with opened(tmp_path) as second:
        assert len(second.snapshot().names) == 10
        receipt = await second.publish([Append("all", (draft(29, once="29"),))])
        assert receipt.repeated == 1


async def test_other_shards_keep_what_kafka_needs(tmp_path: Path) -> None:
    async with opened(tmp_path) as first:
        await first.identity("here")
        await first.first_start("t", {0: 7})
        await first.claim("t", 0, "me")
        await publish(first, draft(0, source=Source("t", 0, 5, 1, "me")))
    for _ in range(2):
        async with opened(tmp_path, shards=8) as second:
            assert await second.identity("there") == "here"
            assert await second.first_start("t", {0: 9}) == {0: 7}
            assert await second.claimed("t", 0)
            assert await second.fence("t", 0) is None


KILLED = """
import asyncio, os, sys
from pathlib import Path
from pushsse.backplane.memory import MemoryBackplane
from pushsse.backplane.memory.writer import LogWriter, WriterLimits
from pushsse.metrics import Metrics

async def main():
    writer = LogWriter(Path(sys.argv[1]), shards=4, limits=WriterLimits(write_every_s=60))
    backplane = MemoryBackplane(shards=4, keep_s=600, keep_bytes=1 << 20, metrics=Metrics(), writer=writer)
    await backplane.__aenter__()
    await backplane.identity("here")
    await backplane.first_start("t", {0: 7})
    os.kill(os.getpid(), 9)

asyncio.run(main())
"""


def killed(path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, str(path / "x.db-log")],
        check=False,
        capture_output=True,
        timeout=60,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr


async def test_where_a_topic_was_begun_is_on_disk_before_anything_is_read(tmp_path: Path) -> None:
    killed(tmp_path)
    async with opened(tmp_path) as backplane:
        assert await backplane.identity("there") == "here"
        assert await backplane.first_start("t", {0: 9}) == {0: 7}


async def test_starts_in_quick_succession_lose_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as first:
        await publish(first, draft(0))
        old = await head(first)
    for _ in range(5):
        async with opened(tmp_path):
            pass
    async with opened(tmp_path) as last:
        assert await head(last) == old
    assert on_disk(tmp_path)["all"] == (old.epoch, old.number)
