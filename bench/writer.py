"""Writes rows into an outbox, each to one person and in a transaction of its own, at a rate: a process.

Run by `outbox`: writer.py DATABASE_URL ROWS PEOPLE RATE. The time in a row is that before its INSERT.
"""

import asyncio
import json
import sys
import time

import asyncpg

TEXT_BYTES = 300
_WRITERS = 4
_INSERT = "INSERT INTO pushsse_outbox (type, message, recipients) VALUES ('load', $1, $2)"


async def write(url: str, rows: int, people: int, rate: float) -> None:
    """All rows; returns when they are committed."""
    began = time.monotonic()

    async def some(first: int) -> None:
        connection = await asyncpg.connect(url)
        try:
            for number in range(first, rows, _WRITERS):
                if (early_s := began + number / rate - time.monotonic()) > 0:
                    await asyncio.sleep(early_s)
                text = f"@@T{time.monotonic_ns():019d}".ljust(TEXT_BYTES, "x")
                to = json.dumps({"users": [f"person{number % people}"]})
                await connection.execute(_INSERT, json.dumps(text), to)
        finally:
            await connection.close()

    await asyncio.gather(*(some(first) for first in range(_WRITERS)))


if __name__ == "__main__":
    url, rows, people, rate = sys.argv[1:5]
    asyncio.run(write(url, int(rows), int(people), float(rate)))
