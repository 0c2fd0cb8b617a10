"""What a publication counts, for its log and for whoever pays, is about what the log keeps of it."""

import pytest

from pushsse.backplane import codec
from pushsse.event import Change, Publication

NUMBERS = {"version", "revision"}
TYPES = tuple(f"{number:04}".ljust(64, "x") for number in range(1_000))
# Each at its largest, and what it is otherwise.
OF_A_CHANGE: dict[str, object] = {
    "user": "n" * 128,
    "before": TYPES,
    "after": TYPES,
    "quiet": '{"from":"22:00","to":"07:00"}' * 20,
}
SMALL = Change("ann", 1, ("news",), (), 1, None)


def stored(publication: Publication) -> int:
    """The bytes of its entry."""
    return len(codec.encode(publication))


def of_change(**members: object) -> Publication:
    change = Change(**{name: getattr(SMALL, name) for name in Change.__struct_fields__} | members)
    return Publication("preferences", b"data: {}\n", ("ann",), change=change)


@pytest.mark.parametrize("member", OF_A_CHANGE)
def test_a_change_counts_what_the_log_keeps_of_each_member(member: str) -> None:
    plain, large = of_change(), of_change(**{member: OF_A_CHANGE[member]})
    assert large.size - plain.size == pytest.approx(stored(large) - stored(plain), rel=0.05)
    assert large.size >= stored(large) * 0.95


def test_every_member_of_a_change_is_looked_at() -> None:
    assert OF_A_CHANGE.keys() | NUMBERS == set(Change.__struct_fields__)
