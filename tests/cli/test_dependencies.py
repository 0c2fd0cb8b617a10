"""doctor and serve with a Redis that is there, that is set up wrongly, and that comes late."""

from pathlib import Path

import pytest

from tests.backplane.redis_server import RedisServer
from tests.cli.running import process, pushsse, until


def _line(folder: Path, url: str) -> str:
    ended = pushsse(folder, "doctor", PUSHSSE_REDIS_URL=url)
    return next(line for line in ended.stdout.splitlines() if line.split()[1] == "redis")


@pytest.mark.parametrize(
    ("options", "verdict", "word"),
    [
        (("--maxmemory-policy", "noeviction", "--appendonly", "yes"), "ok", "noeviction"),
        (("--maxmemory-policy", "noeviction", "--appendonly", "no"), "warning", "appendonly"),
        (("--maxmemory-policy", "allkeys-lru", "--appendonly", "yes"), "fault", "allkeys-lru"),
    ],
)
def test_doctor_judges_how_redis_is_set_up(
    tmp_path: Path, options: tuple[str, ...], verdict: str, word: str
) -> None:
    server = RedisServer(tmp_path, *options)
    server.start()
    try:
        line = _line(tmp_path, server.url)
    finally:
        server.close()
    assert line.startswith(verdict)
    assert word in line


def test_serve_goes_on_when_the_redis_that_it_waits_for_is_there(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    with process(tmp_path, "serve", "--port", "0", PUSHSSE_REDIS_URL=server.url):
        until(lambda: "waiting for Redis" in (tmp_path / "err.log").read_text(), "word")
        server.start()
        try:
            until(lambda: "publish:" in (tmp_path / "out.log").read_text(), "banner")
            # Said once, not at each try.
            assert (tmp_path / "err.log").read_text().count("waiting for Redis") == 1
        finally:
            server.close()


def test_doctor_names_a_misspelt_variable_with_the_nearest_setting(tmp_path: Path) -> None:
    said = pushsse(tmp_path, "doctor", PUSHSSE_REDIS_URI="redis://localhost").stdout
    assert "warning settings  PUSHSSE_REDIS_URI is not a setting: did you mean PUSHSSE_REDIS_URL?" in said
    assert "ok      settings" in pushsse(tmp_path, "doctor").stdout
