"""`POST /v1/events`: events in, one, NDJSON, or plain text.

What comes in is checked here, whole, and handed to an `Intake`. A body of many lines gives way to others in
between. Without Kafka events go to the dispatcher. With it they go into the topic, keyed so that one person's
events stay in order, and come back through the intake from Kafka. `polls` has the way out.
"""

import asyncio
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache, partial
from typing import Protocol

import msgspec
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from pushsse import event, strictjson
from pushsse.api import MAX_EVENTS_BODY, HttpProblem, json_response, read_body
from pushsse.api.identity import PUBLISH, Identifier
from pushsse.backplane import Backplane, Draft, Receipt
from pushsse.errors import EventTooLarge, InvalidInput, NotJson, Violation
from pushsse.event import Event
from pushsse.hub.people import Revocations
from pushsse.intake import Dispatches, Drafter, cloudevents
from pushsse.intake.cloudevents import CloudEvent
from pushsse.kafka.producer import Outgoing, Producer, RecordTooLarge
from pushsse.stream.immediate import Answer, Reply

_LINES_MEDIA = frozenset({"application/x-ndjson", "application/ndjson", "application/jsonl"})
_JSON_MEDIA = _LINES_MEDIA | {"application/json"}
# No Content-Type, and the one that `curl -d` sends where none is given.
_UNNAMED_MEDIA = frozenset({"", "application/x-www-form-urlencoded"})
# The shortest event has 35 bytes: a body within its limit can't hold more of them.
MAX_LINES = 30_000
MAX_LISTED = 100
# How long one body may hold the event loop.
_TURN_S = 0.005
# What is shorter takes one turn all in all.
_LONG_BYTES = 16 * 1024
_FREED_AT_ONCE = 2_000
Line = bytes
_json = msgspec.json.Encoder()
_CROCKFORD = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ"
# Each byte as the digit of its last five bits.
_DIGITS = _CROCKFORD * 8
EVERYBODY = b"all"
# What is dispatched in one piece: more would hold the event loop for over some milliseconds.
_MOST_EVENTS = 500
_MOST_RECIPIENTS = 2_000


class Submitted(Struct, frozen=True, gc=False):
    """An event that came by HTTP: checked, named, and encoded (so it is known to fit into a frame)."""

    event: Event
    event_id: str
    draft: Draft


class Intake(Protocol):
    """Takes events from producers without Kafka.

    Order: that of acceptance; with Kafka behind it, within a key. Guarantee: what was accepted outlives this
    process as far as the parts behind it do. Cancelled or failed, any of the events may have been taken:
    submitting the same ids again is right, and repeats none.
    """

    async def accept(self, submitted: Sequence[Submitted]) -> int | None:
        """Returns when all are taken: how many recipients had them already, or None where that shows later.

        A broadcast counts as one. Raises Unavailable.
        """
        ...

    @property
    def takes_nowait(self) -> bool:
        """Whether `accept_nowait` may take an event just now: asked before the event is decoded."""
        ...

    def accept_nowait(self, submitted: Submitted) -> Receipt | None:
        """As `accept` with one event, without waiting; None where that can't be, and it wasn't taken."""
        ...


class Cloud(Protocol):
    """A CloudEvent that isn't read yet."""

    def __call__(self, *, at: datetime) -> CloudEvent:
        """It; `at` is its time where it has none. Raises NotJson, InvalidInput."""
        ...


class Rejected(msgspec.Struct, frozen=True):
    """One line that isn't an event."""

    line: int
    errors: tuple[Mapping[str, str], ...]


class AcceptedEvents(msgspec.Struct, frozen=True):
    """What became of the events of one call.

    `repeated` counts the recipients who had an event of this type and id already, and a broadcast as one;
    with Kafka behind this call that shows later, in the metrics alone. `unlisted` counts the rejected lines
    after the first 100.
    """

    accepted: int
    ids: tuple[str, ...]
    rejected: tuple[Rejected, ...]
    repeated: int | msgspec.UnsetType = msgspec.UNSET
    unlisted: int | msgspec.UnsetType = msgspec.UNSET


