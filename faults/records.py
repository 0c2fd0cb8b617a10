"""What the ledgers are made of. Times are those of `time.monotonic` in the one process that has them all."""

from dataclasses import dataclass, field
from typing import NamedTuple

PARTITIONS = 4


class Key(NamedTuple):
    """An event's place in the ledger: its Kafka partition, and its number among what was sent there."""

    partition: int
    number: int


@dataclass(slots=True)
class Sent:
    """One event. `users` None is everybody; `acked` is when Kafka had it, None if it never said so."""

    key: Key
    type: str
    users: frozenset[str] | None
    at: float
    acked: float | None = None


class Receipt(NamedTuple):
    """One event as a client got it."""

    key: Key
    at: float
    connection: int
    position: bytes


class GapNotice(NamedTuple):
    """A `ready` with `gap`: which of the client's two logs it is about."""

    at: float
    broadcasts: bool
    personal: bool


@dataclass(slots=True)
class Flip:
    """A switch being set: asked for, and answered with a 2xx (None: not, so that either may hold)."""

    on: bool
    asked: float
    done: float | None = None


@dataclass(slots=True)
class Account:
    """One client's side. `since` is when its stream first began, `types` narrows it.

    `until` is when it left: what came too late for it isn't missed.
    """

    user: str
    types: frozenset[str] | None = None
    since: float | None = None
    until: float = float("inf")
    receipts: list[Receipt] = field(default_factory=list)
    gap_notices: list[GapNotice] = field(default_factory=list)
    foreign: int = 0
