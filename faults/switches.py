"""Guarantee 3 as far as the times are known: what had to come, and what must not. Asked by the ledger."""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence

from faults.records import PARTITIONS, Account, Flip, Key, Receipt, Sent


class Times:
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


class Switches:
    """All switches with the times of their flips; where one was under way, either is right."""

    def __init__(self, flips: Mapping[tuple[str, str], Sequence[Flip]], accounts: Sequence[Account]) -> None:
        self._flips = flips
        self._published = Times(each for account in accounts for each in account.receipts) if flips else None

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