@dataclass(frozen=True, slots=True)
class EventsEndpoint:
    """Events in by plain calls."""

    identifier: Identifier
    intake: Intake
    drafter: Drafter
    backplane: Backplane
    revocations: Revocations

    async def post(self, request: Request) -> Response:
        """Takes events; with at least one accepted it is a 202."""
        await self.identifier.identify(request, PUBLISH)
        body = await read_body(request, MAX_EVENTS_BODY)
        if len(body) > _LONG_BYTES:
            # To check a long body begins in a turn of its own, as does whatever follows for many events.
            await asyncio.sleep(0)
        checked = await self._checked(request, body)
        if not checked.submitted:
            raise InvalidInput(*checked.violations)
        if len(body) > _LONG_BYTES:
            await asyncio.sleep(0)
        repeated = await self.intake.accept(checked.submitted)
        if len(body) > _LONG_BYTES:
            await asyncio.sleep(0)
        answer = checked.answer(repeated)
        # To free tens of thousands of events at once takes 10 ms.
        while len(checked.submitted) > _FREED_AT_ONCE:
            del checked.submitted[-_FREED_AT_ONCE:]
            await asyncio.sleep(0)
        return json_response(answer, 202)

    def posting(self, request: Request) -> Answer | None:
        """`post` for the bodies behind one head: what answers one event without waiting; None: `post` has to.

        Raises what `post` raises for such a head.
        """
        # First what costs nothing: ASGI checks the token once more.
        if not self.intake.takes_nowait or _media_type(request) != "application/json":
            return None
        if cloudevents.is_binary(request.headers.keys()) or _is_told(request):
            return None
        who = self.identifier.identify_nowait(request, PUBLISH)
        if who is None:
            return None

        def answer(body: bytes) -> Reply | None:
            # The protocol remembers a connection's head, so a later body may come after the token's end,
            # after a kick, or after its key was withdrawn.
            if who.has_expired or self.revocations.refuses(who.user, who.issued_at):
                return None
            if who.is_current is not None and not who.is_current():
                return None
            if not self.intake.takes_nowait:
                return None
            submitted = self._of_event(event.decode(body), self.backplane.now_ms())
            receipt = self.intake.accept_nowait(submitted)
            if receipt is None:
                return None
            accepted = AcceptedEvents(1, (submitted.event_id,), (), receipt.repeated)
            return Reply(202, b"application/json", _json.encode(accepted))

        return answer

    async def _checked(self, request: Request, body: bytes) -> "_Checked":
        checked = _Checked()
        loop = asyncio.get_running_loop()
        until = loop.time() + _TURN_S
        for number, given in _given(request, body):
            try:
                checked.submitted.append(self._submitted(given))
            except InvalidInput as error:
                checked.reject(number, error)
            if loop.time() > until:
                await asyncio.sleep(0)
                until = loop.time() + _TURN_S
        return checked

    def _submitted(self, given: Event | Line | Cloud) -> Submitted:
        # By the backplane's clock, which says when it expires: this node's may be off.
        now_ms = self.backplane.now_ms()
        if isinstance(given, Event):
            return self._of_event(given, now_ms)
        if isinstance(given, bytes):
            return self._of_event(event.decode(given), now_ms)
        at = datetime.fromtimestamp(now_ms / 1000, UTC)
        cloud = given(at=at)
        event_id = cloud.event.id or _ulid(now_ms)
        try:
            draft = self.drafter.draft(
                cloud.event, event_id=event_id, at=at, once=cloud.once, trace=cloud.trace
            )
        except InvalidInput as error:
            raise cloud.named(error) from None
        return Submitted(cloud.event, event_id, cloud.ending(draft))

    def _of_event(self, given: Event, now_ms: int) -> Submitted:
        event_id = given.id or _ulid(now_ms)
        at = datetime.fromtimestamp(now_ms / 1000, UTC)
        return Submitted(given, event_id, self.drafter.draft(given, event_id=event_id, at=at))


@dataclass(slots=True)
class _Checked:
    """The lines of one body: the events, and the first 100 that aren't events, with the reasons."""

    submitted: list[Submitted] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    violations: list[Violation] = field(default_factory=list)
    unlisted: int = 0

    def reject(self, line: int, error: InvalidInput) -> None:
        """A line that isn't an event."""
        if len(self.rejected) == MAX_LISTED:
            self.unlisted += 1
            return
        self.violations += error.violations
        errors = tuple({"at": each.at, "detail": each.detail} for each in error.violations)
        self.rejected.append(Rejected(line, errors))

    def answer(self, repeated: int | None) -> AcceptedEvents:
        """What the caller is told."""
        return AcceptedEvents(
            len(self.submitted),
            tuple(each.event_id for each in self.submitted),
            tuple(self.rejected),
            msgspec.UNSET if repeated is None else repeated,
            self.unlisted or msgspec.UNSET,
        )


