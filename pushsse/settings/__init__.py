"""One frozen Settings, read from pushsse.toml, PUSHSSE_* variables and options, in rising order of weight.

The command line and `create_app` read them; `build` hands each part only what it needs. Errors name the
variable and the value, never a secret. An empty variable counts as not set. `unknown` names variables that
look like settings and aren't. `fields` has all settings, `tables` those of which there may be several,
`checks` the rules between them.
"""

import difflib
import re
import secrets
import socket
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal, get_args, get_origin

import msgspec

from pushsse.errors import SettingsError
from pushsse.logs import HIDDEN, shown
from pushsse.settings.checks import ANSWERERS, FORMATS, check, is_loopback, is_topic_name
from pushsse.settings.fields import (
    DLQ_SUFFIX,
    FIELDS,
    PREFIX,
    AnswererSetting,
    Option,
    Settings,
    seconds,
    variable,
)
from pushsse.settings.tables import (
    LINES,
    TABLES,
    KafkaMap,
    KafkaSource,
    OutboxSource,
    TypeTable,
    as_tables,
    lines_of,
    listed,
    tables,
)

__all__ = [
    "ANSWERERS", "DLQ_SUFFIX", "FIELDS", "FILE", "FORMATS", "PREFIX", "AnswererSetting", "KafkaMap",
    "KafkaSource", "Option", "OutboxSource", "Settings", "TypeTable", "is_loopback", "is_topic_name", "load",
    "seconds", "unknown", "variable",
]  # fmt: skip
FILE = Path("pushsse.toml")
_SIZES = {"KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}
_DEFAULT_PORTS = (("http", ":80"), ("https", ":443"))
# Variables with our prefix that aren't settings: those of the commands that call a service, and of the tests.
_OTHERS = ("PUSHSSE_URL", "PUSHSSE_TOKEN", "PUSHSSE_CA", "PUSHSSE_PARTS_DIR")
# What Kubernetes tells each container about a Service called `pushsse` or `pushsse-…`, in Docker's old way.
_LINK = re.compile(r"(?:tcp|udp|sctp)://", re.IGNORECASE)
_LINKED = re.compile(
    r"PUSHSSE_(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)"
)
_DEVELOPMENT = {"drain_delay_s": 0.0, "drain_window_s": 0.5}


def load(
    environment: Mapping[str, str],
    options: Mapping[str, object] | None = None,
    *,
    file: Path | None = None,
) -> Settings:
    """Reads the settings. `options` are those of the command line; None among them means not given.

    Raises SettingsError that names the variable (or the line of the file) and the bad value.
    """
    values: dict[str, tuple[str, object]] = {}
    if file is not None and file.exists():
        values |= {name: (f"{name} in {file}", value) for name, value in _read(file).items()}
    for name in FIELDS:
        text = environment.get(variable(name), "")
        if text.strip() and not _is_link(variable(name), text):
            values[name] = (variable(name), text)
    for name, value in (options or {}).items():
        if value is not None:
            values[name] = (f"--{name.replace('_', '-')}", value)
    settings = Settings(**{name: _converted(name, *given) for name, given in values.items()})  # type: ignore[arg-type]
    check(settings)
    if settings.development:
        # There are no other nodes to wait for, and whoever pressed Ctrl-C is waiting.
        hurried = {name: value for name, value in _DEVELOPMENT.items() if name not in values}
        settings = msgspec.structs.replace(settings, **hurried)
    node = settings.node or f"{socket.gethostname()}-{secrets.token_hex(3)}"
    return msgspec.structs.replace(settings, node=node, host=settings.host.strip("[]"))


def unknown(environment: Mapping[str, str]) -> list[str]:
    """A line for each variable that begins with PUSHSSE_ and isn't a setting, with the nearest that is one.

    Those that Kubernetes sets for a Service called pushsse share one line. Values aren't shown.
    """
    lines, links = [], []
    known = {variable(name) for name in FIELDS}.union(_OTHERS)
    for name, value in sorted(environment.items()):
        if not name.upper().startswith(PREFIX):
            continue
        if _is_link(name, value):
            links.append(name)
        elif name not in known and value.strip():
            lines.append(f"{name} is not a setting{_nearest(name.upper(), known)}")
    if links:
        others = f" and {len(links) - 1} more" if len(links) > 1 else ""
        lines.append(
            f"{links[0]}{others}: ignored, Kubernetes sets them for a Service called pushsse"
            " (enableServiceLinks: false in the pod turns that off)"
        )
    return lines


def _is_link(name: str, value: str) -> bool:
    """Whether Kubernetes set the variable, not somebody who runs pushsse."""
    return _LINKED.fullmatch(name) is not None or (
        name.endswith(("_PORT", "_TCP", "_UDP", "_SCTP")) and _LINK.match(value) is not None
    )


def _nearest(name: str, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.75)
    return f": did you mean {found[0]}?" if found else ""


def _read(file: Path) -> dict[str, object]:
    try:
        # Editors on Windows begin a file with a byte order mark.
        text = file.read_text(encoding="utf-8-sig")
        found = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file}: {error}") from None
    except OSError as error:
        raise SettingsError(f"{file} can't be read: {error.strerror}") from None
    for name in found:
        if name not in FIELDS:
            raise SettingsError(f"{file}: {name!r} is not a setting{_nearest(name.lower(), FIELDS)}")
    for name in TABLES:
        for table, lines in zip(as_tables(found.get(name)), lines_of(text, name), strict=False):
            # Not the user's to say: whatever is there already stays, and is refused.
            table.setdefault(LINES, lines)
    return found


