"""`PUSHSSE_INTERNAL_LISTEN`: administrators' calls, metrics and readiness on an address of their own."""

import re
import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import jwt
import pytest

from deploy.parts import Nginx
from pushsse.api.calls import CALLS
from pushsse.errors import SettingsError
from pushsse.settings import load
from tests.backplane.redis_server import RedisServer
from tests.cli.running import Served, pushsse, served
from tests.deployed.conftest import run_nginx

pytestmark = pytest.mark.real
SECRET = "a secret of more than thirty-two bytes, as it has to be"
INTERNAL = [call for call in CALLS if call.is_internal]
PUBLIC = [call for call in CALLS if not call.is_internal]


def bearer(user: str, scope: str) -> dict[str, str]:
    claims = {"sub": user, "exp": time.time() + 36_000, "iat": int(time.time()), "scope": f"pushsse:{scope}"}
    return {"authorization": f"Bearer {jwt.encode(claims, SECRET)}"}


ROOT, ANN = bearer("root", "admin"), bearer("ann", "stream")


@dataclass
class Apart:
    """A service with an internal address."""

    served: Served
    public: httpx.Client
    internal: httpx.Client


@contextmanager
def apart(folder: Path, *arguments: str, **settings: str) -> Iterator[Apart]:
    address = "127.0.0.1:0"
    if arguments:
        # Workers bind it by themselves, one after the other.
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = f"127.0.0.1:{free.getsockname()[1]}"
    given = {"PUSHSSE_JWT_SECRET": SECRET, "PUSHSSE_INTERNAL_LISTEN": address, **settings}
    with served(folder, *arguments, **given) as running:
        found = re.search(r"internal: (http://127\.0\.0\.1:\d+) ", running.printed)
        assert found is not None, running.printed
        assert f"internal   {found[1]}" in running.logged
        with (
            httpx.Client(base_url=running.url, trust_env=False) as public,
            httpx.Client(base_url=found[1], trust_env=False) as internal,
        ):
            yield Apart(running, public, internal)


def path(call_path: str) -> str:
    return call_path.replace("{user:path}", "gone").replace("{id}", "x").replace("{type}", "news")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Apart]:
    with apart(tmp_path_factory.mktemp("internal")) as running:
        yield running


def test_what_is_internal_is_on_the_internal_address_alone(service: Apart) -> None:
    assert {call.path for call in INTERNAL} >= {"/metrics", "/docs", "/readyz", "/v1/users/{user:path}/kick"}
    for call in INTERNAL:
        for method in (call.method, "PUT"):
            outside = service.public.request(method, path(call.path), headers=ROOT)
            assert (outside.status_code, outside.json()["code"]) == (404, "not_found")
            assert "allow" not in outside.headers
        inside = service.internal.request(call.method, path(call.path), headers=ROOT)
        if inside.is_error:
            # It was reached, and wants a body, or a type that is there.
            assert inside.json()["code"] in ("not_json", "type_unknown"), (call.path, inside.text)


