"""Commands that call a running service over HTTP: what they share, and those of whoever runs it.

`events`, `questions` and `preferences` use it, too. A call that fails ends the command with one line
(`Failed`). `kick`, `explain` and `top` need a token with the scope pushsse:admin. `top` asks
`GET /v1/overview`, which any node answers for all; elsewhere than at a terminal it prints that once.
"""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click
import httpx
from rich.table import Table

from pushsse.cli import Command, Failed, one_line, say, say_json
from pushsse.cli.terminal import Cell, Style, drawn, is_terminal, live, print_line, print_table, text, width

DEFAULT_URL = "http://127.0.0.1:8000"
_TIMEOUT_S = 30.0

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


@dataclass(frozen=True, slots=True)
class Target:
    """Which service, and who is calling."""

    url: str
    token: str
    user: str
    ca: str

    @contextmanager
    def client(self, *, read_timeout_s: float = _TIMEOUT_S) -> Iterator[httpx.Client]:
        """A client whose failures end the command with one line."""
        if self.token and self.user:
            say("pushsse: --user isn't looked at where there is a token, which says who is calling", err=True)
        headers = {"authorization": f"Bearer {self.token}"} if self.token else {}
        timeout = httpx.Timeout(_TIMEOUT_S, read=read_timeout_s)
        try:
            with httpx.Client(
                base_url=self.url, headers=headers, params=self._who(), timeout=timeout, verify=self._verify()
            ) as client:
                yield client
        except httpx.InvalidURL as error:
            raise Failed(f"--url {self.url!r} can't be used: {error}") from None
        except httpx.RequestError as error:
            raise Failed(f"{self.url}: {_reason(error)}") from None

    def _who(self) -> dict[str, str]:
        return {"user": self.user} if self.user else {}

    def _verify(self) -> Any:
        try:
            return httpx.create_ssl_context(verify=self.ca) if self.ca else True
        except OSError as error:
            raise Failed(f"--ca {self.ca}: {error.strerror}") from None


class ListsByDefault(click.Group):
    """`list` is what a call without a command means, with its options."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """click's."""
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)


def with_target(command: Command) -> Command:
    """Gives a command the options that say which service, and who is calling."""

    def run(url: str, token: str, user: str, ca: Path | None, **options: Any) -> None:
        command(target=Target(url, token, user, str(ca or "")), **options)

    run.__doc__ = command.__doc__
    run.__name__ = command.__name__
    run.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    options: list[Callable[[Command], Command]] = [
        click.option("--url", envvar="PUSHSSE_URL", default=DEFAULT_URL, show_default=True, show_envvar=True),
        click.option("--token", envvar="PUSHSSE_TOKEN", default="", help="a JWT", show_envvar=True),
        click.option("--user", default="", help="who is calling, where identity is development"),
        click.option(
            "--ca",
            envvar="PUSHSSE_CA",
            type=click.Path(dir_okay=False, path_type=Path),
            help="certificate of the authority to trust",
            show_envvar=True,
        ),
    ]
    wrapped: Command = run
    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped


def in_path(name: str) -> str:
    """A name as one part of a path. Raises Failed where it would be a step to another call."""
    if name in (".", ".."):
        raise Failed(f"{name!r} is no name: it is a step in a path")
    return quote(name, safe="")


def answered(response: httpx.Response) -> Any:
    """The JSON of a good response. Raises Failed with the problem's code and detail."""
    response.read()
    if response.is_success:
        try:
            return response.json()
        except ValueError:
            raise Failed(f"{response.url.host}: the answer isn't JSON; is this pushsse?") from None
    raise Failed(problem(response))


def problem(response: httpx.Response) -> str:
    """What a refusal says, in one line (RFC 9457)."""
    try:
        body = response.json()
    except ValueError:
        body = None
    if isinstance(body, Mapping) and "code" in body:
        return f"{body['code']}: {body.get('detail', '')} (status {response.status_code})"
    return f"status {response.status_code} {response.reason_phrase}"


def _reason(error: httpx.RequestError) -> str:
    return str(error) or type(error).__name__


# For whoever runs the service


