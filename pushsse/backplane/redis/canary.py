"""The canary: once a second Redis tells this node's own listener how its logs stand, over another connection.

A service of the Redis backplane. It keeps Redis's clock as well, and whether Redis answered a moment ago.
"""

import asyncio
import secrets
import time
from collections.abc import Callable, Iterable
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
from pushsse.backplane.redis.connection import Link, script
from pushsse.errors import BackplaneUnavailable

EVERY_S = 1.0
_SURE_WITHIN_S = 0.25
_ALIVE_MS = 10_000
_TIMEOUT_S = 3.0
_NO_PASSWORD = "it wants a password: redis://USER:PASSWORD@HOST:PORT/0"
_CHECK = script("check")


# Counts the time that a machine sleeps, too, where the system has such a clock (Linux).
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def elapsed_s() -> float:
    """Seconds on a clock that never jumps, and goes on while the process is stopped or the machine sleeps.

    With it the node knows Redis's time when it wakes, before it hears from Redis again: what expired
    meanwhile mustn't be written.
    """
    return time.clock_gettime(_CLOCK)


class Watch:
    """`run` for ever; the rest is what it has found out."""

    def __init__(self, link: Link, *, names: str, canary: bytes, logs: Callable[[], Iterable[str]]) -> None:
        self.available = False
        self._alive = f"{names}alive"
        self._link = link
        self._names = names
        self._canary = canary
        self._logs = logs
        self._ahead_ms: float | None = None  # of `elapsed_s`

    def now_ms(self) -> int:
        """Redis's clock, as far as known; until it has answered once, this machine's."""
        if self._ahead_ms is None:
            return machine_ms()
        return int(elapsed_s() * 1000 + self._ahead_ms)

    async def run(self) -> None:
        """Looks once a second."""
        while True:
            try:
                await self._look()
                # A replica, or a Redis that is full, hears and answers, and takes nothing.
                await self._link.call("SET", self._alive, "1", "PX", _ALIVE_MS)
                self.available = True
            except BackplaneUnavailable:
                self.available = False
            await asyncio.sleep(EVERY_S)

    async def _look(self) -> None:
        asked = elapsed_s()
        time_ms = cast(int, await self._link.run(_CHECK, self._names, self._canary, *self._logs()))
        took = elapsed_s() - asked
        if took < _SURE_WITHIN_S or self._ahead_ms is None:
            self._ahead_ms = time_ms - (asked + took / 2) * 1000


# Writes and reads with the commands that the scripts of this folder use, and takes it all away again.
_TURN = """
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
redis.call('DEL', log, KEYS[1], KEYS[1] .. ':order', KEYS[1] .. ':seen')
return redis.call('PUBLISH', ARGV[1], 'turn')
"""


async def probe(url: str, prefix: str) -> str:
    """What keeps Redis from doing its work, and what to do about it; empty if nothing does."""
    try:
        async with (
            asyncio.timeout(2 * _TIMEOUT_S),
            redis.Redis.from_url(
                url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S, decode_responses=True
            ) as client,
        ):
            return await _turn(client, prefix)
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
        return f"no answer within {_TIMEOUT_S:.0f} s"
    except (RedisError, OSError) as error:
        return str(error)


async def _turn(client: redis.Redis, prefix: str) -> str:
    name = f"{prefix}probe:{secrets.token_hex(6)}"
    async with client.pubsub() as heard:
        await heard.subscribe(name)
        answer = await heard.get_message(timeout=_TIMEOUT_S)
        if answer is None or answer["type"] != "subscribe":
            return f"no confirmation of SUBSCRIBE {name} within {_TIMEOUT_S:.0f} s"
        # By a script, as everything is written; `eval` also tells whether scripts may be run.
        await client.eval(_TURN, 1, name, name)
        message = await heard.get_message(ignore_subscribe_messages=True, timeout=_TIMEOUT_S)
        if message is None:
            return f"what is published to {name} isn't heard within {_TIMEOUT_S:.0f} s"
    return ""


def _grant(url: str, prefix: str) -> str:
    """The rule of an access list that lets a user do what a node does (Redis documentation, ACL)."""
    user = urlsplit(url).username or "default"
    return f"Grant the rights: ACL SETUSER {user} ~{prefix}* &{prefix}* +@all -@admin -@dangerous +info"
