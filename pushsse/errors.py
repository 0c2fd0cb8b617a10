"""The exception tree, and the named reasons for which a stream ends.

Everything that pushsse raises on purpose derives from PushsseError, so that a caller can tell
a refused input (InvalidInput), a dependency that is away (Unavailable) and a bug apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum


class PushsseError(Exception):
    """Base of everything that pushsse raises on purpose."""


class SettingsError(PushsseError):
    """A setting can't be used; the text names the variable and the value."""


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing that is wrong with an input: where (JSONPath), and what, with the bad value."""

    at: str
    detail: str


# Of an import's page, which has 500 rows, each is listed.
MOST_VIOLATIONS = 500
# As many are in the text.
_NAMED = 20


class InvalidInput(PushsseError):
    """An input was understood as JSON and breaks a rule; HTTP 422, or the dead-letter topic.

    Of many violations the first MOST_VIOLATIONS are kept: an answer isn't much larger than what it is about.
    """

    def __init__(self, *violations: Violation) -> None:
        if (left_out := len(violations) - MOST_VIOLATIONS) > 0:
            more = Violation("$", f"{left_out} more errors aren't listed")
            violations = (*violations[:MOST_VIOLATIONS], more)
        named = [f"{each.at}: {each.detail}" for each in violations]
        if len(named) > _NAMED:
            named = [*named[:_NAMED], f"and {len(named) - _NAMED} more"]
        super().__init__("; ".join(named))
        self.violations = violations


class NotJson(InvalidInput):
    """An input isn't JSON at all (RFC 8259): HTTP 400, or the dead-letter topic."""


class Unavailable(PushsseError):
    """A dependency can't be reached just now; worth trying again. HTTP 503."""


class BackplaneUnavailable(Unavailable):
    """Redis didn't take, or didn't answer, in time."""


class DatabaseUnavailable(Unavailable):
    """The database didn't answer in time."""


class DatabaseConflict(DatabaseUnavailable):
    """Two transactions were in each other's way; the same again will do."""


class StatementFailed(DatabaseUnavailable):
    """A statement is wrong, which is a bug; it is logged. A service goes on without it. HTTP 500."""


class KafkaUnavailable(Unavailable):
    """Kafka didn't take a record in time."""


class EventTooLarge(PushsseError):
    """Kafka's topic takes no record of an event's size, now or later. HTTP 413."""

    def __init__(self, ids: Sequence[str]) -> None:
        super().__init__(f"the events' topic takes no record of this size: event {', '.join(ids)[:200]}")
        self.ids = tuple(ids)


class Overloaded(Unavailable):
    """This node has more to do than it can just now."""


class AllowanceSpent(PushsseError):
    """A person has put into the logs what they take from one person for now. HTTP 429.

    `quota` bytes in `window_s`; room comes `after_s`, and all of it is there again in `whole_s`.
    """

    def __init__(self, quota: int, window_s: int, *, after_s: int, whole_s: int) -> None:
        super().__init__(
            f"you may add {quota} bytes a minute to the log, with questions and their answers, acks and"
            f" switches; try again in {after_s} s"
        )
        self.quota = quota
        self.window_s = window_s
        self.after_s = after_s
        self.whole_s = whole_s


class NotOwner(PushsseError):
    """The partition has a newer owner: what was read under the old assignment must not be published."""


class ClaimLost(NotOwner):
    """The backplane knows of no owner of the partition. Whoever the group counts in may claim it again."""


class CloseReason(Enum):
    """Why a stream ended. `retry` says whether the client should come back by itself."""

    SHUTDOWN = ("shutdown", "this node is stopping, come back to another", True)
    SLOW = ("slow", "events came faster than they were read, come back with the last id", True)
    LIFETIME = ("lifetime", "this stream has reached its age, come back with the last id", True)
    TOKEN_EXPIRED = ("token_expired", "the token has expired, come back with a new one", False)
    TOO_MANY_STREAMS = ("too_many_streams", "newer streams of this person took this one's place", False)
    REVOKED = ("revoked", "this person's access was revoked, sign in again", False)
    REPLACED = ("replaced", "the ticket of this stream was opened once more", False)
    OVERLOADED = ("overloaded", "this node can't serve the stream just now, come back later", True)
    # Of a poll that waited: it ends with JSON, and these are only counted.
    ANSWERED = ("answered", "the poll that waited has its first events", True)
    WAITED = ("waited", "the poll has waited for as long as it asked for", True)
    # The client went away by itself: nothing is said in band, it is only counted.
    DISCONNECTED = ("disconnected", "the client closed the connection", True)

    def __init__(self, code: str, detail: str, retry: bool) -> None:
        self.code = code
        self.detail = detail
        self.retry = retry
