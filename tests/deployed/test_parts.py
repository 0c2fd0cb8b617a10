"""What the fault runs lean on: a part that was killed comes back on its port, with its data."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import asyncpg
import pytest
from redis.asyncio import Redis as Client

from deploy.parts import Kafka, Part, Postgres, Redis
from deploy.parts.kafka_wire import topics
from deploy.parts.part import descendants, is_alive
from deploy.parts.ports import free_port, take_port
from tests.parts import running
from tests.waiting import eventually, until

pytestmark = [pytest.mark.anyio, pytest.mark.real]
LIMIT_S = 30.0
REPOSITORY = Path(__file__).resolve().parents[2]
WAITS = """
import os, pathlib, signal, time
def test_that_waits(redis_part):
    if "PYTEST_XDIST_WORKER" in os.environ:  # It is killed then, and stops nothing by itself.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    pathlib.Path({place!r}).write_text(str(redis_part.pid))
    time.sleep(60)
"""


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    yield from running(Redis(tmp_path / "redis", appendonly=True, appendfsync="always"))


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[Postgres]:
    yield from running(Postgres(tmp_path / "postgres"))


@pytest.fixture
def kafka(tmp_path: Path) -> Iterator[Kafka]:
    yield from running(Kafka(tmp_path / "kafka"))


class Holder:
    """Whoever has a port."""


def test_a_port_that_is_taken_is_nobody_elses_until_its_holder_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = free_port()
    # Of this one port: nobody listens there yet, and still it is given away once only.
    monkeypatch.setattr("deploy.parts.ports.random.sample", lambda ports, count: [first])
    holder = Holder()
    assert take_port(holder) == first
    with pytest.raises(OSError, match="no free port"):
        take_port(Holder())
    with pytest.raises(OSError, match="no free port"):
        free_port()
    del holder
    assert free_port() == first


def test_no_part_takes_a_port_that_was_found_free_and_is_not_listened_on_yet() -> None:
    holders = [Holder() for _ in range(50)]
    taken = {take_port(holder) for holder in holders}
    found = {free_port() for _ in range(50)}
    assert max(found) < min(taken)


def kill(part: Part) -> None:
    """Ends it, and checks that nothing of it is left at that moment."""
    family = [part.pid, *descendants(part.pid)]
    port = part.port
    part.kill()
    assert not [pid for pid in family if is_alive(pid)]
    assert not part.running
    part.start()
    assert part.port == port


async def test_redis_that_was_killed_comes_back_with_its_data(redis: Redis) -> None:
    async with Client.from_url(redis.url) as client:
        await client.set("kept", "yes")
    kill(redis)
    async with Client.from_url(redis.url) as client:
        assert await client.get("kept") == b"yes"


async def test_redis_that_is_paused_keeps_its_connections_and_says_nothing(redis: Redis) -> None:
    async with Client.from_url(redis.url) as client:
        await client.ping()
        redis.pause()
        silent = asyncio.ensure_future(client.ping())
        done, _ = await asyncio.wait([silent], timeout=0.3)
        assert not done
        assert redis.running
        redis.resume()
        assert await asyncio.wait_for(silent, LIMIT_S)


async def test_postgres_that_was_killed_while_it_worked_comes_back_with_its_data(postgres: Postgres) -> None:
    connection = await asyncpg.connect(postgres.url, timeout=LIMIT_S)
    await connection.execute("create table kept (word text); insert into kept values ('yes')")
    # A backend in the middle of something would hold on to the shared memory if it outlived the server.
    working = asyncio.ensure_future(connection.execute("select count(*) from generate_series(1, 1000000000)"))
    await eventually(lambda: working_backends(postgres))
    await asyncio.to_thread(kill, postgres)
    with pytest.raises((OSError, asyncpg.PostgresConnectionError)):
        await asyncio.wait_for(working, LIMIT_S)
    again = await asyncpg.connect(postgres.url, timeout=LIMIT_S)
    assert await again.fetchval("select word from kept") == "yes"
    await again.close()


async def working_backends(postgres: Postgres) -> int:
    connection = await asyncpg.connect(postgres.url, timeout=LIMIT_S)
    try:
        where = "where state = 'active' and query like '%generate_series%' and pid <> pg_backend_pid()"
        found = await connection.fetchval(f"select count(*) from pg_stat_activity {where}")
        return int(found)
    finally:
        await connection.close()


@pytest.mark.long
async def test_kafka_that_was_killed_comes_back_with_its_topics(kafka: Kafka) -> None:
    kafka.create_topic("kept", 4)
    kafka.create_topic("kept", 4)
    kafka.create_topic("gone")
    kafka.delete_topic("gone")
    await asyncio.to_thread(kill, kafka)
    assert [name for name in topics(kafka.port) if not name.startswith("__")] == ["kept"]


@pytest.mark.parametrize(
    ("number", "workers"), [(signal.SIGTERM, 0), (signal.SIGINT, 0), (signal.SIGTERM, 1)]
)
def test_tests_that_are_ended_leave_no_part_running(
    tmp_path: Path, number: signal.Signals, workers: int
) -> None:
    """By Ctrl-C, or by whoever runs them and has had enough."""
    place, test = tmp_path / "pid", tmp_path / "test_waits.py"
    test.write_text(WAITS.format(place=str(place)))
    options = ["-q", "-p", "tests.parts", "-p", "no:cacheprovider", "-c", os.devnull, f"-n{workers}"]
    # In a run of pytest-xdist this test is in a worker, and the tests in it aren't.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", *options, "--rootdir", str(tmp_path), str(test)],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.DEVNULL,
        # These tests may run in the background of a shell, which has its children ignore Ctrl-C.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    try:
        until(lambda: (place.exists() and place.read_text()) or process.poll() is not None)
        assert process.poll() is None
        redis = int(place.read_text())
        assert is_alive(redis)
        process.send_signal(number)
        assert process.wait(LIMIT_S) != 0
        assert not is_alive(redis)
    finally:
        process.kill()
        process.wait(LIMIT_S)
