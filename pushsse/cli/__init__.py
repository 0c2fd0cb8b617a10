"""The command line: `serve`, and small clients of a running service for people and scripts.

The console script and `python -m pushsse` call `main`. Here is `completion`, too, the script that lets
a shell complete commands and options; click writes it. Below is what the commands share: an option for every
setting, errors of one line, and printing.

Deliberate:
- A command's module is imported when the command is called. Importing all of them takes 0.7 s, and a script
  that publishes one event needs none of a server's parts.
- Text from elsewhere is printed through `say`: on a terminal, control characters and marks of writing
  direction are escaped, since a message could otherwise move the cursor, set the title, fill the clipboard
  (OSC 52), or pass for a line of this program. In a pipe or a file everything is as it came. `say_json` keeps
  the JSON value in both.
"""

import json
import os
import re
import sys
from collections.abc import Callable
from importlib import import_module
from keyword import iskeyword
from pathlib import Path, PurePath
from typing import Annotated, Any, TextIO, get_args, get_origin

import click
import msgspec
from click.shell_completion import get_completion_class

from pushsse import __version__, settings
from pushsse.errors import PushsseError, SettingsError
from pushsse.logs import CONTROL, visible
from pushsse.settings import Settings

Command = Callable[..., Any]
# What the list of commands says about each, and its module in this package; "" for this one.
COMMANDS = {
    "serve": ("serve", "Run a node, or several workers of one."),
    "publish": ("events", "Publish an event."),
    "listen": ("events", "Print a person's events as they come."),
    "ask": ("questions", "Ask a question and print the answer as it comes."),
    "desk": ("questions", "Answer the questions that wait for people."),
    "prefs": ("preferences", "List a person's switches, set some, import or export everybody's."),
    "types": ("preferences", "List the catalogue of types, set or delete one."),
    "explain": ("client", "Say why a person got an event, or didn't."),
    "top": ("client", "Show what all nodes do, live."),
    "kick": ("client", "End a person's streams, and revoke their tokens."),
    "token": ("admin", "Make a token."),
    "outbox": ("admin", "Print the SQL of a table whose rows become events."),
    "migrate": ("admin", "Bring the database's tables to this version."),
    "try": ("kafka", "Show what becomes of a topic's last records."),
    "dead": ("kafka", "Look through dead letters, and send them again."),
    "doctor": ("admin", "Try each dependency and say what is wrong."),
    "completion": ("", "Print what makes a shell complete commands and options."),
}
# The supervisor of workers calls it, people don't.
HIDDEN = {"worker": "running"}
_SHELLS = ("bash", "zsh", "fish")
# Where click looks for what a shell asks: the program's name, as it derives the variable from it.
_VARIABLE = "_PUSHSSE_COMPLETE"


