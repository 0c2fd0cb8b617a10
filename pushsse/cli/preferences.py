"""`pushsse prefs` and `pushsse types`: a person's switches, everybody's as CSV (RFC 4180), and the catalogue.

The columns of CSV are `user`, `type`, `category` and `enabled`; each row has a type or a category. An import
reads its file twice: first all rows are checked, then they are sent in pages. What is in memory is one page.

`types` lists the catalogue of types and changes it. It needs a token with the scope pushsse:admin.
"""

import csv
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import click
import httpx

from pushsse.cli import Failed, one_line, say, say_json
from pushsse.cli.client import ListsByDefault, Target, answered, in_path, with_target
from pushsse.cli.terminal import Cell, print_line, print_table, progress
from pushsse.event import is_user

_PAGE = 500
# nginx lets bodies of 64 KiB through.
_PAGE_BYTES = 48 * 1024
_COLUMNS = ("user", "type", "category", "enabled")
_NEEDED = ("user", "enabled")
_WORDS = {
    "true": True,
    "on": True,
    "yes": True,
    "1": True,
    "false": False,
    "off": False,
    "no": False,
    "0": False,
}
_SHOWN = 80
# `en=` or `zh-CN=`; a title that begins so itself is given with its language.
_BEGINS_WITH_LANGUAGE = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{1,8})*=")


@click.group(cls=ListsByDefault)
def prefs() -> None:
    """List a person's switches, or set some: `prefs off news alarm`; `list`, if no command is given.

    With --of, an administrator does so for somebody else. `export` and `import` are about everybody.
    """


def _of(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--of", metavar="USER", help="somebody's; needs pushsse:admin")(command)


def _path(of: str | None) -> str:
    return "/v1/preferences" if of is None else f"/v1/users/{in_path(of)}/preferences"


_as_json = click.option("--json", "as_json", is_flag=True, help="the answer as JSON")
_categories = click.option("--category", is_flag=True, help="the names are those of categories")


@prefs.command("list")
@_as_json
@_of
@with_target
def list_switches(target: Target, of: str | None, as_json: bool) -> None:
    """List the switches."""
    with target.client() as client:
        _show(answered(client.get(_path(of))), as_json=as_json)


@prefs.command()
@click.argument("names", nargs=-1, required=True, metavar="TYPE...")
@_categories
@_as_json
@_of
@with_target
def on(target: Target, names: Sequence[str], category: bool, of: str | None, as_json: bool) -> None:
    """Switch types on."""
    _set(target, names, True, category=category, of=of, as_json=as_json)


@prefs.command()
@click.argument("names", nargs=-1, required=True, metavar="TYPE...")
@_categories
@_as_json
@_of
@with_target
def off(target: Target, names: Sequence[str], category: bool, of: str | None, as_json: bool) -> None:
    """Switch types off."""
    _set(target, names, False, category=category, of=of, as_json=as_json)


def _set(
    target: Target, names: Sequence[str], enabled: bool, *, category: bool, of: str | None, as_json: bool
) -> None:
    wanted = {"categories" if category else "types": dict.fromkeys(names, enabled)}
    with target.client() as client:
        _show(answered(client.post(_path(of), json=wanted)), as_json=as_json)


def _show(shown: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        say_json(one_line(shown))
        return
    if not shown["types"]:
        say("there are no types yet; the first event of a type adds it", err=True)
    for each in shown["types"]:
        print_line(*_switch(each))
    for name, enabled in shown.get("categories", {}).items():
        print_line(_state(enabled), f" category {name}")
    for window in shown.get("quiet", ()):
        days = "" if len(window["days"]) == 7 else f"{','.join(window['days'])} "
        say(f"{'quiet':<10} {days}{window['from']}–{window['to']} {shown['zone']}")
    if shown.get("paused_until"):
        say(f"{'paused':<10} until {shown['paused_until']}")


def _switch(preference: Mapping[str, Any]) -> tuple[Cell, ...]:
    title = preference["title"]
    rest = f" {preference['name']}" + (f"  {title}" if title != preference["name"] else "")
    return (_state(preference["enabled"], mandatory=preference["mandatory"]), rest)


def _state(enabled: bool, *, mandatory: bool = False) -> Cell:
    state = "always on" if mandatory else "on" if enabled else "off"
    return (f"{state:<10}", "good" if enabled or mandatory else "dim")


@prefs.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path, allow_dash=True), default="-")
@click.option("--json", "as_json", is_flag=True, help="each row as one line of JSON, not as CSV")
@with_target
def export(target: Target, file: Path, as_json: bool) -> None:
    """Write what everybody has chosen to FILE, as CSV; to standard output without one.

    Needs a token with the scope pushsse:admin. Quiet hours aren't in it.
    """
    with (
        target.client() as client,
        _written(file) as out,
        progress("exported: rows", prints=str(file) == "-") as advance,
    ):
        writer = csv.writer(out, lineterminator="\n")
        if not as_json:
            writer.writerow(_COLUMNS)
        after: dict[str, str] = {}
        while True:
            page = answered(client.get("/v1/preferences/export", params=after))
            for row in page["rows"]:
                if as_json:
                    out.write(f"{one_line(row)}\n")
                    continue
                words = (row["user"], row.get("type", ""), row.get("category", ""))
                writer.writerow((*words, "true" if row["enabled"] else "false"))
            advance(len(page["rows"]))
            if page["next"] is None:
                return
            after = {"after": page["next"]}


