"""A table [[kafka]] for a topic that has none, made of a few of its records.

Called by `pushsse try`. It looks at what records are (CloudEvents, events of our own, messages with headers,
any JSON), and for any JSON at how members are called: a mapping is a proposal, to be read by somebody who
knows the topic. What it proposes works for the records that it has seen.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from pushsse import strictjson
from pushsse.errors import InvalidInput, SettingsError
from pushsse.event import MAX_USERS, TypeName
from pushsse.intake import AllTypes, Drafter, seen_of
from pushsse.intake.mapped import MappedFormat, compiled
from pushsse.kafka import Record
from pushsse.settings import KafkaMap, KafkaSource

_MOST_DEPTH = 3
# A member of the value itself: ("value", NAME).
_TOP_LEVEL = 2
# How members are called, without marks and capitals, the likeliest first: whom it is for, what it is, …
_WHO = [
    *("userid", "user", "username", "users", "userids", "recipient", "recipients", "recipientid", "to"),
    *("buyerid", "buyer", "customerid", "customer", "accountid", "account", "memberid", "members", "member"),
    *("uid", "ownerid", "owner", "assignee", "login", "receiver", "receiverid"),
]
_WHAT = ["type", "eventtype", "eventname", "event", "kind", "action"]
_STATE = ["status", "state"]
_WHICH = ["id", "eventid", "messageid", "uuid"]
_WHEN = [
    *("ts", "time", "timestamp", "at", "occurredat", "eventtime", "createdat", "created", "updatedat"),
    *("sentat", "date"),
]
_TITLE = ["title", "subject", "summary", "description"]
_IF = ["notify", "push"]
_OF_SOMETHING = ("id", "name", "no", "number")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PLAIN = re.compile(r"[^A-Za-z0-9_.-]+")
_MAGIC_BYTES = 5
Path = tuple[str, ...]
Fits = Callable[[object], bool]


@dataclass(frozen=True, slots=True)
class Proposal:
    """A table, and what is to be known about it; no table where only a function can read the records."""

    table: KafkaSource | None
    notes: Sequence[str] = ()

    def toml(self) -> str:
        """The table, with the notes as comments."""
        lines = [f"# {note}" for note in self.notes]
        if self.table is not None:
            lines += [
                "[[kafka]]",
                f"topics = [{', '.join(map(_quoted, self.table.topics))}]",
                f"format = {_quoted(self.table.format)}",
                'start = "10m"',
            ]
            if self.table.map is not None:
                said = {name: getattr(self.table.map, name) for name in self.table.map.__struct_fields__}
                lines += ["", "[kafka.map]"]
                lines += [f"{name} = {_quoted(text)}" for name, text in said.items() if text]
        return "\n".join(lines) + "\n"


def proposal(topic: str, records: Sequence[Record]) -> Proposal:
    """What to write for a topic with such records; a record without a value says nothing."""
    there = [record for record in records if record.value is not None]
    if not there:
        return Proposal(None, ("there is no record with a value to look at",))
    if all(registry_id(record.value) is not None for record in there):
        return Proposal(
            KafkaSource(topics=(topic,), format="python:PACKAGE:FUNCTION"),
            ("a schema registry's serializer wrote these records: write the function that reads them",),
        )
    if any(_is_cloud(record) for record in there):
        return _of_clouds(topic, there)
    if any(name == "pushsse-type" for record in there for name, _ in record.headers):
        return Proposal(KafkaSource(topics=(topic,), format="headers"))
    values = [value for record in there if isinstance(value := _loaded(record), dict)]
    if len(values) * 2 < len(there):
        return Proposal(
            KafkaSource(topics=(topic,), format="python:PACKAGE:FUNCTION"),
            ("most of these values are no JSON objects: write the function that reads them",),
        )
    if all(value.keys() >= {"type", "to", "message"} for value in values):
        return Proposal(KafkaSource(topics=(topic,), format="pushsse"))
    return _mapped(topic, [record for record in there if isinstance(_loaded(record), dict)])


def registry_id(value: bytes | None) -> int | None:
    """The number of the schema by which a registry's serializer has written a value; None for any other."""
    if value is None or len(value) < _MAGIC_BYTES or value[0] != 0:
        return None
    return int.from_bytes(value[1:_MAGIC_BYTES], "big")


def _is_cloud(record: Record) -> bool:
    names = {name.lower(): content or b"" for name, content in record.headers}
    if "ce_specversion" in names or names.get("content-type", b"").startswith(b"application/cloudevents"):
        return True
    value = _loaded(record)
    return isinstance(value, dict) and value.keys() >= {"specversion", "id", "source", "type"}


