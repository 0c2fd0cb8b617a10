"""One frozen Settings, read from pushsse.toml, PUSHSSE_* variables and options, in rising order of weight.

The command line and `create_app` read them; `build` hands each part only what it needs. `fields` has all
settings; the rules between them, and for what a type can't say, follow here what reads them (`_check`).
Errors name the variable, or the table and its line, and the value, never a secret. An empty variable counts
as not set. `unknown` names variables that look like settings and aren't.
"""

import difflib
import re
import secrets
import socket
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal, get_args, get_origin
from urllib.parse import SplitResult, parse_qsl, urlsplit

import msgspec

from pushsse.errors import SettingsError
from pushsse.logs import HIDDEN, safe_url
from pushsse.settings.fields import (
    DLQ_SUFFIX,
    FIELDS,
    LINES,
    NO_ANSWERER,
    PREFIX,
    TABLES,
    AnswererSetting,
    KafkaMap,
    KafkaSource,
    Option,
    OutboxSource,
    Settings,
    TypeTable,
    as_tables,
    lines_of,
    listed,
    seconds,
    tables,
    variable,
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
# An @ in the query before the first = ends a password with a ? in it.
_SERVER = re.compile(r"[a-z]+://([^/?#@]*@)?[^/?#@]*(/[^/?#@]*)?(\?([^#@=]*=[^#]*|[^#@]*))?", re.IGNORECASE)
_BROKER = re.compile(
    r"(?:[^\s:/,;@\[\]]+|\[[0-9a-f.:]+\])(?::(?P<port>\d{1,5}))?|[0-9a-f.]*:[0-9a-f.]*:[0-9a-f.:]*",
    re.IGNORECASE | re.ASCII,
)
# Parameters of Redis's URL, and what some of them may be.
_REDIS_PARAMETERS = ("db", "username", "password", "client_name")
_REDIS_TLS = (
    "ssl_cert_reqs", "ssl_check_hostname", "ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile",
    "ssl_password",
)  # fmt: skip
_REDIS_VALUES = {
    "db": r"\d{1,9}",
    "client_name": r"[!-~]+",
    "ssl_cert_reqs": r"none|optional|required",
    "ssl_check_hostname": r"(?i:true|false|yes|no|1|0)",
}
_DEVELOPMENT = {"drain_delay_s": 0.0, "drain_window_s": 0.5}
# How records of Kafka can be read; `python` goes on with :PACKAGE:FUNCTION.
FORMATS = ("pushsse", "headers", "mapped", "cloudevents", "python")
ANSWERERS = ("faq", "kafka", "openai", "python")
_TOPIC_NAME = re.compile(r"[A-Za-z0-9._-]{1,249}")
# In a pattern: `[.]` and `\.`; what stands for one of several characters, of which the first is kept; a
# group, of which the first branch is.
_ESCAPED = re.compile(r"\[\\?([^\]^\\])\]|\\([^A-Za-z0-9])")
_ANY = re.compile(r"(?:\.(?=[*+?{])|\[([A-Za-z0-9]?)[^\]]*\]|\\[wd])(?:[*+?]|\{(\d{0,3})[^}]*\})?")
_GROUP = re.compile(r"\((?:\?:)?([^|()]*)(?:\|[^()]*)?\)(?:[*+?]|\{[^}]*\})?")
# With the ending of a name beside it, a name of PostgreSQL's has 63 bytes at most.
_OUTBOX_TABLE = re.compile(r"(?:[a-z_][a-z0-9_]{0,39}\.)?[a-z_][a-z0-9_]{0,39}")


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
    if settings.lan == "on":
        settings = _for_lan(settings, is_host_given="host" in values)
    _check(settings)
    if settings.development or settings.lan == "on":
        # There are no other nodes to wait for, and whoever pressed Ctrl-C is waiting.
        hurried = {name: value for name, value in _DEVELOPMENT.items() if name not in values}
        settings = msgspec.structs.replace(settings, **hurried)
    node = settings.node or f"{socket.gethostname()}-{secrets.token_hex(3)}"
    return msgspec.structs.replace(settings, node=node, host=settings.host.strip("[]"))


def _for_lan(settings: Settings, *, is_host_given: bool) -> Settings:
    """With a key that nobody else knows, and on all addresses unless one is named. Raises SettingsError."""
    if not settings.development or settings.auth == "none" or settings.jwt_secret_old:
        raise SettingsError(
            f"{variable('lan')}: makes a key for this run, and can't be with PUSHSSE_JWT_SECRET,"
            " PUSHSSE_JWT_SECRET_OLD, PUSHSSE_JWKS_URL, PUSHSSE_AUTH_URL or PUSHSSE_AUTH=none"
        )
    host = settings.host if is_host_given else "0.0.0.0"  # nosec B104
    return msgspec.structs.replace(settings, jwt_secret=secrets.token_hex(32), host=host)


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
        return repr(safe_url(value)) if "url" in name or "@" in value else repr(value)
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


def _check(settings: Settings) -> None:
    """Raises SettingsError."""
    _check_redis(settings.redis_url)
    _check_database(settings.database_url)
    _check_outboxes(settings)
    _check_brokers(settings.kafka_bootstrap)
    _check_internal(settings)
    if settings.workers > 1 and not settings.redis_url:
        raise SettingsError(
            f"PUSHSSE_WORKERS: {settings.workers} workers need PUSHSSE_REDIS_URL, to hear each other's events"
        )
    if settings.outcomes != "off" and not settings.kafka_bootstrap:
        raise SettingsError(
            f"PUSHSSE_OUTCOMES: {settings.outcomes} needs PUSHSSE_KAFKA_BOOTSTRAP, where outcomes are written"
        )
    _check_start("PUSHSSE_KAFKA_START", settings.kafka_start)
    if settings.dlq_topic == settings.kafka_topic:
        raise SettingsError(
            f"PUSHSSE_KAFKA_DLQ_TOPIC: {settings.dlq_topic!r} is the topic of the events itself"
        )
    _check_sources(settings)
    _check_answerers(settings)
    if settings.jwt_secret_old and not settings.jwt_secret:
        raise SettingsError("PUSHSSE_JWT_SECRET_OLD: needs PUSHSSE_JWT_SECRET, which has taken its place")
    if settings.auth_url:
        _check_url("PUSHSSE_AUTH_URL", settings.auth_url)
    if settings.login_url:
        _check_url("PUSHSSE_LOGIN_URL", settings.login_url)
    if settings.jwks_url:
        _check_url("PUSHSSE_JWKS_URL", settings.jwks_url)
        if not settings.jwt_audience or not settings.jwt_issuer:
            raise SettingsError(
                "PUSHSSE_JWKS_URL: needs PUSHSSE_JWT_AUDIENCE and PUSHSSE_JWT_ISSUER, or a token that the"
                " same login has made for another service would be good here"
            )
    if settings.development and not is_loopback(settings.host):
        raise SettingsError(
            f"PUSHSSE_HOST: {settings.host!r} isn't a loopback address. Without PUSHSSE_JWT_SECRET,"
            " PUSHSSE_JWKS_URL or PUSHSSE_AUTH_URL, identity is that of development, for this machine alone:"
            " set one of them, or use 127.0.0.1"
        )


def _check_start(where: str, start: str) -> None:
    if start not in ("latest", "earliest"):
        try:
            seconds(start)
        except ValueError as error:
            raise SettingsError(f"{where}: {error}, latest or earliest") from None


def _check_sources(settings: Settings) -> None:
    """Raises SettingsError for a table of topics that can't be; its format tells what only that can."""
    own = settings.own_topics
    named = [settings.kafka_topic, *(t for s in settings.kafka for t in s.topics if is_topic_name(t))]
    dead = {settings.answers_dlq_topic, *map(settings.dlq_topic_of, named)}
    labels: set[str] = set()
    taken: set[str] = set()
    for source in settings.kafka:
        if not settings.kafka_bootstrap:
            raise SettingsError(f"{source.at('topics')}: needs PUSHSSE_KAFKA_BOOTSTRAP")
        if source.kind not in FORMATS or (source.kind == "python") != (":" in source.format):
            text = ", ".join(FORMATS).replace("python", "python:PACKAGE:FUNCTION")
            raise SettingsError(f"{source.at('format')}: {source.format!r} is none of {text}")
        if source.start:
            _check_start(source.at("start"), source.start)
        for topic in source.topics:
            _check_topic(source.at("topics"), topic, dead)
            if topic == settings.kafka_topic:
                raise SettingsError(
                    f"{source.at('topics')}: {topic!r} is PUSHSSE_KAFKA_TOPIC, which is read without a table"
                )
            if topic in own:
                raise SettingsError(
                    f"{source.at('topics')}: {topic!r} has the questions or answers of pushsse"
                )
            if topic in taken:
                raise SettingsError(f"{source.at('topics')}: {topic!r} is named twice")
            taken.add(topic)
        if source.label in labels or source.label == settings.kafka_topic:
            raise SettingsError(f"{source.at('name')}: there is another source called {source.label!r}")
        labels.add(source.label)


def _check_topic(where: str, topic: str, dead: Iterable[str]) -> None:
    """A topic or a pattern that matches a dead-letter topic would read what it has written, for ever."""
    if is_topic_name(topic):
        if topic in dead or topic.endswith(DLQ_SUFFIX):
            raise SettingsError(f"{where}: {topic!r} is a dead-letter topic")
        return
    try:
        pattern = re.compile(topic)
    except re.error as error:
        raise SettingsError(f"{where}: {topic!r} is neither a topic's name nor a pattern: {error}") from None
    for each in sorted(dead):
        if pattern.fullmatch(each):
            raise SettingsError(f"{where}: {topic!r} matches the dead-letter topic {each}")
    # Of a topic that isn't named. A pattern that matches others, too, as orders-.* does, is read without it.
    likely = _likely_match(topic)
    is_dead = likely.endswith(DLQ_SUFFIX) and pattern.fullmatch(likely)
    if is_dead and not pattern.fullmatch(likely.removesuffix(DLQ_SUFFIX)):
        raise SettingsError(f"{where}: {topic!r} matches the dead-letter topic {likely}")


def _likely_match(pattern: str) -> str:
    """A name that a pattern is likely to match; whether it does, the pattern has to say."""
    text = _ESCAPED.sub(lambda found: found[1] or found[2], pattern.removeprefix("^").removesuffix("$"))
    text = _ANY.sub(lambda found: (found[1] or "0") * int(found[2] or 1), text)
    before = ""
    while before != text:
        before, text = text, _GROUP.sub(r"\1", text)
    return text


def is_topic_name(text: str) -> bool:
    """Whether it is the name of one topic, and not a pattern (a regular expression)."""
    return _TOPIC_NAME.fullmatch(text) is not None


def _check_answerers(settings: Settings) -> None:
    """Raises SettingsError for what isn't an answerer; `build` tells what only the answerer itself can."""
    answerers = settings.answerers
    if not answerers and settings.answerer != NO_ANSWERER:
        raise SettingsError("answerer: is empty, and has to name who answers")
    for each in answerers:
        if each.kind not in ANSWERERS or ":" not in each.url:
            text = repr(safe_url(each.url)) if each.url else "the url, which is missing,"
            kinds = "faq:FILE, kafka:, openai:BASE_URL?model=NAME, python:PACKAGE:FUNCTION or, alone, none:"
            raise SettingsError(f"{each.where}: {text} is none of {kinds}")
        if each.kind == "kafka" and not settings.kafka_bootstrap:
            raise SettingsError(f"{each.where}: kafka: needs PUSHSSE_KAFKA_BOOTSTRAP")
        if each.kind == "kafka" and each is not answerers[-1]:
            raise SettingsError(
                f"{each.where}: kafka: has to be the last, since its answer comes from elsewhere"
            )


def _check_internal(settings: Settings) -> None:
    name = variable("internal_listen")
    try:
        internal = settings.internal
    except ValueError as error:
        raise SettingsError(f"{name}: {error}") from None
    if internal is None:
        return
    if internal.port == settings.port != 0:
        # The port tells on which of the two a request came.
        raise SettingsError(
            f"{name}: {settings.internal_listen!r} needs another port than {variable('port')}"
        )
    if settings.development and not is_loopback(internal.host):
        raise SettingsError(
            f"{name}: {internal.host!r} isn't a loopback address, and identity is that of development"
        )


def _check_redis(url: str) -> None:
    """Raises SettingsError for a URL that Redis's client would refuse, or read otherwise than was meant."""
    if not url:
        return
    scheme = url.partition(":")[0].lower()
    if scheme in ("redis+cluster", "redis+sentinel"):
        raise SettingsError(f"PUSHSSE_REDIS_URL: {scheme}:// isn't supported yet, use redis:// or rediss://")
    if scheme not in ("redis", "rediss"):
        raise SettingsError(
            f"PUSHSSE_REDIS_URL: {safe_url(url)!r} begins with neither redis:// nor rediss://"
        )
    _, _, path, query, _ = _read_url("PUSHSSE_REDIS_URL", url)
    if not re.fullmatch(r"/?|/\d+", path):
        raise SettingsError(
            f"PUSHSSE_REDIS_URL: {path!r} isn't a database's number such as /0"
            " (a / in the password is written %2F)"
        )
    _check_redis_parameters(scheme, query)


def _check_redis_parameters(scheme: str, query: str) -> None:
    """Raises SettingsError: what stands there goes to Redis's client, before what pushsse tells it itself."""
    allowed = _REDIS_PARAMETERS + (_REDIS_TLS if scheme == "rediss" else ())
    given = parse_qsl(query, keep_blank_values=True)
    for name, value in given:
        if name not in allowed:
            tls = f"; {name} needs rediss://" if name in _REDIS_TLS else f", not {name!r}"
            raise SettingsError(f"PUSHSSE_REDIS_URL: its parameters may be {', '.join(allowed)}{tls}")
        # Others go to the client as they are, and aren't shown: passwords are among them.
        if name in _REDIS_VALUES and not re.fullmatch(_REDIS_VALUES[name], value):
            raise SettingsError(f"PUSHSSE_REDIS_URL: {name} can't be {value!r}")
    if twice := [name for name, count in Counter(name for name, _ in given).items() if count > 1]:
        raise SettingsError(f"PUSHSSE_REDIS_URL: {twice[0]} is there twice")


def _check_database(url: str) -> None:
    scheme = url.partition(":")[0].lower()
    if scheme not in ("sqlite", "postgres", "postgresql", "asyncpg"):
        raise SettingsError(f"PUSHSSE_DATABASE_URL: {safe_url(url)!r} is neither sqlite:// nor postgres://")
    if scheme != "sqlite":
        _read_url("PUSHSSE_DATABASE_URL", url)


def _check_brokers(addresses: str) -> None:
    """Raises SettingsError for what Kafka's client refuses, or takes for a strange name."""
    for text in map(str.strip, addresses.split(",") if addresses else ()):
        found = _BROKER.fullmatch(text)
        if found is None or not 0 < int(found["port"] or 9092) < 2**16:
            raise SettingsError(
                f"{variable('kafka_bootstrap')}: {safe_url(text)!r} isn't HOST:PORT, such as kafka1:9092"
            )


def _check_outboxes(settings: Settings) -> None:
    """Raises SettingsError for an outbox without a PostgreSQL, and for a name that isn't a table's."""
    seen = set()
    for each in settings.outbox:
        if _OUTBOX_TABLE.fullmatch(each.table) is None:
            raise SettingsError(
                f"{each.at('table')}: {each.table!r} isn't a name such as pushsse_outbox or shop.outbox:"
                " lower-case letters, digits and _, at most 40 characters each"
            )
        url = each.database_url or settings.database_url
        name = each.at("database_url" if each.database_url else "needs PUSHSSE_DATABASE_URL")
        if url.partition(":")[0].lower() not in ("postgres", "postgresql", "asyncpg"):
            raise SettingsError(
                f"{name}: {safe_url(url)!r} isn't postgres://…, and an outbox is in PostgreSQL"
            )
        _read_url(name, url)
        if (each.table, url) in seen:
            raise SettingsError(f"{each.at('table')}: {each.table!r} is read by another [[outbox]] already")
        seen.add((each.table, url))


def _check_url(name: str, url: str) -> None:
    """Raises SettingsError for what isn't the URL of a web server, or has a password in it."""
    if not is_web_url(url):
        raise SettingsError(f"{name}: {safe_url(url)!r} isn't http://HOST/PATH or https://HOST/PATH")


def _read_url(name: str, url: str) -> SplitResult:
    """A server's URL. Raises SettingsError for one that clients refuse, or read otherwise than was meant."""
    if _SERVER.fullmatch(url) is None:
        raise SettingsError(
            f"{name}: {safe_url(url)} can't be read: write # as %23, / as %2F, ? as %3F, @ as %40 and : as"
            " %3A in the user's name and the password"
        )
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise SettingsError(
            f"{name}: the port isn't a number up to 65535, or the password has one of # / ? [ ] in it"
            " (write %23 %2F %3F %5B %5D)"
        ) from None
    if port == 0:
        raise SettingsError(f"{name}: 0 isn't a port to connect to")
    return parts


def is_web_url(url: str) -> bool:
    """Whether it is the URL of a web server, with neither a user's name nor a password in it."""
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    return fits and "@" not in parts.netloc and url.isascii() and url.isprintable() and " " not in url


def is_loopback(host: str) -> bool:
    """Whether a host's name or address, in brackets or not, is this machine's own and nobody else's."""
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False
