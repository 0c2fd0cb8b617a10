"""A node's view of the catalogue: which types are known, and the new ones on their way into it.

Asked and told by the dispatcher for every event, without waiting; `run` does the rest in the background.
"""

import asyncio
import logging
from collections.abc import Iterable
from typing import Literal

from pushsse.errors import Unavailable
from pushsse.preferences.store import MAX_TYPES, PreferenceStore

_log = logging.getLogger(__name__)
_REFRESH_S = 5.0


class Catalogue:
    """The types that this node knows of, a few seconds old at most while the database answers."""

    def __init__(self, store: PreferenceStore, *, new_types: Literal["list", "hide", "refuse"]) -> None:
        self._store = store
        self._new_types = new_types
        self._known: frozenset[str] | None = None
        self._new: dict[str, None] = {}
        self._noticed = asyncio.Event()

    def admits(self, name: str) -> bool:
        """Whether events of this type are taken. Before the catalogue was read once, all are."""
        return self._new_types != "refuse" or self._known is None or name in self._known

    def notice(self, names: Iterable[str]) -> None:
        """Remembers the types that aren't known, to join them; at most 1,000 at a time."""
        if self._new_types == "refuse":
            return
        known = self._known or frozenset()
        for name in names:
            if name not in known and len(known) + len(self._new) < MAX_TYPES:
                self._new[name] = None
                self._noticed.set()

    async def refresh(self) -> None:
        """Joins what is new and reads the catalogue. Raises DatabaseUnavailable."""
        self._noticed.clear()
        if self._new:
            names = list(self._new)
            await self._store.join(names, hidden=self._new_types == "hide")
            for name in names:
                self._new.pop(name, None)
            _log.info("types that joined the catalogue: %s", ", ".join(names))
        self._known = await self._store.known()

    async def run(self) -> None:
        """Keeps the view fresh for ever; a database that is away is asked again."""
        while True:
            try:
                await self.refresh()
            except Unavailable as error:
                _log.warning("the catalogue can't be read: %s", error)
                await asyncio.sleep(1)
            try:
                await asyncio.wait_for(self._noticed.wait(), _REFRESH_S)
            except TimeoutError:
                pass