@contextmanager
def _written(file: Path) -> Iterator[IO[str]]:
    """Where an export goes: a file is there when it is whole."""
    if str(file) == "-":
        yield sys.stdout
        return
    part = file.with_name(f"{file.name}.part")
    try:
        with part.open("w", encoding="utf-8", newline="") as out:
            yield out
        os.replace(part, file)
    except OSError as error:
        raise Failed(f"{file}: {error.strerror}") from None
    finally:
        part.unlink(missing_ok=True)


class _CsvRow(NamedTuple):
    """A row of the file: the line that it ends in, what it says, and what is wrong with that."""

    line: int
    said: dict[str, Any]
    fault: str


@prefs.command("import")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path, allow_dash=True), default="-")
@click.option("--skip-bad", is_flag=True, help="import the rows that can be used, and leave out the others")
@click.option("--json", "as_json", is_flag=True, help="the counts as JSON")
@with_target
def import_(target: Target, file: Path, skip_bad: bool, as_json: bool) -> None:
    """Set switches as FILE says, a CSV with the columns user, type, category and enabled.

    Needs a token with the scope pushsse:admin. Each row is about a type or a category. Every row that can't
    be used is named, and then nothing is imported, unless --skip-bad is given.
    """
    with target.client() as client, _seekable(file) as text:
        check = _Check(answered(client.get("/v1/types"))["types"])
        good = bad = 0
        for row in _rows(text, check):
            if row.fault:
                bad += 1
                say(f"line {row.line}: {row.fault}", err=True)
            else:
                good += 1
        if bad and not skip_bad:
            raise Failed(f"{bad} rows can't be used, and nothing was imported (--skip-bad leaves them out)")
        text.seek(0)
        with progress("imported: rows", good) as advance:
            changed = _send(client, (row for row in _rows(text, check) if not row.fault), advance)
    if as_json:
        say_json(one_line({"imported": good, "left_out": bad, "changed": changed}))
        return
    left_out = f", {bad} left out" if bad else ""
    rows, people = "row" if good == 1 else "rows", "person" if changed == 1 else "people"
    say(f"{good} {rows} imported{left_out}; something changed for {changed} {people}")


def _send(client: httpx.Client, rows: Iterator[_CsvRow], advance: Callable[[int], None]) -> int:
    """Imports rows in pages; for how many people, page by page, that changed something."""
    changed, last, size = 0, 0, 0
    page: list[Mapping[str, Any]] = []
    for row in rows:
        page.append(row.said)
        size += len(one_line(row.said).encode()) + 1
        if len(page) == _PAGE or size > _PAGE_BYTES:
            changed += _send_page(client, page, last)
            advance(len(page))
            page, last, size = [], row.line, 0
    return changed + (_send_page(client, page, last) if page else 0)


def _send_page(client: httpx.Client, page: Sequence[Mapping[str, Any]], last: int) -> int:
    try:
        return int(answered(client.post("/v1/preferences/import", json={"rows": page}))["changed"])
    except (Failed, httpx.RequestError) as error:
        text = error.message if isinstance(error, Failed) else str(error) or type(error).__name__
        raise Failed(
            f"{text}; what is in lines up to {last} was imported: the same file may be imported again"
        ) from None