class Commands(click.Group):
    """The commands by name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands that people call."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A command, imported from its module."""
        module = COMMANDS[cmd_name][0] if cmd_name in COMMANDS else HIDDEN.get(cmd_name)
        if not module:
            return super().get_command(ctx, cmd_name)
        # `try` is a word of Python's.
        function = f"{cmd_name}_" if iskeyword(cmd_name) else cmd_name
        command = getattr(import_module(f"{__name__}.{module}"), function)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands in --help, without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.command(
    cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(__version__)
def cli() -> None:
    """pushsse: events from Kafka to people's open streams, through their own switches."""


@cli.command()
@click.argument("shell", type=click.Choice(_SHELLS), required=False)
def completion(shell: str | None) -> None:
    """Print the script for SHELL, by default the one that you use.

    For bash: source <(pushsse completion bash), in ~/.bashrc. For zsh the same in ~/.zshrc, for fish:
    pushsse completion fish > ~/.config/fish/completions/pushsse.fish
    """
    name = shell or PurePath(os.environ.get("SHELL", "")).name
    found = get_completion_class(name)
    if found is None:
        raise Failed(f"the shell {name!r} can't be completed for: name one of {', '.join(_SHELLS)}")
    click.echo(found(cli, {}, "pushsse", _VARIABLE).source(), nl=False)


def main() -> None:
    """The console script."""
    try:
        cli(prog_name="pushsse")
    except PushsseError as error:
        _say_failed(str(error))
        sys.exit(1)


# Options and errors


class Failed(click.ClickException):
    """Ends the command with one line on standard error, and exit status 1."""

    def show(self, file: object = None) -> None:
        """One line, in the program's name."""
        _say_failed(self.message)


class BadSetting(Failed):
    """A setting can't be used."""

    exit_code = 2


def with_settings(*names: str) -> Callable[[Command], Command]:
    """Gives a command --config and options for these settings; for all, if none is named."""

    def decorate(command: Command) -> Command:
        for name in reversed(names or tuple(settings.FIELDS)):
            command = _option(name)(command)
        return click.option(
            "--config", type=click.Path(path_type=Path), help=f"settings file  [default: {settings.FILE}]"
        )(command)

    return decorate


def read_settings(config: Path | None, options: dict[str, object]) -> Settings:
    """The settings of this process. Raises BadSetting."""
    try:
        if config is not None and not config.exists():
            raise SettingsError(f"{config}: there is no such file")
        return settings.load(os.environ, options, file=config or settings.FILE)
    except SettingsError as error:
        raise BadSetting(str(error)) from None


def _option(name: str) -> Callable[[Command], Command]:
    field = settings.FIELDS[name]
    kind = field.type
    text = name
    if get_origin(kind) is Annotated:
        kind, *metas = get_args(kind)
        text = next((meta.description for meta in metas if isinstance(meta, msgspec.Meta)), None) or name
    choices = f" ({'|'.join(get_args(kind))})" if _are_words(get_args(kind)) else ""
    default = field.default
    shown = ",".join(default) if isinstance(default, tuple) else str(default)
    return click.option(
        f"--{name.replace('_', '-')}",
        name,
        metavar="VALUE",
        # `--lan` alone is `--lan on`.
        is_flag=False,
        flag_value="on" if set(get_args(kind)) == {"on", "off"} else None,
        help=f"{text}{choices}  [{settings.variable(name)}]  [default: {shown or 'none'}]",
    )


def _are_words(arguments: tuple[object, ...]) -> bool:
    return bool(arguments) and all(isinstance(argument, str) for argument in arguments)


# Printing


def say(text: str, *, err: bool = False, nl: bool = True, lines: bool = False) -> None:
    """Prints a text for people: escaped on a terminal, as it is elsewhere. `lines` lets line ends through."""
    stream = _stream(err=err)
    shown = visible(text, lines=lines) if stream.isatty() else text
    _write(shown, stream, err=err, nl=nl)


def say_json(text: str) -> None:
    """Prints a line of JSON as it is; on a terminal, control characters are written as JSON escapes."""
    stream = sys.stdout
    if stream.isatty():
        text = CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    try:
        text.encode(stream.encoding or "utf-8")
    except UnicodeEncodeError:
        # A lone surrogate, or an encoding that isn't UTF-8: the JSON escape is the same value.
        text = re.sub(r"[^\x00-\x7f]", lambda found: json.dumps(found[0])[1:-1], text)
    _write(text, stream, err=False, nl=True)


def one_line(value: object) -> str:
    """A value as JSON in one line."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _say_failed(text: str) -> None:
    """The line that a command which failed ends with."""
    name = "pushsse: "
    if sys.stderr.isatty() and not os.environ.get("NO_COLOR"):
        name = click.style(name, fg="red")
    _write(name, sys.stderr, err=True, nl=False)
    say(text, err=True)


def _stream(*, err: bool) -> TextIO:
    return sys.stderr if err else sys.stdout


def _write(text: str, stream: TextIO, *, err: bool, nl: bool) -> None:
    encoding = stream.encoding or "utf-8"
    text = text.encode(encoding, "backslashreplace").decode(encoding)
    # `color`: click takes escape sequences out of what goes into a pipe, where it is to be exact.
    click.echo(text, err=err, nl=nl, color=True)
