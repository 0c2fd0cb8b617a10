"""How a node's parts are made out of Settings: which backplane, which intake, which answerer, who is asking.

Called by `node` alone. Siblings don't know each other; here is where one is handed to another, as a callable.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pushsse.api.identity import DevelopmentIdentifier, Identifier, TokenIdentifier
from pushsse.backplane import Backplane
from pushsse.backplane.memory import MemoryBackplane
from pushsse.backplane.memory.writer import LogWriter
from pushsse.backplane.redis import RedisBackplane
from pushsse.dispatcher import Dispatcher
from pushsse.hub.opening import StreamLimits
from pushsse.intake.http import EmbeddedIntake, Intake, KafkaProducerIntake
from pushsse.intake.kafka import KafkaIntake
from pushsse.intake.record import PushsseFormat
from pushsse.kafka.client import Connection, Record, connection
from pushsse.kafka.dead_letters import DeadLetters, Refused
from pushsse.kafka.producer import Outgoing, Producer, RecordRefused
from pushsse.metrics import Metrics
from pushsse.questions.answerers import Answerer, faq
from pushsse.questions.answerers.kafka import KafkaAnswerer
from pushsse.settings import Settings, seconds


def backplane(settings: Settings, metrics: Metrics) -> MemoryBackplane | RedisBackplane:
    """Redis where it is configured, else memory."""
    if not settings.redis_url:
        file = _log_file(settings.database_url)
        return MemoryBackplane(
            shards=settings.shards,
            keep_s=settings.log_keep_s,
            keep_bytes=settings.log_keep_bytes,
            metrics=metrics,
            writer=LogWriter(file, shards=settings.shards) if file is not None else None,
        )
    return RedisBackplane(
        settings.redis_url,
        prefix=settings.redis_prefix,
        node=settings.node,
        shards=settings.shards,
        keep_s=settings.log_keep_s,
        keep_bytes=settings.log_keep_bytes,
        metrics=metrics,
    )


def _log_file(database_url: str) -> Path | None:
    """Where the embedded log is kept: beside SQLite's file; without one, nowhere."""
    scheme, _, rest = database_url.partition("://")
    name = rest.partition("?")[0]
    return Path(f"{name}-log") if scheme == "sqlite" and name and name != ":memory:" else None


def limits(settings: Settings) -> StreamLimits:
    """What streams are told and allowed."""
    return StreamLimits(
        node=settings.node,
        heartbeat_s=settings.heartbeat_s,
        window_s=settings.log_keep_s,
        send_timeout_s=settings.send_timeout_s,
        lifetime_s=settings.stream_lifetime_s,
    )


def identifier(settings: Settings) -> Identifier:
    """Tokens where there is a key, else the development identity."""
    if settings.development:
        return DevelopmentIdentifier(settings.allowed_origins)
    return TokenIdentifier(
        secret=settings.jwt_secret,
        cookie=settings.auth_cookie,
        user_claim=settings.auth_user_claim,
        leeway_s=settings.token_leeway_s,
    )


@dataclass(frozen=True, slots=True)
class Intakes:
    """The way in: what POST /v1/events hands its events to, what has to be closed, what runs for ever."""

    accepting: Intake
    producers: Sequence[Producer] = ()
    consumer: KafkaIntake | None = None


def intakes(
    settings: Settings,
    backplane: Backplane,
    *,
    dispatcher: Dispatcher,
    admits: Callable[[str], bool],
    metrics: Metrics,
) -> Intakes:
    """Kafka where it is configured, else HTTP straight into the dispatcher."""
    if not settings.kafka_bootstrap:
        return Intakes(EmbeddedIntake(dispatcher))
    reached = connection(settings)
    producer = Producer(reached)
    consumer = KafkaIntake(
        reached,
        topic=settings.kafka_topic,
        group=settings.group,
        dlq_topic=settings.dlq_topic,
        start=settings.kafka_start,
        decode=PushsseFormat(metrics=metrics, max_age_s=settings.event_max_age_s, admits=admits),
        dispatch=dispatcher.dispatch,
        fences=backplane,
        metrics=metrics,
        skip_refused=settings.kafka_dlq_refused == "skip",
    )
    return Intakes(KafkaProducerIntake(producer, topic=settings.kafka_topic), (producer,), consumer)


@dataclass(frozen=True, slots=True)
class Answering:
    """Who answers, and the producers that have to be closed."""

    answerer: Answerer
    producers: Sequence[Producer] = ()


def answering(settings: Settings, metrics: Metrics) -> Answering:
    """The answerer that the setting names. Raises SettingsError."""
    kind, _, rest = settings.answerer.partition(":")
    if kind == "faq":
        return Answering(faq.load(rest))
    reached = connection(settings)
    questions, letters = Producer(reached), Producer(reached)
    return Answering(_kafka_answerer(settings, reached, questions, letters, metrics), (questions, letters))


def _kafka_answerer(
    settings: Settings, reached: Connection, questions: Producer, letters: Producer, metrics: Metrics
) -> KafkaAnswerer:
    async def send(key: bytes, value: bytes) -> None:
        await questions.send(settings.questions_topic, [Outgoing(key, value)])

    dead_letters = DeadLetters(
        letters,
        topic=f"{settings.answers_topic}.dlq",
        skip_refused=settings.kafka_dlq_refused == "skip",
        metrics=metrics,
    )

    async def bury(unusable: Sequence[tuple[Record, str]]) -> None:
        if held := await dead_letters.write([Refused(record, "$", error) for record, error in unusable]):
            raise RecordRefused(f"{dead_letters.topic} takes {len(held)} records in no form")

    return KafkaAnswerer(
        send=send,
        consumer=lambda: reached.consumer(f"{settings.group}.answers"),
        topic=settings.answers_topic,
        letters=bury,
        metrics=metrics,
        start_age_s=max(settings.answer_timeout_s, seconds("10m")),
    )
