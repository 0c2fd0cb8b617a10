"""Why somebody got an event, or didn't: one timeline of what is known about it.

Called by `GET /v1/users/USER/explain/EVENT`. The log says when the event was published, what came after it,
what the person has switched, and what they have read; the topic of outcomes, where there is one, says what
became of it; the history of switches, which value held at the moment, and who had set it. Deliberate: of
these, only the history is kept for this purpose. The log and the topic have the bounds that they have, and
both are read, in a turn as other long reads are.
"""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import replace

from pushsse.backplane import BROADCAST, Backplane, Entry, log_of
from pushsse.errors import DatabaseUnavailable
from pushsse.event import Publication
from pushsse.hub.catch_up import Scans
from pushsse.kafka import Connection, reader
from pushsse.kafka.producer import partition_of
from pushsse.outcomes import SWITCHED_OFF, Outcome
from pushsse.position import parse
from pushsse.preferences.history import Held, History, How, Moment

logger = logging.getLogger(__name__)
_STEP_ENTRIES = 500
_TURN_S = 10.0
# How long the log is read, and how many records of the topic.
_MOST_S = 20.0
_MOST_RECORDS = 200_000
_TOPIC_S = 10.0
# Before the event's place in the log, for clocks that differ.
_BEFORE_MS = 10_000
_ACK, _SWITCH = "ack", "switch"
# A service's: no producer may use the name.
_PREFERENCES = "preferences"
_EVER = datetime.min.replace(tzinfo=UTC)
_WORDS = {True: "on", False: "off", None: "by default"}

Verdict = Literal[
    "clicked", "read", "received", "written", "offline", "switched_off", "expired", "published", "unknown"
]
# The first that is found is the verdict: the last thing that can happen to an event stands first.
_ORDER: tuple[Verdict, ...] = (
    "clicked", "read", "received", "written", "switched_off", "expired", "offline", "published",
)  # fmt: skip


class Step(Struct, frozen=True, omit_defaults=True):
    """One thing that happened; `node` is where, as far as one node did it.

    Of a switch `how` and `by` say who set it, as far as that is known, and `since` when. `by` is empty where
    the settings file did, and of an administrator who has been forgotten.
    """

    at: datetime
    what: str
    detail: str = ""
    node: str = ""
    how: How = ""
    by: str = ""
    since: datetime | None = None


class Explanation(Struct, frozen=True):
    """What is known about an event and a person, oldest first.

    `incomplete` says what couldn't be looked at.
    """

    user: str
    event: str
    verdict: Verdict
    timeline: tuple[Step, ...]
    incomplete: tuple[str, ...]


class _Acked(Struct):
    """An ack, as far as it is needed."""

    state: str
    ids: tuple[str, ...] | UnsetType = UNSET
    up_to: str | UnsetType = UNSET


class _Switched(Struct):
    """The data of a `preferences` event, as far as it is needed."""

    types: dict[str, bool] = {}
    categories: dict[str, bool | None] = {}
    quiet: msgspec.Raw | UnsetType = UNSET


