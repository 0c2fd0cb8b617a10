"""Nodes of the kinds that faults want; the cluster puts them in the place of ordinary ones."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from deploy.parts import Node
from deploy.parts.packages import program
from faults.special import NEXT_RELEASE, PORTABLE, VARIABLE


class SpecialNode(Node):
    """A node that differs in what `special` says."""

    special: Sequence[str] = ()

    def command(self) -> Sequence[str]:
        python, _, _, *arguments = super().command()
        return [python, "-m", "faults.special", *arguments]

    def environment(self) -> Mapping[str, str]:
        return {**super().environment(), VARIABLE: ",".join(self.special)}


class PortableNode(SpecialNode):
    """A node that doesn't have connections handed over, run as docs/operations.md says for that."""

    special = (PORTABLE,)

    def environment(self) -> Mapping[str, str]:
        return {**super().environment(), "PYTHONMALLOC": "malloc"}


class NextNode(SpecialNode):
    """A node of the next release."""

    special = (NEXT_RELEASE,)


class ClockNode(Node):
    """A node whose clock is off; time that only measures durations is left alone."""

    offset = "+300"

    def environment(self) -> Mapping[str, str]:
        # By the library itself: the program would stay, as the parent of the node.
        program("faketime", "faketime")
        library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
        return {
            **super().environment(),
            "LD_PRELOAD": str(library),
            "FAKETIME": self.offset,
            "DONT_FAKE_MONOTONIC": "1",
        }


class SlowClockNode(ClockNode):
    """The same, behind."""

    offset = "-300"
