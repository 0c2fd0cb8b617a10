"""The parser of event streams in pushsse.js, under Node.js: WHATWG HTML, 9.2.6, at all borders of pieces."""

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from pushsse.api.files import CLIENT_FOLDER
from tests.parts import missing

pytestmark = pytest.mark.real
SCRIPT = Path(__file__).with_name("parser.mjs")
Told = list[object]


def event(data: str, name: str = "message", id_: str = "") -> dict[str, str]:
    return {"name": name, "data": data, "id": id_}


# Streams, and what a parser has to tell of them.
STREAMS: dict[str, tuple[bytes, Told]] = {
    "plain": (b"data: one\n\ndata: two\n\n", [event("one"), event("two")]),
    "cr": (b"data: one\r\rdata: two\r\r", [event("one"), event("two")]),
    "crlf": (b"event: e\r\ndata: a\r\ndata: b\r\n\r\ndata: c\r\n\r\n", [event("a\nb", "e"), event("c")]),
    "mixed ends": (b"data: a\r\n\rdata: b\n\r\ndata: c\r\r\n", [event("a"), event("b"), event("c")]),
    "byte order mark": (b"\xef\xbb\xbfdata: a\n\n", [event("a")]),
    "two marks": (b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\ndata: b\n\n", [event("b")]),
    "comments": (b": hello\n\n:\ndata: a\n: in between\ndata: b\n\n", [event("a\nb")]),
    "one space goes": (b"data:a\n\ndata:  b\n\ndata:\tc\n\n", [event("a"), event(" b"), event("\tc")]),
    "no colon": (b"data\ndata\n\ndata\n\n", [event("\n"), event("")]),
    "colons": (b"data: a: b:c\n\n", [event("a: b:c")]),
    "id stays": (
        b"id: 1\ndata: a\n\ndata: b\n\nid\ndata: c\n\n",
        [event("a", id_="1"), event("b", id_="1"), event("c")],
    ),
    "id alone": (b"id: 7\n\ndata: a\n\n", [event("a", id_="7")]),
    "id with nul": (b"id: 1\nid: a\0b\ndata: a\n\n", [event("a", id_="1")]),
    "name alone": (b"event: e\n\ndata: a\n\n", [event("a")]),
    "name twice": (b"event: e\nevent: f\ndata: a\n\n", [event("a", "f")]),
    "retry": (b"retry: 5000\n\nretry: 5s\nretry: -1\nretry:\nretry: 010\n\n", [5000, 10]),
    "unknown fields": (b"Data: a\n data: b\n__proto__: c\ntoString: d\ndata: e\n\n", [event("e")]),
    "unfinished": (b"data: a\n\ndata: b\n", [event("a")]),
    "separators that are none": ("data: a\u2028b\u0085c\x0bd\n\n".encode(), [event("a\u2028b\u0085c\x0bd")]),
    "many bytes": ("event: 消息\ndata: 你好 🎉\n\n".encode(), [event("你好 🎉", "消息")]),
    "not utf-8": (b"data: a\xff\n\n", [event("a\ufffd")]),
    "empty": (b"", []),
}


def parsed(streams: Sequence[Sequence[bytes]]) -> list[Told]:
    """What the parser tells of streams, each given in pieces."""
    if shutil.which("node") is None:
        missing("Node.js is not installed")
    given = "".join(json.dumps([list(piece) for piece in pieces]) + "\n" for pieces in streams)
    module = (CLIENT_FOLDER / "pushsse.js").as_uri()
    done = subprocess.run(
        ["node", str(SCRIPT), module], input=given, capture_output=True, text=True, timeout=60, check=True
    )
    return [json.loads(line) for line in done.stdout.split("\n") if line]


def test_streams_are_read_as_the_standard_has_it_wherever_their_pieces_end() -> None:
    given: list[Sequence[bytes]] = []
    wanted: list[tuple[str, Told]] = []
    for name, (stream, told) in STREAMS.items():
        whole = [[stream], [stream[at : at + 1] for at in range(len(stream))]]
        halves = [[stream[:at], b"", stream[at:]] for at in range(1, len(stream))]
        for pieces in whole + halves:
            given.append(pieces)
            wanted.append((name, told))
    found = parsed(given)
    wrong = [
        (name, pieces, got)
        for (name, told), pieces, got in zip(wanted, given, found, strict=True)
        if got != told
    ]
    assert not wrong, wrong[:3]