@dataclass(slots=True)
class _Seen:
    """What the log says."""

    user: str
    event: str
    steps: list[Step] = field(default_factory=list)
    # By the number of the change, which may have several events, and its place among all entries.
    switched: list[tuple[int, Step]] = field(default_factory=list)
    changes: dict[int, int] = field(default_factory=dict)
    published: Entry | None = None
    broadcast: int = 0
    epoch: dict[str, str] = field(default_factory=dict)
    _begin: bytes = b""
    _number: int = 0

    def __post_init__(self) -> None:
        self._begin = b'{"id":' + msgspec.json.encode(self.event) + b","

    def take(self, entries: Iterable[Entry]) -> None:
        """Takes entries of one log after another, in order."""
        for entry in entries:
            publication = entry.publication
            if publication.users is not None and self.user not in publication.users:
                continue
            at = _time(entry.at_ms)
            if publication.name == _PREFERENCES:
                self._take_change(entry)
            elif publication.name == _ACK:
                self._take_ack(entry)
            elif publication.data.startswith(self._begin):
                self._take_event(entry)
            elif self.published is not None and publication.collapse:
                first = self.published.publication
                if publication.collapse == first.collapse and (publication.users is None) == (
                    first.users is None
                ):
                    what = "collapsed" if publication.switchable else "withdrawn"
                    self.steps.append(
                        Step(at, what, f"replays have log {entry.log}, number {entry.number} instead")
                    )

    def moment(self, told: Sequence[Outcome]) -> tuple[str, Moment] | None:
        """The event's type, and when its switch counted; None where neither is known."""
        if (entry := self.published) is not None:
            if not entry.publication.switchable:
                return None
            before = frozenset(number for number, order in self.changes.items() if order < entry.order)
            return entry.publication.name, Moment(entry.at_ms, before, frozenset(self.changes) - before)
        first = min((each for each in told if each.type), key=lambda each: each.at, default=None)
        if first is None:
            return None
        # It isn't in the log: whoever was to publish it had asked the database.
        was_off = first.outcome == SWITCHED_OFF
        return first.type, Moment(int(first.at.timestamp() * 1000), was_off=was_off)

    def _take_change(self, entry: Entry) -> None:
        publication = entry.publication
        # A change that has several events is in the first of them.
        if publication.change is not None:
            self._number = publication.change.version
            self.changes.setdefault(self._number, entry.order)
        self.switched.append((self._number, Step(_time(entry.at_ms), "switched", _switched(publication))))

    def _take_event(self, entry: Entry) -> None:
        publication = entry.publication
        self.published = self.published or entry
        if publication.users is None:
            audience = "everybody"
        elif len(publication.users) == 1:
            audience = "this person"
        else:
            audience = f"{len(publication.users)} people of the same shard"
        details = [f"log {entry.log}, number {entry.number}", f"for {audience}"]
        if publication.origin:
            details.append(f"record {publication.origin}")
        if publication.expires_ms:
            details.append(f"expires {_time(publication.expires_ms).isoformat(timespec='seconds')}")
        if publication.campaign:
            details.append(f"campaign {publication.campaign}")
        self.steps.append(Step(_time(entry.at_ms), "published", "; ".join(details)))

    def _take_ack(self, entry: Entry) -> None:
        try:
            acked = msgspec.json.decode(entry.publication.data, type=_Acked)
        except msgspec.DecodeError:
            return
        if acked.ids and self.event in acked.ids:
            self.steps.append(Step(_time(entry.at_ms), acked.state, "by its id"))
        elif acked.up_to and self._is_up_to(acked.up_to):
            self.steps.append(Step(_time(entry.at_ms), acked.state, f"all up to {acked.up_to}"))

    def _is_up_to(self, up_to: str) -> bool:
        position, entry = parse(up_to), self.published
        if position is None or entry is None:
            return False
        mark = position.broadcast if entry.log == BROADCAST else position.shard
        return mark.epoch == self.epoch.get(entry.log) and mark.number >= entry.number


@dataclass(frozen=True, slots=True)
class OutcomeTopic:
    """Where the outcomes are."""

    connection: Connection
    topic: str


