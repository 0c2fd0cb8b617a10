"""One connection to Redis: commands with a time limit, without retries, dropped after any doubtful reply.

The Redis backplane has one for publishing, one for reading and one for the canary; `listen` opens its own.
Deliberate: of redis-py only the connection is used. Its client repeats a write whose reply was lost.
"""

import asyncio
import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias, cast

from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError, ResponseError

from pushsse.errors import BackplaneUnavailable
from pushsse.retry import Backoff, Outage

Reply: TypeAlias = "int | bytes | list[Reply] | None"
Argument = str | bytes | int
logger = logging.getLogger(__name__)


class Script(NamedTuple):
    """A script of the folder scripts/, with meta.lua in front, and the name that Redis knows it by."""

    source: str
    sha: str


def script(name: str) -> Script:
    """Reads a script. Raises OSError where the package was installed without it."""
    here = Path(__file__).parent / "scripts"
    source = (here / "meta.lua").read_text() + (here / f"{name}.lua").read_text()
    return Script(source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


class Connector:
    """Makes connections to one Redis; itself it opens none."""

    def __init__(self, url: str, *, timeout_s: float) -> None:
        self._pool: ConnectionPool = ConnectionPool.from_url(
            url,
            protocol=2,
            decode_responses=False,
            retry=Retry(NoBackoff(), 0),
            retry_on_error=[],
            socket_timeout=None,
            socket_connect_timeout=timeout_s,
            socket_keepalive=True,
            health_check_interval=0,
        )

    @property
    def database(self) -> int:
        """The number of the database."""
        return int(self._pool.connection_kwargs.get("db") or 0)

    def connection(self) -> AbstractConnection:
        """A connection that is not open yet."""
        return cast(AbstractConnection, self._pool.make_connection())  # type: ignore[no-untyped-call]


async def connect(connection: AbstractConnection) -> None:
    """Opens a connection. Raises RedisError, OSError."""
    await connection.connect()  # type: ignore[no-untyped-call]


class RedisConnection:
    """Runs commands one after another, in the order in which they were asked for.

    Every failure is BackplaneUnavailable. Whoever needs the reply tries again.
    """

    def __init__(self, connector: Connector, purpose: str, *, timeout_s: float) -> None:
        self._connector = connector
        self._timeout_s = timeout_s
        self._connection: AbstractConnection | None = None
        self._lock = asyncio.Lock()
        self._outage = Outage(f"Redis ({purpose})", logger, Backoff())

    async def run(self, wanted: Script, *arguments: Argument) -> Reply:
        """Runs a script; `arguments` begin with its only key. Raises BackplaneUnavailable."""
        try:
            return (await self._timed((("EVALSHA", wanted.sha, 1, *arguments),)))[0]
        except NoScriptError:
            # The script did not run, so this repeats nothing. EVAL leaves it in Redis for the next time.
            return await self.call("EVAL", wanted.source, 1, *arguments)

    async def run_many(self, wanted: Script, runs: Sequence[Sequence[Argument]]) -> list[Reply]:
        """Runs a script several times in one round trip; each run is atomic. Raises BackplaneUnavailable.

        Where one fails, the others may have run.
        """
        try:
            return await self._timed([("EVALSHA", wanted.sha, 1, *arguments) for arguments in runs])
        except NoScriptError:
            # None of them ran.
            return await self.pipeline([("EVAL", wanted.source, 1, *arguments) for arguments in runs])

    async def call(self, *command: Argument) -> Reply:
        """Runs a command. Raises BackplaneUnavailable."""
        return (await self.pipeline((command,)))[0]

    async def pipeline(self, commands: Sequence[Sequence[Argument]]) -> list[Reply]:
        """Runs commands in one round trip, not atomically. Raises BackplaneUnavailable."""
        try:
            return await self._timed(commands)
        except NoScriptError as error:
            raise BackplaneUnavailable(str(error)) from error

    async def close(self) -> None:
        """Drops the connection; the next command opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)

    async def _timed(self, commands: Sequence[Sequence[Argument]]) -> list[Reply]:
        try:
            async with asyncio.timeout(self._timeout_s), self._lock:
                replies = await self._exchange(commands)
        except NoScriptError:
            raise
        except TimeoutError as error:
            raise self._away(f"no answer within {self._timeout_s} s") from error
        except (RedisError, OSError) as error:
            raise self._away(str(error) or type(error).__name__) from error
        self._outage.over()
        return replies

    async def _exchange(self, commands: Sequence[Sequence[Argument]]) -> list[Reply]:
        try:
            if self._connection is not None and await self._connection.can_read():
                # Redis has closed the connection meanwhile, or has sent what nobody asked for.
                await self.close()
            if self._connection is None:
                self._connection = self._connector.connection()
                await connect(self._connection)
            connection = self._connection
            await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
            return await self._replies(connection, len(commands))
        except NoScriptError:
            raise
        except BaseException:
            # Guarantee 1: whatever ended the wait (cancellation, too), the reply may still come. On the same
            # connection it would be taken for the reply to the next command, and confirm what was not
            # appended.
            await self.close()
            raise

    async def _replies(self, connection: AbstractConnection, count: int) -> list[Reply]:
        # All replies are read, after an error, too: one left over would be taken for a later command's.
        replies: list[Reply] = []
        refused: ResponseError | None = None
        for _ in range(count):
            try:
                replies.append(await connection.read_response(disconnect_on_error=False))
            except ResponseError as error:
                refused = refused or error
        if refused is not None:
            raise refused
        return replies

    def _away(self, reason: str) -> BackplaneUnavailable:
        self._outage.failed(reason)
        return BackplaneUnavailable(reason)
