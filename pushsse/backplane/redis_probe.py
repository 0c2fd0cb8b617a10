"""Does with Redis, once, what a node does all the time: scripts, writes, pub/sub, under the prefix.

Called by `pushsse serve` before it begins and by `pushsse doctor`. A PING says little: a user without the
right to a channel, or a read-only replica, answers it as well.
"""

import asyncio
import secrets
from urllib.parse import urlsplit

import redis.asyncio as redis
from redis.exceptions import (
    AuthenticationError,
    NoPermissionError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

_TIMEOUT_S = 3.0
_NO_PASSWORD = "it wants a password: redis://USER:PASSWORD@HOST:PORT/0"
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
