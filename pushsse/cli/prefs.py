"""`pushsse prefs`: a person's switches, listed and set."""

from typing import Any

import click

from pushsse.cli.client import Target, answered, with_target
from pushsse.cli.terminal import one_line, say, say_json


@click.command()
@click.argument("change", type=click.Choice(["on", "off"]), required=False)
@click.argument("types", nargs=-1, metavar="[TYPE]...")
@click.option("--json", "as_json", is_flag=True, help="the answer as JSON")
@with_target
def prefs(target: Target, change: str | None, types: tuple[str, ...], as_json: bool) -> None:
    """List the switches, or set some: `prefs off news alarm`."""
    if (change is None) != (not types):
        raise click.UsageError("which types?")
    with target.client() as client:
        if change is None:
            shown = answered(client.get("/v1/preferences"))
        else:
            wanted = dict.fromkeys(types, change == "on")
            shown = answered(client.post("/v1/preferences", json={"types": wanted}))
    if as_json:
        say_json(one_line(shown))
        return
    if not shown["types"]:
        say("there are no types yet; the first event of a type adds it", err=True)
    for each in shown["types"]:
        say(_line(each))


def _line(preference: Any) -> str:
    state = "always on" if preference["mandatory"] else "on" if preference["enabled"] else "off"
    title = preference["title"]
    return f"{state:<10} {preference['name']}" + (f"  {title}" if title != preference["name"] else "")
