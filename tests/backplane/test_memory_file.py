"""The embedded backplane's file: what a restart goes on with, and what it tells where something is lost."""

import resource
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path

import httpx
import pytest

from pushsse import event
from pushsse.backplane import Append, Draft, Source, machine_ms
from pushsse.backplane.memory import MemoryBackplane
from pushsse.backplane.memory.logs import LogUpdate, Snapshot
from pushsse.backplane.memory.store import LogStore, RowChange
from pushsse.backplane.memory.writer import LogWriter, WriterLimits
from pushsse.errors import SettingsError
from pushsse.event import Change
from pushsse.metrics import Metrics
from tests.cli.running import Served, pushsse, served
from tests.waiting import eventually, until

pytestmark = pytest.mark.anyio


QUICK = WriterLimits(retry_s=0.1)


def log_writer(path: Path, *, shards: int = 4, limits: WriterLimits = QUICK) -> LogWriter:
    """Writes beside the database in `path`, and soon tries again what failed."""
    return LogWriter(path / "x.db-log", shards=shards, limits=limits)


@asynccontextmanager
async def opened(
    path: Path, *, shards: int = 4, keep_bytes: int = 1 << 20, writer: LogWriter | None = None
) -> AsyncIterator[MemoryBackplane]:
    writer = writer or log_writer(path, shards=shards)
    async with MemoryBackplane(
        shards=shards, keep_s=600, keep_bytes=keep_bytes, metrics=Metrics(), writer=writer
    ) as backplane:
        yield backplane


def draft(
    number: int, *, source: Source | None = None, once: str = "", change: Change | None = None
) -> Draft:
    users = ("ann",) if change is not None else None
    return Draft(event.encode("news", {"n": number}, users=users, change=change), source, once)


