"""`pushsse top`: what all nodes do, drawn anew every two seconds at a terminal. Needs pushsse:admin.

It asks `GET /v1/overview`, which any node answers for all. Elsewhere than at a terminal it prints that once.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import click
import httpx
from rich.table import Table

from pushsse.cli import Failed, one_line, say_json
from pushsse.cli.client import Target, answered, with_target
from pushsse.cli.terminal import Cell, Style, drawn, is_terminal, live, print_line, print_table, text, width

_HEAD = (
    "NODE",
    "STATE",
    "STREAMS",
    "PEOPLE",
    "BEHIND",
    "OPENED/s",
    "EVENTS/s",
    "DELIVERED/s",
    "LAG",
    "DEAD",
    "CPU",
    "MEMORY",
    "UP",
)
_NUMBERS = _HEAD[2:]
# What a narrower terminal than this shows without, and so need not wrap.
_WIDE = 120
_LEFT_OUT = frozenset({"PEOPLE", "BEHIND", "OPENED/s", "DEAD", "UP"})
# The types that most people have switched.
_TYPES = 8
_MIB = 1024 * 1024
_PAUSE_S = 2.0


@click.command()
@click.option(
    "--every",
    type=click.FloatRange(0.5, 60),
    default=_PAUSE_S,
    show_default=True,
    help="seconds from one look to the next",
)
@click.option("--once", is_flag=True, help="print it once, and end")
@click.option("--json", "as_json", is_flag=True, help="once, as one line of JSON")
@with_target
def top(target: Target, every: float, once: bool, as_json: bool) -> None:
    """Show what all nodes do, until Ctrl-C.

    Needs a token with the scope pushsse:admin. Rates are those of the last ten seconds.
    """
    with target.client() as client:
        if as_json:
            say_json(one_line(_overview(client)))
        elif once or not is_terminal():
            _print(_overview(client))
        else:
            try:
                _watch(client, target.url, every)
            except KeyboardInterrupt:
                sys.exit(130)


def _overview(client: httpx.Client) -> Mapping[str, Any]:
    found: Mapping[str, Any] = answered(client.get("/v1/overview"))
    return found


def _print(found: Mapping[str, Any]) -> None:
    print_line(*_summary(found))
    print_table(_HEAD, [_row(node) for node in found["nodes"]], right=_NUMBERS)
    for line in _lines(found):
        print_line(*line)


def _watch(client: httpx.Client, url: str, every_s: float) -> None:
    """Draws what comes. A service that was there and doesn't answer is waited for, which is said."""
    found = _overview(client)
    trouble = ""
    with live() as draw:
        while True:
            head: list[Cell] = [(f"pushsse at {url}  ", "dim"), (f"{datetime.now():%H:%M:%S}", "dim")]
            if trouble:
                head.append((f"  {trouble}: trying again", "fault"))
            below = [text(*line) for line in _lines(found)]
            draw([text(*head), text(*_summary(found)), text(), _nodes(found), text(), *below])
            time.sleep(every_s)
            try:
                found, trouble = _overview(client), ""
            except (Failed, httpx.RequestError) as error:
                trouble = error.message if isinstance(error, Failed) else str(error) or type(error).__name__


def _nodes(found: Mapping[str, Any]) -> Table:
    """The nodes, as far as the terminal is wide."""
    shown = [at for at, name in enumerate(_HEAD) if width() >= _WIDE or name not in _LEFT_OUT]
    rows = [_row(node) for node in found["nodes"]]
    return drawn([_HEAD[at] for at in shown], [[row[at] for at in shown] for row in rows], right=_NUMBERS)


def _summary(found: Mapping[str, Any]) -> Sequence[Cell]:
    totals = found["totals"]
    dead, lag, nodes = totals["dead_letters"], totals["lag"], len(found["nodes"])
    return (
        (f"{nodes} node{'s' * (nodes != 1)}", "bold"),
        f", {totals['streams']:,} streams, {totals['people']:,} people",
        f", {totals['published_per_s']:,.1f} events/s, {totals['delivered_per_s']:,.1f} delivered/s, ",
        (f"lag {lag:,}", "warning" if lag else ""),
        ", ",
        (f"{dead:,} dead letters", "warning" if dead else ""),
    )


def _row(node: Mapping[str, Any]) -> tuple[Cell, ...]:
    away = [part for part in ("backplane", "database") if not node[part]]
    state = f"{node['state']}, without {' and '.join(away)}" if away else node["state"]
    style: Style = "good" if state == "ready" else "fault"
    lag = sum(node["lag"].values())
    return (
        (node["node"], "name"),
        (state, style),
        f"{node['streams']:,}",
        f"{node['people']:,}",
        _if_any(node["behind"]),
        f"{node['opened_per_s']:,.1f}",
        f"{node['published_per_s']:,.1f}",
        f"{node['delivered_per_s']:,.1f}",
        _if_any(lag),
        _if_any(node["dead_letters"]),
        f"{node['cpu']:.0%}",
        f"{node['memory_bytes'] / _MIB:,.0f} MiB",
        _age(node["started_at"]),
    )


def _lines(found: Mapping[str, Any]) -> list[Sequence[Cell]]:
    """What lies behind the nodes: the lag of each topic, and what people have switched."""
    lines: list[Sequence[Cell]] = []
    if behind := {topic: lag for topic, lag in found["lag"].items() if lag}:
        each = ", ".join(f"{topic} {lag:,}" for topic, lag in behind.items())
        lines.append((("lag by topic: ", "dim"), each))
    if found["chosen"]:
        most = sorted(found["chosen"], key=lambda each: -(each["on"] + each["off"]))[:_TYPES]
        each = ", ".join(f"{one['name']} {one['on']:,} on {one['off']:,} off" for one in most)
        lines.append((("switched by people: ", "dim"), each))
    return lines


def _if_any(count: int) -> Cell:
    return (f"{count:,}", "warning" if count else "")


def _age(started_at: str | None) -> str:
    """How long ago, in the two largest units."""
    if not started_at:
        return ""
    whole_s = max(0, int((datetime.now(UTC) - datetime.fromisoformat(started_at)).total_seconds()))
    parts = [
        (whole_s // 86_400, "d"),
        (whole_s // 3_600 % 24, "h"),
        (whole_s // 60 % 60, "m"),
        (whole_s % 60, "s"),
    ]
    while len(parts) > 2 and not parts[0][0]:
        parts.pop(0)
    return " ".join(f"{count}{unit}" for count, unit in parts[:2])
