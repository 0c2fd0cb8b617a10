"""What a connection may leave behind: objects that only a collection of cycles would free."""

import gc
from typing import Any

import pytest

from pushsse import node


class Leftovers:
    """Tells objects that are made from now on from what earlier tests left.

    An earlier test may have failed or logged an error, and pytest keeps its frames. What is alive now is
    frozen: the collector shows it no longer, and neither a collection nor a look goes through it.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *kinds: type) -> None:
        # A node unfreezes everything now and then.
        monkeypatch.setattr(node, "TRIM_EVERY_S", 3600.0)
        gc.collect()
        gc.freeze()
        self._kinds = kinds

    def found(self) -> list[Any]:
        """Returns the objects that are alive and weren't at the beginning."""
        return [each for each in gc.get_objects() if isinstance(each, self._kinds)]
