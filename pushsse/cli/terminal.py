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

from pushsse.visible import CONTROL, visible


def say(text: str, *, err: bool = False, nl: bool = True, lines: bool = False) -> None:
    """Prints a text for people: escaped on a terminal, as it is elsewhere. `lines` lets line ends through."""
    stream = _stream(err=err)
    shown = visible(text, lines=lines) if stream.isatty() else text
    _write(shown, stream, err=err, nl=nl)


def say_json(text: str) -> None:
    """Prints a line of JSON as it is; on a terminal, control characters are written as JSON escapes."""
    stream = sys.stdout
    if stream.isatty():
        text = CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
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
