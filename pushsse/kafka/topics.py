"""Which topics a consumer reads, where each of them begins, and where its dead letters go.

Made from the settings by the intake (`intake/sources.py`), and by the answerer over Kafka for one topic.
`consumer` subscribes to what is there of them, and `fences` asks where to start. A dead-letter topic is never
one of them, whatever a pattern says: its reader would write what it reads.
"""

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from pushsse.settings import DLQ_SUFFIX, is_topic_name


@dataclass(frozen=True, slots=True)
class TopicGroup:
    """Topics that are read alike, by name or by a pattern (a regular expression for the whole name).

    `start` is "earliest", "latest" or an age such as 10m: where reading begins without a committed offset.
    """

    wanted: Sequence[str]
    start: str
    names: frozenset[str] = field(init=False)
    patterns: tuple[re.Pattern[str], ...] = field(init=False)

    def __post_init__(self) -> None:
        names = frozenset(each for each in self.wanted if is_topic_name(each))
        object.__setattr__(self, "names", names)
        patterns = tuple(re.compile(each) for each in self.wanted if each not in names)
        object.__setattr__(self, "patterns", patterns)

    def matches(self, topic: str) -> bool:
        """Whether the topic is one of these."""
        return topic in self.names or any(pattern.fullmatch(topic) for pattern in self.patterns)


@dataclass(frozen=True, slots=True)
class Topics:
    """All topics of a consumer: a topic belongs to the first of the groups that matches it.

    `dlq_topic` takes all dead letters; "" is for one topic for each, TOPIC.dlq. `never` are topics that no
    pattern matches.
    """

    groups: Sequence[TopicGroup]
    dlq_topic: str = ""
    never: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """As logs name them."""
        return ", ".join(each for group in self.groups for each in group.wanted)

    def group_of(self, topic: str) -> int | None:
        """The place of a topic's group; None for a topic that isn't read."""
        for place, group in enumerate(self.groups):
            if topic in group.names:
                return place
        if topic.endswith(DLQ_SUFFIX) or topic == self.dlq_topic or topic in self.never:
            return None
        return next((place for place, group in enumerate(self.groups) if group.matches(topic)), None)

    def among(self, there: Iterable[str]) -> frozenset[str]:
        """Which of the topics that are there are read."""
        return frozenset(topic for topic in there if self.group_of(topic) is not None)

    def missing(self, there: Iterable[str]) -> list[str]:
        """The topics and patterns that stand for nothing of what is there."""
        found = self.among(there)
        return [
            each
            for group in self.groups
            for each in group.wanted
            if each not in found and not any(re.fullmatch(each, topic) for topic in found)
        ]

    def may_grow(self, there: Collection[str]) -> bool:
        """Whether there can be more topics to read than these."""
        return any(group.patterns or not group.names.issubset(there) for group in self.groups)

    def start_of(self, topic: str) -> str:
        """Where a topic that was never read begins."""
        place = self.group_of(topic)
        return self.groups[place].start if place is not None else "earliest"

    def dead_letters_of(self, topic: str) -> str:
        """The topic for those records of a topic that can't be used."""
        return self.dlq_topic or f"{topic}{DLQ_SUFFIX}"


def one_topic(topic: str, *, start: str, dlq_topic: str) -> Topics:
    """One topic alone."""
    return Topics((TopicGroup((topic,), start),), dlq_topic)
