"""A PostgreSQL server of its own for the tests: started, stopped, frozen, and slow on demand."""

import asyncio
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg


def _as_postgres() -> list[str]:
    """PostgreSQL refuses to run as root."""
    return ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []


def binaries() -> Path | None:
    """Where PostgreSQL's programs are."""
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    return max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)


class Server:
    """A cluster in a temporary directory, on a free loopback port."""

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self._directory = Path(tempfile.mkdtemp(prefix="pushsse-pg-"))
        if os.getuid() == 0:
            shutil.chown(self._directory, "postgres")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        try:
            self._run("initdb", "-D", "data", "-A", "trust", "-U", "postgres", "--no-sync")
        except subprocess.SubprocessError:
            shutil.rmtree(self._directory)
            raise

    def url(self, database: str = "postgres") -> str:
        # Not the default `prefer`: where a connection is cancelled amid its TLS question, asyncpg leaves a
        # future that nobody reads, which the tests take for an error.
        return f"postgres://postgres@127.0.0.1:{self.port}/{database}?sslmode=disable"

    def start(self) -> None:
        options = f"-c listen_addresses=127.0.0.1 -p {self.port} -k {self._directory} -F"
        self._run("pg_ctl", "-D", "data", "-w", "-l", "log", "-o", options, "start")

    def stop(self) -> None:
        self._run("pg_ctl", "-D", "data", "-w", "-m", "immediate", "stop")

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def remove(self) -> None:
        self.thaw()
        self.stop()
        shutil.rmtree(self._directory)

    async def database(self) -> str:
        """The URL of a new, empty database."""
        name = f"test_{secrets.token_hex(6)}"
        connection = await asyncpg.connect(self.url())
        try:
            await connection.execute(f"CREATE DATABASE {name}")
        finally:
            await connection.close()
        return self.url(name)

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [*_as_postgres(), str(self._programs / program), *arguments],
            cwd=self._directory,
            check=True,
            stdout=subprocess.DEVNULL,
            timeout=60,
        )

    def _signal(self, number: signal.Signals) -> None:
        pid = (self._directory / "data" / "postmaster.pid").read_text().split()[0]
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for process in [pid, *children]:
            os.kill(int(process), number)


class Delay:
    """A TCP relay in front of a server, whose answers it holds back for `seconds`."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.port = 0

    @asynccontextmanager
    async def before(self, port: int) -> AsyncIterator[None]:
        async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            there, back = await asyncio.open_connection("127.0.0.1", port)
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._copy(reader, back, slow=False))
                    group.create_task(self._copy(there, writer, slow=True))
            except* OSError:
                pass

        server = await asyncio.start_server(relay, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield
        finally:
            server.close()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, slow: bool) -> None:
        try:
            while read := await reader.read(65536):
                if slow and self.seconds:
                    await asyncio.sleep(self.seconds)
                writer.write(read)
        finally:
            writer.close()
