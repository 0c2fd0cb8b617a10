"""A node's view of the catalogue: which types are known, and the new ones on their way into it.

Asked and told by the dispatcher for every event, without waiting; `run` does the rest in the background.
A catalogue that is full takes no more types: their events are delivered all the same, to everybody they are
for, since nobody can switch off what isn't listed. That is said once, and counted.
"""

import asyncio
import logging
from collections.abc import Iterable
from typing import Literal

from pushsse.errors import Unavailable
from pushsse.metrics import Metrics
from pushsse.preferences.store import MAX_TYPES, PreferenceStore

_log = logging.getLogger(__name__)
_REFRESH_S = 5.0


class Catalogue:
    """The types that this node knows of, a few seconds old at most while the database answers."""

    def __init__(
        self, store: PreferenceStore, *, new_types: Literal["list", "hide", "refuse"], metrics: Metrics
    ) -> None:
        self._store = store
        self._new_types = new_types
        self._metrics = metrics
        self._said_full = False
        self._known: frozenset[str] | None = None
        self._new: dict[str, None] = {}
        self._noticed = asyncio.Event()

    def admits(self, name: str) -> bool:
        """Whether events of this type are taken. Before the catalogue was read once, all are."""
        return self._new_types != "refuse" or self._known is None or name in self._known

    @property
    def size(self) -> int:
        """How many types there are, as far as this node knows."""
        return len(self._known or ())

    def notice(self, names: Iterable[str]) -> None:
        """Remembers the types that aren't known, to join them, as far as there is room for them."""
        if self._new_types == "refuse":
            return
        known = self._known or frozenset()
        for name in names:
            if name in known or name in self._new:
                continue
            if len(known) + len(self._new) < MAX_TYPES:
                self._new[name] = None
                self._noticed.set()
            elif self._known is not None:
                self._overflow(name)

    async def refresh(self) -> None:
        """Joins what is new and reads the catalogue. Raises DatabaseUnavailable."""
        self._noticed.clear()
        if self._new:
            names = list(self._new)
            left_out = await self._store.join(names, hidden=self._new_types == "hide")
            for name in names:
                self._new.pop(name, None)
            if joined := [name for name in names if name not in left_out]:
                _log.info("types that joined the catalogue: %s", ", ".join(joined))
            for name in left_out:
                # Other nodes had filled it meanwhile.
                self._overflow(name)
        self._known = await self._store.known()
        if len(self._known) < MAX_TYPES:
            self._said_full = False

    def _overflow(self, name: str) -> None:
        """A type found no room. Which ones did isn't remembered: with an id in the name they never end."""
        self._metrics.types_left_out += 1
        if not self._said_full:
            self._said_full = True
            _log.warning(
                "the catalogue is full (%d types): the type %s isn't listed, nor are further new ones; their"
                " events are delivered, and nobody can switch them off. Keep ids out of the names of types,"
                " remove types that are no longer used, or set PUSHSSE_NEW_TYPES=refuse",
                MAX_TYPES,
                name,
            )

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
