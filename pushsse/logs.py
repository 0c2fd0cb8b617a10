"""What people read of this program: lines of the log, text from elsewhere, URLs.

`configure` sets logging up: one line an entry, for people or as JSON, with ids and never payloads or tokens.
`serving` names the request that a task serves in all its lines. `visible` escapes control characters, so that
a text can't command a terminal or pass for a line of this program. `safe_url` is a URL without its secrets.
Deliberate: what can't be told apart from a secret isn't shown, since libraries don't agree on how to read a
URL with raw special characters in its password.
"""

import asyncio
import logging
import re
import secrets
import time
from contextvars import ContextVar
from typing import Any, Literal

import msgspec

# Of one entry, tracebacks not counted.
MOST_CHARACTERS = 2_000
# Of a field beside the message, and of a traceback as a field.
_MOST_IN_A_FIELD = 200
_MOST_IN_A_TRACEBACK = 8_000
FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
# What a line may know beside its message: given as `extra`, or by the request that is served.
FIELDS = ("request", "stream", "event", "question", "user", "address", "forwarded", "call", "about", "status")
# One line for each call of an administrator, whatever the level is.
audit = logging.getLogger("pushsse.audit")


def configure(level: str, form: Literal["console", "json"] = "console") -> None:
    """Sets the process's logging up; called once by the command line."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Console(FORMAT) if form == "console" else _Json())
    handler.addFilter(_is_ours_or_news)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    audit.setLevel(logging.INFO)
    # Its access log has the query string in it, and with it tickets and users.
    logging.getLogger("uvicorn.access").disabled = True
    logging.getLogger("uvicorn.error").addFilter(_is_news)
    # uvicorn's own words at start and stop say less than ours.
    for noisy in ("httpx", "httpcore", "tortoise", "uvicorn"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # While Kafka is away it says so several times a second; the intake says it once.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)


class Served:
    """The request that a task serves.

    `user` is who has sent it, as soon as that is known; `about` whom an administrator's request is about.
    """

    __slots__ = ("_id", "about", "user")

    def __init__(self, given: str) -> None:
        self._id = given if _REQUEST.fullmatch(given) else ""
        self.user = ""
        self.about = ""

    @property
    def id(self) -> str:
        """What the client or a proxy gave, if that is an id, else a random one, made when it is needed."""
        if not self._id:
            self._id = secrets.token_hex(8)
        return self._id


_REQUEST = re.compile(r"[A-Za-z0-9._-]{1,64}")
_served: ContextVar[Served | None] = ContextVar("pushsse.served", default=None)


def serving(given: str) -> None:
    """From now on, this task and those that it starts serve a request; `given`: X-Request-Id, or nothing."""
    _served.set(Served(given))


def served() -> Served | None:
    """The request that this task serves; None outside one."""
    return _served.get()


def note_about(user: str) -> None:
    """The request that is served is an administrator's, about a person."""
    if (request := _served.get()) is not None:
        request.about = user


class _Formatter(logging.Formatter):
    """What both forms share: text from elsewhere is escaped and cut."""

    def text(self, record: logging.LogRecord) -> str:
        """The message, as one line, but for a traceback that uvicorn passes as one."""
        text = record.getMessage()
        if _is_traceback(record, text):
            return _indented(text)
        if isinstance(record.args, tuple):
            # Each value by itself: a long one doesn't push what else the entry says out of the line.
            values = tuple(short(each) if isinstance(each, str) else each for each in record.args)
            text = str(record.msg) % values if values else text
        return _in_log(text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}…")

    def fields(self, record: logging.LogRecord) -> dict[str, str | int]:
        """What the record and the request that is served know beside the message."""
        known: dict[str, object] = {name: record.__dict__[name] for name in FIELDS if name in record.__dict__}
        if (request := _served.get()) is not None:
            known.setdefault("request", request.id)
            known.setdefault("user", request.user)
        return {
            name: value if isinstance(value, int) else _in_log(short(str(value)))
            for name, value in known.items()
            if value not in ("", None)
        }


