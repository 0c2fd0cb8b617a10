"""Who is there, and who was away: which people have streams, on which nodes, since when; when they were last
seen; and who wasn't there for an event, so that something else can reach them.

Each node tells the backplane once a second who has come and left, under a lease: of a node that dies, nobody
is there 12 s later. `api/admin` asks `Presence`, a service. When somebody's last stream on a node has ended,
the database gets the time. Deliberate: no event and no stream costs a call of its own; a stream that opens
and closes within a second may not be told of at all.

`Offline` is a service, too, but one node has this duty for all, and another takes it over within 10 s of its
death. It asks the backplane, some seconds behind the end of the shards' logs, who had no stream for 10 s from
an event on, and hands those to `Outcomes`. The place up to which Kafka has them is kept beside the logs:
after a death some may come twice, and none is left out. Deliberate: it is behind by more than a lease of
presence, because until then a node that has died may seem to have the people who were on it.
"""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import NamedTuple, Protocol

from tortoise import fields
from tortoise.indexes import Index
from tortoise.models import Model

from pushsse.backplane import PRESENCE_AT_ONCE, PRESENCE_LEASE_MS, Backplane, Missed, Search, Stay, fresh_word
from pushsse.database import Database, Statement, instant, time_of
from pushsse.dispatcher import KnowsSwitches, SwitchedOff
from pushsse.errors import BackplaneUnavailable, DatabaseUnavailable, Unavailable
from pushsse.event import Publication
from pushsse.hub.hub import Hub
from pushsse.hub.people import Revocations
from pushsse.outcomes import EXPIRED, OFFLINE, SWITCHED_OFF, Outcomes
from pushsse.position import Mark
from pushsse.retry import Backoff, Outage

logger = logging.getLogger(__name__)
# Also where nobody has come or left: when a node dies, it isn't known who was there since it last told.
TELL_EVERY_S = 1.0
SEEN_EVERY_S = 4.0
# A person without a stream for less than this was never away.
AWAY_AFTER_S = 10.0
# How long a node says that somebody was there. Longer than whoever asks about a moment may be late.
_REMEMBER_S = 120.0
_SEEN_AT_ONCE = 100
# What waits for a database that is away; beyond it the oldest are not written.
_MOST_SEEN = 100_000
# At the end.
_LAST_S = 0.5
_FORGET_EVERY_S = 3600.0
FORGOTTEN_AT_ONCE = 1_000
_PAUSE_S = 0.1

DUTY = "offline"
# Without a stream for so long from an event on, a person was offline for it.
AWAY_MS = 10_000
# With the second in which a stream that has opened is told.
BEHIND_MS = max(AWAY_MS, PRESENCE_LEASE_MS) + 2_000
_LOOK_EVERY_S = 1.0
_DUTY_LEASE_MS = 10_000
# Entries and people of one search, which takes Redis some 5 ms.
_AT_ONCE = 1_000
_LOGS_AT_ONCE = 8
_RECIPIENTS_AT_ONCE = 2_000
# How far back the first look goes: what the process before this one may not have seen to its end.
_FIRST_MS = 60_000
# An event, and somebody who was away for it.
Away = tuple[Publication, str]


class OnNode(NamedTuple):
    """A person's streams on one node, and since when there is one there."""

    node: str
    streams: int
    since: datetime


class Whereabouts(NamedTuple):
    """Where a person has streams, and when the last one ended; None where that isn't known.

    Of somebody who is there, `last_seen` is None.
    """

    nodes: tuple[OnNode, ...]
    last_seen: datetime | None

    @property
    def streams(self) -> int:
        """On all nodes."""
        return sum(one.streams for one in self.nodes)


class Seen(Protocol):
    """Where it is kept when people were last there. Every call raises DatabaseUnavailable."""

    async def note(self, seen: Mapping[str, datetime]) -> None:
        """These people were there until then."""
        ...

    async def last(self, users: Sequence[str]) -> Mapping[str, datetime]:
        """When these people were last there, as far as that is known."""
        ...

    async def forget_old(self, before: datetime) -> int:
        """Drops some who were last there before a time; how many."""
        ...


class Left(NamedTuple):
    """Somebody whose last stream on this node has ended: when he had come, and when that was."""

    since_ms: int
    left_ms: int


