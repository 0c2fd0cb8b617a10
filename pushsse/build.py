"""Builds a node out of Settings: which backplane, which intake, which answerer, who is asking.

Called by the command line and by `create_app`. Siblings don't import each other; here each part is handed the
parts that it needs. Nothing is opened or started here: `Node.running` does that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from pushsse.api.access import LIVES_S, Tickets
from pushsse.api.events import EmbeddedIntake, Intake, KafkaProducerIntake
from pushsse.api.identity import Credential, Credentials, DevelopmentIdentifier, Identifier
from pushsse.api.identity.remote import SESSIONS_AT_ONCE, KeyServer, Remote, Sessions
from pushsse.api.identity.tokens import CookieToken, HeaderToken, TokenRules, Tokens
from pushsse.api.replies import Replies
from pushsse.backplane import ENDED_MS, Backplane
from pushsse.backplane.limits import LogAllowance
from pushsse.backplane.memory import MemoryBackplane
from pushsse.backplane.memory.writer import LogWriter
from pushsse.backplane.redis import RedisBackplane
from pushsse.database import TIMEOUT_S, Database
from pushsse.dispatcher import Dispatcher
from pushsse.errors import SettingsError
from pushsse.explain import Explaining, OutcomeTopic
from pushsse.hub import assemble_hub
from pushsse.hub.hub import Hub
from pushsse.hub.opening import StreamLimits
from pushsse.intake import AllTypes, Drafter, EventHandler, Made, sources_of, topics_of
from pushsse.intake.outbox import Outbox
from pushsse.kafka import configurations, connection, existing_topics
from pushsse.kafka.consumer import Consumer, Handler
from pushsse.kafka.producer import Producer
from pushsse.kicks import Kicked, Kicks, KickTable
from pushsse.metrics import Metrics
from pushsse.node import Interruptible, Node, Service, Work
from pushsse.outcomes import OUTCOME_BATCH_BYTES, Outcomes
from pushsse.overview import Overview
from pushsse.people import StateTable, StoredPeople
from pushsse.preferences import Preferences
from pushsse.preferences.catalogue import Catalogue, CatalogueStore, declared
from pushsse.preferences.history import History
from pushsse.preferences.store import PreferenceStore
from pushsse.presence import Offline, Presence, SeenTable
from pushsse.questions.answerers import Answerer, configured
from pushsse.questions.life import QuestionPace
from pushsse.questions.rows import QuestionDeletion
from pushsse.questions.service import Questions, assemble_questions
from pushsse.questions.store import QuestionStore
from pushsse.retention import Forgetting, Retention
from pushsse.settings import OutboxSource, Settings, variable
from pushsse.witness import Witness, WitnessTable
from pushsse.workers.worker import Worker


def build(settings: Settings, *, worker: Worker | None = None, database_timeout_s: float = TIMEOUT_S) -> Node:
    """One node, whose parts know each other. Raises SettingsError.

    `database_timeout_s` is how long it waits for an answer of the database.
    """
    metrics = Metrics()
    backplane = _backplane(settings, metrics)
    database = Database(settings.database_url, timeout_s=database_timeout_s)
    store = PreferenceStore(database, now_ms=backplane.now_ms)
    catalogue_store = CatalogueStore(database, now_ms=backplane.now_ms)
    history = History(database, now_ms=backplane.now_ms, keep_s=settings.log_keep_s)
    catalogue = Catalogue(
        store,
        catalogue_store,
        new_types=settings.new_types,
        metrics=metrics,
        backplane=backplane,
        declared=declared(settings.types),
    )
    allowance = LogAllowance(backplane, quota=settings.log_bytes_per_minute, limited=metrics.limited)
    preferences = Preferences(store, backplane, allowance)
    outcomes = _outcomes(settings, backplane, metrics)
    noted = outcomes.outcomes if outcomes is not None else None
    dispatcher = Dispatcher(
        backplane=backplane,
        switches=store,
        types=catalogue,
        metrics=metrics,
        outcomes=noted,
    )
    answerer_parts = configured(settings, metrics)
    deletion = QuestionDeletion(database)
    questions = _questions(
        settings, QuestionStore(database), allowance, backplane, answerer_parts.answerer, metrics
    )
    people = StoredPeople(StateTable(database), preferences, questions)
    kicked = Kicked()
    hub_parts = assemble_hub(
        backplane,
        people,
        limits=_limits(settings),
        metrics=metrics,
        revocations=kicked,
        outcomes=noted,
        rules=catalogue,
    )
    catalogue.on_revision(lambda: hub_parts.refresh.switches(hub_parts.hub.people_before(catalogue.revision)))
    kicks = Kicks(
        KickTable(database),
        backplane,
        kicked=kicked,
        streams=hub_parts.hub,
        keep_s=settings.token_max_s + settings.token_leeway_s,
    )
    seen = SeenTable(database)
    presence = Presence(
        hub_parts.hub,
        backplane,
        seen,
        revocations=kicked,
        node=settings.node,
        keep_days=settings.seen_keep_days,
    )
    drafter = Drafter(types=catalogue, max_age_s=settings.event_max_age_s)
    intakes = _intakes(settings, backplane, dispatcher=dispatcher, drafter=drafter, metrics=metrics)
    outboxes = _outboxes(settings, backplane, dispatcher=dispatcher, drafter=drafter, metrics=metrics)
    work = Work(backplane, hub_parts.hub, Interruptible(questions.run), intakes.from_kafka, outboxes)
    identity = _identity(settings, kicked)
    forgetting = Forgetting(
        kicks,
        (store, deletion, seen),
        settings,
        partial(configurations, settings),
        partial(_topics_of_events, settings),
        backplane_s=LIVES_S + ENDED_MS / 1000,
    )
    explaining = Explaining(
        backplane,
        hub_parts.replay.scans,
        OutcomeTopic(connection(settings), settings.outcomes_topic) if outcomes is not None else None,
        history,
        window_s=settings.log_keep_s,
    )
    replies = Replies(
        per_user=settings.max_replies_per_user,
        most=settings.max_streams,
        streams=lambda: len(hub_parts.hub.subscribers),
        limited=metrics.limited,
    )
    producers = (
        *intakes.producers,
        *answerer_parts.producers,
        *([outcomes.producer] if outcomes is not None else []),
    )
    node = Node(
        settings=settings,
        metrics=metrics,
        identifier=identity.identifier,
        identity_services=identity.services,
        database=database,
        backplane=backplane,
        preference_store=store,
        catalogue=catalogue,
        catalogue_store=catalogue_store,
        drafter=drafter,
        people=people,
        preferences=preferences,
        allowance=allowance,
        hub_parts=hub_parts,
        kicked=kicked,
        kicks=kicks,
        forgetting=forgetting,
        retention=Retention(deletion, keep_days=settings.questions_keep_days, metrics=metrics),
        history=history,
        presence=presence,
        overview=Overview(backplane, catalogue_store, metrics, node=settings.node),
        explaining=explaining,
        outcome_services=outcomes.services(backplane, presence, store) if outcomes is not None else {},
        tickets=Tickets(backplane, kicked),
        questions=questions,
        replies=replies,
        accepting=intakes.accepting,
        work=work,
        producers=producers,
        witness=_witness(settings, database, work),
        worker=worker,
    )
    _measure(node)
    identity.measure(metrics)
    return node


def check(settings: Settings) -> None:
    """Raises SettingsError for what only a part can tell: a key, a URL, a question file, a certificate."""
    _identity(settings, Kicked())
    Database(settings.database_url)
    _backplane(settings, Metrics())
    configured(settings, Metrics())
    declared(settings.types)
    if settings.kafka_bootstrap:
        connection(settings)
        metrics = Metrics()
        drafter = Drafter(types=AllTypes(), max_age_s=settings.event_max_age_s)
        sources_of(settings, metrics=metrics, drafter=drafter, now_ms=int)
    for source in settings.outbox:
        _check_outbox(source)


def _backplane(settings: Settings, metrics: Metrics) -> Backplane:
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


def _questions(
    settings: Settings,
    store: QuestionStore,
    allowance: LogAllowance,
    backplane: Backplane,
    answerer: Answerer,
    metrics: Metrics,
) -> Questions:
    """Questions, answered by what the settings name."""
    return assemble_questions(
        store,
        backplane,
        answerer,
        node=settings.node,
        timeout_s=settings.answer_timeout_s,
        metrics=metrics,
        pace=QuestionPace(
            keep_s=settings.handover_keep_s,
            stall_s=settings.answer_stall_s,
            longest_s=settings.answer_longest_s,
        ),
        unsure_hands_over=settings.handover_unsure == "on",
        has_answerer=bool(settings.answerers) or settings.people_answer_all,
        allowance=allowance,
    )


def _limits(settings: Settings) -> StreamLimits:
    """What streams are told and allowed."""
    return StreamLimits(
        node=settings.node,
        heartbeat_s=settings.heartbeat_s,
        window_s=settings.log_keep_s,
        send_timeout_s=settings.send_timeout_s,
        lifetime_s=settings.stream_lifetime_s,
        most_per_user=settings.max_streams_per_user,
    )


@dataclass(frozen=True, slots=True)
class _IdentityParts:
    """Who says who is asking, and what runs for that for ever."""

    identifier: Identifier
    services: Mapping[str, Service] = field(default_factory=dict)
    key_server: KeyServer | None = None
    sessions: Sessions | None = None

    def measure(self, metrics: Metrics) -> None:
        """The gauges of other servers, where there are any."""
        if (keys := self.key_server) is not None:
            text = "Whether the keys of tokens could be fetched"
            metrics.gauge("keys_available", "least", text, lambda: keys.available)
        if (sessions := self.sessions) is not None:
            text = "Whether the server of sessions answered"
            metrics.gauge("sessions_available", "least", text, lambda: sessions.available)


def _identity(settings: Settings, kicked: Kicked) -> _IdentityParts:
    """Tokens where there is a key, else the development identity. Raises SettingsError."""
    if settings.development:
        return _IdentityParts(DevelopmentIdentifier(settings.allowed_origins))
    services: dict[str, Service] = {}
    key_server = KeyServer(Remote(settings.jwks_url, at_once=1)) if settings.jwks_url else None
    if key_server is not None:
        services["keys"] = key_server.run
    tokens = _tokens(settings, kicked, key_server)
    order: list[Credential] = [HeaderToken(tokens)]
    if settings.jwt_secret or key_server is not None:
        order.append(CookieToken(tokens, settings.auth_cookie, settings.allowed_origins))
    sessions = None
    if settings.auth_url:
        remote = Remote(settings.auth_url, at_once=SESSIONS_AT_ONCE)
        sessions = Sessions(remote, kicked, allowed_origins=settings.allowed_origins)
        order.append(sessions)
        services["sessions"] = sessions.run
    return _IdentityParts(Credentials(order), services, key_server, sessions)


def _tokens(settings: Settings, kicked: Kicked, key_server: KeyServer | None) -> Tokens:
    """What tokens are checked with."""
    secrets = {variable(name): getattr(settings, name) for name in ("jwt_secret", "jwt_secret_old")}
    rules = TokenRules(
        user_claim=settings.auth_user_claim,
        audiences=settings.jwt_audience,
        issuers=settings.jwt_issuer,
        leeway_s=settings.token_leeway_s,
        most_s=settings.token_max_s,
    )
    given = {name: secret for name, secret in secrets.items() if secret}
    return Tokens(given, rules, kicked, key_server=key_server)


@dataclass(frozen=True, slots=True)
class _Intakes:
    """The way in: what POST /v1/events hands its events to, what has to be closed, what runs for ever."""

    accepting: Intake
    producers: Sequence[Producer] = ()
    from_kafka: Interruptible | None = None


def _intakes(
    settings: Settings,
    backplane: Backplane,
    *,
    dispatcher: Dispatcher,
    drafter: Drafter,
    metrics: Metrics,
) -> _Intakes:
    """Kafka where it is configured, else HTTP straight into the dispatcher."""
    if not settings.kafka_bootstrap:
        waits = bool(settings.redis_url) or not settings.is_sqlite
        return _Intakes(EmbeddedIntake(dispatcher, waits=waits))
    kafka = connection(settings)
    producer = Producer(kafka)
    decode = sources_of(settings, metrics=metrics, drafter=drafter, now_ms=backplane.now_ms)
    consumer = Consumer(
        kafka,
        topics=decode.topics,
        group=settings.group,
        fences=backplane,
        metrics=metrics,
        skip_refused=settings.kafka_dlq_refused == "skip",
    )
    handler: Handler[Made] = EventHandler(decode, dispatcher)
    return _Intakes(
        KafkaProducerIntake(producer, topic=settings.kafka_topic),
        (producer,),
        Interruptible(lambda: consumer.run(handler)),
    )


def _outboxes(
    settings: Settings,
    backplane: Backplane,
    *,
    dispatcher: Dispatcher,
    drafter: Drafter,
    metrics: Metrics,
) -> Mapping[str, Interruptible]:
    """The outboxes that this node reads together with others, by the name of their service."""
    made: dict[str, Interruptible] = {}
    for number, source in enumerate(settings.outbox, 1):
        outbox = Outbox(
            source,
            source.database_url or settings.database_url,
            node=settings.node,
            drafter=drafter,
            dispatcher=dispatcher,
            fences=backplane,
            metrics=metrics,
        )
        made[f"outbox {number}"] = Interruptible(outbox.run)
    return made


def _check_outbox(source: OutboxSource) -> None:
    """Raises SettingsError for what only the database's client can tell of a URL."""
    if source.database_url:
        try:
            Database(source.database_url)
        except SettingsError as error:
            text = str(error).removeprefix("PUSHSSE_DATABASE_URL: ")
            raise SettingsError(f"{source.at('database_url')}: {text}") from None


