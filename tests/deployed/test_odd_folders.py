"""The parts, and with them `make stack`, in a folder that a shell or a configuration file could trip over."""

import subprocess
import tempfile
from pathlib import Path

import httpx
import pytest

from deploy.parts import Kafka, Part, PartMissing, Postgres, Redis
from deploy.parts.nginx import Nginx
from deploy.whole import Stack
from tests.parts import missing

pytestmark = pytest.mark.real

ODD = "a b é 'c' \"d\""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / ODD
    made.mkdir()
    return made


def _twice(part: Part) -> None:
    """Started, stopped, started again: what it wrote the first time is read the second."""
    try:
        part.start()
    except PartMissing as error:
        missing(error)
    try:
        part.stop()
        part.start()
        assert part.running
    finally:
        part.remove()


def test_redis_starts_in_any_folder(folder: Path) -> None:
    _twice(Redis(folder / "redis", appendonly=True))


def test_postgres_starts_in_any_folder_and_where_temporary_files_are_far_down(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory(prefix="pushsse-odd-") as top:
        # Deeper than the path of a Unix socket may be, and open to the user whom PostgreSQL runs as.
        far = Path(top) / ("x" * 100)
        far.mkdir()
        Path(top).chmod(0o755)
        monkeypatch.setattr(tempfile, "tempdir", str(far))
        _twice(Postgres(folder / "postgres"))


@pytest.mark.long
def test_kafka_starts_in_any_folder(folder: Path) -> None:
    _twice(Kafka(folder / "kafka"))


def test_nginx_starts_in_any_folder(folder: Path) -> None:
    nginx = Nginx(folder / "nginx", ["127.0.0.1:1"])
    _twice(nginx)
    try:
        nginx.start()
        assert httpx.get(f"{nginx.url}/metrics", trust_env=False).status_code == 404
        assert nginx.access_log.exists()
    finally:
        nginx.remove()


def test_the_stacks_addresses_are_shell_lines(folder: Path) -> None:
    stack = Stack(folder, nodes=1)
    odd = "a b 'c' $HOME & d?e"
    stack.settings["PUSHSSE_JWT_SECRET"] = odd
    stack.write_files()
    said = subprocess.run(
        ["sh", "-c", '. "$1"; printf %s "$PUSHSSE_JWT_SECRET"', "sh", str(folder / "env")],
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    assert said.stdout == odd
