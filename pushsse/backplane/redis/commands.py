"""Commands to Redis: the connection that runs them, reads of several logs at one moment, growths of answers.

`RedisConnection` runs commands with a time limit, without retries, and is dropped after any doubtful reply.
The backplane has one for publishing, one for reading and one for the canary; `listen` opens its own.
Deliberate: of redis-py only the connection is used. Its client repeats a write whose reply was lost.

`LogReader` reads, for streams that resume or are behind, and for the listener when it follows a log or has
missed something; `merged` brings what the logs hold into its order.

`Growths` sends what answers grow by over the connection that publishes: a delta stays behind the event before
it, and ahead of the next. Each is one run of grow.lua. While a round trip is under way, what comes waits for
the next one, so a hundred answers that grow at once need a few round trips each fiftieth of a second.

`probe` tries Redis before a node starts, for `pushsse serve` and `pushsse doctor`. A PING says little: a user
without the right to a channel, or a read-only replica, answers it as well.
"""

import asyncio
import hashlib
import logging
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from heapq import merge
from pathlib import Path
from typing import NamedTuple, TypeAlias, cast
from urllib.parse import urlsplit

import hiredis
import redis.asyncio as redis
from msgspec.structs import replace
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    NoPermissionError,
    NoScriptError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

from pushsse.backplane import (
    PRESENCE_LEASE_MS,
    TAIL_BYTES,
    TAIL_ENTRIES,
    Entry,
    Head,
    Missed,
    Search,
    codec,
    fresh_word,
)
from pushsse.backplane.answers import ANSWER_KEEP_MS, Grew, Growth
from pushsse.errors import BackplaneUnavailable
from pushsse.event import Change
from pushsse.position import Mark
from pushsse.retry import Backoff, Outage

RedisReply: TypeAlias = "int | bytes | list[RedisReply] | None"
Argument = str | bytes | int
logger = logging.getLogger(__name__)
_READ_BYTES = 4 * 1024 * 1024
# Of one round trip with growths: nothing else is published meanwhile.
_GROWN_TOGETHER = 64
_GROWN_BYTES = 1024 * 1024
# By hiredis: redis-py's asynchronous connection packs in Python, which takes four to six times as long. Its
# types say one argument.
_pack = cast(Callable[[tuple[Argument, ...]], bytes], hiredis.pack_command)
# A run's arguments, and whoever waits for its reply.
_Waiting = tuple[tuple[Argument, ...], asyncio.Future[Grew]]


class Script(NamedTuple):
    """A script of the folder scripts/, with meta.lua in front, and the name that Redis knows it by."""

    source: str
    sha: str


