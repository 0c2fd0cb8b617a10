"""Kicks: who was kicked and when, so that what was issued to them before opens nothing any more.

`Kicked` is what a node knows of it, asked for each token and each stream without waiting. `Kicks` is the
service that kicks: the table first, then all nodes by a notice of the backplane. Notices may get lost, so
each node also reads the newest rows every few seconds, and all of them before it takes streams. Deliberate: a
kick has the resolution of `iat`, which is a second. What was issued within it is refused: nobody can tell
whether that was before the kick. The kick of a person who was forgotten stays under a digest of the name.
"""

import asyncio
import logging
import random
import time
from collections.abc import Collection, Sequence
from hashlib import blake2b
from typing import NamedTuple, Protocol

from tortoise import fields
from tortoise.indexes import Index
from tortoise.models import Model

from pushsse.backplane import Backplane, NoticeTopic
from pushsse.database import Database, Statement
from pushsse.errors import BackplaneUnavailable, CloseReason, DatabaseUnavailable, PushsseError
from pushsse.event import is_user
from pushsse.retry import Backoff, Outage
from pushsse.stream.subscriber import Subscriber

# A person takes some 200 bytes.
MOST_KICKED = 100_000
# With the notice, and without it: what the caller is told.
SOON_S = 5
LATE_S = 60
LOOK_EVERY_S = 15.0
# Rows of other nodes, whose clocks differ, may come later than newer ones.
_OVERLAP_S = 300
_FORGET_EVERY = 200
# Rows that are read at once.
_PAGE = 500
# Digests that are made in one turn of the event loop, about a microsecond each.
_DIGESTS_A_TURN = 1000
logger = logging.getLogger(__name__)


class TooManyKicks(PushsseError):
    """As many people were kicked as a node remembers. Another key for the tokens ends all of them."""


def digest(user: str) -> str:
    """What stands for the name of a person who was forgotten; no name begins with a blank."""
    return " " + blake2b(user.encode(), digest_size=16).hexdigest()


class Kicked:
    """The people who were kicked, and the second of the newest kick of each (since 1970).

    `loaded`: it has every kick that there was when the node started. Until then nobody can be let in by it.
    """

    __slots__ = ("_at", "_has_digests", "loaded")

    def __init__(self) -> None:
        self.loaded = False
        self._at: dict[str, int] = {}
        self._has_digests = False

    @property
    def size(self) -> int:
        """How many people this node remembers."""
        return len(self._at)

    def refuses(self, user: str, issued_at: float | None) -> bool:
        """Whether what was issued to a person at a time (None: unknown) has been revoked by a kick."""
        at = self._at.get(user, -1)
        if self._has_digests:
            at = max(at, self._at.get(digest(user), -1))
        return at >= 0 and (issued_at is None or issued_at < at + 1)

    def learn(self, user: str, at: int) -> bool:
        """A person, or who has this digest, was kicked; False: this kick or a newer one was known."""
        if at <= self._at.get(user, -1):
            return False
        # To the end, so that the oldest are in front, save for those that were learned late.
        self._at.pop(user, None)
        self._at[user] = at
        self._has_digests = self._has_digests or user.startswith(" ")
        return True

    def forget(self, before: int) -> None:
        """Forgets kicks that are older than any token can be, some of the oldest in each call."""
        for _ in range(min(_PAGE, len(self._at))):
            oldest = next(iter(self._at))
            if self._at[oldest] >= before:
                return
            del self._at[oldest]


class Streams(Protocol):
    """The streams of this node; the hub has them."""

    def subscribers_of(self, user: str) -> Sequence[Subscriber]:
        """A person's open streams here."""
        ...

    def users(self) -> Sequence[str]:
        """Everybody who has a stream here."""
        ...


class KickReceipt(NamedTuple):
    """A kick: its second (since 1970), and whether the other nodes were told, or have to find its row."""

    at: int
    told: bool

    @property
    def within_s(self) -> int:
        """Within how many seconds all nodes know of it."""
        return SOON_S if self.told else LATE_S


