"""Options that commands share: one for every setting, and how a bad one ends the command.

Settings are options here, variables (PUSHSSE_*) or lines of pushsse.toml; see settings.py.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import click
import msgspec

from pushsse import settings
from pushsse.cli.terminal import say
from pushsse.errors import SettingsError
from pushsse.settings import Settings

FILE = "pushsse.toml"
Command = Callable[..., Any]


class Failed(click.ClickException):
    """Ends the command with one line on standard error, and exit status 1."""

    def show(self, file: object = None) -> None:
        """One line, in the program's name."""
        say(f"pushsse: {self.message}", err=True)


class BadSetting(Failed):
    """A setting can't be used."""

    exit_code = 2


def with_settings(*names: str) -> Callable[[Command], Command]:
    """Gives a command --config and options for these settings; for all, if none is named."""

    def decorate(command: Command) -> Command:
        for name in reversed(names or tuple(settings.FIELDS)):
            command = _option(name)(command)
        return click.option(
            "--config", type=click.Path(path_type=Path), help=f"settings file  [default: {FILE}]"
        )(command)

    return decorate


def read_settings(config: Path | None, options: dict[str, object]) -> Settings:
    """The settings of this process. Raises BadSetting."""
    try:
        if config is not None and not config.exists():
            raise SettingsError(f"{config}: there is no such file")
        return settings.load(os.environ, options, file=config or Path(FILE))
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
        help=f"{text}{choices}  [{settings.variable(name)}]  [default: {shown or 'none'}]",
    )


def _are_words(arguments: tuple[object, ...]) -> bool:
    return bool(arguments) and all(isinstance(argument, str) for argument in arguments)