@pytest.mark.parametrize("odd", ["/metrics/", "//metrics", "/%6detrics", "/v1/../metrics", "/readyz?x=1"])
def test_no_other_spelling_finds_it_outside(service: Apart, odd: str) -> None:
    with socket.create_connection(("127.0.0.1", service.public.base_url.port or 0)) as raw:
        raw.sendall(f"GET {odd} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        assert raw.makefile("rb").readline().startswith(b"HTTP/1.1 404")


def test_no_header_makes_a_request_internal(service: Apart) -> None:
    internal = str(service.internal.base_url).removeprefix("http://").rstrip("/")
    for headers in (
        {"host": internal},
        {"x-forwarded-port": internal.rpartition(":")[2]},
        {"forwarded": f"host={internal}"},
    ):
        assert service.public.get("/metrics", headers=headers).status_code == 404


def test_everything_else_is_on_both(service: Apart) -> None:
    for call in PUBLIC:
        if call.method == "GET" and call.path != "/v1/stream":
            headers = bearer("ann", "admin")
            statuses = {
                client.get(path(call.path), headers=headers).status_code
                for client in (service.public, service.internal)
            }
            assert len(statuses) == 1, call.path
    for client in (service.public, service.internal):
        with client.stream("GET", "/v1/stream", headers=ANN) as stream:
            assert next(stream.iter_lines()).startswith("retry:")


def test_a_ticket_for_somebody_else_is_made_inside(service: Apart) -> None:
    body = {"user": "bo"}
    outside = service.public.post("/v1/tickets", headers=ROOT, json=body)
    assert (outside.status_code, outside.json()["code"]) == (403, "internal_only")
    assert service.internal.post("/v1/tickets", headers=ROOT, json=body).status_code == 200
    assert service.public.post("/v1/tickets", headers=ANN).status_code == 200


def test_a_token_is_needed_inside_too(service: Apart) -> None:
    assert service.internal.post("/v1/users/ann/kick").status_code == 401
    assert service.internal.post("/v1/users/ann/kick", headers=ANN).status_code == 403


def test_workers_share_the_internal_address(tmp_path: Path) -> None:
    redis = RedisServer(tmp_path / "redis")
    redis.start()
    with closing(redis), apart(tmp_path, "--workers", "2", PUSHSSE_REDIS_URL=redis.url) as running:
        # A connection each, so that both workers get some.
        for _ in range(8):
            with httpx.Client(trust_env=False) as client:
                inside = client.get(f"{running.internal.base_url}/metrics")
                assert "pushsse_workers 2.0" in inside.text
                assert client.get(f"{running.public.base_url}/metrics").status_code == 404


def test_an_internal_address_that_is_taken_is_said_at_the_start(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        ended = pushsse(tmp_path, "serve", "--port", "0", PUSHSSE_INTERNAL_LISTEN=address)
    assert ended.returncode == 1
    assert f"port {address.rpartition(':')[2]}" in ended.stderr


@pytest.mark.parametrize("bad", ["9000", ":9000", "host:", "host:x", "127.0.0.1:70000", "127.0.0.1:8000"])
def test_an_address_that_can_t_be_used_is_refused(bad: str) -> None:
    with pytest.raises(SettingsError, match="PUSHSSE_INTERNAL_LISTEN"):
        load({"PUSHSSE_INTERNAL_LISTEN": bad, "PUSHSSE_JWT_SECRET": SECRET})


def test_in_development_it_is_this_machine_s_own() -> None:
    with pytest.raises(SettingsError, match="loopback"):
        load({"PUSHSSE_INTERNAL_LISTEN": "0.0.0.0:9000"})
    internal = load({"PUSHSSE_INTERNAL_LISTEN": "[::1]:9000"}).internal
    assert internal is not None
    assert (internal.host, internal.port) == ("::1", 9000)


def test_doctor_says_what_is_where(tmp_path: Path) -> None:
    settings = {"PUSHSSE_JWT_SECRET": SECRET, "PUSHSSE_INTERNAL_LISTEN": "0.0.0.0:9000"}
    said = pushsse(tmp_path, "doctor", **settings).stdout
    assert re.search(r"warning +addresses .*9000.*on every network", said), said
    said = pushsse(tmp_path, "doctor", **{**settings, "PUSHSSE_INTERNAL_LISTEN": "127.0.0.1:9000"}).stdout
    assert re.search(r"ok +addresses +http://127.0.0.1:9000: calls of administrators", said), said


def test_behind_nginx_streams_begin_and_administrators_stay_outside(service: Apart, tmp_path: Path) -> None:
    public, internal = (
        str(client.base_url).removeprefix("http://").rstrip("/")
        for client in (service.public, service.internal)
    )
    for nginx in run_nginx(Nginx(tmp_path / "nginx", [public], internal=[internal])):
        with httpx.Client(base_url=nginx.url, trust_env=False) as client:
            with client.stream("GET", "/v1/stream", headers=ANN) as stream:
                assert stream.status_code == 200
                assert any(line == "event: ready" for line in stream.iter_lines())
            for call in INTERNAL:
                reply = client.request(call.method, path(call.path), headers=ROOT)
                assert (reply.status_code, reply.json()["code"]) == (404, "not_found")
            assert client.get("/v1/me", headers=ANN).status_code == 200
