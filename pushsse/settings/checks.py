"""Rules between settings, and for what a type can't say: URLs, topics, addresses.

Called once all are read. Raises SettingsError that names the variable, or the table and its line, and the
value.
"""

import re
from collections.abc import Iterable
from ipaddress import ip_address
from urllib.parse import SplitResult, urlsplit

from pushsse.errors import SettingsError
from pushsse.logs import shown
from pushsse.settings.fields import DLQ_SUFFIX, Settings, seconds, variable

# How records of Kafka can be read; `python` goes on with :PACKAGE:FUNCTION.
FORMATS = ("pushsse", "headers", "mapped", "cloudevents", "python")
ANSWERERS = ("faq", "kafka", "openai", "python")
_TOPIC_NAME = re.compile(r"[A-Za-z0-9._-]{1,249}")
# With the ending of a name beside it, a name of PostgreSQL's has 63 bytes at most.
_OUTBOX_TABLE = re.compile(r"(?:[a-z_][a-z0-9_]{0,39}\.)?[a-z_][a-z0-9_]{0,39}")


def check(settings: Settings) -> None:
    """Raises SettingsError."""
    _check_redis(settings.redis_url)
    _check_database(settings.database_url)
    _check_outboxes(settings)
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


def is_topic_name(text: str) -> bool:
    """Whether it is the name of one topic, and not a pattern (a regular expression)."""
    return _TOPIC_NAME.fullmatch(text) is not None


def _check_answerers(settings: Settings) -> None:
    """Raises SettingsError for what isn't an answerer; `build` tells what only the answerer itself can."""
    answerers = settings.answerers
    if not answerers:
        raise SettingsError("answerer: is empty, and has to name who answers")
    for each in answerers:
        if each.kind not in ANSWERERS or ":" not in each.url:
            text = repr(shown(each.url)) if each.url else "the url, which is missing,"
            kinds = "faq:FILE, kafka:, openai:BASE_URL?model=NAME or python:PACKAGE:FUNCTION"
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
        raise SettingsError(f"PUSHSSE_REDIS_URL: {shown(url)!r} begins with neither redis:// nor rediss://")
    path = _read_url("PUSHSSE_REDIS_URL", url).path
    if not re.fullmatch(r"/?|/\d+", path):
        raise SettingsError(
            f"PUSHSSE_REDIS_URL: {path!r} isn't a database's number such as /0"
            " (a / in the password is written %2F)"
        )


def _check_database(url: str) -> None:
    scheme = url.partition(":")[0].lower()
    if scheme not in ("sqlite", "postgres", "postgresql", "asyncpg"):
        raise SettingsError(f"PUSHSSE_DATABASE_URL: {shown(url)!r} is neither sqlite:// nor postgres://")
    if scheme != "sqlite":
        _read_url("PUSHSSE_DATABASE_URL", url)


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
            raise SettingsError(f"{name}: {shown(url)!r} isn't postgres://…, and an outbox is in PostgreSQL")
        _read_url(name, url)
        if (each.table, url) in seen:
            raise SettingsError(f"{each.at('table')}: {each.table!r} is read by another [[outbox]] already")
        seen.add((each.table, url))


def _check_url(name: str, url: str) -> None:
    """Raises SettingsError for what isn't the URL of a web server, or has a password in it."""
    parts = urlsplit(url)
    try:
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fits = False
    if not fits or "@" in parts.netloc or not url.isascii() or not url.isprintable() or " " in url:
        raise SettingsError(f"{name}: {shown(url)!r} isn't http://HOST/PATH or https://HOST/PATH")


def _read_url(name: str, url: str) -> SplitResult:
    """A server's URL. Raises SettingsError for one that clients refuse, or read otherwise than was meant."""
    if re.fullmatch(r"[a-z]+://([^/?#@]*@)?[^/?#@]*(/[^/?#@]*)?(\?[^#]*)?", url, re.IGNORECASE) is None:
        raise SettingsError(
            f"{name}: {shown(url)} can't be read: write # as %23, / as %2F, ? as %3F, @ as %40 and : as %3A"
            " in the user's name and the password"
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


def is_loopback(host: str) -> bool:
    """Whether a host's name or address, in brackets or not, is this machine's own and nobody else's."""
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False
