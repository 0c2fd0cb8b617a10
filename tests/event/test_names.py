"""`is_user` and `is_id` say of a name what the types of an event's members say."""

from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pushsse.event import EventId, UserName, is_id, is_user


def allows(name: str, kind: Any) -> bool:
    try:
        msgspec.convert(name, kind)
    except msgspec.ValidationError:
        return False
    return True


@pytest.mark.parametrize(("kind", "says"), [(UserName, is_user), (EventId, is_id)])
def test_each_ascii_character_is_judged_alike(kind: Any, says: Any) -> None:
    for code in range(128):
        for name in (chr(code), f"a{chr(code)}", f"{chr(code)}a", f"a{chr(code)}b"):
            assert says(name) == allows(name, kind), ascii(name)


@given(st.one_of(st.text(max_size=8), st.text("aé\u200b \t", min_size=126, max_size=130)))
@example("")
@example("a" * 128)
@example("a" * 129)
@example("é" * 129)
def test_names_are_judged_alike(name: str) -> None:
    assert is_user(name) == allows(name, UserName)
    assert is_id(name) == allows(name, EventId)
