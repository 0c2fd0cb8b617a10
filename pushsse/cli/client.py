"""Calls of a running service over HTTP, for the commands that are its clients."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import httpx

from pushsse.cli.options import Command, Failed

DEFAULT_URL = "http://127.0.0.1:8000"
_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Target:
    """Which service, and who is calling."""

    url: str
    token: str
    user: str
    ca: str

    @contextmanager
    def client(self, *, read_timeout_s: float = _TIMEOUT_S) -> Iterator[httpx.Client]:
        """A client whose failures end the command with one line."""
        headers = {"authorization": f"Bearer {self.token}"} if self.token else {}
        timeout = httpx.Timeout(_TIMEOUT_S, read=read_timeout_s)
        try:
            with httpx.Client(
                base_url=self.url, headers=headers, params=self._who(), timeout=timeout, verify=self._verify()
            ) as client:
                yield client
        except httpx.InvalidURL as error:
            raise Failed(f"--url {self.url!r} can't be used: {error}") from None
        except httpx.RequestError as error:
            raise Failed(f"{self.url}: {_reason(error)}") from None

    def _who(self) -> dict[str, str]:
        return {"user": self.user} if self.user else {}

    def _verify(self) -> Any:
        try:
            return httpx.create_ssl_context(verify=self.ca) if self.ca else True
        except OSError as error:
            raise Failed(f"--ca {self.ca}: {error.strerror}") from None


def with_target(command: Command) -> Command:
    """Gives a command the options that say which service, and who is calling."""

    def run(url: str, token: str, user: str, ca: Path | None, **options: Any) -> None:
        command(target=Target(url, token, user, str(ca or "")), **options)

    run.__doc__ = command.__doc__
    run.__name__ = command.__name__
    run.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    options: list[Callable[[Command], Command]] = [
        click.option("--url", envvar="PUSHSSE_URL", default=DEFAULT_URL, show_default=True, show_envvar=True),
        click.option("--token", envvar="PUSHSSE_TOKEN", default="", help="a JWT", show_envvar=True),
        click.option("--user", default="", help="who is calling, where identity is development"),
        click.option(
            "--ca",
            envvar="PUSHSSE_CA",
            type=click.Path(dir_okay=False, path_type=Path),
            help="certificate of the authority to trust",
            show_envvar=True,
        ),
    ]
    wrapped: Command = run
    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped


def answered(response: httpx.Response) -> Any:
    """The JSON of a good response. Raises Failed with the problem's code and detail."""
    response.read()
    if response.is_success:
        try:
            return response.json()
        except ValueError:
            raise Failed(f"{response.url.host}: the answer isn't JSON; is this pushsse?") from None
    raise Failed(problem(response))


def problem(response: httpx.Response) -> str:
    """What a refusal says, in one line (RFC 9457)."""
    try:
        body = response.json()
    except ValueError:
        body = None
    if isinstance(body, Mapping) and "code" in body:
        return f"{body['code']}: {body.get('detail', '')} (status {response.status_code})"
    return f"status {response.status_code} {response.reason_phrase}"


def _reason(error: httpx.RequestError) -> str:
    return str(error) or type(error).__name__
