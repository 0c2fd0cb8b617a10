"""The memory of repeats: ten minutes, and no more than a million names."""

from pushsse.backplane.base import REMEMBER_MS
from pushsse.backplane.taken import Taken


def test_a_name_is_remembered_for_ten_minutes() -> None:
    memory = Taken()
    assert not memory.is_repeat("1", "a", 5)
    assert memory.is_repeat("1", "a", 4 + REMEMBER_MS)
    assert not memory.is_repeat("1", "a", 5 + REMEMBER_MS)
    assert REMEMBER_MS == 10 * 60 * 1000


def test_the_newest_million_names_are_remembered() -> None:
    memory = Taken()
    for i in range(1_000_002):
        memory.is_repeat("1", str(i), 5)
    assert memory.is_repeat("1", "2", 5)
    assert not memory.is_repeat("1", "1", 5)
