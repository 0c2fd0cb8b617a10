"""What a worker and its supervisor say to each other over their socket pair: a line of JSON each."""

import msgspec
from msgspec import Struct

from pushsse.settings import Settings
from pushsse.workers.gathered import Family


class Begin(Struct, frozen=True, tag="begin"):
    """The supervisor's first word: the worker's settings."""

    settings: Settings


class Asked(Struct, frozen=True, tag="asked"):
    """The supervisor wants a worker's numbers; the answer carries the same turn."""

    turn: int


class Hello(Struct, frozen=True, tag="hello"):
    """A worker's first word: from now on it tells its numbers."""


class Ready(Struct, frozen=True, tag="ready"):
    """The worker serves."""


class Told(Struct, frozen=True, tag="told"):
    """A worker's numbers."""

    turn: int
    families: tuple[Family, ...]


class Scrape(Struct, frozen=True, tag="scrape"):
    """The worker was asked for the numbers of all; the answer carries the same number."""

    number: int


class Scraped(Struct, frozen=True, tag="scraped"):
    """The numbers of all workers, in Prometheus' text format."""

    number: int
    text: str


Word = Begin | Asked | Hello | Ready | Told | Scrape | Scraped
MAX_LINE = 16 * 1024 * 1024
_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Word] = msgspec.json.Decoder(Word)


def line(word: Word) -> bytes:
    """A word as it is sent: one line of JSON."""
    return _encoder.encode(word) + b"\n"


def read(sent: bytes) -> Word:
    """The word of a line. Raises msgspec.DecodeError."""
    return _decoder.decode(sent)
