"""CloudEvents 1.0, over Kafka and over HTTP: structured, binary and, over HTTP, in batches.

Made by `format_of` for the format `cloudevents`, and called by `api/events` for POST /v1/events. Which of the
modes a record or a request has is seen from its headers (Kafka Protocol Binding 3, HTTP Protocol Binding 3).
docs/sources.md says which attribute becomes which member. Deliberate: an event is known by `source` and `id`
alone, whatever its type, since the specification has no two events with both alike (3.1.1).
"""

import base64
import binascii
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from math import ceil
from typing import TYPE_CHECKING
from urllib.parse import unquote

import msgspec
from msgspec import UNSET, Struct, UnsetType

from pushsse import event, strictjson
from pushsse.backplane import Draft
from pushsse.errors import InvalidInput, NotJson, Violation
from pushsse.event import Event
from pushsse.intake import (
    SCHEMA_REGISTRY,
    Drafter,
    audience,
    headers_of,
    seen_of,
    text_as_json,
    time_of,
    traceparent,
    value_as_json,
)
from pushsse.kafka import Record

if TYPE_CHECKING:
    # It brings jmespath with it, which a node without maps doesn't need.
    from pushsse.intake.mapped import Map

STRUCTURED = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"
# What one, or a batch, may hold: to tell more values apart would hold the event loop for long.
MAX_COMMAS = 100_000
_MEDIA = "application/cloudevents"
_REQUIRED = ("specversion", "id", "source", "type")
_PLAIN_JSON = "application/json"
_MAX_SUBJECT = 1024
_NEVER = datetime.max.replace(tzinfo=UTC)
_MAX_TTL_S = 31_536_000
_MAX_KEY = 256
_JSON = re.compile(r"[a-z0-9!#$&^_.+-]+/(?:json|[a-z0-9!#$&^_.+-]+\+json)", re.IGNORECASE)
Text = str | None | UnsetType
# The name of an attribute where the event came from, as errors have it.
PlaceOf = Callable[[str], str]


class _Attributes(Struct, gc=False):
    """The attributes that mean something here; others are passed over. Null is as none at all."""

    specversion: Text = UNSET
    id: Text = UNSET
    source: Text = UNSET
    type: Text = UNSET
    subject: Text = UNSET
    time: Text = UNSET
    datacontenttype: Text = UNSET
    pushsseto: str | tuple[str, ...] | UnsetType | None = UNSET
    pushssecollapse: Text = UNSET
    pushssewithdraw: Text = UNSET
    partitionkey: Text = UNSET
    expirytime: Text = UNSET
    traceparent: Text = UNSET
    data: msgspec.Raw | UnsetType = UNSET
    data_base64: Text = UNSET


_KNOWN = frozenset(_Attributes.__struct_fields__) - {"data", "data_base64", "datacontenttype"}
_HEADERS = {f"ce_{name}": name for name in sorted(_KNOWN)}
_attributes = msgspec.json.Decoder(_Attributes)
_raws = msgspec.json.Decoder(list[msgspec.Raw])


class CloudEvent(Struct, frozen=True, gc=False):
    """An event, and what an event can't have itself: by what it is known, its trace, and its exact end.

    `place` says how errors name an attribute; `said` are the members that aren't from one.
    """

    event: Event
    once: str
    trace: str
    expires_ms: int | None
    place: PlaceOf
    said: Mapping[str, object]

    def named(self, error: InvalidInput) -> InvalidInput:
        """What is wrong with its draft, by the names of attributes."""
        return _by_attributes(error, self.place, self.said)

    def ending(self, draft: Draft) -> Draft:
        """The draft, which ends no later than the CloudEvent says."""
        if self.expires_ms is None or self.expires_ms >= draft.publication.expires_ms:
            return draft
        publication = msgspec.structs.replace(draft.publication, expires_ms=self.expires_ms)
        return msgspec.structs.replace(draft, publication=publication)


