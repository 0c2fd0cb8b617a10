"""pgbouncer in transaction mode before a PostgreSQL of the tests."""

import pwd
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from deploy.parts import PartMissing, Postgres
from deploy.parts.packages import program
from deploy.parts.ports import free_port
from tests.parts import missing
from tests.waiting import until


@contextmanager
def pgbouncer(postgres: Postgres, folder: Path) -> Iterator[int]:
    """Its port, while the context lasts; any user may connect."""
    try:
        found = program("pgbouncer", "pgbouncer")
    except PartMissing as error:
        missing(error)
    where, port = urlsplit(postgres.url), free_port()
    configuration = folder / "pgbouncer.ini"
    configuration.write_text(
        f"[databases]\n* = host={where.hostname} port={where.port} user={where.username}"
        f" password={where.password}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nauth_type = any\n"
        "pool_mode = transaction\ndefault_pool_size = 3\nunix_socket_dir =\n"
    )
    # It doesn't run as root, and may then not reach our folder: it is given the file as its standard input.
    nobody = pwd.getpwnam("nobody")
    log = folder / "log"
    with configuration.open() as given, log.open("w") as out:
        process = subprocess.Popen(
            [found, "/dev/stdin"],
            stdin=given,
            stdout=out,
            stderr=out,
            user=nobody.pw_uid,
            group=nobody.pw_gid,
        )
    try:
        until(lambda: "listening on" in log.read_text(), "pgbouncer")
        yield port
    finally:
        process.terminate()
        process.wait(10)
