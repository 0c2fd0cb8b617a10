"""Changes of switches on their way from the database into the log, and the node's view of the catalogue.

Called by the API, by opening streams (`settle`) and, for the catalogue, by the dispatcher; two services. A
change is committed, then published to the person's shard log, then the caller gets its answer. What a crash
or an outage leaves unpublished, `run`, the person's next change or their next stream publishes.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

import msgspec

from pushsse import event
from pushsse.backplane import Append, Backplane, Draft, Topic, log_of
from pushsse.errors import BackplaneUnavailable, Unavailable
from pushsse.metrics import Metrics
from pushsse.preferences import quiet
from pushsse.preferences.catalogue import MAX_TYPES, CatalogueStore, Languages, NamedType, Revised
from pushsse.preferences.history import Actor
from pushsse.preferences.store import PendingChange, PreferenceStore, Reschedule, Settled
from pushsse.retry import Backoff, Outage

logger = logging.getLogger(__name__)
_RELAY_EVERY_S = 2.0
_RELAY_OLDER_THAN_S = 2.0
# 400 names of 64 characters are about 30 KiB: well inside a frame.
_NAMES_A_FRAME = 400
_CHANGES_AN_APPEND = 100
_NOTHING: Mapping[str, bool | None] = {}


class Preferences:
    """People's switches, as the API changes them."""

    def __init__(self, store: PreferenceStore, backplane: Backplane) -> None:
        self._store = store
        self._backplane = backplane

    async def change(
        self,
        user: str,
        types: Mapping[str, bool | None],
        *,
        by: Actor,
        categories: Mapping[str, bool | None] = _NOTHING,
        schedule: Reschedule | None = None,
        languages: Languages = (),
    ) -> Settled:
        """Changes what a person chose, and returns all of it once the log has the change.

        As `PreferenceStore.change`, whose errors it raises, and BackplaneUnavailable: then the change holds
        already, and is published as soon as the log takes it.
        """
        # Guarantee 3: committed before it is published, and published before the caller is answered. Dispatch
        # reads the table, so an event published after the commit is filtered there; open streams and replays
        # learn of the change from the log, in order with the events.
        await self._publish(
            await self._store.change(user, types, categories=categories, schedule=schedule, by=by)
        )
        return await self._store.preferences(user, languages)

    async def settle(self, user: str) -> None:
        """Publishes a person's changes that aren't known to be in the log. Raises Unavailable."""
        await self._publish(await self._store.pending(user))

    async def relay(self) -> int:
        """Publishes changes that have waited for over 2 s, of up to 100 people; returns of how many.

        Raises Unavailable.
        """
        users = await self._store.pending_users(older_than_s=_RELAY_OLDER_THAN_S)
        for user in users:
            await self.settle(user)
        return len(users)

    async def run(self) -> None:
        """Relays for ever; where the database or the log is away, it tries again."""
        waiting = Outage("changes of switches wait for the log", logger, Backoff())
        while True:
            # Spread, so that of many nodes one does the work and the others find nothing left.
            await asyncio.sleep(_RELAY_EVERY_S * random.uniform(0.5, 1.5))
            try:
                if count := await self.relay():
                    logger.info("published changes of switches that had waited, of %d people", count)
                waiting.over()
            except Unavailable as error:
                waiting.failed(error)

    async def publish(self, changes: Sequence[PendingChange]) -> None:
        """Publishes changes of many people, each person's in order. Raises Unavailable."""
        drafts: dict[str, list[Draft]] = {}
        for change in changes:
            drafts.setdefault(log_of(change.user, self._backplane.shards), []).extend(_drafts(change))
        if drafts:
            receipt = await self._backplane.publish(
                [Append(log, tuple(some)) for log, some in drafts.items()]
            )
            # Only now, as in `_publish`. The last change of each person counts.
            await self._store.all_logged(
                {
                    change.user: (
                        change.version,
                        receipt.marks[log_of(change.user, self._backplane.shards)],
                    )
                    for change in changes
                }
            )

    async def _publish(self, changes: Sequence[PendingChange]) -> None:
        # Guarantee 3: in the order of their numbers. Two nodes may publish the same change together: `once`
        # keeps the second out of the log, and a stream ignores a change older than what it knows.
        for start in range(0, len(changes), _CHANGES_AN_APPEND):
            part = changes[start : start + _CHANGES_AN_APPEND]
            user = part[0].user
            mark = await self._backplane.publish_to(user, (d for change in part for d in _drafts(change)))
            # Only now: an outbox row that is removed before the log has its change would be lost in a crash.
            await self._store.logged(user, part[-1].version, mark)


def _drafts(change: PendingChange) -> list[Draft]:
    """The `preferences` event of a change, in as many frames as its names need."""
    told: list[dict[str, object]]
    schedule = {} if change.quiet is None else msgspec.to_builtins(quiet.decoded(change.quiet))
    if len(change.changed) + len(change.categories) <= _NAMES_A_FRAME:
        categories = {"categories": change.categories} if change.categories else {}
        told = [{"types": change.changed} | categories | schedule]
    else:
        told = [{"types": part} for part in _portions(change.changed)]
        told += [{"types": {}, "categories": part} for part in _portions(change.categories)]
        told[-1] |= schedule
    return [
        Draft(
            event.encode("preferences", data, users=(change.user,), change=change.change),
            once=f"switch:{change.user}:{change.version}" + (f":{part}" if part else ""),
        )
        for part, data in enumerate(told)
    ]


def _portions(values: Mapping[str, object]) -> list[dict[str, object]]:
    names = list(values)
    return [
        {name: values[name] for name in names[start : start + _NAMES_A_FRAME]}
        for start in range(0, len(names), _NAMES_A_FRAME)
    ]