class _Check:
    """What can be switched, by the service's catalogue."""

    def __init__(self, types: Sequence[Mapping[str, Any]]) -> None:
        self._types = {each["name"]: each["mandatory"] for each in types if not each["hidden"]}
        self._categories = {each["category"] for each in types if each["category"] and not each["hidden"]}

    def fault(self, user: str, name: str, category: str, enabled: bool | None) -> str:
        """What is wrong with a row; empty for nothing."""
        if not is_user(user):
            return f"user {user[:_SHOWN]!r} isn't 1–128 characters without white space"
        if enabled is None:
            return "enabled is none of true, false, on, off, yes, no, 1, 0"
        if bool(name) == bool(category):
            return "a row has either a type or a category"
        if category:
            known = category in self._categories
            return "" if known else f"category {category[:_SHOWN]!r} isn't one of the catalogue's types"
        if name not in self._types:
            return f"type {name[:_SHOWN]!r} isn't in the catalogue"
        if self._types[name] and not enabled:
            return f"type {name!r} is mandatory and can't be switched off"
        return ""


def _rows(text: IO[str], check: _Check) -> Iterator[_CsvRow]:
    """The rows of a CSV, checked. Raises Failed for one whose head can't be used."""
    reader = csv.reader(text, strict=True)
    head = _head(reader)
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield _CsvRow(reader.line_num, {}, f"isn't CSV: {error}")
            continue
        # A line without anything, as there may be at the end.
        if cells:
            yield _row(reader.line_num, cells, head, check)


def _head(reader: Any) -> Sequence[str]:
    try:
        head = [cell.strip().lower() for cell in next(reader, [])]
    except csv.Error as error:
        raise Failed(f"line 1: isn't CSV: {error}") from None
    unknown = [name for name in head if name not in _COLUMNS]
    missing = [name for name in _NEEDED if name not in head]
    if unknown or missing or len(set(head)) < len(head) or not {"type", "category"} & set(head):
        raise Failed(f"line 1: the columns are {', '.join(head)[:_SHOWN]!r}, not {', '.join(_COLUMNS)}")
    return head


def _row(line: int, cells: Sequence[str], head: Sequence[str], check: _Check) -> _CsvRow:
    if len(cells) != len(head):
        return _CsvRow(line, {}, f"has {len(cells)} cells, and the first line has {len(head)}")
    said = {name: cell.strip() for name, cell in zip(head, cells, strict=True)}
    name, category = said.get("type", ""), said.get("category", "")
    enabled = _WORDS.get(said["enabled"].lower())
    fault = check.fault(said["user"], name, category, enabled)
    which = {"category": category} if category else {"type": name}
    return _CsvRow(line, {"user": said["user"], "enabled": enabled} | which, fault)


@contextmanager
def _seekable(file: Path) -> Iterator[IO[str]]:
    """The text of a file that is read twice; of standard input, a copy on disk."""
    # What isn't UTF-8 becomes surrogates, which no name can have: the row is named.
    how: dict[str, Any] = {"encoding": "utf-8-sig", "errors": "surrogateescape", "newline": ""}
    try:
        if str(file) != "-":
            with file.open(**how) as text:
                yield text
            return
        with tempfile.TemporaryFile() as copy:
            shutil.copyfileobj(sys.stdin.buffer, copy)
            copy.seek(0)
            with os.fdopen(os.dup(copy.fileno()), **how) as text:
                yield text
    except OSError as error:
        raise Failed(f"{file}: {error.strerror}") from None


@click.group(cls=ListsByDefault)
def types() -> None:
    """List the catalogue of types, set or delete one; `list`, if no command is given.

    Needs a token with the scope pushsse:admin.
    """


@types.command("list")
@click.option("--json", "as_json", is_flag=True, help="each type as one line of JSON")
@with_target
def list_types(target: Target, as_json: bool) -> None:
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
    print_table(("TYPE", "CATEGORY", "BY DEFAULT", "ORDER", "", "TITLE"), [_type_row(each) for each in found])


def _type_row(each: Mapping[str, Any]) -> tuple[Cell, ...]:
    marks = [mark for mark in ("urgent", "hidden", "in_file") if each[mark]]
    default = "always on" if each["mandatory"] else "on" if each["default"] else "off"
    texts = each["title"]
    title = texts if isinstance(texts, str) else " | ".join(f"{name}: {text}" for name, text in texts.items())
    return ((each["name"], "name"), each["category"], default, str(each["order"]), ", ".join(marks), title)


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
@click.option("--json", "as_json", is_flag=True, help="the type as JSON")
@with_target
def set_(
    target: Target,
    name: str,
    title: Sequence[str],
    description: Sequence[str],
    default: str | None,
    as_json: bool,
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
        done = answered(client.put(f"/v1/types/{in_path(name)}", json=kept | wanted))
    if as_json:
        say_json(one_line(done))
        return
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
        response = client.delete(f"/v1/types/{in_path(name)}")
        if not response.is_success:
            answered(response)
    say(f"{name}: deleted")
