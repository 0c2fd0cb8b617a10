"""The contract of a backplane: what carries publications from the node that dispatches to every node.

The dispatcher, preferences, questions and acks publish, the hub listens and reads, the intakes fence.
`memory` and `redis` implement it, and one test suite (tests/backplane/test_contract.py) runs over both. A log
is "all" (broadcasts) or "0" … "63" (shards); within an epoch its entries are numbered 1, 2, 3… without a
hole.
"""

import secrets
import string
import time
import zlib
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from enum import Enum
from hashlib import blake2b
from types import TracebackType
from typing import NamedTuple, Protocol, Self

from msgspec import Struct

from pushsse.backplane.answers import Grew, Growth, SoFar
from pushsse.errors import ClaimLost, NotOwner
from pushsse.event import Change, Publication
from pushsse.metrics import Metrics
from pushsse.position import Mark

BROADCAST = "all"
# How long a draft's name is remembered, and how many names at most: guarantee 1's bound.
REMEMBER_MS = 600_000
REMEMBER_MOST = 1_000_000
# Among a million names, the chance that two have the same digest is 1 in 10**17. publish.lua has it, too.
NAME_BYTES = 12
BROADCAST_SHARE = 16  # times as many bytes as a shard's log
# People that one call of `tell_presence` takes; how long what it tells holds, and is kept after that.
PRESENCE_AT_ONCE = 500
PRESENCE_LEASE_MS = 12_000
PRESENCE_KEEP_MS = 120_000
# How much of a log `Followed` brings along.
TAIL_ENTRIES = 1000
TAIL_BYTES = 1024 * 1024
# How long a ticket that nobody has opened is kept, and one that was opened after its end: until then a client
# is told what is wrong with it.
UNOPENED_MS = 60_000
ENDED_MS = 600_000
_WORD = string.ascii_lowercase + string.digits


def log_of(user: str, shards: int) -> str:
    """The name of the shard log that a user hashes to; the same on every node (CRC-32)."""
    return str(zlib.crc32(user.encode()) % shards)


def fresh_word() -> str:
    """A random word for the epoch of a log that begins, or begins again."""
    # One reading of the system's random numbers: each publish to Redis takes a word along.
    number, word = secrets.randbits(64), ""
    for _ in range(8):
        number, digit = divmod(number, len(_WORD))
        word += _WORD[digit]
    return word


def machine_ms() -> int:
    """This machine's clock, in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


class Source(Struct, frozen=True, gc=False):
    """The place that a draft comes from, by which the fence knows it.

    A record of Kafka, or a row of an outbox: table, bucket and position stand for topic, partition and
    offset. `owner` is the word by which its reader claimed the partition or the bucket.
    """

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    owner: str


class Draft(Struct, frozen=True, gc=False):
    """A publication on its way into the log.

    `once` is its name, "" for none. Each recipient gets a name once, and so does a broadcast as a whole: a
    draft whose name some of its recipients have had goes to the others.
    """

    publication: Publication
    source: Source | None = None
    once: str = ""

    def names(self, log: str) -> list[bytes]:
        """Digests of its name: NAME_BYTES for each recipient, in their order; one for a broadcast."""
        if not self.once:
            return []
        users = self.publication.users
        begin = f"{log}\0{self.once}\0"
        return [
            blake2b((begin + user).encode(), digest_size=NAME_BYTES).digest()
            for user in (users if users is not None else ("",))
        ]


class Append(Struct, frozen=True, gc=False):
    """Drafts for one log that are appended together, in order."""

    log: str
    drafts: tuple[Draft, ...]


class Receipt(Struct):
    """What became of the drafts of one publish, and the end of each log after it.

    `repeated` counts recipients who have had a draft's name before, and a repeated broadcast as one.
    """

    appended: int = 0
    fenced: int = 0
    repeated: int = 0
    expired: int = 0
    marks: dict[str, Mark] = {}

    def count(self, metrics: Metrics) -> None:
        """Adds it to the metrics; every backplane does so before it returns a receipt."""
        metrics.appended += self.appended
        if self.fenced or self.repeated or self.expired:
            metrics.fenced += self.fenced
            metrics.repeated += self.repeated
            metrics.expired += self.expired


class Entry(Struct, frozen=True, gc=False):
    """A publication in its log.

    `order` comes from one counter for all logs, so that a reader can merge them. `at_ms` is the log's clock.
    """

    log: str
    number: int
    order: int
    at_ms: int
    publication: Publication


# Takes the place of an entry that a list no longer holds, until its front is cut off.
NO_ENTRY = Entry("", 0, 0, 0, Publication("", b"", ()))


class Head(Struct, frozen=True, gc=False):
    """The state of a log: its last number, and the first that it still holds (`number + 1` if it is empty).

    `base` is the number before the first of this epoch. `trimmed_ms` is the time of the newest entry that was
    trimmed away, 0 if none was.
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
    """Entries of several logs at one moment, merged by `order`; `more` if the limit cut some off."""

    entries: tuple[Entry, ...]
    heads: Mapping[str, Head]
    more: bool


