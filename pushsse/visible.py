"""Text from elsewhere with its control characters escaped: for terminals and for the log.

A text could otherwise command the terminal it is shown on, or pass for lines of this program.
"""

import re

# C0, DEL and C1 (a C1 character alone begins a sequence, ECMA-48), the line and paragraph separators, marks
# and overrides of direction (UAX #9), lone surrogates, which no terminal's encoding has.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_NAMED = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def visible(text: str, *, lines: bool = False) -> str:
    r"""The text with control characters as `\x1b`, `\u202e`; with `lines`, line ends and tabs stay."""
    if lines:
        text = text.replace("\r\n", "\n")
    return CONTROL.sub(lambda found: found[0] if lines and found[0] in "\n\t" else _escaped(found[0]), text)


def _escaped(character: str) -> str:
    number = ord(character)
    return _NAMED.get(character) or (f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}")
