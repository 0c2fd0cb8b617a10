"""The bytes of the service's own events, and chunks: what one write carries to a stream.

Made by the hub and by resume, written by a sink. A frame is `event`, `data`, `id`, each on its own line.
"""

import random
from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple

import msgspec

from pushsse.errors import CloseReason
from pushsse.event import Publication
from pushsse.position import Position

MEDIA_TYPE = "text/event-stream"
STREAM_HEADERS = {"Cache-Control": "no-store, no-transform"}
NEVER_MS = 300_000
RETRY_MS = (2_000, 5_000)
# Steps of this part of a circle never come close to where one was before (Weyl).
_GOLDEN = 0.6180339887
_json = msgspec.json.Encoder()


class Resume(Enum):
    """How a resume went."""

    NEW = "new"
    COMPLETE = "complete"
    GAP = "gap"


class Chunk(NamedTuple):
    """Bytes on their way to a stream: as they are, and framed for HTTP/1.1 (RFC 9112, 7.1)."""

    raw: bytes
    framed: bytes


def chunk(raw: bytes) -> Chunk:
    """Frames bytes once, for however many streams they go to."""
    return Chunk(raw, b"%x\r\n%b\r\n" % (len(raw), raw))


def event(name: str, data: object, position: Position, *, retry_ms: int | None = None) -> bytes:
    """One event of the service's own."""
    retry = b"" if retry_ms is None else b"retry: %d\n" % retry_ms
    return b"%bevent: %b\ndata: %b\nid: %b\n\n" % (
        retry,
        name.encode(),
        _json.encode(data),
        str(position).encode(),
    )


def with_id(publication: Publication, position: Position, *, named: bool = True) -> bytes:
    """A publication's frame under its position."""
    return b"%bid: %b\n\n" % (publication.frame(named=named), str(position).encode())


def ping(position: Position) -> bytes:
    """What a quiet stream gets: visible to scripts, and its id keeps the position inside the log."""
    return b"event: ping\ndata: {}\nid: %b\n\n" % str(position).encode()


def ending(reason: CloseReason, position: Position, *, retry_ms: int | None = None) -> bytes:
    """The last frame before the server ends a stream; without `retry_ms` that is drawn at random."""
    if not reason.retry:
        retry_ms = NEVER_MS
    elif retry_ms is None:
        retry_ms = random_retry_ms()
    data = {"code": reason.code, "detail": reason.detail, "retry": reason.retry}
    return event("exception", data, position, retry_ms=retry_ms)


def busy() -> bytes:
    """The body for a stream that can't be served now: EventSource gives up for good on other statuses."""
    reason = CloseReason.OVERLOADED
    data = {"code": reason.code, "detail": reason.detail, "retry": True}
    return b"retry: %d\nevent: exception\ndata: %b\n\n" % (random.randint(5_000, 15_000), _json.encode(data))


def random_retry_ms() -> int:
    """How long a client waits before it comes back: 2–5 s, so that they don't all come at once."""
    return random.randint(*RETRY_MS)


def spread_retries_ms() -> Iterator[int]:
    """Such waits for many in a row, from a random one on: any few of them cover the range evenly."""
    least, most = RETRY_MS
    at = random.random()
    while True:
        yield least + int(at * (most - least))
        at = (at + _GOLDEN) % 1
