"""Publications as bytes: entries of a log, with a version in front, and messages on a log's channel.

Both backplanes call it: Redis for entries and messages, memory for the entries in its file. A node reads the
versions before and after its own, so that two releases run side by side. Of a MessagePack array it reads the
items that it knows, so that a release may add some.
"""

import logging
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from pushsse.backplane import NoticeTopic
from pushsse.backplane.answers import LiveDelta
from pushsse.event import Change, Publication
from pushsse.retry import Seldom

VERSION = 1
UNREADABLE = Publication("pushsse.unreadable", b"", ())
READABLE = range(VERSION - 1, VERSION + 2)
_VERSION = bytes((VERSION,))
_LIVE = b"0\n"
logger = logging.getLogger(__name__)
_encoder = msgspec.msgpack.Encoder()
_publication = msgspec.msgpack.Decoder(Publication)
_live_delta = msgspec.msgpack.Decoder(LiveDelta)
_change = msgspec.msgpack.Decoder(Change)


class Appended(NamedTuple):
    """A message: what one append added, entries from `first` on, of consecutive orders."""

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
    """Encodes a publication as an entry of the log: the version, then MessagePack."""
    return _VERSION + _encoder.encode(publication)


def users_of(publication: Publication) -> tuple[int, int]:
    """Where the recipients are in an entry: their first and last byte, counted from 1 as in Lua.

    publish.lua cuts them out there, to leave out those who have had the draft.
    """
    # Before them come the version, the head of the array, and two items: the order of Publication's members.
    before = 2 + len(_encoder.encode(publication.name)) + len(_encoder.encode(publication.body))
    return before + 1, before + len(_encoder.encode(publication.users))


def encode_change(change: Change) -> bytes:
    """Encodes a change of switches for the stream of changes."""
    return _encoder.encode(change)


def pack(arguments: object) -> bytes:
    """Encodes arguments of a script, as cmsgpack.unpack reads them."""
    return _encoder.encode(arguments)


class Notice(NamedTuple):
    """What nodes tell each other beside the logs."""

    topic: NoticeTopic
    text: str


def encode_notice(topic: NoticeTopic, text: str) -> bytes:
    """Encodes a notice: its topic, a space, its text."""
    return f"{topic.value} {text}".encode()


def decode_notice(payload: bytes) -> Notice | None:
    """Decodes a notice; None for one that cannot be read, or whose topic a newer release has."""
    topic, _, text = payload.partition(b" ")
    try:
        return Notice(NoticeTopic(topic.decode()), text.decode())
    except ValueError:
        logger.info("a notice of the topic %r can't be read, and is skipped", topic[:20])
        return None


def encode_live(delta: LiveDelta) -> bytes:
    """Encodes a message with a delta, which the log does not hold."""
    return _LIVE + encode(delta)


@dataclass(slots=True)
class Decoder:
    """Decodes entries, changes and messages; a backplane has one. What can't be read is logged.

    After a rollback over two releases that is all that a log holds: of each kind the log gets the first, then
    one every ten seconds.
    """

    _entries: Seldom = field(
        default_factory=lambda: Seldom(
            "an entry of the log can't be read, and nobody on this node gets it", logger
        )
    )
    _changes: Seldom = field(
        default_factory=lambda: Seldom(
            "a change of switches in the log can't be read, and a replay takes what is on now for what was on"
            " then. Run neighbouring releases on all nodes",
            logger,
        )
    )
    _messages: Seldom = field(
        default_factory=lambda: Seldom(
            "a message can't be read, and is skipped: its entries are read from the log", logger
        )
    )

    def entry(self, blob: bytes) -> Publication:
        """Decodes an entry. One that cannot be read is for nobody, but its number counts."""
        return self._read(blob, _publication)

    def change(self, blob: bytes) -> Change | None:
        """Decodes a change; None for one that cannot be read."""
        try:
            return _change.decode(blob)
        except msgspec.DecodeError as error:
            self._changes.failed(error)
            return None

    def message(self, payload: bytes) -> Appended | Publication | None:
        """Decodes a message of publish.lua or `encode_live`; None for one that cannot be read."""
        header, _, body = payload.partition(b"\n")
        if payload.startswith(b"1 "):
            try:
                return _appended(header, body)
            except ValueError as error:
                self._messages.failed(error)
                return None
        if payload.startswith(_LIVE):
            # What isn't in the log is an answer that grows.
            return self._read(body, _live_delta)
        self._messages.failed(f"its kind is {header[:8]!r}, of a newer release")
        return None

    def _read(
        self,
        blob: bytes,
        decoder: "msgspec.msgpack.Decoder[Publication] | msgspec.msgpack.Decoder[LiveDelta]",
    ) -> Publication:
        try:
            if blob[0] in READABLE:
                return decoder.decode(memoryview(blob)[1:])
        except (msgspec.DecodeError, IndexError) as error:
            self._entries.failed(
                f"{error}. If all nodes have the same release, something else writes to the keys of"
                " PUSHSSE_REDIS_PREFIX"
            )
            return UNREADABLE
        self._entries.failed(
            f"it has version {blob[0]}, and this node reads version {VERSION} and those next to it: run"
            " neighbouring releases on all nodes"
        )
        return UNREADABLE


def _appended(header: bytes, body: bytes) -> Appended:
    _, epoch, first, order, at_ms, *sizes = header.split(b" ")
    if len(sizes) == 1:
        return Appended(epoch.decode(), int(first), int(order), int(at_ms), (body,))
    blobs, start = [], 0
    for size in map(int, sizes):
        blobs.append(body[start : start + size])
        start += size
    return Appended(epoch.decode(), int(first), int(order), int(at_ms), tuple(blobs))
