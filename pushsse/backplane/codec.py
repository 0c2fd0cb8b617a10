"""How publications travel through Redis: entries of the log with their version, and messages of a channel.

Used by the Redis backplane alone. A node reads the version before its own and the one after, so that two
releases run side by side; MessagePack arrays with more items than a node knows are read as far as it knows.
"""

import logging
from typing import NamedTuple

import msgspec

from pushsse.event import Change, Publication

VERSION = 1
UNREADABLE = Publication("pushsse.unreadable", b"", ())
_READABLE = range(VERSION - 1, VERSION + 2)
_VERSION = bytes((VERSION,))
_LIVE = b"0\n"
_log = logging.getLogger(__name__)
_encoder = msgspec.msgpack.Encoder()
_publication = msgspec.msgpack.Decoder(Publication)
_change = msgspec.msgpack.Decoder(Change)


class Appended(NamedTuple):
    """What one call appended: entries from `first` on, of consecutive orders."""

    epoch: str
    first: int
    order: int
    at_ms: int
    blobs: tuple[bytes, ...]

    @property
    def last(self) -> int:
        """The number of the last entry."""
        return self.first + len(self.blobs) - 1


def encode(publication: Publication) -> bytes:
    """A publication as an entry of the log: the version, then MessagePack."""
    return _VERSION + _encoder.encode(publication)


def users_of(publication: Publication) -> tuple[int, int]:
    """Where in its entry the recipients stand: the first byte and the last, counted from 1, as Lua does."""
    # Before them: the version, the head of the array, and two members.
    before = 2 + len(_encoder.encode(publication.name)) + len(_encoder.encode(publication.body))
    return before + 1, before + len(_encoder.encode(publication.users))


def decode(blob: bytes) -> Publication:
    """Reads an entry. One that can't be read is logged, and is for nobody: its number counts."""
    try:
        if blob[0] in _READABLE:
            return _publication.decode(memoryview(blob)[1:])
    except (msgspec.DecodeError, IndexError) as error:
        _log.warning("an entry of the log can't be read and is skipped: %s", error)
        return UNREADABLE
    _log.warning("an entry of the log has version %d, and this node reads %d: skipped", blob[0], VERSION)
    return UNREADABLE


def encode_change(change: Change) -> bytes:
    """A change as it stands in the log of changes."""
    return _encoder.encode(change)


def decode_change(blob: bytes) -> Change | None:
    """Reads a change; None for one that can't be read."""
    try:
        return _change.decode(blob)
    except msgspec.DecodeError as error:
        _log.warning("a change in the log can't be read and is skipped: %s", error)
        return None


def pack(arguments: object) -> bytes:
    """Arguments of a script, as cmsgpack.unpack reads them."""
    return _encoder.encode(arguments)


def live(publication: Publication) -> bytes:
    """A message with a publication that isn't in the log."""
    return _LIVE + encode(publication)


def message(payload: bytes) -> Appended | Publication | None:
    """Reads a message of a log's channel: what publish.lua or `live` made; None for a kind that is newer."""
    header, _, body = payload.partition(b"\n")
    if payload.startswith(b"1 "):
        return _appended(header, body)
    if payload.startswith(_LIVE):
        return decode(body)
    _log.warning("a message of kind %r is of a newer release: skipped", header[:8])
    return None


def _appended(header: bytes, body: bytes) -> Appended | None:
    try:
        _, epoch, first, order, at_ms, *sizes = header.split(b" ")
        if len(sizes) == 1:
            return Appended(epoch.decode(), int(first), int(order), int(at_ms), (body,))
        blobs, start = [], 0
        for size in map(int, sizes):
            blobs.append(body[start : start + size])
            start += size
        return Appended(epoch.decode(), int(first), int(order), int(at_ms), tuple(blobs))
    except ValueError as error:
        _log.warning("a message can't be read and is skipped: %s", error)
        return None