@dataclass(frozen=True, slots=True)
class CloudEventsFormat:
    """A record is a CloudEvent. A map says otherwise for the members that it has.

    The map's `value` is the CloudEvent as JSON, also of a binary one.
    """

    drafter: Drafter
    map: "Map | None" = None

    def __call__(self, record: Record, owner: str) -> Draft | None:
        value = record.value
        if value is None:
            return None
        read = _read(record, value)
        found, place = read.attributes, read.place
        said: Mapping[str, object] = {}
        message = None
        if self.map is not None:
            _check_required(found, place)
            seen = seen_of(record, read.whole(value), with_headers=self.map.needs_headers)
            members = self.map.members(seen)
            if members is None:
                return None
            said = members
            message = self.map.message(seen, msgspec.json.encode(seen["value"]))
        # Only who expires without a time of its own asks for the record's.
        at = time_of(record.timestamp) if found.expirytime else _NEVER
        cloud = _cloud_event(found, place, at=at, said=said, message=message[0] if message else None)
        trace = cloud.trace or (traceparent(read.trace) if read.trace else "")
        try:
            draft = self.drafter.of_record(cloud.event, record, owner, once=cloud.once or None, trace=trace)
        except InvalidInput as error:
            raise cloud.named(error) from None
        return draft if cloud.expires_ms is None else cloud.ending(draft)


def _in_json(name: str) -> str:
    return f"$.{name}"


def _in_kafka(name: str) -> str:
    return "content-type" if name == "datacontenttype" else f"header ce_{name}"


def _in_http(name: str) -> str:
    return "content-type" if name == "datacontenttype" else f"header ce-{name}"


class _Read(Struct, frozen=True, gc=False):
    """The attributes and data of a record, how errors name them, and the headers of a binary one."""

    attributes: _Attributes
    place: PlaceOf
    media: str = ""
    headers: Sequence[tuple[str, bytes]] | None = None
    trace: str = ""

    def whole(self, value: bytes) -> object:
        """The CloudEvent as JSON, with its extensions. Raises InvalidInput."""
        if self.headers is None:
            return value_as_json(value)
        texts = {
            name[3:].lower(): _utf8(name, content or b"")
            for name, content in self.headers
            if name[:3].lower() == "ce_"
        }
        media = {"datacontenttype": self.media} if self.media else {}
        data = self.attributes.data
        return {**texts, **media, **({} if data is UNSET else {"data": value_as_json(bytes(data))})}


def _read(record: Record, value: bytes) -> _Read:
    """A record in whichever mode it is. Raises InvalidInput, NotJson."""
    media = trace = ""
    texts: dict[str, str] = {}
    for name, content in headers_of(record):
        attribute = _HEADERS.get(name)
        if attribute is not None:
            texts[attribute] = _utf8(name, content or b"")
        elif name == "content-type" or (lower := name.lower()) == "content-type":
            media = (content or b"").decode("latin-1").strip()
        elif name == "traceparent":
            trace = (content or b"").decode("latin-1")
        elif (attribute := _HEADERS.get(lower)) is not None:
            texts[attribute] = _utf8(name, content or b"")
    if media == STRUCTURED or _is_structured(media):
        return _Read(_structured(value), _in_json, "", None, trace)
    if texts:
        return _Read(_binary(texts, media, value), _in_kafka, media, record.headers, trace)
    if value[:1] == b"\0":
        raise NotJson(Violation("value", SCHEMA_REGISTRY))
    if b'"specversion"' not in value:
        text = f"is no CloudEvent: it has neither a header ce_specversion nor the content-type {STRUCTURED}"
        raise InvalidInput(Violation("$", text))
    return _Read(_structured(value), _in_json, "", None, trace)


def _is_structured(media: str) -> bool:
    """Raises InvalidInput for another kind of CloudEvents."""
    if media[: len(_MEDIA)].lower() != _MEDIA:
        return False
    if media.partition(";")[0].strip().lower() not in (STRUCTURED, _MEDIA):
        text = f"is {media[:80]!r}; over Kafka only {STRUCTURED} is read"
        raise InvalidInput(Violation("content-type", text))
    return True


def _structured(value: bytes) -> _Attributes:
    _check_commas(value)
    try:
        return _attributes.decode(value)
    except strictjson.REFUSALS:
        # Once more, to say why; or without a byte order mark.
        return strictjson.peek(value, _Attributes)


def _check_commas(body: bytes) -> None:
    # A body has no more commas than bytes.
    if len(body) > MAX_COMMAS and (count := body.count(b",")) > MAX_COMMAS:
        raise InvalidInput(Violation("$", f"has {count} commas, over {MAX_COMMAS}"))


