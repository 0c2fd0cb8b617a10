"""What stands between a node and PostgreSQL: nothing, or a pooler (pgbouncer, PgCat, a provider's own).

Asked by `database` before the first statement, and after each outage. In transaction mode a pooler gives each
transaction another connection of its own, so what a connection remembers, such as a prepared statement, is
gone or somebody else's in the next one. Without a pooler statements are kept prepared.
"""

import asyncio
import logging

from tortoise.backends.asyncpg.client import AsyncpgDBClient

log = logging.getLogger(__name__)
_KEPT = 100
_SIZE = "statement_cache_size"


class Route:
    """Sets a client up for what it finds. The client's pool has no user before `recognise` has returned."""

    def __init__(self, client: AsyncpgDBClient) -> None:
        self._client = client
        self._given: int | None = client.extra.get(_SIZE)
        self._lock = asyncio.Lock()
        self._said = False
        self.pooled = self._given == 0
        self.known = self.pooled
        self.forget()

    def forget(self) -> None:
        """What answers next may be another: the next pool works with either."""
        self.known = self._given == 0
        self._client.extra[_SIZE] = 0
        self._client.server_settings.pop("default_transaction_isolation", None)

    async def recognise(self) -> None:
        """Looks, and makes the pool for it. Raises what connecting raises."""
        async with self._lock:
            if self.known:
                return
            pool = self._client._pool
            if pool is None:
                raise ConnectionError("the database is closed")
            async with pool.acquire() as connection:
                process = await connection.fetchval("SELECT pg_backend_pid()")
                # A pooler makes up the number that cancels, since its connections to the server change.
                self.pooled = process != connection.get_server_pid()
            if not self.pooled:
                # Asked for in the greeting, of which a pooler refuses most. A statement by itself is a
                # transaction, too: with a stricter level than the one it is written for it may fail.
                self._client.server_settings["default_transaction_isolation"] = "read committed"
            elif not self._said:
                self._said = True
                log.info("a pooler stands between this node and the database: no statement is kept prepared")
            self._client.extra[_SIZE] = self._given or (0 if self.pooled else _KEPT)
            await self._client.create_connection(with_db=True)
            pool.terminate()
            self.known = True
