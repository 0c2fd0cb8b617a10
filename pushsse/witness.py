"""Finds out whether this node alone has lost the backplane, and then gives its work to the others.

A service, where there are Redis and PostgreSQL. Every two seconds a node that hears the backplane reports so
in the database; one that doesn't asks there whether others do. If they do, for ten seconds, the node is
isolated: it isn't ready, and `Work` gives Kafka partitions, questions and streams back. If no node hears the
backplane, or the database is away, nothing changes, since all nodes would leave together.
"""

import asyncio
import logging
import random
import time
from dataclasses import dataclass, field
from typing import NoReturn, Protocol

from tortoise import fields
from tortoise.models import Model

from pushsse.database import Database, Statement
from pushsse.errors import DatabaseUnavailable

logger = logging.getLogger(__name__)
AFTER_S = 10.0
# Less than AFTER_S. When Redis goes away for all nodes, their reports are old before any of them is isolated.
FRESH_S = 6.0
_LOOK_S = 2.0
_FORGET_EVERY = 1000


class Reports(Protocol):
    """Where nodes report that they hear the backplane. Every call raises DatabaseUnavailable."""

    async def report(self) -> None:
        """This node hears it."""
        ...

    async def others(self, *, within_s: float) -> int:
        """How many other nodes have reported within so many seconds."""
        ...

    async def forget(self) -> None:
        """Drops the reports of nodes that are long gone."""
        ...


class SharesWork(Protocol):
    """What the node does for all nodes, and whether it hears the backplane. `node.Work` is it."""

    @property
    def hears(self) -> bool:
        """Whether the node hears the backplane."""
        ...

    async def give_back(self) -> None:
        """This node is isolated, and the others are to do its work."""
        ...

    def take_back(self) -> None:
        """This node does its share again."""
        ...


@dataclass(slots=True)
class Isolation:
    """Whether this node is isolated. All looks of ten seconds have to agree on a change: no flapping."""

    isolated: bool = False
    _since: float | None = None
    _after_s: float = field(default_factory=lambda: draw_after_s())

    def look(self, now: float, *, hears: bool, others: int | None) -> bool:
        """Takes one look, at `now` in seconds; True if it changed.

        `hears` is this node. `others` is how many other nodes hear the backplane, None where that is unknown.
        """
        # A node that can't ask about the others doesn't become isolated: all nodes would leave at once.
        contrary = hears if self.isolated else not hears and bool(others)
        if not contrary:
            self._since = None
            return False
        if self._since is None:
            self._since = now
        if now - self._since < self._after_s:
            return False
        self.isolated, self._since, self._after_s = not self.isolated, None, draw_after_s()
        return True


class Witness:
    """Looks for ever; while this node is isolated, its work belongs to the others."""

    def __init__(self, reports: Reports, work: SharesWork, *, look_s: float = _LOOK_S) -> None:
        self._reports = reports
        self._work = work
        self._look_s = look_s
        self._isolation = Isolation()

    @property
    def isolated(self) -> bool:
        """Whether this node alone has lost the backplane."""
        return self._isolation.isolated

    async def run(self) -> NoReturn:
        """Looks every two seconds."""
        number = 0
        while True:
            number += 1
            await asyncio.sleep(self._look_s * random.uniform(0.75, 1.25))
            hears = self._work.hears
            others = await self._others(hears, number)
            if self._isolation.look(time.monotonic(), hears=hears, others=others):
                await self._change()

    async def _others(self, hears: bool, number: int) -> int | None:
        try:
            if hears:
                await self._reports.report()
                if number % _FORGET_EVERY == 0:
                    await self._reports.forget()
                return None
            return await self._reports.others(within_s=FRESH_S)
        except DatabaseUnavailable:
            # The parts that need the database log that it is away.
            return None

    async def _change(self) -> None:
        if self.isolated:
            logger.error(
                "this node has not heard Redis for %.0f s, and others have: it isn't ready, gives its Kafka"
                " partitions and its questions back, and ends its streams. Look at its network",
                AFTER_S,
            )
            await self._work.give_back()
        else:
            logger.warning("this node hears Redis again: it is ready")
            self._work.take_back()


def draw_after_s() -> float:
    """After how many seconds a node changes; drawn, so that nodes don't all change together."""
    return AFTER_S * random.uniform(1.0, 1.2)


_REPORT = Statement("""
    INSERT INTO pushsse_witness (node, heard_at) VALUES ({value[1]}, now())
    ON CONFLICT (node) DO UPDATE SET heard_at = now()""")
_OTHERS = Statement("""
    SELECT count(*) FROM pushsse_witness
     WHERE node <> {value[1]} AND heard_at > now() - {value[2]} * interval '1 second'""")
_FORGET = Statement("DELETE FROM pushsse_witness WHERE heard_at < now() - interval '1 day'")


class WitnessRow(Model):
    """A node that heard the backplane, and when it last did."""

    node = fields.CharField(primary_key=True, max_length=255)
    heard_at = fields.DatetimeField()

    class Meta:
        table = "pushsse_witness"


class WitnessTable:
    """The nodes' reports in PostgreSQL; see `Reports`."""

    def __init__(self, database: Database, *, node: str) -> None:
        self._database = database
        self._node = node

    async def report(self) -> None:
        """This node hears the backplane. Raises DatabaseUnavailable."""
        await self._database.rows(str, _REPORT, self._node)

    async def others(self, *, within_s: float) -> int:
        """How many other nodes have reported within so many seconds. Raises DatabaseUnavailable."""
        return (await self._database.rows(int, _OTHERS, self._node, within_s))[0]

    async def forget(self) -> None:
        """Drops the reports of nodes that are long gone. Raises DatabaseUnavailable."""
        await self._database.rows(str, _FORGET)