class Presence:
    """Tells who is at this node, and says who is at any."""

    def __init__(
        self,
        hub: Hub,
        backplane: Backplane,
        seen: Seen,
        *,
        revocations: Revocations,
        node: str,
        keep_days: int = 30,
    ) -> None:
        """`keep_days`: how long it is kept when somebody was last there; 0: it isn't."""
        self._hub = hub
        self._backplane = backplane
        self._seen = seen
        self._revocations = revocations
        self._node = node
        self._place = ""
        self._keep = timedelta(days=keep_days)
        # People without a stream here who had one a moment ago, in the order in which they left.
        self._left: dict[str, Left] = {}
        self._untold: set[str] = set()
        # When people left whom the database has not been told of yet.
        self._unwritten: dict[str, Left] = {}
        self._outage = Outage("nobody can be told who is at this node", logger, Backoff())
        # Since when the backplane has known who is at this node, without a break; monotonic seconds.
        self.known_since: float | None = None

    # For who asks

    async def whereabouts(self, users: Sequence[str]) -> Mapping[str, Whereabouts]:
        """Where these people are. Raises BackplaneUnavailable.

        While the database is away, it isn't known when people were last there who left minutes ago.
        """
        stays = await self._backplane.presence(users)
        nodes = {
            user: tuple(
                OnNode(place.rpartition("~")[0], stay.streams, _time(stay.since_ms))
                for place, stay in sorted(at.items())
                if stay.streams
            )
            for user, at in stays.items()
        }
        away = [user for user in users if not nodes.get(user)]
        last: dict[str, datetime] = {}
        if away:
            with suppress(DatabaseUnavailable):
                last.update(await self._seen.last(away))
        for user in away:
            # Newer than the database, which is told a moment later.
            left_ms = max((stay.left_ms for stay in stays.get(user, {}).values()), default=0)
            if left_ms:
                last[user] = max(_time(left_ms), last.get(user, _time(0)))
        return {user: Whereabouts(nodes.get(user, ()), last.get(user)) for user in users}

    # The service

    async def run(self) -> None:
        """Tells for ever who is at this node; at its end that nobody is."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._tell_all(), name="presence")
                tasks.create_task(self._write_seen(), name="last seen")
        finally:
            with suppress(DatabaseUnavailable, TimeoutError):
                async with asyncio.timeout(_LAST_S):
                    await self._write()
            await self._leave()

    async def _tell_all(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                await self._tell(loop.time())
            except BackplaneUnavailable as error:
                await asyncio.sleep(self._outage.failed(error))
                continue
            self._outage.over()
            await asyncio.sleep(TELL_EVERY_S * random.uniform(0.8, 1.2))

    async def _tell(self, now: float) -> None:
        now_ms = self._backplane.now_ms()
        moved = self._hub.take_moved()
        self._note(moved, now_ms)
        # What a call that failed was to tell is told by the next one.
        self._untold |= moved.keys() | self._over(now_ms)
        if self.known_since is not None and await self._told(list(self._untold)):
            self._untold.clear()
            return
        # The backplane has lost it, or hasn't been told anything for so long that the lease has ended. At a
        # new place, since what was told of the old one says who was there until then.
        self.known_since, self._place = None, f"{self._node}~{fresh_word()}"
        if await self._told([*self._hub.users(), *self._left], anew=True):
            self.known_since = now
            self._untold.clear()

    async def _told(self, users: Sequence[str], *, anew: bool = False) -> bool:
        """Whether the backplane has taken it, with which the lease begins again."""
        for start in range(0, max(1, len(users)), PRESENCE_AT_ONCE):
            stays = {user: self._stay(user) for user in users[start : start + PRESENCE_AT_ONCE]}
            if not await self._backplane.tell_presence(self._place, stays, anew=anew and start == 0):
                return False
        return True

    def _stay(self, user: str) -> Stay | None:
        person, left = self._hub.person(user), self._left.get(user)
        left_ms = 0 if left is None else left.left_ms
        if person is not None and person.subscribers:
            return Stay(len(person.subscribers), person.since_ms, left_ms)
        return None if left is None else Stay(0, left.since_ms, left_ms)

    def _note(self, moved: Mapping[str, int], now_ms: int) -> None:
        """Notes who has left, and who has come back before he was away."""
        for user, since_ms in moved.items():
            person, left = self._hub.person(user), self._left.get(user)
            if left is not None and since_ms - left.left_ms < AWAY_AFTER_S * 1000:
                # A page that reloads: its person has been here all the time.
                since_ms = left.since_ms
                del self._left[user]
            if person is not None and person.subscribers:
                person.since_ms = min(since_ms, person.since_ms)
                self._unwritten.pop(user, None)
            else:
                # At the end, since `_over` looks at the beginning alone.
                self._left.pop(user, None)
                self._left[user] = left = Left(since_ms, now_ms)
                if self._keep:
                    self._unwritten[user] = left

    def _over(self, now_ms: int) -> set[str]:
        """Forgets who left long ago; who of them hasn't come back is to be forgotten elsewhere, too."""
        over = set()
        for user, left in self._left.items():
            if now_ms - left.left_ms < _REMEMBER_S * 1000:
                break
            over.add(user)
        for user in over:
            del self._left[user]
        return over

    async def _leave(self) -> None:
        """Nobody is at this node any more; a node that can't say so is forgotten with its lease."""
        try:
            # The streams have ended by now, or do so with the process.
            await self._tell(asyncio.get_running_loop().time())
            await self._backplane.end_presence(self._place)
        except BackplaneUnavailable as error:
            logger.info("the backplane can't be told that nobody is at this node any more: %s", error)

    # The database

    async def _write_seen(self) -> None:
        outage = Outage("when people were last there can't be written", logger, Backoff())
        forgets_at = 0.0
        loop = asyncio.get_running_loop()
        while True:
            # A moment later: most who leave come back at once.
            await asyncio.sleep(SEEN_EVERY_S * random.uniform(0.8, 1.2))
            try:
                await self._write()
                if loop.time() >= forgets_at:
                    await self._forget_old()
                    forgets_at = loop.time() + _FORGET_EVERY_S * random.uniform(0.75, 1.25)
            except DatabaseUnavailable as error:
                await asyncio.sleep(outage.failed(error))
            else:
                outage.over()

    async def _write(self) -> None:
        """Writes when people left, those who left first before the others. Raises DatabaseUnavailable."""
        while len(self._unwritten) > _MOST_SEEN:
            del self._unwritten[next(iter(self._unwritten))]
        while self._unwritten:
            portion = dict(islice(self._unwritten.items(), _SEEN_AT_ONCE))
            # Of whom a kick ended the streams it isn't kept: that may be somebody who is being forgotten, and
            # what is written now would stay.
            await self._seen.note(
                {
                    user: _time(left.left_ms)
                    for user, left in portion.items()
                    if not self._revocations.refuses(user, left.since_ms / 1000)
                }
            )
            for user, left in portion.items():
                # Who has left once more meanwhile stays.
                if self._unwritten.get(user) == left:
                    del self._unwritten[user]

    async def _forget_old(self) -> None:
        before, forgotten = datetime.now(UTC) - self._keep, FORGOTTEN_AT_ONCE
        while forgotten == FORGOTTEN_AT_ONCE:
            forgotten = await self._seen.forget_old(before)
            # Others write meanwhile.
            await asyncio.sleep(_PAUSE_S)


