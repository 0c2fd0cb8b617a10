"""What the tests over a real outbox share: its table, an application that writes rows, a running service."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import asyncpg

from pushsse.backplane import Append, Draft, Receipt, log_of
from pushsse.backplane.memory import MemoryBackplane
from pushsse.errors import BackplaneUnavailable
from pushsse.intake.outbox import Outbox, OutboxPace
from pushsse.intake.outbox.tables import sql
from pushsse.metrics import Metrics
from pushsse.node import Interruptible
from pushsse.settings import OutboxSource

from .kit import Backplane, drafter

PACE = OutboxPace(lease_s=2.0, renew_every_s=0.2, share_every_s=0.1)
INSERT = """INSERT INTO {} (key, type, message, recipients, event_id)
    VALUES ($1, $2, $3::text::json, $4::text::json, $5) RETURNING id"""


class Dispatch:
    """Publishes to the logs of a backplane and remembers the calls; `failures` of them fail afterwards."""

    def __init__(self, backplane: MemoryBackplane) -> None:
        self.backplane = backplane
        self.calls: list[Sequence[Draft]] = []
        self.receipts: list[Receipt] = []
        self.failures = 0
        # Whether a call returns once it has published. `published` says that it has.
        self.returns = True
        self.published = asyncio.Event()
        self.open = asyncio.Event()
        self.open.set()

    async def dispatch(self, drafts: Sequence[Draft]) -> Receipt:
        self.calls.append(drafts)
        await self.open.wait()
        appends = []
        for draft in drafts:
            users = draft.publication.users
            log = "all" if users is None else log_of(users[0], self.backplane.shards)
            appends.append(Append(log, (draft,)))
        receipt = await self.backplane.publish(appends)
        self.receipts.append(receipt)
        if self.failures:
            self.failures -= 1
            raise BackplaneUnavailable("the answer got lost")
        self.published.set()
        if not self.returns:
            await asyncio.Event().wait()
        return receipt

    @property
    def fenced(self) -> int:
        return sum(receipt.fenced for receipt in self.receipts)


@dataclass
class OutboxKit:
    """A database with an outbox in it, and a backplane that all services of the test share."""

    url: str
    application: asyncpg.Connection
    table: str = "pushsse_outbox"
    metrics: Metrics = field(default_factory=Metrics)
    backplane: Backplane = field(init=False)
    dispatch: Dispatch = field(init=False)

    def __post_init__(self) -> None:
        self.backplane = Backplane(shards=8, keep_s=3600, keep_bytes=64 * 1024**2, metrics=self.metrics)
        self.dispatch = Dispatch(self.backplane)

    async def make(self) -> None:
        await self.application.execute(sql(self.table))

    async def insert(
        self,
        message: object,
        *,
        key: str | None = None,
        to: object = "all",
        kind: str = "alarm",
        event_id: str | None = None,
        text: str = "",
        over: asyncpg.Connection | None = None,
    ) -> int:
        """One row, by itself or in the transaction of a connection; its id."""
        found: int = await (over or self.application).fetchval(
            INSERT.format(self.table), key, kind, text or json.dumps(message), json.dumps(to), event_id
        )
        return found

    def service(
        self, *, node: str = "here", dispatch: Dispatch | None = None, **options: Any
    ) -> Interruptible:
        source = OutboxSource(table=self.table, **{"poll_s": 0.2, **options})
        outbox = Outbox(
            source,
            self.url,
            node=node,
            drafter=drafter(),
            dispatcher=dispatch or self.dispatch,
            fences=self.backplane,
            metrics=self.metrics,
            pace=PACE,
        )
        return Interruptible(outbox.run)

    @asynccontextmanager
    async def running(self, **options: Any) -> AsyncIterator[Interruptible]:
        service = self.service(**options)
        task = asyncio.create_task(service.run())
        try:
            yield service
        finally:
            task.cancel()
            await asyncio.wait((task,))
            assert task.cancelled() or task.exception() is None, task.exception()

    async def events(self) -> list[Any]:
        """The events in the logs, in the order in which they were appended."""
        logs = dict.fromkeys(["all", *map(str, range(self.backplane.shards))], 0)
        page = await self.backplane.read(logs, limit=100_000)
        return [json.loads(entry.publication.body.removeprefix(b"data: ")) for entry in page.entries]

    async def messages(self) -> list[Any]:
        return [each["message"] for each in await self.events()]

    async def has(self, count: int) -> bool:
        return len(await self.events()) >= count

    async def rows(self) -> list[tuple[int, str, str | None]]:
        found = await self.application.fetch(f"SELECT id, status, error FROM {self.table} ORDER BY id")
        return [(row["id"], row["status"], row["error"]) for row in found]

    async def has_listener(self) -> bool:
        text = """SELECT count(*) FROM pg_stat_activity
                   WHERE datname = current_database() AND query LIKE 'LISTEN%'"""
        return int(await self.application.fetchval(text)) > 0

    async def is_empty(self) -> bool:
        return not await self.rows()
