"""Text from elsewhere, written so that it can't command the terminal it is shown on.

Every command prints through `say`. On a terminal, control characters and marks of writing direction are shown
escaped: a message could otherwise move the cursor, set the title, fill the clipboard (OSC 52), or pass for a
line of this program. In a pipe or a file everything is as it came. `say_json` keeps the JSON value in both.
"""

import json
import re
import sys
from typing import TextIO

import click

# C0, DEL and C1 (a C1 character alone begins a sequence, ECMA-48), the line and paragraph separators, marks
# and overrides of direction (UAX #9), lone surrogates, which no terminal's encoding has.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_NAMED = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def visible(text: str, *, lines: bool = False) -> str:
    r"""The text with control characters as `\x1b`, `\u202e`; with `lines`, line ends and tabs stay."""
    if lines:
        text = text.replace("\r\n", "\n")
    return _CONTROL.sub(lambda found: found[0] if lines and found[0] in "\n\t" else _escaped(found[0]), text)


def say(text: str, *, err: bool = False, nl: bool = True, lines: bool = False) -> None:
    """Prints a text for people: escaped on a terminal, as it is elsewhere. `lines` lets line ends through."""
    stream = _stream(err=err)
    shown = visible(text, lines=lines) if stream.isatty() else text
    _write(shown, stream, err=err, nl=nl)


def say_json(text: str) -> None:
    """Prints a line of JSON as it is; on a terminal, control characters are written as JSON escapes."""
    stream = sys.stdout
    if stream.isatty():
        text = _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    try:
        text.encode(stream.encoding or "utf-8")
    except UnicodeEncodeError:
        # A lone surrogate, or an encoding that isn't UTF-8: the JSON escape is the same value.
        text = re.sub(r"[^\x00-\x7f]", lambda found: json.dumps(found[0])[1:-1], text)
    _write(text, stream, err=False, nl=True)


def one_line(value: object) -> str:
    """A value as JSON in one line."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _stream(*, err: bool) -> TextIO:
    return sys.stderr if err else sys.stdout


def _write(text: str, stream: TextIO, *, err: bool, nl: bool) -> None:
    encoding = stream.encoding or "utf-8"
    text = text.encode(encoding, "backslashreplace").decode(encoding)
    # `color`: click takes escape sequences out of what goes into a pipe, where it is to be exact.
    click.echo(text, err=err, nl=nl, color=True)


def _escaped(character: str) -> str:
    number = ord(character)
    return _NAMED.get(character) or (f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}")
