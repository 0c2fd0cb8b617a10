"""What `pushsse serve` does once it has bound the port: waits for its dependencies, then serves.

Called by `serve`, which imports it late. With --workers it runs the supervisor, which starts the hidden
command `worker` for each of them.
"""

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack

import click

from pushsse import __version__, build, logs, server
from pushsse.backplane.redis.canary import probe
from pushsse.cli import BadSetting, say
from pushsse.cli.lan import invitation
from pushsse.cli.serve import banner, listening_sockets, parts
from pushsse.database import Database
from pushsse.errors import DatabaseUnavailable, SettingsError
from pushsse.logs import shown
from pushsse.retry import Backoff
from pushsse.settings import Settings, unknown
from pushsse.workers import supervisor
from pushsse.workers.worker import SupervisorGone, Worker

logger = logging.getLogger("pushsse")


def run(settings: Settings, listeners: Sequence[socket.socket]) -> int:
    """Serves until told to stop, on the public address first; the exit status. Raises BadSetting."""
    logs.configure(settings.log_level, settings.log_format)
    port = listeners[0].getsockname()[1]

    def ready() -> None:
        out = sys.stdout
        if settings.lan == "on":
            # Its own text alone, with colours.
            click.echo(invitation(settings, port, colours=out.isatty(), encoding=out.encoding or "utf-8"))
        else:
            say(banner(settings, port), lines=True)

    try:
        # First of all: the file, key or certificate that a setting names may be unusable. Then nothing is
        # waited for.
        build.check(settings)
        _introduce(settings, port)
        asyncio.run(wait(settings, lambda text: say(f"pushsse: {text}", err=True)))
        if settings.workers > 1:
            return supervisor.run(settings, port, ready=ready)
        return server.serve(build.build(settings), listeners, ready=ready)
    except SettingsError as error:
        raise BadSetting(str(error)) from None


def _introduce(settings: Settings, port: int) -> None:
    """Logs which parts are in use, and which variables look like settings and aren't."""
    logger.info("pushsse %s, node %s, process %d", __version__, settings.node, os.getpid())
    for part, text in parts(settings, port).items():
        logger.info("%-10s %s", part, text)
    for line in unknown(os.environ):
        logger.warning("%s", line)


@click.command(hidden=True)
@click.option("--link", type=int, required=True)
def worker(link: int) -> None:
    """Serve as one of the processes of `serve --workers`, which passes an end of a socket pair."""
    with socket.socket(fileno=link) as supervised:
        supervised.set_inheritable(False)
        one = Worker(supervised)
        try:
            settings = one.settings()
            logs.configure(settings.log_level, settings.log_format)
            node = build.build(settings, worker=one)
        except SupervisorGone:
            sys.exit(1)
        except SettingsError as error:
            raise BadSetting(str(error)) from None
        with ExitStack() as open_sockets:
            listeners = [open_sockets.enter_context(each) for each in listening_sockets(settings)]
            sys.exit(server.serve(node, listeners, ready=one.ready))


Tell = Callable[[str], None]
# Tries a dependency once: what is missing, empty if nothing is.
Attempt = Callable[[], Awaitable[str]]


async def wait(settings: Settings, tell: Tell) -> None:
    """Returns once the database answers and has all migrations, and Redis answers.

    `tell` gets a line for each thing that is waited for. The embedded parts need no waiting. Kafka isn't
    waited for: the node tries it again by itself, and serves streams meanwhile. Raises SettingsError.
    """
    if not settings.is_sqlite:
        async with Database(settings.database_url, cool_s=0.0) as database:
            await _wait(lambda: _database(database, shown(settings.database_url)), tell)
    if settings.redis_url:
        await _wait(lambda: _redis(settings), tell)


async def _wait(attempt: Attempt, tell: Tell) -> None:
    backoff = Backoff(first_s=0.2, most_s=2.0)
    said = ""
    while missing := await attempt():
        what, _, _ = missing.partition(": ")
        if what != said:
            tell(f"waiting for {missing}")
            said = what
        await asyncio.sleep(backoff.next_s())


async def _database(database: Database, where: str) -> str:
    try:
        encoding = await database.encoding()
        pending = await database.pending_migrations()
    except DatabaseUnavailable as error:
        return f"the database at {where}: {error}"
    if encoding != "UTF8":
        raise SettingsError(
            f"PUSHSSE_DATABASE_URL: {where} is encoded in {encoding}, which can't hold every name:"
            " make a database with CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0"
        )
    return f"`pushsse migrate`: {where} lacks {', '.join(pending)}" if pending else ""


async def _redis(settings: Settings) -> str:
    missing = await probe(settings.redis_url, settings.redis_prefix)
    return f"Redis at {shown(settings.redis_url)}: {missing}" if missing else ""
