"""What people read of this program: lines of the log, text from elsewhere, URLs.

`configure` sets logging up: one line an entry, with ids and never payloads or tokens. `visible` escapes
control characters, so that a text can't command a terminal or pass for a line of this program. `shown` is a
URL without its secrets. Deliberate: what can't be told apart from a secret isn't shown, since libraries don't
agree on how to read a URL with raw special characters in its password.
"""

import asyncio
import logging
import re
from typing import Any

# Of one entry, tracebacks not counted.
MOST_CHARACTERS = 2_000
FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


def configure(level: str) -> None:
    """Sets the process's logging up; called once by the command line."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter(FORMAT))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # Its access log has the query string in it, and with it tickets and users.
    logging.getLogger("uvicorn.access").disabled = True
    logging.getLogger("uvicorn.error").addFilter(_is_news)
    # uvicorn's own words at start and stop say less than ours.
    for noisy in ("httpx", "httpcore", "tortoise", "uvicorn"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # While Kafka is away it says so several times a second; the intake says it once.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)


class _Formatter(logging.Formatter):
    """An entry is one line, but for tracebacks, whose lines are indented.

    So no text from elsewhere can look like another entry, in an error's text within a traceback neither.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:
        """With control characters escaped, and cut at MOST_CHARACTERS."""
        text = record.message
        # uvicorn passes a traceback as the message.
        if record.name.startswith("uvicorn") and text.startswith("Traceback"):
            record.message = _indented(text)
        else:
            record.message = visible(text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}…")
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        """With control characters escaped, but for line ends."""
        return _indented(super().formatException(ei))


def _indented(traceback: str) -> str:
    return visible(traceback, lines=True).rstrip("\n").replace("\n", "\n  ")


def _is_news(record: logging.LogRecord) -> bool:
    """Whether nothing else says it. uvicorn's words on requests that are cut as the process ends, and on a
    start that failed for a reason that `app` has logged, are left out.
    """
    if record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError):
        return False
    text = record.getMessage()
    ours = text.startswith("Traceback") and text.rstrip().rpartition("\n")[2].startswith("pushsse.errors.")
    return not ours and not text.startswith("Application startup failed")


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


HIDDEN = "…"
_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.:-]*)://(?P<rest>.*)", re.DOTALL)
_PLACE = r"(?:[A-Za-z0-9._%-]*|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?"
_REST = re.compile(
    rf"(?:[^/?#]*@)?(?P<places>{_PLACE}(?:,{_PLACE})*)(?P<path>/[^?#@=]*)?(?:\?(?P<query>[^#@]*))?"
)
# Where PostgreSQL is told by a directory: `postgres:///name?host=/var/run/postgresql`.
_PLACES = re.compile(r"(?:host|port)=[A-Za-z0-9._/:%,-]+")


def shown(url: str) -> str:
    """A URL without user, password and parameters; `scheme://…` where they can't be told from the rest.

    Never raises, whatever it is given. What is no URL (`host:port,host:port`) is shown if it holds no secret.
    """
    found = _URL.fullmatch(url.strip())
    if found is None:
        return HIDDEN if re.search(r"[@=?#]|//", url) else url
    scheme, rest = found["scheme"], found["rest"]
    if scheme.lower() == "sqlite":
        # A file's name, which may hold an @.
        return f"{scheme}://{rest.partition('?')[0]}"
    parts = _REST.fullmatch(rest)
    if parts is None:
        return f"{scheme}://{HIDDEN}"
    places = [part for part in (parts["query"] or "").split("&") if _PLACES.fullmatch(part)]
    query = f"?{'&'.join(places)}" if places else ""
    return f"{scheme}://{parts['places']}{parts['path'] or ''}{query}"
