"""PostgreSQL: a cluster of our own on loopback, with a password, run by an unprivileged user (it insists)."""

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from deploy.parts.packages import find, install
from deploy.parts.part import Part, PartFailed

_LIMIT_S = 60
_USER = "pushsse"
_PREFIX = "pushsse-postgres-"


class Postgres(Part):
    """One cluster with the database `pushsse`; `create_database` makes more.

    Deliberate: as root the data are in a temporary directory, since the server's user may not reach ours.
    It doesn't wait for the disk (-F): data survive a kill of the server, not of the machine.
    """

    def __init__(self, folder: Path, *, port: int | None = None, log: Path | None = None) -> None:
        super().__init__("postgres", folder, port=port, log=log)
        self._password = secrets.token_hex(12)
        self._home: Path | None = None
        self._runs_as: pwd.struct_passwd | None = None

    @property
    def url(self) -> str:
        return self.url_of(_USER)

    def url_of(self, database: str) -> str:
        """The URL of one database."""
        # Not the default `prefer`: it asks for TLS, which isn't there, at each connection.
        return f"postgres://{_USER}:{self._password}@127.0.0.1:{self.port}/{database}?sslmode=disable"

    def create_database(self, name: str) -> str:
        """A new, empty database; its URL."""
        self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", _USER, name)
        return self.url_of(name)

    def prepare(self) -> None:
        if self._home is None:
            _programs()
            self._runs_as = _unprivileged()
            self._home = self._make_home()
        if not (self._home / "data" / "PG_VERSION").exists():
            self._initialize(self._home)

    def command(self) -> Sequence[str]:
        home = self._home or self.folder
        where = ["-D", str(home / "data"), "-p", str(self.port), "-h", "127.0.0.1", "-k", ""]
        return [str(_programs() / "postgres"), *where, "-F"]

    def is_ready(self) -> bool:
        asked = subprocess.run(
            [str(_programs() / "pg_isready"), "-q", "-t", "2", "-h", "127.0.0.1", "-p", str(self.port)],
            check=False,
            timeout=10,
        )
        return asked.returncode == 0

    def wait_ready(self) -> None:
        super().wait_ready()
        created = self.folder / "created"
        if not created.exists():
            self.create_database(_USER)
            created.touch()

    def remove(self) -> None:
        super().remove()
        if self._home is not None and self._home != self.folder:
            shutil.rmtree(self._home, ignore_errors=True)

    def user(self) -> int | None:
        return None if self._runs_as is None else self._runs_as.pw_uid

    def group(self) -> int | None:
        return None if self._runs_as is None else self._runs_as.pw_gid

    def stop_signal(self) -> signal.Signals:
        # "Fast": SIGTERM waits for all clients to leave by themselves.
        return signal.SIGINT

    def _make_home(self) -> Path:
        if self._runs_as is None:
            return self.folder
        home = Path(tempfile.mkdtemp(prefix=_PREFIX))
        os.chown(home, self._runs_as.pw_uid, self._runs_as.pw_gid)
        return home

    def _initialize(self, home: Path) -> None:
        secret = home / "password"
        secret.touch(0o600)
        secret.write_text(self._password)
        if self._runs_as is not None:
            os.chown(secret, self._runs_as.pw_uid, self._runs_as.pw_gid)
        how = ("-U", _USER, "-A", "scram-sha-256", f"--pwfile={secret}", "-E", "UTF8", "--no-locale", "-N")
        self._run("initdb", "-D", str(home / "data"), *how)

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(_programs() / program), *arguments],
            check=False,
            capture_output=True,
            text=True,
            timeout=_LIMIT_S,
            cwd=self._home,
            env={**os.environ, "PGPASSWORD": self._password},
            user=self.user(),
            group=self.group(),
            extra_groups=None if self.user() is None else [],
        )
        if done.returncode:
            raise PartFailed(f"{program} failed: {(done.stderr or done.stdout).strip()}")


def is_home(folder: Path) -> bool:
    """Whether a folder is a temporary one of some cluster of ours."""
    return folder.name.startswith(_PREFIX) and folder.parent == Path(tempfile.gettempdir())


def _programs() -> Path:
    """Where PostgreSQL's programs are: Debian keeps the server's out of PATH. Raises PartMissing."""
    if (found := _installed()) is None:
        install(["postgresql"])
        found = _installed()
    if found is None:
        raise PartFailed("initdb isn't there, though Debian's package postgresql is installed")
    return found


def _installed() -> Path | None:
    versions = [place for place in Path("/usr/lib/postgresql").glob("*/bin") if (place / "initdb").exists()]
    if versions:
        return max(versions, key=lambda place: float(place.parent.name))
    on_path = find("initdb")
    return Path(on_path).resolve().parent if on_path else None


def _unprivileged() -> pwd.struct_passwd | None:
    """Who runs the server: us, unless we are root."""
    if os.getuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise PartFailed("we are root, and there is neither a user postgres nor nobody to run PostgreSQL")
