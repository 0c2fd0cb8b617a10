"""From an outbox: how many rows a second a node takes to the log, and how long one takes to a client.

The rows are for one person each; the switches are asked of the same PostgreSQL.
"""

import asyncio
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from bench.contestants import BenchNode
from bench.generator import Figures
from bench.path import LIMIT_S, PEOPLE, RATE, STREAMS, Throughput, database, followed
from bench.processors import LOAD, pinned
from bench.writer import TEXT_BYTES
from deploy.parts import Postgres, Redis
from pushsse.intake.outbox.tables import sql

_WRITER = Path(__file__).with_name("writer.py")
_FILL = """INSERT INTO pushsse_outbox (type, message, recipients)
    SELECT 'load', to_json(repeat('x', $1)),
           json_build_object('users', json_build_array('person' || n % $2)) FROM generate_series(1, $3) n"""


@dataclass(frozen=True, slots=True)
class OutboxCosts:
    """One round: a table that is full when the node starts, then a steady load."""

    throughput: Throughput
    latency: Figures


def measure(
    redis: Redis, postgres: Postgres, folder: Path, name: str, rows: int, seconds: float
) -> OutboxCosts:
    """One round of both."""
    return OutboxCosts(
        _throughput(redis, postgres, folder, f"{name}full", rows),
        _latency(redis, postgres, folder, f"{name}steady", seconds),
    )


def _throughput(redis: Redis, postgres: Postgres, folder: Path, name: str, rows: int) -> Throughput:
    url = database(postgres, name)
    asyncio.run(_execute(url, rows))
    with _node(redis, folder, name, url) as node:
        return followed(node, rows)


def _latency(redis: Redis, postgres: Postgres, folder: Path, name: str, seconds: float) -> Figures:
    url = database(postgres, name)
    asyncio.run(_execute(url, 0))
    figures = None
    with _node(redis, folder, name, url) as node, node.generator(STREAMS) as load:
        load.open(STREAMS)
        # The first second isn't measured: connections and caches warm up.
        for rows in (RATE, int(RATE * seconds)):
            load.expect(rows)
            words = (url, str(rows), str(STREAMS), str(RATE))
            writer = subprocess.Popen(pinned([sys.executable, str(_WRITER), *words], LOAD))
            figures = load.arrived()
            if writer.wait(LIMIT_S):
                raise RuntimeError("the writer failed")
    assert figures is not None
    return figures


def _node(redis: Redis, folder: Path, name: str, url: str) -> BenchNode:
    return BenchNode(
        folder / name,
        {
            "PUSHSSE_REDIS_URL": redis.url,
            "PUSHSSE_REDIS_PREFIX": f"{name}:",
            "PUSHSSE_DATABASE_URL": url,
            "PUSHSSE_OUTBOX": "pushsse_outbox",
        },
    )


async def _execute(url: str, rows: int) -> None:
    """The table, and rows in it."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(sql("pushsse_outbox"))
        if rows:
            await connection.execute(_FILL, TEXT_BYTES, PEOPLE, rows)
            await connection.execute("ANALYZE pushsse_outbox")
    finally:
        await connection.close()
