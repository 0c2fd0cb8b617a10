"""The table in which nodes say that they hear the backplane. In PostgreSQL alone: SQLite has one node.

Used by `witness`; all times are the database's clock.
"""

from tortoise import fields
from tortoise.models import Model

from pushsse.database.database import Database
from pushsse.database.session import Statement

_SAY = Statement("""
    INSERT INTO pushsse_witness (node, heard_at) VALUES ($1, now())
    ON CONFLICT (node) DO UPDATE SET heard_at = now()""")
_OTHERS = Statement("""
    SELECT count(*) FROM pushsse_witness
     WHERE node <> $1 AND heard_at > now() - $2 * interval '1 second'""")
_FORGET = Statement("DELETE FROM pushsse_witness WHERE heard_at < now() - interval '1 day'")


class Witness(Model):
    """A node that heard the backplane, and when it last did."""

    node = fields.CharField(primary_key=True, max_length=255)
    heard_at = fields.DatetimeField()

    class Meta:
        table = "pushsse_witness"


class WitnessTable:
    """What nodes say of themselves, and of others."""

    def __init__(self, database: Database, *, node: str) -> None:
        self._database = database
        self._node = node

    async def say(self) -> None:
        """This node hears the backplane. Raises DatabaseUnavailable."""
        await self._database.rows(str, _SAY, self._node)

    async def others(self, *, within_s: float) -> int:
        """How many other nodes said so lately. Raises DatabaseUnavailable."""
        return (await self._database.rows(int, _OTHERS, self._node, within_s))[0]

    async def forget(self) -> None:
        """Drops what nodes said that are long gone. Raises DatabaseUnavailable."""
        await self._database.rows(str, _FORGET)
