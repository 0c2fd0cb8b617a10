"""A client of the matrix: how it is run, and what people have to know of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
EXAMPLES = HERE.parents[1] / "examples"


@dataclass(frozen=True, slots=True)
class Place:
    """What a client's command is made for. `page` gives the address of a page with a script."""

    folder: Path
    stream: str
    page: Callable[[str], str]
    authority: Path


Command = Callable[[Place], Sequence[str]]


@dataclass(frozen=True, slots=True)
class Client:
    """`as_is` runs the library and nothing around it, `right` with the lines of the file `lines`.

    `raw`: it prints the stream itself. A client of our own has only the right way. `keeps_dead_http2`: it
    stays in an HTTP/2 connection that has died, and no lines of a page can help that. `unnoticed`: faults
    that it has no stream to notice by.
    """

    name: str
    title: str
    version: Callable[[], str]
    as_is: Command | None
    right: Command | None
    lines: str
    needs: str
    http2: bool = True
    raw: bool = False
    keeps_dead_http2: bool = False
    unnoticed: frozenset[str] = frozenset()
