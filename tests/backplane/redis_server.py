"""A redis-server of the tests' own, to be broken, with a client to look into it."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from redis import Redis as Client

from deploy.parts import PartMissing, Redis
from tests.parts import missing


class RedisServer(Redis):
    """`options` are redis-server's own, such as `--appendonly yes`; they outweigh the part's."""

    def __init__(self, folder: Path, *options: str) -> None:
        super().__init__(folder)
        self.admin = Client(port=self.port, socket_timeout=10)
        self.database = 0
        self._options = options

    @property
    def url(self) -> str:
        return super().url.removesuffix("0") + str(self.database)

    def command(self) -> Sequence[str]:
        return [*super().command(), *self._options]

    def start(self) -> None:
        try:
            super().start()
        except PartMissing as error:
            missing(error)

    def run(self, *command: str) -> object:
        """Runs any command."""
        return self.admin.execute_command(*command)  # type: ignore[no-untyped-call]

    def freeze(self) -> None:
        self.pause()

    def thaw(self) -> None:
        self.resume()

    def save_to(self, folder: Path) -> None:
        """Copies what is on disk by now."""
        shutil.copytree(self.folder, folder)

    def restore(self, folder: Path) -> None:
        """Puts an older state in place of the present one; the server must be down."""
        shutil.rmtree(self.folder)
        shutil.copytree(folder, self.folder)

    def kill(self) -> None:
        """As if the machine had gone away."""
        super().kill()
        self.admin.connection_pool.disconnect()

    def close(self) -> None:
        self.kill()
        self.admin.close()
