"""The outbox on real parts: two nodes, one killed in the middle, PostgreSQL restarted, Redis away."""

import asyncio
import json
import random
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from deploy.parts import Postgres
from pushsse.intake.outbox.tables import sql
from tests.backplane.redis_server import RedisServer
from tests.cli.running import process
from tests.migrated import migrated_in
from tests.parts import running
from tests.serving import Running, Stream, serving
from tests.waiting import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.real]
PEOPLE = tuple(f"person{n}" for n in range(8))


@pytest.fixture(scope="module")
def own_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """A PostgreSQL that the tests may stop."""
    yield from running(Postgres(tmp_path_factory.mktemp("postgres")))


@pytest.fixture
async def shared(own_postgres: Postgres, redis_url: str, anyio_backend: str) -> dict[str, Any]:
    """The settings of all nodes, over a database that has all tables."""
    url = await asyncio.to_thread(migrated_in, own_postgres)
    application = await asyncpg.connect(url)
    await application.execute(sql("pushsse_outbox"))
    await application.close()
    return {"database_url": url, "redis_url": redis_url, "outbox": "pushsse_outbox"}


@pytest.fixture
async def nodes(shared: dict[str, Any], tmp_path: Path) -> AsyncIterator[Sequence[Running]]:
    async with serving(tmp_path, node="one", **shared) as one, serving(tmp_path, node="two", **shared) as two:
        yield one, two


@pytest.fixture
async def streams(nodes: Sequence[Running]) -> AsyncIterator[dict[str, Stream]]:
    """A stream of each person, half of them on each of two nodes."""
    async with AsyncExitStack() as stack:
        found = {}
        for number, person in enumerate(PEOPLE):
            found[person] = await stack.enter_async_context(nodes[number % 2].stream(person))
            await found[person].ready()
        yield found


async def write(url: str, people: Sequence[str], count: int) -> None:
    """An application: in each transaction a row for each person, in any order."""
    connection = await asyncpg.connect(url)
    try:
        for n in range(count):
            async with connection.transaction():
                for person in random.sample(people, len(people)):
                    await connection.execute(
                        "INSERT INTO pushsse_outbox (type, message, recipients) VALUES ('alarm', $1, $2)",
                        str(n),
                        json.dumps({"users": [person]}),
                    )
    finally:
        await connection.close()


async def fill(url: str, count: int, *, first: int = 0) -> None:
    """All rows in one transaction, numbered from `first` on."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(
            """INSERT INTO pushsse_outbox (type, message, recipients)
               SELECT 'alarm', to_json(n), json_build_object('users', json_build_array(person))
                 FROM generate_series($1::int, $2::int - 1) n, unnest($3::text[]) person ORDER BY n""",
            first,
            first + count,
            list(PEOPLE),
        )
    finally:
        await connection.close()


async def read(streams: dict[str, Stream], count: int) -> dict[str, list[int]]:
    """What each person gets up to an event that comes after all others."""
    return {person: await stream.messages(count) for person, stream in streams.items()}


async def is_empty(url: str) -> bool:
    connection = await asyncpg.connect(url)
    try:
        return int(await connection.fetchval("SELECT count(*) FROM pushsse_outbox")) == 0
    finally:
        await connection.close()


async def ended(url: str, streams: dict[str, Stream]) -> dict[str, list[int]]:
    """What has come by the time when nothing waits: a last event tells that there is no more."""
    await eventually(lambda: is_empty(url))
    await write(url, PEOPLE, 1)
    return await read(streams, 1)


async def test_a_node_is_killed_in_the_middle_of_what_two_applications_write(
    shared: dict[str, Any], streams: dict[str, Stream], tmp_path: Path
) -> None:
    url = shared["database_url"]
    folder = tmp_path / "dying"
    folder.mkdir()
    settings = {f"PUSHSSE_{name.upper()}": str(value) for name, value in shared.items()}
    async with asyncpg.create_pool(url, min_size=1, max_size=1) as watching:

        async def dying_has(some: str, count: int) -> bool:
            text = f"SELECT count(*) FROM pushsse_outbox_bucket WHERE taker LIKE 'dying-%' AND {some}"
            return int(await watching.fetchval(text)) >= count

        with process(folder, "serve", "--port", "0", PUSHSSE_NODE="dying", **settings) as dying:
            await eventually(lambda: dying_has("true", 10))
            writing = asyncio.gather(
                write(url, PEOPLE[:4], 200), write(url, PEOPLE[4:], 200), fill(url, 300, first=1000)
            )
            # It has rows in hand, published or not.
            await eventually(lambda: dying_has("ids <> '{}'", 1))
            dying.send_signal(signal.SIGKILL)
            dying.wait()
            await writing
    for got in (await read(streams, 500)).values():
        assert [n for n in got if n < 1000] == list(range(200))
        assert [n for n in got if n >= 1000] == list(range(1000, 1300))
    assert await ended(url, streams) == {person: [0] for person in PEOPLE}


async def test_postgres_is_killed_and_started_again_in_the_middle(
    shared: dict[str, Any], streams: dict[str, Stream], own_postgres: Postgres
) -> None:
    url = shared["database_url"]
    await fill(url, 500)
    first = {PEOPLE[0]: streams[PEOPLE[0]]}
    assert await read(first, 1) == {PEOPLE[0]: [0]}
    own_postgres.kill()
    await asyncio.to_thread(own_postgres.start)
    found = await read(first, 499) | await read({p: s for p, s in streams.items() if p not in first}, 500)
    assert found == {person: list(range(person == PEOPLE[0], 500)) for person in PEOPLE}
    assert await ended(url, streams) == {person: [0] for person in PEOPLE}


async def test_redis_is_away_in_the_middle(
    shared: dict[str, Any],
    nodes: Sequence[Running],
    streams: dict[str, Stream],
    redis_server: RedisServer,
) -> None:
    url = shared["database_url"]
    await fill(url, 500)
    first = {PEOPLE[0]: streams[PEOPLE[0]]}
    assert await read(first, 1) == {PEOPLE[0]: [0]}
    redis_server.freeze()
    await eventually(lambda: not any(each.node.backplane.available for each in nodes))
    redis_server.thaw()
    found = await read(first, 499) | await read({p: s for p, s in streams.items() if p not in first}, 500)
    assert found == {person: list(range(person == PEOPLE[0], 500)) for person in PEOPLE}
    assert await ended(url, streams) == {person: [0] for person in PEOPLE}
