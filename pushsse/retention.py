"""What leaves the database: questions after their time, and everything of a person who is to be forgotten.

`Retention` is a service; `Forgetting` is called by `DELETE /v1/users/USER`. The stores delete their own rows,
in portions, so that nothing else waits for long. Deliberate: nodes don't agree on who deletes. Each looks
about once an hour; of two that look together, the second finds nothing left.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

from msgspec import Struct

from pushsse.errors import BackplaneUnavailable
from pushsse.kicks import Kicks
from pushsse.metrics import Metrics
from pushsse.retry import hourly
from pushsse.settings import Settings, is_topic_name

# Longer than a body may be on its way without being looked at once more (`read_body`), and than the notice of
# a kick takes to other nodes.
SETTLE_S = 1.5
# Between two portions, others write.
_PAUSE_S = 0.1
_IN_OUTBOX = "rows that wait, are dead or are kept: delete those that name the person"
_IN_LOG = (
    "events, acks, changes of switches, questions, answers; ids of conversations and questions told to staff;"
    " the name under answers that were given as staff"
)
_SAID = "what was said to others as staff, without the name; a name that was chosen for it with `name` stays"
_MOST_MS = 1000 * 366 * 86_400_000
logger = logging.getLogger(__name__)


class OldQuestions(Protocol):
    """The questions of all people."""

    async def delete_old(self, before: datetime) -> int:
        """Deletes some that were asked before a time and have ended; how many, 0 when none is left.

        Raises DatabaseUnavailable.
        """
        ...


class Retention:
    """Deletes old questions, with their answers."""

    def __init__(self, questions: OldQuestions, *, keep_days: int, metrics: Metrics) -> None:
        """`keep_days` 0: nothing is deleted."""
        self._questions = questions
        self._keep = timedelta(days=keep_days)
        self._metrics = metrics

    async def run(self) -> None:
        """Deletes for ever, some minutes after the start and then each hour."""
        if not self._keep:
            await asyncio.Event().wait()
        await hourly(self.sweep, "old questions can't be deleted", logger)

    async def sweep(self) -> int:
        """Deletes all questions that are too old; how many. Raises DatabaseUnavailable."""
        before = datetime.now(UTC) - self._keep
        deleted = 0
        while found := await self._questions.delete_old(before):
            deleted += found
            self._metrics.questions_deleted += found
            await asyncio.sleep(_PAUSE_S)
        if deleted:
            logger.info("deleted %d questions older than %d days", deleted, self._keep.days)
        return deleted


class Keeper(Protocol):
    """A store that keeps something of people."""

    async def forget(self, user: str) -> Mapping[str, int]:
        """Deletes everything of a person: how many rows of each kind. Raises DatabaseUnavailable."""
        ...


class Remainder(Struct, frozen=True, omit_defaults=True):
    """What there still is of a person outside the database; `until` is null where nobody here can know."""

    where: str
    detail: str
    until: str | None
    topic: str = ""


class Forgotten(Struct, frozen=True):
    """What was deleted of a person, by kind, and what runs out by itself elsewhere."""

    user: str
    deleted: dict[str, int]
    remaining: tuple[Remainder, ...]


# What topics are set to, by Kafka's names; of some it may not be known. Raises OSError.
AskTopics = Callable[[Collection[str]], Awaitable[Mapping[str, Mapping[str, str]]]]
# The topics of events that are there, those that a pattern stands for, too. Raises OSError.
FindTopics = Callable[[], Awaitable[Collection[str]]]


@dataclass(frozen=True, slots=True)
class Forgetting:
    """Deletes a person. A kick ends the streams, and no earlier token can write.

    The kick's row goes last, and a digest of the name takes its place. `backplane_s`: how long the backplane
    keeps anything of a person beside the log. `settle_s`: for how long calls that were let in before the kick
    may go on to write.
    """

    kicks: Kicks
    keepers: Sequence[Keeper]
    settings: Settings
    ask_topics: AskTopics
    find_topics: FindTopics
    backplane_s: float
    settle_s: float = SETTLE_S

    async def forget(self, user: str) -> Forgotten:
        """Ends a person's streams on all nodes and deletes everything of theirs; may be repeated.

        Raises DatabaseUnavailable, BackplaneUnavailable, TooManyKicks: then something may be left.
        """
        receipt = await self.kicks.kick(user)
        if not receipt.told:
            # Until they found the row, what an earlier token writes there would stay.
            raise BackplaneUnavailable("the other nodes can't be told")
        # Before anything is deleted: what is written after that stays.
        await asyncio.sleep(self.settle_s)
        deleted: dict[str, int] = {}
        for keeper in (*self.keepers, self.kicks):
            deleted |= await keeper.forget(user)
        return Forgotten(user, deleted, await self._remaining())

    async def _remaining(self) -> tuple[Remainder, ...]:
        now, settings = datetime.now(UTC), self.settings

        def after(seconds: float) -> str:
            return (now + timedelta(seconds=seconds)).isoformat(timespec="seconds")

        kick = after(self.kicks.remembered_s)
        matched, unknown = await self._matched()
        wanted = (*_topics(settings), *matched)
        set_to = await self._set_to([topic for topic, _ in wanted])
        topics = (*(_in_topic(*each, set_to.get(each[0], {}), now) for each in wanted), *unknown)
        return (
            Remainder("log", _IN_LOG, after(settings.log_keep_s)),
            Remainder("backplane", "tickets, counts of calls, ids of events", after(self.backplane_s)),
            Remainder("nodes", "the name and the time of the kick, in memory", kick),
            Remainder("database", "the time of the kick, under a digest of the name", kick),
            Remainder("database", _SAID, None),
            *topics,
            *(Remainder("outbox", f"{each.table}: {_IN_OUTBOX}", None) for each in settings.outbox),
            Remainder("database", "deleted rows in its files, until they are written over", None),
            Remainder("backups", "of the database and the backplane, as long as you keep them", None),
            Remainder("logs", "names and ids in this service's lines, as long as you keep them", None),
        )

    async def _matched(self) -> tuple[Sequence[tuple[str, str]], Sequence[Remainder]]:
        """The topics that patterns stand for, and the patterns of which that can't be known."""
        settings = self.settings
        patterns = [each for source in settings.kafka for each in source.topics if not is_topic_name(each)]
        if not settings.kafka_bootstrap or not patterns:
            return (), ()
        try:
            there = await self.find_topics()
        except OSError:
            detail = "events and dead letters, in each topic that this pattern stands for"
            return (), [Remainder("kafka", detail, None, each) for each in patterns]
        named = {topic for topic, _ in _topics(settings)}
        return [each for topic in sorted(set(there) - named) for each in _of_events(settings, topic)], ()

    async def _set_to(self, topics: Collection[str]) -> Mapping[str, Mapping[str, str]]:
        try:
            return await self.ask_topics(topics) if topics else {}
        except OSError:
            return {}