@dataclass(frozen=True, slots=True)
class Explaining:
    """Reads what is known. `outcomes` is None where what becomes of events isn't noted."""

    backplane: Backplane
    scans: Scans
    outcomes: OutcomeTopic | None
    history: History
    window_s: float

    async def explain(self, user: str, event: str) -> Explanation:
        """What became of an event for a person. Raises BackplaneUnavailable, ScansBusy."""
        incomplete: list[str] = []
        seen = await self._seen(user, event, incomplete)
        steps = seen.steps
        told: Sequence[Outcome] = ()
        if self.outcomes is None:
            incomplete.append("PUSHSSE_OUTCOMES is off: what became of the event isn't known")
        else:
            told = await self._told(self.outcomes, seen, incomplete)
            # The log has the acks that the topic has, too.
            known = {(step.what, step.at.replace(microsecond=0)) for step in steps}
            steps += [
                Step(one.at, one.outcome, node=one.node)
                for one in told
                if (one.outcome, one.at.replace(microsecond=0)) not in known
            ]
        try:
            steps += await self._switches(seen, told)
        except DatabaseUnavailable:
            steps += [step for _, step in seen.switched]
            incomplete.append("the database is away: who switched what isn't known")
        if seen.published is None:
            incomplete.append(
                f"the log doesn't have the event: it is older than {self.window_s:.0f} s, wasn't published"
                " (`pushsse dead` lists dead letters), or wasn't for this person when it was"
            )
        happened = {step.what for step in steps}
        verdict: Verdict = next((each for each in _ORDER if each in happened), "unknown")
        at = _time(seen.published.at_ms) if seen.published is not None else _EVER
        return Explanation(user, event, verdict, in_order(steps, at), tuple(incomplete))

    async def _seen(self, user: str, event: str, incomplete: list[str]) -> _Seen:
        """Goes through the person's log and that of the broadcasts."""
        seen = _Seen(user, event)
        loop = asyncio.get_running_loop()
        until = loop.time() + _MOST_S
        async with self.scans.turn(user, limit_s=_TURN_S):
            # Broadcasts first: an ack in the person's log may be of one of them.
            for log in (BROADCAST, log_of(user, self.backplane.shards)):
                after = 0
                while True:
                    async with self.scans.piece():
                        page = await self.backplane.read({log: after}, limit=_STEP_ENTRIES)
                        seen.epoch[log] = page.heads[log].epoch
                        seen.take(page.entries)
                    if not page.entries or not page.more:
                        break
                    after = page.entries[-1].number
                    if loop.time() > until:
                        incomplete.append(f"the log was read for {_MOST_S:.0f} s, up to {log} {after}")
                        return seen
        return seen

    async def _switches(self, seen: _Seen, told: Sequence[Outcome]) -> list[Step]:
        """Who has switched what the log has, and what held for the event. Raises DatabaseUnavailable."""
        made = await self.history.changes(seen.user, list(seen.changes))
        steps = [
            replace(step, how=by.how, by=by.name) if (by := made.get(number)) is not None else step
            for number, step in seen.switched
        ]
        if (found := seen.moment(told)) is not None:
            name, moment = found
            held = await self.history.held(seen.user, name, moment)
            since = _time(held.since_ms) if held.since_ms is not None else None
            steps.append(
                Step(
                    _time(moment.at_ms),
                    _SWITCH,
                    _held(name, held),
                    how=held.by.how,
                    by=held.by.name,
                    since=since,
                )
            )
        return steps

    async def _told(self, outcomes: OutcomeTopic, seen: _Seen, incomplete: list[str]) -> Sequence[Outcome]:
        """What the topic says of the event and the person."""
        key = seen.user.encode()
        if seen.published is not None:
            from_ms = seen.published.at_ms - _BEFORE_MS
        else:
            from_ms = self.backplane.now_ms() - int(self.window_s * 1000)
        found: list[Outcome] = []
        looked_at, topic = 0, outcomes.topic
        # As it is written there: a name may have quotes in it.
        named = msgspec.json.encode(seen.event)
        try:
            async with asyncio.timeout(_TOPIC_S), reader(outcomes.connection) as kafka:
                there = await kafka.ranges(topic)
                if not there:
                    raise OSError(f"the topic {topic} isn't there, or may not be read")
                partition = partition_of(key, list(there))
                start = await kafka.since(topic, partition, from_ms)
                if start is None:
                    return ()
                async for record in kafka.forward(topic, partition, start, there[partition].end):
                    looked_at += 1
                    if record.key == key and record.value and named in record.value:
                        found += _outcome(record.value, seen.event)
                    if looked_at >= _MOST_RECORDS:
                        incomplete.append(f"{topic}: only {looked_at} records were looked at")
                        break
        except TimeoutError:
            incomplete.append(f"{topic}: only what could be read within {_TOPIC_S:.0f} s")
        except OSError as error:
            incomplete.append(f"{topic} can't be read")
            logger.warning("what became of an event can't be read from %s: %s", topic, error)
        return found


def in_order(steps: Iterable[Step], published_at: datetime) -> tuple[Step, ...]:
    """The steps of an event, oldest first. What held when it was published stands before it.

    What nodes did with it stands after it, also where a node's clock is behind: the log has Redis's time.
    """

    def place(step: Step) -> tuple[datetime, bool, bool]:
        at = max(step.at, published_at) if step.node else step.at
        return at, step.what != _SWITCH, bool(step.node)

    return tuple(sorted(steps, key=place))


def _outcome(value: bytes, event: str) -> list[Outcome]:
    try:
        found = msgspec.json.decode(value, type=Outcome)
    except msgspec.DecodeError:
        return []
    return [found] if found.event == event else []


def _held(name: str, held: Held) -> str:
    """What held for a type, and why."""
    if held.rule == "mandatory":
        return f"{name} on, which is mandatory"
    why = {"type": "its own switch", "category": f"category {held.category}", "default": "by default"}
    return f"{name} {_WORDS[held.enabled]}, {why[held.rule]}"


def _switched(publication: Publication) -> str:
    """What the `preferences` event tells of: types and categories by name, and whether quiet hours changed.

    The body is read, not the change: a change knows no categories, and a large one has several bodies.
    """
    try:
        data = msgspec.json.decode(publication.data, type=_Switched)
    except msgspec.DecodeError:
        return "in a way that this release doesn't know"
    says = [f"{name} {'on' if on else 'off'}" for name, on in sorted(data.types.items())]
    says += [f"category {name} {_WORDS[on]}" for name, on in sorted(data.categories.items())]
    if data.quiet is not UNSET:
        says.append("quiet hours")
    return ", ".join(says) or "nothing"


def _time(at_ms: int) -> datetime:
    return datetime.fromtimestamp(at_ms / 1000, UTC)
