"""Events become publications for the people who want them: audience, switches, shards. The heart; small.

Called by the intake with a batch of drafts, in order; hands appends to `backplane.publish`. The switches are
asked of the database once per batch, never of a cache; broadcasts are filtered at the streams.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

import msgspec

from pushsse.backplane import BROADCAST, Append, Draft, Receipt, log_of
from pushsse.errors import DatabaseUnavailable
from pushsse.metrics import Metrics

log = logging.getLogger(__name__)
# Recipients: some 3 ms of the event loop.
_AT_ONCE = 10_000
# Of one call, which is atomic: each recipient is remembered, some 4 µs of Redis.
_CALL_RECIPIENTS = 1_000
Off = frozenset[tuple[str, str]]
_NONE: Off = frozenset()


class Dispatcher:
    """Turns batches of drafts into appends, one after the other."""

    def __init__(
        self,
        *,
        publish: Callable[[Sequence[Append]], Awaitable[Receipt]],
        off_among: Callable[[Sequence[str], Sequence[str]], Awaitable[Off]],
        seen: Callable[[Sequence[str]], None],
        shards: int,
        metrics: Metrics,
    ) -> None:
        self._publish = publish
        self._off_among = off_among
        self._seen = seen
        self._shards = shards
        self._metrics = metrics
        self._unfiltered = False

    async def dispatch(self, drafts: Sequence[Draft]) -> Receipt:
        """Publishes a batch; when it returns, the log has everything.

        Raises BackplaneUnavailable and NotOwner; dispatching the same batch again is then right.
        """
        self._seen(list({draft.publication.name for draft in drafts}))
        appends = await self._appends(drafts, await self._off(drafts))
        return await self._publish(appends) if appends else Receipt()

    async def _off(self, drafts: Sequence[Draft]) -> Off:
        """Who has what off. Unknown, because the database is away, means nobody: the streams filter too."""
        personal = [draft.publication for draft in drafts if draft.publication.users is not None]
        if not personal:
            return _NONE
        users = {user for publication in personal for user in publication.users or ()}
        try:
            off = await self._off_among(list(users), list({publication.name for publication in personal}))
        except DatabaseUnavailable as error:
            self._metrics.unfiltered += len(personal)
            if not self._unfiltered:
                log.warning("publishing without asking the switches: %s", error)
            self._unfiltered = True
            return frozenset()
        if self._unfiltered:
            log.info("asking the switches again")
        self._unfiltered = False
        return off

    async def _appends(self, drafts: Sequence[Draft], off: Off) -> list[Append]:
        """Between two broadcasts, all drafts of one shard share a call, or few where they are for many."""
        appends: list[Append] = []
        run: dict[str, list[Draft]] = {}
        sorted_out = 0
        for draft in drafts:
            users = draft.publication.users
            if sorted_out >= _AT_ONCE:
                await asyncio.sleep(0)
                sorted_out = 0
            if (users is None) != (BROADCAST in run):
                appends += _bounded(run)
                run = {}
            if users is None:
                run.setdefault(BROADCAST, []).append(draft)
                continue
            sorted_out += len(users)
            for name, wanted in self._by_shard(users, draft.publication.name, off).items():
                if len(wanted) != len(users):
                    publication = msgspec.structs.replace(draft.publication, users=tuple(wanted))
                    part = draft._replace(publication=publication)
                else:
                    part = draft
                run.setdefault(name, []).append(part)
        appends += _bounded(run)
        return appends

    def _by_shard(self, users: Sequence[str], type_name: str, off: Off) -> dict[str, list[str]]:
        shards: dict[str, list[str]] = {}
        for user in users:
            if (user, type_name) in off:
                self._metrics.suppressed += 1
            else:
                shards.setdefault(log_of(user, self._shards), []).append(user)
        return shards


def _bounded(run: Mapping[str, Sequence[Draft]]) -> Iterator[Append]:
    """Calls that keep nobody waiting for long. Drafts of one record stay together: the fence wants that."""
    for log_name, drafts in run.items():
        start = recipients = 0
        for at, draft in enumerate(drafts):
            if recipients >= _CALL_RECIPIENTS and (
                draft.source is None or draft.source != drafts[at - 1].source
            ):
                yield Append(log_name, tuple(drafts[start:at]))
                start, recipients = at, 0
            recipients += len(draft.publication.users or ())
        yield Append(log_name, tuple(drafts[start:]))
