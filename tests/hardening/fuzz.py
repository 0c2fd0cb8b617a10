"""Generated input: the same examples at each run. FUZZ=50 looks at fifty times as many, random ones."""

import os
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

TIMES = int(os.environ.get("FUZZ", "0"))
# What ends a line or a frame, what doesn't but looks like it, what is no character, what JSON escapes.
NASTY = (
    *(
        "\r",
        "\n",
        "\r\n",
        "\0",
        "\u2028",
        "\u2029",
        "\x85",
        "\x0b",
        "\x0c",
        "\x1c",
        "\ufeff",
        "\ud800",
        "\udfff",
    ),
    *("\n\n", "\r\r", "\r\n\r\n", "\nevent: evil\ndata: 1\n\n", "\r\revent: evil\rdata: 1\r\r", "\nid: 1\n"),
    *("\nretry: 1\n\n", "data: ", ": ", '"', "\\", "\\n", "\\u0000", "\\ud83d", "💥", "é", "\x1b[2J", "\x7f"),
)
UNSOUND = {chr(0), chr(0xD800), chr(0xDFFF)}


def fuzz(examples: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """For a test under `given`: so many examples."""
    made: Any = settings(
        max_examples=examples * max(1, TIMES),
        derandomize=not TIMES,
        database=None,
        deadline=None,
        # What one example leaves behind on a node is part of the test.
        suppress_health_check=list(HealthCheck),
        print_blob=bool(TIMES),
    )
    return made  # type: ignore[no-any-return]


def texts(most: int = 12, *, sound: bool = False) -> st.SearchStrategy[str]:
    """Texts of nasty pieces and of any characters; unless they are sound, with NUL and lone surrogates."""
    nasty = [each for each in NASTY if not sound or not set(each) & UNSOUND]
    characters = st.characters(
        exclude_categories=["Cs"] if sound else (), exclude_characters="\0" if sound else ""
    )
    return st.lists(st.sampled_from(nasty) | st.text(characters, max_size=4), max_size=most).map("".join)


def values(*, sound: bool = False) -> st.SearchStrategy[object]:
    """Anything that JSON can be, of such texts."""
    leaf: st.SearchStrategy[object] = (
        texts(sound=sound)
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.booleans()
        | st.none()
    )
    return st.recursive(
        leaf,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts(3, sound=sound), inner, max_size=4),
        max_leaves=8,
    )
