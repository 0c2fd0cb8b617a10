"""What a person has read: `POST /v1/acks` says it, `GET /v1/unread` counts what is left.

An ack is an entry of the person's own log, as their events are: their streams on all nodes get it in its
place, and replays and polls, too. Nothing else is stored. What is unread is counted out of the log, in a turn
as other long reads are, and the answer says since when.
"""

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from pushsse import event, position
from pushsse.api import CallLimit, HttpProblem, Query, json_response, read_json
from pushsse.api.identity import STREAM, Identifier
from pushsse.api.polls import RETRY_AFTER, SCAN_WAIT_S
from pushsse.backplane import BROADCAST, Backplane, Draft, log_of
from pushsse.backplane.limits import LogAllowance
from pushsse.errors import InvalidInput, Violation
from pushsse.event import EventId
from pushsse.hub.catch_up import SCAN_ENTRIES, Found, Replay, ScansBusy
from pushsse.hub.opening import From, Opener, Opening
from pushsse.outcomes import Outcomes
from pushsse.position import Mark, Position
from pushsse.stream.frame import Resume

NAME = "ack"
MAX_IDS = 100
# All ids of a call: the log that an ack goes into is shared with other people.
MAX_IDS_BYTES = 8 * 1024
# Entries of each of the two logs that a count goes through, the newest.
MAX_COUNTED = SCAN_ENTRIES
# Of what is read in one turn of the event loop: an ack takes longer than an event.
_STEP_BYTES = 256 * 1024
_READ = frozenset({"read", "clicked"})


class AckRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """What was read: some events by their ids, or (state `read` alone) all up to a position of a stream's.

    Also the data of the event `ack`.
    """

    state: Literal["received", "read", "clicked"]
    ids: Annotated[tuple[EventId, ...], Meta(min_length=1, max_length=MAX_IDS)] | UnsetType = UNSET
    up_to: Annotated[str, Meta(max_length=position.MAX_LENGTH)] | UnsetType = UNSET


class Unread(Struct, frozen=True):
    """How many events are unread, by type, at a position, among those since a time.

    `complete`: whether that is the time asked for. Else the log has lost what was before, or has too much.
    """

    unread: int
    types: dict[str, int]
    since: datetime
    position: str
    complete: bool


@dataclass(frozen=True, slots=True)
class AcksEndpoint:
    """What people have read."""

    identifier: Identifier
    opener: Opener
    replay: Replay
    backplane: Backplane
    limit: CallLimit
    allowance: LogAllowance
    window_s: float
    # Where it is noted what became of events, if it is.
    outcomes: Outcomes | None = None

    async def post(self, request: Request) -> Response:
        """Tells the person's devices what was read; after the 204 it is in the log."""
        who = await self.identifier.identify(request, STREAM)
        wanted = _checked(await read_json(request, AckRequest))
        fields = await self.limit.count(who.user)
        publication = event.encode(NAME, wanted, users=(who.user,))
        await self.allowance.take(who.user, publication.size)
        await self.backplane.publish_to(who.user, (Draft(publication),))
        if self.outcomes is not None and wanted.ids:
            self.outcomes.acked(who.user, wanted.ids, wanted.state)
        return Response(status_code=204, headers={"cache-control": "no-store", **fields})

    async def unread(self, request: Request) -> Response:
        """Counts what is unread."""
        who = await self.identifier.identify(request, STREAM)
        query = Query(request)
        asked_s = query.age_s("since")
        types = query.types()
        since_s = self.window_s if asked_s is None else min(asked_s, self.window_s)
        begin_ms = self.backplane.now_ms() - int(since_s * 1000)
        first_ms = max(begin_ms, await self._first_ms(who.user))
        async with self.opener.opening(who.user, From(at_ms=first_ms)) as opening:
            counted = _Counted()
            await self._count(opening, types, counted)
            return json_response(
                Unread(
                    len(counted),
                    counted.by_type(),
                    datetime.fromtimestamp(first_ms / 1000, UTC),
                    str(opening.cursor.position),
                    complete=first_ms == begin_ms and not counted.gap and opening.resume is not Resume.GAP,
                )
            )

    async def _first_ms(self, user: str) -> int:
        """From when on both logs of a person have everything, and not too much to count.

        Before that, one of them may have an event whose ack the other one no longer has. Raises
        BackplaneUnavailable.
        """
        logs = (BROADCAST, log_of(user, self.backplane.shards))
        heads = (await self.backplane.read(dict.fromkeys(logs, 0), limit=1)).heads
        first_ms = 0
        for log, head in heads.items():
            first_ms = max(first_ms, head.trimmed_ms + 1)
            if (cut := head.number - MAX_COUNTED) >= head.first:
                entries = (await self.backplane.read({log: cut}, limit=1)).entries
                first_ms = max(first_ms, *(entry.at_ms for entry in entries), 0)
        return first_ms

    async def _count(self, opening: Opening, types: frozenset[str] | None, counted: "_Counted") -> None:
        """Goes through the log up to where the node is, beyond one piece in the person's turn.

        Raises HttpProblem 503 where no turn comes, Unavailable.
        """
        if await self._step(opening, types, counted):
            return
        scans = self.replay.scans
        try:
            async with scans.turn(opening.cursor.person.name, limit_s=SCAN_WAIT_S):
                # Not for ever, if new events keep coming.
                while counted.looked_at < 3 * MAX_COUNTED:
                    async with scans.piece():
                        if await self._step(opening, types, counted):
                            return
        except ScansBusy as error:
            raise HttpProblem(503, "overloaded", str(error), RETRY_AFTER) from None
        counted.gap = True

    async def _step(self, opening: Opening, types: frozenset[str] | None, counted: "_Counted") -> bool:
        """Counts one piece; whether it was the last."""
        cursor = opening.cursor
        entries = await self.replay.entries(cursor)
        if cursor.take_gap():
            counted.gap = True
            return False
        passed = self.replay.advance(cursor, entries, types=types, most_bytes=_STEP_BYTES, tells=False)
        counted.looked_at += passed.looked_at
        for found in passed.found:
            counted.take(found)
        return self.replay.is_current(cursor)


