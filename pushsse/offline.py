"""Finds people who weren't there for their events, so that something else can reach them.

A service; one node has this duty for all, another takes it over within 10 s of its death. It asks the
backplane, some seconds behind the end of the shards' logs, who had no stream for 10 s from an event on, and
hands those to `Outcomes`. The place up to which Kafka has them is kept beside the logs: after a death
some may come twice, and none is left out. Deliberate: it is behind by more than a lease of presence, because
until then a node that has died may seem to have the people who were on it.
"""

import asyncio
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from pushsse.backplane import PRESENCE_LEASE_MS, Backplane, Missed
from pushsse.dispatcher import KnowsSwitches, Off
from pushsse.errors import DatabaseUnavailable, Unavailable
from pushsse.event import Publication
from pushsse.outcomes import EXPIRED, OFFLINE, SWITCHED_OFF, Outcomes
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
# Entries and people of one search, which takes Redis some 5 ms.
_AT_ONCE = 1_000
_RECIPIENTS_AT_ONCE = 2_000
# How far back the first look goes: what the process before this one may not have seen to its end.
_FIRST_MS = 60_000


# An event, and somebody who was away for it.
Away = tuple[Publication, str]


class KnowsPresence(Protocol):
    """Who tells the backplane who is at this node; `presence` does."""

    @property
    def known_since(self) -> float | None:
        """Since when the backplane has known that without a break, in the event loop's seconds."""
        ...


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
        after, more = await self._after(done, before_ms), True
        clock = asyncio.get_running_loop().time
        keep_at = clock() + _LOOK_EVERY_S
        while more and self._is_known():
            found = await self._backplane.missed(after, before_ms=before_ms, away_ms=AWAY_MS, limit=_AT_ONCE)
            for missed in _portions(found.missed):
                await self._tell(missed)
                # A portion takes less time than the lease has, all of them may not.
                if await self._keep({}) is None:
                    return
            after, more = found.marks, found.more
            # Noted at once where somebody was told of, so that after a death few come twice. What nobody was
            # away for costs a command a second.
            if found.missed or not more or clock() >= keep_at:
                keep_at = clock() + _LOOK_EVERY_S
                changed = {name: mark for name, mark in after.items() if done.get(name) != mark}
                done = await self._keep(changed) if changed else done
                if done is None:
                    return

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

    async def _off(self, missed: Sequence[Away]) -> Off:
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


def _outcome(publication: Publication, user: str, off: Off, now_ms: int) -> str:
    if (user, publication.name) in off:
        return SWITCHED_OFF
    return EXPIRED if 0 < publication.expires_ms <= now_ms else OFFLINE
