"""`pushsse serve`: one node, or a supervisor of several workers that share the port.

`worker` is what the supervisor starts; nobody else calls it.
"""

import asyncio
import logging
import os
import socket
import sys
from pathlib import Path

import click

from pushsse import logs, server
from pushsse.cli import dependencies
from pushsse.cli.banner import banner
from pushsse.cli.options import BadSetting, Failed, read_settings, with_settings
from pushsse.errors import SettingsError
from pushsse.settings import Settings, unknown
from pushsse.workers import supervisor
from pushsse.workers.worker import Worker

log = logging.getLogger(__name__)


@click.command()
@with_settings()
def serve(config: Path | None, **options: object) -> None:
    """Run a node: streams, switches, questions, and its share of the Kafka topic."""
    settings = read_settings(config, options)
    logs.configure(settings.log_level)
    for line in unknown(os.environ):
        log.warning(line)
    with _reserved(settings) as listener:
        port = listener.getsockname()[1]
        _wait(settings)
        if settings.workers > 1:
            status = supervisor.run(settings, port, ready=lambda: click.echo(banner(settings, port)))
        else:
            status = _served(settings, listener)
    sys.exit(status)


@click.command(hidden=True)
@click.option("--folder", type=click.Path(path_type=Path), required=True)
@click.option("--index", type=int, required=True)
def worker(folder: Path, index: int) -> None:
    """One of the processes of `serve --workers`; started by it."""
    settings = supervisor.settings_of(folder, index)
    logs.configure(settings.log_level)
    with server.listening_socket(settings) as listener:
        link = Worker(folder / supervisor.SOCKET, index)
        try:
            status = server.serve(settings, listener, ready=link.ready, worker=link)
        except SettingsError as error:
            raise BadSetting(str(error)) from None
    sys.exit(status)


def _served(settings: Settings, listener: socket.socket) -> int:
    port = listener.getsockname()[1]
    try:
        return server.serve(settings, listener, ready=lambda: click.echo(banner(settings, port)))
    except SettingsError as error:
        raise BadSetting(str(error)) from None


def _reserved(settings: Settings) -> socket.socket:
    """The port, held for this process (and its workers). Raises Failed where somebody else has it."""
    try:
        if settings.workers == 1:
            return server.listening_socket(settings)
        return supervisor.reserved_socket(settings)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise Failed(f"can't listen on {settings.host} port {settings.port}: {reason}") from None


def _wait(settings: Settings) -> None:
    try:
        asyncio.run(dependencies.wait(settings, lambda text: click.echo(f"pushsse: {text}", err=True)))
    except SettingsError as error:
        raise BadSetting(str(error)) from None
    except KeyboardInterrupt:
        sys.exit(130)
