"""Frames, which are the bytes of one event, and chunks, which are what one write carries to a stream.

Made by the opening, by delivery and by catch-up; written by a sink. A frame is `event`, `data` and `id`, each
on its own line, and a blank line (WHATWG HTML, 9.2.5).
"""

import random
from collections.abc import Iterator
from enum import StrEnum

import msgspec
from msgspec import Struct

from pushsse.errors import CloseReason
from pushsse.event import Publication
from pushsse.position import Position

MEDIA_TYPE = "text/event-stream"
STREAM_HEADERS = {"Cache-Control": "no-store, no-transform"}
NEVER_MS = 300_000
RETRY_MS = (2_000, 5_000)
# For a stream that has reached its age: others end at other times, and what it misses is replayed.
SOON_RETRY_MS = (100, 1_000)
BUSY_RETRY_MS = (5_000, 15_000)
# Steps of this part of a circle never come close to an earlier one (Weyl's equidistribution theorem).
_GOLDEN = 0.6180339887
_json = msgspec.json.Encoder()


class Resume(StrEnum):
    """What `ready` says of the position that a client came with."""

    NEW = "new"
    COMPLETE = "complete"
    GAP = "gap"


class Chunk(Struct, frozen=True, gc=False):
    """Bytes on their way to a stream: as they are, and framed for HTTP/1.1 (RFC 9112, 7.1)."""

    raw: bytes
    framed: bytes


def chunk(raw: bytes) -> Chunk:
    """Frames bytes once, for however many streams they go to."""
    return Chunk(raw, b"%x\r\n%b\r\n" % (len(raw), raw))


def service_event(
    name: str, data: object, position: Position | None, *, retry_ms: int | None = None
) -> bytes:
    """One event of the service's own; without a position it has no `id` line."""
    retry = b"" if retry_ms is None else b"retry: %d\n" % retry_ms
    id_line = b"" if position is None else b"id: %b\n" % str(position).encode()
    return b"%bevent: %b\ndata: %b\n%b\n" % (retry, name.encode(), _json.encode(data), id_line)


def frame(publication: Publication, position: Position, *, named: bool = True) -> bytes:
    """A publication's frame, with the position of a stream that has it."""
    return b"%bid: %b\n\n" % (publication.frame(named=named), str(position).encode())


def ping(position: Position) -> bytes:
    """What a quiet stream gets: visible to scripts, and its id keeps the position inside the log."""
    return b"event: ping\ndata: {}\nid: %b\n\n" % str(position).encode()


def exception(reason: CloseReason) -> dict[str, object]:
    """The data of `exception`, the last event before the server ends a stream."""
    return {"code": reason.code, "detail": reason.detail, "retry": reason.retry}


def ending(reason: CloseReason, position: Position | None, *, retry_ms: int | None = None) -> bytes:
    """The last frame of a stream; without `retry_ms` that is drawn at random.

    Without a position it has no `id` line, as where the client isn't to resume at a later one than it has.
    """
    if not reason.retry:
        retry_ms = NEVER_MS
    elif retry_ms is None:
        retry_ms = random.randint(*(SOON_RETRY_MS if reason is CloseReason.LIFETIME else RETRY_MS))
    return service_event("exception", exception(reason), position, retry_ms=retry_ms)


def busy() -> bytes:
    """The body for a stream that can't be served now: EventSource gives up for good on other statuses."""
    retry_ms = random.randint(*BUSY_RETRY_MS)
    return service_event("exception", exception(CloseReason.OVERLOADED), None, retry_ms=retry_ms)


def random_retry_ms() -> int:
    """How long a client waits before it comes back: 2–5 s, so that they don't all come together."""
    least, most = RETRY_MS
    # `randint` takes several times as long, and each stream that opens draws one.
    return least + int(random.random() * (most - least + 1))


def spread_retries_ms() -> Iterator[int]:
    """Such waits for many in a row, from a random one on: any few of them cover the range evenly."""
    least, most = RETRY_MS
    at = random.random()
    while True:
        yield least + int(at * (most - least))
        at = (at + _GOLDEN) % 1
