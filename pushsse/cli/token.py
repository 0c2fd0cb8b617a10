"""`pushsse token`: a JWT for tests and scripts, signed with this machine's PUSHSSE_JWT_SECRET (HS256)."""

import time
from pathlib import Path

import click
import jwt

from pushsse.api.identity import SCOPES
from pushsse.cli.options import Failed, read_settings, with_settings
from pushsse.event import is_user
from pushsse.settings import seconds

_PREFIX = "pushsse:"
_SECRET_BYTES = 32


@click.command()
@click.option("--user", required=True, help="whom it is for")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    help=f"what it allows, of {' '.join(SCOPES)}; several by spaces  [default: the first three]",
)
@click.option("--expires", default="1h", metavar="AGE", help="how long it holds  [default: 1h]")
@with_settings("jwt_secret", "auth_user_claim")
def token(user: str, scopes: tuple[str, ...], expires: str, config: Path | None, **options: object) -> None:
    """Make a token for --user."""
    settings = read_settings(config, options)
    if not settings.jwt_secret:
        raise Failed(
            "PUSHSSE_JWT_SECRET isn't set: the service has development identity, where --user is enough"
        )
    if len(settings.jwt_secret.encode()) < _SECRET_BYTES:
        raise Failed(f"PUSHSSE_JWT_SECRET has fewer than {_SECRET_BYTES} bytes")
    if not is_user(user):
        raise click.UsageError(f"--user {user!r} isn't 1–128 characters without white space")
    claims: dict[str, object] = {settings.auth_user_claim: user, "exp": int(time.time() + _age(expires))}
    if words := _words(scopes):
        claims["scope"] = " ".join(words)
    click.echo(jwt.encode(claims, settings.jwt_secret, algorithm="HS256"))


def _age(text: str) -> float:
    try:
        return seconds(text)
    except ValueError as error:
        raise click.UsageError(f"--expires: {error}") from None


def _words(scopes: tuple[str, ...]) -> list[str]:
    words = [word.removeprefix(_PREFIX) for each in scopes for word in each.replace(",", " ").split()]
    for word in words:
        if word not in SCOPES:
            raise click.UsageError(f"--scope {word!r} is none of {', '.join(SCOPES)}")
    return [_PREFIX + word for word in words]