class Kicks:
    """Kicks people, and acts on the kicks of all nodes."""

    def __init__(
        self,
        table: "KickTable",
        backplane: Backplane,
        *,
        kicked: Kicked,
        streams: Streams,
        keep_s: float,
    ) -> None:
        """`keep_s`: how long a token can live; older kicks concern nobody."""
        self._table = table
        self._backplane = backplane
        self._kicked = kicked
        self._streams = streams
        self._keep_s = int(keep_s)
        # All rows up to this second have been read.
        self._read_to: int | None = None
        backplane.hear_notices(NoticeTopic.KICK, self._hear)

    @property
    def remembered_s(self) -> float:
        """For how many seconds a kick is kept, at most: in the table, and in the memory of nodes."""
        forgetting_s = max(_FORGET_EVERY, MOST_KICKED / _PAGE) * LOOK_EVERY_S * 1.25
        return self._keep_s + _OVERLAP_S + forgetting_s

    async def kick(self, user: str) -> KickReceipt:
        """Ends a person's streams, and revokes what was issued to them so far.

        Raises DatabaseUnavailable: then nothing has happened; TooManyKicks.
        """
        if self._kicked.size >= MOST_KICKED:
            raise TooManyKicks(
                f"{MOST_KICKED} people were kicked within {self._keep_s} s: change the key of the tokens"
            )
        # The row first: a node that hears the notice, dies and starts again reads it.
        at = await self._table.add(user, int(time.time()))
        self._act(user, at)
        try:
            await self._backplane.notify(NoticeTopic.KICK, f"{at} {user}")
        except BackplaneUnavailable:
            # Other nodes find the row. Redis's connection has logged it.
            return KickReceipt(at, told=False)
        return KickReceipt(at, told=True)

    async def forget(self, user: str) -> dict[str, int]:
        """Keeps a person's kick under a digest of the name, for as long as a token can live.

        A node that missed the notice, or starts later, still finds it. Raises DatabaseUnavailable.
        """
        return {"kicks": await self._table.forget_person(user)}

    async def load(self) -> None:
        """Reads the kicks that this node may not know. Raises DatabaseUnavailable."""
        now = int(time.time())
        since = now - self._keep_s if self._read_to is None else self._read_to
        after = KickedRow("", since - _OVERLAP_S)
        while rows := await self._table.after(after, limit=_PAGE):
            digests = {row.user for row in rows if self._act(row.user, row.at) and row.user.startswith(" ")}
            if digests:
                await self._end_streams_of(digests)
            after = rows[-1]
        self._kicked.forget(now - self._keep_s - _OVERLAP_S)
        self._read_to = now
        self._kicked.loaded = True

    async def run(self) -> None:
        """Reads the newest kicks every few seconds, for ever."""
        outage = Outage("kicks can't be read", logger, Backoff(0.5, 5.0))
        number = random.randrange(_FORGET_EVERY)
        while True:
            try:
                await self.load()
                number += 1
                if number % _FORGET_EVERY == 0:
                    await self._table.forget(int(time.time()) - self._keep_s - _OVERLAP_S)
                outage.over()
            except DatabaseUnavailable as error:
                await asyncio.sleep(outage.failed(error))
                continue
            await asyncio.sleep(LOOK_EVERY_S * random.uniform(0.75, 1.25))

    def _hear(self, text: str) -> None:
        at, _, user = text.partition(" ")
        if at.isascii() and at.isdigit() and len(at) < 12 and is_user(user):
            self._act(user, int(at))

    def _act(self, user: str, at: int) -> bool:
        # First known, then ended: a stream that is opening is registered first and looks here then, so it
        # is found by one of the two (`Opener.begin`). Nothing is awaited in either.
        is_new = self._kicked.learn(user, at)
        self._end_streams(user)
        return is_new

    async def _end_streams_of(self, digests: Collection[str]) -> None:
        """Ends the streams of people who are known by digests alone."""
        for number, user in enumerate(self._streams.users(), 1):
            if digest(user) in digests:
                self._end_streams(user)
            if number % _DIGESTS_A_TURN == 0:
                await asyncio.sleep(0)

    def _end_streams(self, user: str) -> None:
        for subscriber in self._streams.subscribers_of(user):
            # Whoever has signed in again since isn't concerned, on a node that learns of the kick late.
            if self._kicked.refuses(user, subscriber.issued_at):
                subscriber.end(CloseReason.REVOKED)


_ADD = Statement("""
    INSERT INTO pushsse_kick ("user", kicked_at) VALUES ({value[1]}, {value[2]})
    ON CONFLICT ("user") DO UPDATE SET kicked_at =
        CASE WHEN excluded.kicked_at > pushsse_kick.kicked_at THEN excluded.kicked_at
             ELSE pushsse_kick.kicked_at END
    RETURNING kicked_at""")
_AFTER = Statement("""
    SELECT "user", kicked_at FROM pushsse_kick
     WHERE kicked_at > {value[1]} OR (kicked_at = {value[1]} AND "user" > {value[2]})
     ORDER BY kicked_at, "user" LIMIT {value[3]}""")
_FORGET = Statement("DELETE FROM pushsse_kick WHERE kicked_at < {value[1]}")
_HIDE = Statement("""
    INSERT INTO pushsse_kick ("user", kicked_at)
    SELECT {value[1]}, kicked_at FROM pushsse_kick WHERE "user" = {value[2]}
    ON CONFLICT ("user") DO UPDATE SET kicked_at = excluded.kicked_at""")
_FORGET_PERSON = Statement('DELETE FROM pushsse_kick WHERE "user" = {value[1]} RETURNING 1')


class KickRow(Model):
    """A person who was kicked, or the digest of one who was forgotten, and the second of the newest kick."""

    user = fields.CharField(max_length=128, primary_key=True)
    kicked_at = fields.BigIntField()

    class Meta:
        table = "pushsse_kick"
        indexes = (Index(fields=["kicked_at", "user"]),)


class KickedRow(NamedTuple):
    """A row of the table."""

    user: str
    at: int


class KickTable:
    """The kicks in the database. Everything raises DatabaseUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, user: str, at: int) -> int:
        """Adds a kick, and returns the second of the person's newest one, which may be another node's."""
        return (await self._database.rows(int, _ADD, user, at))[0]

    async def after(self, row: KickedRow, *, limit: int) -> list[KickedRow]:
        """The rows after one, by time and name."""
        return await self._database.rows(KickedRow, _AFTER, row.at, row.user, limit)

    async def forget(self, before: int) -> None:
        """Drops the kicks before a second."""
        await self._database.rows(str, _FORGET, before)

    async def forget_person(self, user: str) -> int:
        """Puts a digest in the place of a person's name; how many rows had that."""
        await self._database.rows(int, _HIDE, digest(user), user)
        return len(await self._database.rows(int, _FORGET_PERSON, user))
