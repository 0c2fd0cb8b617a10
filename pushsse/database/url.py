"""A database URL as Tortoise's configuration; for PostgreSQL with libpq's parameters as asyncpg's keywords.

`Database` calls `configuration`. The URLs that managed providers give out are accepted (PostgreSQL
documentation, 34.1.2). A parameter that can't be used is an error of one line that names it and its value.
"""

import re
import ssl
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from tortoise.backends.base.config_generator import expand_db_url
from tortoise.exceptions import ConfigurationError

from pushsse.errors import SettingsError
from pushsse.logs import safe_url

APP = "pushsse"
_MODELS = [
    "pushsse.kicks",
    "pushsse.presence",
    "pushsse.preferences.catalogue",
    "pushsse.preferences.history",
    "pushsse.preferences.store",
    "pushsse.questions.rows",
    "pushsse.witness",
]


async def _no_reset(_connection: object) -> None:
    """Resets nothing: no session leaves settings behind, and asyncpg's own reset is a round trip."""


def configuration(url: str, *, pool_size: int = 8, timeout_s: float = 1.5) -> dict[str, Any]:
    """Tortoise's configuration for a URL. Raises SettingsError."""
    scheme = url.partition(":")[0].lower()
    # Tortoise keeps prepared SQL per name of a connection, so each kind of database has a name of its own.
    if scheme in ("postgres", "postgresql", "asyncpg"):
        name = "asyncpg"
        # No connection until the first query: a node starts while its database is away.
        defaults = {"minsize": 0, "maxsize": pool_size, "timeout": timeout_s, "application_name": APP}
        own = {"reset": _no_reset}
        given: dict[str, Any] = defaults | credentials(url)
        if given["minsize"] > given["maxsize"]:
            raise _wrong("minsize", given["minsize"], f"is over maxsize, which is {given['maxsize']}")
        connection = {"engine": "tortoise.backends.asyncpg", "credentials": given | own}
    else:
        name, connection = "sqlite", _sqlite(url, timeout_s=timeout_s)
    app = {"models": _MODELS, "default_connection": name, "migrations": "pushsse.migrations"}
    return {"connections": {name: connection}, "apps": {APP: app}}


def _sqlite(url: str, *, timeout_s: float) -> dict[str, Any]:
    try:
        connection = expand_db_url(url)
    except (ConfigurationError, ValueError) as error:
        raise SettingsError(f"PUSHSSE_DATABASE_URL: {error}") from None
    if not connection["engine"].endswith(".sqlite"):
        raise SettingsError(f"PUSHSSE_DATABASE_URL: {safe_url(url)} is neither SQLite nor PostgreSQL")
    # Less than a query's limit, so that a locked file is an error and not a thread that is stuck.
    connection["credentials"].setdefault("busy_timeout", int(timeout_s * 600))
    return connection


# For Tortoise's command line: `tortoise -c pushsse.database.TORTOISE makemigrations`.
TORTOISE = configuration("sqlite://:memory:")


_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_YES, _NO = ("true", "1", "yes", "on"), ("false", "0", "no", "off")
_SESSION_ATTRIBUTES = ("any", "primary", "standby", "read-write", "read-only", "prefer-standby")
# asyncpg has no channel binding; a server that insists on it says so itself.
_CHANNEL_BINDING = ("disable", "prefer", "require")
_OPTION = re.compile(r"(?:-c\s*|--)([A-Za-z_][\w.]*)=((?:\\.|[^\s\\])*)\s*")
_TEXTS = ("host", "user", "password", "schema", "application_name")
# The pool makes a place for each of its connections at once.
_MOST_CONNECTIONS = 1_000
_SHORTEST_S, _DAY_S = 0.001, 86_400
# What each is, the least and the most.
_NUMBERS: Mapping[str, tuple[Callable[[str], float], float, float]] = {
    "port": (int, 1, 65_535),
    "minsize": (int, 0, _MOST_CONNECTIONS),
    "maxsize": (int, 1, _MOST_CONNECTIONS),
    "statement_cache_size": (int, 0, 1_000_000),
    "timeout": (float, _SHORTEST_S, _DAY_S),
    "connect_timeout": (float, 0, _DAY_S),
    "command_timeout": (float, _SHORTEST_S, _DAY_S),
    "max_inactive_connection_lifetime": (float, 0, _DAY_S),
}
_SSL_FILES = ("sslrootcert", "sslcert", "sslkey", "sslpassword")


