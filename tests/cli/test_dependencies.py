"""doctor and serve with a Redis that is there, that is set up wrongly, and that comes late."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.backplane.redis_server import RedisServer
from tests.cli.running import process, pushsse, served
from tests.waiting import until

pytestmark = pytest.mark.real


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


NODE = "~pushsse:* &pushsse:* +@all -@admin -@dangerous"
USERS = {
    "no scripts": (f"{NODE} -@scripting", "fault", "ACL SETUSER"),
    "no channel": (f"{NODE} resetchannels", "fault", "ACL SETUSER"),
    "another channel": (f"{NODE} resetchannels &other:*", "fault", "ACL SETUSER"),
    "no keys": (f"{NODE} resetkeys", "fault", "ACL SETUSER"),
    "only reads": (f"{NODE} -@write", "fault", "ACL SETUSER"),
    "no info": (NODE, "warning", "INFO isn't allowed"),
    "all that is needed": (f"{NODE} +info", "ok", "noeviction"),
}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    options = ("--maxmemory-policy", "noeviction", "--appendonly", "yes")
    server = RedisServer(tmp_path_factory.mktemp("guarded"), *options)
    server.start()
    yield server
    server.close()


@pytest.mark.parametrize("case", USERS)
def test_doctor_names_the_right_that_a_user_of_redis_lacks(
    tmp_path: Path, guarded: RedisServer, case: str
) -> None:
    rules, verdict, word = USERS[case]
    guarded.run("ACL", "SETUSER", "node", "reset", "on", ">secret", *rules.split())
    line = _line(tmp_path, guarded.url.replace("redis://", "redis://node:secret@"))
    assert line.startswith(verdict), line
    assert word in line
    assert "secret" not in line


def test_serve_says_which_right_is_missing_and_goes_on_when_it_is_granted(
    tmp_path: Path, guarded: RedisServer
) -> None:
    setuser = ("ACL", "SETUSER", "late", "reset", "on", ">secret", *NODE.split())
    guarded.run(*setuser, "resetchannels")
    url = guarded.url.replace("redis://", "redis://late:secret@")
    with process(tmp_path, "serve", "--port", "0", PUSHSSE_REDIS_URL=url):
        until(lambda: "ACL SETUSER late" in (tmp_path / "err.log").read_text(), "word")
        assert "publish:" not in (tmp_path / "out.log").read_text()
        guarded.run(*setuser)
        until(lambda: "publish:" in (tmp_path / "out.log").read_text(), "banner")


def test_doctor_says_what_a_password_and_a_replica_are_about(tmp_path: Path, guarded: RedisServer) -> None:
    assert "look at the user's name" in _line(tmp_path, guarded.url.replace("redis://", "redis://node:x@"))
    replica = RedisServer(tmp_path / "replica", "--replicaof", "127.0.0.1", str(guarded.port))
    replica.start()
    try:
        assert "read-only replica" in _line(tmp_path, replica.url)
        replica.run("REPLICAOF", "NO", "ONE")
        replica.admin.config_set("requirepass", "secret")
        assert "wants a password" in _line(tmp_path, replica.url)
    finally:
        replica.close()


def test_the_metric_says_that_redis_takes_nothing(tmp_path: Path, guarded: RedisServer) -> None:
    server = RedisServer(tmp_path / "redis")
    server.start()
    available = "pushsse_backplane_available 1.0"
    try:
        with served(tmp_path, PUSHSSE_REDIS_URL=server.url) as node:

            def metrics() -> str:
                return httpx.get(f"{node.url}/metrics", trust_env=False).text

            until(lambda: available in metrics(), "1")
            server.run("REPLICAOF", "127.0.0.1", str(guarded.port))
            until(lambda: available not in metrics(), "0")
            server.run("REPLICAOF", "NO", "ONE")
            until(lambda: available in metrics(), "1")
            assert node.process.poll() is None
    finally:
        server.close()


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
