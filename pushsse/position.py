"""How far a stream has got: a mark in the broadcast log and one in a shard's log; the SSE `id` both ways.

Used by the stream, which writes a position under every event, and by resume, which reads it back.
A position names a place, not a person: whoever brings it gets only his own events from there on.
"""

import re

from msgspec import Struct

MAX_LENGTH = 64
_POSITION = re.compile(r"([a-z0-9]{4,12})-([0-9]{1,15})\.([a-z0-9]{4,12})-([0-9]{1,15})")


class Mark(Struct, frozen=True, gc=False):
    """A place in one log: the number of the last publication seen, within an epoch."""

    epoch: str
    number: int


class Position(Struct, frozen=True, gc=False):
    """A place in the two logs that make up one stream."""

    broadcast: Mark
    shard: Mark

    def __str__(self) -> str:
        return f"{self.broadcast.epoch}-{self.broadcast.number}.{self.shard.epoch}-{self.shard.number}"


def parse(text: str) -> Position | None:
    """The position that `text` names, or None if it isn't one: a forged id is a gap, never an error."""
    found = _POSITION.fullmatch(text) if len(text) <= MAX_LENGTH else None
    if found is None:
        return None
    b_epoch, b_number, s_epoch, s_number = found.groups()
    return Position(Mark(b_epoch, int(b_number)), Mark(s_epoch, int(s_number)))
