"""`pushsse publish`: one event, or a file of them, by POST /v1/events."""

import json
from collections.abc import Iterator
from typing import Any, BinaryIO

import click

from pushsse.cli.client import Target, answered, one_line, with_target
from pushsse.cli.options import Failed

# The interface takes 1 MiB a call.
_BODY_BYTES = 512 * 1024
_LINES = 1000


@click.command()
@click.argument("type_", metavar="TYPE", required=False)
@click.argument("message", required=False)
@click.option("--to", multiple=True, metavar="all|USER", help="for whom; repeat it, or part people by commas")
@click.option("--desc", default=None, help="one line about it")
@click.option("--id", "event_id", default=None, help="the producer's own id: a repeat is dropped")
@click.option(
    "--ttl", "ttl_s", type=int, default=None, metavar="SECONDS", help="how long it is worth anything"
)
@click.option("--json", "as_json", is_flag=True, help="MESSAGE is JSON, not text")
@click.option(
    "--file", type=click.File("rb"), help="a file with one event a line (NDJSON); - reads standard input"
)
@with_target
def publish(
    target: Target, type_: str | None, message: str | None, file: BinaryIO | None, **given: Any
) -> None:
    """Publish an event: TYPE MESSAGE --to all, or --file EVENTS."""
    if (file is None) == (type_ is None or message is None):
        raise click.UsageError("give TYPE and MESSAGE, or --file")
    with target.client() as client:
        if file is None:
            event = _event(type_, message, **given)
            _tell(answered(client.post("/v1/events", json=event)), before=0)
            return
        rejected = before = 0
        for lines in _chunks(file):
            body = b"".join(lines)
            if body.strip():
                response = client.post(
                    "/v1/events", content=body, headers={"content-type": "application/x-ndjson"}
                )
                rejected += _tell(answered(response), before=before)
            before += len(lines)
    if rejected:
        raise Failed(f"{rejected} rejected")


def _event(
    type_: str | None,
    message: str | None,
    *,
    to: tuple[str, ...],
    desc: str | None,
    event_id: str | None,
    ttl_s: int | None,
    as_json: bool,
) -> dict[str, object]:
    names = [name for each in to for name in each.split(",") if name]
    if not names:
        raise click.UsageError("--to all, or --to USER, is missing")
    event: dict[str, object] = {"type": type_, "message": message}
    if as_json:
        try:
            event["message"] = json.loads(message or "")
        except ValueError as error:
            raise click.UsageError(f"MESSAGE isn't JSON: {error}") from None
    event["to"] = "all" if names == ["all"] else {"users": names}
    optional = {"desc": desc, "id": event_id, "ttl_s": ttl_s}
    return event | {name: value for name, value in optional.items() if value is not None}


def _chunks(file: BinaryIO) -> Iterator[list[bytes]]:
    lines: list[bytes] = []
    size = 0
    for line in file:
        if lines and (size + len(line) > _BODY_BYTES or len(lines) == _LINES):
            yield lines
            lines, size = [], 0
        lines.append(line)
        size += len(line)
    if lines:
        yield lines


def _tell(result: Any, *, before: int) -> int:
    """Prints the ids that were taken, and what wasn't; how many weren't."""
    for event_id in result["ids"]:
        click.echo(event_id)
    for rejected in result["rejected"]:
        click.echo(f"line {before + rejected['line']}: {one_line(rejected['errors'])}", err=True)
    return len(result["rejected"])
