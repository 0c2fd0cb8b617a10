"""`pushsse listen`: a person's stream in the shell. It comes back by itself, as a browser does.

Deliberate: an answer that isn't 200 to the first call ends the command, so that a script notices.
"""

import json
import random
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import click
import httpx
import msgspec
from httpx_sse import ServerSentEvent, SSEError, connect_sse

from pushsse.cli import Failed, one_line, say, say_json
from pushsse.cli.client import Target, problem, with_target
from pushsse.cli.terminal import print_line
from pushsse.event import RESERVED_TYPES, WITHDRAW

_SERVICE = RESERVED_TYPES - {"exception"}
# Three heartbeats of the default, and then some: a stream that is quieter than this is gone.
_READ_TIMEOUT_S = 60.0
_MOST_RETRY_S = 60.0
# The same call can never work; after any other status it may, later.
_REFUSED = frozenset({400, 401, 403})


class _Message(msgspec.Struct):
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
                if response.status_code in _REFUSED or not self.position:
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
        raw = bytes(msgspec.json.decode(text.encode(errors="surrogatepass"), type=_Message).message)
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