def _converted(name: str, source: str, value: object) -> object:
    kind = FIELDS[name].type
    try:
        if isinstance(value, str):
            value = listed(name, value) if name in TABLES else _from_text(kind, value)
        if name in TABLES:
            return tables(name, source, value)
        found = msgspec.convert(value, kind, strict=False)
        return tuple(map(_origin, found)) if name == "allowed_origins" else found
    except (msgspec.ValidationError, ValueError) as error:
        raise SettingsError(f"{source}: {_named(name, value)} can't be used: {error}") from None


def _named(name: str, value: object) -> str:
    """A bad value for people; nothing of one that may hold a secret."""
    if any(word in name for word in ("secret", "password", "token", "key")):
        return HIDDEN
    if isinstance(value, str):
        return repr(shown(value)) if "url" in name or "@" in value else repr(value)
    # A list or a table may hold a URL with a password; origins have none.
    return repr(value) if name == "allowed_origins" or isinstance(value, int | float) else HIDDEN


def _from_text(kind: object, text: str) -> object:
    plain = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    if get_origin(plain) is Literal:
        # INFO, as most loggers write it, is info.
        return next((word for word in get_args(plain) if word.lower() == text.strip().lower()), text)
    if get_origin(plain) is tuple:
        return [part.strip() for part in text.split(",") if part.strip()]
    if plain is float and text[-1:].isalpha():
        return seconds(text)
    if plain is int and (found := re.fullmatch(r"(\d+) ?(KiB|MiB|GiB)", text)):
        return int(found[1]) * _SIZES[found[2]]
    return text


def _origin(text: str) -> str:
    """An origin as browsers send it (RFC 6454); a slash after it is ignored. Raises ValueError."""
    if text in ("*", "null"):
        raise ValueError(f"{text!r} would let any page call as the person who looks at it: name the origins")
    found = re.fullmatch(
        r"([a-z][a-z0-9+.-]*)://([a-z0-9._~%-]+|\[[0-9a-f:]+\])(:\d{1,5})?/*", text.strip().lower()
    )
    if found is None:
        raise ValueError(f"{text!r} isn't an origin such as https://app.example.com")
    scheme, host, port = found[1], found[2], found[3] or ""
    return f"{scheme}://{host}{'' if (scheme, port) in _DEFAULT_PORTS else port}"
