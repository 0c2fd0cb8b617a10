"""One frozen Settings, read from pushsse.toml, PUSHSSE_* variables and options, in rising order of weight.

Called by the command line; `app` hands each part only what it needs. Errors name the variable and the value.
"""

import re
import secrets
import socket
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, get_args, get_origin
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Struct

from pushsse.errors import SettingsError

PREFIX = "PUSHSSE_"
_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_SIZES = {"KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}


def describe(text: str, ge: float | None = None, le: float | None = None) -> Meta:
    """The help text of a setting, and its bounds."""
    return Meta(description=text, ge=ge, le=le)


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that can be set. With nothing set the whole service runs in one process."""

    host: Annotated[str, describe("address to listen on")] = "127.0.0.1"
    port: Annotated[int, describe("port to listen on; 0 takes a free one", ge=0, le=65535)] = 8000
    workers: Annotated[
        int, describe("worker processes that share the port; more than one needs Redis", ge=1)
    ] = 1
    node: Annotated[str, describe("this node's name; default: host name and a random word")] = ""
    log_level: Annotated[Literal["debug", "info", "warning", "error"], describe("how much is logged")] = (
        "info"
    )

    auth: Annotated[Literal["auto", "none"], describe("none: development identity, loopback only")] = "auto"
    jwt_secret: Annotated[str, describe("key for HS256/384/512 tokens")] = ""
    auth_cookie: Annotated[str, describe("cookie that may carry the token")] = "__Host-pushsse"
    auth_user_claim: Annotated[str, describe("claim that names the user")] = "sub"
    allowed_origins: Annotated[
        tuple[str, ...], describe("browser origins of other sites that may call, comma-separated")
    ] = ()

    database_url: Annotated[str, describe("sqlite://FILE or postgres://…")] = "sqlite://pushsse.db"
    redis_url: Annotated[str, describe("redis:// or rediss://; without it one process, in memory")] = ""
    redis_prefix: Annotated[str, describe("how the names of all keys begin")] = "pushsse:"

    kafka_bootstrap: Annotated[str, describe("host:port,…; without it POST /v1/events is the intake")] = ""
    kafka_topic: Annotated[str, describe("topic of the events")] = "push.events"
    kafka_group: Annotated[str, describe("consumer group of all nodes")] = "pushsse"
    kafka_dlq_topic: Annotated[str, describe("dead-letter topic; default: the topic and .dlq")] = ""
    kafka_start: Annotated[
        str, describe("where to start without a committed offset: latest, earliest, or an age such as 10m")
    ] = "10m"
    kafka_security_protocol: Annotated[
        Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"], describe("how to talk to Kafka")
    ] = "PLAINTEXT"
    kafka_sasl_mechanism: Annotated[
        Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"], describe("how to authenticate to Kafka")
    ] = "PLAIN"
    kafka_sasl_username: Annotated[str, describe("user at Kafka")] = ""
    kafka_sasl_password: Annotated[str, describe("password at Kafka")] = ""
    kafka_ssl_cafile: Annotated[str, describe("authority of Kafka's certificate; default: the system's")] = ""

    shards: Annotated[
        int, describe("logs that people hash to; a change starts new epochs", ge=1, le=4096)
    ] = 64
    log_keep_s: Annotated[int, describe("seconds that the logs are kept", ge=60)] = 86_400
    log_keep_bytes: Annotated[
        int, describe("bytes kept per shard's log; the broadcast log keeps 16 times as much", ge=65_536)
    ] = 4 * 1024**2
    event_max_age_s: Annotated[int, describe("seconds an event without ttl_s is worth", ge=1)] = 86_400
    new_types: Annotated[
        Literal["list", "hide", "refuse"], describe("what becomes of a type seen for the first time")
    ] = "list"

    heartbeat_s: Annotated[float, describe("seconds of silence before a ping", ge=0.2)] = 15.0
    send_timeout_s: Annotated[
        float, describe("seconds that a reader may make no progress before it is cut", ge=0.2)
    ] = 5.0
    backlog_bytes: Annotated[
        int, describe("bytes waiting for one reader before it counts as behind", ge=1024)
    ] = 64 * 1024
    stream_lifetime_s: Annotated[
        float, describe("seconds a stream may live, less up to a fifth at random; 0: no limit", ge=0)
    ] = 0.0
    max_streams: Annotated[
        int, describe("streams of one process before it says overloaded; 0: no limit", ge=0)
    ] = 0
    drain_delay_s: Annotated[
        float, describe("seconds between SIGTERM and the first ended stream, all still working", ge=0)
    ] = 2.0
    drain_window_s: Annotated[float, describe("seconds over which streams are ended", ge=0)] = 10.0

    answerer: Annotated[str, describe("faq:FILE or kafka:")] = "faq:"
    questions_topic: Annotated[str, describe("Kafka topic of the questions, for kafka:")] = "push.questions"
    answers_topic: Annotated[str, describe("Kafka topic of the answers, for kafka:")] = "push.answers"
    answer_timeout_s: Annotated[float, describe("seconds before an unanswered question expires", ge=1)] = (
        120.0
    )

    @property
    def development(self) -> bool:
        """Whether `?user=` says who is asking."""
        return self.auth == "none" or not self.jwt_secret

    @property
    def dlq_topic(self) -> str:
        """The topic for records that can't be used."""
        return self.kafka_dlq_topic or f"{self.kafka_topic}.dlq"


FIELDS = {f.name: f for f in msgspec.structs.fields(Settings)}


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return PREFIX + name.upper()


def seconds(text: str) -> float:
    """An age such as 30m, 1.5h or 90 (seconds). Raises ValueError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?", text.strip())
    if found is None:
        raise ValueError(f"{text!r} isn't an age such as 30m, 1.5h or 90")
    return float(found[1]) * _UNITS[found[2] or "s"]


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
        if (text := environment.get(variable(name))) is not None:
            values[name] = (variable(name), text)
    for name, value in (options or {}).items():
        if value is not None:
            values[name] = (f"--{name.replace('_', '-')}", value)
    settings = Settings(**{name: _converted(name, *origin) for name, origin in values.items()})  # type: ignore[arg-type]
    _check(settings)
    if not settings.node:
        settings = msgspec.structs.replace(settings, node=f"{socket.gethostname()}-{secrets.token_hex(3)}")
    return settings


def _read(file: Path) -> dict[str, object]:
    try:
        found = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file}: {error}") from None
    for name in found:
        if name not in FIELDS:
            raise SettingsError(f"{file}: {name!r} is not a setting")
    return found


def _converted(name: str, origin: str, value: object) -> object:
    kind = FIELDS[name].type
    try:
        if isinstance(value, str):
            value = _from_text(kind, value)
        return msgspec.convert(value, kind, strict=False)
    except (msgspec.ValidationError, ValueError) as error:
        named = "…" if "secret" in name or "password" in name else repr(value)
        raise SettingsError(f"{origin}: {named} can't be used: {error}") from None


def _from_text(kind: object, text: str) -> object:
    plain = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    if get_origin(plain) is tuple:
        return [part.strip() for part in text.split(",") if part.strip()]
    if plain is float and text[-1:].isalpha():
        return seconds(text)
    if plain is int and (found := re.fullmatch(r"(\d+) ?(KiB|MiB|GiB)", text)):
        return int(found[1]) * _SIZES[found[2]]
    return text


def _check(settings: Settings) -> None:
    scheme = urlsplit(settings.redis_url).scheme if settings.redis_url else "redis"
    if scheme in ("redis+cluster", "redis+sentinel"):
        raise SettingsError(f"PUSHSSE_REDIS_URL: {scheme}:// isn't supported yet, use redis:// or rediss://")
    if scheme not in ("redis", "rediss"):
        raise SettingsError(f"PUSHSSE_REDIS_URL: {scheme!r} is neither redis:// nor rediss://")
    database = urlsplit(settings.database_url).scheme
    if database not in ("sqlite", "postgres", "postgresql", "asyncpg"):
        raise SettingsError(f"PUSHSSE_DATABASE_URL: {database!r} is neither sqlite:// nor postgres://")
    if settings.workers > 1 and not settings.redis_url:
        raise SettingsError(f"PUSHSSE_WORKERS: {settings.workers} workers need PUSHSSE_REDIS_URL")
    if settings.kafka_start not in ("latest", "earliest"):
        try:
            seconds(settings.kafka_start)
        except ValueError as error:
            raise SettingsError(f"PUSHSSE_KAFKA_START: {error}, latest or earliest") from None
    if settings.dlq_topic == settings.kafka_topic:
        raise SettingsError(
            f"PUSHSSE_KAFKA_DLQ_TOPIC: {settings.dlq_topic!r} is the topic of the events itself"
        )
    answerer = settings.answerer.partition(":")[0]
    if answerer not in ("faq", "kafka"):
        raise SettingsError(f"PUSHSSE_ANSWERER: {settings.answerer!r} is neither faq:FILE nor kafka:")
    if answerer == "kafka" and not settings.kafka_bootstrap:
        raise SettingsError("PUSHSSE_ANSWERER: kafka: needs PUSHSSE_KAFKA_BOOTSTRAP")
    if settings.development and settings.host not in ("127.0.0.1", "localhost", "::1"):
        raise SettingsError(
            f"PUSHSSE_HOST: {settings.host!r} isn't a loopback address, and without PUSHSSE_JWT_SECRET"
            " pushsse serves those alone (development identity)"
        )
