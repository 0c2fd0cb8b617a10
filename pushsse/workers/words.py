"""What a worker and its supervisor say to each other over their Unix socket: a line of JSON each."""

import msgspec
from msgspec import Struct

from pushsse.workers.gathered import Family


class Asked(Struct, frozen=True, tag="asked"):
    """The supervisor wants a worker's numbers; the answer carries the same turn."""

    turn: int


class Hello(Struct, frozen=True, tag="hello"):
    """A worker's first word: which one it is."""

    index: int


class Ready(Struct, frozen=True, tag="ready"):
    """The worker serves."""


class Told(Struct, frozen=True, tag="told"):
    """A worker's numbers."""

    turn: int
    families: tuple[Family, ...]


class Scrape(Struct, frozen=True, tag="scrape"):
    """Somebody wants the numbers of all; the answer is the text, and the connection's end."""


Word = Asked | Hello | Ready | Told | Scrape
MAX_LINE = 16 * 1024 * 1024
_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Word] = msgspec.json.Decoder(Word)


def line(word: Word) -> bytes:
    """A word as it is sent: one line of JSON."""
    return _encoder.encode(word) + b"\n"


def read(sent: bytes) -> Word:
    """The word of a line. Raises msgspec.DecodeError."""
    return _decoder.decode(sent)