def _of_clouds(topic: str, records: Sequence[Record]) -> Proposal:
    """CloudEvents say everything but, perhaps, for whom they are."""
    table = KafkaSource(topics=(topic,), format="cloudevents")
    headers = [{name.lower() for name, _ in record.headers} for record in records]
    values = [_loaded(record) for record in records]
    structured = [value for value in values if isinstance(value, dict) and "specversion" in value]
    if any("ce_pushsseto" in names for names in headers) or any("pushsseto" in each for each in structured):
        return Proposal(table)
    # What the map calls value.data is the data of both modes.
    samples = [value if value in structured else {"data": value} for value in values]
    members = _SampleMembers([{"value": sample} for sample in samples])
    to, when, notes = _audience(members)
    return Proposal(msgspec.structs.replace(table, map=KafkaMap(to=to, when=_all_of(when))), notes)


def _mapped(topic: str, records: Sequence[Record]) -> Proposal:
    seen = [seen_of(record, _loaded(record), with_headers=False) for record in records]
    members = _SampleMembers(seen)
    to, conditions, notes = _audience(members)
    type_, kind, more, others = _type(topic, members)
    # A record without what most have is skipped: a guess at whom it is for would be worse.
    conditions, notes = [*conditions, *more], [*notes, *others]
    if (path := members.called(_IF, lambda value: isinstance(value, bool))) is not None:
        conditions.insert(0, path)
    said = {"type": type_, "to": to} | ({"when": _all_of(conditions)} if conditions else {})
    optional = {
        "id": _id(members, kind, to),
        "ts": _optional(members.called(_WHEN, lambda value: isinstance(value, str | int | float))),
        "desc": _optional(members.called(_TITLE, lambda value: isinstance(value, str))),
    }
    for name, expression in optional.items():
        with_it = said | {name: expression}
        if not expression or not _works(with_it, records):
            continue
        if name == "id" and not _tells_apart(with_it, records):
            notes.append(f"{expression} isn't the id: several of these records have the same")
            continue
        said = with_it
    if "id" not in said:
        notes.append("without an id a record that the producer sends twice is two events")
    ordered = {name: said[name] for name in KafkaMap.__struct_fields__ if name in said}
    return Proposal(KafkaSource(topics=(topic,), format="mapped", map=KafkaMap(**ordered)), notes)


def _type(topic: str, members: "_SampleMembers") -> tuple[str, Path | None, list[Path], list[str]]:
    """An expression for the type, its member, what a record must have for it, and what is to be known."""
    constant = _PLAIN.sub("-", topic).strip("-.")[:64] or "event"
    state = f"'{constant.removesuffix('s')[:40]}'"
    for find in (members.called, members.mostly):
        for names, begin in ((_WHAT, ""), (_STATE, state)):
            if (path := find(names, _is_type)) is not None:
                found = _expression(path)
                return f"join('.', [{begin}, {found}])" if begin else found, path, *members.needs(path)
    return f"'{constant}'", None, [], []


def _id(members: "_SampleMembers", kind: Path | None, to: str) -> str:
    """An expression for the id, "" where there is none; `kind` is the member that the type is made of.

    What has a state, or a number of its own, has several events. Each needs an id: acks, `explain` and those
    who notify people know an event by its id alone, whatever its type.
    """
    ends = ("No", "_no", "Number", "_number", "Id", "_id")
    path = members.called(_WHICH, _is_name) or members.ending(ends)
    if path is None or _expression(path) == to:
        return ""
    values = members.found[path]
    is_event = _bare(path[-1]) in _WHICH and len(set(map(str, values))) == len(values)
    if kind is None or (is_event and _bare(kind[-1]) in _WHAT):
        return _expression(path)
    return f"join('-', [{members.text(path)}, {members.text(kind)}])"


def _optional(path: Path | None) -> str:
    return _expression(path) if path is not None else ""


def _audience(members: "_SampleMembers") -> tuple[str, list[Path], list[str]]:
    path = members.mostly(_WHO, _are_names)
    if path is None:
        note = "no member of these records looks like a person's name: everybody gets them. Is that meant?"
        return "'all'", [], [note]
    return _expression(path), *members.needs(path)


def _all_of(conditions: Sequence[Path]) -> str:
    """An expression that is false where one of these is missing, or is false itself."""
    return " && ".join(dict.fromkeys(map(_expression, conditions)))