class Missed(NamedTuple):
    """An event, and those of its people who were away."""

    entry: Entry
    users: tuple[str, ...]


class Search(NamedTuple):
    """What `missed` has found, and up to where it has looked at each log; `more` if the limit ended it."""

    missed: tuple[Missed, ...]
    marks: Mapping[str, Mark]
    more: bool


class Heard(Struct, frozen=True, gc=False):
    """Entries, in order; within each log the numbers continue those heard before."""

    entries: tuple[Entry, ...]


class HeardLive(Struct, frozen=True, gc=False):
    """A publication that the log does not hold (a growing answer)."""

    log: str
    publication: Publication


class Followed(Struct, frozen=True, gc=False):
    """What comes after `head` is heard from now on; `tail` is the newest of what came before."""

    log: str
    head: Head
    tail: tuple[Entry, ...]


class Gap(Struct, frozen=True, gc=False):
    """What followed the last entry heard of a log is lost. What comes after `head.base` is heard next.

    The epoch is another one, or the same if the missing entries were trimmed away.
    """

    log: str
    head: Head


Hearing = Heard | HeardLive | Followed | Gap


def part_of(hearing: Hearing, wanted: Callable[[str], bool]) -> Hearing | None:
    """What a hearing says of the logs that are wanted; None if that is nothing."""
    if not isinstance(hearing, Heard):
        return hearing if wanted(hearing.log) else None
    entries = tuple(entry for entry in hearing.entries if wanted(entry.log))
    return Heard(entries) if entries else None


def raise_refused(*, foreign: int, unclaimed: int, of: int) -> None:
    """Raises NotOwner or ClaimLost where some of the appends were refused."""
    if foreign:
        raise NotOwner(f"{foreign} of {of} appends come from partitions with another owner")
    if unclaimed:
        raise ClaimLost(f"{unclaimed} of {of} appends come from partitions that nobody has claimed")


class NoticeTopic(Enum):
    """What nodes tell each other beside the logs."""

    KICK = "kick"
    TICKET = "ticket"
    # A question that has ended elsewhere than where it is answered: its id, and the number of the attempt.
    ENDED = "ended"
    # The catalogue of types was changed.
    CATALOGUE = "catalogue"


# Takes the text of a notice. It never waits and never raises.
NoticeListener = Callable[[str], None]


class Ticket(NamedTuple):
    """Whose streams a ticket opens, and when what it was made with was issued (seconds since 1970).

    `issued_at` is None where that isn't known.
    """

    user: str
    issued_at: int | None


class TicketLife(NamedTuple):
    """How long a ticket opens a stream by itself, and for a client with a position. Milliseconds from now."""

    fresh_ms: int
    lives_ms: int


class OpenedTicket(NamedTuple):
    """One opening of a ticket: its number, from 1 on, and how long the ticket goes on."""

    ticket: Ticket
    number: int
    left_ms: int


class TicketRefusal(Enum):
    """Why a ticket opens nothing."""

    UNKNOWN = "unknown"
    EXPIRED = "expired"
    USED = "used"


