"""An event becomes a draft, by one rule whichever way it came in; from Kafka, in the format of its topic.

`kafka.consumer` calls `EventHandler` with the topics' records, and `api.events` calls `Drafter` for requests;
both hand drafts to the dispatcher. A format is a `Decode`; `PushsseFormat` is the one where a record's value
is the event's own JSON, `HeadersFormat` the one where it is the message.

`Sources` is the `Decode` of the one consumer of events, and chooses the format by the topic. The settings
name the sources: PUSHSSE_KAFKA_TOPIC in format `pushsse` is the first one, and each table [[kafka]] another
one. Deliberate: `mapped` and `cloudevents` are imported only where they are configured.

`PythonFormat` is the format `python:PACKAGE:FUNCTION`: a function of the operator's own gets the record and
returns an event as a dict, several in a list, or None to skip it; for Avro, Protobuf, or anything. What it
raises makes the record a dead letter. Guarantee 1 needs the same record to give the same events in the same
order: they are known by the record's place.
"""

import inspect
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import import_module
from typing import Any, Protocol, cast

import msgspec

from pushsse import event, strictjson
from pushsse.backplane import Draft, Receipt, Source
from pushsse.errors import InvalidInput, SettingsError, Violation
from pushsse.event import Event, Publication
from pushsse.functions import LoopWatch, function
from pushsse.kafka import Record, TopicGroup, TopicPartition, Topics
from pushsse.kafka.dead_letters import Refused
from pushsse.metrics import Metrics, SourceCounts
from pushsse.settings import KafkaSource, Settings

# What a mapping reads of one record. The message, which is all or a part of it, has its own limit: 48 KiB.
MAX_VALUE_BYTES = 256 * 1024
MAX_VALUES = 20_000
MAX_HEADERS = 100
_WITH_MAP = frozenset({"mapped", "cloudevents"})
# Of one record of a function's: events, and people that they are for, all in all.
MAX_EVENTS = 100
MAX_PEOPLE = event.MAX_USERS
HELD_S = 0.02
SCHEMA_REGISTRY = (
    "isn't JSON: it begins with the byte 0x00, as records do that a schema registry's serializer has written"
    " (Avro, Protobuf, JSON Schema); format python:PACKAGE:FUNCTION reads them"
)
# Headers that say the members of an event.
_OWN = "pushsse-"
_MEMBERS = {
    f"pushsse-{member.replace('_', '-')}": member
    for member in ("type", "to", "id", "ttl_s", "desc", "ts", "campaign", "collapse", "withdraw")
    if member in Event.__struct_fields__
}
_TRACE = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_DIGITS = re.compile(r"[0-9]{1,10}")
OperatorsFunction = Callable[[Record], Any]
# What a record became.
Made = Draft | list[Draft]


class Decode(Protocol):
    """A format: reads one record of the partition that is claimed under `owner`.

    Pure and quick: it is called for thousands of records in a row. The draft's source is the record. Several
    drafts of one record come in a list, `in_order`.
    """

    def __call__(self, record: Record, owner: str) -> Made | None:
        """None skips the record. Raises InvalidInput (NotJson is one) where it can't be used."""
        ...


class Dispatches(Protocol):
    """Where all intakes end: `Dispatcher` implements it."""

    async def dispatch(self, drafts: Sequence[Draft]) -> Receipt:
        """Returns once the log has the drafts. Raises Unavailable (try the same drafts again), NotOwner."""
        ...


class AdmitsTypes(Protocol):
    """The catalogue, as far as it says which types of events are accepted."""

    def admits(self, name: str) -> bool:
        """Whether events of this type are accepted."""
        ...


class AllTypes:
    """A catalogue that admits every type, where there is no database."""

    def admits(self, name: str) -> bool:
        """Always."""
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Drafter:
    """Makes events drafts, by one rule for every intake. One without `ttl_s` expires after `max_age_s`."""

    types: AdmitsTypes
    max_age_s: int

    def draft(
        self,
        given: Event,
        *,
        event_id: str,
        at: datetime,
        source: Source | None = None,
        once: str | None = None,
        trace: str = "",
    ) -> Draft:
        """`event_id` is its own id, else a made one; `at` is its time where it has none.

        `once` takes the place of its type and id, by which the log knows it. `trace` is its traceparent.

        Raises InvalidInput for a type that isn't admitted, a frame over 48 KiB and a time out of range.
        """
        if not self.types.admits(given.type):
            raise InvalidInput(Violation("$.type", f"{given.type!r} isn't in the catalogue"))
        publication = event.publication(
            given,
            event_id=event_id,
            at=at,
            max_age_s=self.max_age_s,
            trace=trace,
            # Without an id of its own the event's id says so.
            origin=f"{source.topic}-{source.partition}-{source.offset}" if source and given.id else "",
        )
        # The log remembers this for 10 minutes and leaves repeats out. Only a producer's own id can come
        # again: a record without one is known by its offset, which the fence looks at, and an id made for an
        # HTTP call is never made twice.
        if once is None:
            once = f"{given.type}|{given.id}" if given.id else ""
            if once and given.withdraw:
                # It may have the id of what it takes away.
                once = f"withdraw|{once}"
        return Draft(publication, source, once)

    def of_record(
        self, given: Event, record: Record, owner: str, *, once: str | None = None, trace: str | None = None
    ) -> Draft:
        """The draft of an event that a record holds. Raises InvalidInput as `draft` does.

        `trace` goes before the record's own header.
        """
        topic, partition, offset, timestamp_ms = (
            record.topic,
            record.partition,
            record.offset,
            record.timestamp,
        )
        return self.draft(
            given,
            event_id=given.id or f"{topic}-{partition}-{offset}",
            at=time_of(timestamp_ms),
            source=Source(topic, partition, offset, timestamp_ms, owner),
            once=once,
            trace=trace if trace is not None else _trace(record) if record.headers else "",
        )


