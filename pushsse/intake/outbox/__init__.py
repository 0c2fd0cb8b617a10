"""The outbox: rows that an application writes into a PostgreSQL table in its own transaction become events.

`Outbox.run` is a service of each node, beside the intake from Kafka; it hands drafts to the dispatcher.

Order. A row's key hashes to one of 32 buckets. A bucket has one taker at a time, which reads its rows in the
order of their ids among those that are committed, and reads on only when the log has them. SELECT … FOR
UPDATE SKIP LOCKED takes buckets, not rows: two nodes that each took some rows of one key would publish them
in any order. Rows are ended one by one, and no highest id is remembered: an id that commits late is found.

Once. Before rows are published, their ids are written beside their bucket, and with them the positions that
they get: 1, 2, 3… in each bucket. A row's source is its position, so the backplane's fence skips what the log
has. A taker that is killed leaves the ids and positions behind; the next one publishes them again under the
same positions, whenever that is. A taker claims its bucket in the backplane, too, and one that has lost it is
refused there. The fence goes by positions, not by ids: ids commit in any order, and a fence by ids would skip
those that come late.

Deliberate: leases are by the database's clock, and safe without any clock: they only say when a bucket may be
taken over, while `round`, the claim and the fence say what an earlier taker may still do, which is nothing.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import NoReturn, Protocol

import msgspec

from pushsse import event
from pushsse.backplane import Draft, Source
from pushsse.database import Listening, listen
from pushsse.errors import DatabaseUnavailable, InvalidInput, NotOwner, Unavailable, Violation
from pushsse.intake import Dispatches, Drafter, traceparent
from pushsse.intake.outbox.tables import (
    BUCKETS,
    CHANNEL,
    Bucket,
    EndedRows,
    Holding,
    OutboxRow,
    OutboxTables,
)
from pushsse.metrics import Metrics
from pushsse.retry import Backoff, Outage, Seldom
from pushsse.settings import OutboxSource

logger = logging.getLogger(__name__)
# Guarantee 1: a node without a word for so long gets its buckets taken.
_LEASE_S = 8.0
_RENEW_EVERY_S = 2.0
_SHARE_EVERY_S = 1.0
_MEASURE_EVERY_S = 5.0
_LEAVE_S = 0.5
# How long a notification may take that goes out over one connection and comes in over the other.
_ECHO_S = 4.0
_ECHO_EVERY_S = 15.0
_DEAF_S = 60.0
# One turn of the event loop.
_DECODE_S = 0.005
_LEAST_OF_ONE = 16
_MAKE = " (pushsse outbox sql prints what makes the tables)"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)
# Members of an event that have another name in the table; all of it is the row.
_COLUMNS = {"to": "recipients", "desc": "description", "id": "event_id", "$": "the row"}
_json = msgspec.json.Encoder()
_raw = msgspec.json.Decoder(msgspec.Raw)


class BucketFences(Protocol):
    """The part of `pushsse.backplane.Backplane` that knows partitions, which buckets are here."""

    async def claim(self, topic: str, partition: int, owner: str) -> None: ...
    async def fence(self, topic: str, partition: int) -> tuple[int, int] | None: ...


@dataclass(slots=True)
class _Held:
    """A bucket of ours: the position that its next row gets, and the rows of it that are in our hands."""

    number: int
    topic: str
    next: int
    round: int
    # In the order of their ids; those that can't be events are in `dead`, too.
    done: list[int] = field(default_factory=list)
    dead: dict[int, str] = field(default_factory=dict)
    has_rows: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxPace:
    """How often, in seconds, an outbox looks to what isn't told to it."""

    lease_s: float = _LEASE_S
    renew_every_s: float = _RENEW_EVERY_S
    share_every_s: float = _SHARE_EVERY_S
    echo_every_s: float = _ECHO_EVERY_S
    deaf_s: float = _DEAF_S


