"""The memory of repeats: ten minutes, and no more than a million names."""

import pytest

from pushsse.backplane import REMEMBER_MS, Draft
from pushsse.backplane.memory.logs import SeenNames

from .ear import publication


def is_repeat(memory: SeenNames, name: str, at_ms: int) -> bool:
    draft = Draft(publication("x"), once=name)
    return memory.unrepeated(draft.publication, draft.names("1"), at_ms) is None


def test_a_name_is_remembered_for_ten_minutes() -> None:
    memory = SeenNames()
    assert not is_repeat(memory, "a", 5)
    assert is_repeat(memory, "a", 4 + REMEMBER_MS)
    assert not is_repeat(memory, "a", 5 + REMEMBER_MS)
    assert REMEMBER_MS == 10 * 60 * 1000


@pytest.mark.slow
@pytest.mark.long
def test_the_newest_million_names_are_remembered() -> None:
    memory = SeenNames()
    for i in range(1_000_002):
        is_repeat(memory, str(i), 5)
    assert is_repeat(memory, "2", 5)
    assert not is_repeat(memory, "1", 5)
