"""What streams notice of clients that mean harm: their p99 latency beside an attack and without it, in turns.

`measure` runs each attack in a process of its own (`python -m bench.attacks PORT KIND`), which says when all
of it is in place. The rates are those of one machine that attacks, well below what would only be load.
"""

import asyncio
import random
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from bench.contestants import BenchNode
from bench.fanout import median
from bench.generator import Figures, LoadFailed
from bench.processors import LOAD, pinned

STREAMS = 1_000
RATE = 50
EVENTS = 150
_ROOT = Path(__file__).parent.parent
# What an attack may cost the others: a quarter more, or so many milliseconds.
_SHARE, _MS = 0.25, 5.0
_HOST = b" HTTP/1.1\r\nHost: 127.0.0.1\r\n"
_LIVE = b"GET /livez" + _HOST + b"\r\n"
_POST = b"POST /v1/events" + _HOST + b"Content-Type: application/json\r\n"
_CHUNKED = b"Transfer-Encoding: chunked\r\n"
_SHAPES = (
    _POST + b"Content-Length: 5\r\n" + _CHUNKED + b"\r\n0\r\n\r\n",
    _POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n12345",
    _POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    _POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    _POST + _CHUNKED + b"\r\n0x1\r\n1\r\n0\r\n\r\n",
    _POST + b"X: x\r\n y\r\n\r\n",
    b"GET /livez\r\n\r\n",
    b"\x16\x03\x01\x02\x00",
)
Opened = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True, slots=True)
class Pair:
    """The same load without the attack and beside it."""

    calm: Figures
    attacked: Figures

    @property
    def of_allowed(self) -> float:
        """What p99 grew by, over what it may grow by; 1 is all of it, and less is better."""
        grown_ms = max(0.0, self.attacked.p99_ms - self.calm.p99_ms)
        return grown_ms / max(_MS, self.calm.p99_ms * _SHARE)


def measure(node: BenchNode, pairs: int, progress: Callable[[str], None]) -> dict[str, list[Pair]]:
    """So many pairs for each attack, which take turns, so that what else the machine does is in both."""
    found: dict[str, list[Pair]] = {kind: [] for kind in ATTACKS}
    with node, node.generator(STREAMS) as load:
        load.open(STREAMS)
        publish = node.publish()

        def steady() -> Figures:
            return load.steady(publish, events=EVENTS, reach=STREAMS, rate=RATE)

        steady()
        for number in range(pairs):
            for kind, pairs_of_kind in found.items():
                # Every other time the other way round.
                calm = steady() if number % 2 == 0 else None
                with attack(node.port, kind):
                    attacked = steady()
                pairs_of_kind.append(Pair(calm or steady(), attacked))
                progress(
                    f"{kind}: p99 {pairs_of_kind[-1].calm.p99_ms:.1f} ms, beside it {attacked.p99_ms:.1f} ms"
                )
    return found


def of_allowed(pairs: Sequence[Pair]) -> float:
    """The median; not 0, which would mean that nothing was measured."""
    return max(0.001, median([pair.of_allowed for pair in pairs])) if pairs else 0.0


@contextmanager
def attack(port: int, kind: str) -> Iterator[None]:
    """Goes on while the context lasts, which begins when all its clients are connected. Raises LoadFailed."""
    command = pinned([sys.executable, "-m", "bench.attacks", str(port), kind], LOAD)
    attacker = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=_ROOT)
    try:
        assert attacker.stdout is not None
        if attacker.stdout.readline() != b"in place\n":
            raise LoadFailed(f"the attack by {kind} didn't begin")
        yield
    finally:
        attacker.kill()
        attacker.wait()
        if attacker.stdout is not None:
            attacker.stdout.close()


async def _open(port: int, sent: bytes, receive_bytes: int = 0) -> Opened:
    made = socket.socket()
    if receive_bytes:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    made.setblocking(False)
    await asyncio.get_running_loop().sock_connect(made, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=made, limit=2**20)
    writer.write(sent)
    return reader, writer


async def _drip(port: int, begin: bytes, drop: bytes, opened: Callable[[], None]) -> None:
    """Sends a little now and then; comes back when it was sent away."""
    first = True
    while True:
        reader, writer = await _open(port, begin)
        if first:
            opened()
            first = False
        ended = asyncio.ensure_future(reader.read())
        while not ended.done():
            writer.write(drop)
            await asyncio.wait([ended], timeout=random.uniform(0.5, 1.5))
        with suppress(OSError):
            ended.result()
        writer.close()


async def _unread(port: int, _: bytes, __: bytes, opened: Callable[[], None]) -> None:
    """Asks for much and reads none of it."""
    first = True
    while True:
        _reader, writer = await _open(port, (b"GET /openapi.json" + _HOST + b"\r\n") * 20, 4096)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        if first:
            opened()
            first = False
        await asyncio.sleep(random.uniform(5, 10))
        writer.transport.abort()


async def _again(port: int, sent: bytes, _: bytes, opened: Callable[[], None]) -> None:
    """Sends it all at once, reads what comes until the end, waits a moment, and again."""
    first = True
    while True:
        with suppress(OSError):
            reader, writer = await _open(port, sent or random.choice(_SHAPES))
            if first:
                opened()
                first = False
            with suppress(TimeoutError):
                async with asyncio.timeout(2):
                    await reader.read()
            writer.close()
        await asyncio.sleep(random.uniform(0.05, 0.15))


Attack = tuple[int, Callable[[int, bytes, bytes, Callable[[], None]], Awaitable[None]], bytes, bytes]
_LAST = b"GET /livez" + _HOST + b"Connection: close\r\n\r\n"
# How many clients, what each does, what it begins with, and what drips after that.
ATTACKS: Mapping[str, Attack] = {
    "1,000 idle sockets": (1_000, _drip, b"", b""),
    "300 heads that drip": (300, _drip, b"GET /livez" + _HOST + b"X: ", b"x"),
    "300 bodies that drip": (300, _drip, _POST + b"Content-Length: 60000\r\n\r\n", b"x"),
    "100 who read nothing": (100, _unread, b"", b""),
    "pipelines of 50": (2, _again, _LIVE * 49 + _LAST, b""),
    "HEAD of streams": (10, _again, b"HEAD /v1/stream" + _HOST + b"Connection: close\r\n\r\n", b""),
    "requests that aren't ones": (20, _again, b"", b""),
}


async def _run(port: int, kind: str) -> None:
    count, act, begin, drop = ATTACKS[kind]
    in_place = 0
    all_are = asyncio.Event()

    def opened() -> None:
        nonlocal in_place
        in_place += 1
        if in_place == count:
            all_are.set()

    tasks = [asyncio.ensure_future(act(port, begin, drop, opened)) for _ in range(count)]
    await all_are.wait()
    print("in place", flush=True)
    await asyncio.gather(*tasks)


if __name__ == "__main__":
    asyncio.run(_run(int(sys.argv[1]), sys.argv[2]))
