"""The command line: `serve`, and small clients of a running service for people and scripts.

The console script and `python -m pushsse` call `main`. A module a command; `options` has what they share.
"""

import sys

import click

from pushsse import __version__
from pushsse.cli.ask import ask
from pushsse.cli.doctor import doctor
from pushsse.cli.listen import listen
from pushsse.cli.migrate import migrate
from pushsse.cli.prefs import prefs
from pushsse.cli.publish import publish
from pushsse.cli.serve import serve, worker
from pushsse.cli.token import token
from pushsse.errors import PushsseError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__)
def cli() -> None:
    """pushsse: events from Kafka to people's open streams, through their own switches."""


for command in (serve, worker, publish, listen, ask, prefs, token, migrate, doctor):
    cli.add_command(command)


def main() -> None:
    """The console script."""
    try:
        cli()
    except PushsseError as error:
        click.echo(f"pushsse: {error}", err=True)
        sys.exit(1)
