"""Nodes that differ: of the next release, or writing streams the portable way.

Run in the place of `python -m pushsse`; what is different stands in the variable SPECIAL. One of the next
release adds an item to the entries of the log, which have the next version.
"""

import os
import sys

import msgspec

from pushsse import server
from pushsse.backplane import codec
from pushsse.cli import main
from pushsse.event import Publication
from pushsse.stream.limits import LimitedHttp

NEXT_RELEASE, PORTABLE = "next release", "portable"
VARIABLE = "SPECIAL"
_encoder = msgspec.msgpack.Encoder()


def encode(publication: Publication) -> bytes:
    """As the next release might: what it added stands at the end."""
    items = [getattr(publication, name) for name in Publication.__struct_fields__]
    return bytes((codec.VERSION,)) + _encoder.encode([*items, {"what": "the next release added"}])


def portable() -> server.Http:
    """What a node takes where uvicorn's connections can't be handed over."""
    return LimitedHttp


if __name__ == "__main__":
    special = os.environ.get(VARIABLE, "").split(",")
    if NEXT_RELEASE in special:
        codec.VERSION += 1
        codec.READABLE = range(codec.VERSION - 1, codec.VERSION + 2)
        codec.encode = encode
    if PORTABLE in special:
        server.best_http = portable
    sys.argv[0] = "pushsse"
    main()