def _in_topic(topic: str, detail: str, set_to: Mapping[str, str], now: datetime) -> Remainder:
    if "compact" in set_to.get("cleanup.policy", ""):
        return Remainder("kafka", f"{detail}; compacted: the newest record of a key stays", None, topic)
    kept = set_to.get("retention.ms", "")
    # -1 is for ever. A time that no date can have is, too.
    kept_ms = int(kept) if kept.isdecimal() else _MOST_MS
    known = kept_ms < _MOST_MS
    until = (now + timedelta(milliseconds=kept_ms)).isoformat(timespec="seconds") if known else None
    return Remainder("kafka", detail, until, topic)


def _topics(settings: Settings) -> Iterator[tuple[str, str]]:
    """The topics that this service reads or writes, and what they have of a person."""
    if settings.kafka_bootstrap:
        yield settings.kafka_topic, "events"
        yield settings.dlq_topic, "dead letters: events that can't be used"
        for topic in (each for source in settings.kafka for each in source.topics if is_topic_name(each)):
            yield from _of_events(settings, topic)
        if settings.outcomes != "off":
            yield settings.outcomes_topic, "what became of events"
        if settings.asks_kafka:
            yield settings.questions_topic, "questions"
            yield settings.answers_topic, "answers"
            yield settings.answers_dlq_topic, "dead letters: answers that can't be used"


def _of_events(settings: Settings, topic: str) -> Iterator[tuple[str, str]]:
    yield topic, "events"
    if not settings.kafka_dlq_topic:
        yield settings.dlq_topic_of(topic), "dead letters: events that can't be used"