@dataclass(frozen=True, slots=True)
class EventHandler:
    """Events from Kafka. Dispatches a batch, of all partitions together: the database is asked once."""

    # `Sources`, which asks the format of the record's topic.
    decode: Decode
    dispatcher: Dispatches

    async def apply(self, items: Sequence[Made]) -> Sequence[Refused]:
        """Returns once the log has them; none is refused. Raises Unavailable, NotOwner."""
        if items:
            # Guarantee 1: awaited, not started as a task. The consumer may commit once this has returned.
            await self.dispatcher.dispatch(_flat(items))
        return ()

    def unfinished(self) -> Mapping[TopicPartition, int]:
        """Nothing: what was dispatched is in the log, all of it."""
        return {}

    def forget(self, partitions: Collection[TopicPartition]) -> None:
        """Nothing is kept that would have to be forgotten."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PushsseFormat:
    """The value is the event's JSON. Unknown members are ignored and counted."""

    metrics: Metrics
    drafter: Drafter

    def __call__(self, record: Record, owner: str) -> Draft | None:
        value = record.value
        if value is None:
            return None
        return self.drafter.of_record(event.decode(value, ignored=self._ignored), record, owner)

    def _ignored(self, count: int) -> None:
        self.metrics.unknown_members += count


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadersFormat:
    """The value is the message; headers say the rest. Other headers that begin with `pushsse-` are counted.

    The message is JSON; with a `content-type` that begins with `text/` it is a text.
    """

    metrics: Metrics
    drafter: Drafter

    def __call__(self, record: Record, owner: str) -> Draft | None:
        value = record.value
        if value is None:
            return None
        members: dict[str, object] = {}
        is_text = False
        for name, content in headers_of(record):
            if name.lower() == "content-type":
                is_text = (content or b"").startswith(b"text/")
            elif name.startswith(_OWN):
                member = _MEMBERS.get(name)
                if member is None:
                    self.metrics.unknown_members += 1
                else:
                    members[member] = _header(name, content or b"")
        for name in ("pushsse-type", "pushsse-to"):
            if _MEMBERS[name] not in members:
                raise InvalidInput(Violation(f"header {name}", "is required"))
        members["to"] = audience(str(members["to"]), "header pushsse-to")
        if "ttl_s" in members:
            members["ttl_s"] = whole_number(str(members["ttl_s"]), "header pushsse-ttl-s")
        message = text_as_json(value) if is_text else value
        return self.drafter.of_record(event.of_members(members, message), record, owner)


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
        last = _expires_last(made) if isinstance(made, list) else made.publication
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


def _expires_last(drafts: Sequence[Draft]) -> Publication:
    """The one that expires last."""
    return max((each.publication for each in drafts), key=lambda publication: publication.expires_ms)


def topics_of(settings: Settings) -> Topics:
    """All topics of events."""
    tables = [TopicGroup(each.topics, each.start or settings.kafka_start) for each in settings.kafka]
    return Topics(
        (TopicGroup((settings.kafka_topic,), settings.kafka_start), *tables),
        settings.kafka_dlq_topic,
        settings.own_topics,
    )


def sources_of(
    settings: Settings, *, metrics: Metrics, drafter: Drafter, now_ms: Callable[[], int]
) -> Sources:
    """Raises SettingsError for a table whose format can't be made; it names the table and the key."""
    made = [
        TopicSource(settings.kafka_topic, PushsseFormat(metrics=metrics, drafter=drafter), SourceCounts())
    ]
    made += [
        TopicSource(each.label, format_of(each, metrics=metrics, drafter=drafter), SourceCounts())
        for each in settings.kafka
    ]
    metrics.sources = {each.name: each.counts for each in made}
    return Sources(topics_of(settings), made, now_ms)


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

    function: OperatorsFunction
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


