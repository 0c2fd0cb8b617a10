"""`pushsse serve`: one node, or a supervisor of several workers that share the port.

Deliberate: `cli.running`, and with it every part of a node, is imported once the settings are read and the
port is had, so that what can't work is said at once.
"""

import errno
import socket
import sys
from importlib import import_module
from pathlib import Path

import click

from pushsse import listening
from pushsse.cli.options import Failed, read_settings, with_settings
from pushsse.settings import Settings


@click.command()
@with_settings()
def serve(config: Path | None, **options: object) -> None:
    """Run a node: streams, switches, questions, and its share of the Kafka topic."""
    settings = read_settings(config, options)
    try:
        with _reserved(settings) as listener:
            sys.exit(import_module("pushsse.cli.running").run(settings, listener))
    except KeyboardInterrupt:
        # Before the server took the signals over. 128 + SIGINT, as a shell says it.
        sys.exit(130)


def _reserved(settings: Settings) -> socket.socket:
    """The port, held for this process (and its workers). Raises Failed where somebody else has it."""
    try:
        return listening.reserved_socket(settings)
    except (OSError, UnicodeError) as error:
        # A name that no resolver would be asked about (too long, an empty label) is a UnicodeError.
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "no such host"
        raise Failed(
            f"can't listen on {settings.host} port {settings.port}: {reason}{_advice(error)}"
        ) from None


def _advice(error: Exception) -> str:
    """What to do about it, where that is clear."""
    if not isinstance(error, OSError) or isinstance(error, socket.gaierror):
        return "; choose another address with --host"
    if error.errno == errno.EADDRINUSE:
        return "; stop what listens there, or choose another port with --port"
    if error.errno == errno.EADDRNOTAVAIL:
        return "; no interface of this machine has that address, choose another with --host"
    if error.errno == errno.EACCES:
        return "; ports under 1024 need root or CAP_NET_BIND_SERVICE"
    return ""