class Outbox:
    """Reads one outbox, together with other nodes."""

    def __init__(
        self,
        source: OutboxSource,
        url: str,
        *,
        node: str,
        drafter: Drafter,
        dispatcher: Dispatches,
        fences: BucketFences,
        metrics: Metrics,
        pace: OutboxPace | None = None,
    ) -> None:
        self.table = source.table
        self._source = source
        self._url = url
        self._node = node
        self._drafter = drafter
        self._dispatcher = dispatcher
        self._fences = fences
        self._metrics = metrics
        self._pace = pace or OutboxPace()
        self._tables = OutboxTables(source, url)
        metrics.outbox_rows[self.table] += 0
        metrics.outbox_dead[self.table] += 0

    async def run(self) -> NoReturn:
        """For ever: a database or a backplane that is away is waited for. Cancellation gives buckets back."""
        woken = asyncio.Event()
        async with self._tables.database, asyncio.TaskGroup() as tasks:
            ears = _Ears(self._url, self._tables, woken, self._pace)
            tasks.create_task(ears.run())
            while True:
                # A name of its own for each membership: what an earlier one has sent, and is still on its
                # way, names another taker, and changes nothing.
                name = f"{self._node}-{secrets.token_hex(6)}"
                taker = _Taker(
                    name,
                    self._source,
                    self._tables,
                    drafter=self._drafter,
                    dispatcher=self._dispatcher,
                    fences=self._fences,
                    metrics=self._metrics,
                    pace=self._pace,
                    woken=woken,
                )
                await taker.run()


