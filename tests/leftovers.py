"""What a connection may leave behind: objects that only a collection of cycles would free."""

import gc
from typing import Any


def alive(kinds: tuple[type, ...]) -> list[Any]:
    """Returns every object of these kinds that the collector knows."""
    return [each for each in gc.get_objects() if isinstance(each, kinds)]


class Leftovers:
    """Tells objects that are made from now on from what earlier tests left.

    An earlier test may have failed or logged an error, and pytest keeps its frames. Frozen objects are hidden
    until something unfreezes them, as a node does, so everything is unfrozen first. What is alive now is
    kept: no object that is made later gets the id of one of these.
    """

    def __init__(self, *kinds: type) -> None:
        gc.unfreeze()
        gc.collect()
        self._kinds = kinds
        self._before = alive(kinds)
        self._known = {id(each) for each in self._before}

    def found(self) -> list[Any]:
        """Returns the objects that are alive and weren't at the beginning."""
        return [each for each in alive(self._kinds) if id(each) not in self._known]