def credentials(url: str) -> dict[str, Any]:
    """The keywords of `asyncpg.create_pool` that a URL stands for. Raises SettingsError."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _wrong("port", "…", "isn't a number up to 65535") from None
    found: dict[str, Any] = {
        "host": unquote(parts.hostname or "") or None,
        "port": port or 5432,
        "user": unquote(parts.username or "") or None,
        "password": unquote(parts.password or "") or None,
        "database": unquote(parts.path.removeprefix("/")) or None,
    }
    given = dict(parse_qsl(parts.query, keep_blank_values=True))
    secure = {name: given.pop(name) for name in ("sslmode", "ssl", *_SSL_FILES) if name in given}
    for name, value in given.items():
        found |= _parameter(name, value)
    for name, text in found.items():
        if isinstance(text, str) and "\0" in text:
            raise _wrong(name, "…", "has a NUL character")
    if (how := _ssl(secure)) is not None:
        found["ssl"] = how
    return found


def _parameter(name: str, value: str) -> dict[str, Any]:
    if name in _TEXTS:
        return {name: value}
    if name == "dbname":
        return {"database": value}
    if name == "connect_timeout":
        # 0 is for ever to libpq: then our own limit holds.
        seconds = _number(name, value)
        return {"timeout": seconds} if seconds > 0 else {}
    if name in _NUMBERS:
        return {name: _number(name, value)}
    if name == "options":
        return {"server_settings": _options(value)}
    if name == "target_session_attrs":
        return {name: _one_of(name, value, _SESSION_ATTRIBUTES)}
    if name == "channel_binding":
        _one_of(name, value, _CHANNEL_BINDING)
        return {}
    raise SettingsError(f"PUSHSSE_DATABASE_URL: unknown parameter {name!r}")


def _options(value: str) -> dict[str, str]:
    """`-c name=value` and `--name=value`, a backslash before blanks in a value.

    Another form is passed on: a provider may read it before there is a server (Neon: `endpoint=…`).
    """
    found, at = {}, 0
    text = value.strip()
    if not text.startswith("-"):
        return {"options": text}
    while at < len(text):
        option = _OPTION.match(text, at)
        if option is None:
            raise _wrong("options", value, "is not of the form -c name=value")
        found[option[1]] = re.sub(r"\\(.)", r"\1", option[2])
        at = option.end()
    return found


def _ssl(given: Mapping[str, str]) -> str | ssl.SSLContext | None:
    mode = given.get("sslmode", given.get("ssl"))
    root = given.get("sslrootcert", "")
    if mode is None and not given:
        return None
    mode = (mode or "prefer").lower()
    mode = "require" if mode in _YES else "disable" if mode in _NO else mode
    _one_of("sslmode", mode, _SSL_MODES)
    if mode == "require" and root:
        # As libpq has it: an authority that was named is asked.
        mode = "verify-ca"
    if mode not in ("verify-ca", "verify-full"):
        return mode
    try:
        context = ssl.create_default_context(cafile=root if root not in ("", "system") else None)
        if "sslcert" in given:
            context.load_cert_chain(given["sslcert"], given.get("sslkey"), given.get("sslpassword"))
    except (OSError, ssl.SSLError) as error:
        name = "sslrootcert" if "sslcert" not in given else "sslcert"
        why = getattr(error, "strerror", None) or error
        raise _wrong(name, given.get(name, ""), f"can't be used: {why}") from None
    context.check_hostname = mode == "verify-full"
    return context


def _number(name: str, value: str) -> float:
    kind, least, most = _NUMBERS[name]
    try:
        number = kind(value)
    except ValueError:
        raise _wrong(name, value, "isn't a number") from None
    # Not a number (nan) is in no range.
    if not least <= number <= most:
        raise _wrong(name, value, f"isn't from {least:,} to {most:,}")
    return number


def _one_of(name: str, value: str, words: tuple[str, ...]) -> str:
    if value not in words:
        raise _wrong(name, value, f"is none of {', '.join(words)}")
    return value


def _wrong(name: str, value: object, why: str) -> SettingsError:
    return SettingsError(f"PUSHSSE_DATABASE_URL: {name}={value} {why}")