class Uses(NamedTuple):
    """How many uses a window of time has seen, and how much of it is left, in milliseconds."""

    seen: int
    left_ms: int


class Spent(NamedTuple):
    """Whether an allowance was taken from, and in how many milliseconds it is whole again."""

    taken: bool
    whole_ms: int


class Stay(NamedTuple):
    """A person's streams at one place. Times in milliseconds since 1970, by the log's clock.

    `since_ms`: when the first of them began, or had begun; `left_ms`: when the last ones had ended, 0 if that
    is long ago.
    """

    streams: int
    since_ms: int
    left_ms: int = 0

    def ended(self, at_ms: int) -> "Stay":
        """The same, as the last that is known of a place whose lease has ended."""
        return Stay(0, self.since_ms, at_ms) if self.streams else self

    def was_there(self, at_ms: int, away_ms: int) -> bool:
        """Whether there was a stream between a time and the end of the shortest absence from then on."""
        came_in_time = self.since_ms <= at_ms + away_ms
        return (self.streams > 0 and (came_in_time or self.left_ms >= at_ms)) or (
            came_in_time and self.left_ms >= at_ms
        )


class NowaitListener(Protocol):
    """A listener that `publish_nowait` calls with what it appends, beside what `listen` yields.

    `hub.delivery.Feed` implements it.
    """

    def hear(self, hearing: Heard) -> bool:
        """Takes a hearing; False if it must not now, since something that came earlier still waits."""
        ...


