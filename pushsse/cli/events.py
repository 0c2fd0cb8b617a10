"""Events in and out: `pushsse publish`, and `pushsse listen`, which is a person's stream in the shell.

`publish` takes one event from the command line, or events and texts from a file or standard input. Everything
goes through POST /v1/events. Ids go to standard output, refusals and the count to standard error. A file may
be of any size: it is read in bounded portions, and what a pipe has is sent without waiting for more.

`listen` comes back by itself, as a browser does. Deliberate: an answer that isn't 200 to the first call ends
the command, so that a script notices.
"""

import json
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, BinaryIO

import click
import httpx
import msgspec
from httpx_sse import ServerSentEvent, SSEError, connect_sse

from pushsse.cli import Failed, one_line, say, say_json
from pushsse.cli.client import Target, answered, problem, with_target
from pushsse.cli.terminal import print_line, progress
from pushsse.event import RESERVED_TYPES, WITHDRAW

_NDJSON = {"content-type": "application/x-ndjson"}
# None of a call's events was accepted, because of what they are.
_REFUSED_EVENTS = frozenset({HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY})
# The service takes 1 MiB a call.
MAX_BYTES = 1024 * 1024
_PORTION_BYTES = 512 * 1024
_PORTION_LINES = 1000
_BOM = b"\xef\xbb\xbf"

_SERVICE = RESERVED_TYPES - {"exception"}
# Three heartbeats of the default, and then some: a stream that is quieter than this is gone.
_READ_TIMEOUT_S = 60.0
_MOST_RETRY_S = 60.0
# The same call can never work; after any other status it may, later.
_REFUSED_FOR_GOOD = frozenset({400, 401, 403})


class NotLines(Exception):
    """A file with neither one event nor one a line."""


@dataclass(frozen=True, slots=True)
class FileLine:
    """One line of a file; `body` is None where it is too long for a call."""

    number: int
    body: bytes | None


def read_text(file: BinaryIO) -> bytes | None:
    """All of a file as one text, without its last line end; None if it is longer than a call may be."""
    body = file.read(MAX_BYTES + 1)
    return None if len(body) > MAX_BYTES else body.removeprefix(_BOM).removesuffix(b"\n").removesuffix(b"\r")


def portions(file: BinaryIO) -> Iterator[list[FileLine]]:
    """The events of a file, by line, in portions that one call takes. Blank lines are counted, and left out.

    Raises NotLines where JSON is written over many lines, and isn't one event.
    """
    pieces = _pieces(file)
    start = _start(pieces)
    if b"\n" in start.strip() and _is_object(start):
        yield [FileLine(1, start)]
        return
    if start.split(maxsplit=1)[:1] in ([b"{"], [b"["]):
        raise NotLines(
            "this is neither one event nor one event a line; `jq -c` writes each on a line of its own"
        )
    portion: list[FileLine] = []
    size = 0
    for line in _lines(start, pieces):
        if line is None:
            if portion:
                yield portion
            portion, size = [], 0
            continue
        length = len(line.body or b"")
        if portion and (size + length > _PORTION_BYTES or len(portion) == _PORTION_LINES):
            yield portion
            portion, size = [], 0
        if line.body is None or line.body.strip():
            portion.append(line)
            size += length
    if portion:
        yield portion


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    """What is there, as soon as it is there."""
    read = getattr(file, "read1", file.read)
    while piece := read(_PORTION_BYTES):
        yield piece


def _start(pieces: Iterator[bytes]) -> bytes:
    """The beginning: its first line that isn't blank if that is JSON, else as much as one call takes.

    An event written over many lines begins with a line that isn't JSON by itself.
    """
    start = b""
    for piece in pieces:
        start = (start + piece).removeprefix(_BOM)
        first, end, _ = start.lstrip().partition(b"\n")
        if (end and _is_json(first)) or len(start) > MAX_BYTES:
            break
    return start


def _lines(start: bytes, pieces: Iterator[bytes]) -> Iterator[FileLine | None]:
    """The lines; None where the next piece would have to be waited for."""
    number = 1
    rest, too_long = b"", False
    piece: bytes | None = start
    while piece is not None:
        *ended, last = piece.split(b"\n")
        for line in ended:
            body = rest + line
            yield FileLine(number, None if too_long or len(body) > MAX_BYTES else body)
            rest, too_long = b"", False
            number += 1
        rest += last
        # Of a line that is too long nothing is kept.
        if too_long or len(rest) > MAX_BYTES:
            rest, too_long = b"", True
        yield None
        piece = next(pieces, None)
    if rest or too_long:
        yield FileLine(number, None if too_long else rest)


def _is_json(body: bytes) -> bool:
    try:
        msgspec.json.decode(body, type=msgspec.Raw)
    except msgspec.DecodeError:
        return False
    return True


