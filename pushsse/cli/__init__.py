"""The command line: `serve`, and small clients of a running service for people and scripts.

The console script and `python -m pushsse` call `main`. A module a command; `options` has what they share.
"""

import sys

import click

from pushsse import __version__
from pushsse.cli.serve import serve, worker
from pushsse.errors import PushsseError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__)
def cli() -> None:
    """pushsse: events from Kafka to people's open streams, through their own switches."""


for command in (serve, worker):
    cli.add_command(command)


def main() -> None:
    """The console script."""
    try:
        cli()
    except PushsseError as error:
        click.echo(f"pushsse: {error}", err=True)
        sys.exit(1)
