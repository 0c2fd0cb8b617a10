"""Finds people who weren't there for their events, so that something else can reach them.

A service; one node has this duty for all, another takes it over within 10 s of its death. It reads the
shards' logs some seconds behind their end, asks the backplane who had no stream for 10 s from each event on,
and hands those to `Outcomes`. The place up to which Kafka has them is kept beside the logs: after a death
some may come twice, and none is left out. Deliberate: it is behind by more than a lease of presence, because
until then a node that has died may seem to have the people who were on it.
"""

import asyncio
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from pushsse.backplane import PRESENCE_LEASE_MS, Backplane, Entry, Page
from pushsse.dispatcher import KnowsSwitches, Off
from pushsse.errors import DatabaseUnavailable, Unavailable
from pushsse.outcomes import EXPIRED, OFFLINE, SWITCHED_OFF, Noted, Outcomes
from pushsse.position import Mark
from pushsse.retry import Backoff, Outage

logger = logging.getLogger(__name__)
DUTY = "offline"
# Without a stream for so long from an event on, a person was offline for it.
AWAY_MS = 10_000
# With the second in which a stream that has opened is told.
BEHIND_MS = max(AWAY_MS, PRESENCE_LEASE_MS) + 2_000
_LOOK_EVERY_S = 1.0
_DUTY_LEASE_MS = 10_000
_AT_ONCE = 1_000
_RECIPIENTS_AT_ONCE = 2_000
# How far back the first look goes: what the process before this one may not have seen to its end.
_FIRST_MS = 60_000


class KnowsPresence(Protocol):
    """Who tells the backplane who is at this node; `presence` does."""

    @property
    def known_since(self) -> float | None:
        """Since when the backplane has known that without a break, in the event loop's seconds."""
        ...


class Missed(NamedTuple):
    """Somebody for whom an event was, and the time at which it was published."""

    entry: Entry
    user: str


class Offline:
    """Has the duty for as long as nobody else has it."""

    def __init__(
        self,
        backplane: Backplane,
        presence: KnowsPresence,
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
                more = await self._look()
            except Unavailable as error:
                await asyncio.sleep(outage.failed(error))
                continue
            outage.over()
            if not more:
                await asyncio.sleep(_LOOK_EVERY_S * random.uniform(0.8, 1.2))

    async def _look(self) -> bool:
        """One look; whether there is more to see at once. Raises Unavailable."""
        done = await self._keep({})
        if done is None or not self._is_known():
            return False
        before_ms = self._backplane.now_ms() - BEHIND_MS
        after, page = await self._page(done, before_ms)
        entries = [entry for entry in page.entries if entry.at_ms <= before_ms]
        for missed in _portions(entries):
            await self._tell(missed)
            # A portion takes less time than the lease has, all of them may not.
            if await self._keep({}) is None:
                return False
        marks = {name: Mark(head.epoch, after[name]) for name, head in page.heads.items()}
        marks |= {entry.log: Mark(page.heads[entry.log].epoch, entry.number) for entry in entries}
        if changed := {name: mark for name, mark in marks.items() if done.get(name) != mark}:
            await self._keep(changed)
        return page.more and len(entries) == len(page.entries)

    def _is_known(self) -> bool:
        """Whether it is known who is where: after an outage each node has to tell it anew."""
        since = self._presence.known_since
        return since is not None and (asyncio.get_running_loop().time() - since > PRESENCE_LEASE_MS / 1000)

    async def _keep(self, done: Mapping[str, Mark]) -> Mapping[str, Mark] | None:
        return await self._backplane.duty(DUTY, self._node, done, lease_ms=_DUTY_LEASE_MS)

    async def _page(self, done: Mapping[str, Mark], before_ms: int) -> tuple[Mapping[str, int], Page]:
        """What has come since the last look, and after which numbers.

        Of logs that were never looked at, what came a moment ago.
        """
        new = [name for name in self._logs if name not in done]
        begins = await self._backplane.since(new, before_ms - _FIRST_MS) if new else {}
        after = {name: done[name].number if name in done else begins[name] for name in self._logs}
        page = await self._backplane.read(after, limit=_AT_ONCE)
        lost = {
            name: head.base
            for name, head in page.heads.items()
            if name in done and head.epoch != done[name].epoch
        }
        if lost:
            # Such a log has begun again, with numbers of its own.
            after |= lost
            page = await self._backplane.read(after, limit=_AT_ONCE)
        return after, page

    async def _tell(self, missed: Sequence[Missed]) -> None:
        """Sends an outcome for each of these who wasn't there. Raises Unavailable."""
        asked = [(user, entry.at_ms) for entry, user in missed]
        absent = await self._backplane.absent(asked, away_ms=AWAY_MS)
        away = [each for each, is_away in zip(missed, absent, strict=True) if is_away]
        if not away:
            return
        off = await self._off(away)
        now_ms = self._backplane.now_ms()
        await self._outcomes.send(
            [
                Noted(entry.publication, user, _outcome(entry, user, off, now_ms), now_ms)
                for entry, user in away
            ]
        )

    async def _off(self, missed: Sequence[Missed]) -> Off:
        """What these people have off by now: they aren't to be told of it elsewhere either."""
        users = {user for _, user in missed}
        types = {entry.publication.name for entry, _ in missed}
        try:
            return await self._switches.off_among(list(users), list(types))
        except DatabaseUnavailable:
            # As dispatch does: it isn't known, and an event that is missed is worse.
            return frozenset()


def _portions(entries: Sequence[Entry]) -> Iterator[list[Missed]]:
    """The people for whom events are, some at a time: one event may be for 10,000."""
    portion: list[Missed] = []
    for entry in entries:
        publication = entry.publication
        for user in (publication.users or ()) if publication.switchable else ():
            portion.append(Missed(entry, user))
            if len(portion) == _RECIPIENTS_AT_ONCE:
                yield portion
                portion = []
    if portion:
        yield portion


def _outcome(entry: Entry, user: str, off: Off, now_ms: int) -> str:
    publication = entry.publication
    if (user, publication.name) in off:
        return SWITCHED_OFF
    return EXPIRED if 0 < publication.expires_ms <= now_ms else OFFLINE