def _ulid(at_ms: int) -> str:
    """A name that nobody else has, and that sorts by its time: 48 bits of that, 80 random ones (ULID)."""
    digits = b"%b%c%c%b" % (_slow_digits(at_ms >> 10), at_ms >> 5 & 31, at_ms & 31, random.randbytes(16))
    return digits.translate(_DIGITS).decode()


@lru_cache(maxsize=1)
def _slow_digits(seconds: int) -> bytes:
    """The eight digits of a ULID that stay the same for 1,024 ms, as numbers."""
    return bytes([seconds >> shift & 31 for shift in range(35, -1, -5)])


def _given(request: Request, body: bytes) -> Iterable[tuple[int, Event | Line | Cloud]]:
    """What a body holds, by line: a text, one event, one event a line, or CloudEvents.

    Raises NotJson, InvalidInput.
    """
    kind = _media_type(request)
    if (clouds := _clouds(request, kind, body)) is not None:
        return clouds
    if request.scope["query_string"] and "type" in request.query_params and kind not in _JSON_MEDIA:
        return [(1, _text(request, body))]
    if _is_told(request):
        # They mean nothing beside JSON, and a wrong one is a mistake all the same.
        _refuse_wrong(request.query_params)
    if kind not in _JSON_MEDIA and kind not in _UNNAMED_MEDIA:
        raise HttpProblem(415, "media_type", f"{kind[:80]!r} isn't JSON; for text give ?type=…&to=…")
    if kind in _LINES_MEDIA:
        return _lines(body)
    try:
        return [(1, event.decode(body))]
    except NotJson:
        # Many events under the name of one: each line is JSON by itself.
        first, _, rest = body.removeprefix(strictjson.BOM).lstrip().partition(b"\n")
        if not _is_json(first) or not rest.strip():
            raise
        return _lines(body)


def _clouds(request: Request, kind: str, body: bytes) -> Iterable[tuple[int, Cloud]] | None:
    """The CloudEvents of a request, by number; None for any other request. Raises NotJson, InvalidInput."""
    to = request.query_params.get("to") if request.scope["query_string"] else None
    if kind == cloudevents.STRUCTURED:
        return [(1, partial(cloudevents.of_json, body, to=to))]
    if kind == cloudevents.BATCH:
        each = cloudevents.batch(body)
        if len(each) > MAX_LINES:
            raise HttpProblem(413, "too_many_lines", f"the batch has more than {MAX_LINES} events")
        return (
            (number, partial(cloudevents.of_json, bytes(one), to=to)) for number, one in enumerate(each, 1)
        )
    if cloudevents.is_binary(request.headers.keys()):
        return [(1, partial(cloudevents.of_fields, request.headers.items(), body, to=to))]
    return None


def _media_type(request: Request) -> str:
    """The media type of a body, without its parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _lines(body: bytes) -> Iterator[tuple[int, Line]]:
    """The lines that aren't blank, by number, made as they are read. Raises HttpProblem 413 at once."""
    if body.count(b"\n") > MAX_LINES:
        raise HttpProblem(413, "too_many_lines", f"the body has more than {MAX_LINES} lines")
    return ((number, line) for number, line in enumerate(body.split(b"\n"), 1) if line.strip())


def _is_json(line: bytes) -> bool:
    try:
        msgspec.json.decode(line, type=msgspec.Raw)
    except msgspec.DecodeError:
        return False
    except RecursionError:
        return True
    return True


def _is_told(request: Request) -> bool:
    """Whether the query says of what type an event is, or for whom."""
    return bool(request.scope["query_string"]) and not {"type", "to"}.isdisjoint(request.query_params)


def _refuse_wrong(parameters: Mapping[str, str]) -> None:
    """Raises InvalidInput for a type or an audience that no text could have."""
    to = parameters.get("to", "all")
    audience: object = "all" if to == "all" else {"users": [to]}
    event.from_json({"type": parameters.get("type", "text"), "to": audience, "message": ""})


