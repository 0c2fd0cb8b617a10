"""The sources that the settings name: topics, their format, and counts of what became of their records.

Made by `build`; `Sources` is the `Decode` of the one consumer of events. PUSHSSE_KAFKA_TOPIC in format
`pushsse` is the first source, and each table [[kafka]] another one. Deliberate: the module of a format is
imported only where it is configured.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module

from pushsse.backplane import Draft
from pushsse.errors import SettingsError
from pushsse.event import Publication
from pushsse.intake import Decode, Drafter, HeadersFormat, Made, PushsseFormat
from pushsse.kafka import Record, TopicGroup, Topics
from pushsse.metrics import Metrics, SourceCounts
from pushsse.settings import KafkaSource, Settings


@dataclass(frozen=True, slots=True)
class Source:
    """Topics that are read alike."""

    name: str
    decode: Decode
    counts: SourceCounts


@dataclass(frozen=True, slots=True)
class Sources:
    """A format for each topic; counts what becomes of the records. `now_ms` is the log's clock."""

    topics: Topics
    sources: Sequence[Source]
    now_ms: Callable[[], int]
    _by_topic: dict[str, Source] = field(default_factory=dict, init=False)

    def __call__(self, record: Record, owner: str) -> Made | None:
        """As the format of the record's topic has it."""
        source = self._by_topic.get(record.topic) or self.of(record.topic)
        try:
            made = source.decode(record, owner)
        except Exception:
            source.counts.dead += 1
            raise
        if made is None:
            source.counts.skipped += 1
            return None
        last = _last(made) if isinstance(made, list) else made.publication
        # The log drops what has expired, by the same clock.
        if last.expires_ms <= self.now_ms():
            source.counts.expired += 1
        else:
            source.counts.mapped += 1
        return made

    def of(self, topic: str) -> Source:
        """The source of a topic that is read."""
        place = self.topics.group_of(topic)
        assert place is not None, topic
        self._by_topic[topic] = self.sources[place]
        return self.sources[place]


def _last(drafts: Sequence[Draft]) -> Publication:
    """The one that expires last."""
    return max((each.publication for each in drafts), key=lambda publication: publication.expires_ms)


def topics(settings: Settings) -> Topics:
    """All topics of events."""
    tables = [TopicGroup(each.topics, each.start or settings.kafka_start) for each in settings.kafka]
    return Topics(
        (TopicGroup((settings.kafka_topic,), settings.kafka_start), *tables),
        settings.kafka_dlq_topic,
        settings.own_topics,
    )


def sources(settings: Settings, *, metrics: Metrics, drafter: Drafter, now_ms: Callable[[], int]) -> Sources:
    """Raises SettingsError for a table whose format can't be made; it names the table and the key."""
    made = [Source(settings.kafka_topic, PushsseFormat(metrics=metrics, drafter=drafter), SourceCounts())]
    made += [
        Source(each.label, format_of(each, metrics=metrics, drafter=drafter), SourceCounts())
        for each in settings.kafka
    ]
    metrics.sources = {each.name: each.counts for each in made}
    return Sources(topics(settings), made, now_ms)


def format_of(table: KafkaSource, *, metrics: Metrics, drafter: Drafter) -> Decode:
    """The format of a table. Raises SettingsError."""
    if table.map is not None and table.kind not in _WITH_MAP:
        raise SettingsError(f"{table.at('map')}: format {table.format!r} has no map")
    made: Decode
    if table.kind == "mapped":
        mapped = import_module("pushsse.intake.mapped")
        made = mapped.MappedFormat(mapped.compiled(table), drafter)
        return made
    if table.kind == "python":
        name = table.format.partition(":")[2]
        made = import_module("pushsse.intake.python").python_format(name, table.at("format"), drafter)
        return made
    if table.kind == "cloudevents":
        mapping = None
        if table.map is not None:
            # Whatever it doesn't say, the attributes do.
            mapping = import_module("pushsse.intake.mapped").compiled(table, required=())
        made = import_module("pushsse.intake.cloudevents").CloudEventsFormat(drafter, mapping)
        return made
    if table.kind == "headers":
        return HeadersFormat(metrics=metrics, drafter=drafter)
    return PushsseFormat(metrics=metrics, drafter=drafter)


_WITH_MAP = frozenset({"mapped", "cloudevents"})
