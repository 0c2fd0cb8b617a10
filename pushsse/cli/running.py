"""What `pushsse serve` does once it has bound the port: waits for its dependencies, then serves.

Called by `serve`, which imports it late. With --workers it runs the supervisor, which starts the hidden
command `worker` for each of them. With --lan it prints an `invitation`: how to come in from the local
network, by a code that a phone reads. The key is made for this run (`settings.load`), so nothing else lets
anybody in.

Deliberate: the code has colours of its own, since a phone's camera may not read one that is light on dark;
its token stands after the #, which no browser sends and no server logs; and where the terminal's encoding has
no such blocks (GBK has half of them), its link is printed.
"""

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import ExitStack
from ipaddress import ip_address

import click
import segno

from pushsse import __version__, build, logs, server
from pushsse.api.identity import SCOPE_PREFIX, SCOPES
from pushsse.api.identity.tokens import signed
from pushsse.backplane.redis.commands import probe
from pushsse.cli import BadSetting, say
from pushsse.cli.serve import banner, base_url, listening_sockets, parts
from pushsse.database import Database
from pushsse.errors import DatabaseUnavailable, SettingsError
from pushsse.logs import safe_url
from pushsse.retry import Backoff
from pushsse.settings import Settings, unknown
from pushsse.workers import supervisor
from pushsse.workers.worker import SupervisorGone, Worker

logger = logging.getLogger("pushsse")
# How long the tokens of an invitation are good.
_LIVES_S = 3600
# The name that whoever scans the code has.
GUEST = "phone"
OWNER = "me"
EVERYTHING = " ".join(SCOPE_PREFIX + each for each in SCOPES)
# Nothing is sent there (RFC 5737): the system only says from which address it would be.
_ELSEWHERE = ("192.0.2.1", 9)
# Two rows of a QR code to a line: light above and below, above, below, neither.
_BLOCKS = {(1, 1): "█", (1, 0): "▀", (0, 1): "▄", (0, 0): " "}
_BLOCKS_USED = "".join(_BLOCKS.values())
_MARGIN = 2
_LIGHT_ON_DARK, _PLAIN = "\033[97;40m", "\033[0m"


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
            await _wait(lambda: _database(database, safe_url(settings.database_url)), tell)
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
    return f"Redis at {safe_url(settings.redis_url)}: {missing}" if missing else ""


# The invitation of --lan


def invitation(settings: Settings, port: int, *, colours: bool, encoding: str = "utf-8") -> str:
    """What is printed when the service is ready; `colours` for a terminal."""
    here, url = base_url(settings, port), network_url(settings, port)
    minutes = token_lives_s(settings) // 60
    link = f"{url}/#token={token(settings, GUEST)}"
    has_blocks = _BLOCKS_USED.encode(encoding, "ignore").decode(encoding) == _BLOCKS_USED
    lines = [
        f"pushsse {__version__} is ready on this network: {url}/",
        f"  {'Scan' if has_blocks else 'Open'} this with a phone in the same network."
        f' It is then "{GUEST}", for {minutes} minutes:',
        "",
        *(qr_code(link, colours=colours) if has_blocks else [f"  {link}"]),
        "",
        "  publish:",
        f"    TOKEN={token(settings, OWNER, EVERYTHING)}",
        f'    curl -H "Authorization: Bearer $TOKEN" -d "hello" "{here}/v1/events?type=news&to=all"',
        f"  The page at {here}/ takes this token, too. It may do everything: keep it to yourself.",
    ]
    if _is_here_alone(url):
        lines.insert(1, "  No network was found: only this machine has this address. --host names another.")
    return "\n".join(lines)


def qr_code(text: str, *, colours: bool) -> list[str]:
    """A QR code (ISO/IEC 18004) of a text, as lines of a terminal."""
    code = segno.make(text, error="l", micro=False, boost_error=False)
    rows = [[0 if dark else 1 for dark in row] for row in code.matrix]
    begin, end = (_LIGHT_ON_DARK, _PLAIN) if colours else ("", "")
    return [f"  {begin}{line}{end}" for line in _qr_lines(rows)]


def _qr_lines(rows: Sequence[Sequence[int]]) -> Iterable[str]:
    width = len(rows[0]) + 2 * _MARGIN
    empty = [1] * width
    side = [1] * _MARGIN
    all_rows = [empty] * _MARGIN + [[*side, *row, *side] for row in rows] + [empty] * _MARGIN
    if len(all_rows) % 2:
        all_rows.append(empty)
    for upper, lower in zip(all_rows[::2], all_rows[1::2], strict=True):
        yield "".join(_BLOCKS[pair] for pair in zip(upper, lower, strict=True))


def token(settings: Settings, user: str, scope: str = "") -> str:
    """A token for as long as `token_lives_s` says; without a scope it is that of anybody."""
    return signed(settings, user, scope=scope, lives_s=token_lives_s(settings))[0]


def token_lives_s(settings: Settings) -> int:
    """An hour, or as long as a token may be valid."""
    return int(min(_LIVES_S, settings.token_max_s))


def network_url(settings: Settings, port: int) -> str:
    """The service's URL for another machine of the network."""
    host = settings.host
    try:
        if ip_address(host).is_unspecified:
            host = _own_address()
    except ValueError:
        # A name.
        pass
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _own_address() -> str:
    """This machine's address in its network; 127.0.0.1 without one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        try:
            asked.connect(_ELSEWHERE)
        except OSError:
            return "127.0.0.1"
        return str(asked.getsockname()[0])


def _is_here_alone(url: str) -> bool:
    return url.startswith(("http://127.", "http://localhost", "http://[::1]"))
