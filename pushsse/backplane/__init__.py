"""The contract of a backplane, in words and types; redis and memory keep it, and one suite tests both.

The dispatcher, preferences and questions publish; the hub listens; resume reads. Logs are named "all"
(broadcasts) and "0" … "63" (shards); numbers run 1, 2, 3… without a hole within an epoch.
"""

import secrets
import string
import time
import zlib
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import NamedTuple, Protocol

from pushsse.event import Change, Publication
from pushsse.metrics import Metrics
from pushsse.position import Mark

BROADCAST = "all"
REMEMBER_MS = 600_000
REMEMBER_MOST = 1_000_000
# Among a million of them, two that happen to be alike are one case in 10**17.
NAME_BYTES = 12
BROADCAST_SHARE = 16  # times as many bytes as a shard's log
TAIL_ENTRIES = 1000
TAIL_BYTES = 1024 * 1024
_WORD = string.ascii_lowercase + string.digits


def log_of(user: str, shards: int) -> str:
    """The name of the shard log that a user hashes to; the same on every node (CRC-32)."""
    return str(zlib.crc32(user.encode()) % shards)


def fresh_word() -> str:
    """A random word that no log's epoch begins with yet."""
    return "".join(secrets.choice(_WORD) for _ in range(8))


def machine_ms() -> int:
    """This machine's clock, in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


class Source(NamedTuple):
    """Where in Kafka a publication comes from; `owner` is the word that its reader claimed it by."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    owner: str


class Draft(NamedTuple):
    """A publication on its way into the log. `once` is its name for the memory of repeats, "" for none.

    A name is remembered for each recipient by himself, and for a broadcast as one: a draft whose `once` is
    known for some of its recipients goes to the others.
    """

    publication: Publication
    source: Source | None = None
    once: str = ""

    def names(self, log: str) -> list[bytes]:
        """What is remembered of it in a log: NAME_BYTES for each recipient, in order; one for a broadcast."""
        if not self.once:
            return []
        users = self.publication.users
        begin = f"{log}\0{self.once}\0"
        return [
            blake2b((begin + user).encode(), digest_size=NAME_BYTES).digest()
            for user in (users if users is not None else ("",))
        ]


class Append(NamedTuple):
    """Drafts for one log that are appended together, in order."""

    log: str
    drafts: tuple[Draft, ...]


@dataclass(slots=True)
class Receipt:
    """What became of the drafts of one publish: how many of each, and where in its log each call ended.

    `repeated` counts recipients who had been sent a draft's name before, and a repeated broadcast as one.
    """

    appended: int = 0
    fenced: int = 0
    repeated: int = 0
    expired: int = 0
    marks: dict[str, Mark] = field(default_factory=dict)

    def count(self, metrics: Metrics) -> None:
        """Adds it to the process's counts; every backplane does so with what it returns."""
        metrics.appended += self.appended
        metrics.fenced += self.fenced
        metrics.repeated += self.repeated
        metrics.expired += self.expired


class Entry(NamedTuple):
    """A publication in its log. `order` grows over all logs; `at_ms` is the log's own clock."""

    log: str
    number: int
    order: int
    at_ms: int
    publication: Publication


class Head(NamedTuple):
    """A log as it stands: the last number, the oldest still held (`number + 1` for none), where it began.

    `trimmed_ms` is the time of the newest entry that was trimmed away, 0 if none was.
    """

    epoch: str
    number: int
    first: int
    base: int
    trimmed_ms: int = 0

    @property
    def mark(self) -> Mark:
        """The end of the log."""
        return Mark(self.epoch, self.number)


class Page(NamedTuple):
    """Entries of several logs, merged by order, as they stood at one moment; `more` if there is more."""

    entries: tuple[Entry, ...]
    heads: Mapping[str, Head]
    more: bool


class Heard(NamedTuple):
    """Entries, in order; in each log the next number after the one before."""

    entries: tuple[Entry, ...]


class HeardLive(NamedTuple):
    """A publication that isn't in the log (a growing answer)."""

    log: str
    publication: Publication


class Followed(NamedTuple):
    """A log is followed from `head` on; `tail` is what it held just before, oldest first."""

    log: str
    head: Head
    tail: tuple[Entry, ...]


