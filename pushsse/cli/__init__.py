"""The command line: `serve`, and small clients of a running service for people and scripts.

The console script and `python -m pushsse` call `main`. `options` and `client` have what commands share.
Deliberate: a command's module is imported when the command is called. Importing all of them takes 0.7 s, and
a script that publishes one event needs none of a server's parts.
"""

import sys
from importlib import import_module

import click

from pushsse import __version__
from pushsse.cli.options import say
from pushsse.errors import PushsseError

# What the list of commands says about each, and its module in this package.
COMMANDS = {
    "serve": ("serve", "Run a node, or several workers of one."),
    "publish": ("publish", "Publish an event."),
    "listen": ("listen", "Print a person's events as they come."),
    "ask": ("client", "Ask a question and print the answer as it comes."),
    "prefs": ("client", "List a person's switches, or set some."),
    "token": ("admin", "Make a token."),
    "migrate": ("admin", "Bring the database's tables to this version."),
    "doctor": ("admin", "Try each dependency and say what is wrong."),
}
# The supervisor of workers calls it, people don't.
HIDDEN = {"worker": "running"}


class Commands(click.Group):
    """The commands by name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands that people call."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A command, imported from its module."""
        module = COMMANDS[cmd_name][0] if cmd_name in COMMANDS else HIDDEN.get(cmd_name)
        if module is None:
            return None
        command = getattr(import_module(f"{__name__}.{module}"), cmd_name)
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


def main() -> None:
    """The console script."""
    try:
        cli()
    except PushsseError as error:
        say(f"pushsse: {error}", err=True)
        sys.exit(1)
