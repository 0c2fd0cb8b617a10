"""Commands that call a running service over HTTP: what they share, and `ask`, `kick`.

`listen` and `publish` use it, too. A call that fails ends the command with one line (`Failed`).
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click
import httpx
from httpx_sse import connect_sse

from pushsse.cli import Command, Failed, one_line, say, say_json
from pushsse.cli.terminal import is_terminal, print_line

DEFAULT_URL = "http://127.0.0.1:8000"
_TIMEOUT_S = 30.0


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


_READ_TIMEOUT_S = 60.0
_LOOK_S = 1.0
_GIVE_UP_S = 300.0
# What a question is while its answer is still to come, by itself.
_GOES_ON = frozenset({"pending", "answering"})


@dataclass(slots=True)
class Printed:
    """The answer as it is printed so far."""

    text: str = ""

    def become(self, text: str) -> None:
        """Prints what is new. An answer that doesn't continue what is printed begins on a new line."""
        if text.startswith(self.text):
            say(text[len(self.text) :], nl=False, lines=True)
        else:
            say(f"\n{text}", nl=False, lines=True)
        self.text = text

    def grow(self, start: int, text: str) -> None:
        """`answer.delta`: `start` counts UTF-16 code units."""
        kept = self.text.encode("utf-16-le")[: 2 * start].decode("utf-16-le", "ignore")
        self.become(kept + text)

    def end(self, answer: Any) -> None:
        """The whole answer."""
        self.become(answer["text"])
        say("")
        sources = [part for part in answer["parts"] if part["type"] == "source"]
        for link in [*answer["links"], *sources]:
            print_line(f"  {link['title']}: ", (link["url"], "name"))
        for suggestion in answer["suggestions"]:
            say(f"  - {suggestion}")


@click.command()
@click.argument("text", nargs=-1, required=True)
@click.option("--conversation", default=None, help="go on in this conversation")
@click.option("--json", "as_json", is_flag=True, help="the question with its answer, as one line of JSON")
@with_target
def ask(target: Target, text: tuple[str, ...], conversation: str | None, as_json: bool) -> None:
    """Ask a question and print the answer as it comes."""
    question = {"text": " ".join(text)} | ({"conversation": conversation} if conversation else {})
    printed = None if as_json else Printed()
    with target.client(read_timeout_s=_READ_TIMEOUT_S) as client:
        with connect_sse(client, "POST", "/v1/questions", json=question) as source:
            if not source.response.is_success:
                source.response.read()
                raise Failed(problem(source.response))
            location = source.response.headers.get("location", "")
            try:
                for event in source.iter_sse():
                    if printed is not None and _is_over(event.event, json.loads(event.data), printed):
                        return
            except httpx.TransportError:
                say("\nthe connection was lost; the answer goes on without it", err=True, lines=True)
        _wait(client, location, printed)


def _is_over(name: str, data: Any, printed: Printed) -> bool:
    if name == "answer.delta":
        printed.grow(data["from"], data["text"])
        part = data.get("part") or {}
        if part.get("type") == "status" and is_terminal(err=True):
            print_line((part["text"], "dim"), err=True)
    elif name == "answer" and not data["truncated"]:
        printed.end(data)
        return True
    elif name == "question" and data["status"] == "handed_over":
        say(f"people answer this: {data['id']}, in the conversation {data['conversation']}", err=True)
        return True
    elif name == "answer.error":
        raise Failed(f"{data['code']}: {data['detail']}")
    return False


def _wait(client: httpx.Client, location: str, printed: Printed | None) -> None:
    """Asks for the rest of an answer whose reply ended early, or which is too long for an event.

    Without `printed` it prints the question as JSON.
    """
    until = time.monotonic() + _GIVE_UP_S
    while time.monotonic() < until:
        question = answered(client.get(quote(location)))
        if printed is None and question["status"] not in _GOES_ON:
            say_json(one_line(question))
        if question["error"] is not None:
            raise Failed(f"{question['error']['code']}: {question['error']['detail']}")
        if question["status"] not in _GOES_ON:
            if printed is not None and question["answer"] is not None:
                printed.end(question["answer"])
            return
        time.sleep(_LOOK_S)
    raise Failed(f"there is no answer yet; it will be at {location}")


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
        detail = f"  {': '.join(told)}" if told else ""
        print_line(
            (step["at"], "dim"), "  ", (f"{step['what']:<12}" if detail else step["what"], "name"), detail
        )
    for each in found["incomplete"]:
        print_line((f"({each})", "warning"))
    print_line(f"{found['user']}, {found['event']}: ", (found["verdict"].replace("_", " "), "bold"))
