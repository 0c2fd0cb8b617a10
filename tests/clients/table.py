"""The table in docs/clients.md, between two marks."""

from dataclasses import dataclass

from tests.clients.client import Client
from tests.clients.matrix import CUT, KILLED, NGINX, QUIET, TERMINATED, TOKEN, Matrix, Way

BEGIN, END = "<!-- matrix: written by `make clients` -->", "<!-- end of matrix -->"
# In the order in which they are run.
FAULTS = (QUIET, TERMINATED, KILLED, NGINX, CUT, TOKEN)
_HEADS = {
    QUIET: "45 quiet seconds",
    TERMINATED: "SIGTERM of its node",
    KILLED: "SIGKILL of its node",
    NGINX: "nginx restarts",
    CUT: "network cut",
    TOKEN: "token ends",
}


@dataclass(frozen=True, slots=True)
class Missing:
    """A client that couldn't be had, and why."""

    name: str
    why: str


def written(page: str, matrix: Matrix, absent: list[Missing], *, others: bool) -> str:
    """The page with the tables of this run; `others` keeps the rows of clients that weren't in it."""
    before, _, rest = page.partition(BEGIN)
    old, _, after = rest.partition(END)
    tables = [_results(matrix, absent), _needs(matrix)]
    if others:
        kept = [table.strip().split("\n") for table in old.strip().split("\n\n")]
        assert len(kept) == len(tables), "there is no whole table yet"
        # A row is known by its client, and in the first table by the version of HTTP, too.
        tables = [
            _merged(was, table.split("\n"), cells)
            for was, table, cells in zip(kept, tables, (2, 1), strict=True)
        ]
    text = "\n\n".join(tables)
    return f"{before}{BEGIN}\n{text}\n\n{END}{after}"


def _merged(old: list[str], new: list[str], cells: int) -> str:
    """New rows in the places of the old ones."""
    rows = {_key(row, cells): row for row in new}
    return "\n".join([*(rows.pop(_key(row, cells), row) for row in old), *rows.values()])


def _key(row: str, cells: int) -> str:
    return "|".join(row.split("|")[: cells + 1])


def _results(matrix: Matrix, absent: list[Missing]) -> str:
    heads = ["client", "HTTP", *(_HEADS[fault] for fault in FAULTS), "with its lines"]
    lines = [_row(heads), _row(["---"] * len(heads))]
    for client, tls in _pairs(matrix):
        way = Way(client, tls, right=client.as_is is None)
        cells = [_cell(matrix, way, fault) for fault in FAULTS]
        lines.append(_row([client.title, "2" if tls else "1.1", *cells, _summary(matrix, client, tls)]))
    lines += [_row([each.name, "", f"not tried: {_line(each.why)}"]) for each in absent]
    return "\n".join(lines)


def _needs(matrix: Matrix) -> str:
    heads = ["client", "version", "what it needs", "lines"]
    lines = [_row(heads), _row(["---"] * len(heads))]
    for client in dict.fromkeys(way.client for way in matrix.ways):
        name = client.lines.rpartition("/")[2]
        lines.append(_row([client.title, client.version(), client.needs, f"[{name}](../{client.lines})"]))
    return "\n".join(lines)


def _pairs(matrix: Matrix) -> list[tuple[Client, bool]]:
    clients = list(dict.fromkeys(way.client for way in matrix.ways))
    return [(client, tls) for client in clients for tls in (False, True) if client.http2 or not tls]


def _cell(matrix: Matrix, way: Way, fault: str) -> str:
    found = matrix.verdicts.get((way, fault))
    return "" if found is None else str(found)


def _summary(matrix: Matrix, client: Client, tls: bool) -> str:
    """One cell for all faults: what went wrong, or how long it was away at most."""
    found = {fault: matrix.verdicts[Way(client, tls, right=True), fault] for fault in FAULTS}
    wrong = [f"{_HEADS[fault]}: {each}" for fault, each in found.items() if not each.whole]
    if wrong:
        return "; ".join(wrong)
    away = [each.away_s or 0.0 for fault, each in found.items() if fault != CUT]
    silent = found[CUT].away_s or 0.0
    return f"✓ back within {max(away):.0f} s, {silent:.0f} s after a cut"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")[:120]