def changes_taken(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The changes that the writer's thread has begun to write from now on, whether it can or not."""
    taken: list[object] = []
    write = LogStore.write

    def noted(
        self: LogStore,
        changes: Sequence[LogUpdate | RowChange],
        whole: Snapshot | None,
        *,
        last: bool = False,
    ) -> None:
        taken.extend(changes)
        write(self, changes, whole, last=last)

    monkeypatch.setattr(LogStore, "write", noted)
    return taken


async def until_more(taken: list[object], *, than: int) -> None:
    await eventually(lambda: len(taken) > than)


async def publish(backplane: MemoryBackplane, *drafts: Draft, log: str = "all") -> None:
    await backplane.publish([Append(log, drafts)])


async def test_a_restart_has_everything_there_was(tmp_path: Path) -> None:
    change = Change("ann", 1, (), ("news",))
    async with opened(tmp_path) as first:
        for number in range(100):
            await publish(first, draft(number))
        await publish(first, draft(0, change=change), log="2")
        await first.claim("t", 3, "me")
        await publish(first, draft(1, source=Source("t", 3, 41, 1000, "me"), once="id"), log="1")
        await first.first_start("t", {0: 7})
        await first.identity("here")
        before = await first.read({"all": 0, "1": 0, "2": 0, "3": 0}, limit=1000)
    async with opened(tmp_path) as second:
        after = await second.read({"all": 0, "1": 0, "2": 0, "3": 0}, limit=1000)
        assert after.entries == before.entries
        assert {n: h for n, h in after.heads.items() if n != "3"} == {
            n: h for n, h in before.heads.items() if n != "3"
        }
        assert await second.first_change("2", "ann", 0) == change
        assert await second.fence("t", 3) == (41, 1000)
        assert await second.claimed("t", 3)
        assert await second.first_start("t", {0: 9}) == {0: 7}
        assert await second.identity("there") == "here"
        receipt = await second.publish([Append("1", (draft(2, once="id"), draft(3)))])
        assert (receipt.repeated, receipt.appended) == (1, 1)
        page = await second.read({"all": 0, "1": 0}, limit=1000)
        orders = [entry.order for entry in page.entries]
        assert orders == sorted(set(orders))


async def test_what_was_trimmed_stays_trimmed(tmp_path: Path) -> None:
    async with opened(tmp_path, keep_bytes=1 << 16) as first:
        for _ in range(200):
            await publish(first, Draft(event.encode("news", "x" * 5000, users=None)), log="1")
        head = (await first.read({"1": 0}, limit=1)).heads["1"]
        assert head.first > 1
    with closing(sqlite3.connect(tmp_path / "x.db-log")) as connection:
        kept = connection.execute("SELECT min(number), max(number), count(*) FROM entry").fetchone()
        assert kept == (head.first, 200, 201 - head.first)
    async with opened(tmp_path, keep_bytes=1 << 16) as second:
        page = await second.read({"1": 0}, limit=1000)
        assert page.heads["1"] == head
        assert [entry.number for entry in page.entries] == list(range(head.first, 201))


async def test_other_shards_begin_new_logs(tmp_path: Path) -> None:
    async with opened(tmp_path) as first:
        await publish(first, draft(0))
        epoch = (await first.read({"all": 0}, limit=1)).heads["all"].epoch
    async with opened(tmp_path, shards=8) as second:
        page = await second.read({"all": 0}, limit=1)
        assert page.entries == ()
        assert page.heads["all"].epoch != epoch


KILLED = """
import asyncio, os, sys
from contextlib import closing
from pathlib import Path
from pushsse import event
from pushsse.backplane import Append, Draft, Source
from pushsse.backplane.memory import MemoryBackplane
from pushsse.backplane.memory.writer import LogWriter, WriterLimits
from pushsse.metrics import Metrics

async def main():
    # It writes only when it must: what nobody waits for is lost.
    writer = LogWriter(Path(sys.argv[1]), shards=4, limits=WriterLimits(write_every_s=60))
    backplane = MemoryBackplane(shards=4, keep_s=600, keep_bytes=1 << 20, metrics=Metrics(), writer=writer)
    await backplane.__aenter__()
    drafts = tuple(Draft(event.encode("news", n, users=None)) for n in range(50))
    await backplane.publish([Append("all", drafts), Append("1", drafts)])
    await writer.flush()
    if sys.argv[2] == "lost":
        await backplane.publish([Append("all", drafts[:3])])
    if sys.argv[2] == "kafka":
        await backplane.claim("t", 0, "me")
        await backplane.publish([Append("all", (Draft(drafts[0].publication, Source("t", 0, 5, 1, "me")),))])
    os.kill(os.getpid(), 9)

asyncio.run(main())
"""


def killed(path: Path, how: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, str(path / "x.db-log"), how],
        check=False,
        capture_output=True,
        timeout=60,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr


async def heads(path: Path, *, writer: LogWriter | None = None) -> dict[str, tuple[str, int]]:
    async with opened(path, writer=writer) as backplane:
        found = (await backplane.read({"all": 0, "1": 0}, limit=1)).heads
        return {name: (head.epoch, head.number) for name, head in found.items()}


def on_disk(path: Path) -> dict[str, tuple[str, int]]:
    connection = sqlite3.connect(path / "x.db-log")
    try:
        return {name: (epoch, number) for name, epoch, number, _ in connection.execute("SELECT * FROM log")}
    finally:
        connection.close()


async def test_a_killed_process_that_had_written_everything_loses_nothing(tmp_path: Path) -> None:
    killed(tmp_path, "whole")
    before = on_disk(tmp_path)
    assert await heads(tmp_path) == before
    assert before["all"][1] == 50


async def test_a_log_that_lost_something_goes_on_in_another_epoch_and_the_others_dont(tmp_path: Path) -> None:
    killed(tmp_path, "lost")
    before, after = on_disk(tmp_path), await heads(tmp_path)
    assert after["1"] == before["1"]
    assert after["all"][0] != before["all"][0]
    assert after["all"][1] == 50


async def test_what_came_from_kafka_is_on_disk_before_its_offset_is_committed(tmp_path: Path) -> None:
    killed(tmp_path, "kafka")
    assert on_disk(tmp_path)["all"][1] == 51
    async with opened(tmp_path) as backplane:
        assert await backplane.fence("t", 0) == (5, 1)


async def test_after_a_power_cut_every_log_goes_on_in_another_epoch(tmp_path: Path) -> None:
    killed(tmp_path, "whole")
    before = on_disk(tmp_path)
    rebooted = tmp_path / "boot_id"
    rebooted.write_text("another")
    after = await heads(tmp_path, writer=LogWriter(tmp_path / "x.db-log", shards=4, boot_id=rebooted))
    assert all(after[name][0] != before[name][0] and after[name][1] == 50 for name in ("all", "1"))
    # Said once: the next start is a clean one.
    assert await heads(tmp_path) == after


@pytest.mark.parametrize("damage", [b"no database", b"SQLite format 3\0" + b"\xff" * 4000])
async def test_a_damaged_file_is_put_aside_with_one_line(
    tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "x.db-log").write_bytes(damage)
    async with opened(tmp_path) as backplane:
        await publish(backplane, draft(1))
    assert len(caplog.records) == 1
    assert "is damaged" in caplog.text
    assert (tmp_path / "x.db-log.damaged").read_bytes() == damage
    async with opened(tmp_path) as again:
        assert len((await again.read({"all": 0}, limit=10)).entries) == 1


async def test_a_file_of_a_newer_release_is_put_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(tmp_path):
        pass
    connection = sqlite3.connect(tmp_path / "x.db-log")
    with connection:
        connection.execute("UPDATE meta SET value = '99' WHERE name = 'version'")
    connection.close()
    async with opened(tmp_path):
        assert "version is 99" in caplog.text


async def test_a_file_of_version_1_is_taken_over(tmp_path: Path) -> None:
    async with opened(tmp_path) as first:
        await publish(first, draft(0), draft(1), draft(2))
        before = await first.read({"all": 0, "1": 0}, limit=10)
    connection = sqlite3.connect(tmp_path / "x.db-log")
    with connection:
        connection.execute("ALTER TABLE entry RENAME TO newer")
        connection.execute("""CREATE TABLE entry (log TEXT NOT NULL, number INTEGER NOT NULL,
            place INTEGER NOT NULL, at_ms INTEGER NOT NULL, body BLOB NOT NULL, PRIMARY KEY (log, number))""")
        connection.execute("INSERT INTO entry SELECT log, number, place, at_ms, body FROM newer")
        connection.execute("DROP TABLE newer")
        connection.execute("UPDATE meta SET value = '1' WHERE name = 'version'")
    connection.close()
    for _ in range(2):
        async with opened(tmp_path) as again:
            assert await again.read({"all": 0, "1": 0}, limit=10) == before


async def test_a_second_process_on_the_same_file_is_refused(tmp_path: Path) -> None:
    async with opened(tmp_path):
        with pytest.raises(SettingsError, match="another process"):
            async with opened(tmp_path):
                pass
    async with opened(tmp_path):
        pass


async def test_a_full_disk_is_said_once_and_the_file_is_whole_again_afterwards(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = changes_taken(monkeypatch)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    body = Draft(event.encode("news", "x" * 20_000, users=None))
    try:
        writer = log_writer(tmp_path)
        async with opened(tmp_path, keep_bytes=1 << 22, writer=writer) as backplane:
            resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
            for _ in range(60):
                await publish(backplane, body)
            await eventually(lambda: not writer.on_disk)
            for _ in range(5):
                so_far = len(taken)
                await publish(backplane, body, body)
                await until_more(taken, than=so_far)
            assert caplog.text.count("writing ") == 1
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            await eventually(lambda: writer.on_disk)
            before = await backplane.read({"all": 0}, limit=1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    async with opened(tmp_path, keep_bytes=1 << 22) as again:
        after = await again.read({"all": 0}, limit=1000)
        assert after.entries == before.entries
        assert after.heads == before.heads


# As its users see it


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def last_id(node: Served) -> str:
    found = httpx.get(f"{node.url}/v1/events?user=ann", trust_env=False).json()
    return str(found["position"])


def resumed(node: Served, position: str) -> tuple[str, list[str]]:
    """How a stream resumes, and the messages that it gets."""
    headers = {"Last-Event-ID": position}
    lines: list[str] = []
    with httpx.stream("GET", f"{node.url}/v1/stream?user=ann", headers=headers, trust_env=False) as response:
        for line in response.iter_lines():
            lines.append(line)
            if '"last"' in line:
                break
    text = "\n".join(lines)
    how = text.split('"resume":"')[1].split('"')[0]
    return how, [line for line in lines if '"type":"news"' in line]


def say(node: Served, text: str) -> None:
    answer = httpx.post(f"{node.url}/v1/events?type=news&to=all&user=ann", content=text, trust_env=False)
    assert answer.status_code == 202


@pytest.mark.real
def test_a_client_resumes_with_complete_over_a_restart(folder: Path) -> None:
    with served(folder) as node:
        say(node, "before")
        position = last_id(node)
        say(node, "missed")
    with served(folder) as node:
        say(node, "last")
        how, messages = resumed(node, position)
    assert how == "complete"
    assert len(messages) == 2


@pytest.mark.real
def test_a_client_is_told_the_truth_after_a_kill(folder: Path) -> None:
    with served(folder) as node:
        say(node, "before")
        position = last_id(node)
        until(lambda: on_disk_number(folder) == 1, "write")
        node.process.kill()
        node.process.wait()
    with served(folder) as node:
        say(node, "last")
        how, messages = resumed(node, position)
    assert (how, len(messages)) == ("complete", 1)


def on_disk_number(folder: Path) -> int:
    connection = sqlite3.connect(folder / "pushsse.db-log")
    try:
        return int(connection.execute("SELECT coalesce(max(number), 0) FROM entry").fetchone()[0])
    finally:
        connection.close()


@pytest.mark.real
def test_two_processes_on_one_database_are_told(folder: Path) -> None:
    with served(folder):
        ended = pushsse(folder, "serve", "--port", "0")
    assert ended.returncode == 1
    assert "another process uses pushsse.db" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.real
def test_a_database_in_memory_keeps_nothing(folder: Path) -> None:
    with served(folder, PUSHSSE_DATABASE_URL="sqlite://:memory:") as node:
        say(node, "hello")
    assert not list(folder.glob("*log*-*")) + list(folder.glob("*.db*"))


@pytest.mark.real
@pytest.mark.parametrize("wrong", ["missing/x.db", "folder", "garbage.db", "/proc/x.db"])
def test_a_database_that_cannot_be_used_is_one_line(folder: Path, wrong: str) -> None:
    (folder / "folder").mkdir()
    (folder / "garbage.db").write_bytes(b"\xff" * 4000)
    for command in ("serve", "migrate", "doctor"):
        more = ("--port", "0") if command == "serve" else ()
        ended = pushsse(folder, command, *more, PUSHSSE_DATABASE_URL=f"sqlite://{wrong}")
        said = ended.stdout + ended.stderr
        assert ended.returncode == 1
        assert "Traceback" not in said
        assert any("database" in line and wrong in line for line in said.splitlines()), said


async def test_names_count_among_what_waits_to_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = changes_taken(monkeypatch)
    people = tuple(f"user-{number}" for number in range(1_000))
    async with opened(tmp_path) as backplane:
        known = Draft(event.encode("news", {"n": 1}, users=people), once="order-1")
        # Whose names are all there is to write: everybody has it already.
        await publish(backplane, known, log="1")
        await publish(backplane, known, log="1")
        await until_more(taken, than=1)
    first, again = (change for change in taken if isinstance(change, LogUpdate))
    assert len(first.names) == len(again.names) == len(people)
    least = sum(len(name) for name, _ in again.names)
    assert first.size > known.publication.size + least
    assert again.size > least


async def test_times_go_on_after_a_restart_with_a_clock_that_is_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as backplane:
        await publish(backplane, draft(1))
    monkeypatch.setattr(MemoryBackplane, "now_ms", staticmethod(lambda: machine_ms() - 60_000))
    async with opened(tmp_path) as backplane:
        await publish(backplane, draft(2))
        first, second = (await backplane.read({"all": 0}, limit=10)).entries
        # What is found by its time is searched for in a list that is in order.
        assert second.at_ms >= first.at_ms
        assert await backplane.since(["all"], first.at_ms) == {"all": 0}
