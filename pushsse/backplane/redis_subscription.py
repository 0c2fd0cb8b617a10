"""One pub/sub connection: a task that only reads and enqueues, and breaks when the canary falls silent.

Used by the listener, which opens another when this one is broken. Deliberate: nothing here reconnects, since
redis-py would do so without a word, and what was published meanwhile would be missing unnoticed.
"""

import asyncio
import math
from collections.abc import Iterable
from typing import NamedTuple

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from pushsse.backplane.redis_link import connect

SILENT_S = 3.0
_MOST_WAITING_BYTES = 8 * 1024 * 1024
_MESSAGE_BYTES = 100
_AT_ONCE = 500


class Message(NamedTuple):
    """What came: of which kind, on which channel; the payload of a subscription is a count."""

    kind: bytes
    channel: bytes
    payload: bytes | int


class Subscription:
    """What was asked for (`sent`), what Redis confirmed, and what waits to be taken."""

    def __init__(self, connection: AbstractConnection, *, canary: bytes, wake: asyncio.Event) -> None:
        self.broken = ""
        self.has_heard = False
        self.sent: set[str] = set()
        self.confirmed: set[str] = set()
        self._connection = connection
        self._canary = canary
        self._wake = wake
        self._waiting: list[Message] = []
        self._bytes = 0
        self._room = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def open(self, tasks: asyncio.TaskGroup, *, timeout_s: float) -> None:
        """Connects, and begins to read. Raises RedisError, OSError, TimeoutError."""
        async with asyncio.timeout(timeout_s):
            await connect(self._connection)
            await self._send("SUBSCRIBE", (self._canary,))
        self._task = tasks.create_task(self._run(), name="backplane subscription")

    async def close(self) -> None:
        """Ends reading, and drops the connection."""
        if self._task is not None:
            self._task.cancel()
        await self._connection.disconnect(nowait=True)

    async def subscribe(self, channels: Iterable[bytes], *, timeout_s: float, end: bool = False) -> None:
        """Asks for channels, or ends them; the confirmations come as messages."""
        async with asyncio.timeout(timeout_s):
            await self._send("UNSUBSCRIBE" if end else "SUBSCRIBE", channels)

    @property
    def has_waiting(self) -> bool:
        """Whether something waits to be taken."""
        return bool(self._waiting)

    def take(self) -> list[Message]:
        """What has come, oldest first; not all at once, so that taking never stops everything else."""
        taken = self._waiting[:_AT_ONCE]
        del self._waiting[:_AT_ONCE]
        if not self._waiting:
            self._bytes = 0
            self._room.set()
        return taken

    def confirm(self, kind: bytes, log: str) -> None:
        """Redis has taken up a channel, or ended it."""
        if kind == b"subscribe":
            self.confirmed.add(log)
        else:
            self.confirmed.discard(log)

    async def _send(self, command: str, channels: Iterable[bytes]) -> None:
        packed = self._connection.pack_commands([(command, *channels)])
        await self._connection.send_packed_command(packed, check_health=False)

    async def _run(self) -> None:
        try:
            async with asyncio.timeout(SILENT_S) as silence:
                await self._read(silence)
        except TimeoutError:
            self.broken = f"no canary for {SILENT_S:g} s"
        except (RedisError, OSError) as error:
            self.broken = str(error) or type(error).__name__
        finally:
            self._wake.set()

    async def _read(self, silence: asyncio.Timeout) -> None:
        loop = asyncio.get_running_loop()
        read = self._connection.read_response
        while True:
            message = Message(*await read(timeout=math.inf, disconnect_on_error=False))
            if message.channel == self._canary:
                # Its confirmation comes on the same channel.
                self.has_heard = self.has_heard or message.kind == b"message"
                silence.reschedule(loop.time() + SILENT_S)
            self._waiting.append(message)
            self._wake.set()
            if type(message.payload) is bytes:
                self._bytes += len(message.payload) + _MESSAGE_BYTES
            if self._bytes > _MOST_WAITING_BYTES:
                # Redis waits now, and cuts this connection if that is for too long: then it is read again.
                silence.reschedule(None)
                self._room.clear()
                await self._room.wait()
                silence.reschedule(loop.time() + SILENT_S)