@dataclass(frozen=True, slots=True)
class _OutcomeParts:
    """What notes and sends what became of events, where that is on."""

    outcomes: Outcomes
    producer: Producer
    node: str

    def services(
        self, backplane: Backplane, presence: Presence, switches: PreferenceStore
    ) -> Mapping[str, Service]:
        """What runs for that for ever."""
        offline = Offline(backplane, presence, switches, self.outcomes, node=self.node)
        return {"outcomes": self.outcomes.run, "offline": offline.run}


def _outcomes(settings: Settings, backplane: Backplane, metrics: Metrics) -> _OutcomeParts | None:
    if settings.outcomes == "off":
        return None
    producer = Producer(connection(settings), batch_bytes=OUTCOME_BATCH_BYTES)
    outcomes = Outcomes(
        producer,
        topic=settings.outcomes_topic,
        node=settings.node,
        now_ms=backplane.now_ms,
        share=settings.outcomes_share if settings.outcomes == "sampled" else 1.0,
    )
    metrics.counter("outcomes", "Records about what became of events", lambda: outcomes.sent)
    metrics.counter("outcomes_lost", "Such records that Kafka didn't get", lambda: outcomes.lost)
    return _OutcomeParts(outcomes, producer, settings.node)


async def _topics_of_events(settings: Settings) -> frozenset[str]:
    """Those that are there, also by a pattern. Raises OSError."""
    return topics_of(settings).among(await existing_topics(settings))