def _binary(texts: Mapping[str, str], media: str, value: bytes) -> _Attributes:
    """Attributes by their names; the data is JSON, or made JSON."""
    found = _Attributes(**texts)  # type: ignore[arg-type]
    if media:
        found.datacontenttype = media
    if value:
        found.data = msgspec.Raw(_data(value, media))
    return found


def _data(value: bytes, media: str) -> bytes:
    """Data as JSON, by its media type. Raises InvalidInput, NotJson."""
    if media == _PLAIN_JSON:
        return value
    kind = media.partition(";")[0].strip()
    if not kind:
        # Whoever doesn't say sends JSON, or a text.
        try:
            msgspec.json.decode(value, type=msgspec.Raw)
        except (msgspec.DecodeError, RecursionError):
            return text_as_json(value)
        return value
    if _JSON.fullmatch(kind):
        return value
    if kind.lower().startswith("text/"):
        return text_as_json(value)
    detail = f"is {kind[:80]!r}, neither JSON nor text; format python:PACKAGE:FUNCTION reads what it likes"
    raise InvalidInput(Violation("datacontenttype", detail))


def _utf8(name: str, content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise InvalidInput(
            Violation(f"header {name}", f"isn't UTF-8: byte {error.start} is 0x{content[error.start]:02x}")
        ) from None


def _check_required(found: _Attributes, place: PlaceOf) -> None:
    if found.specversion == "1.0" and found.id and found.source and found.type:
        return
    for name in _REQUIRED:
        if not getattr(found, name):
            was = "is empty" if getattr(found, name) == "" else "is required of a CloudEvent, and missing"
            raise InvalidInput(Violation(place(name), was))
    raise InvalidInput(
        Violation(place("specversion"), f"is {str(found.specversion)[:20]!r}; only 1.0 can be read")
    )


def _cloud_event(
    found: _Attributes,
    place: PlaceOf,
    *,
    at: datetime,
    said: Mapping[str, object],
    message: bytes | None,
    to: str | None = None,
) -> CloudEvent:
    """`at` is its time where it has none; `said` and `message` go before what the attributes say.

    `to` is the audience where nobody else says one. Raises InvalidInput that names the attribute.
    """
    _check_required(found, place)
    source, event_id = str(found.source), str(found.id)
    members: dict[str, object] = {"type": found.type, "id": _visible_id(source, event_id)}
    if found.subject:
        members["desc"] = found.subject[:_MAX_SUBJECT]
    if found.time:
        members["ts"] = found.time
    if found.partitionkey:
        if len(found.partitionkey) > _MAX_KEY:
            raise InvalidInput(Violation(place("partitionkey"), f"has more than {_MAX_KEY} characters"))
        members["key"] = found.partitionkey
    if found.pushssecollapse:
        members["collapse"] = found.pushssecollapse
    if found.pushssewithdraw:
        members["withdraw"] = found.pushssewithdraw
    if "to" not in said:
        members["to"] = _audience(found.pushsseto or to, place)
    expires_ms = None
    if found.expirytime:
        expires_ms = _expiring(found, place, at, members)
    if said:
        members |= said
    if message is None:
        message = _message(found, place)
    try:
        made = event.of_members(members, message)
    except InvalidInput as error:
        raise _by_attributes(error, place, said) from None
    once = "" if "id" in said else f"|{len(source)}|{source}|{event_id}"
    trace = traceparent(found.traceparent) if found.traceparent else ""
    return CloudEvent(made, once, trace, expires_ms, place, said)


_MEMBERS = {
    "type": "type",
    "ts": "time",
    "to": "pushsseto",
    "message": "data",
    "desc": "subject",
    "key": "partitionkey",
    "collapse": "pushssecollapse",
    "withdraw": "pushssewithdraw",
}


def _by_attributes(error: InvalidInput, place: PlaceOf, said: Mapping[str, object]) -> InvalidInput:
    """What is wrong with a member, as it is named where it came from."""
    return type(error)(*(_renamed(each, place, said) for each in error.violations))


def _renamed(violation: Violation, place: PlaceOf, said: Mapping[str, object]) -> Violation:
    """The attribute in the place of the member that it became."""
    member, rest = violation.at.removeprefix("$.").partition(".")[0].partition("[")[0], violation.at
    if member in said or member not in _MEMBERS or not rest.startswith("$."):
        return violation
    attribute = _MEMBERS[member]
    return Violation("data" if attribute == "data" else place(attribute), violation.detail)


def _visible_id(source: str, event_id: str) -> str:
    """`source|id`; a digest of them where that is too long for an id, or could be another's."""
    name = f"{source}|{event_id}"
    if "|" not in source and event.is_id(name):
        return name
    return sha256(f"{len(source)}|{name}".encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _audience(given: str | Sequence[str] | None, place: PlaceOf) -> object:
    if not given:
        detail = "is missing, and so is a map with `to`: nothing says for whom the event is"
        raise InvalidInput(Violation(place("pushsseto"), detail))
    return audience(given, place("pushsseto")) if isinstance(given, str) else {"users": list(given)}


def _expiring(found: _Attributes, place: PlaceOf, at: datetime, members: dict[str, object]) -> int:
    """Sets how long the event is worth anything; its end in milliseconds."""
    end = event.time_of(found.expirytime, at=place("expirytime"))
    begin = event.time_of(found.time, at=place("time")) if found.time else at
    left_s = (end - begin).total_seconds()
    if left_s <= 0 and found.time:
        raise InvalidInput(
            Violation(place("expirytime"), f"{found.expirytime} isn't after time, {found.time}")
        )
    if left_s <= 0:
        # It has expired, and is to be counted as that. Before 1970 there is no time.
        members["ts"] = max(event.FIRST_TIME, end - timedelta(seconds=1))
    members["ttl_s"] = max(1, min(ceil(left_s), _MAX_TTL_S))
    return event.milliseconds(end)


def _message(found: _Attributes, place: PlaceOf) -> bytes:
    """The data as JSON; null without any."""
    if found.data_base64:
        try:
            value = base64.b64decode(found.data_base64, validate=True)
        except (binascii.Error, ValueError) as error:
            raise InvalidInput(Violation(place("data_base64"), f"isn't base64: {error}")) from None
        return _data(value, found.datacontenttype or "")
    return b"null" if found.data is UNSET else bytes(found.data)


# Over HTTP

_FIELDS = frozenset(f"ce-{name}" for name in _REQUIRED)


def is_binary(names: Iterable[str]) -> bool:
    """Whether a request with these header fields holds one CloudEvent whose attributes are fields."""
    return not _FIELDS.isdisjoint(names)


def of_fields(fields: Iterable[tuple[str, str]], body: bytes, *, at: datetime, to: str | None) -> CloudEvent:
    """The binary one of a request (HTTP Protocol Binding, 3.1). Raises InvalidInput, NotJson."""
    media = ""
    texts: dict[str, str] = {}
    for name, value in fields:
        if name == "content-type":
            media = value.strip()
        elif name[:3] == "ce-" and name[3:] in _KNOWN:
            texts[name[3:]] = _field_value(name, value)
    found = _binary(texts, media, body)
    return _cloud_event(found, _in_http, at=at, said={}, message=None, to=to)


def of_json(body: bytes, *, at: datetime, to: str | None) -> CloudEvent:
    """One as JSON. Raises InvalidInput, NotJson."""
    return _cloud_event(_structured(body), _in_json, at=at, said={}, message=None, to=to)


def batch(body: bytes) -> list[msgspec.Raw]:
    """The events of a batch, each as JSON (JSON Event Format, 4). Raises InvalidInput, NotJson."""
    _check_commas(body)
    try:
        found = _raws.decode(body.removeprefix(strictjson.BOM))
    except strictjson.REFUSALS as error:
        if isinstance(error, msgspec.ValidationError):
            raise InvalidInput(Violation("$", "a batch is an array of CloudEvents")) from None
        strictjson.refuse(body, error)
    if not found:
        raise InvalidInput(Violation("$", "the batch is empty"))
    return found


def _field_value(name: str, value: str) -> str:
    """What a field means: quotes around it go, then percent-encoding is decoded, once (3.1.3.2)."""
    if len(value) > 1 and value[0] == value[-1] == '"':
        value = re.sub(r"\\(.)", r"\1", value[1:-1])
    try:
        return unquote(value, errors="strict")
    except UnicodeDecodeError as error:
        raise InvalidInput(Violation(f"header {name}", f"isn't UTF-8: {error.reason}")) from None