class _Console(_Formatter):
    """An entry is one line, but for tracebacks, whose lines are indented.

    So no text from elsewhere can look like another entry, in an error's text within a traceback neither.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:
        """With control characters escaped, cut at MOST_CHARACTERS, and with the request's id."""
        record.message = self.text(record)
        request = self.fields(record).get("request")
        return super().formatMessage(record) + (f" [request {request}]" if request else "")

    def formatException(self, ei: Any) -> str:
        """With control characters escaped, but for line ends."""
        return _indented(super().formatException(ei))


class _Json(_Formatter):
    """An entry is an object on one line; a traceback is one of its members."""

    def format(self, record: logging.LogRecord) -> str:
        """The whole entry."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        entry: dict[str, str | int] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        text = record.getMessage()
        traceback = ""
        if _is_traceback(record, text):
            # Its last line says what happened.
            traceback, text = text, text.rstrip().rpartition("\n")[2]
            entry["message"] = _in_log(_cut(text, MOST_CHARACTERS))
        else:
            entry["message"] = self.text(record)
        if record.exc_info:
            traceback = self.formatException(record.exc_info)
        entry |= self.fields(record)
        if traceback:
            entry["exception"] = _in_log(_cut(traceback, _MOST_IN_A_TRACEBACK), lines=True)
        return msgspec.json.encode(entry).decode()


def _is_traceback(record: logging.LogRecord, text: str) -> bool:
    """Whether uvicorn passes a traceback as the message."""
    return record.name.startswith("uvicorn") and text.startswith("Traceback")


def short(text: str) -> str:
    """A text from elsewhere, as long as it may be in a line."""
    return text if len(text) <= _MOST_IN_A_FIELD else f"{text[:_MOST_IN_A_FIELD]}…"


def _cut(text: str, most: int) -> str:
    """The beginning and the end, which says what happened."""
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-most // 2 :]}"


def _indented(traceback: str) -> str:
    return _in_log(traceback, lines=True).rstrip("\n").replace("\n", "\n  ")


def _is_ours_or_news(record: logging.LogRecord) -> bool:
    """What libraries say to be debugged has statements with their values, and chunks of answers."""
    return record.levelno >= logging.INFO or record.name.partition(".")[0] == "pushsse"


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
# And what nobody sees, or is of format alone (Cf): a log is read to tell names apart. On a terminal some of
# it joins the parts of one picture.
_UNSEEN = re.compile(
    "[\u00ad\u034f\u0600-\u0605\u06dd\u070f\u0890\u0891\u08e2\u115f\u1160\u17b4\u17b5\u180b-\u180f"
    "\u200b-\u200d\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\ufffe\uffff\U000110bd\U000110cd\U00013430-\U0001343f"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_NAMED = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def visible(text: str, *, lines: bool = False) -> str:
    r"""The text with control characters as `\x1b`, `\u202e`; with `lines`, line ends and tabs stay."""
    if lines:
        text = text.replace("\r\n", "\n")
    return CONTROL.sub(lambda found: found[0] if lines and found[0] in "\n\t" else _escaped(found[0]), text)


def _in_log(text: str, *, lines: bool = False) -> str:
    r"""`visible`, and what nobody sees, as `\u200b` and `\U000e0041`."""
    return _UNSEEN.sub(lambda found: _escaped(found[0]), visible(text, lines=lines))


def _escaped(character: str) -> str:
    number = ord(character)
    if number > 0xFFFF:
        return f"\\U{number:08x}"
    return _NAMED.get(character) or (f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}")


HIDDEN = "…"
_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.:-]*)://(?P<rest>.*)", re.DOTALL)
_PLACE = r"(?:[A-Za-z0-9._%-]*|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?"
_REST = re.compile(
    rf"(?:[^/?#]*@)?(?P<places>{_PLACE}(?:,{_PLACE})*)(?P<path>/[^?#@=]*)?(?:\?(?P<query>[^#@]*))?"
)
# Where PostgreSQL is told by a directory: `postgres:///name?host=/var/run/postgresql`.
_PLACES = re.compile(r"(?:host|port)=[A-Za-z0-9._/:%,-]+")


def safe_url(url: str) -> str:
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