def _witness(settings: Settings, database: Database, work: Work) -> Witness | None:
    """Only where there may be other nodes, and a database to ask about them."""
    if not settings.redis_url or settings.is_sqlite:
        return None
    return Witness(WitnessTable(database, node=settings.node), work)


def _live(hub: Hub) -> int:
    """The streams that stand where the node stands."""
    return sum(len(shard.live) for shard in hub.shards.values())


def _measure(node: Node) -> None:
    """What is asked of a node at each scrape."""
    gauge, hub = node.metrics.gauge, node.hub
    node.metrics.counter("database_failures", "Statements that failed", lambda: node.database.failures)
    gauge("connections", "sum", "Open streams, and polls that wait", lambda: len(hub.subscribers))
    gauge("replies", "sum", "Answers that are followed in replies", lambda: node.replies.count)
    gauge(
        "streams_behind",
        "sum",
        "Streams that are served from the log",
        lambda: len(hub.subscribers) - _live(hub),
    )
    gauge("kicked", "max", "People whose kick this node remembers", lambda: node.kicked.size)
    gauge(
        "people", "sum", "People with a stream here", lambda: sum(len(s.people) for s in hub.shards.values())
    )
    gauge("hearings_waiting", "sum", "What was heard and not delivered", lambda: node.hub_parts.feed.waiting)
    gauge("backplane_available", "least", "Whether the backplane answers", lambda: node.backplane.available)
    gauge("types", "max", "Types in the catalogue, which holds 1,000", lambda: node.catalogue.size)
    gauge("isolated", "max", "Whether this node alone has lost Redis", lambda: node.isolated)
    gauge("database_available", "least", "Whether the database answers", lambda: node.database.available)
