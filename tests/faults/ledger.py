"""What was produced, what every client got, and the comparison of the two.

The producer writes `Sent`, clients write `Receipt` and `Told`, whoever flips a switch writes `Flip`. Times
are those of `time.monotonic` in the one process that produces and receives.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
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


class Told(NamedTuple):
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
    told: list[Told] = field(default_factory=list)
    foreign: int = 0


@dataclass(slots=True)
class Verdict:
    """What a comparison found. `examples` says of the first few what is wrong with them."""

    expected: int = 0
    received: int = 0
    lost: int = 0
    reordered: int = 0
    repeated: int = 0
    wrong: int = 0
    against: int = 0
    excused: int = 0
    gaps: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether every guarantee held."""
        return not (self.lost or self.reordered or self.repeated or self.wrong or self.against)

    def note(self, what: str) -> None:
        """Keeps one of the first examples."""
        if len(self.examples) < 12:
            self.examples.append(what)


class Ledger:
    """What was produced in one round; `tag` begins the ids of its events."""

    def __init__(self, tag: str) -> None:
        self.tag = tag
        self.sent: dict[Key, Sent] = {}
        self.broadcasts: list[Sent] = []
        self.personal: dict[str, list[Sent]] = defaultdict(list)
        self.numbers = [0] * PARTITIONS

    def enter(self, partition: int, type_: str, users: Iterable[str] | None, at: float) -> Sent:
        """Enters what is about to be produced."""
        key = Key(partition, self.numbers[partition])
        self.numbers[partition] += 1
        sent = Sent(key, type_, None if users is None else frozenset(users), at)
        self.sent[key] = sent
        if sent.users is None:
            self.broadcasts.append(sent)
        else:
            for user in sent.users:
                self.personal[user].append(sent)
        return sent

    def compare(
        self, accounts: Sequence[Account], flips: Mapping[tuple[str, str], Sequence[Flip]] | None = None
    ) -> Verdict:
        """Holds every client's receipts against what it was to get."""
        verdict = Verdict()
        switches = _Switches(flips or {}, accounts)
        for account in accounts:
            self._judge(account, switches, verdict)
        return verdict

    def _judge(self, account: Account, switches: "_Switches", verdict: Verdict) -> None:
        got: dict[Key, Receipt] = {}
        last = [-1] * PARTITIONS
        for receipt in account.receipts:
            sent = self.sent.get(receipt.key)
            if receipt.key in got:
                verdict.repeated += 1
                verdict.note(f"{account.user} got {receipt.key} again: {got[receipt.key]}, {receipt}")
                continue
            got[receipt.key] = receipt
            if sent is None or (sent.users is not None and account.user not in sent.users):
                verdict.wrong += 1
                verdict.note(f"{account.user} got {sent or receipt}")
                continue
            if receipt.key.number < last[receipt.key.partition]:
                verdict.reordered += 1
                verdict.note(f"{account.user} got {receipt} after {last[receipt.key.partition]}")
            last[receipt.key.partition] = max(last[receipt.key.partition], receipt.key.number)
            if switches.forbid(account.user, sent):
                verdict.against += 1
                verdict.note(f"{account.user} got {receipt}, switched off: {sent}")
        verdict.received += len(got)
        verdict.repeated += account.foreign
        verdict.gaps += len(account.told)
        self._look_for_missing(account, got, switches, verdict)

    def _look_for_missing(
        self, account: Account, got: Mapping[Key, Receipt], switches: "_Switches", verdict: Verdict
    ) -> None:
        times = _Times(account.receipts)
        for wanted in (self.broadcasts, self.personal.get(account.user, [])):
            for sent in wanted:
                if not _is_due(account, sent):
                    continue
                if sent.key in got:
                    verdict.expected += 1
                elif switches.demand(account.user, sent, times.after(sent.key)):
                    verdict.expected += 1
                    if self._is_excused(account, sent):
                        verdict.excused += 1
                    else:
                        verdict.lost += 1
                        verdict.note(f"{account.user} (stream since {account.since}) never got {sent}")

    def _is_excused(self, account: Account, missing: Sent) -> bool:
        """Whether a gap was told that has the event in it: after the last receipt of that log before it."""
        for told in account.told:
            if missing.at > told.at or not (told.broadcasts if missing.users is None else told.personal):
                continue
            before = [
                receipt.key.number
                for receipt in account.receipts
                if receipt.at <= told.at
                and receipt.key.partition == missing.key.partition
                and (self.sent[receipt.key].users is None) == (missing.users is None)
            ]
            if missing.key.number > max(before, default=-1):
                return True
        return False


def _is_due(account: Account, sent: Sent) -> bool:
    return (
        sent.acked is not None
        and account.since is not None
        and account.since <= sent.at < account.until
        and (account.types is None or sent.type in account.types)
    )


class _Times:
    """When something later than an event was there: by then the event itself had been, or would never be."""

    def __init__(self, receipts: Iterable[Receipt]) -> None:
        first: list[dict[int, float]] = [{} for _ in range(PARTITIONS)]
        for receipt in receipts:
            seen = first[receipt.key.partition]
            seen[receipt.key.number] = min(receipt.at, seen.get(receipt.key.number, receipt.at))
        self._numbers: list[list[int]] = []
        self._times: list[list[float]] = []
        for seen in first:
            numbers = sorted(seen)
            times = [seen[number] for number in numbers]
            for index in range(len(times) - 2, -1, -1):
                times[index] = min(times[index], times[index + 1])
            self._numbers.append(numbers)
            self._times.append(times)

    def after(self, key: Key) -> float:
        """The first receipt of it or of anything later in its partition; infinite if there is none."""
        index = bisect_left(self._numbers[key.partition], key.number)
        times = self._times[key.partition]
        return times[index] if index < len(times) else float("inf")


class _Switches:
    """Guarantee 3 with the times that are known: where a flip was under way, either is right."""

    def __init__(self, flips: Mapping[tuple[str, str], Sequence[Flip]], accounts: Sequence[Account]) -> None:
        self._flips = flips
        self._published = _Times(each for account in accounts for each in account.receipts) if flips else None

    def demand(self, user: str, sent: Sent, written: float) -> bool:
        """Whether the event had to come: on since before it was sent, until something later was written."""
        flips = self._flips.get((user, sent.type))
        return flips is None or _certain(flips, sent.at, written) is True

    def forbid(self, user: str, sent: Sent) -> bool:
        """Whether the event must not come: off since before it was sent, until it was published."""
        flips = self._flips.get((user, sent.type))
        if flips is None or self._published is None:
            return False
        return _certain(flips, sent.at, self._published.after(sent.key)) is False


def _certain(flips: Sequence[Flip], begin: float, end: float) -> bool | None:
    """How a switch stood all the time from `begin` to `end`; None where it isn't known or changed."""
    state: bool | None = True
    for flip in flips:
        if flip.asked > end:
            break
        if flip.done is not None and flip.done < begin:
            state = flip.on
        elif state is not flip.on:
            # Under way, never answered, or within the time: nobody can say.
            state = None
    return state
