"""What `pushsse serve` runs once it has the port: waits for the parts, then a node or the workers of one.

Called by `serve`. `worker` is what the supervisor starts; nobody else calls it.
"""

import asyncio
import logging
import os
import socket
import sys

import click

from pushsse import __version__, listening, logs, server
from pushsse.cli import dependencies
from pushsse.cli.banner import banner, parts
from pushsse.cli.options import BadSetting
from pushsse.cli.terminal import say
from pushsse.errors import SettingsError
from pushsse.settings import Settings, unknown
from pushsse.workers import supervisor
from pushsse.workers.worker import SupervisorGone, Worker

log = logging.getLogger("pushsse")


def run(settings: Settings, listener: socket.socket) -> int:
    """Serves until told to stop; the exit status. Raises BadSetting."""
    logs.configure(settings.log_level)
    port = listener.getsockname()[1]
    try:
        # Before the first word: what the settings name (a question file, a key) may be unusable.
        node = server.make_server(settings)
        _introduce(settings, port)
        asyncio.run(dependencies.wait(settings, lambda text: say(f"pushsse: {text}", err=True)))
        if settings.workers > 1:
            return supervisor.run(settings, port, ready=lambda: say(banner(settings, port), lines=True))
        return server.serve(node, listener, ready=lambda: say(banner(settings, port), lines=True))
    except SettingsError as error:
        raise BadSetting(str(error)) from None


def _introduce(settings: Settings, port: int) -> None:
    """Says in the log what is on, and what was set and isn't used."""
    log.info("pushsse %s, node %s, process %d", __version__, settings.node, os.getpid())
    for part, text in parts(settings, port).items():
        log.info("%-10s %s", part, text)
    for line in unknown(os.environ):
        log.warning("%s", line)


@click.command(hidden=True)
@click.option("--link", type=int, required=True)
def worker(link: int) -> None:
    """One of the processes of `serve --workers`; started by it, with an end of a socket pair."""
    with socket.socket(fileno=link) as supervised:
        supervised.set_inheritable(False)
        one = Worker(supervised)
        try:
            settings = one.settings()
            logs.configure(settings.log_level)
            node = server.make_server(settings)
        except SupervisorGone:
            sys.exit(1)
        except SettingsError as error:
            raise BadSetting(str(error)) from None
        with listening.listening_socket(settings) as listener:
            sys.exit(server.serve(node, listener, ready=one.ready, worker=one))
