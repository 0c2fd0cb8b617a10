"""A node of the next release: its entries of the log have the next version, and one item more.

Run in the place of `python -m pushsse` by the fault that has two releases side by side.
"""

import sys

import msgspec

from pushsse.backplane import codec
from pushsse.cli import main
from pushsse.event import Publication

_encoder = msgspec.msgpack.Encoder()


def encode(publication: Publication) -> bytes:
    """As the next release might: what it added stands at the end."""
    items = [getattr(publication, name) for name in Publication.__struct_fields__]
    return bytes((codec.VERSION,)) + _encoder.encode([*items, {"what": "the next release added"}])


if __name__ == "__main__":
    codec.VERSION += 1
    codec._READABLE = range(codec.VERSION - 1, codec.VERSION + 2)
    codec.encode = encode
    sys.argv[0] = "pushsse"
    main()