_REFRESH_S = 5.0
# Nodes that hear of a change together don't all read at once.
_SPREAD_S = 0.3


class Catalogue:
    """The types that this node knows: which are listed, which new ones are on their way, whose rules changed.

    The drafter asks `admits`, and the dispatcher calls `notice`, for every event and without waiting; `run`
    reads and writes the database. While the database answers, the view is a few seconds old at most. A full
    catalogue takes no more types. Their events are delivered all the same, since nobody can switch off what
    isn't listed; that is logged once, and counted. The hub asks for the rules (`hub.Rules`).
    """

    def __init__(
        self,
        store: PreferenceStore,
        catalogue: CatalogueStore,
        *,
        new_types: Literal["list", "hide", "refuse"],
        metrics: Metrics,
        backplane: Backplane,
        declared: Sequence[NamedType] = (),
    ) -> None:
        """`declared`: the types of the settings file, which are written before anything is read."""
        self._store = store
        self._catalogue = catalogue
        self._new_types = new_types
        self._metrics = metrics
        self._backplane = backplane
        self._declared = declared
        self._declares = True
        self._warned_full = False
        self._known: Revised | None = None
        self._new: dict[str, None] = {}
        self._noticed = asyncio.Event()
        self._refreshing = asyncio.Lock()
        self._on_revision: Callable[[], None] = _nobody
        backplane.hear_notices(Topic.CATALOGUE, self._hear)

    def on_revision(self, call: Callable[[], None]) -> None:
        """Has this called when the rules have changed: whoever keeps people's switches reads them again."""
        self._on_revision = call

    def admits(self, name: str) -> bool:
        """Whether events of this type are accepted. Before the catalogue was read once, all are."""
        return self._new_types != "refuse" or self._known is None or name in self._known.types

    @property
    def size(self) -> int:
        """How many types there are, as far as this node knows."""
        return len(self._known.types) if self._known is not None else 0

    @property
    def revision(self) -> int:
        """How often the rules of types have changed, as far as this node knows."""
        return self._known.revision if self._known is not None else 0

    def changed_since(self, name: str, revision: int) -> bool:
        """Whether the rules of a type have changed since a revision."""
        known = self._known
        return known is not None and known.types.get(name, known.removed) > revision

    def notice(self, names: Iterable[str]) -> None:
        """Remembers new types, so that `run` adds them to the catalogue, as far as there is room."""
        if self._new_types == "refuse":
            return
        known = self._known.types if self._known is not None else {}
        for name in names:
            if name in known or name in self._new:
                continue
            if len(known) + len(self._new) < MAX_TYPES:
                self._new[name] = None
                self._noticed.set()
            elif self._known is not None:
                self._overflow(name)

    async def announce(self) -> None:
        """Has all nodes read the catalogue, which was just changed: this one before it returns.

        Other nodes that miss the notice find the change within 5 s.
        """
        await self._tell()
        try:
            await self.refresh()
        except Unavailable:
            self._noticed.set()

    async def _tell(self) -> None:
        try:
            await self._backplane.notify(Topic.CATALOGUE, "changed")
        except BackplaneUnavailable as error:
            logger.info("other nodes find the changed catalogue by themselves: %s", error)

    async def refresh(self) -> None:
        """Adds the new types and reads the catalogue. Raises DatabaseUnavailable."""
        # One after the other: what was read first must not be taken for the newest.
        async with self._refreshing:
            await self._refresh()

    async def _refresh(self) -> None:
        # Before the names are read: one that is noticed from here on sets it again.
        self._noticed.clear()
        if self._declares:
            if changed := await self._catalogue.declare(self._declared):
                logger.info("types of the settings file that were set: %s", ", ".join(changed))
                await self._tell()
            self._declares = False
        if self._new:
            # A copy, removed after the write: what is noticed during the write waits for the next round, and
            # what a failed write leaves is tried again.
            names = list(self._new)
            left_out = await self._store.join(names, hidden=self._new_types == "hide")
            for name in names:
                self._new.pop(name, None)
            if joined := [name for name in names if name not in left_out]:
                logger.info("types that joined the catalogue: %s", ", ".join(joined))
            for name in left_out:
                # Other nodes have filled it in the meantime.
                self._overflow(name)
        before, self._known = self.revision, await self._catalogue.revised()
        if self.size < MAX_TYPES:
            self._warned_full = False
        # Guarantee 3: after the rules are known. A stream whose switches were read before them is found.
        if self.revision != before:
            self._on_revision()

    def _hear(self, _: str) -> None:
        asyncio.get_running_loop().call_later(random.uniform(0, _SPREAD_S), self._noticed.set)

    def _overflow(self, name: str) -> None:
        """Counts a type without room. Deliberate: it isn't listed, since names with ids in them never end."""
        self._metrics.types_left_out += 1
        if not self._warned_full:
            self._warned_full = True
            logger.warning(
                "the catalogue is full (%d types): the type %s isn't listed, nor are further new ones; their"
                " events are delivered, and nobody can switch them off. Keep ids out of the names of types,"
                " remove types that are no longer used, or set PUSHSSE_NEW_TYPES=refuse",
                MAX_TYPES,
                name,
            )

    async def run(self) -> None:
        """Reads the catalogue every 5 s, and when a new type is noticed, for ever."""
        outage = Outage("the catalogue of types can't be read or written", logger, Backoff(1.0, 1.0))
        while True:
            try:
                await self.refresh()
                outage.over()
            except Unavailable as error:
                await asyncio.sleep(outage.failed(error))
            try:
                await asyncio.wait_for(self._noticed.wait(), _REFRESH_S)
            except TimeoutError:
                pass


def _nobody() -> None:
    """Keeps no switches."""
