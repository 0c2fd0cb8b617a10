"""A redis-server of the tests' own: on a free port, in a folder of its own, started, frozen, killed."""

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import RedisError


def program() -> str:
    """redis-server; skips without it, except in CI, where it must be there."""
    found = shutil.which("redis-server")
    if found is None:
        if os.environ.get("CI") == "true":
            pytest.fail("redis-server isn't installed")
        pytest.skip("redis-server isn't installed")
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RedisServer:
    """One process; its data stay in `folder` over restarts."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.admin = Redis(port=self.port, socket_timeout=10)
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [program(), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        command += ["--save", "", "--loglevel", "warning", *self._options]
        with open(self.folder / "redis.log", "ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        limit = time.monotonic() + 10
        while True:
            try:
                self.admin.ping()
                return
            except RedisError:
                if time.monotonic() > limit:
                    raise
                time.sleep(0.02)  # between two tries, never instead of looking

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def save_to(self, folder: Path) -> None:
        """Copies what is on disk by now."""
        shutil.copytree(self.folder, folder)

    def restore(self, folder: Path) -> None:
        """Puts an older state in place of the present one; the server must be down."""
        shutil.rmtree(self.folder)
        shutil.copytree(folder, self.folder)

    def kill(self) -> None:
        """As if the machine had gone away."""
        if self._process is not None:
            self.thaw()
            self._process.kill()
            self._process.wait(10)
            self._process = None
            self.admin.connection_pool.disconnect()

    def close(self) -> None:
        self.kill()
        self.admin.close()

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)