@click.command()
@click.argument("somebody", metavar="USER")
@click.option("--json", "as_json", is_flag=True, help="the answer as JSON")
@with_target
def kick(target: Target, somebody: str, as_json: bool) -> None:
    """End the streams of USER on all nodes, and revoke the tokens that were issued so far.

    Needs a token with the scope pushsse:admin.
    """
    with target.client() as client:
        done = answered(client.post(f"/v1/users/{in_path(somebody)}/kick"))
    if as_json:
        say_json(one_line(done))
    else:
        say(f"{done['user']}: kicked; all nodes act on it within {done['within_s']} s")


@click.command()
@click.argument("somebody", metavar="USER")
@click.argument("event", metavar="EVENT")
@click.option("--json", "as_json", is_flag=True, help="as one line of JSON")
@with_target
def explain(target: Target, somebody: str, event: str, as_json: bool) -> None:
    """Say why USER got the event with the id EVENT, or didn't.

    Needs a token with the scope pushsse:admin.
    """
    with target.client(read_timeout_s=60.0) as client:
        path = f"/v1/users/{in_path(somebody)}/explain/{in_path(event)}"
        found = answered(client.get(path))
    if as_json:
        say_json(one_line(found))
        return
    for step in found["timeline"]:
        told = [step[name] for name in ("node", "detail") if step.get(name)]
        detail = f"  {': '.join(told)}{_by(step)}" if told else ""
        print_line(
            (step["at"], "dim"), "  ", (f"{step['what']:<12}" if detail else step["what"], "name"), detail
        )
    for each in found["incomplete"]:
        print_line((f"({each})", "warning"))
    print_line(f"{found['user']}, {found['event']}: ", (found["verdict"].replace("_", " "), "bold"))


def _by(step: Mapping[str, Any]) -> str:
    """Who has set a switch, and when."""
    how = step.get("how")
    name = step.get("by") or "somebody whose name was deleted"
    ways = {
        "person": f"by {name}",
        "admin": f"by the administrator {name}",
        "import": f"imported by {name}",
        "development": f"by {name} in development",
        "settings": "by the settings file",
    }
    if not how:
        return ""
    return f"; {ways.get(how, how)}" + (f" at {step['since']}" if step.get("since") else "")


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
            _print_overview(_overview(client))
        else:
            try:
                _draw_overview(client, target.url, every)
            except KeyboardInterrupt:
                sys.exit(130)


def _overview(client: httpx.Client) -> Mapping[str, Any]:
    found: Mapping[str, Any] = answered(client.get("/v1/overview"))
    return found


def _print_overview(found: Mapping[str, Any]) -> None:
    print_line(*_summary(found))
    print_table(_HEAD, [_node_row(node) for node in found["nodes"]], right=_NUMBERS)
    for line in _lines_below(found):
        print_line(*line)


def _draw_overview(client: httpx.Client, url: str, every_s: float) -> None:
    """Draws what comes. A service that was there and doesn't answer is waited for, which is said."""
    found = _overview(client)
    trouble = ""
    with live() as draw:
        while True:
            head: list[Cell] = [(f"pushsse at {url}  ", "dim"), (f"{datetime.now():%H:%M:%S}", "dim")]
            if trouble:
                head.append((f"  {trouble}: trying again", "fault"))
            below = [text(*line) for line in _lines_below(found)]
            draw([text(*head), text(*_summary(found)), text(), _nodes(found), text(), *below])
            time.sleep(every_s)
            try:
                found, trouble = _overview(client), ""
            except (Failed, httpx.RequestError) as error:
                trouble = error.message if isinstance(error, Failed) else str(error) or type(error).__name__


def _nodes(found: Mapping[str, Any]) -> Table:
    """The nodes, as far as the terminal is wide."""
    shown = [at for at, name in enumerate(_HEAD) if width() >= _WIDE or name not in _LEFT_OUT]
    rows = [_node_row(node) for node in found["nodes"]]
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


def _node_row(node: Mapping[str, Any]) -> tuple[Cell, ...]:
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


def _lines_below(found: Mapping[str, Any]) -> list[Sequence[Cell]]:
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
