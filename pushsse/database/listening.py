"""PostgreSQL's notifications (LISTEN, NOTIFY), over a connection of their own.

The outbox's service calls `listen`. A notification may get lost, and a pooler such as pgbouncer in
transaction mode passes none on, so whoever listens looks by himself from time to time.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import asyncpg

from pushsse.database.connection import AWAY
from pushsse.database.url import APP, credentials
from pushsse.errors import DatabaseUnavailable

_CONNECT_S = 5.0
_CLOSE_S = 1.0
# What the pool's keywords have, and a single connection's haven't.
_POOL_ALONE = ("minsize", "maxsize", "min_size", "max_size", "max_inactive_connection_lifetime", "schema")


class Listening:
    """One connection that listens, as `listen` yields it."""

    def __init__(self, ended: asyncio.Event) -> None:
        self._ended = ended

    async def until_ended(self) -> None:
        """Returns when the server has closed the connection. One that vanished may be noticed much later."""
        await self._ended.wait()


@asynccontextmanager
async def listen(url: str, channel: str, heard: Callable[[str], None]) -> AsyncIterator[Listening]:
    """Calls `heard` with the text of each notification of a channel, while the context lasts.

    `heard` must not wait. Raises DatabaseUnavailable where there is no connection.
    """
    given = {name: value for name, value in credentials(url).items() if name not in _POOL_ALONE}
    given = {"timeout": _CONNECT_S, "server_settings": {"application_name": APP}, **given}
    given.pop("application_name", None)
    ended = asyncio.Event()

    def received(_connection: object, _process: int, _channel: str, text: object) -> None:
        heard(str(text))

    try:
        # No statement is kept prepared: a pooler would take its next run elsewhere.
        connection = await asyncpg.connect(**{**given, "statement_cache_size": 0})
    except (*AWAY, asyncpg.PostgresError) as error:
        raise DatabaseUnavailable(f"no connection to listen over: {error}") from error
    try:
        connection.add_termination_listener(lambda _connection: ended.set())
        try:
            async with asyncio.timeout(_CONNECT_S):
                await connection.add_listener(channel, received)
        except (*AWAY, asyncpg.PostgresError) as error:
            raise DatabaseUnavailable(f"LISTEN failed: {error}") from error
        yield Listening(ended)
    finally:
        try:
            await connection.close(timeout=_CLOSE_S)
        except (*AWAY, asyncpg.PostgresError):
            connection.terminate()
