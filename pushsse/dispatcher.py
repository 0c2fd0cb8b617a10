"""Drafts become appends, for the people who want them: audience, switches, shards.

Called by every intake (`EventHandler`, `Outbox`, `EmbeddedIntake`) with drafts in order; hands appends to
`backplane.publish`. The database is asked for the switches once per batch, never a cache; broadcasts are
filtered at the streams.
"""

import asyncio
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import msgspec

from pushsse.backplane import BROADCAST, Append, Backplane, Draft, Receipt, log_of
from pushsse.errors import DatabaseUnavailable
from pushsse.metrics import Metrics
from pushsse.outcomes import EXPIRED, SWITCHED_OFF, Outcomes
from pushsse.retry import Backoff, Outage

logger = logging.getLogger(__name__)
# Recipients between two yields: some 3 ms of the event loop.
_YIELD_RECIPIENTS = 5_000
# In one append, which is atomic: each recipient is remembered, which takes Redis some 4 µs.
_APPEND_RECIPIENTS = 1_000
# Of a draft that is dispatched without waiting.
_NOWAIT_RECIPIENTS = 64
# A person and a type that they have switched off.
SwitchedOff = frozenset[tuple[str, str]]
_NONE: SwitchedOff = frozenset()


class KnowsSwitches(Protocol):
    """Who can be asked what people have switched off: the database, at each call.

    `PreferenceStore` implements it.
    """

    async def off_among(self, users: Sequence[str], types: Sequence[str]) -> SwitchedOff:
        """Which of these types which of these people have off. Raises DatabaseUnavailable."""
        ...

    def off_among_nowait(self, users: Sequence[str], name: str) -> SwitchedOff | None:
        """The same for one type without waiting; None where that can't be."""
        ...


class NoticesTypes(Protocol):
    """Who keeps the catalogue of types. `Catalogue` implements it."""

    def notice(self, names: Iterable[str]) -> None:
        """Events of these types pass. Doesn't wait: what is new joins later."""
        ...


