"""The command line: `serve`, and small clients of a running service for people and scripts.

Settings are options here, variables (PUSHSSE_*) or lines of pushsse.toml; see settings.py.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import click
import msgspec

from pushsse import __version__, logs, settings
from pushsse.errors import PushsseError
from pushsse.settings import Settings

FILE = "pushsse.toml"


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__)
def cli() -> None:
    """pushsse: events from Kafka to people's open streams, through their own switches."""


def with_settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command an option for every setting."""
    for name, field in reversed(settings.FIELDS.items()):
        kind = field.type
        if get_origin(kind) is Annotated:
            text = next(m.description for m in get_args(kind)[1:] if isinstance(m, msgspec.Meta))
            kind = get_args(kind)[0]
        default = field.default
        shown = ",".join(default) if isinstance(default, tuple) else str(default)
        choices = "|".join(get_args(kind)) if all(isinstance(a, str) for a in get_args(kind)) else ""
        help_text = f"{text or name}{f' ({choices})' if choices else ''}  [{settings.variable(name)}]"
        command = click.option(
            f"--{name.replace('_', '-')}",
            name,
            metavar="VALUE",
            help=f"{help_text}  [default: {shown or 'none'}]",
        )(command)
    return click.option(
        "--config", type=click.Path(path_type=Path), default=None, help=f"settings file  [default: {FILE}]"
    )(command)


def read_settings(config: Path | None, options: dict[str, object]) -> Settings:
    """The settings of this process; a bad one ends it with one line."""
    try:
        if config is not None and not config.exists():
            raise settings.SettingsError(f"{config}: there is no such file")
        return settings.load(os.environ, options, file=config or Path(FILE))
    except settings.SettingsError as error:
        raise click.ClickException(str(error)) from None


@cli.command()
@with_settings
def serve(config: Path | None, **options: object) -> None:
    """Run a node: streams, switches, questions, and its share of the Kafka topic."""
    from pushsse.serving import run

    sys.exit(run(read_settings(config, options)))


def main() -> None:
    """The console script."""
    try:
        cli()
    except PushsseError as error:
        click.echo(f"pushsse: {error}", err=True)
        sys.exit(1)


__all__ = ["cli", "logs", "main"]