def _is_object(body: bytes) -> bool:
    return len(body) <= MAX_BYTES and body.lstrip().startswith(b"{") and _is_json(body)


@click.command()
@click.argument("type_", metavar="TYPE", required=False)
@click.argument("message", required=False)
@click.option("--type", "type_option", default=None, metavar="TYPE", help="the same as TYPE")
@click.option("--to", multiple=True, metavar="all|USER", help="for whom; repeat it, or part people by commas")
@click.option("--desc", default=None, help="one line about it")
@click.option("--id", "event_id", default=None, help="the producer's own id: a repeat is dropped")
@click.option(
    "--ttl", "ttl_s", type=int, default=None, metavar="SECONDS", help="how long it is worth anything"
)
@click.option("--collapse", default=None, metavar="KEY", help="take the place of earlier ones with this key")
@click.option(
    "--withdraw", default=None, metavar="KEY", help="take the earlier ones with this key away: no MESSAGE"
)
@click.option("--json", "as_json", is_flag=True, help="MESSAGE is JSON, not text")
@click.option("--file", type=click.File("rb"), help="read this file; - is standard input")
@with_target
def publish(
    target: Target,
    type_: str | None,
    message: str | None,
    type_option: str | None,
    file: BinaryIO | None,
    **given: Any,
) -> None:
    """Publish an event: TYPE MESSAGE --to all. Without MESSAGE, standard input or --file is read.

    With a TYPE, all of it is the message. Without one it is an event as JSON, or many, one a line (NDJSON).
    """
    if type_ is not None and type_option is not None:
        raise click.UsageError("TYPE is given twice, as an argument and as --type")
    name = type_ if type_option is None else type_option
    if name is not None and given["withdraw"] is not None:
        if message is not None or file is not None:
            raise click.UsageError("--withdraw takes no MESSAGE and no --file")
        _publish_one(target, _event(name, None, **given))
        return
    if name is not None and message is not None:
        if file is not None:
            raise click.UsageError("give MESSAGE or --file, not both")
        _publish_one(target, _event(name, message, **given))
        return
    source = _source(file, is_text=name is not None)
    if name is not None:
        _publish_one(target, _event(name, _text(source), **given))
        return
    if any(given.values()):
        raise click.UsageError(
            "--to, --desc, --id, --ttl, --collapse, --withdraw and --json need a TYPE; an event as JSON has"
            " its own"
        )
    _publish_all(target, source)


def _source(file: BinaryIO | None, *, is_text: bool) -> BinaryIO:
    """Where to read from. At a terminal nobody waits unless they were asked to, and then it is said."""
    if file is None and sys.stdin.isatty():
        raise click.UsageError("give TYPE and MESSAGE, or --file, or send events to standard input")
    source = sys.stdin.buffer if file is None else file
    if source.isatty():
        what = "the message" if is_text else "events as JSON, one a line"
        say(f"pushsse: reading {what}, from the terminal; Ctrl-D ends it", err=True)
    return source


def _text(source: BinaryIO) -> str:
    body = read_text(source)
    if body is None:
        raise Failed(f"the message has more than {MAX_BYTES} bytes")
    if not body:
        raise Failed("the message is empty: there was nothing to read")
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise Failed(f"the message isn't UTF-8: byte {error.start} is 0x{body[error.start]:02x}") from None


def _event(
    type_: str,
    message: str | None,
    *,
    to: tuple[str, ...],
    desc: str | None,
    event_id: str | None,
    ttl_s: int | None,
    collapse: str | None,
    withdraw: str | None,
    as_json: bool,
) -> bytes:
    """The event as JSON; a message that is JSON already stays as it is, to the last digit.

    Without a message it is one that takes others away.
    """
    names = [name for each in to for name in each.split(",") if name]
    if not names:
        raise click.UsageError("--to all, or --to USER, is missing")
    raw = None if message is None else one_line(message)
    if as_json and message is not None:
        try:
            json.loads(message, parse_int=str, parse_float=str)
        except (ValueError, RecursionError) as error:
            raise click.UsageError(f"MESSAGE isn't JSON: {error}") from None
        raw = message
    event: dict[str, object] = {"type": type_, "to": "all" if names == ["all"] else {"users": names}}
    optional = {"desc": desc, "id": event_id, "ttl_s": ttl_s, "collapse": collapse, "withdraw": withdraw}
    event |= {name: value for name, value in optional.items() if value is not None}
    if raw is None:
        return one_line(event).encode(errors="surrogateescape")
    return f'{one_line(event)[:-1]},"message":{raw}}}'.encode(errors="surrogateescape")