class _Taker:
    """One membership, until its buckets turn out to be another's.

    Guarantee 1: what is read, published and ended goes through one loop, one step after the other. A step
    whose outcome isn't known makes it read its buckets again, from what the tables say.
    """

    def __init__(
        self,
        name: str,
        source: OutboxSource,
        tables: OutboxTables,
        *,
        drafter: Drafter,
        dispatcher: Dispatches,
        fences: BucketFences,
        metrics: Metrics,
        pace: OutboxPace,
        woken: asyncio.Event,
    ) -> None:
        self._name = name
        self._source = source
        self._tables = tables
        self._drafter = drafter
        self._dispatcher = dispatcher
        self._fences = fences
        self._metrics = metrics
        self._pace = pace
        self._woken = woken
        self._held: dict[int, _Held] = {}
        self._known = False
        self._share_at = 0.0
        self._poll_at = 0.0
        self._moved_at = time.monotonic()
        self._measure_at = 0.0
        table = source.table
        self._database = Outage(f"the outbox {table} can't be read", logger, Backoff(0.2, 5.0))
        self._applying = Outage(f"rows of the outbox {table} can't be dispatched", logger, Backoff())
        self._burying = Seldom(
            f"outbox {table}: a row can't be an event, and stays, with status dead", logger
        )

    async def run(self) -> None:
        """Returns when the backplane knows another owner of a bucket: a new membership claims anew."""
        async with asyncio.TaskGroup() as tasks:
            renewing = tasks.create_task(self._renew())
            try:
                while True:
                    try:
                        await self._round()
                    except DatabaseUnavailable as error:
                        # Guarantee 1: it may have happened or not, and a failover may have lost what was
                        # there before. The tables and the fence know.
                        self._known = False
                        hint = _MAKE if "does not exist" in str(error) else ""
                        await asyncio.sleep(self._database.failed(f"{error}{hint}"))
                    except NotOwner as error:
                        logger.warning(
                            "outbox %s: another node has buckets that this one had, or their claims are"
                            " lost: %s. No row is, and this node takes its share anew",
                            self._source.table,
                            error,
                        )
                        return
            finally:
                renewing.cancel()
                with suppress(DatabaseUnavailable, TimeoutError):
                    async with asyncio.timeout(_LEAVE_S):
                        await self._tables.leave(self._name)

    async def _renew(self) -> NoReturn:
        """Says that this taker is there, as long as it gets on. Otherwise it loses its buckets, and no row.

        One that doesn't get on may be cut off from the backplane, where another isn't.
        """
        while True:
            if time.monotonic() - self._moved_at < self._pace.lease_s:
                # `_round` says why the database is away.
                with suppress(DatabaseUnavailable):
                    await self._tables.renew(self._name, lease_s=self._pace.lease_s)
            await asyncio.sleep(self._pace.renew_every_s)

    async def _round(self) -> None:
        self._moved_at = now = time.monotonic()
        if not self._known:
            await self._look()
        if now >= self._share_at:
            self._share_at = now + self._pace.share_every_s
            await self._share()
        if now >= self._measure_at:
            self._measure_at = now + _MEASURE_EVERY_S
            # A database that is away the next statement notices.
            with suppress(DatabaseUnavailable):
                waiting = await self._tables.waiting()
                self._metrics.outbox_waiting[self._source.table] = (waiting.depth, waiting.lag_s)
        if self._in_hand or self._woken.is_set() or now >= self._poll_at:
            # Before the look: what is committed after it wakes us again.
            self._woken.clear()
            self._poll_at = now + self._source.poll_s
            if rows := await self._take():
                await self._publish(rows)
        self._database.over()
        if self._known and not self._in_hand:
            wait_s = min(self._poll_at, self._share_at, self._measure_at) - time.monotonic()
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, wait_s)):
                    await self._woken.wait()

    @property
    def _in_hand(self) -> bool:
        return any(held.done or held.dead for held in self._held.values())

    # Buckets

    async def _look(self) -> None:
        """Begins with what the tables say is ours: after a start, and where a step's outcome isn't known."""
        await self._tables.renew(self._name, lease_s=self._pace.lease_s)
        self._held.clear()
        await self._begin(await self._tables.mine(self._name))
        self._known = True

    async def _share(self) -> None:
        """Takes free buckets, or gives some back, so that each taker has as many as the others."""
        mine = {bucket.number: bucket.round for bucket in await self._tables.mine(self._name)}
        if mine != {held.number: held.round for held in self._held.values()}:
            # Another has taken some, or a statement that was given up has come to the server all the same.
            logger.warning(
                "outbox %s: the tables give this node other buckets than it knew of, perhaps since it"
                " paused for longer than its lease; it goes on as they say, and nothing is lost",
                self._source.table,
            )
            self._known = False
            return
        fair = -(-BUCKETS // (1 + await self._tables.others(self._name)))
        if len(self._held) > fair:
            # Those with nothing in hand last: what is in hand the next taker publishes again, and the fence
            # skips it.
            order = sorted(self._held.values(), key=lambda held: not (held.done or held.dead))
            surplus = [held.number for held in order[fair:]]
            await self._tables.release(self._name, surplus)
            for number in surplus:
                del self._held[number]
        elif len(self._held) < fair:
            await self._begin(await self._tables.take_over(self._name, fair - len(self._held)))

    async def _begin(self, buckets: Sequence[Bucket]) -> None:
        """Claims buckets in the backplane, and publishes what their last taker had in hand."""
        for bucket in buckets:
            topic = f"outbox:{self._source.table}:{bucket.epoch}"
            # Guarantee 1: claim first, then look at the fence. Until the claim the last taker may publish.
            fence = await self._insisting(topic, bucket.number)
            after = bucket.base + len(bucket.ids)
            if fence is not None and fence[0] >= after:
                # The tables are an older state than the log: a failover, or a backup. A position that the log
                # has had would be skipped as known, and its row never be delivered.
                logger.warning(
                    "outbox %s: bucket %d goes on at position %d, not %d: the tables are older than the log",
                    self._source.table,
                    bucket.number,
                    fence[0] + 1,
                    after,
                )
                after = fence[0] + 1
            self._held[bucket.number] = _Held(bucket.number, topic, after, bucket.round)
        places = {
            id_: (bucket.number, bucket.base + at) for bucket in buckets for at, id_ in enumerate(bucket.ids)
        }
        if places:
            rows = await self._tables.read(places)
            for id_, (number, _) in places.items():
                # A row that was deleted meanwhile is ended, too: its bucket's state has to be.
                self._held[number].done.append(id_)
            await self._publish(rows, places=places)

    async def _insisting(self, topic: str, number: int) -> tuple[int, int] | None:
        """Claims a bucket, and returns its fence; waits for a backplane that is away."""
        while True:
            try:
                await self._fences.claim(topic, number, self._name)
                return await self._fences.fence(topic, number)
            except Unavailable as error:
                await asyncio.sleep(self._applying.failed(error))

    # Rows

    async def _take(self) -> Sequence[OutboxRow]:
        """Ends what is in hand, and takes the next rows."""
        ended: dict[int, EndedRows] = {}
        for held in self._held.values():
            if held.done or held.dead:
                ended[held.number] = EndedRows(held.done, held.dead)
        # Which comes first among buckets with as many rows doesn't matter: each gets its turn in each round.
        busy = sum(held.has_rows for held in self._held.values())
        most = self._source.batch
        kept, rows = await self._tables.take(
            self._name,
            [Holding(held.number, held.next, held.round) for held in self._held.values()],
            ended,
            most=most,
            most_of_one=min(most, max(_LEAST_OF_ONE, 2 * most // max(1, busy or len(self._held)))),
        )
        for number in kept:
            held = self._held[number]
            held.round += 1
            self._metrics.outbox_rows[self._source.table] += len(held.done)
            self._metrics.outbox_dead[self._source.table] += len(held.dead)
            held.done, held.dead, held.has_rows = [], {}, False
        if ended.keys() - kept:
            # Guarantee 1: what was taken meanwhile is written down, and published when `_look` has found it.
            self._known = False
            return ()
        return rows

    async def _publish(
        self, rows: Sequence[OutboxRow], *, places: Mapping[int, tuple[int, int]] | None = None
    ) -> None:
        """Returns when the log has the rows. Raises NotOwner where a bucket has another owner there."""
        drafts = await self._drafts(rows, places)
        while drafts:
            try:
                # Guarantee 1: awaited. The rows are ended only once this has returned.
                await self._dispatcher.dispatch(drafts)
            except Unavailable as error:
                await asyncio.sleep(self._applying.failed(error))
            else:
                break
        self._applying.over()

    async def _drafts(
        self, rows: Iterable[OutboxRow], places: Mapping[int, tuple[int, int]] | None
    ) -> Sequence[Draft]:
        """Decodes rows, each with its position; gives way to other tasks in between."""
        drafts: list[Draft] = []
        loop = asyncio.get_running_loop()
        until = loop.time() + _DECODE_S
        for row in rows:
            if loop.time() > until:
                await asyncio.sleep(0)
                until = loop.time() + _DECODE_S
            if places is None:
                held = self._held[row.bucket]
                position = held.next
                held.next += 1
                held.done.append(row.id)
                held.has_rows = True
            else:
                number, position = places[row.id]
                held = self._held[number]
            source = Source(held.topic, held.number, position, _milliseconds(row.created_at), self._name)
            try:
                drafts.append(self._draft(row, source))
            except InvalidInput as error:
                self._bury(
                    held, row, "; ".join(f"{_column(each.at)}: {each.detail}" for each in error.violations)
                )
            except Exception as error:  # noqa: BLE001 - a row that trips a bug must not stop its key for ever
                self._bury(held, row, f"the decoder failed: {type(error).__name__}: {error}")
        return drafts

    def _draft(self, row: OutboxRow, source: Source) -> Draft:
        found = event.decode(_body(row), ignored=self._ignored)
        return self._drafter.draft(
            found,
            event_id=found.id or f"{self._source.table}-{row.id}",
            at=row.created_at,
            source=source,
            trace=traceparent(row.traceparent) if row.traceparent else "",
        )

    def _ignored(self, count: int) -> None:
        self._metrics.unknown_members += count

    def _bury(self, held: _Held, row: OutboxRow, why: str) -> None:
        held.done.remove(row.id)
        held.dead[row.id] = why.replace("\0", "␀")
        self._burying.failed(f"row {row.id}: {why}")


class _Ears:
    """Hears of new rows, and finds out whether it does."""

    def __init__(self, url: str, tables: OutboxTables, woken: asyncio.Event, pace: OutboxPace) -> None:
        self._url = url
        self._tables = tables
        self._woken = woken
        self._pace = pace
        self._echo = f"echo {secrets.token_hex(6)}"
        self._echoed = asyncio.Event()
        self._name = tables.table.rpartition(".")[2]
        self._said = False

    async def run(self) -> NoReturn:
        """For ever: a connection that is lost, or passes nothing on, is made anew."""
        outage = Outage(
            f"nothing tells of new rows of the outbox {self._tables.table}", logger, Backoff(0.5, 10.0)
        )
        while True:
            try:
                async with listen(self._url, CHANNEL, self._hear) as listening:
                    # What came while nobody listened.
                    self._woken.set()
                    if not await self._hears():
                        await self._say()
                        continue
                    self._said = False
                    outage.over()
                    await self._until_deaf(listening)
            except DatabaseUnavailable as error:
                await asyncio.sleep(outage.failed(error))

    def _hear(self, text: str) -> None:
        if text == self._name:
            self._woken.set()
        elif text == self._echo:
            self._echoed.set()

    async def _hears(self) -> bool:
        """Whether what is sent over another connection is heard over this one."""
        self._echoed.clear()
        await self._tables.tell(self._echo)
        with suppress(TimeoutError):
            async with asyncio.timeout(_ECHO_S):
                await self._echoed.wait()
        return self._echoed.is_set()

    async def _until_deaf(self, listening: Listening) -> None:
        """Returns when the connection has ended, or passes nothing on any more."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._pace.echo_every_s):
                    await listening.until_ended()
                    return
            if not await self._hears():
                return

    async def _say(self) -> None:
        """Once, until it has worked in between."""
        if not self._said:
            self._said = True
            logger.warning(
                "outbox %s: notifications don't come through, as behind a pooler in transaction mode; new"
                " rows are looked for every poll_s. A database_url that goes to the server itself is quicker",
                self._tables.table,
            )
        await asyncio.sleep(self._pace.deaf_s)


def _body(row: OutboxRow) -> bytes:
    """A row as the event's JSON, its message byte for byte. Raises InvalidInput."""
    members: dict[str, object] = {"type": row.type}
    for name, text in (("message", row.message), ("to", row.recipients)):
        if text is None:
            if name == "message" and row.withdraw is not None:
                continue
            raise InvalidInput(Violation(f"$.{name}", "has far too many bytes for an event"))
        try:
            # By itself: beside others it could end its own member and begin another.
            members[name] = _raw.decode(text)
        except msgspec.DecodeError as error:
            raise InvalidInput(Violation(f"$.{name}", f"isn't JSON: {error}")) from None
        except RecursionError:
            raise InvalidInput(Violation(f"$.{name}", "is nested far too deep")) from None
    if row.description:
        members["desc"] = row.description
    optional = {
        "id": row.event_id,
        "ts": row.ts,
        "ttl_s": row.ttl_s,
        "campaign": row.campaign,
        "collapse": row.collapse,
        "withdraw": row.withdraw,
    }
    members |= {name: value for name, value in optional.items() if value is not None}
    return _json.encode(members)


def _column(at: str) -> str:
    """A place in an event, as the table has it: $.to.users[0] is recipients.users[0]."""
    name, _, rest = at.removeprefix("$.").partition(".")
    return ".".join(filter(None, (_COLUMNS.get(name, name), rest)))


def _milliseconds(at: datetime) -> int:
    return max(0, (at - _EPOCH) // _MS)