class _Ack(Struct):
    """What is read of an ack's data, which a newer release may have written."""

    state: str = ""
    ids: tuple[str, ...] = ()
    up_to: str = ""


_ack = msgspec.json.Decoder(_Ack)


@dataclass(slots=True)
class _Counted:
    """What is unread up to a place in the log: by whether it is for everybody, type and number by id."""

    gap: bool = False
    looked_at: int = 0
    _keys: dict[tuple[bool, str], str] = field(default_factory=dict)
    _unread: dict[bool, dict[str, tuple[str, int]]] = field(default_factory=lambda: {True: {}, False: {}})

    def __len__(self) -> int:
        return sum(map(len, self._unread.values()))

    def by_type(self) -> dict[str, int]:
        """How many there are of each type, in alphabetical order."""
        return dict(
            sorted(Counter(name for one in self._unread.values() for name, _ in one.values()).items())
        )

    def take(self, found: Found) -> None:
        """The next publication of the person's."""
        publication, place = found
        everyone = publication.users is None
        if publication.collapse:
            # Beyond what a replay promises: of two with the same key one is left, whatever lies between.
            replaced = self._keys.pop((everyone, publication.collapse), None)
            self._unread[everyone].pop(replaced or "", None)
        if publication.switchable:
            event_id = publication.event_id
            # At the end also where it comes again: `_read_up_to` takes from the front.
            self._unread[everyone].pop(event_id, None)
            mark = place.broadcast if everyone else place.shard
            self._unread[everyone][event_id] = publication.name, mark.number
            if publication.collapse:
                self._keys[everyone, publication.collapse] = event_id
        elif publication.name == NAME:
            self._read(_ack.decode(publication.data), place)

    def _read(self, ack: _Ack, place: Position) -> None:
        if ack.state not in _READ:
            return
        for event_id in ack.ids:
            for unread in self._unread.values():
                unread.pop(event_id, None)
        if (up_to := position.parse(ack.up_to)) is not None:
            self._read_up_to(True, up_to.broadcast, place.broadcast.epoch)
            self._read_up_to(False, up_to.shard, place.shard.epoch)

    def _read_up_to(self, everyone: bool, mark: Mark, epoch: str) -> None:
        """All of one log up to a mark; nothing where that is of another epoch."""
        unread = self._unread[everyone]
        while mark.epoch == epoch and unread:
            oldest = next(iter(unread))
            if unread[oldest][1] > mark.number:
                return
            del unread[oldest]


def _checked(ack: AckRequest) -> AckRequest:
    """What the types don't say, with each id once. Raises InvalidInput."""
    if (ack.ids is UNSET) is (ack.up_to is UNSET):
        raise InvalidInput(Violation("$", "needs either ids or up_to"))
    if ack.ids is UNSET:
        if ack.state != "read":
            raise InvalidInput(Violation("$.state", f"is 'read' with up_to, got {ack.state!r}"))
        if position.parse(ack.up_to or "") is None:
            raise InvalidInput(Violation("$.up_to", f"isn't an id of a stream's, got {ack.up_to!r}"))
        return ack
    if (size := sum(len(each.encode()) for each in ack.ids)) > MAX_IDS_BYTES:
        raise InvalidInput(Violation("$.ids", f"have {size} bytes together, over {MAX_IDS_BYTES}"))
    return AckRequest(ack.state, tuple(dict.fromkeys(ack.ids)))