class Gap(NamedTuple):
    """What a log had after the last entry heard is lost; it goes on from `head.base`, and that is heard.

    It goes on in another epoch, or in the same one where what was missed had been trimmed away.
    """

    log: str
    head: Head


Hearing = Heard | HeardLive | Followed | Gap


class Backplane(Protocol):
    """Carries publications to every node.

    Order: what one `publish` appends is heard in that order by every listener that follows the logs.
    Guarantee: a draft is in its log once `publish` has returned. It may be there too when `publish` raised;
    publishing the same drafts again is then right and appends what is missing, and only that: a source at or
    below its log's fence is skipped, and so is each recipient for whom a `once` is known from the last 10
    minutes (or among the newest 1,000,000; for a broadcast it counts as one).
    """

    shards: int

    async def publish(self, calls: Sequence[Append]) -> Receipt:
        """Appends, call by call; a call is atomic. One record's drafts for a log belong in one call.

        Skips what is expired by the log's clock. Raises BackplaneUnavailable, NotOwner (a source's partition
        was claimed by another owner; nothing of that call was appended).
        """
        ...

    def publish_at_once(self, calls: Sequence[Append]) -> Receipt | None:
        """`publish` for a few drafts without sources, without waiting.

        None where that can't be, which may be always; then nothing was appended.
        """
        return None

    async def publish_to(self, user: str, drafts: Iterable[Draft]) -> Mark:
        """Appends drafts to one person's log, in one call, and returns its end then. Raises as `publish`.

        This is how a service of ours sends an event to one person; it needs to know nothing of shards.
        """
        call = Append(log_of(user, self.shards), tuple(drafts))
        return (await self.publish((call,))).marks[call.log]

    async def publish_live(self, user: str, publication: Publication) -> None:
        """Sends one person's followers what the log never holds. Raises BackplaneUnavailable."""
        ...

    def listen(self) -> AsyncGenerator[Hearing, None]:
        """What is published to the followed logs, for ever: in order, without a gap, each once.

        One listener at a time. An outage of the backplane isn't raised: it goes on when that is back,
        with what was missed, or with Gap where that can't be had any more.
        """
        ...

    def follow(self, log: str) -> None:
        """Asks for a log to be followed; `listen` yields Followed at the place from which it is."""
        ...

    def unfollow(self, log: str) -> None:
        """Ends following a log; nothing of it is heard after that until it is followed anew."""
        ...

    async def read(self, after: Mapping[str, int], *, limit: int) -> Page:
        """What the logs hold after these numbers, at most `limit` entries. Raises BackplaneUnavailable."""
        ...

    async def since(self, logs: Iterable[str], at_ms: int) -> Mapping[str, int]:
        """For each log the number before its first entry at or after a time. Raises BackplaneUnavailable."""
        ...

    async def first_change(self, log: str, user: str, after: int) -> Change | None:
        """The first change of a person's switches in a log after a number. Raises BackplaneUnavailable."""
        ...

    async def claim(self, topic: str, partition: int, owner: str) -> None:
        """Makes `owner` the only one whose sources of a partition are taken. Raises BackplaneUnavailable."""
        ...

    async def identity(self, suggested: str) -> str:
        """The word by which this backplane is known. Raises BackplaneUnavailable.

        `suggested` becomes it where it has none; "" only asks, and returns "" then.
        """
        ...

    async def claimed(self, topic: str, partition: int) -> bool:
        """Whether anybody has ever claimed a partition. Raises BackplaneUnavailable."""
        ...

    async def first_start(self, topic: str, offsets: Mapping[int, int]) -> Mapping[int, int]:
        """Where reading began when a topic was first started, by partition. Raises BackplaneUnavailable.

        The first call for a topic keeps its `offsets`; every later one, by any node, returns what was kept.
        """
        ...

    async def fence(self, topic: str, partition: int) -> tuple[int, int] | None:
        """The highest offset that any log has of this partition, with its record's timestamp in ms."""
        ...

    async def reset_fence(self, topic: str, partition: int) -> None:
        """Forgets the fence of a partition, because the topic was made anew."""
        ...

    def now_ms(self) -> int:
        """The log's clock, in milliseconds since 1970."""
        ...

    @property
    def hears(self) -> bool:
        """Whether what is published reaches this node just now."""
        ...

    @property
    def available(self) -> bool:
        """Whether the backplane answered a moment ago; for /readyz's word and metrics, never a promise."""
        ...