def value_as_json(value: bytes) -> object:
    """A record's value as JSON. Raises NotJson, InvalidInput; also for more than a mapping reads."""
    if len(value) > MAX_VALUE_BYTES:
        detail = f"has {len(value)} bytes, over {MAX_VALUE_BYTES}, which is the most that a mapping reads"
        raise InvalidInput(Violation("value", detail))
    if strictjson.has_more_values(value, MAX_VALUES):
        detail = f"has more than {MAX_VALUES} values, which is the most that a mapping reads"
        raise InvalidInput(Violation("value", detail))
    try:
        return strictjson.loads(value)
    except InvalidInput as error:
        if value[:1] == b"\0":
            raise type(error)(Violation("value", SCHEMA_REGISTRY)) from None
        raise


def headers_of(record: Record) -> Sequence[tuple[str, bytes | None]]:
    """A record's headers. Raises InvalidInput for more than a format reads."""
    if len(record.headers) > MAX_HEADERS:
        raise InvalidInput(Violation("headers", f"there are {len(record.headers)}, over {MAX_HEADERS}"))
    return record.headers


def seen_of(record: Record, value: object, *, with_headers: bool) -> dict[str, object]:
    """What expressions see of a record. Raises InvalidInput for more headers than they may see."""
    headers: dict[str, str] = {}
    if with_headers:
        headers = {name: (content or b"").decode("utf-8", "replace") for name, content in headers_of(record)}
    return {
        "key": None if record.key is None else record.key.decode("utf-8", "replace"),
        "value": value,
        "headers": headers,
        "topic": record.topic,
        "timestamp": record.timestamp,
        "partition": record.partition,
        "offset": record.offset,
    }


def audience(text: str, where: str) -> object:
    """`to` of an event, from a text: all, names parted by commas, or as JSON. Raises InvalidInput."""
    if text in ("all", '"all"'):
        return event.ALL
    # Before anything is made of them: so many would take long.
    if (count := text.count(",") + 1) > event.MAX_USERS:
        raise InvalidInput(Violation(where, f"has {count} people, over {event.MAX_USERS}"))
    text = text.strip()
    if text[:1] not in ("[", "{", '"'):
        if count == 1:
            return {"users": [text] if text else []}
        return {"users": [name for part in text.split(",") if (name := part.strip())]}
    try:
        loaded = strictjson.loads(text.encode())
    except InvalidInput as error:
        detail = error.violations[0].detail
        raise InvalidInput(Violation(where, f"{detail}, got {strictjson.shown(text)}")) from None
    return {"users": loaded} if isinstance(loaded, list) else loaded


def whole_number(text: str, where: str) -> int:
    """Raises InvalidInput that names where it was to stand."""
    if _DIGITS.fullmatch(text) is None:
        raise InvalidInput(Violation(where, f"isn't a whole number, got {strictjson.shown(text)}"))
    return int(text)


def text_as_json(value: bytes) -> bytes:
    """A text as a JSON string. Raises InvalidInput."""
    try:
        return msgspec.json.encode(value.decode())
    except UnicodeDecodeError as error:
        detail = f"isn't UTF-8: byte {error.start} is 0x{value[error.start]:02x}"
        raise InvalidInput(Violation("$.message", detail)) from None


def _header(name: str, content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        detail = f"isn't UTF-8: byte {error.start} is 0x{content[error.start]:02x}"
        raise InvalidInput(Violation(f"header {name}", detail)) from None


def in_order(drafts: Sequence[Draft]) -> list[Draft]:
    """The drafts of one record: first those for people, then those for everybody, each in their order.

    Guarantee 1: between personal events and broadcasts the dispatcher begins another append. A record that
    went back and forth would have several appends to one log, and the fence lets the first of them through.
    """
    return sorted(drafts, key=lambda draft: draft.publication.users is None)


def _flat(items: Sequence[Made]) -> Sequence[Draft]:
    """The drafts one after another; most records have one."""
    if not any(each.__class__ is list for each in items):
        return cast("Sequence[Draft]", items)
    flat: list[Draft] = []
    for each in items:
        if isinstance(each, list):
            flat += each
        else:
            flat.append(each)
    return flat


def _trace(record: Record) -> str:
    """A record's traceparent (W3C Trace Context, 3.2); empty without a valid one."""
    for name, value in record.headers:
        if name == "traceparent" and (found := traceparent((value or b"").decode("latin-1"))):
            return found
    return ""


def traceparent(text: str) -> str:
    """The text if it is a traceparent, else nothing: what carries none that is valid has no trace."""
    return text if _TRACE.fullmatch(text) else ""


def time_of(timestamp_ms: int) -> datetime:
    """A record's time. Producers set it as they like, so it may be none (-1), or no date at all."""
    if timestamp_ms < 0:
        return datetime.now(UTC)
    try:
        return datetime.fromtimestamp(timestamp_ms / 1000, UTC)
    except (OverflowError, ValueError, OSError):
        raise InvalidInput(Violation("$.ts", f"the record's timestamp {timestamp_ms} isn't in ms")) from None
