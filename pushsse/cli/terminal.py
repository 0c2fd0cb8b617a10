"""What people see at a terminal: tables, colours, what takes long. Elsewhere plain lines, for other programs.

Commands call it with what they found; `pushsse.cli.say` prints a single text. NO_COLOR (no-color.org) takes
the colours away and leaves the rest.

Deliberate: texts from elsewhere never pass as rich's markup, and their control characters are escaped, as in
`say`.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from pushsse.cli import say
from pushsse.logs import visible

Style = Literal["", "good", "warning", "fault", "name", "dim", "bold"]
_STYLES: dict[Style, str] = {
    "": "",
    "good": "green",
    "warning": "yellow",
    "fault": "red",
    "name": "cyan",
    "dim": "dim",
    "bold": "bold",
}
_PLAIN: Style = ""
# A text, or one with its style.
Cell = str | tuple[str, Style]
_FRAMES_PER_S = 8


def print_line(*cells: Cell, err: bool = False) -> None:
    """Prints one line, made of texts without anything between them."""
    console = _console(err=err)
    if not console.is_terminal:
        say("".join(map(plain, cells)), err=err)
        return
    console.print(text(*cells), soft_wrap=True)


def print_table(head: Sequence[str], rows: Sequence[Sequence[Cell]], *, right: Sequence[str] = ()) -> None:
    """Prints rows below a head, in columns, some aligned `right`. At a terminal they wrap within it."""
    if _console().is_terminal:
        _console().print(drawn(head, rows, right=right))
        return
    lines = [tuple(head), *(tuple(map(plain, row)) for row in rows)]
    widths = [max(cell_len(each[at]) for each in lines) for at in range(len(head))]
    for each in lines:
        cells = []
        for cell, width, name in zip(each, widths, head, strict=True):
            # Characters of East Asia are two columns wide.
            room = " " * (width - cell_len(cell))
            cells.append(room + cell if name in right else cell + room)
        say("  ".join(cells).rstrip())


def drawn(head: Sequence[str], rows: Sequence[Sequence[Cell]], *, right: Sequence[str] = ()) -> Table:
    """The table that `print_table` prints at a terminal."""
    made = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for name in head:
        made.add_column(Text(name), overflow="fold", justify="right" if name in right else "left")
    for row in rows:
        made.add_row(*map(text, row))
    return made


def print_grid(rows: Sequence[Sequence[Cell]]) -> None:
    """Prints rows in columns without a head, at a terminal."""
    made = Table.grid(padding=(0, 2))
    for row in rows:
        made.add_row(*map(text, row))
    _console().print(made)


@contextmanager
def busy(what: str) -> Iterator[None]:
    """Shows what takes long, while it does."""
    console = _console(err=True)
    if not console.is_terminal:
        yield
        return
    with console.status(Text(visible(what))):
        yield


@contextmanager
def progress(what: str, total: int | None = None, *, prints: bool = False) -> Iterator[Callable[[int], None]]:
    """Shows how much of something is done; what it gives is called with how much more.

    A command that `prints` meanwhile shows it only where what it prints goes elsewhere.
    """
    console = _console(err=True)
    if not console.is_terminal or (prints and sys.stdout.isatty()):
        yield lambda count: None
        return
    # Columns that change their width would jump.
    columns = [SpinnerColumn(), TextColumn("{task.description}"), TextColumn("{task.completed:,}")]
    if total is not None:
        columns += [TextColumn("of {task.total:,}"), BarColumn()]
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bar:
        task = bar.add_task(visible(what).replace("[", "\\["), total=total)
        yield lambda count: bar.advance(task, count)


@contextmanager
def live() -> Iterator[Callable[[Sequence[Table | Text]], None]]:
    """A screen of its own, which is drawn anew with what it is given, and gone at the end."""
    with Live(console=_console(), screen=True, refresh_per_second=_FRAMES_PER_S) as screen:
        yield lambda parts: screen.update(Group(*parts), refresh=True)


def plain(cell: Cell) -> str:
    """A text without its style."""
    return cell if isinstance(cell, str) else cell[0]


def is_terminal(*, err: bool = False) -> bool:
    """Whether people read what is printed."""
    return _console(err=err).is_terminal


def width() -> int:
    """How many columns the terminal has; 80 where that isn't known."""
    return _console().width


def text(*cells: Cell) -> Text:
    """A line as a terminal shows it, made of texts without anything between them."""
    return Text.assemble(*map(_styled, cells))


def _console(*, err: bool = False) -> Console:
    # Made anew: the streams are others in each test, and this costs nothing.
    stream = sys.stderr if err else sys.stdout
    # Of `force_terminal` only what the stream itself is: FORCE_COLOR would put colours into pipes.
    return Console(file=stream, force_terminal=stream.isatty(), highlight=False, markup=False, emoji=False)


def _styled(cell: Cell) -> tuple[str, str]:
    said, style = cell if isinstance(cell, tuple) else (cell, _PLAIN)
    encoding = sys.stdout.encoding or "utf-8"
    return visible(said).encode(encoding, "backslashreplace").decode(encoding), _STYLES[style]