def script(name: str) -> Script:
    """Reads a script. Raises OSError where the package was installed without it."""
    here = Path(__file__).parent / "scripts"
    source = (here / "meta.lua").read_text() + (here / f"{name}.lua").read_text()
    return Script(source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


_READ, _RENEW, _SINCE, _CHANGE = (script(name) for name in ("read", "renew", "since", "first_change"))
_MISSED, _GROW = script("missed"), script("grow")


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


async def send(connection: AbstractConnection, packed: bytes | Iterable[bytes]) -> None:
    """Sends packed commands. Raises RedisError, OSError."""
    try:
        await connection.send_packed_command(packed, check_health=False)
    except RuntimeError as error:
        # uvloop's, where a write before this one has found the connection broken in the same turn.
        raise ConnectionResetError(str(error)) from error


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

    async def run(self, wanted: Script, *arguments: Argument) -> RedisReply:
        """Runs a script; `arguments` begin with its only key. Raises BackplaneUnavailable."""
        try:
            return (await self._timed((("EVALSHA", wanted.sha, 1, *arguments),)))[0]
        except NoScriptError:
            # The script did not run, so this repeats nothing. EVAL leaves it in Redis for the next time.
            return await self.call("EVAL", wanted.source, 1, *arguments)

    async def run_many(self, wanted: Script, runs: Sequence[tuple[Argument, ...]]) -> list[RedisReply]:
        """Runs a script several times in one round trip; each run is atomic. Raises BackplaneUnavailable.

        Where one fails, the others may have run.
        """
        try:
            return await self._timed([("EVALSHA", wanted.sha, 1, *arguments) for arguments in runs])
        except NoScriptError:
            # None of them ran.
            return await self.pipeline([("EVAL", wanted.source, 1, *arguments) for arguments in runs])

    async def call(self, *command: Argument) -> RedisReply:
        """Runs a command. Raises BackplaneUnavailable."""
        return (await self.pipeline((command,)))[0]

    async def pipeline(self, commands: Sequence[tuple[Argument, ...]]) -> list[RedisReply]:
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

    async def _timed(self, commands: Sequence[tuple[Argument, ...]]) -> list[RedisReply]:
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

    async def _exchange(self, commands: Sequence[tuple[Argument, ...]]) -> list[RedisReply]:
        try:
            if self._connection is not None and await self._connection.can_read():
                # Redis has closed the connection meanwhile, or has sent what nobody asked for.
                await self.close()
            if self._connection is None:
                self._connection = self._connector.connection()
                await connect(self._connection)
            connection = self._connection
            packed = b"".join(map(_pack, commands))
            await send(connection, packed)
            return await self._replies(connection, len(commands))
        except NoScriptError:
            raise
        except BaseException:
            # Guarantee 1: whatever ended the wait (cancellation, too), the reply may still come. On the same
            # connection it would be taken for the reply to the next command, and confirm what was not
            # appended.
            await self.close()
            raise

    async def _replies(self, connection: AbstractConnection, count: int) -> list[RedisReply]:
        # All replies are read, after an error, too: one left over would be taken for a later command's.
        replies: list[RedisReply] = []
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
        # Whoever logs it may depend on other parts, too.
        return BackplaneUnavailable(f"Redis: {reason}")


class Want(NamedTuple):
    """What is wanted of a log: what comes after a place in it, or its newest entries (`tail`: how many)."""

    log: str
    epoch: str = ""
    number: int = 0
    at_ms: int = 0
    tail: int = 0


class ReadResult(NamedTuple):
    """What a log held: entries after `start`, without a hole. `went_back`: it lacks the wanted place."""

    log: str
    head: Head
    at_ms: int
    start: int
    went_back: bool
    entries: tuple[Entry, ...]

    @property
    def is_cut(self) -> bool:
        """Whether the log has more after these entries."""
        return bool(self.entries) and self.entries[-1].number < self.head.number


def tail_of(log: str) -> Want:
    """The newest entries of a log."""
    return Want(log, tail=TAIL_ENTRIES)


def merged(results: Iterable[ReadResult]) -> tuple[tuple[Entry, ...], bool]:
    """The entries of several logs by order, and whether there is more."""
    results = tuple(results)
    entries = merge(*(one.entries for one in results), key=_order)
    cuts = [one.entries[-1].order for one in results if one.is_cut]
    if not cuts:
        return tuple(entries), False
    # Guarantee 2: only up to the first cut. What comes after it in the other logs would overtake what the log
    # that was cut still has.
    return tuple(entry for entry in entries if entry.order <= min(cuts)), True


class LogReader:
    """Runs the reading scripts. Everything raises BackplaneUnavailable."""

    def __init__(self, connection: RedisConnection, *, names: str) -> None:
        self.decoder = codec.Decoder()
        self._connection = connection
        self._names = names

    async def read(self, wants: Sequence[Want], *, limit: int) -> tuple[ReadResult, ...]:
        """What the logs hold at one moment, about 4 MiB at most. A log that does not exist begins.

        Guarantee 2: one script for all logs. Read one by one, a later log would have entries whose order is
        beyond what an earlier one had, and merging them would let them overtake.
        """
        most_bytes = TAIL_BYTES if any(want.tail for want in wants) else _READ_BYTES
        replies = await self._connection.run(
            _READ, self._names, fresh_word(), limit, most_bytes, codec.pack(wants)
        )
        rows = cast(list[list[RedisReply]], replies)
        return tuple(_result(want, row, self.decoder) for want, row in zip(wants, rows, strict=True))

    async def renew(self, wants: Sequence[Want]) -> None:
        """Gives a new epoch to each log that went back behind a place, unless another node has done so."""
        runs = [(self._names, fresh_word(), one.log, one.epoch, one.number, one.at_ms) for one in wants]
        if runs:
            await self._connection.run_many(_RENEW, runs)

    async def since(self, logs: Sequence[str], at_ms: int) -> dict[str, int]:
        """For each log the number before its first entry at or after a time."""
        numbers = await self._connection.run(_SINCE, self._names, at_ms, *logs)
        return dict(zip(logs, cast(list[int], numbers), strict=True))

    async def first_change(self, log: str, user: str, after: int) -> Change | None:
        """The first change of a person's switches in a log after a number."""
        blob = await self._connection.run(_CHANGE, self._names, log, user, after)
        return self.decoder.change(blob) if isinstance(blob, bytes) else None

    async def missed(self, after: Mapping[str, Mark], *, before_ms: int, away_ms: int, limit: int) -> Search:
        """Events of whose people somebody was away, as `Backplane.missed` has it."""
        readable = codec.READABLE
        more, looked_at, items = cast(
            tuple[int, list[tuple[bytes, int]], list[tuple[int, list[RedisReply], list[bytes]]]],
            await self._connection.run(
                _MISSED,
                self._names,
                PRESENCE_LEASE_MS,
                away_ms,
                before_ms,
                limit,
                _READ_BYTES,
                fresh_word(),
                readable[0],
                readable[-1],
                codec.pack([(log, mark.epoch, mark.number) for log, mark in after.items()]),
            ),
        )
        logs = tuple(after)
        missed = [
            Missed(_entry(logs[which - 1], item, self.decoder), tuple([user.decode() for user in users]))
            for which, item, users in items
        ]
        marks = {
            log: Mark(epoch.decode(), number) for log, (epoch, number) in zip(logs, looked_at, strict=True)
        }
        return Search(tuple(missed), marks, bool(more))


def _result(want: Want, row: list[RedisReply], decoder: codec.Decoder) -> ReadResult:
    epoch, *numbers, items = row
    number, first, base, trimmed_ms, at_ms, start, back = cast(list[int], numbers)
    head = Head(cast(bytes, epoch).decode(), number, first, base, trimmed_ms)
    rows = cast(list[list[RedisReply]], items)
    entries = tuple(_entry(want.log, item, decoder) for item in rows)
    if want.tail or start >= number:
        return ReadResult(want.log, head, at_ms, max(start, 0), bool(back), entries)
    # Guarantee 2: whatever is not there although the log should hold it (somebody deleted it) moves `start`,
    # and is told as a gap.
    if not entries:
        return ReadResult(want.log, replace(head, first=number + 1), at_ms, number, bool(back), ())
    if entries[-1].number - start != len(entries):
        last = entries[-1].number
        entries = tuple(e for i, e in enumerate(reversed(entries)) if e.number == last - i)[::-1]
        start = entries[0].number - 1
    return ReadResult(want.log, head, at_ms, start, bool(back), entries)


def _entry(log: str, item: list[RedisReply], decoder: codec.Decoder) -> Entry:
    name, fields = cast(tuple[bytes, list[bytes]], item)
    _, order, _, at_ms, _, blob, *_ = fields
    return Entry(log, int(name.partition(b"-")[0]), int(order), int(at_ms), decoder.entry(blob))


def _order(entry: Entry) -> int:
    return entry.order


class Growths:
    """What waits, and the task that sends it. `tasks` has to be set before the first."""

    def __init__(self, connection: RedisConnection, *, names: str, channel: Callable[[str], str]) -> None:
        self.tasks: asyncio.TaskGroup | None = None
        self._connection = connection
        self._names = names
        self._channel = channel
        self._waiting: list[_Waiting] = []
        self._sending: asyncio.Task[None] | None = None

    async def grow(self, growth: Growth) -> Grew:
        """One run of the script. Raises BackplaneUnavailable."""
        head = codec.pack(
            (
                growth.question,
                growth.attempt,
                growth.after,
                growth.seq,
                growth.whole,
                ANSWER_KEEP_MS,
                self._channel(growth.user),
                len(growth.parts),
            )
        )
        deltas = map(codec.encode_live, growth.publications)
        run: tuple[Argument, ...] = (
            self._names,
            head,
            growth.text.encode(),
            growth.status,
            *growth.parts,
            *deltas,
        )
        grown: asyncio.Future[Grew] = asyncio.get_running_loop().create_future()
        self._waiting.append((run, grown))
        if self._sending is None:
            assert self.tasks is not None
            # A task of its own: whoever asks may be cancelled, and others wait for the same reply.
            self._sending = self.tasks.create_task(self._send_all(), name="backplane growths")
        return await grown

    async def _send_all(self) -> None:
        try:
            while self._waiting:
                await self._send(self._next())
        finally:
            self._sending = None

    def _next(self) -> list[_Waiting]:
        count, size = 0, 0
        for run, _ in self._waiting[:_GROWN_TOGETHER]:
            size += sum(len(argument) for argument in run if isinstance(argument, bytes))
            if count and size > _GROWN_BYTES:
                break
            count += 1
        together, self._waiting = self._waiting[:count], self._waiting[count:]
        return together

    async def _send(self, together: list[_Waiting]) -> None:
        try:
            replies = await self._connection.run_many(_GROW, [run for run, _ in together])
        except BackplaneUnavailable as error:
            for _, grown in together:
                if not grown.done():
                    grown.set_exception(BackplaneUnavailable(str(error)))
            return
        except BaseException:
            for _, grown in together:
                grown.cancel()
            raise
        for (_, grown), reply in zip(together, replies, strict=True):
            # Whoever asked may have gone.
            if not grown.done():
                grown.set_result(Grew(cast(int, reply)))


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
