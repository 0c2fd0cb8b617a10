"""Events as producers write them, and publications as the log keeps them. The security border of the path.

Called by every intake (decode) and by whoever publishes (encode). What passes here can't break a stream:
no lone surrogate, no NUL, no NaN, no line end outside JSON, no depth over 64, no frame over 48 KiB.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import accumulate
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from pushsse import strictjson
from pushsse.errors import InvalidInput, Violation

MAX_FRAME_BYTES = 48 * 1024
MAX_USERS = 10_000
# Longer bodies are looked at before they are decoded: most of what they hold can't be right.
_SHORT_BYTES = 64 * 1024
_ID_LINE_BYTES = 72
_LABEL = b"data: "
_LABEL_BYTES = len(_LABEL)
# As the data of a person's event begins.
_ID_BEGINS = _LABEL + b'{"id":"'
_ID_AT = len(_ID_BEGINS) - 1
_BACKSLASH = 0x5C
_FEW_COLONS = 5_000
# Of a change, besides its texts: its numbers, and the lengths of what it holds.
_NUMBERS_BYTES = 24
_FEW_NAMES = 20
_RESERVED = (
    "ready preferences ack question answer.delta answer answer.error ping exception open error message"
)
RESERVED_TYPES = frozenset(_RESERVED.split())
ALL: Literal["all"] = "all"
# The event that takes others away.
WITHDRAW = "pushsse.withdraw"

# What nobody sees makes two names look the same: BOM, soft hyphen, zero-width characters, marks of direction
# (UAX #9), blank fillers, variation selectors. And what can't be encoded: lone surrogates.
_UNSEEN = (
    r"\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164"
    r"\u2800\ud800-\udfff\ufe00-\ufe0f\ufeff\uffa0\ufff0-\uffff"
    # Controls of shorthand and music, tags, selectors: as themselves, since JSON Schema knows no escape.
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
_CONTROL = r"\x00-\x1f\x7f-\x9f"
# In the path of a URL they are steps (RFC 3986, 5.2.4), to browsers escaped ones, too: a call about
# such a name would be one about something else.
_STEPS = (".", "..")
# How a pattern without them begins.
NO_STEP = r"^(?!\.{1,2}\Z)"
# \Z, not $: the latter also matches before a line end. Errors say the description and the example.
TypeName = Annotated[
    str,
    Meta(
        pattern=rf"{NO_STEP}[A-Za-z0-9_.-]{{1,64}}\Z",
        description="an event type: 1–64 letters (a–z, A–Z), digits, dots, hyphens and underscores, "
        "not . or ..",
        examples=["order.paid"],
    ),
]
UserName = Annotated[
    str,
    Meta(
        pattern=rf"{NO_STEP}[^\s{_CONTROL}{_UNSEEN}]{{1,128}}\Z",
        description="a person's name: 1–128 characters without white space, control and invisible "
        "characters, not . or ..",
        examples=["ann"],
    ),
]
EventId = Annotated[
    str,
    Meta(
        pattern=rf"{NO_STEP}[^{_CONTROL}{_UNSEEN}]{{1,128}}\Z",
        description="an id: 1–128 characters without line ends, control and invisible characters, "
        "not . or ..",
        examples=["order-981-paid"],
    ),
]
CollapseKey = Annotated[
    str,
    Meta(
        # Not written as an id's: an error finds its words by the pattern.
        pattern=rf"^(?:[^{_CONTROL}{_UNSEEN}]{{1,128}})\Z",
        description="a key: 1–128 characters without line ends, control and invisible characters",
        examples=["order-981"],
    ),
]
_Time = Annotated[datetime, Meta(tz=True)]
FIRST_TIME = datetime(1970, 1, 1, tzinfo=UTC)
_LEAP_SECOND = re.compile(r"(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:)60(?:\.\d+)?(Z|[+-]\d\d:?\d\d)", re.IGNORECASE)
_NAME_CHARACTERS = 128
_USER = re.compile(rf"[^\s{_CONTROL}{_UNSEEN}]{{1,{_NAME_CHARACTERS}}}")
_NOT_IN_NAMES = re.compile(rf"[\s{_CONTROL}{_UNSEEN}]")
_NOT_IN_IDS = re.compile(rf"[{_CONTROL}{_UNSEEN}]")
_PRINTABLE = bytes(range(0x21, 0x7F))


class Users(Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """People by name."""

    users: Annotated[tuple[UserName, ...], Meta(min_length=1, max_length=MAX_USERS)]


class Event(Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """What a producer sent. `ts` is when it happened, `ttl_s` how many seconds it is worth from then on.

    `message` is the JSON that was sent, byte for byte: its numbers are never read. An event with `collapse`
    takes the place of earlier ones with that key for the same audience; one with `withdraw` takes them away,
    and needs no message.
    """

    type: TypeName
    to: Literal["all"] | Users
    message: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    id: EventId | UnsetType = UNSET
    desc: Annotated[str, Meta(max_length=1024)] = ""
    ts: _Time | UnsetType = UNSET
    ttl_s: Annotated[int, Meta(ge=1, le=31_536_000)] | UnsetType = UNSET
    campaign: Annotated[str, Meta(max_length=128)] = ""
    key: Annotated[str, Meta(min_length=1, max_length=256)] | UnsetType = UNSET
    collapse: CollapseKey | UnsetType = UNSET
    withdraw: CollapseKey | UnsetType = UNSET

    @property
    def users(self) -> tuple[str, ...] | None:
        """The people it is for, each once; None for everybody."""
        to = self.to
        if isinstance(to, str):
            return None
        users = to.users
        return users if len(users) == 1 else tuple(dict.fromkeys(users))


# What JSON Schema can say beside the members of an event.
EVENT_SCHEMA: Mapping[str, object] = {
    "anyOf": [{"required": ["message"]}, {"required": ["withdraw"]}],
    "not": {"required": ["collapse", "withdraw"]},
}


class Change(Struct, frozen=True, array_like=True, gc=False):
    """One change of a person's switches: its number in the database, and the types off before and after.

    `revision` is the catalogue's that both follow from, 0 where it has none or the change comes from a
    release without one. `quiet` are the new quiet hours as text; None: they are as before.
    """

    user: str
    version: int
    before: tuple[str, ...]
    after: tuple[str, ...]
    revision: int = 0
    quiet: str | None = None

    @property
    def size(self) -> int:
        """About the bytes that a log keeps of it."""
        types = "".join(self.before) + "".join(self.after)
        return (
            len(types)
            + len(self.before)
            + len(self.after)
            + _NUMBERS_BYTES
            + utf8_bytes(self.user + (self.quiet or ""))
        )


class Publication(Struct, frozen=True, array_like=True, gc=False):
    """An event with its recipients, encoded for the wire: what the log keeps and every node writes.

    `body` is the `data:` line; `users` None means everybody; a `switchable` one is held back from people
    who have switched its name off; `subject` is the question that it belongs to, and `attempt` the attempt at
    its answer, 0 where it is about none or comes from a release without them. Times in milliseconds.
    `campaign` and `trace` (a W3C traceparent) are for the outcomes, `origin` (the record in Kafka, if its
    id doesn't say so) is for `explain`. Of the publications of one audience with the same `collapse` only
    the newest is replayed.
    """

    name: str
    body: bytes
    users: tuple[str, ...] | None
    switchable: bool = False
    expires_ms: int = 0
    subject: str = ""
    change: Change | None = None
    attempt: int = 0
    campaign: str = ""
    trace: str = ""
    collapse: str = ""
    origin: str = ""

    @property
    def size(self) -> int:
        """About the bytes that a log keeps of it: what pushes older ones out, and what a person pays for."""
        users = self.users
        names = "" if users is None else users[0] if len(users) == 1 else "".join(users)
        texts = f"{self.name}{names}{self.subject}{self.campaign}{self.trace}{self.collapse}{self.origin}"
        # As `utf8_bytes`, whose call is what most publications can do without.
        size = len(self.body) + (len(texts) if texts.isascii() else len(texts.encode()))
        if users is not None:
            size += len(users)
        if self.change is not None:
            size += self.change.size
        return size

    @property
    def data(self) -> bytes:
        """The data as JSON."""
        return self.body[_LABEL_BYTES:-1]

    @property
    def event_id(self) -> str:
        """The id that a person's event has for clients; empty for other publications."""
        try:
            return _identified.decode(self.data).id
        except msgspec.DecodeError:
            return ""

    @property
    def event_id_json(self) -> bytes:
        """The same as JSON, cut out of the data where that begins as a person's event does."""
        body = self.body
        if body.startswith(_ID_BEGINS):
            name = body[_ID_AT : body.find(b'"', _ID_AT + 1) + 1]
            # As a number: to look for bytes takes seven times as long.
            if _BACKSLASH not in name:
                return name
        return _json.encode(self.event_id)

    def frame(self, *, named: bool = True) -> bytes:
        """The SSE event without its `id` line and the blank line (WHATWG HTML, 9.2.5)."""
        return f"event: {self.name}\n".encode() + self.body if named or not self.switchable else self.body


class _Identified(Struct):
    id: str


class _Delivered(Struct):
    id: str
    type: str
    message: msgspec.Raw
    desc: str
    ts: datetime


class _Collapsing(_Delivered):
    """`to` is there for everybody alone: clients keep the keys of both audiences apart."""

    collapse: str
    to: str | UnsetType


class Withdrawn(Struct):
    """The data of the event that takes away what has the key `withdraw`, for the same audience."""

    id: str
    type: str
    withdraw: str
    to: str | UnsetType
    ts: datetime


class _Members(Struct):
    """An event's members before they are looked at; others are passed over."""

    type: msgspec.Raw | UnsetType = UNSET
    message: msgspec.Raw | UnsetType = UNSET
    to: msgspec.Raw | UnsetType = UNSET
    id: msgspec.Raw | UnsetType = UNSET
    desc: msgspec.Raw | UnsetType = UNSET
    ts: msgspec.Raw | UnsetType = UNSET
    ttl_s: msgspec.Raw | UnsetType = UNSET
    campaign: msgspec.Raw | UnsetType = UNSET
    key: msgspec.Raw | UnsetType = UNSET
    collapse: msgspec.Raw | UnsetType = UNSET
    withdraw: msgspec.Raw | UnsetType = UNSET


class _MembersAlone(_Members, forbid_unknown_fields=True):
    """As `_Members`, where an event may have no others."""


class _Audience(Struct, forbid_unknown_fields=True):
    """`to` before the names in it are looked at one by one."""

    users: list[str] | UnsetType = UNSET


_BLANKS = bytes.maketrans(b"\r\n", b"  ")
_NULL = msgspec.Raw(b"null")
_FIELDS = frozenset(Event.__struct_fields__)
_json = msgspec.json.Encoder()
_event = msgspec.json.Decoder(Event)
_identified = msgspec.json.Decoder(_Identified)
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_bounded_members = msgspec.json.Decoder(_Members)
_bounded_members_alone = msgspec.json.Decoder(_MembersAlone)
_audience = msgspec.json.Decoder(_Audience | str)


def decode(body: bytes, *, ignored: Callable[[int], None] | None = None) -> Event:
    """Reads one event, however long the body is. With `ignored` members that it may not have are left out.

    `ignored` is told how many they were. Raises NotJson, or InvalidInput that names the field and the value.
    """
    body = body.removeprefix(strictjson.BOM)
    people: Users | None = None
    if len(body) > _SHORT_BYTES:
        body, people = _bounded(body, ignored)
    try:
        event = _event.decode(body)
    except strictjson.REFUSALS:
        event = _explained(body, ignored)
    if people is not None:
        event = msgspec.structs.replace(event, to=people)
    return _checked(event, body)


def from_json(loaded: object) -> Event:
    """Makes one event of decoded JSON. Raises InvalidInput."""
    event = _converted(loaded, None)
    return _checked(event, bytes(event.message))


def of_members(members: Mapping[str, object], message: bytes, *, looked_at: bool = False) -> Event:
    """Makes one event of its single members, as decoded JSON, and of its message as JSON.

    `looked_at` says that `message` is part of what `strictjson.loads` has taken. Raises NotJson, or
    InvalidInput that names the member.
    """
    given = {**members, "message": msgspec.Raw(message)}
    to = given.get("to")
    if to.__class__ is dict and (people := _many_people(to)) is not None:
        made = msgspec.structs.replace(_of_decoded(given | {"to": ALL}), to=people)
    else:
        made = _of_decoded(given)
    if made.desc or made.campaign or made.key:
        _check_texts(made)
    if not _check_name_and_size(made):
        return _without_message(made)
    if not looked_at:
        try:
            strictjson.loads(message)
        except InvalidInput as error:
            # Where it is in the message is where it is in the event.
            places = (Violation(f"$.message{each.at[1:]}", each.detail) for each in error.violations)
            raise type(error)(*places) from None
    return made


def _of_decoded(given: Mapping[str, object]) -> Event:
    try:
        return msgspec.convert(given, Event)
    except msgspec.ValidationError:
        return _in_leap_second(given)


def _many_people(to: object) -> Users | None:
    """The people of a long list, whose names are checked together; None for any other audience."""
    names = to.get("users") if isinstance(to, dict) and len(to) == 1 else None
    if isinstance(names, list) and len(names) > _FEW_NAMES and all(isinstance(each, str) for each in names):
        return _named_people(names)
    return None


def _check_texts(made: Event) -> None:
    texts = f"{made.desc}{made.campaign}{made.key or ''}"
    if "\x00" not in texts and (texts.isascii() or _is_encodable(texts)):
        return
    for name, text in (("desc", made.desc), ("campaign", made.campaign), ("key", made.key or "")):
        if "\x00" in text or not _is_encodable(text):
            what = "a NUL character" if "\x00" in text else "a lone surrogate"
            raise InvalidInput(Violation(f"$.{name}", f"has {what}, got {strictjson.shown(text)}"))


def _bounded(body: bytes, ignored: Callable[[int], None] | None) -> tuple[bytes, Users | None]:
    """A long body without what is left out, and its people where they are checked by then.

    In that case the body that is returned is for everybody. Raises InvalidInput for what would cost long to
    read.
    """
    try:
        known = _bounded_members.decode(body)
        body.decode()
    except strictjson.REFUSALS as error:
        strictjson.refuse(body, error)
    if unknown := _unknown(body):
        name, count = unknown
        if ignored is None:
            raise InvalidInput(Violation(f"$.{name}"[:200], "isn't known here"))
        ignored(count)
        body = _json.encode(known)
    members = {name: raw for name in _FIELDS if (raw := getattr(known, name)) is not UNSET}
    for name, raw in members.items():
        size = len(memoryview(raw))
        if name == "message" and size > MAX_FRAME_BYTES:
            raise _too_large(size)
        if name not in ("message", "to") and size > _SHORT_BYTES:
            raise InvalidInput(Violation(f"$.{name}"[:200], f"has {size} bytes, far too many"))
    people = _people(members["to"]) if "to" in members else None
    if people is not None:
        known.to = msgspec.Raw(b'"all"')
        body = _json.encode(known)
    return body, people


def _unknown(body: bytes) -> tuple[str, int] | None:
    """The first member that an event may not have, and how many there are: of very many, 1."""
    try:
        _bounded_members_alone.decode(body)
    except strictjson.REFUSALS as error:
        name = str(error).partition("`")[2].rpartition("`")[0]
        # To tell them apart takes a microsecond for each.
        few = body.count(b":") <= _FEW_COLONS
        return name, len(_members.decode(body).keys() - _FIELDS) if few else 1
    return None


def _people(raw: msgspec.Raw) -> Users | None:
    """Many people, whose names are checked together; None where `to` is something else, or wrong.

    Raises InvalidInput for a bad name, and for more people than an event may have: reading their names would
    take long.
    """
    # Two for each name, and for the word before them; an escaped one is within a name. Far too many names are
    # counted alone.
    quotes = bytes(raw)
    if (names := (quotes.count(b'"') - quotes.count(b'\\"')) // 2 - 1) > MAX_USERS:
        raise InvalidInput(Violation("$.to.users", f"has {names} people, over {MAX_USERS}"))
    try:
        to = _audience.decode(raw)
    except strictjson.REFUSALS as error:
        text = str(error).partition(" - at ")[0]
        raise InvalidInput(Violation("$.to", f"isn't an audience: {text}")) from None
    if not isinstance(to, _Audience) or not to.users:
        return None
    return _named_people(to.users)


def _named_people(names: Sequence[str]) -> Users:
    """People by their names, which are checked together. Raises InvalidInput that names the bad one."""
    if len(names) > MAX_USERS:
        raise InvalidInput(Violation("$.to.users", f"has {len(names)} people, over {MAX_USERS}"))
    if (bad := _bad_name(names)) is not None:
        try:
            strictjson.convert(names[bad], UserName)
        except InvalidInput as error:
            detail = error.violations[0].detail
            raise InvalidInput(Violation(f"$.to.users[{bad}]", detail)) from None
    return Users(tuple(names))


def _bad_name(names: Sequence[str]) -> int | None:
    """The place of a name that can't be one: one search in all of them costs a tenth of one in each."""
    for place, name in enumerate(names):
        if not 1 <= len(name) <= _NAME_CHARACTERS or name in _STEPS:
            return place
    together = "".join(names)
    if together.isascii() and not together.encode().translate(None, _PRINTABLE):
        return None
    found = _NOT_IN_NAMES.search(together)
    if found is None:
        return None
    ends = accumulate(len(name) for name in names)
    return next(place for place, end in enumerate(ends) if found.start() < end)


def _explained(body: bytes, ignored: Callable[[int], None] | None) -> Event:
    """Reads what the quick way refused: to say why, or to leave out what may be left out."""
    loaded = strictjson.loads(body)
    if not isinstance(loaded, dict):
        return strictjson.convert(loaded, Event)
    if ignored is not None and not _FIELDS.issuperset(loaded):
        known = {name: value for name, value in loaded.items() if name in _FIELDS}
        ignored(len(loaded) - len(known))
        loaded = known
    return _converted(loaded, _members.decode(body).get("message"))


def _converted(loaded: object, message: msgspec.Raw | None) -> Event:
    """An event of decoded JSON, and of its message as it was sent where there is such a one."""
    if isinstance(loaded, dict) and "message" in loaded:
        if message is None:
            message = msgspec.Raw(_json.encode(loaded["message"]))
        loaded = loaded | {"message": message}
    try:
        return strictjson.convert(loaded, Event)
    except InvalidInput:
        return _in_leap_second(loaded)


def _checked(event: Event, body: bytes) -> Event:
    """What the types don't say. Raises NotJson, InvalidInput; `body` is what the event was read from."""
    message = _check_name_and_size(event)
    if not message:
        return _without_message(event)
    try:
        # msgspec passes over a Raw: neither its UTF-8 nor surrogates nor numbers are looked at.
        strictjson.loads(message)
    except InvalidInput:
        strictjson.loads(body)
        raise
    if b"\\" in body and "\x00" in f"{event.desc}{event.campaign}{event.key or ''}":
        strictjson.loads(body)
    return event


def _check_name_and_size(event: Event) -> bytes:
    """The message. Raises InvalidInput for a reserved type and a message that is too large."""
    if event.type in RESERVED_TYPES or event.type.startswith("pushsse."):
        raise InvalidInput(Violation("$.type", f"{event.type!r} is a name that pushsse itself uses"))
    if event.withdraw and event.collapse:
        detail = f"can't stand beside collapse, got {strictjson.shown(event.withdraw)}"
        raise InvalidInput(Violation("$.withdraw", detail))
    message = bytes(event.message)
    if len(message) > MAX_FRAME_BYTES:
        raise _too_large(len(message))
    return message


def _without_message(event: Event) -> Event:
    """Only what takes others away says nothing of its own. Raises InvalidInput."""
    if not event.withdraw:
        raise InvalidInput(Violation("$.message", "is required"))
    return msgspec.structs.replace(event, message=_NULL)


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _too_large(size: int) -> InvalidInput:
    return InvalidInput(Violation("$.message", f"the frame has {size} bytes, over {MAX_FRAME_BYTES}"))


def publication(
    event: Event, *, event_id: str, at: datetime, max_age_s: int, trace: str = "", origin: str = ""
) -> Publication:
    """Encodes an event once, for every node and stream. `trace` is the traceparent that it came with.

    `at` is the record's time, used where the event has no `ts`; without `ttl_s` it expires `max_age_s`
    after its time, also where that is in the future. Raises InvalidInput where the frame would be over 48 KiB
    or the time isn't one from 1970 to 9999 (in UTC).
    """
    ts = _in_range(event.ts or at)
    ttl_s = event.ttl_s or max_age_s
    data: object
    if event.withdraw or event.collapse:
        data = _keyed(event, event_id, ts)
    else:
        data = _Delivered(event_id, event.type, event.message, event.desc, ts)
    # By its name older clients, which would show it as an event, pass it over.
    name = WITHDRAW if event.withdraw else event.type
    # What was shown before a type was switched off is taken away all the same.
    switchable = not event.withdraw
    expires_ms = milliseconds(ts) + ttl_s * 1000
    collapse = event.withdraw or event.collapse or ""
    # By their places, as below: by their names takes a microsecond more, for each event.
    body, users, campaign = _body(name, data), event.users, event.campaign
    return Publication(
        name, body, users, switchable, expires_ms, "", None, 0, campaign, trace, collapse, origin
    )


def _keyed(event: Event, event_id: str, ts: datetime) -> _Collapsing | Withdrawn:
    """The data of an event with a key."""
    to = ALL if event.to == ALL else UNSET
    if event.withdraw:
        return Withdrawn(event_id, event.type, event.withdraw, to, ts)
    return _Collapsing(event_id, event.type, event.message, event.desc, ts, event.collapse or "", to)


def _in_range(ts: datetime) -> datetime:
    """A time in UTC, in which it must lie between 1970 and 9999."""
    try:
        utc = ts if ts.tzinfo is UTC else ts.astimezone(UTC)
        if utc >= FIRST_TIME:
            return utc
    except OverflowError:
        pass
    detail = f"must lie between 1970-01-01T00:00:00Z and 9999-12-31T23:59:59Z, got {ts.isoformat()}"
    raise InvalidInput(Violation("$.ts", detail))


def milliseconds(ts: datetime) -> int:
    """Since 1970, exact: a float isn't in every year."""
    since = ts - FIRST_TIME
    return since.days * 86_400_000 + since.seconds * 1000 + since.microseconds // 1000


def time_of(text: object, *, at: str) -> datetime:
    """A time by the rules of an event's `ts`, in UTC. Raises InvalidInput that names `at`."""
    try:
        return _in_range(_leap_second(text) or strictjson.convert(text, _Time))
    except InvalidInput as error:
        raise InvalidInput(Violation(at, error.violations[0].detail)) from None


def _in_leap_second(loaded: object) -> Event:
    """Reads what `datetime` refuses for its time alone. Raises InvalidInput."""
    if isinstance(loaded, dict) and (ts := _leap_second(loaded.get("ts"))) is not None:
        loaded = loaded | {"ts": ts}
    return strictjson.convert(loaded, Event)


def _leap_second(text: object) -> datetime | None:
    """The end of the second before a leap second, None for any other text.

    As RFC 3339 (5.6) allows one: 23:59:60 in UTC. Raises InvalidInput.
    """
    found = _LEAP_SECOND.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        return None
    try:
        before = msgspec.convert(f"{found[1]}59.999999{found[2]}", _Time)
    except msgspec.ValidationError:
        return None
    return before if _in_range(before).timetuple()[3:6] == (23, 59, 59) else None


def encode(
    name: str,
    data: object,
    *,
    users: Iterable[str] | None,
    switchable: bool = False,
    expires_ms: int = 0,
    subject: str = "",
    change: Change | None = None,
    campaign: str = "",
    trace: str = "",
    collapse: str = "",
    origin: str = "",
) -> Publication:
    """Makes a publication of any data that msgspec encodes. Raises InvalidInput over 48 KiB."""
    body, to = _body(name, data), None if users is None else tuple(users)
    return Publication(
        name, body, to, switchable, expires_ms, subject, change, 0, campaign, trace, collapse, origin
    )


def _body(name: str, data: object) -> bytes:
    """The `data:` line of a publication. Raises InvalidInput where its frame would be over 48 KiB."""
    line = _json.encode(data)
    if b"\n" in line or b"\r" in line:
        # A message as it was sent may have them between its values, where a blank is the same (RFC 8259, 2).
        line = line.translate(_BLANKS)
    body = _LABEL + line + b"\n"
    if (size := len(name) + len(body) + _ID_LINE_BYTES) > MAX_FRAME_BYTES:
        raise _too_large(size)
    return body


def utf8_bytes(text: str) -> int:
    """How many bytes a text has in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


def is_id(name: str) -> bool:
    """Whether `name` can be an event's id, as `EventId` says."""
    if not 1 <= len(name) <= _NAME_CHARACTERS or name in _STEPS:
        return False
    return name.isprintable() if name.isascii() else _NOT_IN_IDS.search(name) is None


def is_user(name: str) -> bool:
    """Whether `name` can be a person's name, as `UserName` says."""
    if name.isascii():
        is_short = 1 <= len(name) <= _NAME_CHARACTERS
        return is_short and name.isprintable() and " " not in name and name not in _STEPS
    return _USER.fullmatch(name) is not None
