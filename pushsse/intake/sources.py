"""The sources that the settings name: topics, their format, and counts of what became of their records.

Made by `build`; `Sources` is the `Decode` of the one consumer of events. PUSHSSE_KAFKA_TOPIC in format
`pushsse` is the first source, and each table [[kafka]] another one. Deliberate: `mapped` and `cloudevents`
are imported only where they are configured.

`PythonFormat` is the format `python:PACKAGE:FUNCTION`: a function of the operator's own gets the record and
returns an event as a dict, several in a list, or None to skip it; for Avro, Protobuf, or anything. What it
raises makes the record a dead letter. Guarantee 1 needs the same record to give the same events in the same
order: they are known by the record's place.
"""

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import msgspec

from pushsse import event
from pushsse.backplane import Draft
from pushsse.errors import InvalidInput, SettingsError, Violation
from pushsse.event import Event, Publication
from pushsse.functions import LoopWatch, function
from pushsse.intake import Decode, Drafter, HeadersFormat, Made, PushsseFormat, in_order
from pushsse.kafka import Record, TopicGroup, Topics
from pushsse.metrics import Metrics, SourceCounts
from pushsse.settings import KafkaSource, Settings

_WITH_MAP = frozenset({"mapped", "cloudevents"})
# Of one record: events, and people that they are for, all in all.
MAX_EVENTS = 100
MAX_PEOPLE = event.MAX_USERS
HELD_S = 0.02
Function = Callable[[Record], Any]


@dataclass(frozen=True, slots=True)
class TopicSource:
    """Topics that are read alike."""

    name: str
    decode: Decode
    counts: SourceCounts


@dataclass(frozen=True, slots=True)
class Sources:
    """A format for each topic; counts what becomes of the records. `now_ms` is the log's clock."""

    topics: Topics
    sources: Sequence[TopicSource]
    now_ms: Callable[[], int]
    _by_topic: dict[str, TopicSource] = field(default_factory=dict, init=False)

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

    def of(self, topic: str) -> TopicSource:
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
    made = [
        TopicSource(settings.kafka_topic, PushsseFormat(metrics=metrics, drafter=drafter), SourceCounts())
    ]
    made += [
        TopicSource(each.label, format_of(each, metrics=metrics, drafter=drafter), SourceCounts())
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
        return python_format(table.format.partition(":")[2], table.at("format"), drafter)
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


@dataclass(frozen=True, slots=True)
class PythonFormat:
    """Asks a function for each record."""

    function: Function
    drafter: Drafter
    watch: LoopWatch

    def __call__(self, record: Record, owner: str) -> Made | None:
        began = time.perf_counter()
        try:
            returned = self.function(record)
        except InvalidInput:
            raise
        except Exception as error:
            # Whatever a function of somebody else's raises says that it can't use the record.
            text = f"{type(error).__name__}: {error}".removesuffix(": ")
            raise InvalidInput(
                Violation("python", f"the function {self.watch.name} raised {text}")
            ) from error
        finally:
            self.watch.ran(time.perf_counter() - began)
        if returned is None:
            return None
        if isinstance(returned, list | tuple):
            return self._several(returned, record, owner)
        return self.drafter.of_record(self._event(returned, "python"), record, owner)

    def _several(self, returned: list[Any] | tuple[Any, ...], record: Record, owner: str) -> Made | None:
        if len(returned) > MAX_EVENTS:
            text = f"{self._said} {len(returned)} events for one record, over {MAX_EVENTS}"
            raise InvalidInput(Violation("python", text))
        made = [self._event(each, f"python[{place}]") for place, each in enumerate(returned)]
        people = sum(len(each.users or ()) for each in made)
        if len(made) > 1 and people > MAX_PEOPLE:
            text = f"{self._said} events for {people} people for one record, over {MAX_PEOPLE}"
            raise InvalidInput(Violation("python", text))
        drafts: list[Draft] = []
        for number, each in enumerate(made, 1):
            named = each
            if not each.id and len(made) > 1:
                # Clients know an event by its id, so each has one of its own, the same at each reading.
                name = f"{record.topic}-{record.partition}-{record.offset}.{number}"
                named = msgspec.structs.replace(each, id=name)
            once = None if each.id else ""
            drafts.append(self.drafter.of_record(named, record, owner, once=once))
        return in_order(drafts) if drafts else None

    @property
    def _said(self) -> str:
        return f"the function {self.watch.name} returned"

    def _event(self, returned: object, where: str) -> Event:
        if not isinstance(returned, Mapping):
            text = f"{self._said} {type(returned).__name__}, not a dict, a list of dicts, or None"
            raise InvalidInput(Violation(where, text))
        members = dict(returned)
        for name in members:
            if not isinstance(name, str):
                raise InvalidInput(
                    Violation(where, f"{self._said} a dict with a key that is {type(name).__name__}")
                )
        # One that only takes others away needs none.
        message = _json(members.pop("message"), f"{where}.message") if "message" in members else b""
        try:
            return event.of_members(members, message)
        except InvalidInput as error:
            places = (
                Violation(f"{where}{each.at.removeprefix('$')}", each.detail) for each in error.violations
            )
            raise InvalidInput(*places) from None


def python_format(name: str, where: str, drafter: Drafter) -> PythonFormat:
    """The format of PACKAGE:FUNCTION. Raises SettingsError."""
    found = function(name, where)
    if not callable(found):
        raise SettingsError(f"{where}: python:{name} is {type(found).__name__}, not a function")
    if (
        inspect.iscoroutinefunction(found)
        or inspect.isasyncgenfunction(found)
        or inspect.isgeneratorfunction(found)
    ):
        raise SettingsError(f"{where}: python:{name} has to be a plain function: `def`, with `return`")
    try:
        inspect.signature(found).bind(None)
    except TypeError:
        raise SettingsError(f"{where}: python:{name} has to take one argument, the record") from None
    except ValueError:
        # Of a function in C nothing is known.
        pass
    return PythonFormat(found, drafter, LoopWatch(name, HELD_S, "a format has to be quick"))


def _json(message: object, where: str) -> bytes:
    """The message as JSON. Raises InvalidInput for what JSON has no value for."""
    try:
        return msgspec.json.encode(message)
    except (TypeError, ValueError, RecursionError, UnicodeEncodeError) as error:
        raise InvalidInput(Violation(where, f"isn't JSON: {error}")) from None
