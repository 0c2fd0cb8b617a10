"""Redis, as a node wants it: nothing is evicted, and by choice every write is in the append-only file."""

from collections.abc import Sequence
from pathlib import Path

from deploy.parts.packages import program
from deploy.parts.part import Part
from deploy.parts.ports import answers


class Redis(Part):
    """One redis-server. `appendonly` keeps its data over a stop, `appendfsync="always"` also over a kill."""

    def __init__(
        self,
        folder: Path,
        *,
        port: int | None = None,
        log: Path | None = None,
        appendonly: bool = False,
        appendfsync: str = "everysec",
    ) -> None:
        super().__init__("redis", folder, port=port, log=log)
        self._appendonly = appendonly
        self._appendfsync = appendfsync

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def command(self) -> Sequence[str]:
        options = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            # Where it is started.
            "dir": ".",
            "save": "",
            "appendonly": "yes" if self._appendonly else "no",
            "appendfsync": self._appendfsync,
            "maxmemory-policy": "noeviction",
        }
        named = [word for name, value in options.items() for word in (f"--{name}", value)]
        return [program("redis-server", "redis-server"), *named]

    def is_ready(self) -> bool:
        # While it reads its file it answers -LOADING.
        return answers(self.port, b"PING\r\n").startswith(b"+PONG")
