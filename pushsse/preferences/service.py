"""Changes of switches, on their way from the database into the log. Called by the API and by opening streams.

A change is committed first, then published to the person's shard log, and only then is the caller answered.
What a crash or an outage left between the two is published by `run`, or by whoever meets it first.
"""

import asyncio
import logging
import random
from collections.abc import Mapping, Sequence

from pushsse import event
from pushsse.backplane import Backplane, Draft
from pushsse.errors import Unavailable
from pushsse.preferences.store import PreferenceStore
from pushsse.preferences.views import PendingChange, Preference

_log = logging.getLogger(__name__)
_RELAY_EVERY_S = 2.0
_RELAY_OLDER_THAN_S = 2.0
# 400 names of 64 characters are about 30 KiB: well inside a frame.
_NAMES_A_FRAME = 400
_CHANGES_A_CALL = 100


class Preferences:
    """People's switches, as the API changes them."""

    def __init__(self, store: PreferenceStore, backplane: Backplane) -> None:
        self._store = store
        self._backplane = backplane

    async def change(self, user: str, wanted: Mapping[str, bool]) -> tuple[Preference, ...]:
        """Switches types on and off, and returns all types once the log has the change.

        Raises InvalidInput, DatabaseUnavailable, and BackplaneUnavailable: then the change holds already, and
        is published as soon as the log takes it.
        """
        await self._hand_on(await self._store.change(user, wanted))
        return await self._store.preferences(user)

    async def settle(self, user: str) -> None:
        """Publishes what a crash or an outage left of a person's changes. Raises Unavailable."""
        await self._hand_on(await self._store.pending(user))

    async def relay(self) -> int:
        """Publishes what others left waiting, for up to 100 people; says for how many. Raises Unavailable."""
        users = await self._store.pending_users(older_than_s=_RELAY_OLDER_THAN_S)
        for user in users:
            await self.settle(user)
        return len(users)

    async def run(self) -> None:
        """Relays for ever; a database or a log that is away is tried again."""
        while True:
            # Spread, so that of many nodes one does the work and the others find nothing left.
            await asyncio.sleep(_RELAY_EVERY_S * random.uniform(0.5, 1.5))
            try:
                if count := await self.relay():
                    _log.info("published switches that were left waiting, of %d people", count)
            except Unavailable as error:
                _log.warning("switches that wait for the log have to wait on: %s", error)

    async def _hand_on(self, changes: Sequence[PendingChange]) -> None:
        for start in range(0, len(changes), _CHANGES_A_CALL):
            part = changes[start : start + _CHANGES_A_CALL]
            user = part[0].user
            mark = await self._backplane.publish_to(user, (d for change in part for d in _drafts(change)))
            await self._store.logged(user, part[-1].version, mark)


def _drafts(change: PendingChange) -> list[Draft]:
    """The `preferences` event of a change, in as many frames as its names need."""
    names = list(change.changed)
    frames = [names[start : start + _NAMES_A_FRAME] for start in range(0, len(names), _NAMES_A_FRAME)]
    return [
        Draft(
            event.encode(
                "preferences",
                {"types": {name: change.changed[name] for name in frame}},
                users=(change.user,),
                change=change.change,
            ),
            once=f"switch:{change.user}:{change.version}" + (f":{part}" if part else ""),
        )
        for part, frame in enumerate(frames)
    ]
