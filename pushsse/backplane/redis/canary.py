"""Whether Redis does its work: `probe` tries it before a node starts, `Canary` once a second from then on.

The canary is a message that Redis sends to this node's own listener, with the state of the followed logs.
`RedisBackplane` runs it; `pushsse serve` and `pushsse doctor` call the probe. A PING says little: a user
without the right to a channel, or a read-only replica, answers it as well.
"""

import asyncio
import secrets
import time
from typing import cast
from urllib.parse import urlsplit

import redis.asyncio as redis
from redis.exceptions import (
    AuthenticationError,
    NoPermissionError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

from pushsse.backplane import machine_ms
from pushsse.backplane.redis.commands import RedisConnection, script
from pushsse.backplane.redis.listen import LogListener
from pushsse.errors import BackplaneUnavailable

EVERY_S = 1.0
_CLOCK_WITHIN_S = 0.25
_ALIVE_MS = 10_000
_CHECK = script("check")
# Counts the time that the machine sleeps, too, where the system has such a clock (Linux).
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_PROBE_TIMEOUT_S = 3.0
_NO_PASSWORD = "it wants a password: redis://USER:PASSWORD@HOST:PORT/0"  # nosec B105 # a message
# Uses commands of every kind (redis.io: ACL categories) that scripts/ uses, and deletes everything again.
_PROBE = """
local log = KEYS[1] .. ':log'
redis.call('TIME')
redis.call('XADD', log, '1-0', 'o', 1)
redis.call('XRANGE', log, '-', '+', 'COUNT', 1)
redis.call('XTRIM', log, 'MINID', '1-0')
redis.call('HSET', KEYS[1], 'a', 1)
redis.call('HGET', KEYS[1], 'a')
redis.call('HMGET', KEYS[1], 'a', 'b')
redis.call('INCRBY', KEYS[1] .. ':order', 1)
redis.call('ZADD', KEYS[1] .. ':seen', 1, 'a')
redis.call('ZREMRANGEBYRANK', KEYS[1] .. ':seen', 0, 0)
redis.call('PEXPIRE', log, 1000)
redis.call('PTTL', log)
redis.call('DEL', log, KEYS[1], KEYS[1] .. ':order', KEYS[1] .. ':seen')
return redis.call('PUBLISH', ARGV[1], 'probe')
"""


def elapsed_s() -> float:
    """Seconds on a clock that never jumps, and goes on while the process is stopped or the machine sleeps.

    With it the node knows Redis's time as soon as it wakes, before Redis answers: what expired meanwhile must
    not be written.
    """
    return time.clock_gettime(_CLOCK)


class Canary:
    """Sends the canary, and knows Redis's clock and whether Redis answered a moment ago."""

    def __init__(
        self, connection: RedisConnection, listener: LogListener, *, names: str, channel: bytes
    ) -> None:
        self.available = False
        self._connection = connection
        self._listener = listener
        self._names = names
        self._channel = channel
        self._ahead_ms: float | None = None  # of `elapsed_s`

    def now_ms(self) -> int:
        """Redis's clock, as far as known; until Redis has answered once, this machine's."""
        if self._ahead_ms is None:
            return machine_ms()
        return int(elapsed_s() * 1000 + self._ahead_ms)

    async def run(self) -> None:
        """Sends one a second, for ever."""
        while True:
            try:
                await self._send()
                # A replica, or a Redis without memory, publishes and answers, but takes no write.
                await self._connection.call("SET", f"{self._names}alive", "1", "PX", _ALIVE_MS)
                self.available = True
            except BackplaneUnavailable:
                self.available = False
            await asyncio.sleep(EVERY_S)

    async def _send(self) -> None:
        # Guarantee 2: the logs and the publishing are one script. Were the state read first, and published by
        # another command, entries in between would come before the canary and look like a log that went back.
        asked = elapsed_s()
        logs = self._listener.followed()
        time_ms = cast(int, await self._connection.run(_CHECK, self._names, self._channel, *logs))
        took = elapsed_s() - asked
        if took < _CLOCK_WITHIN_S or self._ahead_ms is None:
            self._ahead_ms = time_ms - (asked + took / 2) * 1000


_LOOK = "see whether it runs there, and whether PUSHSSE_REDIS_URL is right"


async def probe(url: str, prefix: str) -> str:
    """Why Redis cannot do its work, and what to do about it; empty if it can."""
    try:
        async with (
            asyncio.timeout(2 * _PROBE_TIMEOUT_S),
            redis.Redis.from_url(
                url,
                socket_timeout=_PROBE_TIMEOUT_S,
                socket_connect_timeout=_PROBE_TIMEOUT_S,
                decode_responses=True,
            ) as client,
        ):
            return await _try(client, prefix)
    except NoPermissionError as error:
        return f"{error}. {_grant(url, prefix)}"
    except ReadOnlyError:
        return "it is a read-only replica: use the address of the primary"
    except AuthenticationError as error:
        if "HELLO" in str(error):
            return _NO_PASSWORD
        return f"{error}: look at the user's name and password in PUSHSSE_REDIS_URL"
    except ResponseError as error:
        if "NOAUTH" in str(error) or "Authentication required" in str(error):
            return _NO_PASSWORD
        if "ACL failure" in str(error) or "can't run this command" in str(error):
            return f"{error}. {_grant(url, prefix)}"
        return f"it refuses to work: {error}"
    except TimeoutError:
        return f"no answer within {_PROBE_TIMEOUT_S:.0f} s: {_LOOK}"
    except (RedisError, OSError) as error:
        return f"{str(error).rstrip('.')}: {_LOOK}"


async def _try(client: redis.Redis, prefix: str) -> str:
    name = f"{prefix}probe:{secrets.token_hex(6)}"
    async with client.pubsub() as heard:
        await heard.subscribe(name)
        answer = await heard.get_message(timeout=_PROBE_TIMEOUT_S)
        if answer is None or answer["type"] != "subscribe":
            return f"no confirmation of SUBSCRIBE {name} within {_PROBE_TIMEOUT_S:.0f} s"
        # By a script, as everything is written: `eval` also tells whether the user may run scripts.
        await client.eval(_PROBE, 1, name, name)
        message = await heard.get_message(ignore_subscribe_messages=True, timeout=_PROBE_TIMEOUT_S)
        if message is None:
            return f"what is published to {name} isn't heard within {_PROBE_TIMEOUT_S:.0f} s"
    return ""


def _grant(url: str, prefix: str) -> str:
    """The command that gives the user the rights that a node needs (redis.io: ACL)."""
    user = urlsplit(url).username or "default"
    return f"Grant the rights: ACL SETUSER {user} ~{prefix}* &{prefix}* +@all -@admin -@dangerous +info"
