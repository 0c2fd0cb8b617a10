"""All settings: their types, bounds, defaults and help texts, and what follows from them.

`Settings` is the table of them. Ahead of it are the tables of the settings file of which there may be
several: what each holds, and on which lines it stands, so that an error names the table, the key and the
line.
"""

import re
import socket
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import msgspec
from msgspec import Meta, Struct

from pushsse.errors import SettingsError

# The key under which a table read from a file has the lines of its other keys.
LINES = "\x00lines"
_TABLE = re.compile(r"\s*\[(\[?[^\[\]]+\]?)\]\s*(?:#.*)?$")
_KEY = re.compile(r"\s*[\"']?([A-Za-z0-9_-]+)[\"']?\s*[=.]")
PREFIX = "PUSHSSE_"
Option = str | int | float | bool
DLQ_SUFFIX = ".dlq"
NO_ANSWERER = "none:"
_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


class KafkaMap(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """JMESPath expressions over a record: what each says is that member of the event. "" leaves it out."""

    when: str = ""
    type: str = ""
    message: str = ""
    desc: str = ""
    to: str = ""
    id: str = ""
    ts: str = ""
    ttl_s: str = ""
    campaign: str = ""
    collapse: str = ""
    withdraw: str = ""


class Table(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file of which there may be several, and where it stands."""

    # What an error names: the table, and the line of each of its keys.
    where: str = ""
    lines: dict[str, int] = {}

    def at(self, key: str) -> str:
        """How an error names one of its keys: the table, the key and, where it came from a file, the line."""
        return f"{self.where}: {key}{_line(self.lines, key)}"


class KafkaSource(Table, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One table `[[kafka]]`: topics that are read, and how their records become events."""

    topics: Annotated[tuple[str, ...], Meta(min_length=1)]
    format: str = "pushsse"
    start: str = ""
    name: str = ""
    map: KafkaMap | None = None

    @property
    def label(self) -> str:
        """How metrics name it."""
        return self.name or ",".join(self.topics)

    @property
    def kind(self) -> str:
        """The format without what follows its colon."""
        return self.format.partition(":")[0]


class OutboxSource(Table, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One table `[[outbox]]`: a table of PostgreSQL whose rows become events."""

    table: str = "pushsse_outbox"
    database_url: str = ""
    keep: Literal["delete", "mark"] = "delete"
    batch: Annotated[int, Meta(ge=1, le=2_000)] = 500
    poll_s: Annotated[float, Meta(ge=0.05, le=60)] = 1.0


class TypeTable(Table, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One table `[[types]]`: a type of the catalogue, which checks what is in it (`preferences`)."""

    name: str
    title: str | dict[str, str] = ""
    description: str | dict[str, str] = ""
    category: str = ""
    default: bool = True
    mandatory: bool = False
    order: int = 0
    urgent: bool = False
    hidden: bool = False


# Settings that are tables of the file, and what a table holds.
TABLES: Mapping[str, type[Struct]] = {"kafka": KafkaSource, "outbox": OutboxSource, "types": TypeTable}


def describe(text: str, ge: float | None = None, le: float | None = None) -> Meta:
    """The help text of a setting, and its bounds."""
    return Meta(description=text, ge=ge, le=le)


class AnswererSetting(NamedTuple):
    """One answerer: how errors name it, its URL, and what its table in the file says beside."""

    where: str
    url: str
    options: Mapping[str, Option]

    @property
    def kind(self) -> str:
        """The scheme of the URL."""
        return self.url.partition(":")[0]


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that can be set. With nothing set the whole service runs in one process."""

    host: Annotated[str, describe("address to listen on")] = "127.0.0.1"
    port: Annotated[int, describe("port to listen on; 0 takes a free one", ge=0, le=65535)] = 8000
    internal_listen: Annotated[
        str, describe("HOST:PORT for /metrics, /readyz and administrators' calls, which are then there alone")
    ] = ""
    workers: Annotated[
        int, describe("worker processes that share the port; more than one needs Redis", ge=1)
    ] = 1
    node: Annotated[str, describe("this node's name; default: host name and a random word")] = ""
    log_level: Annotated[Literal["debug", "info", "warning", "error"], describe("how much is logged")] = (
        "info"
    )
    log_format: Annotated[
        Literal["console", "json"], describe("lines for people, or one JSON object a line")
    ] = "console"

    auth: Annotated[Literal["auto", "none"], describe("none: development identity, loopback only")] = "auto"
    lan: Annotated[
        Literal["off", "on"],
        describe("on: for the local network, with a key made for this run, and a code that a phone reads"),
    ] = "off"
    jwt_secret: Annotated[str, describe("key for HS256/384/512 tokens, 32 bytes or more")] = ""
    jwt_secret_old: Annotated[
        str, describe("the key before jwt_secret: its tokens are still good, new ones aren't made with it")
    ] = ""
    jwks_url: Annotated[
        str, describe("URL of the public keys of tokens; needs jwt_audience and jwt_issuer")
    ] = ""
    jwt_audience: Annotated[
        tuple[str, ...], describe("aud of this service's tokens, comma-separated: one of them is required")
    ] = ()
    jwt_issuer: Annotated[
        tuple[str, ...], describe("iss of this service's tokens, comma-separated: one of them is required")
    ] = ()
    auth_url: Annotated[
        str, describe("URL of the company's own sessions, asked with a request's Cookie who that is")
    ] = ""
    login_url: Annotated[
        str,
        describe("where the page sends who isn't signed in; {page} in it is the page, to come back to"),
    ] = ""
    auth_cookie: Annotated[str, describe("cookie that may carry the token")] = "__Host-pushsse"
    auth_user_claim: Annotated[str, describe("claim that names the user")] = "sub"
    token_leeway_s: Annotated[
        float, describe("seconds that a token's iat and nbf may lie in the future", ge=0, le=60)
    ] = 30.0
    token_max_s: Annotated[
        float, describe("seconds for which a token may be valid; one for longer is refused", ge=60)
    ] = 86_400.0
    allowed_origins: Annotated[
        tuple[str, ...], describe("browser origins of other sites that may call, comma-separated")
    ] = ()

    database_url: Annotated[str, describe("sqlite://FILE or postgres://…")] = "sqlite://pushsse.db"
    outbox: Annotated[
        tuple[OutboxSource, ...],
        describe("tables of PostgreSQL that applications write events into, comma-separated, or [[outbox]]"),
    ] = ()
    redis_url: Annotated[str, describe("redis:// or rediss://; without it one process, in memory")] = ""
    redis_prefix: Annotated[str, describe("how the names of all keys begin")] = "pushsse:"

    kafka_bootstrap: Annotated[str, describe("host:port,…; without it POST /v1/events is the intake")] = ""
    kafka_topic: Annotated[str, describe("topic of the events")] = "push.events"
    kafka_group: Annotated[str, describe("consumer group of all nodes")] = "pushsse"
    kafka_dlq_topic: Annotated[str, describe("dead-letter topic; default: the topic and .dlq")] = ""
    kafka_dlq_refused: Annotated[
        Literal["skip", "hold"],
        describe("what becomes of a record that the dead-letter topic takes in no form: skip logs its place"),
    ] = "skip"
    kafka_start: Annotated[
        str, describe("where a topic's first start begins: latest, earliest, or an age such as 10m")
    ] = "10m"
    kafka: Annotated[
        tuple[KafkaSource, ...],
        describe("further topics and how they are read: tables [[kafka]] of the file, or a JSON list"),
    ] = ()
    outcomes: Annotated[
        Literal["off", "on", "sampled"],
        describe("whether what became of events goes to a topic; needs Kafka"),
    ] = "off"
    outcomes_topic: Annotated[str, describe("topic of what became of events")] = "push.outcomes"
    outcomes_share: Annotated[
        float,
        describe("share of the events, chosen by their ids, where outcomes are sampled", ge=0.0001, le=1),
    ] = 0.01
    kafka_session_timeout_s: Annotated[
        float, describe("seconds after which Kafka gives a dead node's partitions to others", ge=1, le=300)
    ] = 6.0
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
    types: Annotated[
        tuple[TypeTable, ...],
        describe("types of the catalogue: tables [[types]] of the file, or a JSON list"),
    ] = ()

    heartbeat_s: Annotated[float, describe("seconds of silence before a ping", ge=0.2)] = 15.0
    send_timeout_s: Annotated[
        float, describe("seconds that a reader may make no progress before it is cut", ge=0.2)
    ] = 5.0
    backlog_bytes: Annotated[
        int, describe("bytes waiting for one reader before it counts as behind", ge=1024)
    ] = 64 * 1024
    head_bytes: Annotated[int, describe("bytes that a request's head may have", ge=1024)] = 32 * 1024
    head_fields: Annotated[int, describe("header fields that a request may have", ge=10)] = 100
    head_timeout_s: Annotated[float, describe("seconds in which a request's head has to arrive", ge=0.2)] = (
        10.0
    )
    body_timeout_s: Annotated[
        float,
        describe("seconds in which a request's body has to arrive; one more for each 32 KiB of it", ge=0.2),
    ] = 10.0
    keep_alive_s: Annotated[
        int, describe("seconds that a connection may be idle between two requests", ge=1)
    ] = 75
    stream_lifetime_s: Annotated[
        float, describe("seconds a stream may live, less up to a fifth at random; 0: no limit", ge=0)
    ] = 3600.0
    max_streams: Annotated[
        int, describe("streams and replies of one process before it says overloaded; 0: no limit", ge=0)
    ] = 0
    max_streams_per_user: Annotated[
        int, describe("streams of one person in one process; the oldest gives way; 0: no limit", ge=0)
    ] = 20
    max_replies_per_user: Annotated[
        int, describe("answers that one person follows in replies of one process; 0: no limit", ge=0)
    ] = 20
    max_connections_per_address: Annotated[
        int, describe("connections of one address to one process; 0, as behind a proxy: no limit", ge=0)
    ] = 0
    accepts_per_second: Annotated[
        float, describe("connections that one process accepts in a second; 0: no limit", ge=0)
    ] = 0.0
    questions_per_minute: Annotated[
        int, describe("questions that a person may ask in a minute, at all nodes; 0: no limit", ge=0)
    ] = 20
    feedback_per_minute: Annotated[
        int, describe("ratings of answers by one person in a minute, at all nodes; 0: no limit", ge=0)
    ] = 60
    switches_per_minute: Annotated[
        int, describe("changes of switches by one person in a minute, at all nodes; 0: no limit", ge=0)
    ] = 60
    tickets_per_minute: Annotated[
        int, describe("tickets made for one person in a minute, at all nodes; 0: no limit", ge=0)
    ] = 60
    acks_per_minute: Annotated[
        int, describe("acks by one person in a minute, at all nodes; 0: no limit", ge=0)
    ] = 60
    log_bytes_per_minute: Annotated[
        int,
        describe(
            "bytes that a person may add to the log in a minute, at all nodes, with questions, their answers,"
            " acks and switches; 0: no limit",
            ge=0,
        ),
    ] = 256 * 1024
    questions_keep_days: Annotated[
        int, describe("days that questions and their answers are kept; 0: for ever", ge=0, le=36_500)
    ] = 180
    seen_keep_days: Annotated[
        int, describe("days that it is kept when a person was last there; 0: it isn't", ge=0, le=36_500)
    ] = 30
    drain_delay_s: Annotated[
        float,
        describe(
            "seconds between SIGTERM and the first ended stream, all still working; 0 in development", ge=0
        ),
    ] = 2.0
    drain_window_s: Annotated[
        float, describe("seconds over which streams are ended; 0.5 in development", ge=0)
    ] = 10.0

    answerer: Annotated[
        str | tuple[dict[str, Option], ...],
        describe(
            "who answers: faq:FILE, kafka:, openai:BASE_URL?model=NAME, python:PACKAGE:FUNCTION or none:"
        ),
    ] = "faq:"
    openai_key: Annotated[str, describe("key for openai:, sent as a bearer token")] = ""
    questions_topic: Annotated[str, describe("Kafka topic of the questions, for kafka:")] = "push.questions"
    answers_topic: Annotated[str, describe("Kafka topic of the answers, for kafka:")] = "push.answers"
    answer_timeout_s: Annotated[
        float, describe("seconds in which an answer has to begin, or its question expires", ge=1)
    ] = 300.0
    answer_stall_s: Annotated[
        float, describe("seconds in which an answer that has begun has to grow, or it is ended", ge=1)
    ] = 60.0
    answer_longest_s: Annotated[
        float, describe("seconds that an answer may grow for, however steadily; not one of kafka:", ge=1)
    ] = 3600.0
    handover_keep_s: Annotated[
        float,
        describe("seconds for which people keep a conversation that is handed over; 0: none is", ge=0),
    ] = 259_200.0
    handover_unsure: Annotated[
        Literal["off", "on"], describe("on: people answer what no answerer is sure of")
    ] = "off"

    @property
    def answerers(self) -> "tuple[AnswererSetting, ...]":
        """Who answers, in the order in which they are asked; empty for nobody."""
        if self.answerer == NO_ANSWERER:
            return ()
        if isinstance(self.answerer, str):
            return (AnswererSetting("PUSHSSE_ANSWERER", self.answerer, {}),)
        return tuple(
            AnswererSetting(f"answerer {number}", str(table.get("url", "")), _without_url(table))
            for number, table in enumerate(self.answerer, 1)
        )

    @property
    def people_answer_all(self) -> bool:
        """Whether people answer what no answerer is sure of, which is all where there is none."""
        return self.handover_unsure == "on" and self.handover_keep_s > 0

    @property
    def asks_kafka(self) -> bool:
        """Whether questions go to a topic."""
        return any(each.kind == "kafka" for each in self.answerers)

    @property
    def development(self) -> bool:
        """Whether `?user=` says who is asking."""
        return self.auth == "none" or not (self.jwt_secret or self.jwks_url or self.auth_url)

    @property
    def internal(self) -> "Settings | None":
        """These settings with the host and port of the internal address in place of the public one.

        None if there is no such address. Raises ValueError if it isn't HOST:PORT.
        """
        if not self.internal_listen:
            return None
        host, _, port = self.internal_listen.rpartition(":")
        if not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
            raise ValueError(f"{self.internal_listen!r} isn't HOST:PORT, such as 127.0.0.1:9000")
        return msgspec.structs.replace(self, host=host.strip("[]"), port=int(port))

    @property
    def is_sqlite(self) -> bool:
        """Whether the database is a file of this machine, and not a server."""
        return self.database_url.partition(":")[0].lower() == "sqlite"

    @property
    def group(self) -> str:
        """The consumer group; one of its own for a node without Redis, whose records reach nobody else."""
        if self.redis_url or self.kafka_group != FIELDS["kafka_group"].default:
            return self.kafka_group
        installation = f"{socket.gethostname()} {self.database_url} {Path.cwd()} {self.port}"
        return f"{self.kafka_group}-{sha256(installation.encode()).hexdigest()[:8]}"

    @property
    def dlq_topic(self) -> str:
        """The topic for records that can't be used."""
        return self.dlq_topic_of(self.kafka_topic)

    def dlq_topic_of(self, topic: str) -> str:
        """The topic for those records of a topic that can't be used."""
        return self.kafka_dlq_topic or f"{topic}{DLQ_SUFFIX}"

    @property
    def own_topics(self) -> frozenset[str]:
        """The topics of questions, answers and outcomes, which hold no events."""
        return frozenset(
            (self.questions_topic, self.answers_topic, self.answers_dlq_topic, self.outcomes_topic)
        )

    @property
    def answers_dlq_topic(self) -> str:
        """The topic for answers that can't be used."""
        return f"{self.answers_topic}{DLQ_SUFFIX}"


FIELDS = {f.name: f for f in msgspec.structs.fields(Settings)}


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return PREFIX + name.upper()


def seconds(text: str) -> float:
    """An age such as 30m, 1.5h or 90 (seconds). Raises ValueError."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)?", text.strip())
    if found is None:
        raise ValueError(f"{text!r} isn't an age such as 30m, 1.5h or 90")
    return float(found[1]) * _UNITS[found[2] or "s"]


def as_tables(value: object) -> list[dict[str, object]]:
    """The tables of a setting, as TOML has them; none where it isn't that."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def lines_of(text: str, name: str) -> list[dict[str, int]]:
    """For each table `[[name]]` of a TOML file the lines of its keys, and of the table itself as ""."""
    found: list[dict[str, int]] = []
    within = ""
    for number, line in enumerate(text.split("\n"), 1):
        if (table := _TABLE.match(line)) is not None:
            within = re.sub(r"[\s\"']", "", table[1])
            if within == f"[{name}]":
                found.append({"": number})
            elif found and within.startswith(f"{name}."):
                found[-1].setdefault(within.removeprefix(f"{name}."), number)
        elif found and (key := _KEY.match(line)) is not None and within.strip("[]").split(".")[0] == name:
            prefix = ".".join([*within.strip("[]").split(".")[1:], ""])
            found[-1].setdefault(f"{prefix}{key[1]}", number)
    return found


def listed(name: str, text: str) -> object:
    """Tables as a variable or an option has them. Raises ValueError."""
    if name == "outbox" and not text.lstrip().startswith("["):
        return [{"table": each.strip()} for each in text.split(",") if each.strip()]
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise ValueError(f"it isn't a JSON list of tables: {error}") from None


def tables(name: str, source: str, value: object) -> tuple[Struct, ...]:
    """The tables of a setting, each knowing where it stands. Raises SettingsError that names the key."""
    if not isinstance(value, list | tuple) or not all(isinstance(each, dict) for each in value):
        raise ValueError(f"it isn't a list of tables [[{name}]]")
    made: list[Struct] = []
    for number, table in enumerate(value, 1):
        where = source.replace(name, f"{name} {number}", 1)
        if not source.startswith(f"{name} in "):
            where = f"{name} {number} of {source}"
        lines = table.get(LINES, {})
        said = {key: value for key, value in table.items() if key != LINES}
        try:
            for key in ("where", "lines"):
                if key in said:
                    raise msgspec.ValidationError(f"Object contains unknown field `{key}`")
            made.append(msgspec.convert({**said, "where": where, "lines": lines}, TABLES[name]))
        except msgspec.ValidationError as error:
            raise SettingsError(_table_error(where, lines, error)) from None
    return tuple(made)


def _table_error(where: str, lines: object, error: msgspec.ValidationError) -> str:
    text, _, at = str(error).partition(" - at `$")
    key = at.rstrip("`").lstrip(".")
    if found := re.search(r"field `(\w+)`", text):
        key = f"{key}.{found[1]}".lstrip(".")
    text = f"{text[:1].lower()}{text[1:]}".replace("object ", "table ", 1).replace("`object`", "a table", 1)
    return f"{where}: {key}{_line(lines, key.partition('[')[0])}: {text}"


def _line(lines: object, key: str) -> str:
    """Where a key of a table stands; where what holds it stands, if nobody knows better."""
    known = lines if isinstance(lines, dict) else {}
    line = known.get(key) or known.get(key.partition(".")[0]) or known.get("")
    return f" (line {line})" if line else ""


def _without_url(table: Mapping[str, Option]) -> dict[str, Option]:
    return {name: value for name, value in table.items() if name != "url"}