def _publish_one(target: Target, event: bytes) -> None:
    with target.client() as client:
        headers = {"content-type": "application/json"}
        result = answered(client.post("/v1/events", content=event, headers=headers))
    for event_id in result["ids"]:
        say(event_id)


@dataclass(slots=True)
class Count:
    """What became of the events of a file."""

    accepted: int = 0
    repeated: int = 0
    rejected: int = 0
    unknown: int = 0

    def accept(self, result: Any, lines: Sequence[FileLine]) -> None:
        """A call's answer: its ids, and the lines that it refused."""
        for event_id in result["ids"]:
            say(event_id)
        self.accepted += len(result["ids"])
        self.repeated += result.get("repeated", 0)
        for rejected in result["rejected"]:
            # The body had these lines alone, so the call counts them from 1.
            self.reject(lines[rejected["line"] - 1], one_line(rejected["errors"]))

    def reject(self, line: FileLine, why: str) -> None:
        """One line that is no event."""
        self.rejected += 1
        say(f"line {line.number}: {why}", err=True)

    def leave_open(self, lines: Sequence[FileLine], why: str) -> None:
        """Lines of which some were accepted, and nobody says which."""
        self.unknown += len(lines)
        say(f"lines {lines[0].number} to {lines[-1].number}: {why}", err=True)

    def __str__(self) -> str:
        repeated = f" ({self.repeated} repeated)" if self.repeated else ""
        unknown = f", {self.unknown} unknown" if self.unknown else ""
        return f"{self.accepted} accepted{repeated}, {self.rejected} rejected{unknown}"


def _publish_all(target: Target, source: BinaryIO) -> None:
    count = Count()
    last = 0
    try:
        with target.client() as client, progress("publishing: lines", prints=True) as advance:
            for lines in portions(source):
                sendable = [line for line in lines if line.body is not None]
                for line in lines:
                    if line.body is None:
                        count.reject(line, f"has more than {MAX_BYTES} bytes")
                if sendable:
                    _send(client, sendable, count)
                advance(lines[-1].number - last)
                last = lines[-1].number
    except NotLines as error:
        raise Failed(str(error)) from None
    except Failed as error:
        raise Failed(
            f"{error.message}; {count}; what comes after line {last} may not have been sent"
        ) from None
    say(str(count), err=True)
    if not count.accepted and not count.rejected:
        raise Failed("there was nothing to read: give events as JSON, one a line")
    if count.rejected or count.unknown:
        sys.exit(1)


def _send(client: httpx.Client, lines: Sequence[FileLine], count: Count) -> None:
    """Sends lines in one call. Refused as a whole they go in halves, until each one's own error is known."""
    body = b"\n".join(line.body or b"" for line in lines)
    is_one = b"\n" in body and len(lines) == 1
    headers = {"content-type": "application/json"} if is_one else _NDJSON
    response = client.post("/v1/events", content=body, headers=headers)
    response.read()
    if response.status_code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE and len(lines) > 1:
        # One event is too large for Kafka; the others are there, so nothing may be sent again.
        count.leave_open(lines, problem(response))
    elif response.status_code not in _REFUSED_EVENTS | {HTTPStatus.REQUEST_ENTITY_TOO_LARGE}:
        count.accept(answered(response), lines)
    elif len(lines) == 1:
        count.reject(lines[0], problem(response))
    else:
        half = len(lines) // 2
        _send(client, lines[:half], count)
        _send(client, lines[half:], count)


# `listen`


class _WithMessage(msgspec.Struct):
    message: msgspec.Raw = msgspec.Raw(b"")


class Over(Exception):
    """The command has done what it was asked to."""


