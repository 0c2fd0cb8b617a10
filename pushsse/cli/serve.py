"""`pushsse serve`, up to the moment at which it has the port; and what it says about itself.

Deliberate: `cli/running`, and with it every part of a node, is imported only after the settings are read and
the port is bound. A bad setting or a port that is taken is so reported within 0.2 s.
"""

import errno
import shlex
import shutil
import socket
import sys
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path

import click
import msgspec

from pushsse import __version__
from pushsse.cli import Failed, read_settings, with_settings
from pushsse.logs import safe_url
from pushsse.settings import Settings


@click.command()
@with_settings()
def serve(config: Path | None, **options: object) -> None:
    """Run a node: streams, switches, questions, and its share of the Kafka topic."""
    settings = read_settings(config, options)
    try:
        with ExitStack() as open_sockets:
            listeners = [open_sockets.enter_context(_reserved(settings))]
            if (internal := settings.internal) is not None:
                listeners.append(open_sockets.enter_context(_reserved(internal)))
                settings = at_internal_port(settings, listeners[-1].getsockname()[1])
            sys.exit(import_module("pushsse.cli.running").run(settings, listeners))
    except KeyboardInterrupt:
        # The server hadn't taken the signals over yet. 128 + SIGINT, as shells have it.
        sys.exit(130)


def _reserved(settings: Settings) -> socket.socket:
    """The port, bound for this process and its workers. Raises Failed with what to do."""
    try:
        return reserved_socket(settings)
    except (OSError, UnicodeError) as error:
        # A host name that is too long or has an empty label is a UnicodeError, and no resolver is asked.
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


# Accepted sockets inherit these (tcp(7)). A client that is gone without a word, or doesn't read, is noticed:
# after 20 s of silence plus 3 probes, or 25 s after bytes that nobody has acknowledged; with a ping each
# 15 s, within 40 s. The kernel would let the send buffer grow to 4 MiB, which a slow reader would hold.
_SOCKET_OPTIONS = (
    (socket.SOL_SOCKET, socket.SO_SNDBUF, 128 * 1024),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
)
_LINUX_OPTIONS = (
    ("TCP_KEEPIDLE", 20),
    ("TCP_KEEPINTVL", 5),
    ("TCP_KEEPCNT", 3),
    ("TCP_USER_TIMEOUT", 25_000),
)


def listening_socket(settings: Settings) -> socket.socket:
    """The socket to accept on, bound and not listening yet. Raises OSError."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if settings.workers > 1:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        for level, option, value in _SOCKET_OPTIONS:
            listener.setsockopt(level, option, value)
        for name, value in _LINUX_OPTIONS:
            if hasattr(socket, name):
                listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        listener.bind((settings.host, settings.port))
    except BaseException:
        listener.close()
        raise
    return listener


def at_internal_port(settings: Settings, port: int) -> Settings:
    """The settings with the port of the internal address that was bound, where that was 0."""
    host = settings.internal_listen.rpartition(":")[0]
    return msgspec.structs.replace(settings, internal_listen=f"{host}:{port}")


def listening_sockets(settings: Settings) -> list[socket.socket]:
    """The sockets of the public address and, if there is one, of the internal one. Raises OSError."""
    wanted = [each for each in (settings, settings.internal) if each is not None]
    return [listening_socket(each) for each in wanted]


def reserved_socket(settings: Settings) -> socket.socket:
    """The socket of `listening_socket`, whose port no other service has. Raises OSError."""
    if settings.workers == 1:
        return listening_socket(settings)
    # With SO_REUSEPORT alone, binding a port that another service of this user shares that way would succeed.
    with listening_socket(msgspec.structs.replace(settings, workers=1)) as alone:
        port = alone.getsockname()[1]
    return listening_socket(msgspec.structs.replace(settings, port=port))


def banner(settings: Settings, port: int) -> str:
    """What is printed when the service is ready, with two lines to paste."""
    url = base_url(settings, port)
    listen, publish = _curl(settings, url)
    lines = [
        f"pushsse {__version__} is ready: {url}/  (stream: {url}/v1/stream)",
        f"  listen:   {listen}",
        f"  publish:  {publish}",
    ]
    if (internal := internal_url(settings)) is not None:
        lines.insert(1, f"  internal: {internal}  (metrics, readiness, calls of administrators)")
    return "\n".join(lines)


def base_url(settings: Settings, port: int) -> str:
    """The service's URL for a client on this machine."""
    # Nothing is bound here.
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)  # nosec B104
    if ":" in host and not host.startswith("["):
        host = f"[{host}]"
    return f"http://{host}:{port}"


