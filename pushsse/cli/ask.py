"""`pushsse ask`: a question, and its answer as it grows, in the reply to POST /v1/questions."""

import json
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import click
import httpx
from httpx_sse import connect_sse

from pushsse.cli.client import Target, answered, problem, with_target
from pushsse.cli.options import Failed
from pushsse.cli.terminal import say

_READ_TIMEOUT_S = 60.0
_LOOK_S = 1.0
_GIVE_UP_S = 300.0


@dataclass(slots=True)
class Printed:
    """What is on the screen of an answer that grows."""

    text: str = ""

    def become(self, text: str) -> None:
        """Prints what is new; an answer that was taken back begins on a line of its own."""
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
        for link in answer["links"]:
            say(f"  {link['title']}: {link['url']}")
        for suggestion in answer["suggestions"]:
            say(f"  - {suggestion}")


@click.command()
@click.argument("text", nargs=-1, required=True)
@click.option("--conversation", default=None, help="go on in this conversation")
@with_target
def ask(target: Target, text: tuple[str, ...], conversation: str | None) -> None:
    """Ask a question and print the answer as it comes."""
    question = {"text": " ".join(text)} | ({"conversation": conversation} if conversation else {})
    printed = Printed()
    with target.client(read_timeout_s=_READ_TIMEOUT_S) as client:
        with connect_sse(client, "POST", "/v1/questions", json=question) as source:
            if not source.response.is_success:
                source.response.read()
                raise Failed(problem(source.response))
            location = source.response.headers.get("location", "")
            try:
                for event in source.iter_sse():
                    if _is_over(event.event, json.loads(event.data), printed):
                        return
            except httpx.TransportError:
                say("\nthe connection was lost; the answer goes on without it", err=True, lines=True)
        _wait(client, location, printed)


def _is_over(name: str, data: Any, printed: Printed) -> bool:
    if name == "answer.delta":
        printed.grow(data["from"], data["text"])
    elif name == "answer" and not data["truncated"]:
        printed.end(data)
        return True
    elif name == "answer.error":
        raise Failed(f"{data['code']}: {data['detail']}")
    return False


def _wait(client: httpx.Client, location: str, printed: Printed) -> None:
    """The rest of an answer whose reply ended early, or was too long for it."""
    until = time.monotonic() + _GIVE_UP_S
    while time.monotonic() < until:
        question = answered(client.get(quote(location)))
        if question["error"] is not None:
            raise Failed(f"{question['error']['code']}: {question['error']['detail']}")
        if question["status"] == "answered":
            printed.end(question["answer"])
            return
        time.sleep(_LOOK_S)
    raise Failed(f"there is no answer yet; it will be at {location}")
