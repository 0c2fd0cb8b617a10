"""`pushsse types`: the catalogue of types, listed and changed. Needs a token with the scope pushsse:admin."""

import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import click

from pushsse.cli import one_line, say, say_json
from pushsse.cli.client import ListsByDefault, Target, answered, with_target

# `en=` or `zh-CN=`; a title that begins so itself is given with its language.
_BEGINS_WITH_LANGUAGE = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{1,8})*=")


@click.group(cls=ListsByDefault)
def types() -> None:
    """List the catalogue of types, set or delete one; `list`, if no command is given.

    Needs a token with the scope pushsse:admin.
    """


@types.command("list")
@click.option("--json", "as_json", is_flag=True, help="each type as one line of JSON")
@with_target
def listed(target: Target, as_json: bool) -> None:
    """List all types, in the order in which people see them."""
    with target.client() as client:
        found = answered(client.get("/v1/types"))["types"]
    if as_json:
        for each in found:
            say_json(one_line(each))
        return
    if not found:
        say("there are no types yet; the first event of a type adds it", err=True)
        return
    rows = [("TYPE", "CATEGORY", "BY DEFAULT", "ORDER", "", "TITLE"), *map(_row, found)]
    widths = [max(len(row[at]) for row in rows) for at in range(5)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        say("  ".join([*cells, row[5]]).rstrip())


def _row(each: Mapping[str, Any]) -> tuple[str, ...]:
    marks = [mark for mark in ("urgent", "hidden", "in_file") if each[mark]]
    default = "always on" if each["mandatory"] else "on" if each["default"] else "off"
    texts = each["title"]
    title = texts if isinstance(texts, str) else " | ".join(f"{name}: {text}" for name, text in texts.items())
    return (each["name"], each["category"], default, str(each["order"]), ", ".join(marks), title)


@types.command("set")
@click.argument("name")
@click.option("--title", multiple=True, metavar="[LANGUAGE=]TEXT", help="for all, or for each language")
@click.option("--description", multiple=True, metavar="[LANGUAGE=]TEXT", help="for all, or for each language")
@click.option("--category", help="whose switch is the default of this type's")
@click.option(
    "--default", type=click.Choice(["on", "off"]), help="for who has switched neither  [default: on]"
)
@click.option("--mandatory/--no-mandatory", default=None, help="it can't be switched off")
@click.option("--urgent/--no-urgent", default=None, help="worth a sound in quiet hours, too")
@click.option("--hidden/--no-hidden", default=None, help="people don't see it among their switches")
@click.option("--order", type=int, help="its place among the types  [default: 0]")
@with_target
def set_(
    target: Target,
    name: str,
    title: Sequence[str],
    description: Sequence[str],
    default: str | None,
    **given: Any,
) -> None:
    """Set a type. What isn't given stays as it is; the first language is for everybody else."""
    wanted = {member: value for member, value in given.items() if value is not None}
    for member, texts in (("title", title), ("description", description)):
        if texts:
            wanted[member] = _texts(member, texts)
    if default is not None:
        wanted["default"] = default == "on"
    with target.client() as client:
        found = answered(client.get("/v1/types"))["types"]
        before: Mapping[str, Any] = next((each for each in found if each["name"] == name), {})
        kept = {member: value for member, value in before.items() if member not in ("name", "in_file")}
        answered(client.put(f"/v1/types/{quote(name, safe='')}", json=kept | wanted))
    say(f"{name}: {'changed' if before else 'added'}; all nodes act on it within seconds")


def _texts(member: str, texts: Sequence[str]) -> str | dict[str, str]:
    if len(texts) == 1 and not _BEGINS_WITH_LANGUAGE.match(texts[0]):
        return texts[0]
    found: dict[str, str] = {}
    for text in texts:
        language, is_there, rest = text.partition("=")
        if not is_there:
            raise click.UsageError(f"--{member} {text!r}: of several each is LANGUAGE=TEXT, such as zh=…")
        found[language.strip()] = rest
    return found


@types.command()
@click.argument("name")
@with_target
def delete(target: Target, name: str) -> None:
    """Delete a type; its next event brings it back, unless new types are refused."""
    with target.client() as client:
        response = client.delete(f"/v1/types/{quote(name, safe='')}")
        if not response.is_success:
            answered(response)
    say(f"{name}: deleted")