def internal_url(settings: Settings) -> str | None:
    """The URL of the internal address; None without one."""
    internal = settings.internal
    return None if internal is None else base_url(internal, internal.port)


def parts(settings: Settings, port: int) -> dict[str, str]:
    """Which parts are in use, by their names, without any secret."""
    redis = f"{safe_url(settings.redis_url)} prefix {settings.redis_prefix}"
    kafka = f"{safe_url(settings.kafka_bootstrap)} topic {settings.kafka_topic} group {settings.group}"
    for source in settings.kafka:
        kafka += f"; {source.format} from {', '.join(source.topics)}"
    return {
        "listening": base_url(settings, port)
        + (f", {settings.workers} workers" if settings.workers > 1 else ""),
        **({"internal": internal} if (internal := internal_url(settings)) is not None else {}),
        "database": safe_url(settings.database_url),
        "backplane": redis if settings.redis_url else "memory: one process alone",
        "intake": f"Kafka {kafka}" if settings.kafka_bootstrap else "POST /v1/events",
        **({"outbox": _outboxes(settings)} if settings.outbox else {}),
        "answerer": _answerers(settings),
        "identity": "development: ?user=NAME, from this machine alone"
        if settings.development
        else " and ".join(_proofs(settings)),
    }


def _outboxes(settings: Settings) -> str:
    """The tables whose rows become events."""
    return ", ".join(
        f"{each.table} in {safe_url(each.database_url or settings.database_url)}" for each in settings.outbox
    )


def _answerers(settings: Settings) -> str:
    """Who answers questions, in order."""
    if not settings.answerers:
        return "nobody: new questions are refused" if not settings.people_answer_all else "people alone"
    urls = [each.url for each in settings.answerers]
    return ", then ".join("faq: (the example file)" if url == "faq:" else safe_url(url) for url in urls)


def _proofs(settings: Settings) -> list[str]:
    """How people say who they are."""
    named = {
        "JWT": settings.jwt_secret and settings.lan == "off",
        "JWT with a key of this run": settings.lan == "on",
        f"JWT with keys of {safe_url(settings.jwks_url)}": settings.jwks_url,
        f"sessions of {safe_url(settings.auth_url)}": settings.auth_url,
    }
    return [name for name, value in named.items() if value]


def _curl(settings: Settings, url: str) -> tuple[str, str]:
    if settings.development:
        return (
            f'curl -N "{url}/v1/stream?user=ann"',
            f'curl -d "hello" "{url}/v1/events?user=ann&type=news&to=all"',
        )
    if not settings.jwt_secret and not settings.jwks_url:
        event = """'{"type": "news", "to": "all", "message": "hello"}'"""
        return (
            f'curl -N -H "Cookie: $COOKIE" "{url}/v1/stream"',
            f'curl -H "Cookie: $COOKIE" -H "Origin: {url}" --json {event} "{url}/v1/events"',
        )
    if not settings.jwt_secret:
        return (
            f'curl -N -H "Authorization: Bearer $TOKEN" "{url}/v1/stream"',
            f'curl -H "Authorization: Bearer $TOKEN" -d "hello" "{url}/v1/events?type=news&to=all"',
        )
    # With the secret in the environment, these lines want the same environment; no token is printed.
    token = f"$({_program()} token --user {{}} --scope {{}})"
    return (
        f'curl -N -H "Authorization: Bearer {token.format("ann", "stream")}" "{url}/v1/stream"',
        f'curl -H "Authorization: Bearer {token.format("ops", "publish")}" -d "hello"'
        f' "{url}/v1/events?type=news&to=all"',
    )


def _program() -> str:
    """How this program is called from the shell that started it."""
    here = Path(sys.executable).with_name("pushsse")
    if shutil.which("pushsse") == str(here):
        return "pushsse"
    return shlex.quote(str(here)) if here.exists() else f"{shlex.quote(sys.executable)} -m pushsse"
