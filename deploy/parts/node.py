"""A node: `pushsse serve` in a process of its own, set up by its environment."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from deploy.parts.part import Part
from deploy.parts.ports import answers

_REPOSITORY = Path(__file__).resolve().parents[2]


class Node(Part):
    """One node. `settings` are the PUSHSSE_* variables; those of our own environment don't reach it."""

    start_limit_s = 60.0
    # The drain: two seconds unready, ten for the streams, five for what else is open.
    stop_limit_s = 25.0

    def __init__(
        self,
        name: str,
        folder: Path,
        settings: Mapping[str, str],
        *,
        port: int | None = None,
        log: Path | None = None,
    ) -> None:
        super().__init__(name, folder, port=port, log=log)
        self.settings = dict(settings)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def command(self) -> Sequence[str]:
        return [*pushsse("serve"), "--host", "127.0.0.1", "--port", str(self.port)]

    def environment(self) -> Mapping[str, str]:
        return environment({**self.settings, "PUSHSSE_NODE": self.name})

    def is_ready(self) -> bool:
        request = b"GET /readyz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
        return b" 200 " in answers(self.port, request).partition(b"\r\n")[0]


def pushsse(*arguments: str) -> list[str]:
    """The command line of pushsse, as this Python has it."""
    return [sys.executable, "-m", "pushsse", *arguments]


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """Our environment, with these PUSHSSE_* variables and no others, and this repository's package."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("PUSHSSE_")}
    path = os.pathsep.join(filter(None, (str(_REPOSITORY), ours.get("PYTHONPATH", ""))))
    return {**ours, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **settings}