@dataclass(slots=True)
class Listener:
    """Where a stream has got, and what is still wanted of it."""

    params: Mapping[str, str]
    count: int | None
    as_json: bool
    position: str = ""
    retry_s: float = 3.0
    failures: int = 0
    read_timeout_s: float = _READ_TIMEOUT_S
    seen: dict[str, None] = field(default_factory=dict)

    def listen(self, target: Target) -> None:
        """For ever, or until `count` events are there. Raises Over, Failed."""
        while True:
            try:
                with target.client(read_timeout_s=self.read_timeout_s) as client:
                    self._one_stream(client)
            except Failed as error:
                if not isinstance(error.__context__, httpx.TransportError) or not self.position:
                    raise
                say(f"{error.message}: coming back", err=True)
            self.failures += 1
            pause_s = self.retry_s * random.uniform(0.8, 1.2) * 1.5 ** min(self.failures - 1, 8)
            time.sleep(min(_MOST_RETRY_S, pause_s))

    def _one_stream(self, client: httpx.Client) -> None:
        headers = {"last-event-id": self.position} if self.position else {}
        with connect_sse(client, "GET", "/v1/stream", headers=headers, params=dict(self.params)) as source:
            response = source.response
            if response.status_code != httpx.codes.OK:
                response.read()
                if response.status_code in _REFUSED_FOR_GOOD or not self.position:
                    raise Failed(problem(response))
                say(f"{problem(response)}: coming back", err=True)
                return
            try:
                for event in source.iter_sse():
                    self._hear(event)
            except SSEError as error:
                raise Failed(str(error)) from None

    def _hear(self, event: ServerSentEvent) -> None:
        self.position = event.id or self.position
        if event.retry is not None:
            self.retry_s = event.retry / 1000
        data = _members(event.data)
        if data is None:
            return
        if event.event == "ready":
            self.failures = 0
            self.read_timeout_s = max(_READ_TIMEOUT_S, 3 * float(data.get("heartbeat_s", 0)))
        if event.event in _SERVICE or event.event == "exception" or event.event.startswith("pushsse."):
            self._service(event, data)
        elif self._is_new(str(data.get("id", ""))):
            self._show(event, data)

    def _service(self, event: ServerSentEvent, data: Mapping[str, Any]) -> None:
        name = event.event
        if self.as_json and name != "ping":
            self._show_json(event)
        elif name == "ready" and data.get("resume") == "gap":
            print_line(("gap", "fault"), ": events were missed that the server no longer has", err=True)
        elif name == "exception":
            print_line((str(data.get("code")), "warning"), f": {data.get('detail')}", err=True)
        elif name == WITHDRAW:
            print_line((str(data.get("ts", "")), "dim"), f"  withdrawn: [{data.get('withdraw')}]")
        elif name == "ack":
            print_line((f"{data.get('state')}: {_acked(data)}", "dim"))
        if name == "exception" and not data.get("retry", True):
            raise Failed(f"the stream ended for good: {data.get('code')}")

    def _is_new(self, event_id: str) -> bool:
        if event_id in self.seen:
            return False
        self.seen[event_id] = None
        if len(self.seen) > 10_000:
            del self.seen[next(iter(self.seen))]
        return True

    def _show_json(self, event: ServerSentEvent) -> None:
        # The data as it came, never decoded and encoded again: numbers keep their digits. A line end can
        # only be white space between its members here.
        data = event.data.replace("\n", " ")
        say_json(f'{{"event":{one_line(event.event)},"data":{data},"id":{one_line(self.position)}}}')

    def _show(self, event: ServerSentEvent, data: Mapping[str, Any]) -> None:
        if self.as_json:
            self._show_json(event)
        else:
            desc = f"  ({data['desc']})" if data.get("desc") else ""
            desc += f"  [{data['collapse']}]" if data.get("collapse") else ""
            name = str(data.get("type", event.event))
            message = _message(event.data, data)
            print_line((str(data.get("ts", "")), "dim"), "  ", (name, "name"), f"  {message}", (desc, "dim"))
        if self.count is not None:
            self.count -= 1
            if self.count <= 0:
                raise Over


def _members(text: str) -> Mapping[str, Any] | None:
    """The members of an event's data; None for what isn't an object. Numbers stay text: none is too long."""
    try:
        data = json.loads(text, parse_int=str, parse_float=str)
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, Mapping) else None


def _acked(data: Mapping[str, Any]) -> str:
    """What an ack is about."""
    ids = data.get("ids")
    return ", ".join(map(str, ids)) if isinstance(ids, list) else f"all up to {data.get('up_to')}"


def _message(text: str, data: Mapping[str, Any]) -> str:
    """The message: a text as such, anything else as the JSON that it came as."""
    try:
        raw = bytes(msgspec.json.decode(text.encode(errors="surrogatepass"), type=_WithMessage).message)
    except (msgspec.DecodeError, UnicodeError):
        raw = b""
    if not raw or raw.startswith(b'"'):
        message = data.get("message")
        return message if isinstance(message, str) else one_line(message)
    return raw.decode()


@click.command()
@click.option("--since", default=None, metavar="AGE", help="begin in the past, such as 30m")
@click.option("--types", default=None, metavar="A,B", help="these types of events only")
@click.option("--count", type=click.IntRange(min=1), default=None, help="end after so many events")
@click.option("--json", "as_json", is_flag=True, help="each event as one line of JSON, service events too")
@with_target
def listen(target: Target, since: str | None, types: str | None, count: int | None, as_json: bool) -> None:
    """Print a person's events as they come, for ever or --count of them."""
    wanted = {"since": since, "types": types}
    params = {name: value for name, value in wanted.items() if value is not None}
    try:
        Listener(params, count, as_json).listen(target)
    except Over:
        return
    except KeyboardInterrupt:
        sys.exit(130)