def _text(request: Request, body: bytes) -> Event:
    """`?type=T&to=all` with any other body: a text message."""
    parameters = request.query_params
    to = parameters.get("to")
    if to is None:
        raise HttpProblem(400, "parameter_missing", "type= needs to=all or to=USER beside it")
    body = body.removeprefix(strictjson.BOM)
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise NotJson(
            Violation("$", f"isn't UTF-8: byte {error.start} is 0x{body[error.start]:02x}")
        ) from None
    if "\x00" in text:
        raise InvalidInput(Violation("$.message", "has a NUL character"))
    audience = "all" if to == "all" else {"users": [to]}
    return event.from_json({"type": parameters["type"], "to": audience, "message": text})


class DispatchesNowait(Dispatches, Protocol):
    """A dispatcher that can do without waiting where nothing has to be waited for."""

    def dispatch_nowait(self, draft: Draft) -> Receipt | None:
        """As `dispatch` with one draft; None where it has to wait, and nothing was published."""
        ...


class EmbeddedIntake:
    """An intake without Kafka; see `Intake`."""

    def __init__(self, dispatcher: DispatchesNowait, *, waits: bool) -> None:
        """`waits` says that the dispatcher's backplane or database is always to be waited for."""
        self._dispatcher = dispatcher
        self._waits = waits
        self._one_at_a_time = asyncio.Lock()
        # Calls that hold the lock or wait for it. The lock itself is open for a moment between two of them.
        self._accepting = 0

    async def accept(self, submitted: Sequence[Submitted]) -> int:
        """Returns when the log has all of them: how many recipients had them already. Raises Unavailable."""
        drafts = [each.draft for each in submitted]
        repeated = 0
        # Order: one call after another, since a call's portions are dispatched one after another.
        self._accepting += 1
        try:
            async with self._one_at_a_time:
                for at, portion in enumerate(_portions(drafts)):
                    if at:
                        # Where nothing has to be waited for, all of them would be one turn of the event loop.
                        await asyncio.sleep(0)
                    repeated += (await self._dispatcher.dispatch(portion)).repeated
        finally:
            self._accepting -= 1
        return repeated

    @property
    def takes_nowait(self) -> bool:
        """Whether `accept_nowait` may take an event just now: asked before the event is decoded."""
        # Order is that of acceptance: while others are being dispatched, this one has to wait.
        return not (self._waits or self._accepting)

    def accept_nowait(self, submitted: Submitted) -> Receipt | None:
        """As `accept` with one event, without waiting; None where that can't be, and it wasn't taken."""
        if self._waits or self._accepting:
            return None
        return self._dispatcher.dispatch_nowait(submitted.draft)


class KafkaProducerIntake:
    """An intake that writes to Kafka; see `Intake`."""

    def __init__(self, producer: Producer, *, topic: str) -> None:
        self._producer = producer
        self._topic = topic
        self._encoder = msgspec.json.Encoder()

    async def accept(self, submitted: Sequence[Submitted]) -> None:
        """Returns when Kafka has all. Raises KafkaUnavailable, or EventTooLarge: the others are taken."""
        # What comes a second time is known by its id.
        refused = await self._producer.send_each(self._topic, [self._record(each) for each in submitted])
        for reason in refused.values():
            if not isinstance(reason, RecordTooLarge):
                raise reason
        if refused:
            raise EventTooLarge([submitted[at].event_id for at in refused])

    @property
    def takes_nowait(self) -> bool:
        """Never: Kafka has to be waited for."""
        return False

    def accept_nowait(self, submitted: Submitted) -> None:
        """Takes none."""

    def _record(self, submitted: Submitted) -> Outgoing:
        named = msgspec.structs.replace(submitted.event, id=submitted.event_id)
        trace = submitted.draft.publication.trace
        headers = (("traceparent", trace.encode()),) if trace else ()
        return Outgoing(key_of(submitted.event), self._encoder.encode(named), headers)


def key_of(event: Event) -> bytes:
    """What keeps events in order: the event's own key, else the only user, else one for everybody."""
    if event.key:
        return event.key.encode()
    users = event.users
    return users[0].encode() if users is not None and len(users) == 1 else EVERYBODY


def _portions(drafts: Sequence[Draft]) -> Iterator[Sequence[Draft]]:
    start = recipients = 0
    for at, draft in enumerate(drafts):
        more = len(draft.publication.users or ())
        if at - start == _MOST_EVENTS or (at > start and recipients + more > _MOST_RECIPIENTS):
            yield drafts[start:at]
            start, recipients = at, 0
        recipients += more
    if start < len(drafts):
        yield drafts[start:]
