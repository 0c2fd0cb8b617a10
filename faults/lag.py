"""Measures how long nodes take to answer /livez, until its input ends; prints the p99 in seconds.

A process of its own: the one with thousands of clients has a lag of its own. What it measures has the loop's
lag in it, and more.
"""

import asyncio
import sys
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

_EVERY_S = 0.05
_LIMIT_S = 10.0
_REQUEST = b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


async def measure(urls: Sequence[str]) -> float:
    """The p99 over all nodes."""
    found: list[float] = []
    ended = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    asking = [asyncio.create_task(_ask(urlsplit(url).port or 0, found)) for url in urls]
    await ended
    for task in asking:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    found.sort()
    return found[int(len(found) * 0.99)] if found else float("inf")


async def _ask(port: int, found: list[float]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while True:
        begun = time.monotonic()
        writer.write(_REQUEST)
        async with asyncio.timeout(_LIMIT_S):
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
        found.append(time.monotonic() - begun)
        await asyncio.sleep(_EVERY_S)


if __name__ == "__main__":
    print(asyncio.run(measure(sys.argv[1:])))