def _time(at_ms: int) -> datetime:
    return datetime.fromtimestamp(at_ms / 1000, UTC)


class SeenRow(Model):
    """When somebody's last stream ended."""

    user = fields.CharField(max_length=128, primary_key=True)
    seen_at = fields.DatetimeField()

    class Meta:
        table = "pushsse_seen"
        indexes = (Index(fields=["seen_at"]),)


_LAST = Statement('SELECT "user", seen_at FROM pushsse_seen WHERE "user" {among[1]}')
_FORGET_OLD = Statement("""
    DELETE FROM pushsse_seen WHERE "user" IN
        (SELECT "user" FROM pushsse_seen WHERE seen_at < {time[1]} LIMIT {value[2]}) RETURNING 1""")
_FORGET = Statement('DELETE FROM pushsse_seen WHERE "user" = {value[1]} RETURNING 1')


class SeenTable:
    """When people were last there, in the database; see `Seen`. Everything raises DatabaseUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def note(self, seen: Mapping[str, datetime]) -> None:
        """These people were there until then. Of two nodes the later call holds."""
        if not seen:
            return
        async with self._database.session():
            rows = [SeenRow(user=user, seen_at=at) for user, at in seen.items()]
            await SeenRow.bulk_create(rows, on_conflict=("user",), update_fields=("seen_at",))

    async def last(self, users: Sequence[str]) -> Mapping[str, datetime]:
        """When these people were last there, as far as that is known."""
        return dict(await self._database.read(_seen, _LAST, list(users)))

    async def forget_old(self, before: datetime) -> int:
        """Drops some who were last there before a time; how many."""
        return len(await self._database.rows(int, _FORGET_OLD, instant(before), FORGOTTEN_AT_ONCE))

    async def forget(self, user: str) -> Mapping[str, int]:
        """Deletes when a person was last there."""
        return {"seen": len(await self._database.rows(int, _FORGET, user))}


def _seen(user: str, at: datetime | str) -> tuple[str, datetime]:
    return user, time_of(at)


# Who was away


class Offline:
    """Finds who was away for events, for as long as no other node has this duty."""

    def __init__(
        self,
        backplane: Backplane,
        presence: Presence,
        switches: KnowsSwitches,
        outcomes: Outcomes,
        *,
        node: str,
    ) -> None:
        self._backplane = backplane
        self._presence = presence
        self._switches = switches
        self._outcomes = outcomes
        self._node = node
        self._logs = tuple(map(str, range(backplane.shards)))

    async def run(self) -> None:
        """Looks once a second, for ever."""
        outage = Outage("people who are offline can't be found", logger, Backoff())
        while True:
            try:
                await self._look()
            except Unavailable as error:
                await asyncio.sleep(outage.failed(error))
                continue
            outage.over()
            await asyncio.sleep(_LOOK_EVERY_S * random.uniform(0.8, 1.2))

    async def _look(self) -> None:
        """Looks at all that there is to see. Raises Unavailable."""
        done = await self._keep({})
        if done is None or not self._is_known():
            return
        before_ms = self._backplane.now_ms() - BEHIND_MS
        after = dict(await self._after(done, before_ms))
        # All logs at once, where mostly there is little to see; the rest of much, a few logs at a time, since
        # each log that is asked about costs a search something, whatever it has.
        groups = deque([self._logs])
        clock = asyncio.get_running_loop().time
        keep_at = clock() + _LOOK_EVERY_S
        while groups and self._is_known():
            found = await self._search({name: after[name] for name in groups[0]}, before_ms)
            for missed in _portions(found.missed):
                await self._tell(missed)
                # A portion takes less time than the lease has, all of them may not.
                if await self._keep({}) is None:
                    return
            after |= found.marks
            logs = groups[0] if found.more else groups.popleft()
            if found.more and len(logs) > _LOGS_AT_ONCE:
                groups = deque(logs[at : at + _LOGS_AT_ONCE] for at in range(0, len(logs), _LOGS_AT_ONCE))
            # Noted at once where somebody was told of, so that after a death few come twice. What nobody was
            # away for costs a command a second.
            if found.missed or not groups or clock() >= keep_at:
                keep_at = clock() + _LOOK_EVERY_S
                changed = {name: mark for name, mark in after.items() if done.get(name) != mark}
                done = await self._keep(changed) if changed else done
                if done is None:
                    return

    async def _search(self, after: Mapping[str, Mark], before_ms: int) -> Search:
        return await self._backplane.missed(after, before_ms=before_ms, away_ms=AWAY_MS, limit=_AT_ONCE)

    def _is_known(self) -> bool:
        """Whether it is known who is where: after an outage each node has to tell it anew."""
        since = self._presence.known_since
        return since is not None and (asyncio.get_running_loop().time() - since > PRESENCE_LEASE_MS / 1000)

    async def _keep(self, done: Mapping[str, Mark]) -> Mapping[str, Mark] | None:
        return await self._backplane.duty(DUTY, self._node, done, lease_ms=_DUTY_LEASE_MS)

    async def _after(self, done: Mapping[str, Mark], before_ms: int) -> Mapping[str, Mark]:
        """Up to where each log was looked at; of one that never was, what came a moment ago is looked at."""
        new = [name for name in self._logs if name not in done]
        begins = await self._backplane.since(new, before_ms - _FIRST_MS) if new else {}
        return {name: done[name] if name in done else Mark("", begins[name]) for name in self._logs}

    async def _tell(self, missed: Sequence[Away]) -> None:
        """Sends an outcome for each of these. Raises Unavailable."""
        off = await self._off(missed)
        now_ms = self._backplane.now_ms()
        await self._outcomes.send(
            [(publication, user, _outcome(publication, user, off, now_ms)) for publication, user in missed],
            now_ms,
        )

    async def _off(self, missed: Sequence[Away]) -> SwitchedOff:
        """What these people have off by now: they aren't to be told of it elsewhere either."""
        users = {user for _, user in missed}
        types = {publication.name for publication, _ in missed}
        try:
            return await self._switches.off_among(list(users), list(types))
        except DatabaseUnavailable:
            # As dispatch does: it isn't known, and an event that is missed is worse.
            return frozenset()


def _portions(missed: Sequence[Missed]) -> Iterator[list[Away]]:
    """Events and the people who were away, some at a time: one event may be for 10,000."""
    portion: list[Away] = []
    for entry, users in missed:
        for user in users:
            portion.append((entry.publication, user))
            if len(portion) == _RECIPIENTS_AT_ONCE:
                yield portion
                portion = []
    if portion:
        yield portion


def _outcome(publication: Publication, user: str, off: SwitchedOff, now_ms: int) -> str:
    if (user, publication.name) in off:
        return SWITCHED_OFF
    return EXPIRED if 0 < publication.expires_ms <= now_ms else OFFLINE