class Dispatcher:
    """Turns batches of drafts into appends, one after the other."""

    def __init__(
        self,
        *,
        backplane: Backplane,
        switches: KnowsSwitches,
        types: NoticesTypes,
        metrics: Metrics,
        outcomes: Outcomes | None = None,
    ) -> None:
        self._backplane = backplane
        self._outcomes = outcomes
        self._switches = switches
        self._types = types
        self._shards = backplane.shards
        self._metrics = metrics
        self._unfiltered = Outage(
            "switches can't be read, so only the streams filter events", logger, Backoff()
        )

    async def dispatch(self, drafts: Sequence[Draft]) -> Receipt:
        """Publishes a batch; when it returns, the log has everything.

        Raises BackplaneUnavailable and NotOwner; dispatching the same batch again is then right.
        """
        self._types.notice(list({each.publication.name for each in drafts if each.publication.switchable}))
        # Guarantee 3: the switches are read for this batch, after it came in and before it is published. An
        # answer kept from an earlier batch would publish to people who have switched the type off since.
        off = await self._off(drafts)
        appends = await self._appends(drafts, off)
        receipt = await self._backplane.publish(appends) if appends else Receipt()
        if self._outcomes is not None and (off or receipt.expired):
            self._note(self._outcomes, drafts, off, receipt)
        return receipt

    def dispatch_nowait(self, draft: Draft) -> Receipt | None:
        """As `dispatch`, with one draft and without waiting.

        None where somebody has to be waited for, or would have to wait; then nothing was published.
        """
        publication = draft.publication
        users = publication.users
        off: SwitchedOff | None = _NONE
        if users is None:
            appends = [Append(BROADCAST, (draft,))]
        elif len(users) > _NOWAIT_RECIPIENTS or self._unfiltered.since is not None:
            return None
        else:
            # Guarantee 3, as in `dispatch`: read from the database for this very draft.
            off = self._switches.off_among_nowait(users, publication.name)
            if off is None:
                return None
            if len(users) == 1 and not off:
                # Nearly always.
                appends = [Append(log_of(users[0], self._shards), (draft,))]
            else:
                appends = [Append(name, (part,)) for name, part in self._parts(draft, users, off)]
        receipt = self._backplane.publish_nowait(appends) if appends else Receipt()
        if receipt is not None:
            if publication.switchable:
                self._types.notice((publication.name,))
            if users is not None and off:
                wanted = sum(len(append.drafts[0].publication.users or ()) for append in appends)
                self._metrics.suppressed += len(users) - wanted
            if self._outcomes is not None and (off or receipt.expired):
                self._note(self._outcomes, (draft,), off or _NONE, receipt)
        return receipt

    def _note(self, outcomes: Outcomes, drafts: Sequence[Draft], off: SwitchedOff, receipt: Receipt) -> None:
        """Notes who doesn't get what is published, once the log has it: before, the batch may come again."""
        now_ms = self._backplane.now_ms()
        for publication in [draft.publication for draft in drafts]:
            users, name = publication.users, publication.name
            if receipt.expired and 0 < publication.expires_ms <= now_ms:
                if users is None:
                    outcomes.count(publication, EXPIRED)
                else:
                    outcomes.note_all(publication, users, EXPIRED, now_ms)
            elif users is not None and off:
                without = [user for user in users if (user, name) in off]
                outcomes.note_all(publication, without, SWITCHED_OFF, now_ms)

    async def _off(self, drafts: Sequence[Draft]) -> SwitchedOff:
        """Who has what off; nobody, while the database is away.

        Guarantee 3 holds even so: the filter at the stream is the last step before a write, and it knows the
        switches from the log. Dispatch filters to keep the log small, so it needn't wait for the database.
        """
        personal = [draft.publication for draft in drafts if draft.publication.users is not None]
        if not personal:
            return _NONE
        users = {user for publication in personal for user in publication.users or ()}
        try:
            off = await self._switches.off_among(
                list(users), list({publication.name for publication in personal})
            )
        except DatabaseUnavailable as error:
            self._metrics.unfiltered += len(personal)
            self._unfiltered.failed(error)
            return _NONE
        self._unfiltered.over()
        return off

    async def _appends(self, drafts: Sequence[Draft], off: SwitchedOff) -> list[Append]:
        """Between two broadcasts, all drafts of one shard share an append, or few where they are for many."""
        appends: list[Append] = []
        run: dict[str, list[Draft]] = {}
        since_yield = 0
        for draft in drafts:
            users = draft.publication.users
            if since_yield >= _YIELD_RECIPIENTS:
                await asyncio.sleep(0)
                since_yield = 0
            # Guarantee 2, order: a broadcast ends the run of personal drafts before it, and they end its run.
            # Within a run no order between shards has to be kept, so each shard's drafts share an append.
            if (users is None) != (BROADCAST in run):
                appends += _bounded(run)
                run = {}
            if users is None:
                run.setdefault(BROADCAST, []).append(draft)
                continue
            since_yield += len(users)
            wanted = 0
            for name, part in self._parts(draft, users, off):
                wanted += len(part.publication.users or ())
                run.setdefault(name, []).append(part)
            self._metrics.suppressed += len(users) - wanted
        appends += _bounded(run)
        if since_yield >= _YIELD_RECIPIENTS:
            # Publishing them begins in the same turn of the event loop.
            await asyncio.sleep(0)
        return appends

    def _parts(self, draft: Draft, users: Sequence[str], off: SwitchedOff) -> Iterable[tuple[str, Draft]]:
        """A draft for the people who haven't switched its type off, by the log of their shard."""
        if len(users) == 1:
            # Most events are for one person.
            is_off = (users[0], draft.publication.name) in off
            return () if is_off else ((log_of(users[0], self._shards), draft),)
        return self._several_parts(draft, users, off)

    def _several_parts(
        self, draft: Draft, users: Sequence[str], off: SwitchedOff
    ) -> Iterator[tuple[str, Draft]]:
        type_name = draft.publication.name
        shards: dict[str, list[str]] = {}
        for user in users:
            if (user, type_name) not in off:
                shards.setdefault(log_of(user, self._shards), []).append(user)
        for name, wanted in shards.items():
            if len(wanted) != len(users):
                publication = msgspec.structs.replace(draft.publication, users=tuple(wanted))
                yield name, msgspec.structs.replace(draft, publication=publication)
            else:
                yield name, draft


def _bounded(run: Mapping[str, Sequence[Draft]]) -> Iterator[Append]:
    """Appends of one run, each with few enough recipients to keep no other caller of the log waiting."""
    for log_name, drafts in run.items():
        start = recipients = 0
        for at, draft in enumerate(drafts):
            # Guarantee 1: drafts of one record stay in one append. The fence remembers the record's offset
            # with the first append, and would take those of a second one for a repeat.
            if recipients >= _APPEND_RECIPIENTS and (
                draft.source is None or draft.source != drafts[at - 1].source
            ):
                yield Append(log_name, tuple(drafts[start:at]))
                start, recipients = at, 0
            recipients += len(draft.publication.users or ())
        yield Append(log_name, tuple(drafts[start:]))
