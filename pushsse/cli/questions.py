"""Questions and their answers: `pushsse ask`, and `pushsse desk` for those that wait for people.

`ask` prints the answer as it comes. `desk` lists what waits, reads it, answers it, gives it back; it needs a
token with the scope pushsse:answer. Text of people is printed through `say`, which escapes what could move a
terminal's cursor.
"""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import click
import httpx
from httpx_sse import connect_sse

from pushsse.cli import Failed, one_line, say, say_json
from pushsse.cli.client import ListsByDefault, Target, answered, in_path, problem, with_target
from pushsse.cli.terminal import Cell, is_terminal, plain, print_line, print_table

_READ_TIMEOUT_S = 60.0
_LOOK_S = 1.0
_GIVE_UP_S = 300.0
# What a question is while its answer is still to come, by itself.
_GOES_ON = frozenset({"pending", "answering"})
_MOST_CONVERSATIONS = 100
_MOST_QUESTIONS = 100


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


# `desk`


@click.group(cls=ListsByDefault)
def desk() -> None:
    """Answer the questions that wait for people; `list`, if no command is given.

    Needs a token with the scope pushsse:answer. Who lists what waits is told of what comes on their own
    stream, for an hour or until the token ends: `pushsse listen --json` shows the ids, `read` the text.
    """


@desk.command("list")
@click.option("--json", "as_json", is_flag=True, help="each conversation as one line of JSON")
@with_target
def list_(target: Target, as_json: bool) -> None:
    """List the conversations that people have taken over, the newest question first."""
    params = {"status": "handed_over", "limit": str(_MOST_CONVERSATIONS)}
    with target.client() as client:
        found = answered(client.get("/v1/conversations", params=params))
    waiting = found["conversations"]
    if as_json:
        for each in waiting:
            say_json(one_line(each))
    elif not waiting:
        say("nothing waits", err=True)
    elif is_terminal():
        print_table(("CONVERSATION", "WAITING", "USER", "TITLE", "REASON"), [_row(each) for each in waiting])
    else:
        for each in waiting:
            name, count, user, title, reason = map(plain, _row(each))
            say(f"{name}  {count} waiting  {user}: {title}" + (f"  ({reason})" if reason else ""))
    if found["more"]:
        say(f"there are more than {_MOST_CONVERSATIONS}", err=True)


def _row(conversation: Mapping[str, Any]) -> tuple[Cell, ...]:
    held = conversation["handed_over"]
    waiting: Cell = (str(held["waiting"]), "warning" if held["waiting"] else "dim")
    return (
        (conversation["id"], "name"),
        waiting,
        conversation["user"],
        conversation["title"],
        held["reason"] or "",
    )


@desk.command()
@click.argument("conversation")
@click.option("--json", "as_json", is_flag=True, help="each question as one line of JSON")
@with_target
def read(target: Target, conversation: str, as_json: bool) -> None:
    """Print a conversation, the oldest question first; what waits has its id before it."""
    params = {"conversation": conversation, "limit": str(_MOST_QUESTIONS)}
    with target.client() as client:
        found = answered(client.get("/v1/questions", params=params))
    if found["more"]:
        say(f"there are more than these {_MOST_QUESTIONS}", err=True)
    for question in reversed(found["questions"]):
        if as_json:
            say_json(one_line(question))
        else:
            show(question)


@desk.command()
@click.argument("question")
@click.argument("text", nargs=-1, required=True)
@click.option("--name", default=None, help="who answers, as the person sees it  [default: you]")
@click.option("--json", "as_json", is_flag=True, help="the answered question as JSON")
@with_target
def answer(target: Target, question: str, text: tuple[str, ...], name: str | None, as_json: bool) -> None:
    """Answer the QUESTION with this id. With `-` for TEXT it is read from standard input."""
    said = _said(text, name)
    with target.client() as client:
        done = answered(client.post(f"/v1/questions/{in_path(question)}/answer", json=said))
    if as_json:
        say_json(one_line(done))
    else:
        say(f"{done['id']}: answered as {done['answer']['by']['name']}")


@desk.command()
@click.argument("conversation")
@click.argument("text", nargs=-1, required=True)
@click.option("--name", default=None, help="who writes, as the person sees it  [default: you]")
@click.option("--json", "as_json", is_flag=True, help="the message as JSON")
@with_target
def write(target: Target, conversation: str, text: tuple[str, ...], name: str | None, as_json: bool) -> None:
    """Send a message in a CONVERSATION that no question has asked for. `-` as in `answer`."""
    said = _said(text, name)
    with target.client() as client:
        path = f"/v1/conversations/{in_path(conversation)}/messages"
        done = answered(client.post(path, json=said))
    if as_json:
        say_json(one_line(done))
    else:
        say(f"{done['id']}: sent as {done['answer']['by']['name']}")


@desk.command()
@click.argument("conversation")
@click.option("--json", "as_json", is_flag=True, help="the conversation as JSON")
@with_target
def release(target: Target, conversation: str, as_json: bool) -> None:
    """Let the answerers answer in a CONVERSATION again. Questions that still wait there fail."""
    with target.client() as client:
        done = answered(client.post(f"/v1/conversations/{in_path(conversation)}/release"))
    if as_json:
        say_json(one_line(done))
    else:
        say(f"{done['id']}: released")


def _said(text: Sequence[str], name: str | None) -> dict[str, str]:
    whole = sys.stdin.read() if list(text) == ["-"] else " ".join(text)
    return {"text": whole.strip()} | ({"name": name} if name is not None else {})


def show(question: Mapping[str, Any]) -> None:
    """Prints one question of a conversation with its answer, or why it has none."""
    waits = question["status"] == "handed_over"
    if question["text"]:
        mark = f"[{question['id']}] " if waits else ""
        say(f"{question['asked_at']}  > {mark}{question['text']}", lines=True)
    if question["error"] is not None:
        say(f"  {question['error']['code']}: {question['error']['detail']}")
    elif question["answer"] is not None and not waits:
        # Nobody yet while it grows.
        by = question["answer"]["by"]
        who = f"({question['status']})" if by is None else f"{by['name']} ({by['kind']})"
        say(f"  {who}: {question['answer']['text']}", lines=True)
