"""The command line: `serve`, and small clients of a running service for people and scripts.

The console script and `python -m pushsse` call `main`. A module a command; `options` has what they share.
Deliberate: a command's module is imported when it is called: a client needn't wait for a server's parts.
"""

import sys
from importlib import import_module

import click

from pushsse import __version__
from pushsse.cli.terminal import say
from pushsse.errors import PushsseError

# What the list of commands says about each; its module in this package has the same name, but for `worker`.
COMMANDS = {
    "serve": "Run a node, or several workers of one.",
    "publish": "Publish an event.",
    "listen": "Print a person's events as they come.",
    "ask": "Ask a question and print the answer as it comes.",
    "prefs": "List a person's switches, or set some.",
    "token": "Make a token.",
    "migrate": "Bring the database's tables to this version.",
    "doctor": "Try each dependency and say what is wrong.",
}
HIDDEN = {"worker": "running"}


class Commands(click.Group):
    """The commands by name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Those that people call."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """One of them, from its module."""
        if cmd_name not in COMMANDS and cmd_name not in HIDDEN:
            return None
        command = getattr(import_module(f"{__name__}.{HIDDEN.get(cmd_name, cmd_name)}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in --help, without importing them all."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(
    cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(__version__)
def cli() -> None:
    """pushsse: events from Kafka to people's open streams, through their own switches."""


def main() -> None:
    """The console script."""
    try:
        cli()
    except PushsseError as error:
        say(f"pushsse: {error}", err=True)
        sys.exit(1)
