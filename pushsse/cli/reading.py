"""What `publish` reads from a file or standard input: events one a line, one event over many lines, a text.

Read as it comes and in bounded portions: a file may be of any size, and what a pipe has is sent without
waiting for more.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import msgspec

# The service takes 1 MiB a call.
MAX_BYTES = 1024 * 1024
_PORTION_BYTES = 512 * 1024
_PORTION_LINES = 1000
_BOM = b"\xef\xbb\xbf"


class NotLines(Exception):
    """A file with neither one event nor one a line."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a file; `body` is None where it is too long for a call."""

    number: int
    body: bytes | None


def text(file: BinaryIO) -> bytes | None:
    """All of a file as one text, without its last line end; None if it is longer than a call may be."""
    body = file.read(MAX_BYTES + 1)
    return None if len(body) > MAX_BYTES else body.removeprefix(_BOM).removesuffix(b"\n").removesuffix(b"\r")


def portions(file: BinaryIO) -> Iterator[list[Line]]:
    """The events of a file, by line, in portions that one call takes. Blank lines are counted, and left out.

    Raises NotLines where JSON is written over many lines, and isn't one event.
    """
    pieces = _pieces(file)
    start = _start(pieces)
    if b"\n" in start.strip() and _is_object(start):
        yield [Line(1, start)]
        return
    if start.split(maxsplit=1)[:1] in ([b"{"], [b"["]):
        raise NotLines(
            "this is neither one event nor one event a line; `jq -c` writes each on a line of its own"
        )
    portion: list[Line] = []
    size = 0
    for line in _lines(start, pieces):
        if line is None:
            if portion:
                yield portion
            portion, size = [], 0
            continue
        length = len(line.body or b"")
        if portion and (size + length > _PORTION_BYTES or len(portion) == _PORTION_LINES):
            yield portion
            portion, size = [], 0
        if line.body is None or line.body.strip():
            portion.append(line)
            size += length
    if portion:
        yield portion


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    """What is there, as soon as it is there."""
    read = getattr(file, "read1", file.read)
    while piece := read(_PORTION_BYTES):
        yield piece


def _start(pieces: Iterator[bytes]) -> bytes:
    """The beginning: its first line that isn't blank if that is JSON, else as much as one call takes.

    An event written over many lines begins with a line that isn't JSON by itself.
    """
    start = b""
    for piece in pieces:
        start = (start + piece).removeprefix(_BOM)
        first, end, _ = start.lstrip().partition(b"\n")
        if (end and _is_json(first)) or len(start) > MAX_BYTES:
            break
    return start


def _lines(start: bytes, pieces: Iterator[bytes]) -> Iterator[Line | None]:
    """The lines; None where the next piece would have to be waited for."""
    number = 1
    rest, too_long = b"", False
    piece: bytes | None = start
    while piece is not None:
        *ended, last = piece.split(b"\n")
        for line in ended:
            body = rest + line
            yield Line(number, None if too_long or len(body) > MAX_BYTES else body)
            rest, too_long = b"", False
            number += 1
        rest += last
        # Of a line that is too long nothing is kept.
        if too_long or len(rest) > MAX_BYTES:
            rest, too_long = b"", True
        yield None
        piece = next(pieces, None)
    if rest or too_long:
        yield Line(number, None if too_long else rest)


def _is_json(body: bytes) -> bool:
    try:
        msgspec.json.decode(body, type=msgspec.Raw)
    except msgspec.DecodeError:
        return False
    return True


def _is_object(body: bytes) -> bool:
    return len(body) <= MAX_BYTES and body.lstrip().startswith(b"{") and _is_json(body)