def _works(said: Mapping[str, str], records: Sequence[Record]) -> bool:
    """Whether a map makes an event of every record, or skips it."""
    table = KafkaSource(topics=("any",), format="mapped", map=KafkaMap(**said))
    try:
        decode = MappedFormat(compiled(table), Drafter(types=AllTypes(), max_age_s=86_400))
        for record in records:
            decode(record, "")
    except (InvalidInput, SettingsError):
        return False
    return True


def _tells_apart(said: Mapping[str, str], records: Sequence[Record]) -> bool:
    """Whether no two records would pass for one event, of which the second is left out as a repeat."""
    mapping = compiled(KafkaSource(topics=("any",), map=KafkaMap(**said)))
    names = []
    for record in records:
        found = mapping.members(seen_of(record, _loaded(record), with_headers=False))
        if found is not None and "id" in found:
            names.append((found["type"], found["id"]))
    return len(set(names)) == len(names)


@dataclass(slots=True)
class _SampleMembers:
    """The members of some values, by their paths, shorter ones first."""

    seen: Sequence[Mapping[str, object]]
    found: dict[Path, list[object]] = field(init=False)

    def __post_init__(self) -> None:
        self.found = {}
        for each in self.seen:
            for path, value in _walk(("value",), each["value"]):
                if value is not None:
                    self.found.setdefault(path, []).append(value)
        self.found = dict(sorted(self.found.items(), key=lambda item: len(item[0])))

    def called(self, names: Sequence[str], fits: Fits, *, least: int | None = None) -> Path | None:
        """A member called one of the names, the first of them first, that every value has, or so many."""
        for name in names:
            for path, values in self.found.items():
                call = _bare(path[-1])
                if call in _OF_SOMETHING and len(path) > _TOP_LEVEL:
                    # user.id and user.name are called as userId and userName are.
                    call = _bare("".join(path[-2:]))
                if name == call and len(values) >= (least or len(self.seen)) and all(map(fits, values)):
                    return path
        return None

    def mostly(self, names: Sequence[str], fits: Fits) -> Path | None:
        """A member called one of the names that every value has, or else more than half of them."""
        return self.called(names, fits) or self.called(names, fits, least=len(self.seen) // 2 + 1)

    def needs(self, path: Path) -> tuple[list[Path], list[str]]:
        """A member if it isn't in every value, and what is to be said then."""
        count, of = len(self.found[path]), len(self.seen)
        if count == of:
            return [], []
        name = _expression(path)
        return [path], [f"{name} is in {count} of these {of} records only: `when` skips those without it"]

    def text(self, path: Path) -> str:
        """An expression for a member as a text, which numbers aren't."""
        are_texts = all(isinstance(value, str) for value in self.found[path])
        return _expression(path) if are_texts else f"to_string({_expression(path)})"

    def ending(self, ends: Sequence[str]) -> Path | None:
        """A member that every value has, and whose name ends like this."""
        for path, values in self.found.items():
            ends_so = path[-1].endswith(tuple(ends)) and _bare(path[-1]) not in _WHO
            if ends_so and len(values) == len(self.seen) and all(map(_is_name, values)):
                return path
        return None


def _walk(path: Path, value: object) -> Iterator[tuple[Path, object]]:
    if isinstance(value, dict) and len(path) <= _MOST_DEPTH:
        for name, inner in value.items():
            yield (*path, name), inner
            yield from _walk((*path, name), inner)


def _bare(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _expression(path: Path) -> str:
    return ".".join(name if _NAME.fullmatch(name) else json.dumps(name) for name in path)


def _is_type(value: object) -> bool:
    try:
        strictjson.convert(value, TypeName)
    except InvalidInput:
        return False
    return True


def _is_name(value: object) -> bool:
    return (isinstance(value, int) and not isinstance(value, bool)) or (
        isinstance(value, str) and 1 <= len(value) <= 128 and value.isprintable()
    )


def _are_names(value: object) -> bool:
    """One person's name, or several."""
    names = value if isinstance(value, list) else [value]
    return 0 < len(names) <= MAX_USERS and all(_is_name(each) and " " not in str(each) for each in names)


def _loaded(record: Record) -> object:
    """A record's value as JSON; None where it is none."""
    try:
        return strictjson.loads(record.value or b"null")
    except InvalidInput:
        return None


def _quoted(text: str) -> str:
    """A text of TOML: JSON's escapes are TOML's."""
    return json.dumps(text, ensure_ascii=False)
