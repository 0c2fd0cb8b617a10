"""The comparison finds what is wrong, and only that."""

from collections.abc import Sequence

from faults.ledger import Ledger, Verdict
from faults.records import Account, Flip, GapNotice, Receipt, Sent


def produced(ledger: Ledger, *audiences: str) -> list[Sent]:
    """Events of one partition, a second apart, from second 10 on; "" is everybody."""
    found = []
    for number, user in enumerate(audiences):
        sent = ledger.enter(0, "news", [user] if user else None, 10.0 + number)
        sent.acked = sent.at
        found.append(sent)
    return found


def ann(*got: Sent, notices: Sequence[GapNotice] = (), late_s: float = 0.1) -> Account:
    """A client that got these, in this order."""
    receipts = [Receipt(sent.key, sent.at + late_s, 1, b"") for sent in got]
    return Account("ann", since=0.0, receipts=receipts, gap_notices=list(notices))


def judged(ledger: Ledger, account: Account, *flips: Flip) -> Verdict:
    """The verdict on one client."""
    return ledger.compare([account], {("ann", "news"): flips} if flips else None)


def test_who_got_everything_once_and_in_order_is_clean() -> None:
    ledger = Ledger("r")
    first, _, third = produced(ledger, "ann", "bo", "")
    verdict = judged(ledger, ann(first, third))
    assert verdict.clean
    assert (verdict.expected, verdict.received) == (2, 2)


def test_what_never_came_is_lost_unless_kafka_never_had_it() -> None:
    ledger = Ledger("r")
    first, second = produced(ledger, "ann", "")
    assert judged(ledger, ann(first)).lost == 1
    second.acked = None
    assert judged(ledger, ann(first)).lost == 0


def test_what_came_twice_late_or_for_somebody_else_is_found() -> None:
    ledger = Ledger("r")
    first, second, foreign = produced(ledger, "ann", "ann", "bo")
    verdict = judged(ledger, ann(second, first, first, foreign))
    assert (verdict.reordered, verdict.repeated, verdict.wrong) == (1, 1, 1)


def test_a_gap_excuses_what_came_after_the_last_receipt_of_that_log_and_before_it_was_told() -> None:
    ledger = Ledger("r")
    events = produced(ledger, "ann", "ann", "ann", "ann")
    notice = GapNotice(at=12.5, broadcasts=False, personal=True)
    verdict = judged(ledger, ann(events[0], events[3], notices=[notice]))
    assert (verdict.lost, verdict.excused) == (0, 2)
    # Another log's gap is no excuse, nor is one for what was passed over before, or sent after.
    assert judged(ledger, ann(events[0], events[3], notices=[notice._replace(personal=False)])).lost == 2
    assert judged(ledger, ann(events[0], events[2], events[3], notices=[notice._replace(at=13.5)])).lost == 1
    assert judged(ledger, ann(*events[:3], notices=[notice])).lost == 1


def test_what_was_sent_after_the_answer_that_switched_it_off_must_not_come() -> None:
    ledger = Ledger("r")
    first, second = produced(ledger, "ann", "ann")
    off = Flip(on=False, asked=10.2, done=10.4)
    assert judged(ledger, ann(first, second), off).against == 1
    verdict = judged(ledger, ann(first), off)
    assert verdict.clean
    assert verdict.withheld == 1


def test_what_was_sent_after_the_answer_that_switched_it_on_must_come() -> None:
    ledger = Ledger("r")
    first, second, third = produced(ledger, "ann", "ann", "")
    flips = (Flip(on=False, asked=9.0, done=9.5), Flip(on=True, asked=10.5, done=10.7))
    assert judged(ledger, ann(third), *flips).lost == 1
    assert judged(ledger, ann(second, third), *flips).clean
    assert judged(ledger, ann(first, second, third), *flips).against == 1


def test_where_a_flip_was_under_way_either_is_right() -> None:
    ledger = Ledger("r")
    first, second = produced(ledger, "ann", "ann")
    for flip in (Flip(on=False, asked=9.9, done=10.05), Flip(on=False, asked=9.0, done=None)):
        assert judged(ledger, ann(second), flip).lost == 0
        assert judged(ledger, ann(first), flip).against == 0
