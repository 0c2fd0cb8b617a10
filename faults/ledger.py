"""The comparison of what was produced with what every client got.

The producer enters `Sent`, clients write `Receipt` and `GapNotice`, whoever flips a switch writes `Flip`.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from faults.records import PARTITIONS, Account, Flip, Key, Receipt, Sent
from faults.switches import Switches, Times


@dataclass(slots=True)
class Verdict:
    """What a comparison found. `examples` says of the first few what is wrong with them.

    `excused` is what a gap was told for, `withheld` what rightly didn't come because it was switched off.
    """

    expected: int = 0
    received: int = 0
    lost: int = 0
    reordered: int = 0
    repeated: int = 0
    wrong: int = 0
    against: int = 0
    excused: int = 0
    withheld: int = 0
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
        switches = Switches(flips or {}, accounts)
        for account in accounts:
            self._judge(account, switches, verdict)
        return verdict

    def _judge(self, account: Account, switches: Switches, verdict: Verdict) -> None:
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
        verdict.gaps += len(account.gap_notices)
        self._look_for_missing(account, got, switches, verdict)

    def _look_for_missing(
        self, account: Account, got: Mapping[Key, Receipt], switches: Switches, verdict: Verdict
    ) -> None:
        times = Times(account.receipts)
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
                elif switches.forbid(account.user, sent):
                    verdict.withheld += 1

    def _is_excused(self, account: Account, missing: Sent) -> bool:
        """Whether a gap was told that has the event in it: after the last receipt of that log before it."""
        for notice in account.gap_notices:
            if missing.at > notice.at or not (
                notice.broadcasts if missing.users is None else notice.personal
            ):
                continue
            before = [
                receipt.key.number
                for receipt in account.receipts
                if receipt.at <= notice.at
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
