"""What the store says about types, switches and changes: frozen values, for dispatch, streams and API."""

from msgspec import Struct

from pushsse.event import Change
from pushsse.position import Mark


class TypeView(Struct, frozen=True):
    """One type of the catalogue."""

    name: str
    title: str
    description: str
    default_on: bool
    mandatory: bool
    hidden: bool


class Preference(Struct, frozen=True):
    """One type as a person sees it."""

    name: str
    title: str
    description: str
    category: str
    enabled: bool
    mandatory: bool


class Switches(Struct, frozen=True):
    """A person's switches as committed: the number of the last change, and every type that is off.

    `pending`: a committed change isn't known to be in the log; `logged` is the place of the last one that is.
    `open_question`: a question of theirs is still to be answered.
    """

    version: int
    off: frozenset[str]
    pending: bool
    logged: Mark | None
    open_question: bool


class PendingChange(Struct, frozen=True):
    """A committed change that isn't known to be in the log: what it changed, and all that was and is off."""

    user: str
    version: int
    changed: dict[str, bool]
    before: tuple[str, ...]
    after: tuple[str, ...]

    @property
    def change(self) -> Change:
        """The change as the log carries it."""
        return Change(self.user, self.version, self.before, self.after)
