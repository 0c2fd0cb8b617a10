"""How a client reads a stream, word by word as the WHATWG's HTML standard has it (9.2.5, 9.2.6)."""

import re
from dataclasses import dataclass

_LINE_END = re.compile("\r\n|\r|\n")


@dataclass(frozen=True)
class Dispatched:
    """One event, as a page gets it."""

    type: str
    data: str
    last_event_id: str


@dataclass
class Reading:
    """What a page has got from a stream so far, and how long it would wait before it comes back."""

    events: list[Dispatched]
    retry_ms: int | None = None


def read(body: bytes) -> Reading:
    """Everything that a body holds; what its last lines leave unfinished is dropped."""
    lines = _LINE_END.split(body.decode(errors="replace").removeprefix("\ufeff"))
    found = Reading([])
    data = event_type = last_event_id = ""
    # What follows the last line end is no line.
    for line in lines[:-1]:
        if not line:
            if data:
                found.events.append(
                    Dispatched(event_type or "message", data.removesuffix("\n"), last_event_id)
                )
            data = event_type = ""
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            event_type = value
        elif field == "data":
            data += value + "\n"
        elif field == "id" and "\0" not in value:
            last_event_id = value
        elif field == "retry" and value.isascii() and value.isdigit():
            found.retry_ms = int(value)
    return found