class Backplane(Protocol):
    """Carries publications to every node. Implementations inherit from it, and with it `publish_to`.

    Order: every listener hears entries in the order in which they were appended, over all logs that it
    follows (`Entry.order`). What one caller publishes, one await after the other, is appended in that order.

    Guarantee: when `publish` has returned, every draft is in its log, or was skipped for a reason that the
    receipt counts. When it has raised or was cancelled, any number of the appends may be in. It is then right
    to publish the same drafts again: a source at or below its log's fence is skipped, and so is every
    recipient who has had the draft's `once` within 10 minutes (among the newest 1,000,000 names). A draft
    with neither may be in twice.

    Errors: BackplaneUnavailable, where the backplane does not answer in time or refuses. It says so within a
    few seconds, never retries a write by itself, and the caller decides. The calls that raise nothing else
    are marked "Raises BackplaneUnavailable"; those that are not marked raise nothing.

    Cancellation: every call may be cancelled at any await, and leaves the backplane usable.
    """

    shards: int

    async def __aenter__(self) -> Self:
        """Opens it. Raises SettingsError if another process uses what only one may. Redis may be away."""
        ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes its connections, or its file. Whoever listens has to have ended."""
        ...

    async def publish(self, appends: Sequence[Append]) -> Receipt:
        """Appends one after the other; each is atomic. One record's drafts for a log belong in one of them.

        Skips drafts that have expired by the log's clock. Raises BackplaneUnavailable; NotOwner after the
        other appends are in, if a source's partition was claimed by another owner: that append changed
        nothing. ClaimLost where nobody has claimed it: the claim is lost, and its owner claims it again.
        """
        ...

    def publish_nowait(self, appends: Sequence[Append]) -> Receipt | None:
        """`publish` for a few drafts without sources, without an await.

        None if the backplane would have to wait: then nothing was appended, and `publish` is to be called.
        """
        return None

    async def publish_to(self, user: str, drafts: Iterable[Draft]) -> Mark:
        """Appends drafts to one person's log, in one append, and returns its end then. Raises as `publish`.

        This is how a service of ours sends an event to one person; it needs to know nothing of shards.
        """
        append = Append(log_of(user, self.shards), tuple(drafts))
        return (await self.publish((append,))).marks[append.log]

    async def grow(self, growth: Growth) -> Grew:
        """Lets an answer grow, and sends its deltas to those who follow its person's log now, in one step.

        The log never holds them, and they may get lost. They are heard in their order among what the same
        caller publishes, save among entries that a listener has missed and reads later.
        Of two attempts at one question only the later one grows from its first delta on. The same growth may
        come again, and should after an error, before any other of the answer: it grows once. Raises
        BackplaneUnavailable.
        """
        ...

    async def so_far(self, questions: Sequence[str]) -> Mapping[str, SoFar]:
        """The answers so far of those questions that have one. Raises BackplaneUnavailable.

        Each has all that its deltas said that were heard before this call. They are kept for 10 minutes from
        the last growth, and until `end_answers`.
        """
        ...

    async def end_answers(self, ended: Mapping[str, int]) -> None:
        """Drops answers so far, each up to this attempt. Raises BackplaneUnavailable.

        Nothing more grows in these attempts; a later one may have begun, and stays.
        """
        ...

    def listen(self) -> AsyncGenerator[Hearing, None]:
        """Yields what is appended to the followed logs, for ever: in order, without a hole, each once.

        An outage is not raised: once it is over, what was missed is heard, or `Gap` where that is lost. There
        is one listener at a time (RuntimeError). After it is closed or cancelled, another may begin, and
        hears `Followed` for every log anew.
        """
        ...

    def listen_nowait(self, listener: NowaitListener | None) -> None:
        """Calls this listener from within `publish_nowait`, unless something earlier still waits for it.

        What it does not take, `listen` yields. None ends that. A backplane without a `publish_nowait`
        of its own has nothing to do here.
        """
        return

    def follow(self, log: str) -> None:
        """Asks for a log. `listen` yields `Followed`, and from there on what is appended to it."""
        ...

    def unfollow(self, log: str) -> None:
        """Leaves a log: nothing of it is heard after this call, until it is followed again."""
        ...

    async def read(self, after: Mapping[str, int], *, limit: int) -> Page:
        """What the logs hold after these numbers, at most `limit` entries. Raises BackplaneUnavailable.

        Within each log there is no hole, save one before `Head.first`.
        """
        ...

    async def since(self, logs: Iterable[str], at_ms: int) -> Mapping[str, int]:
        """For each log the number before its first entry at or after a time. Raises BackplaneUnavailable."""
        ...

    async def first_change(self, log: str, user: str, after: int) -> Change | None:
        """The first change of a person's switches in a log after a number. Raises BackplaneUnavailable."""
        ...

    # Notices and tickets

    async def notify(self, topic: NoticeTopic, text: str) -> None:
        """Tells all nodes that listen now, this one included. Raises BackplaneUnavailable.

        It may get lost, and whoever relies on it looks elsewhere from time to time. `text` has one line.
        """
        ...

    def hear_notices(self, topic: NoticeTopic, listener: NoticeListener) -> None:
        """Has the notices of a topic told to this listener while somebody listens; there is one a topic."""
        ...

    async def keep_ticket(self, name: str, ticket: Ticket, life: TicketLife) -> None:
        """Keeps a ticket under a name of 64 hexadecimal digits. Raises BackplaneUnavailable."""
        ...

    async def open_ticket(self, name: str, *, resumes: bool) -> OpenedTicket | TicketRefusal:
        """Opens a ticket once more; in one step the opening gets its number, and all nodes are told.

        While it is fresh a ticket opens by itself, later, once it was opened, only where the client resumes.
        The notice of TICKET is the name, a space and the number. Raises BackplaneUnavailable.
        """
        ...

    async def ticket_openings(self, names: Sequence[str]) -> Mapping[str, int]:
        """How often each of these tickets was opened, without unknown ones. Raises BackplaneUnavailable."""
        ...

    # Presence

    async def tell_presence(
        self,
        place: str,
        stays: Mapping[str, Stay | None],
        *,
        anew: bool = False,
        lease_ms: int = PRESENCE_LEASE_MS,
    ) -> bool:
        """Says who is at a place, None for somebody to be forgotten, and renews the place's lease.

        A place is new with `anew`, and has one node. What was told of it is kept for PRESENCE_KEEP_MS after
        its lease. False where the lease had ended, or something told before is lost: then nothing was told,
        and the node has to go on at a new place. At most PRESENCE_AT_ONCE people. Raises
        BackplaneUnavailable.
        """
        ...

    async def end_presence(self, place: str) -> None:
        """Ends the lease of a place now. Raises BackplaneUnavailable."""
        ...

    async def presence(self, users: Sequence[str]) -> Mapping[str, Mapping[str, Stay]]:
        """Where people are, and were a moment ago: by person, of whom something was told, and place.

        Raises BackplaneUnavailable.
        """
        ...

    async def missed(self, after: Mapping[str, Mark], *, before_ms: int, away_ms: int, limit: int) -> Search:
        """The events up to a time of whose people somebody had no stream from then on for `away_ms`.

        It looks at what comes after these marks: where the log is in another epoch, after its base; an empty
        epoch is any. `limit` is for entries and people together, but each log comes nearer to its end.
        `before_ms` is longer ago than `away_ms` and PRESENCE_LEASE_MS: until then a node that has died may
        seem to live. Raises BackplaneUnavailable.
        """
        ...

    # Reports

    async def report(self, node: str, text: bytes, *, lease_ms: int) -> None:
        """Keeps what a node says about itself until its next report, or for a lease. Not empty.

        Raises BackplaneUnavailable.
        """
        ...

    async def end_report(self, node: str) -> None:
        """Forgets what a node has said about itself. Raises BackplaneUnavailable."""
        ...

    async def reports(self) -> Mapping[str, bytes]:
        """What the nodes say about themselves, by node. Raises BackplaneUnavailable."""
        ...

    # Duties

    async def duty(
        self, name: str, node: str, done: Mapping[str, Mark], *, lease_ms: int
    ) -> Mapping[str, Mark] | None:
        """Takes or keeps what one node does for all along the logs, and notes how far that has got.

        Returns that of all logs; None where another node has the duty: then nothing was noted. Raises
        BackplaneUnavailable.
        """
        ...

    # Kafka's partitions, and the buckets of outboxes

    async def identity(self, suggested: str) -> str:
        """The word by which this backplane is known. Raises BackplaneUnavailable.

        `suggested` becomes it where there is none; "" only asks, and returns "" then.
        """
        ...

    async def claim(self, topic: str, partition: int, owner: str) -> None:
        """Accepts a partition's sources from `owner` alone from now on. Raises BackplaneUnavailable."""
        ...

    async def claimed(self, topic: str, partition: int) -> bool:
        """Whether anybody has ever claimed a partition. Raises BackplaneUnavailable."""
        ...

    async def first_start(self, topic: str, offsets: Mapping[int, int]) -> Mapping[int, int]:
        """Where reading of a topic began, by partition. Raises BackplaneUnavailable.

        The first call for a topic stores its `offsets`; every later one, by any node, returns those.
        """
        ...

    async def fence(self, topic: str, partition: int) -> tuple[int, int] | None:
        """The highest offset of a partition in any log, and its record's timestamp in ms.

        None if no log has any. Raises BackplaneUnavailable.
        """
        ...

    async def reset_fence(self, topic: str, partition: int) -> None:
        """Forgets a partition's fence, because the topic was created anew. Raises BackplaneUnavailable."""
        ...

    # Uses and allowances

    async def use(self, name: str, *, window_ms: int) -> Uses:
        """Counts one use of `name`, in a window of time that begins with its first use.

        All nodes share the count. A node that the backplane doesn't answer counts by itself; nothing is
        raised.
        """
        ...

    async def spend(self, name: str, ms: int, *, most_ms: int | None) -> Spent:
        """Takes so many milliseconds of refilling from the allowance `name`; nothing if it needs `most_ms`.

        An allowance refills by itself, and is whole where nobody has taken from it. All nodes share it, as
        the counts of `use`; nothing is raised.
        """
        ...

    # Clock and state

    def now_ms(self) -> int:
        """The log's clock, in milliseconds since 1970."""
        ...

    @property
    def hears(self) -> bool:
        """Whether what is published reaches this node at present."""
        ...

    @property
    def available(self) -> bool:
        """Whether the backplane answered a moment ago: for metrics and /readyz's text, never a promise."""
        ...
