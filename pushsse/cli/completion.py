"""`pushsse completion`: the script that lets a shell complete commands and options, which click writes."""

import os
from pathlib import PurePath

import click
from click.shell_completion import get_completion_class

from pushsse.cli import Failed, cli

_SHELLS = ("bash", "zsh", "fish")
# Where click looks for what a shell asks: the program's name, as it derives the variable from it.
_VARIABLE = "_PUSHSSE_COMPLETE"


@click.command()
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
