"""What `pushsse serve` says of itself: the parts in use at the start, two lines to paste when it is ready."""

import shlex
import shutil
import sys
from pathlib import Path

from pushsse import __version__
from pushsse.settings import Settings
from pushsse.shown import shown


def banner(settings: Settings, port: int) -> str:
    """A few lines for whoever started it."""
    url = base_url(settings, port)
    listen, publish = _curl(settings, url)
    return "\n".join(
        (
            f"pushsse {__version__} is ready: {url}/  (stream: {url}/v1/stream)",
            f"  listen:   {listen}",
            f"  publish:  {publish}",
        )
    )


def base_url(settings: Settings, port: int) -> str:
    """Where a client on this machine finds it."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)
    if ":" in host and not host.startswith("["):
        host = f"[{host}]"
    return f"http://{host}:{port}"


def parts(settings: Settings, port: int) -> dict[str, str]:
    """Which parts are in use, by their names, without any secret."""
    redis = f"{shown(settings.redis_url)} prefix {settings.redis_prefix}"
    kafka = f"{shown(settings.kafka_bootstrap)} topic {settings.kafka_topic} group {settings.group}"
    return {
        "listening": base_url(settings, port)
        + (f", {settings.workers} workers" if settings.workers > 1 else ""),
        "database": shown(settings.database_url),
        "backplane": redis if settings.redis_url else "memory: one process alone",
        "intake": f"Kafka {kafka}" if settings.kafka_bootstrap else "POST /v1/events",
        "answerer": "faq: (the example file)" if settings.answerer == "faq:" else shown(settings.answerer),
        "identity": "development: ?user=NAME, from this machine alone" if settings.development else "JWT",
    }


def _curl(settings: Settings, url: str) -> tuple[str, str]:
    if settings.development:
        return (
            f'curl -N "{url}/v1/stream?user=ann"',
            f'curl -d "hello" "{url}/v1/events?user=ann&type=news&to=all"',
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
